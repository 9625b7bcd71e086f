//! The machine's daemon is replaced, ended, killed and started again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::{Capture, Node, place};

use super::{MARKER, Scene, Told, launch, member_state, site};
use crate::support::{SOON, connect, echo};

/// The load's own bound.
const LOAD_MAX: Duration = Duration::from_secs(120);
/// A try that is to fail.
const SHORT: [&str; 4] = ["--send", MARKER, "--timeout-ms", "300"];

#[test]
fn a_successor_takes_over_and_no_connection_fails() -> Result<()> {
    let mut scene = Scene::set(Told::ByFiles)?;
    let vm = scene.vm.clone();
    let (client, server) = (
        scene.mesh.pod("client-0").clone(),
        scene.mesh.pod("server-0").clone(),
    );
    let _apps = [vm.serve(&["echo"])?, server.serve(&["echo"])?];
    let binary = place::binary("podapp")?.to_string_lossy().into_owned();
    let stop = scene.mesh.world.dir().join("enough");
    let text = stop.to_string_lossy().into_owned();
    let load = |from: &integration::Pod, to: std::net::SocketAddr| {
        let to = to.to_string();
        let args = [
            "load",
            "--to",
            &to,
            "--count",
            "1000",
            "--threads",
            "2",
            "--stop-file",
            &text,
        ];
        from.spawn(&[&[binary.as_str()][..], &args].concat())
    };
    let mut loads = [
        load(&vm, server.at(9000))?,
        load(&client, vm.at(9000))?,
        load(&vm, server.at6(9000))?,
    ];
    for load in &loads {
        load.wait_line(SOON, "done 100", |line| line == "done 100")?;
    }
    for _ in 0..2 {
        let mut next = scene.another()?;
        // both answer on the port of readiness
        next.wait_log(0, &["marking server ready"])?;
        std::mem::swap(&mut scene.daemon, &mut next);
        let exit = next.terminate()?;
        assert!(exit.status.success(), "{}", exit.status);
        assert_eq!(member_state(&scene.daemon)?, "Up");
    }
    fs::write(&stop, "").context("end the load")?;
    for load in &mut loads {
        let told = load.finish(LOAD_MAX)?.1.context("the load told nothing")?;
        assert_eq!(told["failed"], 0, "{told}\n{}", scene.daemon.tail());
    }
    Ok(())
}

#[test]
fn without_its_daemon_the_machine_is_closed_but_for_whom_is_exempt() -> Result<()> {
    let mesh = super::mesh(Told::ByIstiod)?;
    let vm = mesh.pod("vm-0").clone();
    let pods =
        ["client-0", "server-0", "outsider-0", "resolver-0"].map(|name| mesh.pod(name).clone());
    let [client, server, outsider, resolver] = &pods;
    let _apps = [
        vm.serve(&["echo"])?,
        server.serve(&["echo"])?,
        outsider.serve(&["echo"])?,
        resolver.serve(&["dns", "--answer", "172.31.0.100", "--answer6", "fd31::64"])?,
    ];
    // the control plane by name, and only a resolver that is reached over the network knows the name
    super::resolver(&mesh.world, &format!("nameserver {}\n", resolver.v4))?;
    let exempt = format!("{}/32", outsider.v4);
    let istiod = |port| format!("https://istiod.istio-system.svc:{port}");
    let (xds, ca) = (istiod(15012), istiod(15013));
    let env = [
        ("CAPTURE_EXEMPT_SOURCES", exempt.as_str()),
        ("XDS_ADDRESS", &xds),
        ("CA_ADDRESS", &ca),
    ];
    let mut daemon = launch(&mesh.world, &vm, &env, &[])?;
    daemon.wait_ready()?;
    echo(&vm, server.at(9000), &[])?;
    echo(client, vm.at(9000), &[])?;

    for gentle in [false, true] {
        if gentle {
            let exit = daemon.terminate()?;
            assert!(exit.status.success(), "{}", exit.status);
        } else {
            daemon.kill9()?;
        }
        let gateway = site(&mesh.world).gateway4.into();
        let wire = Capture::start(&vm.netns, "eth0", gateway, &mesh.world.dir())?;
        for to in [
            server.at(9000),
            server.at6(9000),
            outsider.at(9000),
            "10.96.0.10:9000".parse()?,
        ] {
            let seen = connect(&vm, to, &SHORT)?;
            assert_ne!(seen["received"], MARKER, "{to}: {seen}");
        }
        let to = resolver.at(53).to_string();
        let seen = vm.podapp(&["dig", "--server", &to, "--timeout-ms", "300"])?;
        assert_eq!(seen["ok"], false, "{seen}");
        let seen = connect(client, vm.at(9000), &SHORT)?;
        assert_ne!(seen["received"], MARKER, "{seen}");
        let packets = wire.stop()?;
        assert!(!packets.shows(MARKER), "clear text left the machine");
        assert_eq!(
            packets.syn_to(outsider.at(9000)),
            0,
            "a connect left the machine"
        );
        assert_eq!(packets.udp_to_port(53), 0, "a question left the machine");
        // whoever administers the machine still comes in
        echo(outsider, vm.at(9000), &[])?;

        // and the next daemon finds its control plane past what the last one left
        daemon = launch(&mesh.world, &vm, &env, &[])?;
        daemon.wait_ready()?;
        echo(&vm, server.at(9000), &[])?;
        echo(&vm, outsider.at(9000), &[])?;
        echo(client, vm.at(9000), &[])?;
    }
    Ok(())
}

#[test]
fn released_the_machine_is_as_it_was_found() -> Result<()> {
    let mut scene = Scene::set(Told::ByFiles)?;
    let (vm, outsider) = (scene.vm.clone(), scene.mesh.pod("outsider-0").clone());
    let _echo = outsider.serve(&["echo"])?;
    echo(&vm, outsider.at(9000), &[])?;
    scene.daemon.terminate()?;
    let pins = site(&scene.mesh.world).pins.to_string_lossy().into_owned();
    let binary = place::binary("ztunnel")?.to_string_lossy().into_owned();
    let pins = format!("CAPTURE_PIN_PATH={pins}");
    let said = vm.read(&["env", &pins, &binary, "release"])?;
    assert!(said.contains("released 1 pods"), "{said}");
    echo(&vm, outsider.at(9000), &[])?;
    for family in ["-4", "-6"] {
        let rules = vm.read(&["ip", family, "rule"])?;
        assert!(!rules.contains("139") && !rules.contains("0x53"), "{rules}");
    }
    Ok(())
}

#[test]
fn what_the_first_line_misses_does_not_leave() -> Result<()> {
    let mesh = super::mesh(Told::ByFiles)?;
    // the whole hierarchy, as where nothing is set; and nobody mends it meanwhile
    let env = [("CAPTURE_CGROUP", ""), ("CAPTURE_RECONCILE_INTERVAL", "1h")];
    let daemon = launch(&mesh.world, mesh.pod("vm-0"), &env, &[])?;
    let scene = Scene::of(mesh, daemon)?;
    let (vm, outsider) = (&scene.vm, scene.mesh.pod("outsider-0"));
    let inner = super::container(vm)?;
    let _apps = [outsider.serve(&["echo"])?, vm.serve(&["echo"])?];
    echo(vm, outsider.at(9000), &[])?;
    // nor is another daemon disturbed, whose pods are below it in the hierarchy
    let (client, server) = (scene.mesh.pod("client-0"), scene.mesh.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    for to in [server.at(9000), server.at6(9000), outsider.at(9000)] {
        echo(client, to, &[])?;
    }
    let dropped = |way: &str| -> Result<f64> {
        let labels = [("verdict", way)];
        let metrics = scene.daemon.metrics()?;
        Ok(metrics.sum("ztunnel_capture_verdicts_total", &labels))
    };
    let (out, inwards) = ("egress_dropped_uncaptured", "ingress_dropped_uncaptured");
    assert_eq!((dropped(out)?, dropped(inwards)?), (0.0, 0.0));

    let pins = pins(site(&scene.mesh.world))?;
    for link in ["link-connect4", "link-connect6"] {
        detach(&pins.join(link))?;
    }
    for to in [outsider.at(9000), outsider.at6(9000)] {
        let seen = connect(vm, to, &SHORT)?;
        assert_ne!(seen["received"], MARKER, "{to}: {seen}");
    }
    assert!(dropped(out)? >= 2.0);
    // it knows whose connection it is: no other namespace's, and not the daemon's own
    echo(&inner, outsider.at(9000), &[])?;
    echo(outsider, vm.at(9000), &[])?;

    let lookup = fs::read_dir(&pins)?.flatten().map(|entry| entry.path());
    let mut lookup = lookup.filter(|path| path.to_string_lossy().contains("/lookup-"));
    detach(&lookup.next().context("no program at the namespace")?)?;
    let seen = connect(outsider, vm.at(9000), &SHORT)?;
    assert_ne!(seen["received"], MARKER, "{seen}");
    assert!(dropped(inwards)? >= 1.0);
    Ok(())
}

/// Detaches a program at once: to unpin its link does so some time later.
fn detach(link: &Path) -> Result<()> {
    let mut command = Command::new("bpftool");
    command.args(["link", "detach", "pinned"]).arg(link);
    let status = command.status().context("run bpftool")?;
    ensure!(status.success(), "{}: {status}", link.display());
    Ok(())
}

/// The directory of the pins, below that of the layout.
fn pins(node: &Node) -> Result<PathBuf> {
    let mut places = fs::read_dir(&node.pins)?.flatten();
    Ok(places.next().context("nothing is pinned")?.path())
}
