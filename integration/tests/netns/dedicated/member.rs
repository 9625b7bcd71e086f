//! The machine towards pods and pods towards the machine: identities, policies, what is none of the mesh's business.

use anyhow::Result;
use integration::Policy;
use integration::istiod::Event;

use super::{MARKER, SITE, Scene, Told, container, member_state};
use crate::support::{connect, echo, hold, still_held};

#[test]
fn a_machine_is_a_member_by_files() -> Result<()> {
    both_ways(&Scene::set(Told::ByFiles)?)
}

#[test]
fn a_machine_is_a_member_by_istiod() -> Result<()> {
    let scene = Scene::set(Told::ByIstiod)?;
    both_ways(&scene)?;
    // its own certificate and no other, though the control plane would give it none but that
    let record = scene.mesh.istiod().record().since(0);
    let asked = record.iter().filter_map(|event| match event {
        Event::Asked {
            caller, identity, ..
        } => Some((caller.peer?, identity.clone())),
        _ => None,
    });
    let own = [scene.vm.v4.into(), scene.vm.v6.into()];
    let of_vm: Vec<_> = asked.filter(|(peer, _)| own.contains(peer)).collect();
    assert!(!of_vm.is_empty());
    for (_, identity) in of_vm {
        assert_eq!(identity, scene.vm.identity());
    }
    Ok(())
}

fn both_ways(scene: &Scene) -> Result<()> {
    let (vm, world) = (&scene.vm, &scene.mesh.world);
    let (client, server) = (scene.mesh.pod("client-0"), scene.mesh.pod("server-0"));
    let outsider = scene.mesh.pod("outsider-0");
    let _apps = [
        vm.serve(&["echo"])?,
        server.serve(&["echo"])?,
        outsider.serve(&["echo"])?,
    ];
    assert_eq!(member_state(&scene.daemon)?, "Up");

    let wire = world.node(SITE).capture(world.node(1))?;
    for to in [
        server.at(9000),
        server.at6(9000),
        "10.96.0.10:9000".parse()?,
        "[fd96::10]:9000".parse()?,
    ] {
        echo(vm, to, &["--send", MARKER])?;
    }
    let line = scene
        .daemon
        .wait_access("a connection out", |line| line.is("outbound"))?;
    assert_eq!(line.field("src.identity"), vm.identity(), "{}", line.text);
    assert_eq!(
        line.field("dst.identity"),
        server.identity(),
        "{}",
        line.text
    );
    let line = scene
        .mesh
        .inbound(server, |line| line.field("src.identity") == vm.identity())?;
    assert_eq!(line.field("src.workload"), vm.name, "{}", line.text);
    let packets = wire.stop()?;
    assert!(!packets.shows(MARKER) && packets.tls(15008) > 0);

    let wire = world.node(SITE).capture(world.node(0))?;
    for to in [vm.at(9000), vm.at6(9000)] {
        let seen = echo(client, to, &["--send", MARKER])?;
        assert_eq!(
            scene.mesh.outbound(client, &seen)?.field("dst.identity"),
            vm.identity()
        );
    }
    let line = scene
        .daemon
        .wait_access("a connection in", |line| line.is("inbound"))?;
    assert_eq!(
        line.field("src.identity"),
        client.identity(),
        "{}",
        line.text
    );
    let packets = wire.stop()?;
    assert!(!packets.shows(MARKER) && packets.tls(15008) > 0);

    // plain where the other side is not in the mesh, and nothing at all within the machine
    echo(vm, outsider.at(9000), &[])?;
    echo(outsider, vm.at(9000), &[])?;
    for to in [
        vm.at(9000),
        vm.at6(9000),
        "127.0.0.1:9000".parse()?,
        "[::1]:9000".parse()?,
    ] {
        echo(vm, to, &[])?;
    }
    Ok(())
}

#[test]
fn policies_hold_in_both_directions() -> Result<()> {
    let scene = Scene::set(Told::ByFiles)?;
    let vm = &scene.vm;
    let (client, server) = (scene.mesh.pod("client-0"), scene.mesh.pod("server-0"));
    let outsider = scene.mesh.pod("outsider-0");
    let _apps = [vm.serve(&["echo"])?, server.serve(&["echo"])?];
    let held = hold(outsider, vm.at(9000))?;
    let only_client = "{principals: [!Exact \"cluster.local/ns/shop/sa/client\"]}";
    scene.edit(|model| {
        let policy = Policy::new("Allow", "shop", "only-client", &[only_client]);
        model.policies.push(policy);
    })?;
    held.wait_line(crate::support::SOON, "the cut", |line| {
        line.starts_with("cut")
    })?;
    echo(client, vm.at(9000), &[])?;
    for (from, to) in [(outsider, vm.at(9000)), (vm, server.at(9000))] {
        let seen = connect(from, to, &[])?;
        assert_ne!(seen["received"], "hello", "{} to {to}: {seen}", from.name);
    }
    scene.daemon.wait_access("who was refused", |line| {
        line.is("inbound") && line.field("error").contains("policy rejection")
    })?;
    scene.mesh.inbound(server, |line| {
        line.field("src.identity") == vm.identity()
            && line.field("error").contains("policy rejection")
    })?;
    scene.edit(|model| model.policies.clear())?;
    echo(vm, server.at(9000), &[])?;
    echo(outsider, vm.at(9000), &[])?;
    Ok(())
}

#[test]
fn other_namespaces_of_the_machine_are_left_alone() -> Result<()> {
    let mut scene = Scene::set(Told::ByFiles)?;
    let (vm, outsider) = (scene.vm.clone(), scene.mesh.pod("outsider-0").clone());
    let inner = container(&vm)?;
    let _apps = [
        outsider.serve(&["echo"])?,
        inner.serve(&["echo"])?,
        vm.serve(&["echo"])?,
    ];
    let from = scene.daemon.access().len();
    echo(&inner, outsider.at(9000), &[])?;
    let held = hold(&inner, outsider.at(9000))?;
    assert_eq!(scene.daemon.access().len(), from, "{}", scene.daemon.tail());
    // the machine's own connections to it, and its to the machine, are the machine's
    echo(&vm, inner.at(9000), &[])?;
    echo(&inner, vm.at(9000), &[])?;
    echo(&inner, "192.168.77.1:9000".parse()?, &[])?;

    scene.daemon.kill9()?;
    still_held(&held)?;
    echo(&inner, outsider.at(9000), &[])?;
    let seen = connect(&vm, outsider.at(9000), &["--timeout-ms", "300"])?;
    assert_ne!(seen["received"], "hello", "the machine is closed: {seen}");
    Ok(())
}
