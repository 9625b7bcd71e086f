//! No daemon: nothing of an enrolled pod leaves in the clear. Daemon back: traffic resumes by itself.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use integration::{Capture, Layout, PodPlan, place};

use crate::support::{Mesh, SOON, connect, echo, hold};

const MARKER: &str = "marker-of-the-clear-text";

fn layout() -> Layout {
    let mut layout = Layout::standard();
    layout.pods.push(PodPlan::new("other", "resolver-1", 1));
    layout
}

#[test]
fn without_a_daemon_nothing_leaves_in_the_clear() -> Result<()> {
    let mut mesh = Mesh::up(&layout())?;
    let pods =
        ["client-0", "server-0", "outsider-0", "resolver-1"].map(|name| mesh.pod(name).clone());
    let [client, server, outsider, resolver] = &pods;
    let _apps = (
        server.serve(&["echo"])?,
        outsider.serve(&["echo"])?,
        resolver.serve(&["dns"])?,
    );
    let held = [
        hold(client, server.at(9000))?,
        hold(client, outsider.at(9000))?,
    ];
    let gateway = IpAddr::V4(mesh.world.node(0).gateway4);
    let device = Capture::start(&client.netns, "eth0", gateway, &mesh.world.dir())?;
    mesh.daemons[0].kill9()?;
    for held in &held {
        held.wait_line(SOON, "the cut", |line| line.starts_with("cut"))?;
    }

    let vip: [SocketAddr; 2] = ["10.96.0.10:9000".parse()?, "[fd96::10]:9000".parse()?];
    let targets = [
        server.at(9000),
        server.at6(9000),
        outsider.at(9000),
        outsider.at6(9000),
        vip[0],
        vip[1],
        resolver.at(53),
    ];
    let (v4, v6) = (client.v4.to_string(), client.v6.to_string());
    for to in targets {
        let own = if to.is_ipv4() { &v4 } else { &v6 };
        let ways: [&[&str]; 7] = [
            &[],
            &["--way", "nonblocking"],
            &["--way", "fastopen"],
            &["--way", "mptcp"],
            &["--mapped", "--mark-before", "0x539"],
            &["--bind-device", "eth0"],
            &["--bind-address", own],
        ];
        for way in ways {
            let args: Vec<_> = way
                .iter()
                .chain(&["--send", MARKER, "--timeout-ms", "300"])
                .copied()
                .collect();
            let seen = connect(client, to, &args)?;
            assert_ne!(
                seen["received"], MARKER,
                "{to} {way:?}: got through: {seen}"
            );
        }
    }
    for server in [resolver.at(53), resolver.at6(53)] {
        for way in ["connected", "unconnected", "tcp"] {
            let args = [
                "dig",
                "--server",
                &server.to_string(),
                "--way",
                way,
                "--timeout-ms",
                "300",
            ];
            let seen = client.podapp(&args)?;
            assert_eq!(
                seen["ok"], false,
                "dns {way} to {server} got through: {seen}"
            );
        }
    }
    let packets = device.stop()?;
    assert!(!packets.shows(MARKER), "clear text left the pod");
    for to in targets {
        assert_eq!(packets.syn_to(to), 0, "a connect to {to} left the pod");
    }
    assert_eq!(packets.udp_to_port(53), 0, "DNS questions left the pod");

    mesh.daemons[0] = mesh.world.daemon(0)?;
    let wire = mesh.world.node(0).capture(mesh.world.node(1))?;
    echo(client, server.at(9000), &["--send", MARKER])?;
    echo(client, server.at6(9000), &["--send", MARKER])?;
    echo(client, outsider.at(9000), &[])?;
    let seen = client.podapp(&["dig", "--server", &resolver.at(53).to_string()])?;
    assert_eq!(seen["ok"], true, "{seen}");
    let packets = wire.stop()?;
    assert!(!packets.shows(MARKER) && packets.tls(15008) > 0);
    Ok(())
}

#[test]
fn without_a_daemon_nothing_is_let_in_in_the_clear() -> Result<()> {
    let mut mesh = Mesh::up(&layout())?;
    let pods = ["client-0", "server-0", "outsider-0"].map(|name| mesh.pod(name).clone());
    let [client, server, outsider] = &pods;
    let _echo = server.serve(&["echo"])?;
    let held = [
        hold(client, server.at(9000))?,
        hold(outsider, server.at(9000))?,
    ];
    mesh.daemons[1].kill9()?;
    for held in &held {
        held.wait_line(SOON, "the cut", |line| line.starts_with("cut"))?;
    }
    for from in [client, outsider] {
        for to in [server.at(9000), server.at6(9000)] {
            let seen = connect(from, to, &["--send", MARKER, "--timeout-ms", "500"])?;
            assert_ne!(
                seen["received"], MARKER,
                "{} to {to} got through: {seen}",
                from.name
            );
        }
    }
    mesh.daemons[1] = mesh.world.daemon(1)?;
    for from in [client, outsider] {
        for to in [server.at(9000), server.at6(9000)] {
            echo(from, to, &["--send", MARKER])?;
        }
    }
    Ok(())
}

#[test]
fn a_label_set_while_no_daemon_runs_counts_when_it_starts() -> Result<()> {
    let mesh = crate::support::world(&Layout::standard())?;
    mesh.model().label("shop", true);
    mesh.publish_enrolment()?;
    mesh.publish_state()?;
    let (client, server) = (mesh.pod("client-0"), mesh.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    let daemons = mesh.daemons()?;
    mesh.settled_enrolment(&daemons.iter().collect::<Vec<_>>())?;
    let wire = mesh.node(0).capture(mesh.node(1))?;
    echo(client, server.at(9000), &["--send", MARKER])?;
    assert!(!wire.stop()?.shows(MARKER));
    Ok(())
}

#[test]
fn a_pod_that_is_replaced_stays_closed_until_it_serves_again() -> Result<()> {
    let mesh = Mesh::up(&Layout::standard())?;
    let (client, server) = (mesh.pod("client-0"), mesh.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    let gateway = IpAddr::V4(mesh.world.node(0).gateway4);
    let device = Capture::start(&client.netns, "eth0", gateway, &mesh.world.dir())?;
    let to = server.at(9000).to_string();
    let stop = mesh.world.dir().join("enough");
    let binary = place::binary("podapp")?;
    let mut load = client.spawn(&[
        &binary.to_string_lossy(),
        "load",
        "--to",
        &to,
        "--count",
        "100",
        "--stop-file",
        &stop.to_string_lossy(),
    ])?;
    let state = |wanted: &'static str| {
        mesh.daemons[0].wait_dump(SOON, wanted, |dump| {
            dump["workloadState"][&client.uid]["state"] == wanted
        })
    };

    // another cgroup, which is not there: it cannot start, and must not fall out of the mesh
    let cgroup = client.cgroup.clone();
    mesh.world.edit(|model| {
        if let Some(pod) = model.pod_mut("client-0") {
            pod.cgroup = cgroup.join("gone");
        }
    })?;
    let dump = state("Pending")?;
    let reason = &dump["workloadState"][&client.uid]["reason"];
    assert!(
        reason.as_str().is_some_and(|r| r.contains("gone")),
        "{reason}"
    );
    let seen = connect(
        client,
        server.at(9000),
        &["--send", MARKER, "--timeout-ms", "300"],
    )?;
    assert_ne!(seen["received"], MARKER, "got through: {seen}");

    // another identity in the right cgroup: it starts again
    mesh.world.edit(|model| {
        if let Some(pod) = model.pod_mut("client-0") {
            pod.cgroup = cgroup.clone();
            pod.service_account = "client-two".to_owned();
        }
    })?;
    state("Up")?;
    let seen = echo(client, server.at(9000), &["--send", MARKER])?;
    let line = mesh.outbound(client, &seen)?;
    assert!(
        line.field("src.identity").ends_with("/sa/client-two"),
        "{line:?}"
    );

    std::fs::write(&stop, "")?;
    load.finish(SOON * 3)?;
    let packets = device.stop()?;
    assert!(!packets.shows(MARKER), "clear text left the pod");
    assert_eq!(packets.syn_to(server.at(9000)), 0, "a connect left the pod");
    assert!(packets.tls(15008) > 0);
    Ok(())
}
