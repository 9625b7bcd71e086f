//! One connection through both daemons: what the applications, the wire, the access logs and the metrics show.

use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Context, Result};
use integration::{AccessLine, Layout, PodPlan, until};

use crate::support::{Mesh, SOON, connect, echo, local};

/// Order of the keys in an access-log line.
const KEYS: [&str; 17] = [
    "src.addr",
    "src.workload",
    "src.namespace",
    "src.identity",
    "src.cluster",
    "dst.addr",
    "dst.hbone_addr",
    "dst.service",
    "dst.workload",
    "dst.namespace",
    "dst.identity",
    "dst.cluster",
    "direction",
    "bytes_sent",
    "bytes_recv",
    "duration",
    "error",
];

fn assert_order(line: &AccessLine) {
    let places: Vec<_> = line
        .order
        .iter()
        .map(|key| KEYS.iter().position(|known| known == key))
        .collect();
    assert!(
        places.iter().all(Option::is_some) && places.is_sorted(),
        "{}",
        line.text
    );
}

#[test]
fn enrolled_pods_talk_through_hbone_and_do_not_know_it() -> Result<()> {
    let mesh = Mesh::up(&Layout::standard())?;
    let (client, server) = (mesh.pod("client-0"), mesh.pod("server-0"));
    let _http = server.serve(&["http", "--name", "server"])?;
    let _echo = server.serve(&["echo"])?;
    let wire = mesh.world.node(0).capture(mesh.world.node(1))?;
    let targets = [
        server.at(9000),
        server.at6(9000),
        "10.96.0.10:9000".parse()?,
        "[fd96::10]:9000".parse()?,
    ];
    for to in targets {
        let seen = echo(client, to, &["--send", "marker-of-the-clear-text"])?;
        assert_eq!(
            seen["peer"],
            to.to_string(),
            "getpeername is what was dialled"
        );
        let ip = if to.is_ipv4() {
            client.at(0).ip()
        } else {
            client.at6(0).ip()
        };
        assert!(
            local(&seen)?.contains(&ip.to_string()),
            "getsockname is the pod's own: {seen}"
        );
        assert!(
            mesh.outbound(client, &seen)?
                .field("dst.addr")
                .ends_with(":15008")
        );
    }
    for host in [
        server.at(8080).to_string(),
        server.at6(8080).to_string(),
        "10.96.0.10:80".to_owned(),
    ] {
        let (status, body) = client.curl(&[&format!("http://{host}/marker-of-the-clear-text")])?;
        assert_eq!(status, 0, "{host}: {body}");
        let ip = if host.starts_with('[') {
            format!("[{}]", client.v6)
        } else {
            client.v4.to_string()
        };
        assert!(
            body.contains(&format!("\"peer\":\"{ip}:")),
            "the server sees the client's address: {body}"
        );
    }
    let packets = wire.stop()?;
    assert!(
        !packets.shows("marker-of-the-clear-text"),
        "clear text on the wire"
    );
    assert!(packets.tls(15008) > 0, "no TLS on the wire");
    for port in [8080, 9000] {
        assert_eq!(
            packets.tcp_to(server.at(port)) + packets.tcp_to(server.at6(port)),
            0,
            "port {port} on the wire"
        );
    }
    Ok(())
}

#[test]
fn access_log_names_both_ends() -> Result<()> {
    let mesh = Mesh::up(&Layout::standard())?;
    let (client, server) = (mesh.pod("client-0"), mesh.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    let seen = echo(
        client,
        "10.96.0.10:9000".parse()?,
        &["--send", "0123456789"],
    )?;
    let line = mesh.outbound(client, &seen)?;
    assert_order(&line);
    let hbone = server.at(15008).to_string();
    let target = server.at(9000).to_string();
    let both = [
        ("src.workload", "client-0"),
        ("src.namespace", "shop"),
        ("src.identity", &client.identity()),
        ("src.cluster", "demo"),
        ("dst.addr", &hbone),
        ("dst.hbone_addr", &target),
        ("dst.service", "server.shop.svc.cluster.local"),
        ("dst.workload", "server-0"),
        ("dst.namespace", "shop"),
        ("dst.identity", &server.identity()),
        ("dst.cluster", "demo"),
        ("bytes_sent", "10"),
        ("bytes_recv", "10"),
        ("error", ""),
    ];
    let of_client = client.v4.to_string();
    let inbound = mesh.inbound(server, |line| {
        line.field("src.addr").starts_with(&of_client)
    })?;
    assert_order(&inbound);
    for (side, line) in [("outbound", &line), ("inbound", &inbound)] {
        assert_eq!(
            (line.level.as_str(), line.message.as_str()),
            ("info", "connection complete"),
            "{}",
            line.text
        );
        assert!(line.field("duration").ends_with("ms"), "{}", line.text);
        for (key, value) in both {
            assert_eq!(line.field(key), value, "{side} {key}: {}", line.text);
        }
    }
    Ok(())
}

#[test]
fn metrics_count_connections_and_bytes_on_both_sides() -> Result<()> {
    let mesh = Mesh::up(&Layout::standard())?;
    let (client, server) = (mesh.pod("client-0"), mesh.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    for _ in 0..3 {
        echo(client, server.at(9000), &["--send", "0123456789"])?;
    }
    for (daemon, reporter) in [
        (&mesh.daemons[0], "source"),
        (&mesh.daemons[1], "destination"),
    ] {
        let identities = [client.identity(), server.identity()];
        let labels = [
            ("reporter", reporter),
            ("source_workload", "client"),
            ("source_workload_namespace", "shop"),
            ("source_principal", &identities[0]),
            ("destination_workload", "server"),
            ("destination_workload_namespace", "shop"),
            ("destination_principal", &identities[1]),
            ("request_protocol", "tcp"),
            ("response_flags", "-"),
            ("connection_security_policy", "mutual_tls"),
        ];
        let wanted = [
            ("istio_tcp_connections_opened_total", 3.0),
            ("istio_tcp_connections_closed_total", 3.0),
            ("istio_tcp_received_bytes_total", 30.0),
            ("istio_tcp_sent_bytes_total", 30.0),
        ];
        let all_there = until(SOON, "metrics", || {
            let metrics = daemon.metrics()?;
            Ok(wanted
                .iter()
                .all(|(name, value)| metrics.sum(name, &labels) == *value)
                .then_some(()))
        });
        if let Err(error) = all_there {
            panic!(
                "{reporter}: {error}\n{}",
                daemon.get(15020, "/metrics")?.body
            );
        }
        assert_eq!(
            daemon
                .metrics()?
                .value("workload_manager_active_proxy_count"),
            Some(1.0)
        );
    }
    Ok(())
}

#[test]
fn pods_on_one_node_use_hbone_too() -> Result<()> {
    let mut layout = Layout::standard();
    layout.pods.push(PodPlan::new("shop", "neighbour-0", 0));
    let mesh = Mesh::up(&layout)?;
    let (client, neighbour) = (mesh.pod("client-0"), mesh.pod("neighbour-0"));
    let _echo = neighbour.serve(&["echo"])?;
    for to in [neighbour.at(9000), neighbour.at6(9000)] {
        let seen = echo(client, to, &[])?;
        let line = mesh.outbound(client, &seen)?;
        assert_eq!(
            line.field("dst.identity"),
            neighbour.identity(),
            "{}",
            line.text
        );
    }
    Ok(())
}

#[test]
fn much_data_and_half_close_pass_unharmed() -> Result<()> {
    let mesh = Mesh::up(&Layout::standard())?;
    let (client, server) = (mesh.pod("client-0"), mesh.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    let _http = server.serve(&["http"])?;
    // the sending direction is closed before anything is read back: the answer comes after the end of the question
    let seen = connect(
        client,
        server.at(9000),
        &["--fill", "900000", "--timeout-ms", "20000"],
    )?;
    assert_eq!(
        (seen["ok"].as_bool(), seen["bytes"].as_u64()),
        (Some(true), Some(900_005)),
        "{seen}"
    );
    let url = format!("http://{}/bytes/50000000", server.at(8080));
    let (status, told) = client.curl(&["-o", "/dev/null", "-w", "%{size_download}", &url])?;
    assert_eq!((status, told.as_str()), (0, "50000000"));
    Ok(())
}

#[test]
fn pods_outside_of_the_mesh_are_reached_and_reach_it() -> Result<()> {
    let mesh = Mesh::up(&Layout::standard())?;
    let (client, server, outsider) = (
        mesh.pod("client-0"),
        mesh.pod("server-0"),
        mesh.pod("outsider-0"),
    );
    let (_a, _b) = (server.serve(&["echo"])?, outsider.serve(&["echo"])?);
    for to in [outsider.at(9000), outsider.at6(9000)] {
        let seen = echo(client, to, &[])?;
        let line = mesh.outbound(client, &seen)?;
        assert_eq!(line.field("dst.addr"), to.to_string(), "{}", line.text);
        assert_eq!(line.field("dst.hbone_addr"), "", "{}", line.text);
    }
    for to in [server.at(9000), server.at6(9000)] {
        let seen = echo(outsider, to, &[])?;
        let from = local(&seen)?;
        let line = mesh.inbound(server, |line| line.field("src.addr") == from)?;
        assert_eq!(line.field("dst.addr"), to.to_string(), "{}", line.text);
        assert_eq!(line.field("src.identity"), "", "{}", line.text);
    }
    // the node's own health checks do not pass through the daemon
    let before = mesh.daemon_of(server).access().len();
    let node = mesh.world.node(server.node);
    let checked = integration::netns::inside(&node.netns, || TcpStream::connect(server.at(9000)))?;
    assert!(checked.is_ok(), "{checked:?}");
    assert_eq!(mesh.daemon_of(server).access().len(), before);
    Ok(())
}

#[test]
fn a_port_without_a_listener_is_refused_with_a_reason() -> Result<()> {
    let mesh = Mesh::up(&Layout::standard())?;
    let (client, server) = (mesh.pod("client-0"), mesh.pod("server-0"));
    let seen = connect(client, server.at(9999), &[])?;
    assert_ne!(seen["received"], "hello");
    let line = mesh.daemon_of(client).wait_access("the failure", |line| {
        line.is("outbound") && line.field("dst.hbone_addr") == server.at(9999).to_string()
    })?;
    assert_eq!(line.level, "error", "{}", line.text);
    assert!(
        line.field("error").contains("http status: 503"),
        "{}",
        line.text
    );
    let line = mesh.inbound(server, |line| {
        line.field("dst.hbone_addr") == server.at(9999).to_string()
    })?;
    assert!(
        line.field("error").contains("connection failed"),
        "{}",
        line.text
    );
    Ok(())
}

#[test]
fn many_open_connections_of_one_client_leave_room_for_more() -> Result<()> {
    // more than half of the source ports that the daemon has for one client and one port of the application
    const OPEN: usize = 2500;
    let mesh = Mesh::up(&Layout::standard())?;
    let (server, outsider) = (mesh.pod("server-0"), mesh.pod("outsider-0"));
    let _echo = server.serve(&["echo"])?;
    let before = mesh.daemon_of(server).fds();
    let to = server.at(9000);
    let open = integration::netns::inside(&outsider.netns, || -> Result<Vec<TcpStream>> {
        let mut open = Vec::new();
        for n in 0..OPEN {
            let mut stream = TcpStream::connect(to)?;
            stream.set_read_timeout(Some(SOON))?;
            stream.write_all(b"x")?;
            let mut back = [0];
            stream
                .read_exact(&mut back)
                .with_context(|| format!("connection {n}"))?;
            open.push(stream);
        }
        Ok(open)
    })?
    .with_context(|| {
        let lines = mesh.daemon_of(server).access();
        let failed = lines.iter().filter(|line| !line.field("error").is_empty());
        failed
            .map(|line| line.text.clone())
            .collect::<Vec<_>>()
            .join("\n")
    })?;
    assert!(mesh.daemon_of(server).fds() >= before + 2 * OPEN);
    drop(open);
    until(SOON, "descriptors given back", || {
        Ok((mesh.daemon_of(server).fds() <= before).then_some(()))
    })
}
