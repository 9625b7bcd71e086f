//! What comes between the rules and the mesh state, under a control plane and without one; crashes; what is left behind.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::cni::{Rules, Site};
use integration::{Capture, Daemon, Layout, netns, until};

use super::{Cni, wait_served, wait_value};
use crate::support::{SOON, connect, echo, governed, hold, local};

const MARKER: &str = "marker-of-the-clear-text";

#[test]
fn until_it_is_announced_a_pod_speaks_plaintext() -> Result<()> {
    let cni = Cni::plain(&Layout::standard(), &[])?;
    let (client, server) = (cni.pod("client-0"), cni.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    for pod in [client, server] {
        cni.sites[pod.node].enroll(pod, &Rules::default())?;
    }
    let targets = [
        server.at(9000),
        server.at6(9000),
        "10.96.0.10:9000".parse()?,
    ];
    let by = |to, ends: &str| -> Result<()> {
        let from = local(&echo(client, to, &[])?)?;
        let line = cni.daemons[0].wait_access("outbound line", |line| {
            line.is("outbound") && line.field("src.addr") == from
        })?;
        ensure!(line.field("dst.addr").ends_with(ends), "{}", line.text);
        Ok(())
    };
    for to in targets {
        by(to, ":9000")?;
    }
    cni.announce()?;
    for to in targets {
        by(to, ":15008")?;
    }
    Ok(())
}

#[test]
fn a_pod_that_the_mesh_does_not_know_is_refused_until_it_does() -> Result<()> {
    let cni = Cni::up(&Layout::standard())?;
    let (client, server) = (cni.pod("client-0"), cni.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    let mut gone = None;
    cni.edit(|model| {
        let at = model.pods.iter().position(|pod| pod.name == "client-0");
        gone = at.map(|at| model.pods.remove(at));
    })?;
    let seen = connect(client, server.at(9000), &["--timeout-ms", "9000"])?;
    assert_ne!(seen["received"], "hello", "{seen}");
    let ms = seen["ms"].as_u64().context("ms")?;
    assert!(
        (4000..8000).contains(&ms),
        "it waits 5 s for its workload: {seen}"
    );
    cni.edit(|model| model.pods.extend(gone))?;
    echo(client, server.at(9000), &[])?;
    Ok(())
}

#[test]
fn under_a_control_plane_pods_come_after_its_state() -> Result<()> {
    let world = governed(&Layout::standard())?;
    let sites = [Site::raise(world.node(0))?, Site::raise(world.node(1))?];
    let daemons = [
        Daemon::start(&sites[0].node, &[])?,
        Daemon::start(&sites[1].node, &[])?,
    ];
    let (client, server) = (world.pod("client-0"), world.pod("server-0"));
    for pod in [client, server] {
        sites[pod.node].enroll(pod, &Rules::default())?;
    }
    world.model().label("shop", true);
    world.publish_state()?;
    world.settled_state(&[&daemons[0], &daemons[1]])?;
    let _echo = server.serve(&["echo"])?;
    let wire = world.node(0).capture(world.node(1))?;
    for to in [
        server.at(9000),
        server.at6(9000),
        "10.96.0.10:9000".parse()?,
    ] {
        let from = local(&echo(client, to, &["--send", MARKER])?)?;
        let line = daemons[0].wait_access("outbound line", |line| {
            line.is("outbound") && line.field("src.addr") == from
        })?;
        assert_eq!(
            line.field("dst.identity"),
            server.identity(),
            "{}",
            line.text
        );
    }
    assert!(!wire.stop()?.shows(MARKER), "clear text on the wire");
    Ok(())
}

#[test]
fn a_daemon_that_crashes_leaks_nothing_and_its_successor_serves() -> Result<()> {
    let mut cni = Cni::up(&Layout::standard())?;
    let (client, server) = (cni.pod("client-0").clone(), cni.pod("server-0").clone());
    let _echo = server.serve(&["echo"])?;
    let held = hold(&client, server.at(9000))?;
    let gateway = IpAddr::V4(cni.world.node(0).gateway4);
    let device = Capture::start(&client.netns, "eth0", gateway, &cni.world.dir())?;
    cni.daemons[0].kill9()?;
    held.wait_line(SOON, "the cut", |line| line.starts_with("cut"))?;
    let targets = [
        server.at(9000),
        server.at6(9000),
        "10.96.0.10:9000".parse()?,
    ];
    for to in targets {
        let seen = connect(&client, to, &["--send", MARKER])?;
        assert_eq!(seen["kind"], "ConnectionRefused", "{to}: {seen}");
    }
    cni.daemons[0] = Daemon::start(&cni.sites[0].node, &[])?;
    for to in targets {
        echo(&client, to, &["--send", MARKER])?;
    }
    let packets = device.stop()?;
    assert!(!packets.shows(MARKER), "clear text left the pod");
    for to in targets {
        assert_eq!(packets.syn_to(to), 0, "a connect to {to} left the pod");
    }
    Ok(())
}

#[test]
fn a_pod_that_left_frees_its_namespace_and_the_daemon_its_descriptors() -> Result<()> {
    let cni = Cni::up(&Layout::standard())?;
    let (client, server) = (cni.pod("client-0"), cni.pod("server-0"));
    let echo_app = server.serve(&["echo"])?;
    let outgoing = hold(client, server.at(9000))?;
    let back = client.serve(&["echo"])?;
    let incoming = hold(server, client.at6(9000))?;
    // coming and going leaves nothing behind
    let agent = &cni.sites[0].agent;
    let come_and_go = |rounds: usize| -> Result<()> {
        for _ in 0..rounds {
            for answer in agent.del(&client.uid)? {
                answer.acked()?;
            }
            agent.add(&cni.entry("client-0")?)?.acked()?;
        }
        Ok(())
    };
    come_and_go(3)?;
    wait_served(&cni.daemons[0], &client.netns, 1)?;
    for held in [&outgoing, &incoming] {
        held.wait_line(SOON, "the cut", |line| line.starts_with("cut"))?;
    }
    drop((outgoing, incoming));
    let settled = || {
        // descriptors go a moment after what they served
        until(SOON, "a steady number of descriptors", || {
            let before = cni.daemons[0].fds();
            std::thread::sleep(Duration::from_millis(200));
            Ok((cni.daemons[0].fds() == before).then_some(before))
        })
    };
    let before = settled()?;
    come_and_go(30)?;
    let after = settled()?;
    assert!(
        after <= before + 2,
        "{before} descriptors, after 30 rounds {after}"
    );

    agent.del(&client.uid)?;
    wait_value(&cni.daemons[0], super::ACTIVE, 0.0)?;
    drop((echo_app, back));
    // the node's end of the pod's cable goes with the namespace, once nobody holds that any more
    let port = format!("p{}", client.v4.octets()[3]);
    let node = &cni.world.node(0).netns_name;
    ensure!(
        netns::show(node, &["link", "show", &port]).is_ok(),
        "no {port}"
    );
    netns::ip(None, &[format!("netns delete {}", client.netns_name)])?;
    until(SOON, "the end of the namespace", || {
        Ok(netns::show(node, &["link", "show", &port])
            .is_err()
            .then_some(()))
    })
    .with_context(|| format!("log:\n{}", cni.daemons[0].tail()))
}
