//! SOCKS5 clients of a pod: served on its loopback, and from there on like any captured connection.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::cni::{Rules, Site};
use integration::{Daemon, Layout, Pod, World, netns, until};

use crate::support::{self, Mesh, SOON, connect, echo};

const ON: &[(&str, &str)] = &[("UNSTABLE_ENABLE_SOCKS5", "true")];
const PROXY: &str = "127.0.0.1:15080";
const MARKER: &str = "marker-of-the-clear-text";
/// How long a client may take to say where it wants to go.
const PATIENCE: Duration = Duration::from_secs(10);
/// Handshakes of one pod at a time.
const HANDSHAKES_MAX: usize = 1024;

const GREETING: &[u8] = &[5, 1, 0];
const CHOICE: [u8; 2] = [5, 0];

/// Daemons with SOCKS5, namespace `shop` is labelled.
fn up() -> Result<Mesh> {
    let world = support::world(&Layout::standard())?;
    let daemons = world.nodes().iter().map(|node| Daemon::start(node, ON));
    let mesh = Mesh {
        daemons: daemons.collect::<Result<_>>()?,
        world,
    };
    mesh.label("shop", true)?;
    Ok(mesh)
}

/// A client of the pod's that has sent `bytes`.
fn client(pod: &Pod, bytes: &[u8]) -> Result<TcpStream> {
    let mut stream = netns::inside(&pod.netns, || TcpStream::connect(PROXY))??;
    stream.set_read_timeout(Some(PATIENCE + SOON))?;
    stream.write_all(bytes)?;
    Ok(stream)
}

/// All that it gets until the connection ends.
fn rest(mut stream: TcpStream) -> Vec<u8> {
    let mut got = Vec::new();
    // a reset is an end as well
    let _ = stream.read_to_end(&mut got);
    got
}

/// A request for an IPv4 target.
fn request(to: SocketAddr) -> Vec<u8> {
    let mut bytes = vec![5, 1, 0, 1];
    match to.ip() {
        std::net::IpAddr::V4(ip) => bytes.extend(ip.octets()),
        std::net::IpAddr::V6(ip) => {
            bytes[3] = 4;
            bytes.extend(ip.octets());
        }
    }
    bytes.extend(to.port().to_be_bytes());
    bytes
}

fn reply(code: u8) -> Vec<u8> {
    vec![5, code, 0, 1, 0, 0, 0, 0, 0, 0]
}

/// `curl` through the proxy, one way or another to name the target.
fn curl(pod: &Pod, way: &str, url: &str) -> Result<(i32, String)> {
    pod.curl(&["--noproxy", "", way, PROXY, url])
}

/// Connections to pods by address, to services and outside, and what is seen of them.
fn works(world: &World, daemons: &[Daemon]) -> Result<()> {
    let (client, server, outsider) = (
        world.pod("client-0"),
        world.pod("server-0"),
        world.pod("outsider-0"),
    );
    let (_a, _b) = (server.serve(&["http"])?, outsider.serve(&["http"])?);
    let wire = world.node(0).capture(world.node(1))?;
    let (v4, v6) = (client.v4.to_string(), format!("[{}]", client.v6));
    for (host, source) in [
        (server.at(8080).to_string(), &v4),
        (server.at6(8080).to_string(), &v6),
        ("10.96.0.10:80".to_owned(), &v4),
    ] {
        let (status, body) = curl(client, "--socks5", &format!("http://{host}/{MARKER}"))?;
        assert_eq!(status, 0, "{host}: {body}");
        let peer = format!("\"peer\":\"{source}:");
        assert!(body.contains(&peer), "the server sees the pod: {body}");
    }
    let packets = wire.stop()?;
    assert!(!packets.shows(MARKER), "clear text on the wire");
    assert!(packets.tls(15008) > 0);
    // as for captured traffic, also on the far side
    let line = daemons[0].wait_access("the service's line", |line| {
        line.is("outbound") && line.field("dst.service") == "server.shop.svc.cluster.local"
    })?;
    for (key, value) in [
        ("src.workload", "client-0"),
        ("src.identity", &client.identity()),
        ("dst.addr", &server.at(15008).to_string()),
        ("dst.hbone_addr", &server.at(8080).to_string()),
        ("dst.workload", "server-0"),
        ("dst.identity", &server.identity()),
        ("error", ""),
    ] {
        assert_eq!(line.field(key), value, "{key}: {}", line.text);
    }
    let source = line.field("src.addr");
    assert!(source.starts_with("127.0.0.1:"), "{}", line.text);
    daemons[1].wait_access("the far side's line", |line| {
        line.is("inbound")
            && line.field("src.identity") == client.identity()
            && line.field("src.addr").starts_with(&v4)
    })?;

    let (status, body) = curl(
        client,
        "--socks5",
        &format!("http://{}/", outsider.at(8080)),
    )?;
    assert_eq!(status, 0, "outside of the mesh: {body}");
    // success is told before the connection is tried, so the client only sees an end
    let (status, body) = curl(client, "--socks5", &format!("http://{}/", server.at(1)))?;
    assert!(![0, 97].contains(&status), "{status} {body}");
    daemons[0].wait_access("the failure", |line| {
        line.is("outbound")
            && line.field("dst.hbone_addr") == server.at(1).to_string()
            && line.field("error").starts_with("http status: 503")
    })?;
    Ok(())
}

#[test]
fn socks_clients_are_served_as_captured_ones_are() -> Result<()> {
    let mesh = up()?;
    works(&mesh.world, &mesh.daemons)
}

#[test]
fn where_others_capture_as_well() -> Result<()> {
    let world = support::world(&Layout::standard())?;
    let sites = world.nodes().iter().map(Site::raise);
    let sites: Vec<_> = sites.collect::<Result<_>>()?;
    let daemons = sites.iter().map(|site| Daemon::start(&site.node, ON));
    let daemons: Vec<_> = daemons.collect::<Result<_>>()?;
    for pod in world.pods().iter().filter(|pod| pod.namespace == "shop") {
        sites[pod.node].enroll(pod, &Rules::default())?;
    }
    world.model().label("shop", true);
    world.publish_state()?;
    world.settled_state(&daemons.iter().collect::<Vec<_>>())?;
    works(&world, &daemons)
}

#[test]
fn names_are_resolved_as_the_pods_dns_would() -> Result<()> {
    let mesh = up()?;
    let (client, server) = (mesh.pod("client-0"), mesh.pod("server-0"));
    let _http = server.serve(&["http"])?;
    for name in [
        "server.shop.svc.cluster.local",
        "server.shop",
        "SERVER.shop.svc",
    ] {
        let (status, body) = curl(client, "--socks5-hostname", &format!("http://{name}/"))?;
        assert_eq!(status, 0, "{name}: {body}");
        assert!(
            body.contains(&format!("\"peer\":\"{}:", client.v4)),
            "{body}"
        );
    }
    let line = mesh.daemons[0].wait_access("its line", |line| {
        line.field("dst.service") == "server.shop.svc.cluster.local"
    })?;
    assert_eq!(line.field("dst.hbone_addr"), server.at(8080).to_string());

    let mut asked = vec![5, 1, 0, 3, 13];
    asked.extend(b"nowhere.shop.\0\x50");
    let mut stream = self::client(client, GREETING)?;
    let mut choice = [0; 2];
    stream.read_exact(&mut choice)?;
    stream.write_all(&asked)?;
    assert_eq!(rest(stream), reply(4));
    let line = mesh.daemons[0].wait_access("the refusal", |line| {
        line.message == "connection failed" && line.field("error").contains("nowhere.shop")
    })?;
    let error = line.field("error");
    assert!(
        error.starts_with("no ip addresses were resolved for"),
        "{error}"
    );
    Ok(())
}

#[test]
fn what_is_not_offered_is_refused_with_a_reason() -> Result<()> {
    let mesh = up()?;
    let (pod, server) = (mesh.pod("client-0"), mesh.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    let asked = |request: &[u8]| [GREETING, request].concat();
    let refused = |code| [&CHOICE[..], &reply(code)].concat();
    let oversized = [&[5, 1, 0, 3, 255][..], &[b' '; 255], &[0, 80]].concat();
    let cases: [(&str, Vec<u8>, Vec<u8>, &str); 10] = [
        (
            "SOCKS4",
            vec![4, 1, 0, 80, 10, 0, 0, 1, 0],
            vec![],
            "version 4 instead of 5",
        ),
        (
            "HTTP",
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            vec![],
            "version 71 instead of 5",
        ),
        (
            "password only",
            vec![5, 1, 2],
            vec![5, 0xff],
            "no method without authentication",
        ),
        (
            "no method",
            vec![5, 0],
            vec![5, 0xff],
            "no method without authentication",
        ),
        (
            "BIND",
            asked(&[5, 2, 0, 1, 10, 0, 0, 1, 0, 80]),
            refused(7),
            "command 2 instead of CONNECT",
        ),
        (
            "UDP",
            asked(&[5, 3, 0, 1, 10, 0, 0, 1, 0, 80]),
            refused(7),
            "command 3 instead of CONNECT",
        ),
        (
            "kind",
            asked(&[5, 1, 0, 9, 10, 0, 0, 1, 0, 80]),
            refused(7),
            "unknown kind of address 9",
        ),
        (
            "no name",
            asked(&[5, 1, 0, 3, 0, 0, 80]),
            refused(7),
            "not a host name",
        ),
        (
            "long garbage",
            asked(&oversized),
            refused(7),
            "not a host name",
        ),
        (
            "then another version",
            asked(&[4, 1, 0, 1]),
            CHOICE.to_vec(),
            "version 4 instead of 5",
        ),
    ];
    for (what, bytes, answer, why) in &cases {
        let from = mesh.daemons[0].log_len();
        let got = rest(client(pod, bytes)?);
        // what is not read any more resets the connection, which may take the answer along
        assert!(
            got == *answer || answer.starts_with(&got),
            "{what}: {got:?}"
        );
        let parts = ["connection failed", "SOCKS5 handshake failed", why];
        let line = mesh.daemons[0].wait_log(from, &parts)?;
        assert!(line.contains("direction=\"outbound\""), "{what}: {line}");
    }
    let metrics = mesh.daemons[0].metrics()?;
    let count = metrics.sum("ztunnel_refusals_total", &[("reason", "socks")]);
    assert!((count - cases.len() as f64).abs() < 0.5, "{count}");
    // who just goes has done nothing wrong
    drop(client(pod, &[5])?);
    drop(client(pod, &[])?);
    // and the pod's other connections do not notice
    echo(pod, server.at(9000), &[])?;
    let (after, open) = (mesh.daemons[0].metrics()?, "istio_tcp_sockets_open");
    assert_eq!(
        after.sum("ztunnel_refusals_total", &[("reason", "socks")]),
        count
    );
    until(SOON, "no socket is left open", || {
        let left = mesh.daemons[0]
            .metrics()?
            .sum(open, &[("reporter", "source")]);
        Ok((left == 0.0).then_some(()))
    })
}

#[test]
fn handshakes_come_in_any_pieces_and_nothing_behind_them_is_lost() -> Result<()> {
    let mesh = up()?;
    let (pod, server) = (mesh.pod("client-0"), mesh.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    let success = [&CHOICE[..], &reply(0), b"hello"].concat();
    for to in [
        server.at(9000),
        server.at6(9000),
        "10.96.0.10:9000".parse()?,
    ] {
        let all = [GREETING, &request(to), b"hello"].concat();
        let at_once = client(pod, &all)?;
        at_once.shutdown(Shutdown::Write)?;
        assert_eq!(rest(at_once), success, "{to}, at once");
        let mut slowly = client(pod, &[])?;
        slowly.set_nodelay(true)?;
        for byte in &all {
            slowly.write_all(&[*byte])?;
        }
        slowly.shutdown(Shutdown::Write)?;
        assert_eq!(rest(slowly), success, "{to}, byte by byte");
    }
    Ok(())
}

#[test]
fn slow_and_many_clients_are_shed_and_harm_nobody() -> Result<()> {
    let mesh = up()?;
    let (pod, server) = (mesh.pod("client-0"), mesh.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    let since = Instant::now();
    let slow = client(pod, &[5])?;
    let idle: Vec<_> = (0..HANDSHAKES_MAX - 1)
        .map(|_| client(pod, &[]))
        .collect::<Result<_>>()?;
    let opened = || -> Result<f64> {
        let metrics = mesh.daemons[0].metrics()?;
        Ok(metrics.sum("istio_tcp_sockets_open", &[("reporter", "source")]))
    };
    until(SOON, "all are accepted", || {
        Ok((opened()? as usize >= HANDSHAKES_MAX).then_some(()))
    })?;
    // no room for one more, but for captured connections
    assert_eq!(rest(client(pod, &[])?), [0; 0]);
    let shed = mesh.daemons[0]
        .metrics()?
        .sum("ztunnel_refusals_total", &[("reason", "pod_budget_socks")]);
    assert!(shed >= 1.0, "{shed}");
    echo(pod, server.at(9000), &[])?;
    ensure!(
        since.elapsed() < PATIENCE,
        "too slow a machine for this test"
    );
    assert_eq!(rest(slow), [0; 0]);
    let took = since.elapsed();
    assert!(took >= PATIENCE && took < PATIENCE + SOON, "{took:?}");
    mesh.daemons[0].wait_log(0, &["SOCKS5 handshake failed: not done in time"])?;
    until(SOON, "all are given up", || {
        Ok((opened()? == 0.0).then_some(()))
    })?;
    drop(idle);
    let all = [GREETING, &request(server.at(9000)), b"hello"].concat();
    let again = client(pod, &all)?;
    again.shutdown(Shutdown::Write)?;
    assert!(rest(again).ends_with(b"hello"));
    Ok(())
}

#[test]
fn the_port_is_the_daemons_own_and_only_where_it_is_wanted() -> Result<()> {
    let mesh = up()?;
    let (client, server, outsider) = (
        mesh.pod("client-0"),
        mesh.pod("server-0"),
        mesh.pod("outsider-0"),
    );
    // an application cannot have it, and it cannot be reached from elsewhere
    for from in [client, outsider] {
        let seen = connect(from, server.at(15080), &["--timeout-ms", "3000"])?;
        assert_eq!(seen["received"].as_str().unwrap_or_default(), "", "{seen}");
    }
    mesh.daemons[1].wait_access("the refusal of the tunnel", |line| {
        line.is("inbound") && line.field("error") == "attempted recursive call to ourselves"
    })?;
    // nor leads it to itself
    let all = [GREETING, &request(PROXY.parse()?)].concat();
    let stream = self::client(client, &all)?;
    assert!(rest(stream).len() <= 12);
    mesh.daemons[0].wait_log(0, &["attempted recursive call to ourselves", PROXY])?;
    // who is not in the mesh has none
    let outside = netns::inside(&outsider.netns, || TcpStream::connect(PROXY))?;
    assert!(outside.is_err(), "{outside:?}");
    Ok(())
}

#[test]
fn a_successor_shares_the_port_and_takes_it_over() -> Result<()> {
    let mut mesh = up()?;
    let _echo = mesh.pod("server-0").serve(&["echo"])?;
    mesh.daemons[0].restart_with_successor()?;
    let (pod, server) = (mesh.pod("client-0"), mesh.pod("server-0"));
    let all = [GREETING, &request(server.at(9000)), b"hello"].concat();
    let stream = client(pod, &all)?;
    stream.shutdown(Shutdown::Write)?;
    assert!(rest(stream).ends_with(b"hello"));
    Ok(())
}

#[test]
fn a_port_that_an_application_has_keeps_its_pod_out_with_a_reason() -> Result<()> {
    let world = support::world(&Layout::standard())?;
    let pod = world.pod("client-0");
    let taken = netns::inside(&pod.netns, || std::net::TcpListener::bind(PROXY))??;
    let daemon = Daemon::start(world.node(0), ON)?;
    world.model().label("shop", true);
    world.publish_enrolment()?;
    let dump = daemon.wait_dump(SOON, "the reason", |dump| {
        dump["workloadState"][&pod.uid]["state"] == "Pending"
    })?;
    let reason = dump["workloadState"][&pod.uid]["reason"]
        .as_str()
        .context("a reason")?;
    assert!(reason.contains("listen on 127.0.0.1:15080"), "{reason}");
    drop(taken);
    world.settled_enrolment(&[&daemon])
}

#[test]
fn with_ipv6_off_a_target_of_that_kind_is_refused() -> Result<()> {
    let world = support::world(&Layout::standard())?;
    let env = [ON[0], ("IPV6_ENABLED", "false")];
    let daemons = world.nodes().iter().map(|node| Daemon::start(node, &env));
    let mesh = Mesh {
        daemons: daemons.collect::<Result<_>>()?,
        world,
    };
    mesh.label("shop", true)?;
    let (pod, server) = (mesh.pod("client-0"), mesh.pod("server-0"));
    let all = [GREETING, &request(server.at6(9000))].concat();
    let got = rest(client(pod, &all)?);
    assert_eq!(got, [&CHOICE[..], &reply(1)].concat());
    mesh.daemons[0].wait_log(0, &["IPv6 is switched off", "direction=\"outbound\""])?;
    Ok(())
}
