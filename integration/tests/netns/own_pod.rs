//! The daemon's own pod: captured clients reach its metrics through the mesh, as they would any workload.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};

use anyhow::{Context, Result, ensure};
use integration::model::PodRecord;
use integration::{Daemon, Layout, Node, Policy, netns, pod, until};
use serde_json::Value;

use crate::support::{self, Mesh, SOON};

/// Address part of the first daemon of a node.
const FIRST_DAEMON: u8 = 200;
const METRICS: u16 = 15020;
const IDENTITY: &str = "spiffe://cluster.local/ns/istio-system/sa/ztunnel";

fn name(node: &Node) -> String {
    format!("ztunnel-{}", node.name)
}

fn env(node: &Node) -> Vec<(String, String)> {
    [
        ("POD_NAME", name(node)),
        ("POD_NAMESPACE", "istio-system".to_owned()),
        ("SERVICE_ACCOUNT", "ztunnel".to_owned()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

fn start(node: &Node) -> Result<Daemon> {
    let mut daemon = Daemon::launch_in(node, env(node), None)?;
    daemon.wait_ready()?;
    Ok(daemon)
}

fn record(node: &Node) -> PodRecord {
    PodRecord {
        name: name(node),
        namespace: "istio-system".to_owned(),
        service_account: "ztunnel".to_owned(),
        node: node.name.clone(),
        ips: vec![
            IpAddr::V4(node.v4(FIRST_DAEMON)),
            IpAddr::V6(node.v6(FIRST_DAEMON)),
        ],
        uid: format!("demo//Pod/istio-system/{}", name(node)),
        phase: "Running".to_owned(),
        native_tunnel: true,
        ..PodRecord::default()
    }
}

/// Daemons that know which pods they are, and a mesh that does as well.
fn up() -> Result<Mesh> {
    let world = support::world(&Layout::standard())?;
    let daemons = world.nodes().iter().map(start).collect::<Result<_>>()?;
    let mesh = Mesh { daemons, world };
    mesh.label("shop", true)?;
    let records: Vec<_> = mesh.world.nodes().iter().map(record).collect();
    mesh.edit(|model| model.others.extend(records))?;
    Ok(mesh)
}

fn own(daemon: &Daemon) -> Result<Value> {
    Ok(daemon.config_dump()?["ownPod"].take())
}

#[test]
fn captured_clients_scrape_the_daemon_through_the_mesh() -> Result<()> {
    let mesh = up()?;
    let (client, outsider) = (mesh.pod("client-0"), mesh.pod("outsider-0"));
    let node = mesh.world.node(1);
    let wire = mesh.world.node(0).capture(node)?;
    let v4 = SocketAddr::new(node.v4(FIRST_DAEMON).into(), METRICS);
    let v6 = SocketAddr::new(node.v6(FIRST_DAEMON).into(), METRICS);
    for to in [v4, v6] {
        let (status, body) = client.curl(&[&format!("http://{to}/metrics")])?;
        assert_eq!(status, 0, "{to}: {body}");
        ensure!(body.contains("istio_tcp_connections_opened"), "{body}");
    }
    let packets = wire.stop()?;
    assert!(packets.tls(15008) > 0, "no TLS on the wire");
    assert_eq!(packets.tcp_to(v4) + packets.tcp_to(v6), 0, "in the clear");

    let line = mesh.daemons[0].wait_access("the client's line", |line| {
        line.is("outbound") && line.field("dst.hbone_addr") == v4.to_string()
    })?;
    assert_eq!(line.field("dst.workload"), name(node), "{}", line.text);
    assert_eq!(line.field("dst.identity"), IDENTITY, "{}", line.text);
    let line = mesh.daemons[1].wait_access("the daemon's own line", |line| {
        line.is("inbound") && line.field("dst.hbone_addr") == v4.to_string()
    })?;
    for (key, value) in [
        ("src.workload", "client-0"),
        ("src.identity", &client.identity()),
        ("dst.addr", &SocketAddr::new(v4.ip(), 15008).to_string()),
        ("dst.workload", &name(node)),
        ("dst.identity", IDENTITY),
        ("error", ""),
    ] {
        assert_eq!(line.field(key), value, "{key}: {}", line.text);
    }

    // who is not in the mesh reaches them as before
    let (status, body) = outsider.curl(&[&format!("http://{v4}/metrics")])?;
    assert_eq!(status, 0, "{body}");
    // and what listens on loopback alone is not reached by the tunnel either
    let (status, _) = client.curl(&[&format!("http://{}:15000/config_dump", v4.ip())])?;
    assert_ne!(status, 0, "the admin endpoint from afar");
    Ok(())
}

#[test]
fn the_own_pod_shows_in_the_dump_and_its_certificate_is_kept() -> Result<()> {
    let mesh = up()?;
    let daemon = &mesh.daemons[1];
    let own = own(daemon)?;
    assert_eq!(own["state"], "Up", "{own}");
    assert_eq!(own["info"]["name"], name(mesh.world.node(1)), "{own}");
    assert_eq!(own["info"]["namespace"], "istio-system", "{own}");
    assert_eq!(own["info"]["serviceAccount"], "ztunnel", "{own}");
    let dump = daemon.wait_dump(SOON, "its certificate", |dump| {
        let all = dump["certificates"].as_array();
        all.is_some_and(|all| all.iter().any(|c| c["identity"] == IDENTITY))
    })?;
    let pods = dump["workloadState"].as_object().context("pods")?;
    assert!(
        pods.values()
            .all(|pod| pod["info"]["namespace"] != "istio-system")
    );

    // any port is reached: here one of the test's own in that namespace
    let listener = netns::inside(daemon.netns(), || TcpListener::bind("[::]:9000"))??;
    let to = SocketAddr::new(mesh.world.node(1).v4(FIRST_DAEMON).into(), 9000);
    let podapp = integration::place::binary("podapp")?;
    let client = mesh.pod("client-0");
    let asks = [
        &*podapp.to_string_lossy(),
        "connect",
        "--to",
        &to.to_string(),
    ];
    let _asking = client.spawn(&asks)?;
    let (held, peer) = listener.accept()?;
    // no address is kept here
    assert_eq!(peer.ip().to_canonical(), to.ip());
    let dump = daemon.config_dump()?;
    let inbound = dump["ownPod"]["connections"]["inbound"]
        .as_array()
        .context("connections")?;
    let shown = |c: &Value| c["protocol"] == "HBONE" && c["actualDst"] == to.to_string();
    assert!(inbound.iter().any(shown), "{}", dump["ownPod"]);
    drop(held);
    Ok(())
}

#[test]
fn policy_counts_for_the_own_pod_too() -> Result<()> {
    let mesh = up()?;
    let client = mesh.pod("client-0");
    let to = SocketAddr::new(mesh.world.node(1).v4(FIRST_DAEMON).into(), METRICS);
    let deny = "{principals: [!Exact \"cluster.local/ns/shop/sa/client\"]}";
    mesh.edit(|model| {
        let policy = Policy::new("Deny", "istio-system", "no-scrapes", &[deny]);
        model.policies.push(policy);
    })?;
    let (status, body) = client.curl(&[&format!("http://{to}/metrics")])?;
    assert_ne!(status, 0, "{body}");
    let why =
        "connection closed due to policy rejection: explicitly denied by: istio-system/no-scrapes";
    mesh.daemons[1].wait_access("the refusal", |line| {
        line.is("inbound") && line.field("error") == why
    })?;
    mesh.edit(|model| model.policies.clear())?;
    let (status, body) = client.curl(&[&format!("http://{to}/metrics")])?;
    assert_eq!(status, 0, "{body}");
    Ok(())
}

#[test]
fn the_port_is_not_shared_and_a_second_daemon_says_so() -> Result<()> {
    let world = support::world(&Layout::standard())?;
    let node = world.node(0);
    // two daemons beside each other do not meet: each has a namespace of its own
    let first = start(node)?;
    let mut second = Daemon::launch_in(node, env(node), None)?;
    second.wait_ready()?;
    let exit = second.terminate()?;
    assert_eq!(exit.status.code(), Some(0));

    let binary = integration::place::binary("ztunnel")?;
    let mut third = pod::enter(first.cgroup(), first.netns(), &binary);
    let more = env(node);
    let out = third
        .env_clear()
        .envs(integration::daemon::settings(node, &more))
        .output()
        .context("run a second daemon in the same namespace")?;
    assert_eq!(out.status.code(), Some(1));
    let said = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
    for part in ["own HBONE listener", "[::]:15008", "POD_NAME"] {
        assert!(said.contains(part), "{said}");
    }
    let state = own(&first)?["state"].clone();
    assert_eq!(state, "Up");
    Ok(())
}

#[test]
fn it_drains_with_the_process() -> Result<()> {
    let mut mesh = up()?;
    let to = SocketAddr::new(mesh.world.node(1).v4(FIRST_DAEMON).into(), METRICS);
    let client = mesh.pod("client-0").clone();
    let (status, body) = client.curl(&[&format!("http://{to}/metrics")])?;
    assert_eq!(status, 0, "{body}");
    let node = mesh.world.node(1).clone();
    let exit = mesh.daemons[1].terminate()?;
    assert_eq!(exit.status.code(), Some(0));
    // an idle tunnel does not hold it up, nor is its port left
    assert!(exit.took < SOON / 2, "{:?}", exit.took);
    let taken = netns::inside(mesh.daemons[1].netns(), || TcpListener::bind("[::]:15008"))?;
    assert!(taken.is_ok(), "{taken:?} on {}", node.name);
    Ok(())
}

#[test]
fn nothing_is_served_before_the_mesh_is_known() -> Result<()> {
    let mut world = support::governed(&Layout::standard())?;
    world.istiod_mut().stop();
    let node = world.node(0);
    let more = env(node);
    let mut daemon = Daemon::launch_in(node, more, None)?;
    let dump = until(SOON, "the dump", || Ok(daemon.config_dump().ok()))?;
    assert_eq!(dump["ownPod"]["state"], "Pending", "{}", dump["ownPod"]);
    // the port is ours already; who connects waits
    let to = SocketAddr::new(node.v4(FIRST_DAEMON).into(), 15008);
    let pod = world.pod("client-0");
    let mut waits = netns::inside(&pod.netns, || TcpStream::connect(to))??;
    waits.write_all(&[0x16, 3, 1])?;
    let exit = daemon.terminate()?;
    assert_eq!(exit.status.code(), Some(0));
    assert!(exit.took < SOON / 2, "{:?}", exit.took);
    daemon.wait_log(0, &["ending before the control plane has said"])?;
    // nothing was ever answered
    assert!(!waits.read(&mut [0; 1]).is_ok_and(|n| n > 0));
    Ok(())
}

#[test]
fn what_is_open_has_until_the_deadline() -> Result<()> {
    let mut mesh = up()?;
    let listener = netns::inside(mesh.daemons[1].netns(), || TcpListener::bind("[::]:9000"))??;
    let to = SocketAddr::new(mesh.world.node(1).v4(FIRST_DAEMON).into(), 9000);
    let podapp = integration::place::binary("podapp")?;
    let client = mesh.pod("client-0").clone();
    let binary = podapp.to_string_lossy();
    let to = to.to_string();
    let _held = client.spawn(&[&*binary, "hold", "--to", &to, "--timeout-ms", "60000"])?;
    let (_stream, _) = listener.accept()?;
    let exit = mesh.daemons[1].terminate()?;
    assert_eq!(exit.status.code(), Some(0));
    // the deadline of these daemons is 5 s
    assert!(exit.took >= SOON / 2 && exit.took < SOON, "{:?}", exit.took);
    let why = "connection closed due to connection drain";
    let cut = mesh.daemons[1]
        .access()
        .into_iter()
        .any(|line| line.is("inbound") && line.field("error") == why);
    assert!(cut, "{}", mesh.daemons[1].tail());
    Ok(())
}
