//! The capture matrix: every way in which an application connects is captured, and what is not ours is left alone.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use integration::{App, Layout, Pod, PodPlan};
use serde_json::Value;

use crate::support::{Mesh, SOON, connect, echo, hold, local, still_held};

const MARKER: &str = "marker-of-the-clear-text";

#[test]
fn every_way_to_connect_is_captured() -> Result<()> {
    let mesh = Mesh::up(&Layout::standard())?;
    let (client, server) = (mesh.pod("client-0"), mesh.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    let (v4, v6) = (client.v4.to_string(), client.v6.to_string());
    let ways: [(SocketAddr, &[&str]); 17] = [
        (server.at(9000), &["--way", "blocking"]),
        (server.at6(9000), &["--way", "blocking"]),
        (server.at(9000), &["--way", "nonblocking"]),
        (server.at6(9000), &["--way", "nonblocking"]),
        (server.at(9000), &["--way", "fastopen"]),
        (server.at6(9000), &["--way", "fastopen"]),
        (server.at(9000), &["--way", "mptcp"]),
        (server.at6(9000), &["--way", "mptcp"]),
        (server.at(9000), &["--mapped"]),
        (server.at(9000), &["--mapped", "--way", "nonblocking"]),
        (server.at(9000), &["--bind-address", &v4]),
        (server.at6(9000), &["--bind-address", &v6]),
        (server.at(9000), &["--mapped", "--bind-address", &v4]),
        (server.at(9000), &["--bind-device", "eth0"]),
        (server.at6(9000), &["--bind-device", "eth0"]),
        (
            server.at(9000),
            &[
                "--bind-device",
                "eth0",
                "--bind-address",
                &v4,
                "--way",
                "mptcp",
            ],
        ),
        (
            "10.96.0.10:9000".parse()?,
            &["--mapped", "--way", "fastopen"],
        ),
    ];
    let wire = mesh.world.node(0).capture(mesh.world.node(1))?;
    let mut failures = Vec::new();
    for (to, way) in ways {
        let args: Vec<_> = way.iter().chain(&["--send", MARKER]).copied().collect();
        let checked = echo(client, to, &args).and_then(|seen| {
            let line = mesh.outbound(client, &seen)?;
            anyhow::ensure!(
                line.field("dst.identity") == server.identity(),
                "not through HBONE: {}",
                line.text
            );
            Ok(())
        });
        if let Err(error) = checked {
            failures.push(format!("{to} {way:?}: {error:#}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(!wire.stop()?.shows(MARKER), "clear text on the wire");
    Ok(())
}

#[test]
fn loopback_and_the_own_address_are_not_captured() -> Result<()> {
    let mesh = Mesh::up(&Layout::standard())?;
    let client = mesh.pod("client-0");
    let _echo = client.serve(&["echo"])?;
    let targets = [
        "127.0.0.1:9000".parse()?,
        "[::1]:9000".parse()?,
        client.at(9000),
        client.at6(9000),
    ];
    for to in targets {
        echo(client, to, &[])?;
    }
    echo(client, "127.0.0.1:9000".parse()?, &["--mapped"])?;
    assert_eq!(mesh.daemon_of(client).access(), []);
    Ok(())
}

#[test]
fn udp_other_than_dns_is_left_alone() -> Result<()> {
    let mesh = Mesh::up(&Layout::standard())?;
    let (client, server) = (mesh.pod("client-0"), mesh.pod("server-0"));
    let _echo = server.serve(&["udp-echo"])?;
    let wire = mesh.world.node(0).capture(mesh.world.node(1))?;
    for to in [server.at(7000), server.at6(7000)] {
        let seen = client.podapp(&["udp", "--to", &to.to_string(), "--send", MARKER])?;
        assert_eq!(
            (seen["ok"].as_bool(), &seen["received"]),
            (Some(true), &MARKER.into()),
            "{seen}"
        );
        assert_eq!(seen["from"], to.to_string());
    }
    assert!(wire.stop()?.shows(MARKER));
    Ok(())
}

/// The standard world with two resolvers outside of the mesh, and a client that keeps its DNS to itself.
fn with_resolvers() -> Layout {
    let mut layout = Layout::standard();
    layout.pods.push(PodPlan::new("other", "resolver-1", 1));
    layout.pods.push(PodPlan::new("other", "resolver-2", 1));
    layout.pods.push(
        PodPlan::new("shop", "private-0", 0).annotated("ambient.istio.io/dns-capture", "false"),
    );
    layout
}

/// Whether the resolver saw the question come from another socket than the one that asked.
fn steered(resolver: &App, client: &Pod, seen: &Value) -> Result<bool> {
    let own = format!(":{}", seen["port"]);
    let from = [client.v4.to_string(), client.v6.to_string()];
    let asked =
        |line: &str| line.starts_with("udp from") && from.iter().any(|ip| line.contains(ip));
    resolver.wait_line(SOON, "a question", asked)?;
    let lines = resolver.lines();
    let last = lines
        .iter()
        .rfind(|line| asked(line))
        .context("no question")?;
    Ok(!last.ends_with(&own))
}

#[test]
fn dns_is_steered_and_answered_in_the_resolvers_name() -> Result<()> {
    let mesh = Mesh::up(&with_resolvers())?;
    let (client, one, two) = (
        mesh.pod("client-0"),
        mesh.pod("resolver-1"),
        mesh.pod("resolver-2"),
    );
    let first = one.serve(&["dns", "--answer", "192.0.2.1"])?;
    let _two = two.serve(&["dns", "--answer", "192.0.2.2"])?;
    for (server, way) in [
        (one.at(53), "connected"),
        (one.at(53), "unconnected"),
        (one.at6(53), "connected"),
        (one.at6(53), "unconnected"),
    ] {
        let seen = client.podapp(&["dig", "--server", &server.to_string(), "--way", way])?;
        assert_eq!(
            seen["answers"][0]["answer"], "192.0.2.1",
            "{server} {way}: {seen}"
        );
        assert_eq!(
            seen["answers"][0]["from"],
            server.to_string(),
            "{way}: {seen}"
        );
        assert!(
            steered(&first, client, &seen)?,
            "{server} {way}: not through the daemon"
        );
    }
    for (a, b) in [(one.at(53), two.at(53)), (one.at6(53), two.at6(53))] {
        let seen = client.podapp(&[
            "dig",
            "--server",
            &a.to_string(),
            "--server",
            &b.to_string(),
        ])?;
        for (n, (from, answer)) in [(a, "192.0.2.1"), (b, "192.0.2.2")].into_iter().enumerate() {
            assert_eq!(
                seen["answers"][n]["answer"], answer,
                "two resolvers on one socket: {seen}"
            );
            assert_eq!(
                seen["answers"][n]["from"],
                from.to_string(),
                "two resolvers on one socket: {seen}"
            );
        }
    }
    for server in [one.at(53), one.at6(53)] {
        let seen = client.podapp(&["dig", "--server", &server.to_string(), "--way", "tcp"])?;
        assert_eq!(
            seen["answers"][0]["answer"], "192.0.2.1",
            "tcp {server}: {seen}"
        );
        assert_eq!(
            seen["answers"][0]["from"],
            server.to_string(),
            "tcp: {seen}"
        );
    }
    // an application that holds port 53 on all addresses of its pod does not stand in the way
    let _local = client.serve(&["dns", "--answer", "192.0.2.9"])?;
    let seen = client.podapp(&[
        "dig",
        "--server",
        &one.at(53).to_string(),
        "--way",
        "connected",
    ])?;
    assert_eq!(seen["answers"][0]["answer"], "192.0.2.1", "{seen}");
    Ok(())
}

#[test]
fn dns_capture_can_be_switched_off_for_a_pod() -> Result<()> {
    let mesh = Mesh::up(&with_resolvers())?;
    let (private, one) = (mesh.pod("private-0"), mesh.pod("resolver-1"));
    let resolver = one.serve(&["dns"])?;
    for server in [one.at(53), one.at6(53)] {
        let seen = private.podapp(&["dig", "--server", &server.to_string()])?;
        assert_eq!(seen["answers"][0]["from"], server.to_string(), "{seen}");
        assert!(
            !steered(&resolver, private, &seen)?,
            "{server} went through the daemon"
        );
    }
    Ok(())
}

#[test]
fn excluded_ranges_and_ports_and_bypassed_inbound_are_not_captured() -> Result<()> {
    let mut layout = Layout::standard();
    let port = "traffic.sidecar.istio.io/excludeOutboundPorts";
    let range = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
    layout
        .pods
        .push(PodPlan::new("shop", "port-0", 0).annotated(port, "9000"));
    layout
        .pods
        .push(PodPlan::new("shop", "range-0", 0).annotated(range, "10.244.2.0/24,fd44:0:0:2::/64"));
    layout.pods.push(
        PodPlan::new("shop", "bypass-0", 1)
            .annotated("ambient.istio.io/bypass-inbound-capture", "true"),
    );
    let mesh = Mesh::up(&layout)?;
    let (server, bypass) = (mesh.pod("server-0"), mesh.pod("bypass-0"));
    let _servers = (
        server.serve(&["echo"])?,
        server.serve(&["echo", "--listen", "[::]:9001"])?,
        bypass.serve(&["echo"])?,
    );
    let captured = |name: &str, to: SocketAddr| -> Result<bool> {
        let pod = mesh.pod(name);
        let before = mesh.daemons[0].access().len();
        let mine = local(&echo(pod, to, &[])?)?;
        // a line that would come is waited for by a connection that surely leaves one
        let seen = echo(mesh.pod("client-0"), server.at(9001), &[])?;
        mesh.outbound(mesh.pod("client-0"), &seen)?;
        let new = mesh.daemons[0].access().split_off(before);
        Ok(new.iter().any(|line| line.field("src.addr") == mine))
    };
    assert!(!captured("port-0", server.at(9000))?, "excluded port, v4");
    assert!(!captured("port-0", server.at6(9000))?, "excluded port, v6");
    assert!(captured("port-0", server.at(9001))?, "another port");
    assert!(!captured("range-0", server.at(9000))?, "excluded range, v4");
    assert!(
        !captured("range-0", server.at6(9000))?,
        "excluded range, v6"
    );
    let outsider = mesh.pod("outsider-0");
    let from = local(&echo(outsider, bypass.at(9000), &[])?)?;
    let seen = echo(outsider, server.at(9000), &[])?;
    let seen = local(&seen)?;
    mesh.inbound(server, |line| line.field("src.addr") == seen)?;
    assert!(
        mesh.daemons[1]
            .access()
            .iter()
            .all(|line| line.field("src.addr") != from),
        "bypassed inbound"
    );
    Ok(())
}

#[test]
fn a_mark_set_by_the_pod_does_not_let_it_out_in_the_clear() -> Result<()> {
    let mesh = Mesh::up(&Layout::standard())?;
    let (client, server) = (mesh.pod("client-0"), mesh.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    let wire = mesh.world.node(0).capture(mesh.world.node(1))?;
    for to in [server.at(9000), server.at6(9000)] {
        for mark in ["0x539", "0x53b", "0x111", "1"] {
            let seen = echo(client, to, &["--mark-before", mark, "--send", MARKER])?;
            let line = mesh.outbound(client, &seen)?;
            assert_eq!(
                line.field("dst.identity"),
                server.identity(),
                "{mark}: {}",
                line.text
            );
            let seen = echo(
                client,
                to,
                &[
                    "--mark-before",
                    mark,
                    "--bind-device",
                    "eth0",
                    "--send",
                    MARKER,
                ],
            )?;
            mesh.outbound(client, &seen)?;
        }
    }
    let packets = wire.stop()?;
    assert!(!packets.shows(MARKER), "clear text on the wire");
    assert_eq!(
        packets.tcp_to(server.at(9000)) + packets.tcp_to(server.at6(9000)),
        0
    );
    Ok(())
}

#[test]
fn a_mark_changed_on_an_open_connection_sends_nothing_out_in_the_clear() -> Result<()> {
    let mesh = Mesh::up(&Layout::standard())?;
    let (client, server) = (mesh.pod("client-0"), mesh.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    let wire = mesh.world.node(0).capture(mesh.world.node(1))?;
    for to in [server.at(9000), server.at6(9000)] {
        for mark in ["0x539", "0", "1"] {
            // whether the connection lives on is not promised
            connect(
                client,
                to,
                &[
                    "--mark-after",
                    mark,
                    "--send",
                    MARKER,
                    "--timeout-ms",
                    "1000",
                ],
            )?;
        }
    }
    assert!(!wire.stop()?.shows(MARKER), "clear text on the wire");
    Ok(())
}

#[test]
fn connections_older_than_the_label_live_on() -> Result<()> {
    let mesh = Mesh::plain(&Layout::standard())?;
    let (client, server) = (mesh.pod("client-0"), mesh.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    let older = [
        hold(client, server.at(9000))?,
        hold(client, server.at6(9000))?,
    ];
    mesh.label("shop", true)?;
    older.iter().try_for_each(still_held)?;
    let within = [
        hold(client, server.at(9000))?,
        hold(client, server.at6(9000))?,
    ];
    mesh.label("shop", false)?;
    older.iter().try_for_each(still_held)?;
    within.iter().try_for_each(still_held)?;
    let after = hold(client, server.at(9000))?;
    mesh.label("shop", true)?;
    older
        .iter()
        .chain(&within)
        .chain([&after])
        .try_for_each(still_held)
}
