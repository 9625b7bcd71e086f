//! Somebody else's rules lead the machine's connections to the daemon, which then needs no privilege at all: it runs as a user of its
//! own, by which the rules tell it from the applications.

use std::path::PathBuf;

use anyhow::{Context, Result};
use integration::istiod::Xds;
use integration::{Daemon, Pod, place, until};

use super::{MARKER, SITE, Scene, Told, launch, member_state, mesh, resolver, resolving, site};
use crate::support::{Mesh, SOON, echo};

/// User and group of the daemon.
const USER: &str = "1337";
/// The usual settings, without what belongs to capture of our own.
const ENV: [(&str, &str); 3] = [
    ("CAPTURE", "external"),
    ("CAPTURE_CGROUP", ""),
    ("CAPTURE_PIN_PATH", ""),
];

/// As an operator would write them.
fn install(vm: &Pod) -> Result<()> {
    let owner = format!("-A OUTPUT -m owner --uid-owner {USER} -j RETURN");
    let rules = [
        &owner,
        "-A OUTPUT -o lo -j RETURN",
        "-A OUTPUT -p udp --dport 53 -j REDIRECT --to-ports 15053",
        "-A OUTPUT -p tcp --dport 53 -j REDIRECT --to-ports 15053",
        "-A OUTPUT -p tcp -j REDIRECT --to-ports 15001",
        "-A PREROUTING -p tcp -m multiport --dports 15008,15020,15021 -j RETURN",
        "-A PREROUTING -i eth0 -p tcp -j REDIRECT --to-ports 15006",
    ];
    for tool in ["iptables", "ip6tables"] {
        for rule in rules {
            let words: Vec<&str> = [tool, "-t", "nat"]
                .into_iter()
                .chain(rule.split(' '))
                .collect();
            vm.read(&words)?;
        }
    }
    Ok(())
}

/// Without any capability, and with the machine's resolver.
fn start(mesh: &Mesh, vm: &Pod) -> Result<Daemon> {
    let script = format!(
        "mount --bind \"$1\" /etc/resolv.conf && \
         exec setpriv --reuid {USER} --regid {USER} --clear-groups -- \"$2\""
    );
    let words = ["unshare", "--mount", "--", "sh", "-c", &script, "sh"];
    let mut launcher = words.map(PathBuf::from).to_vec();
    launcher.push(site(&mesh.world).resolver());
    launch(&mesh.world, vm, &ENV, &launcher)
}

/// Names of the mesh are completed by this, and others known by the resolver there.
fn resolver_of(mesh: &Mesh) -> Result<()> {
    let upstream = mesh.pod("resolver-0").v4;
    let text = format!("nameserver {upstream}\nsearch shop.svc.cluster.local\n");
    resolver(&mesh.world, &text)
}

#[test]
fn rules_of_others_and_no_privilege_do() -> Result<()> {
    let mesh = mesh(Told::ByIstiod)?;
    let vm = mesh.pod("vm-0").clone();
    install(&vm)?;
    resolver_of(&mesh)?;
    let daemon = start(&mesh, &vm)?;
    let scene = Scene::of(mesh, daemon)?;
    assert_eq!(member_state(&scene.daemon)?, "Up");
    let status = std::fs::read_to_string(format!("/proc/{}/status", scene.daemon.pid()))?;
    assert!(status.contains("CapEff:\t0000000000000000"), "{status}");

    let vm = &scene.vm;
    let pods =
        ["client-0", "server-0", "outsider-0", "resolver-0"].map(|name| scene.mesh.pod(name));
    let [client, server, outsider, upstream] = pods;
    let _apps = [
        vm.serve(&["echo"])?,
        server.serve(&["echo"])?,
        outsider.serve(&["echo"])?,
        upstream.serve(&["dns"])?,
    ];
    let world = &scene.mesh.world;
    let wire = world.node(SITE).capture(world.node(1))?;
    for to in [
        server.at(9000),
        server.at6(9000),
        "10.96.0.10:9000".parse()?,
    ] {
        echo(vm, to, &["--send", MARKER])?;
    }
    let packets = wire.stop()?;
    assert!(!packets.shows(MARKER) && packets.tls(15008) > 0);
    scene
        .mesh
        .inbound(server, |line| line.field("src.identity") == vm.identity())?;
    for to in [vm.at(9000), vm.at6(9000)] {
        let seen = echo(client, to, &[])?;
        assert_eq!(
            scene.mesh.outbound(client, &seen)?.field("dst.identity"),
            vm.identity()
        );
    }
    echo(vm, outsider.at(9000), &[])?;
    echo(outsider, vm.at(9000), &[])?;
    let said = resolving(&scene, &["getent", "ahostsv4", "server"])?;
    assert!(said.starts_with("10.96.0.10"), "{said}");
    let said = resolving(&scene, &["getent", "ahostsv4", "www.example.com"])?;
    assert!(said.starts_with("192.0.2.1"), "{said}");
    let (code, body) = outsider.curl(&[&format!("http://{}:15020/metrics", vm.v4)])?;
    assert!(code == 0 && body.contains("istio_build"), "{code}: {body}");
    Ok(())
}

#[test]
fn a_port_that_is_taken_ends_the_start() -> Result<()> {
    let mesh = mesh(Told::ByIstiod)?;
    let vm = mesh.pod("vm-0").clone();
    resolver_of(&mesh)?;
    let _squatter = vm.serve(&["echo", "--listen", "[::]:15006"])?;
    let mut daemon = start(&mesh, &vm)?;
    let exit = daemon.wait_exit(3 * SOON)?;
    assert_eq!(exit.status.code(), Some(1), "{}", daemon.tail());
    let log = daemon.log();
    let said = log
        .lines()
        .find(|line| line.contains("listen on [::]:15006"));
    said.with_context(|| format!("the port is not named:\n{log}"))?;
    Ok(())
}

#[test]
fn connections_wait_until_the_mesh_is_known() -> Result<()> {
    let mesh = mesh(Told::ByIstiod)?;
    let (vm, server) = (mesh.pod("vm-0").clone(), mesh.pod("server-0").clone());
    let _echo = server.serve(&["echo"])?;
    install(&vm)?;
    resolver_of(&mesh)?;
    mesh.istiod().behave(Xds::Silent);
    let mut daemon = start(&mesh, &vm)?;
    let listening = ["ss", "-ltnH", "sport", "=", ":15001"];
    until(SOON, "the listener", || {
        Ok((!vm.read(&listening)?.is_empty()).then_some(()))
    })?;
    let binary = place::binary("podapp")?.to_string_lossy().into_owned();
    let to = server.at(9000).to_string();
    let words = ["connect", "--to", &to, "--timeout-ms", "20000"];
    let mut early = vm.spawn(&[&[binary.as_str()][..], &words].concat())?;
    let connected = ["ss", "-tnH", "dport", "=", ":9000"];
    until(SOON, "the connection", || {
        Ok((!vm.read(&connected)?.is_empty()).then_some(()))
    })?;
    let answer = daemon.get(15021, "/healthz/ready")?;
    assert_eq!(
        answer.body,
        "not ready, pending: dns proxy, proxy, state manager\n"
    );
    mesh.istiod().behave(Xds::Serve);
    daemon.wait_ready()?;
    let seen = early.finish(2 * SOON)?.1.context("it told nothing")?;
    assert_eq!(seen["received"], "hello", "{seen}\n{}", daemon.tail());
    Ok(())
}
