//! What access logs, metrics and dumps of both sides say about connections between networks.

use anyhow::Result;
use integration::world::networks::Named;
use integration::{Metrics, until};
use serde_json::Value;

use super::scene::{EAST, ECHO, SOON, Scene, WEST, echo, hold, vips};

/// A labelled sum is as given.
fn says(metrics: &Metrics, name: &str, labels: &[(&str, &str)], value: f64) -> bool {
    metrics.sum(name, labels) == value
}

#[test]
fn both_sides_name_the_true_ends_though_addresses_overlap() -> Result<()> {
    let scene = Scene::set(Named::Address)?;
    let (client, server) = (scene.pod("client-west-0"), scene.pod("server-east-0"));
    let double = scene.pod("client-east-0");
    assert_eq!(
        client.v4, double.v4,
        "another pod with the client's address"
    );
    let after = scene.lines(EAST);
    let seen = echo(client, vips(20, ECHO)[0], "0123456789")?;
    let host = "server-east.shop.svc.cluster.local";
    let authority = format!("{host}:{ECHO}");
    let gateway = format!("{}:15008", scene.net.sides[EAST].outside4);
    let (from, to) = (client.identity(), server.identity());
    let line = scene.outbound(WEST, &seen)?;
    // the pod's name is not on the wire: the workload's is
    let wanted = [
        ("src.workload", "client-west-0"),
        ("src.namespace", "shop"),
        ("src.identity", &from),
        ("src.cluster", "cluster-west"),
        ("dst.addr", &gateway),
        ("dst.hbone_addr", &authority),
        ("dst.service", host),
        ("dst.workload", "server-east"),
        ("dst.namespace", "shop"),
        ("dst.identity", &to),
        ("dst.cluster", "cluster-east"),
        ("bytes_sent", "10"),
        ("bytes_recv", "10"),
        ("error", ""),
    ];
    for (key, value) in wanted {
        assert_eq!(line.field(key), value, "outbound {key}: {}", line.text);
    }
    let line = scene.inbound(EAST, after)?;
    let local = server.at(15008).to_string();
    let wanted = [
        ("src.workload", "client-west"),
        ("src.namespace", "shop"),
        ("src.identity", &from),
        ("src.cluster", "cluster-west"),
        ("dst.addr", &local),
        ("dst.hbone_addr", &authority),
        ("dst.service", host),
        ("dst.workload", "server-east-0"),
        ("dst.namespace", "shop"),
        ("dst.identity", &to),
        ("dst.cluster", "cluster-east"),
        ("bytes_sent", "10"),
        ("bytes_recv", "10"),
        ("error", ""),
    ];
    for (key, value) in wanted {
        assert_eq!(line.field(key), value, "inbound {key}: {}", line.text);
    }
    let between = scene.net.sides[EAST].gateway.v4.to_string();
    assert!(
        line.field("src.addr").starts_with(&between),
        "the gateway's address: {}",
        line.text
    );
    let local = seen["local"].as_str().unwrap_or_default();
    gateway_agrees(
        &scene,
        &authority,
        &from,
        &format!("for=\"{local}\";host={host}"),
    )?;
    metrics_agree(&scene, host, &from, &to)
}

/// The gateway was asked by the client itself, in its own name, and not told from which network: only who is behind it is.
fn gateway_agrees(scene: &Scene, authority: &str, client: &str, forwarded: &str) -> Result<()> {
    let gateway = &scene.gateways[EAST];
    let mine = |entry: &Value| entry["authority"] == authority;
    let entry = gateway.wait_access("eastwest", "the tunnel", mine)?;
    for (key, value) in [("source", client), ("forwarded", forwarded), ("flags", "-")] {
        assert_eq!(entry[key], value, "{key}: {entry}");
    }
    assert_eq!(entry["code"], 200, "{entry}");
    assert_eq!(entry["network"], Value::Null, "{entry}");
    Ok(())
}

/// Both daemons count the one connection of ten bytes under the same names.
fn metrics_agree(scene: &Scene, host: &str, from: &str, to: &str) -> Result<()> {
    for (side, reporter) in [(WEST, "source"), (EAST, "destination")] {
        let labels = [
            ("reporter", reporter),
            ("source_workload", "client-west"),
            ("source_canonical_service", "client-west"),
            ("source_canonical_revision", "v1"),
            ("source_workload_namespace", "shop"),
            ("source_principal", from),
            ("source_app", "client-west"),
            ("source_version", "v1"),
            ("source_cluster", "cluster-west"),
            ("destination_service", host),
            ("destination_service_name", "server-east"),
            ("destination_workload", "server-east"),
            ("destination_canonical_service", "server-east"),
            ("destination_workload_namespace", "shop"),
            ("destination_principal", to),
            ("destination_app", "server-east"),
            ("destination_version", "v1"),
            ("destination_cluster", "cluster-east"),
            ("response_flags", "-"),
            ("connection_security_policy", "mutual_tls"),
        ];
        let wanted = [
            ("istio_tcp_connections_opened_total", 1.0),
            ("istio_tcp_connections_closed_total", 1.0),
            ("istio_tcp_received_bytes_total", 10.0),
            ("istio_tcp_sent_bytes_total", 10.0),
        ];
        let daemon = &scene.daemons[side];
        let mut last = Metrics::default();
        let all = until(SOON, "metrics of the connection", || {
            last = daemon.metrics()?;
            Ok(wanted
                .iter()
                .all(|(name, value)| says(&last, name, &labels, *value))
                .then_some(()))
        });
        let lines = last
            .samples
            .iter()
            .filter(|one| one.name.starts_with("istio_tcp_"));
        assert!(all.is_ok(), "{reporter}: {:#?}", lines.collect::<Vec<_>>());
        let whole = last.sum(
            "istio_tcp_connections_opened_total",
            &[("reporter", reporter)],
        );
        assert_eq!(whole, 1.0, "no other connection is counted");
        assert_eq!(last.sum("istio_tcp_connections_failed_total", &[]), 0.0);
    }
    Ok(())
}

#[test]
fn an_open_connection_is_shown_as_double() -> Result<()> {
    let scene = Scene::set(Named::Address)?;
    let (client, server) = (scene.pod("client-west-0"), scene.pod("server-east-0"));
    let to = vips(20, ECHO)[0];
    let held = hold(client, to)?;
    let gateway = format!("{}:15008", scene.net.sides[EAST].outside4);
    let open = |side: usize, uid: &str, direction: &str| -> Result<Value> {
        let what = format!("an {direction} connection in the dump");
        let first = |dump: &Value| dump["workloadState"][uid]["connections"][direction][0].clone();
        let dump = scene.daemons[side].wait_dump(SOON, &what, |dump| first(dump).is_object())?;
        Ok(first(&dump))
    };
    let out = open(WEST, &client.uid, "outbound")?;
    let found = [&out["protocol"], &out["originalDst"], &out["actualDst"]];
    assert_eq!(
        found.map(|v| v.as_str().unwrap_or_default()),
        ["DOUBLEHBONE", &to.to_string(), &gateway],
        "{out}"
    );
    let inbound = open(EAST, &server.uid, "inbound")?;
    assert_eq!(inbound["protocol"], "HBONE", "{inbound}");
    drop(held);
    for (side, uid, direction) in [
        (WEST, &client.uid, "outbound"),
        (EAST, &server.uid, "inbound"),
    ] {
        scene.daemons[side].wait_dump(SOON, "no connection in the dump", |dump| {
            let list = &dump["workloadState"][uid]["connections"][direction];
            list.as_array().is_none_or(Vec::is_empty)
        })?;
    }
    Ok(())
}
