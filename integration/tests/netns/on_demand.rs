//! Workloads and services asked for one by one, when a connection needs them.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use integration::istiod::{Event, Kind, Xds};
use integration::{Daemon, Layout, PodPlan, World, until};

use crate::support::{Mesh, SOON, connect, echo, governed, subscribed};

/// What a daemon in this mode is told.
const ENV: [(&str, &str); 2] = [
    ("XDS_ON_DEMAND", "true"),
    ("ISTIO_META_DNS_CAPTURE", "false"),
];
/// Most time for a connection whose question is answered: well below the longest wait for an answer.
const ANSWERED: Duration = Duration::from_secs(4);
/// How long an answer is believed.
const FRESH: Duration = Duration::from_secs(1);
/// Most time for a connection that waits for an answer of the control plane.
const PATIENCE: &str = "8000";

/// All namespaces are enrolled by file; what the daemons know of others they have to ask for.
fn mesh() -> Result<Mesh> {
    let mut layout = Layout::standard();
    layout.pods.push(PodPlan::new("shop", "server-1", 1));
    let world: World = governed(&layout)?;
    world.model().label("shop", true);
    world.publish_state()?;
    world.publish_enrolment()?;
    let daemons = world.nodes().iter().map(|node| Daemon::start(node, &ENV));
    let mesh = Mesh {
        daemons: daemons.collect::<Result<_>>()?,
        world,
    };
    mesh.world.settled_enrolment(&mesh.all())?;
    Ok(mesh)
}

/// Waits until the name was asked for on a stream.
fn asked(mesh: &Mesh, from: usize, name: &str) -> Result<()> {
    let what = format!("question about {name}");
    mesh.istiod().record().wait(from, SOON, &what, |event| {
        let (_, request) = event.request_of(Kind::Address)?;
        let names = &request.resource_names_subscribe;
        names.iter().any(|asked| asked == name).then_some(())
    })
}

/// Uids of the workloads that a daemon knows.
fn known(daemon: &Daemon) -> Result<Vec<String>> {
    let dump = daemon.config_dump()?;
    let all = dump["workloads"].as_array().into_iter().flatten();
    Ok(all
        .filter_map(|workload| workload["uid"].as_str().map(str::to_owned))
        .collect())
}

#[test]
fn destinations_are_asked_for_when_they_are_needed() -> Result<()> {
    let mesh = mesh()?;
    let (client, server) = (mesh.pod("client-0"), mesh.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    let (_, first) = subscribed(mesh.istiod(), 0, "node1", Kind::Address)?;
    assert_eq!(first.resource_names_subscribe, ["*"]);
    assert_eq!(first.resource_names_unsubscribe, ["*"]);
    let (_, policies) = subscribed(mesh.istiod(), 0, "node1", Kind::Authorization)?;
    ensure!(policies.resource_names_subscribe.is_empty(), "{policies:?}");
    until(SOON, "the node's own pods", || {
        Ok((known(&mesh.daemons[0])? == ["demo//Pod/shop/client-0"]).then_some(()))
    })?;

    // answered with the uid as its name: released by the alias
    let from = mesh.istiod().record().len();
    let seen = echo(client, server.at(9000), &[])?;
    asked(&mesh, from, &format!("/{}", server.v4))?;
    let line = mesh.outbound(client, &seen)?;
    assert_eq!(
        line.field("dst.identity"),
        server.identity(),
        "{}",
        line.text
    );
    // a service brings its endpoints along
    let seen = echo(client, "10.96.0.10:9000".parse()?, &[])?;
    asked(&mesh, from, "/10.96.0.10")?;
    let line = mesh.outbound(client, &seen)?;
    assert_eq!(line.field("dst.service"), "server.shop.svc.cluster.local");
    let knows = known(&mesh.daemons[0])?;
    assert!(
        !knows.iter().any(|uid| uid.ends_with("server-1")),
        "{knows:?}"
    );

    // on a new stream what was asked for is asked for again
    let from = mesh.istiod().record().len();
    mesh.istiod().sever(None);
    let (_, again) = subscribed(mesh.istiod(), from, "node1", Kind::Address)?;
    let held = &again.initial_resource_versions;
    assert!(held.contains_key("demo//Pod/shop/server-0"), "{held:?}");
    assert_eq!(again.resource_names_unsubscribe, ["*"]);
    echo(client, server.at(9000), &[])?;
    Ok(())
}

/// A server that echoes, on the far node's own address.
fn far_side(mesh: &Mesh) -> Result<SocketAddr> {
    let far = mesh.world.node(1);
    let outside = SocketAddr::from((far.wire4, 7777));
    let listener = integration::netns::inside(&far.netns, || TcpListener::bind(outside))??;
    // ends with the test's process; the clients say whether the echo came
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut bytes = [0; 5];
            if stream.read_exact(&mut bytes).is_ok() {
                let _ = stream.write_all(&bytes);
            }
        }
    });
    Ok(outside)
}

#[test]
fn a_pod_of_the_host_network_is_asked_for_once_in_a_while() -> Result<()> {
    let mesh = mesh()?;
    let client = mesh.pod("client-0");
    let outside = far_side(&mesh)?;
    mesh.istiod().change(|content| {
        content.workload(proto::workload::Workload {
            uid: "demo//Pod/kube/host-0".to_owned(),
            name: "host-0".to_owned(),
            namespace: "kube".to_owned(),
            addresses: match outside.ip() {
                IpAddr::V4(ip) => vec![ip.octets().to_vec().into()],
                IpAddr::V6(ip) => vec![ip.octets().to_vec().into()],
            },
            network_mode: proto::workload::NetworkMode::HostNetwork.into(),
            node: "node2".to_owned(),
            ..Default::default()
        })
    });
    let name = format!("/{}", outside.ip());
    let from = mesh.istiod().record().len();
    let started = Instant::now();
    while started.elapsed() < 3 * FRESH {
        let one = Instant::now();
        echo(client, outside, &[])?;
        ensure!(one.elapsed() < ANSWERED, "{:?}", one.elapsed());
    }
    let questions = mesh.istiod().record().since(from).into_iter();
    let questions = questions.filter(|event| {
        let request = event.request_of(Kind::Address);
        request.is_some_and(|(_, request)| request.resource_names_subscribe.contains(&name))
    });
    let most = started.elapsed().as_secs() + 1;
    let count = questions.count() as u64;
    ensure!((2..=most).contains(&count), "{count} of at most {most}");
    Ok(())
}

#[test]
fn what_is_not_there_passes_and_what_is_not_answered_does_not() -> Result<()> {
    let mesh = mesh()?;
    let (client, server) = (mesh.pod("client-0"), mesh.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    // an address outside of the mesh, on the far node
    let outside = far_side(&mesh)?;
    let from = mesh.istiod().record().len();
    echo(client, outside, &[])?;
    asked(&mesh, from, &format!("/{}", outside.ip()))?;
    let absent = mesh.istiod().record().since(from);
    let absent = absent.iter().any(|event| {
        matches!(event, Event::Response { removed, .. } if removed.contains(&format!("/{}", outside.ip())))
    });
    ensure!(absent, "its absence was not told");

    // asked again, once the answer is not fresh any more, it is answered again
    let second = until(SOON, "a second question", || {
        let from = mesh.istiod().record().len();
        let started = Instant::now();
        echo(client, outside, &[])?;
        ensure!(started.elapsed() < ANSWERED, "{:?}", started.elapsed());
        let since = mesh.istiod().record().since(from);
        Ok(since.into_iter().find_map(|event| {
            let (_, request) = event.request_of(Kind::Address)?;
            (!request.resource_names_unsubscribe.is_empty()).then(|| request.clone())
        }))
    })?;
    let name = format!("/{}", outside.ip());
    assert_eq!(second.resource_names_unsubscribe, [name]);
    ensure!(second.resource_names_subscribe.is_empty(), "{second:?}");

    mesh.istiod().behave(Xds::Silent);
    let wire = mesh.world.node(0).capture(mesh.world.node(1))?;
    let started = Instant::now();
    let more = [
        "--send",
        "marker-of-the-clear-text",
        "--timeout-ms",
        PATIENCE,
    ];
    let seen = connect(client, server.at(9000), &more)?;
    ensure!(seen["received"] != "marker-of-the-clear-text", "{seen}");
    ensure!(started.elapsed() < Duration::from_secs(9), "{seen}");
    let packets = wire.stop()?;
    assert_eq!(packets.tcp_to(server.at(9000)), 0, "in the clear");
    mesh.daemons[0].wait_access("the refusal", |line| {
        line.is("outbound") && line.field("error").contains("control plane did not answer")
    })?;
    mesh.istiod().behave(Xds::Serve);
    until(SOON, "answered in the end", || {
        let seen = connect(client, server.at(9000), &[])?;
        Ok((seen["received"] == "hello").then_some(()))
    })
}
