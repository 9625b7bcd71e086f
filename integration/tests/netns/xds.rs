//! What the control plane says is in force: workloads, services, policies, and what cannot be understood of them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::istiod::{Kind, messages};
use integration::world::APPLY_MAX;
use integration::{Layout, Policy};
use proto::discovery::DeltaDiscoveryResponse;
use proto::wellknown::UInt32Value;
use proto::{security, workload};
use serde_json::Value;

use crate::support::{
    Mesh, SOON, answered, connect, echo, governed, hold, longest_wait, still_held, subscribed,
};

/// Workloads of a large push; their service has as many endpoints.
const CROWD: u32 = 20_000;
/// Most time for an answer beside such a push, on a machine that has other things to do as well.
const WAIT_MAX: Duration = Duration::from_millis(500);

/// Entries of a list in a dump, by one of their keys.
fn named<'a>(dump: &'a Value, list: &str, key: &str, name: &str) -> Option<&'a Value> {
    dump[list]
        .as_array()?
        .iter()
        .find(|entry| entry[key] == name)
}

#[test]
fn traffic_and_the_dump_follow_the_control_plane() -> Result<()> {
    let mesh = Mesh::governed(&Layout::standard(), &[])?;
    let (client, server) = (mesh.pod("client-0"), mesh.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    let wire = mesh.world.node(0).capture(mesh.world.node(1))?;
    let targets = [
        server.at(9000),
        server.at6(9000),
        "10.96.0.10:9000".parse()?,
    ];
    for to in targets {
        let seen = echo(client, to, &["--send", "marker-of-the-clear-text"])?;
        let line = mesh.outbound(client, &seen)?;
        assert!(line.field("dst.addr").ends_with(":15008"), "{}", line.text);
        assert_eq!(line.field("src.identity"), client.identity());
        assert_eq!(line.field("dst.identity"), server.identity());
    }
    let packets = wire.stop()?;
    assert!(!packets.shows("marker-of-the-clear-text"));
    assert!(packets.tls(15008) > 0, "no TLS on the wire");

    mesh.edit(|model| {
        model
            .policies
            .push(Policy::new("Deny", "shop", "none", &[]))
    })?;
    let daemon = &mesh.daemons[1];
    let dump = daemon.config_dump()?;
    let uid = "demo//Pod/shop/server-0";
    let pod = named(&dump, "workloads", "uid", uid).context("no workload")?;
    assert_eq!(pod["trustDomain"], "cluster.local", "{pod}");
    assert_eq!(pod["serviceAccount"], "server", "{pod}");
    assert_eq!(pod["services"][0], "shop/server.shop.svc.cluster.local");
    let service = &dump["services"][0];
    assert_eq!(service["endpoints"][uid]["port"]["80"], 8080, "{service}");
    assert_eq!(dump["policies"][0]["name"], "none");
    let own = named(&dump, "certificates", "identity", &server.identity());
    let own = own.with_context(|| dump["certificates"].to_string())?;
    assert_eq!(own["state"], "Available");
    let serial = own["certChain"][0]["serialNumber"]
        .as_str()
        .map(str::to_owned);
    let issued = mesh.istiod().authority().issued().to_vec();
    let of_daemon = issued
        .iter()
        .filter(|one| one.identity == server.identity())
        .any(|one| serial.as_deref() == Some(&*one.serial.to_string()));
    assert!(of_daemon, "{serial:?} is not of the authority: {issued:?}");

    let metrics = daemon.metrics()?;
    for kind in Kind::ALL {
        let url = [("url", kind.url())];
        assert!(metrics.sum("istio_xds_message_total", &url) >= 1.0);
        let bytes = metrics.sum("istio_xds_message_bytes_total", &url);
        assert!(bytes > 0.0, "{kind:?}");
    }
    Ok(())
}

#[test]
fn a_pushed_policy_cuts_and_its_removal_lets_in() -> Result<()> {
    let mesh = Mesh::governed(&Layout::standard(), &[])?;
    let (client, server) = (mesh.pod("client-0"), mesh.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    let held = hold(client, server.at(9000))?;
    let deny = "{serviceAccounts: [{namespace: shop, serviceAccount: client}]}";
    mesh.edit(|model| {
        let policy = Policy::new("Deny", "shop", "no-client", &[deny]);
        model.policies.push(policy);
    })?;
    held.wait_line(SOON, "the cut", |line| line.starts_with("cut"))?;
    mesh.inbound(server, |line| {
        line.field("error") == "connection closed due to policy change"
    })?;
    let seen = connect(client, server.at(9000), &[])?;
    assert_ne!(seen["received"], "hello", "{seen}");
    let why = "connection closed due to policy rejection: explicitly denied by: shop/no-client";
    mesh.inbound(server, |line| line.field("error") == why)?;
    mesh.edit(|model| model.policies.clear())?;
    echo(client, server.at(9000), &[])?;
    Ok(())
}

#[test]
fn a_removed_service_is_gone_and_comes_back_with_its_endpoints() -> Result<()> {
    let mesh = Mesh::governed(&Layout::standard(), &[])?;
    let (client, server) = (mesh.pod("client-0"), mesh.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    let vip = "10.96.0.10:9000".parse()?;
    echo(client, vip, &[])?;
    let (istiod, name) = (mesh.istiod(), "shop/server.shop.svc.cluster.local");
    let shown = |there: bool| {
        mesh.daemons[0].wait_dump(SOON, "the service", |dump| {
            let services = dump["services"].as_array().map_or(0, Vec::len);
            (services == 1) == there
        })
    };
    istiod.change(|content| content.remove(Kind::Address, name));
    shown(false)?;
    let seen = connect(client, vip, &["--timeout-ms", "2000"])?;
    assert_ne!(seen["received"], "hello", "{seen}");
    // only the service is sent again: its endpoints are found among what is known
    istiod.change(|content| content.leave(Kind::Address, name));
    mesh.world.publish_state()?;
    shown(true)?;
    echo(client, vip, &[])?;
    Ok(())
}

#[test]
fn a_large_push_disturbs_no_connection() -> Result<()> {
    let mesh = Mesh::governed(&Layout::standard(), &[])?;
    let (client, server) = (mesh.pod("client-0"), mesh.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    let (at, vip) = (server.at(9000), "10.96.0.10:9000".parse()?);
    let held = [at, at, vip].map(|to| hold(client, to));
    let held = held.into_iter().collect::<Result<Vec<_>>>()?;
    let longest = || held.iter().map(longest_wait).collect::<Result<Vec<_>>>();
    let still = || held.iter().try_for_each(still_held);
    (0..10).try_for_each(|_| still())?;
    let before = longest()?;

    let istiod = mesh.istiod();
    let (stream, _) = subscribed(istiod, 0, "node1", Kind::Address)?;
    let model = mesh.world.model().clone();
    let own = model.pods.len();
    // endpoints of the same service, which nobody is sent to: there is nothing behind their addresses
    let like = workload::Workload {
        capacity: Some(UInt32Value { value: 0 }),
        node: "elsewhere".to_owned(),
        ..messages::workload(&model, &model.pods[1], true)
    };
    ensure!(!like.services.is_empty(), "{like:?}");
    let crowd = |status: workload::WorkloadStatus| {
        let like = like.clone();
        (0..CROWD).map(move |number| {
            let [_, b, c, d] = number.to_be_bytes();
            workload::Workload {
                uid: format!("far//Pod/crowd/pod-{number}"),
                name: format!("pod-{number}"),
                addresses: vec![vec![100, b, c, d].into()],
                status: status.into(),
                ..like.clone()
            }
        })
    };
    let count = |wanted: usize| {
        let what = format!("{wanted} workloads");
        mesh.daemons[0].wait_dump(APPLY_MAX, &what, |dump| {
            dump["workloads"].as_array().map_or(0, Vec::len) == wanted
        })
    };
    for status in [
        workload::WorkloadStatus::Healthy,
        workload::WorkloadStatus::Unhealthy,
    ] {
        let from = istiod.record().len();
        istiod.change(|content| crowd(status).for_each(|one| drop(content.workload(one))));
        let ack = answered(istiod, from, stream, |names, _| {
            names.len() == CROWD as usize
        })?;
        assert_eq!(ack.error_detail, None);
        echo(client, vip, &[])?;
        still()?;
    }
    count(own + CROWD as usize)?;
    echo(client, vip, &[])?;
    istiod.change(|content| {
        crowd(workload::WorkloadStatus::Healthy)
            .for_each(|one| content.remove(Kind::Address, &one.uid));
    });
    count(own)?;
    echo(client, vip, &[])?;
    still()?;
    for (before, longest) in before.into_iter().zip(longest()?) {
        ensure!(
            longest <= WAIT_MAX.max(2 * before),
            "waited {longest:?} for an answer beside the pushes, {before:?} before them"
        );
    }
    Ok(())
}

#[test]
fn a_bad_resource_among_good_ones_is_named_and_kept_out() -> Result<()> {
    let world = governed(&Layout::standard())?;
    let istiod = world.istiod();
    let daemon = world.daemon(0)?;
    let (stream, _) = subscribed(istiod, 0, "node1", Kind::Address)?;
    let model = world.model().clone();
    let server = model.pods.iter().find(|pod| pod.name == "server-0");
    let server = messages::workload(&model, server.context("no server")?, false);
    let from = istiod.record().len();
    let bad = workload::Workload {
        addresses: vec![vec![10, 0, 0].into()],
        node: "elsewhere".to_owned(),
        ..server.clone()
    };
    let good = workload::Workload {
        uid: "demo//Pod/shop/zebra-0".to_owned(),
        name: "zebra-0".to_owned(),
        ..server.clone()
    };
    istiod.change(|content| {
        content.workload(bad);
        content.workload(good);
        content.raw(
            Kind::Address,
            "demo//Pod/shop/junk",
            Some(&[0xff, 0xff, 0xff]),
        );
    });
    let nack = answered(istiod, from, stream, |names, _| names.len() == 3)?;
    let detail = nack.error_detail.context("accepted")?;
    let parts: Vec<_> = detail.message.split("; ").collect();
    assert_eq!(parts.len(), 2, "{parts:?}");
    assert!(parts[0].starts_with("demo//Pod/shop/junk: "), "{parts:?}");
    assert!(
        parts[1].starts_with("demo//Pod/shop/server-0: "),
        "{parts:?}"
    );
    assert_eq!(detail.code, 0);
    daemon.wait_log(0, &["warn", "\txds::", "demo//Pod/shop/junk"])?;
    let dump = daemon.config_dump()?;
    let find = |uid: &str| named(&dump, "workloads", "uid", uid);
    assert!(find("demo//Pod/shop/zebra-0").is_some(), "the good one");
    let old = find("demo//Pod/shop/server-0").context("the old version of the bad one")?;
    assert_eq!(old["node"], "node2", "{old}");

    // the version that was not taken is not claimed
    let from = istiod.record().len();
    istiod.sever(None);
    let (stream, request) = subscribed(istiod, from, "node1", Kind::Address)?;
    let versions = &request.initial_resource_versions;
    assert!(
        !versions.contains_key("demo//Pod/shop/junk"),
        "{versions:?}"
    );
    let entry = istiod.content().entries(Kind::Address)[&server.uid].clone();
    assert!(versions.contains_key(&server.uid), "{versions:?}");
    assert_ne!(versions[&server.uid], entry.version);
    answered(istiod, from, stream, |names, _| names.len() == 2)?;

    // mended, it is taken
    let from = istiod.record().len();
    istiod.change(|content| {
        content.remove(Kind::Address, "demo//Pod/shop/junk");
        content.workload(workload::Workload {
            node: "elsewhere".to_owned(),
            ..server
        })
    });
    let ack = answered(istiod, from, stream, |names, _| names.len() == 1)?;
    assert_eq!(ack.error_detail, None);
    Ok(())
}

#[test]
fn an_unknown_type_is_answered_and_bad_policies_too() -> Result<()> {
    let world = governed(&Layout::standard())?;
    let istiod = world.istiod();
    let daemon = world.daemon(0)?;
    let (stream, _) = subscribed(istiod, 0, "node1", Kind::Authorization)?;
    let from = istiod.record().len();
    istiod.send(DeltaDiscoveryResponse {
        type_url: "type.googleapis.com/example.Unknown".to_owned(),
        nonce: "odd-1".to_owned(),
        ..Default::default()
    });
    let answer = answered(istiod, from, stream, |names, _| names.is_empty())?;
    assert_eq!(answer.error_detail, None);
    assert_eq!(answer.type_url, "type.googleapis.com/example.Unknown");
    daemon.wait_log(0, &["error", "\txds::", "example.Unknown"])?;

    let policy = |name: &str, scope: i32| security::Authorization {
        name: name.to_owned(),
        namespace: "shop".to_owned(),
        scope,
        ..Default::default()
    };
    istiod.change(|content| {
        content.policy(&policy("strange", 77));
        content.policy(&policy("plain", security::Scope::Namespace.into()));
    });
    let nack = answered(istiod, from, stream, |names, _| names.len() == 2)?;
    let detail = nack.error_detail.context("accepted")?;
    assert!(detail.message.starts_with("shop/strange: "), "{detail:?}");
    assert!(detail.message.contains("77"), "{detail:?}");
    let dump = daemon.config_dump()?;
    let names: Vec<_> = dump["policies"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|policy| policy["name"].clone())
        .collect();
    assert_eq!(names, ["plain"]);
    Ok(())
}
