//! The control plane comes, goes and asks who is there: readiness, reconnects, tokens, names, headers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use integration::istiod::{Event, Kind, TOKEN, Xds};
use integration::{Daemon, Istiod, Layout, place, until};
use tonic::Code;

use crate::support::{
    Mesh, RECONNECT_MAX, SOON, answered, echo, governed, hold, still_held, subscribed,
};

/// The load's own bound, far above what it takes.
const LOAD_MAX: Duration = Duration::from_secs(120);
/// Connections that are made while the control plane comes and goes.
const LOAD: &str = "4000";

/// What the readiness endpoint says.
fn readiness(daemon: &Daemon) -> Result<(u16, String)> {
    let answer = daemon.get(15021, "/healthz/ready")?;
    Ok((answer.status, answer.body))
}

/// Waits until the readiness endpoint names what is pending.
fn pending(daemon: &Daemon) -> Result<()> {
    until(SOON, "not ready, and why", || {
        let said = readiness(daemon).unwrap_or_default();
        Ok((said.0 == 500 && said.1.contains("state manager")).then_some(()))
    })
    .with_context(|| daemon.tail())
}

/// Ends of streams so far, by reason.
fn ends(daemon: &Daemon, reason: &str) -> Result<f64> {
    let labels = [("reason", reason)];
    Ok(daemon
        .metrics()?
        .sum("istio_xds_connection_terminations_total", &labels))
}

/// Waits for a stream to be accepted, and says with which token.
fn opened(istiod: &Istiod, from: usize) -> Result<BTreeMap<String, String>> {
    istiod
        .record()
        .wait(from, RECONNECT_MAX, "new stream", |event| match event {
            Event::Opened { caller, .. } => Some(caller.headers.clone()),
            _ => None,
        })
}

#[test]
fn ready_once_both_types_are_accepted() -> Result<()> {
    let world = governed(&Layout::standard())?;
    let istiod = world.istiod();
    istiod.behave(Xds::Silent);
    // no payload: nothing that could be accepted
    istiod.change(|content| content.raw(Kind::Authorization, "shop/empty", None));
    let mut daemon = Daemon::launch(world.node(0), &[])?;
    let (stream, addresses) = subscribed(istiod, 0, "node1", Kind::Address)?;
    let (_, policies) = subscribed(istiod, 0, "node1", Kind::Authorization)?;
    for request in [&addresses, &policies] {
        ensure!(request.initial_resource_versions.is_empty(), "{request:?}");
        ensure!(request.resource_names_subscribe.is_empty(), "{request:?}");
    }
    let order: Vec<_> = istiod.record().since(0);
    let order: Vec<_> = order
        .iter()
        .filter_map(|event| match event {
            Event::Request { request, .. } => Some(request.type_url.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(order, [Kind::Address.url(), Kind::Authorization.url()]);
    pending(&daemon)?;

    istiod.behave(Xds::Serve);
    let nack = answered(istiod, 0, stream, |names, _| names == ["shop/empty"])?;
    let why = nack.error_detail.context("an empty resource is accepted")?;
    assert!(why.message.starts_with("shop/empty: "), "{}", why.message);
    let ack = answered(istiod, 0, stream, |names, _| names.len() > 1)?;
    assert_eq!(ack.error_detail, None);
    // both answers were written after what they answer was in force
    let (status, said) = readiness(&daemon)?;
    assert_eq!(status, 500, "{said}");
    assert!(said.contains("state manager"), "{said}");

    istiod.change(|content| content.remove(Kind::Authorization, "shop/empty"));
    daemon.wait_ready()?;
    daemon.wait_log(0, &["state manager"])?;
    Ok(())
}

#[test]
fn absent_at_first_it_is_waited_for() -> Result<()> {
    let mut world = governed(&Layout::standard())?;
    world.istiod_mut().stop();
    let mut daemon = Daemon::launch(world.node(0), &[])?;
    pending(&daemon)?;
    until(SOON, "several attempts", || {
        Ok((ends(&daemon, "ConnectionError").unwrap_or(0.0) >= 3.0).then_some(()))
    })
    .with_context(|| daemon.tail())?;
    let address = world.istiod().xds.address().to_string();
    daemon.wait_log(0, &["warn", "\txds::", &address])?;
    world.istiod_mut().restart()?;
    daemon.wait_ready()?;
    assert!(daemon.alive());
    Ok(())
}

#[test]
fn absent_later_it_is_not_missed() -> Result<()> {
    let mut mesh = Mesh::governed(&Layout::standard(), &[])?;
    let (client, server) = (mesh.pod("client-0").clone(), mesh.pod("server-0").clone());
    let _echo = server.serve(&["echo"])?;
    let held = hold(&client, server.at(9000))?;
    mesh.world.istiod_mut().stop();
    until(SOON, "the loss is noticed", || {
        let lost = |daemon| Ok::<_, anyhow::Error>(ends(daemon, "ConnectionError")? > 0.0);
        Ok((lost(&mesh.daemons[0])? && lost(&mesh.daemons[1])?).then_some(()))
    })?;
    still_held(&held)?;
    let seen = echo(&client, "10.96.0.10:9000".parse()?, &[])?;
    let line = mesh.outbound(&client, &seen)?;
    assert_eq!(line.field("dst.identity"), server.identity());
    assert_eq!(readiness(&mesh.daemons[0])?.0, 200);

    // one of the things that go away meanwhile, and one that stays as it is
    let istiod = mesh.istiod();
    let held_names: BTreeMap<_, _> = istiod
        .content()
        .entries(Kind::Address)
        .iter()
        .map(|(name, entry)| (name.clone(), entry.version.clone()))
        .collect();
    mesh.world.edit(|model| {
        model.pods.retain(|pod| pod.name != "outsider-0");
    })?;
    let from = mesh.istiod().record().len();
    mesh.world.istiod_mut().restart()?;
    let (stream, request) = subscribed(mesh.istiod(), from, "node1", Kind::Address)?;
    assert_eq!(request.initial_resource_versions, held_names);
    let answer = answered(mesh.istiod(), from, stream, |names, removed| {
        names.is_empty() && removed == ["demo//Pod/other/outsider-0"]
    })?;
    assert_eq!(answer.error_detail, None);
    mesh.world.settled_state(&mesh.all())?;
    still_held(&held)
}

#[test]
fn restarts_under_load_fail_no_connection() -> Result<()> {
    let mut mesh = Mesh::governed(&Layout::standard(), &[])?;
    let (client, server) = (mesh.pod("client-0").clone(), mesh.pod("server-0").clone());
    let _echo = server.serve(&["echo"])?;
    let binary = place::binary("podapp")?.to_string_lossy().into_owned();
    let stop = mesh.world.dir().join("enough");
    let (to, stop_text) = (server.at(9000).to_string(), stop.to_string_lossy());
    let args = ["load", "--to", &to, "--count", LOAD, "--threads", "2"];
    let mut load = client.spawn(
        &[&binary]
            .into_iter()
            .map(String::as_str)
            .chain(args)
            .chain(["--stop-file", &stop_text])
            .collect::<Vec<_>>(),
    )?;
    load.wait_line(SOON, "done 200", |line| line == "done 200")?;
    for _ in 0..3 {
        let from = mesh.istiod().record().len();
        mesh.world.istiod_mut().bounce()?;
        for node in ["node1", "node2"] {
            subscribed(mesh.istiod(), from, node, Kind::Authorization)?;
        }
    }
    fs::write(&stop, "").context("end the load")?;
    let (_, told) = load.finish(LOAD_MAX)?;
    let told = told.context("the load told nothing")?;
    assert_eq!(told["failed"], 0, "{told}\n{}", mesh.daemons[0].tail());
    assert!(told["ok"].as_u64() >= Some(200), "{told}");
    for daemon in &mesh.daemons {
        let lost = ends(daemon, "Reconnect")? + ends(daemon, "ConnectionError")?;
        assert!(lost >= 3.0, "{lost}\n{}", daemon.tail());
    }
    Ok(())
}

#[test]
fn streams_that_end_are_counted_by_reason() -> Result<()> {
    let world = governed(&Layout::standard())?;
    let istiod = world.istiod();
    let daemon = world.daemon(0)?;
    let cases = [
        (None, "Complete"),
        (Some((Code::Unknown, "whatever")), "Reconnect"),
        (
            Some((
                Code::Unavailable,
                "closing transport: received prior goaway",
            )),
            "Reconnect",
        ),
        (Some((Code::Internal, "a fault")), "Error"),
    ];
    let mut expected = BTreeMap::new();
    for (status, reason) in cases {
        let from = istiod.record().len();
        istiod.sever(status);
        subscribed(istiod, from, "node1", Kind::Authorization)?;
        *expected.entry(reason).or_insert(0.0) += 1.0;
    }
    for (reason, count) in expected {
        assert_eq!(ends(&daemon, reason)?, count, "{reason}\n{}", daemon.tail());
    }
    daemon.wait_log(0, &["\txds::", "a fault"])?;
    assert_eq!(readiness(&daemon)?.0, 200, "never unready again");
    Ok(())
}

#[test]
fn tokens_rotate_and_a_wrong_one_is_refused() -> Result<()> {
    let world = governed(&Layout::standard())?;
    let istiod = world.istiod();
    let daemon = world.daemon(0)?;
    let first = opened(istiod, 0)?;
    let shown = |headers: &BTreeMap<String, String>| headers.get("authorization").cloned();
    assert_eq!(shown(&first), Some(format!("Bearer {TOKEN}")));
    assert_eq!(
        first.get("clusterid").map(String::as_str),
        Some("Kubernetes")
    );

    istiod.write_token("second-token")?;
    istiod.settings().tokens = vec!["second-token".to_owned()];
    let from = istiod.record().len();
    istiod.sever(None);
    let headers = opened(istiod, from)?;
    assert_eq!(shown(&headers).as_deref(), Some("Bearer second-token"));

    istiod.settings().tokens = vec!["third-token".to_owned()];
    let from = istiod.record().len();
    istiod.sever(None);
    istiod
        .record()
        .wait(from, SOON, "refusal", |event| match event {
            Event::Refused { why, .. } => (why == "the token is not valid").then_some(()),
            _ => None,
        })?;
    daemon.wait_log(0, &["\txds::", "the token is not valid"])?;
    assert!(ends(&daemon, "ConnectionError")? >= 1.0);
    let (status, said) = readiness(&daemon)?;
    assert_eq!((status, said.as_str()), (200, "ready\n"));
    istiod.write_token("third-token")?;
    let headers = opened(istiod, from)?;
    assert_eq!(shown(&headers).as_deref(), Some("Bearer third-token"));
    // the authority is shown what is in the file now, too
    world.label("shop", true, &[&daemon])?;
    istiod
        .record()
        .wait(from, SOON, "signed certificate", |event| match event {
            Event::Asked { caller, .. } => Some(caller.header("authorization").to_owned()),
            _ => None,
        })
        .map(|token| assert_eq!(token, "Bearer third-token"))?;
    for token in [TOKEN, "second-token", "third-token"] {
        ensure!(!daemon.log().contains(token), "{token} in the log");
    }
    Ok(())
}

#[test]
fn another_name_suffices_and_headers_go_along() -> Result<()> {
    let world = governed(&Layout::standard())?;
    let istiod = world.istiod();
    istiod.names(&["istiod.example"])?;
    let strange = Daemon::launch(world.node(0), &[])?;
    strange.wait_log(0, &["warn", "\txds::", "invalid peer certificate"])?;
    pending(&strange)?;
    drop(strange);
    let from = istiod.record().len();
    let env = [
        ("ALT_XDS_HOSTNAME", "istiod.example"),
        ("ALT_CA_HOSTNAME", "istiod.example"),
        ("XDS_HEADER_X_Region", "north 1"),
        ("CA_HEADER_WHY", "because"),
        ("ISTIO_META_DNS_CAPTURE", "true"),
        ("ISTIO_META_SHIRT_SIZE", "XL"),
    ];
    let daemon = Daemon::start(world.node(0), &env)?;
    let headers = opened(istiod, from)?;
    assert_eq!(headers.get("x_region").map(String::as_str), Some("north 1"));
    let (_, request) = subscribed(istiod, from, "node1", Kind::Address)?;
    let node = request.node.context("no node")?;
    let size = integration::istiod::gate::text(&node, "SHIRT_SIZE");
    assert_eq!(size, Some("XL"), "{node:?}");
    world.label("shop", true, &[&daemon])?;
    let caller = istiod
        .record()
        .wait(from, SOON, "signing request", |event| match event {
            Event::Asked { caller, .. } => Some(caller.clone()),
            _ => None,
        })?;
    assert_eq!(caller.header("why"), "because");
    assert_eq!(
        (caller.sni.as_deref(), caller.alpn.as_deref()),
        (None, Some("h2"))
    );
    Ok(())
}

#[test]
fn roots_of_the_control_plane_are_read_again() -> Result<()> {
    let mut world = governed(&Layout::standard())?;
    let daemon = world.daemon(0)?;
    let names = [world.istiod().xds.address().ip().to_string()];
    let names = [names[0].as_str()];
    world.istiod_mut().new_front(&names, false)?;
    world.istiod_mut().bounce()?;
    daemon.wait_log(0, &["warn", "\txds::", "invalid peer certificate"])?;
    let from = world.istiod().record().len();
    world.istiod_mut().new_front(&names, true)?;
    subscribed(world.istiod(), from, "node1", Kind::Address)?;
    Ok(())
}

#[test]
fn certificates_are_asked_for_pods_of_the_own_node_only() -> Result<()> {
    let mesh = Mesh::governed(&Layout::standard(), &[])?;
    mesh.label("other", true)?;
    let (client, server) = (mesh.pod("client-0"), mesh.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    for from in [client, mesh.pod("outsider-0")] {
        echo(from, server.at(9000), &[])?;
    }
    let mut asked = BTreeSet::new();
    for event in mesh.istiod().record().since(0) {
        match event {
            Event::Asked {
                caller, identity, ..
            } => {
                let peer = caller.peer.context("an address")?;
                let node = mesh.istiod().node_of(peer).context("a node")?;
                asked.insert((node, identity));
            }
            Event::Refused { why, .. } => bail!("refused: {why}"),
            _ => {}
        }
    }
    let pods = ["client-0", "server-0", "outsider-0"].map(|name| mesh.pod(name));
    for pod in pods {
        let node = mesh.world.node(pod.node).name.clone();
        ensure!(asked.contains(&(node, pod.identity())), "{asked:?}");
    }
    for (node, identity) in &asked {
        let model = mesh.world.model();
        let mut own = model.pods.iter().filter(|pod| pod.node == *node);
        ensure!(own.any(|pod| pod.identity() == *identity), "{asked:?}");
    }
    Ok(())
}
