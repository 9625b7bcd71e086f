//! Connections through the agent's rules: which way each goes, and what the two applications see of it.

use std::fs;
use std::net::SocketAddr;

use anyhow::{Result, ensure};
use integration::cni::{self, PROBE_V4, PROBE_V6, Rules};
use integration::{AccessLine, Layout, Node, Pod, PodPlan, Policy, netns};
use serde_json::Value;

use super::Cni;
use crate::support::{SOON, connect, echo, local};

const MARKER: &str = "marker-of-the-clear-text";

fn outbound(cni: &Cni, client: &Pod, seen: &Value) -> Result<AccessLine> {
    let from = local(seen)?;
    cni.daemons[client.node].wait_access("outbound line", |line| {
        line.is("outbound") && line.field("src.addr") == from
    })
}

/// Refuses whatever comes without an identity to `server-0`.
fn strict(cni: &Cni) -> Result<()> {
    cni.edit(|model| {
        let name = "istio_converted_static_strict";
        let mut strict = Policy::new(
            "Deny",
            "istio-system",
            name,
            &["{notPrincipals: [!Presence []]}"],
        );
        strict.scope = "WorkloadSelector".to_owned();
        model.policies.push(strict);
        if let Some(pod) = model.pod_mut("server-0") {
            pod.policies.push(format!("istio-system/{name}"));
        }
    })
}

#[test]
fn captured_connections_go_through_hbone_and_keep_their_source() -> Result<()> {
    let cni = Cni::up(&Layout::standard())?;
    let (client, server) = (cni.pod("client-0"), cni.pod("server-0"));
    let (_echo, _http) = (server.serve(&["echo"])?, server.serve(&["http"])?);
    let wire = cni.world.node(0).capture(cni.world.node(1))?;
    let targets: [SocketAddr; 4] = [
        server.at(9000),
        server.at6(9000),
        "10.96.0.10:9000".parse()?,
        "[fd96::10]:9000".parse()?,
    ];
    for to in targets {
        let seen = echo(client, to, &["--send", MARKER])?;
        assert_eq!(seen["peer"], to.to_string());
        let line = outbound(&cni, client, &seen)?;
        assert!(line.field("dst.addr").ends_with(":15008"), "{}", line.text);
        assert_eq!(line.field("src.identity"), client.identity());
        assert_eq!(line.field("dst.identity"), server.identity());
    }
    for (host, source) in [
        (server.at(8080).to_string(), format!("{}:", client.v4)),
        (server.at6(8080).to_string(), format!("[{}]:", client.v6)),
        ("10.96.0.10:80".to_owned(), format!("{}:", client.v4)),
    ] {
        let (status, body) = client.curl(&[&format!("http://{host}/{MARKER}")])?;
        assert_eq!(status, 0, "{host}: {body}");
        let peer = format!("\"peer\":\"{source}");
        assert!(body.contains(&peer), "the server sees the client: {body}");
    }
    let packets = wire.stop()?;
    assert!(!packets.shows(MARKER), "clear text on the wire");
    assert!(packets.tls(15008) > 0);
    for to in [server.at(8080), server.at(9000), server.at6(9000)] {
        assert_eq!(packets.tcp_to(to), 0, "{to} on the wire");
    }
    Ok(())
}

#[test]
fn plaintext_comes_in_through_the_policies() -> Result<()> {
    let cni = Cni::up(&Layout::standard())?;
    let (client, server, outsider) = (
        cni.pod("client-0"),
        cni.pod("server-0"),
        cni.pod("outsider-0"),
    );
    let (_echo, _http) = (server.serve(&["echo"])?, server.serve(&["http"])?);
    for to in [server.at(9000), server.at6(9000)] {
        let seen = echo(outsider, to, &[])?;
        let from = local(&seen)?;
        let line = cni.daemons[1].wait_access("inbound line", |line| {
            line.is("inbound") && line.field("src.addr") == from
        })?;
        assert_eq!(line.field("src.identity"), "", "{}", line.text);
        assert_eq!(line.field("dst.addr"), to.to_string(), "{}", line.text);
    }
    let (status, body) = outsider.curl(&[&format!("http://{}/", server.at(8080))])?;
    assert_eq!(status, 0, "{body}");
    let peer = format!("\"peer\":\"{}:", outsider.v4);
    assert!(body.contains(&peer), "the source is kept: {body}");

    strict(&cni)?;
    for to in [server.at(9000), server.at6(9000)] {
        let seen = connect(outsider, to, &["--send", MARKER])?;
        assert_ne!(seen["received"], MARKER, "{to}: {seen}");
        echo(client, to, &[])?;
    }
    cni.daemons[1].wait_access("the refusal", |line| {
        line.is("inbound")
            && line
                .field("error")
                .contains("explicitly denied by: istio-system/")
    })?;
    Ok(())
}

/// What a server answers to a process of the node itself.
pub(super) fn probe(node: &Node, to: SocketAddr) -> Result<String> {
    use std::io::{Read, Write};
    let answer = netns::inside(&node.netns, || -> std::io::Result<String> {
        let mut stream = std::net::TcpStream::connect_timeout(&to, SOON)?;
        stream.set_read_timeout(Some(SOON))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })??;
    Ok(answer)
}

#[test]
fn probes_of_the_node_reach_the_application_under_strict() -> Result<()> {
    let cni = Cni::up(&Layout::standard())?;
    let server = cni.pod("server-0");
    let _http = server.serve(&["http"])?;
    strict(&cni)?;
    // without the rule on the node it is plaintext like any other
    let refused = probe(cni.world.node(1), server.at(8080));
    assert!(!refused.is_ok_and(|answer| answer.contains("200 OK")));
    cni::snat_probes(cni.world.node(1), server)?;
    for (to, source) in [
        (server.at(8080), PROBE_V4.to_owned()),
        (server.at6(8080), format!("[{PROBE_V6}]")),
    ] {
        let answer = probe(cni.world.node(1), to)?;
        let peer = format!("\"peer\":\"{source}:");
        assert!(answer.contains(&peer), "{to}: {answer}");
    }
    let lines = cni.daemons[1].access();
    let through = |line: &&AccessLine| line.text.contains(PROBE_V4) || line.text.contains(PROBE_V6);
    assert_eq!(
        lines.iter().filter(through).count(),
        0,
        "not through the daemon"
    );
    Ok(())
}

#[test]
fn inbound_capture_can_be_bypassed() -> Result<()> {
    let cni = Cni::plain(&Layout::standard(), &[])?;
    let bypass = Rules {
        bypass_inbound: true,
        ..Rules::default()
    };
    cni.enroll_shop(&bypass)?;
    let (client, server, outsider) = (
        cni.pod("client-0"),
        cni.pod("server-0"),
        cni.pod("outsider-0"),
    );
    let _echo = server.serve(&["echo"])?;
    let seen = echo(outsider, server.at(9000), &[])?;
    let from = local(&seen)?;
    let seen = echo(client, server.at(9000), &[])?;
    let line = outbound(&cni, client, &seen)?;
    assert!(line.field("dst.addr").ends_with(":15008"), "{}", line.text);
    cni.daemons[1].wait_access("inbound line", |line| line.is("inbound"))?;
    let lines = cni.daemons[1].access();
    assert!(lines.iter().all(|line| line.field("src.addr") != from));
    Ok(())
}

#[test]
fn a_pod_calls_itself_past_the_daemon_and_its_service_through_it() -> Result<()> {
    let cni = Cni::up(&Layout::standard())?;
    let server = cni.pod("server-0");
    let _echo = server.serve(&["echo"])?;
    let targets = [
        server.at(9000),
        server.at6(9000),
        "127.0.0.1:9000".parse()?,
        "[::1]:9000".parse()?,
    ];
    for to in targets {
        let seen = echo(server, to, &[])?;
        assert_eq!(seen["peer"], to.to_string());
    }
    for vip in ["10.96.0.10:9000", "[fd96::10]:9000"] {
        let seen = echo(server, vip.parse()?, &[])?;
        let line = outbound(&cni, server, &seen)?;
        assert_eq!(line.field("dst.service"), "server.shop.svc.cluster.local");
    }
    let through = cni.daemons[1].access();
    let through = through.iter().filter(|line| line.is("outbound")).count();
    assert_eq!(through, 2, "only those to the service");
    Ok(())
}

#[test]
fn what_dials_the_daemons_ports_is_refused_without_a_loop() -> Result<()> {
    let cni = Cni::up(&Layout::standard())?;
    let (client, server, outsider) = (
        cni.pod("client-0"),
        cni.pod("server-0"),
        cni.pod("outsider-0"),
    );
    let ours = ["127.0.0.1", "[::1]"].map(str::to_owned);
    let own = [client.v4.to_string(), format!("[{}]", client.v6)];
    let fds = cni.daemons[0].fds();
    for host in ours.iter().chain(&own) {
        for port in [15001, 15006] {
            let seen = connect(client, format!("{host}:{port}").parse()?, &[])?;
            ensure!(seen["received"] != "hello", "{host}:{port}: {seen}");
            ensure!(
                seen["ms"].as_u64() < Some(3000),
                "{host}:{port} is not refused at once: {seen}"
            );
        }
    }
    for from in [client, outsider] {
        for port in [15001, 15006] {
            for to in [server.at(port), server.at6(port)] {
                let seen = connect(from, to, &[])?;
                ensure!(seen["received"] != "hello", "{} to {to}: {seen}", from.name);
            }
        }
    }
    let metrics = cni.daemons[0].metrics()?;
    let refused = metrics.sum("ztunnel_refusals_total", &[]);
    ensure!(
        refused >= 8.0,
        "{refused} refusals\n{}",
        cni.daemons[0].tail()
    );
    // a loop would make connections out of itself
    let lines = cni.daemons[0].access().len();
    ensure!(lines < 40, "{lines} lines\n{}", cni.daemons[0].tail());
    let now = cni.daemons[0].fds();
    ensure!(now < fds + 30, "{fds} descriptors before, {now} now");
    let _echo = server.serve(&["echo"])?;
    echo(client, server.at(9000), &[])?;
    Ok(())
}

#[test]
fn dns_is_forwarded_to_the_nodes_resolver() -> Result<()> {
    let mut layout = Layout::standard();
    for name in ["first-0", "second-0"] {
        layout.pods.push(PodPlan::new("other", name, 1));
    }
    layout.pods.push(PodPlan::new("shop", "plain-0", 0));
    let world = crate::support::world(&layout)?;
    let (first, second) = (world.pod("first-0"), world.pod("second-0"));
    for node in world.nodes() {
        fs::write(node.resolver(), format!("nameserver {}\n", first.v4))?;
    }
    let first_dns = first.serve(&["dns", "--answer", "192.0.2.1"])?;
    let second_dns = second.serve(&["dns", "--answer", "192.0.2.2"])?;
    let sites = [
        cni::Site::raise(world.node(0))?,
        cni::Site::raise(world.node(1))?,
    ];
    let daemon = integration::Daemon::start(&sites[0].node, &[])?;
    let (client, plain) = (world.pod("client-0"), world.pod("plain-0"));
    sites[0].enroll(client, &Rules::default())?;
    let off = Rules {
        dns: false,
        ..Rules::default()
    };
    sites[0].enroll(plain, &off)?;
    let dig = |pod: &Pod, server: SocketAddr, way: &str| {
        pod.podapp(&["dig", "--server", &server.to_string(), "--way", way])
    };
    // whatever was asked, the node's resolver answers, in the name of the asked one
    for server in [second.at(53), second.at6(53), "192.0.2.53:53".parse()?] {
        for way in ["unconnected", "connected"] {
            let seen = dig(client, server, way)?;
            ensure!(
                seen["ok"] == true,
                "{server} {way}: {seen}\n{}",
                daemon.tail()
            );
            assert_eq!(
                seen["answers"][0]["answer"], "192.0.2.1",
                "{server}: {seen}"
            );
            assert_eq!(seen["answers"][0]["from"], server.to_string(), "{seen}");
        }
    }
    first_dns.wait_line(SOON, "a question of the pod", |line| {
        line.starts_with(&format!("udp from {}:", client.v4))
    })?;
    // over TCP as well
    let seen = dig(client, second.at(53), "tcp")?;
    assert_eq!(seen["answers"][0]["answer"], "192.0.2.1", "{seen}");
    // not captured
    let seen = dig(plain, second.at(53), "unconnected")?;
    assert_eq!(seen["answers"][0]["answer"], "192.0.2.2", "{seen}");
    second_dns.wait_line(SOON, "a question of the other pod", |line| {
        line.starts_with(&format!("udp from {}:", plain.v4))
    })?;
    Ok(())
}

#[test]
fn a_virtual_machines_connections_are_the_pods_own() -> Result<()> {
    let mut layout = Layout::standard();
    layout.pods.push(PodPlan::new("other", "guest-0", 0));
    let cni = Cni::plain(&layout, &[])?;
    let (client, server, guest) = (cni.pod("client-0"), cni.pod("server-0"), cni.pod("guest-0"));
    let _echo = server.serve(&["echo"])?;
    // an interface in the pod with a guest behind it, which has the pod's own address for the world outside
    netns::ip(
        None,
        &[format!(
            "link add vm0 netns {} type veth peer name vm1 netns {}",
            client.netns_name, guest.netns_name
        )],
    )?;
    let lines = ["link set vm0 up", "addr add 192.168.77.1/24 dev vm0"].map(str::to_owned);
    netns::ip(Some(&client.netns_name), &lines)?;
    let lines = [
        "link set vm1 up".to_owned(),
        "addr add 192.168.77.2/24 dev vm1".to_owned(),
        format!("route add {}/32 via 192.168.77.1 dev vm1", server.v4),
    ];
    netns::ip(Some(&guest.netns_name), &lines)?;
    let rules = Rules {
        reroute: vec!["vm0".to_owned()],
        ..Rules::default()
    };
    cni.enroll_shop_with(|pod| {
        if pod.name == client.name {
            rules.clone()
        } else {
            Rules::default()
        }
    })?;
    let seen = echo(guest, server.at(9000), &["--send", MARKER])?;
    let from = local(&seen)?;
    let line = cni.daemons[0].wait_access("outbound line", |line| {
        line.is("outbound") && line.field("src.addr") == from
    })?;
    assert_eq!(
        line.field("src.identity"),
        client.identity(),
        "{}",
        line.text
    );
    assert!(line.field("dst.addr").ends_with(":15008"), "{}", line.text);
    Ok(())
}
