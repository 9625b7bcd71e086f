//! What access logs and metrics of both daemons say of a connection through a waypoint, field by field.

use anyhow::{Context, Result};
use integration::{AccessLine, Metrics};

use crate::ground::{ECHO, Ground, HOST, vip, worked};

/// Bytes of the connection, each way.
const BYTES: &str = "123456";

fn assert_fields(line: &AccessLine, wanted: &[(&str, &str)]) {
    let found: Vec<_> = wanted
        .iter()
        .map(|(key, _)| (*key, line.field(key)))
        .collect();
    assert_eq!(found, wanted, "{}", line.text);
    assert_eq!(
        (line.level.as_str(), line.message.as_str()),
        ("info", "connection complete")
    );
    let mut order: Vec<_> = wanted
        .iter()
        .map(|(key, _)| *key)
        .filter(|key| *key != "error")
        .collect();
    order.insert(0, "src.addr");
    order.push("duration");
    assert_eq!(line.order, order, "{}", line.text);
}

fn assert_labels(metrics: &Metrics, name: &str, value: f64, labels: &[(&str, &str)]) -> Result<()> {
    let reporter = [labels[0]];
    let mut samples = metrics.select(name, &reporter);
    let sample = samples.find(|sample| sample.value == value);
    let sample = sample.with_context(|| format!("no {name} of {value}: {metrics:?}"))?;
    let found = |key: &str| sample.labels.get(key).map(String::as_str);
    for (key, wanted) in labels {
        assert_eq!(
            found(key),
            Some(*wanted),
            "{name} {key}: {:?}",
            sample.labels
        );
    }
    Ok(())
}

#[test]
fn both_legs_are_told_truly() -> Result<()> {
    let mut ground = Ground::up()?;
    ground.serve("server-0", &["echo"])?;
    let envoy = ground.envoy("waypoint-0")?;
    let [client, waypoint, server] =
        ["client-0", "waypoint-0", "server-0"].map(|name| ground.pod(name));
    let to = vip(ECHO).to_string();
    worked(client, &["transfer", "--to", &to, "--bytes", BYTES])?;

    let near = ground
        .near()
        .wait_access("the first leg", |line| line.is("outbound"))?;
    let (hop, identities) = (
        waypoint.at(15008).to_string(),
        [client, waypoint, server].map(|pod| pod.identity()),
    );
    assert_fields(
        &near,
        &[
            ("src.workload", "client-0"),
            ("src.namespace", "shop"),
            ("src.identity", &identities[0]),
            ("src.cluster", "demo"),
            ("dst.addr", &hop),
            ("dst.hbone_addr", &to),
            ("dst.service", HOST),
            ("dst.workload", "waypoint-0"),
            ("dst.namespace", "shop"),
            ("dst.identity", &identities[1]),
            ("dst.cluster", "demo"),
            ("direction", "outbound"),
            ("bytes_sent", BYTES),
            ("bytes_recv", BYTES),
            ("error", ""),
        ],
    );
    assert!(
        near.field("src.addr")
            .starts_with(&format!("{}:", client.v4))
    );

    let far = ground
        .far()
        .wait_access("the second leg", |line| line.is("inbound"))?;
    let (hop, target) = (server.at(15008).to_string(), server.at(9000).to_string());
    assert_fields(
        &far,
        &[
            ("src.workload", "waypoint-0"),
            ("src.namespace", "shop"),
            ("src.identity", &identities[1]),
            ("src.cluster", "demo"),
            ("dst.addr", &hop),
            ("dst.hbone_addr", &target),
            ("dst.service", HOST),
            ("dst.workload", "server-0"),
            ("dst.namespace", "shop"),
            ("dst.identity", &identities[2]),
            ("dst.cluster", "demo"),
            ("direction", "inbound"),
            ("bytes_sent", BYTES),
            ("bytes_recv", BYTES),
            ("error", ""),
        ],
    );
    assert!(
        far.field("src.addr")
            .starts_with(&format!("{}:", waypoint.v4))
    );

    let service = [
        ("destination_service", HOST),
        ("destination_service_name", "server"),
        ("destination_service_namespace", "shop"),
        ("request_protocol", "tcp"),
        ("response_flags", "-"),
        ("connection_security_policy", "mutual_tls"),
    ];
    let mut first = vec![
        ("reporter", "source"),
        ("source_workload", "client"),
        ("source_canonical_service", "client"),
        ("source_principal", &*identities[0]),
        ("destination_workload", "waypoint"),
        ("destination_app", "waypoint"),
        ("destination_principal", &*identities[1]),
    ];
    let mut second = vec![
        ("reporter", "destination"),
        ("source_workload", "waypoint"),
        ("source_canonical_service", "waypoint"),
        ("source_principal", &*identities[1]),
        ("destination_workload", "server"),
        ("destination_app", "server"),
        ("destination_principal", &*identities[2]),
    ];
    first.extend(service);
    second.extend(service);
    for (daemon, labels) in [(ground.near(), &first), (ground.far(), &second)] {
        let metrics = daemon.metrics()?;
        for (name, value) in [
            ("istio_tcp_connections_opened_total", 1.0),
            ("istio_tcp_connections_closed_total", 1.0),
            ("istio_tcp_received_bytes_total", 123_456.0),
            ("istio_tcp_sent_bytes_total", 123_456.0),
        ] {
            assert_labels(&metrics, name, value, labels)?;
        }
        assert_eq!(metrics.sum("istio_tcp_connections_failed_total", &[]), 0.0);
    }
    let entry = envoy.wait_access("hbone", "the tunnel", |_| true)?;
    assert_eq!(
        (&entry["code"], &entry["source"]),
        (&200.into(), &identities[0].as_str().into())
    );
    Ok(())
}
