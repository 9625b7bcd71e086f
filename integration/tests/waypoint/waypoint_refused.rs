//! What must not pass: around the waypoint, through a wrong one, to a wrong server, or to one that nobody knows.

use anyhow::Result;
use integration::envoy::Seat;
use integration::model::Gateway;
use integration::{Envoy, Policy, place};

use crate::ground::{ECHO, Ground, HTTP, SOON, UNSERVED, VIP, answered, counted, failed, get, vip};

const FAILED: &str = "istio_tcp_connections_failed_total";
const REFUSALS: &str = "ztunnel_refusals_total";
const NOT_ALLOWED: &str =
    "connection closed due to policy rejection: allow policies exist, but none allowed";

fn ready() -> Result<Ground> {
    let mut ground = Ground::up()?;
    ground.serve_http()?;
    Ok(ground)
}

/// Nothing came to the servers from anybody but the waypoint.
fn nothing_around(ground: &Ground) -> Result<()> {
    let waypoint = ground.pod("waypoint-0").identity();
    let lines = ground.far().access();
    let around = lines
        .iter()
        .find(|line| line.is("inbound") && line.field("src.identity") != waypoint);
    assert!(around.is_none(), "around the waypoint: {around:?}");
    Ok(())
}

#[test]
fn with_a_policy_for_the_waypoint_only_nobody_gets_around_it() -> Result<()> {
    let ground = ready()?;
    let _envoy = ground.envoy("waypoint-0")?;
    let only = "{principals: [!Exact \"cluster.local/ns/shop/sa/waypoint\"]}";
    ground.edit(|model| {
        let mut policy = Policy::new("Allow", "shop", "only-waypoint", &[only]);
        policy.scope = "WorkloadSelector".to_owned();
        model.policies.push(policy);
        for name in ["server-0", "server-1"] {
            if let Some(pod) = model.pod_mut(name) {
                pod.policies.push("shop/only-waypoint".to_owned());
            }
        }
    })?;
    let (client, server) = (ground.pod("client-0"), ground.pod("server-0"));
    answered(client, &format!("http://{VIP}/api/a"), &[])?;

    let from = ground.near().log_len();
    let answer = get(client, &format!("http://{}/api/a", server.at(8080)), &[])?;
    assert_eq!(answer.status, 0, "{}", answer.text);
    let line = failed(ground.near(), from, &["http status: 401 Unauthorized"])?;
    assert_eq!(
        line.field("dst.hbone_addr"),
        server.at(8080).to_string(),
        "{}",
        line.text
    );
    assert_eq!(line.field("dst.workload"), "server-0", "{}", line.text);
    assert_eq!(
        (line.level.as_str(), line.message.as_str()),
        ("error", "connection complete")
    );
    let line = ground.far().wait_access("the refusal", |line| {
        line.is("inbound") && line.field("error") == NOT_ALLOWED
    })?;
    assert_eq!(
        line.field("src.identity"),
        client.identity(),
        "{}",
        line.text
    );
    assert_eq!(line.field("dst.workload"), "server-0", "{}", line.text);
    let source = [("reporter", "source"), ("response_flags", "CONNECT")];
    counted(ground.near(), FAILED, &source, 1.0)?;
    let denied = [("reporter", "destination"), ("response_flags", "DENY")];
    counted(ground.far(), FAILED, &denied, 1.0)?;
    counted(ground.far(), REFUSALS, &[("reason", "policy")], 1.0)?;

    // without an identity: a pod that is not in the mesh
    let plain = ground.pod("canary-0");
    let answer = get(plain, &format!("http://{}/api/a", server.at(8080)), &[])?;
    assert_eq!(answer.status, 0, "{}", answer.text);
    let prefix = format!("{}:", plain.v4);
    let line = ground
        .far()
        .wait_access("the refusal of plaintext", |line| {
            line.is("inbound") && line.field("src.addr").starts_with(&prefix)
        })?;
    assert_eq!(line.field("error"), NOT_ALLOWED, "{}", line.text);
    assert_eq!(line.field("src.identity"), "", "{}", line.text);
    counted(ground.far(), FAILED, &denied, 2.0)?;
    // and the way through it is as open as before
    answered(client, &format!("http://{VIP}/api/a"), &[])?;
    Ok(())
}

#[test]
fn a_waypoint_with_another_identity_is_not_spoken_to() -> Result<()> {
    let ground = ready()?;
    let (client, waypoint) = (ground.pod("client-0"), ground.pod("waypoint-0"));
    let seat = Seat::disguised(
        &ground.world,
        waypoint,
        &ground.pod("intruder-0").identity(),
    )?;
    let envoy = Envoy::waypoint(seat, &ground.waypoint())?;
    let from = ground.near().log_len();
    let answer = get(client, &format!("http://{VIP}/api/a"), &[])?;
    assert_eq!(answer.status, 0, "{}", answer.text);
    let line = failed(ground.near(), from, &["connection complete", "error="])?;
    let error = line.field("error");
    assert!(
        error.contains("identity") || error.contains("certificate"),
        "{}",
        line.text
    );
    let labels = [("reporter", "source"), ("response_flags", "CONNECT")];
    counted(ground.near(), FAILED, &labels, 1.0)?;
    counted(ground.near(), REFUSALS, &[("reason", "tls_handshake")], 1.0)?;
    assert_eq!(envoy.stat("http.hbone_terminate.downstream_rq_total")?, 0);
    nothing_around(&ground)
}

#[test]
fn a_server_with_another_identity_is_refused_by_the_waypoint() -> Result<()> {
    let ground = ready()?;
    let client = ground.pod("client-0");
    let mut waypoint = ground.waypoint();
    waypoint.server = client.identity();
    let envoy = ground.envoy_with("waypoint-0", &waypoint)?;
    let answer = get(client, &format!("http://{VIP}/api/a"), &[])?;
    assert_eq!(answer.status, 503, "{}", answer.text);
    envoy.wait_access("originate", "the refused server", |entry| {
        let why = entry["failure"].as_str().unwrap_or_default();
        why.contains("CERTIFICATE_VERIFY_FAILED")
    })?;
    // the tunnel itself worked: what failed is between the waypoint and the server
    let line = ground
        .near()
        .wait_access("the client's connection", |line| {
            line.is("outbound") && line.message == "connection complete"
        })?;
    assert_eq!(line.field("error"), "", "{}", line.text);
    Ok(())
}

#[test]
fn an_authority_that_the_waypoint_does_not_serve_is_told() -> Result<()> {
    let ground = ready()?;
    let _envoy = ground.envoy("waypoint-0")?;
    let client = ground.pod("client-0");
    let from = ground.near().log_len();
    let answer = get(client, &format!("http://{}/api/a", vip(UNSERVED)), &[])?;
    assert_eq!(answer.status, 0, "{}", answer.text);
    let line = failed(
        ground.near(),
        from,
        &["connection complete", "http status: 503"],
    )?;
    assert_eq!(line.level, "error");
    assert_eq!(
        line.field("error"),
        "http status: 503 Service Unavailable",
        "{}",
        line.text
    );
    assert_eq!(
        line.field("dst.hbone_addr"),
        vip(UNSERVED).to_string(),
        "{}",
        line.text
    );
    assert_eq!(line.field("dst.workload"), "waypoint-0", "{}", line.text);
    let labels = [("reporter", "source"), ("response_flags", "CONNECT")];
    counted(ground.near(), FAILED, &labels, 1.0)?;
    counted(
        ground.near(),
        REFUSALS,
        &[("reason", "refused_by_peer")],
        1.0,
    )?;
    // the tunnel that carried the refusal carries on
    answered(client, &format!("http://{VIP}/api/a"), &[])?;
    Ok(())
}

#[test]
fn a_waypoint_that_is_unknown_or_away_is_never_gone_around() -> Result<()> {
    let ground = ready()?;
    let client = ground.pod("client-0");
    let unknown = [
        Gateway::at([10, 244, 9, 99]),
        Gateway::named("shop", "nobody.shop.svc.cluster.local"),
    ];
    for (number, gateway) in unknown.into_iter().enumerate() {
        let name = gateway.destination.to_string();
        ground.before_service(Some(gateway))?;
        let from = ground.near().log_len();
        let answer = get(client, &format!("http://{VIP}/public/a"), &[])?;
        assert_eq!(answer.status, 0, "{}", answer.text);
        let line = failed(ground.near(), from, &["unknown waypoint"])?;
        assert_eq!(
            (line.level.as_str(), line.message.as_str()),
            ("warn", "connection failed")
        );
        assert!(
            line.field("error").contains(name.trim_start_matches('/')),
            "{}",
            line.text
        );
        assert_eq!(
            line.field("dst.addr"),
            vip(HTTP).to_string(),
            "{}",
            line.text
        );
        let least = (number + 1) as f64;
        counted(
            ground.near(),
            REFUSALS,
            &[("reason", "unknown_waypoint")],
            least,
        )?;
    }
    // known, but nothing listens there
    ground.before_service(Some(Gateway::at(ground.pod("waypoint-0").v4)))?;
    let from = ground.near().log_len();
    let answer = get(client, &format!("http://{VIP}/public/a"), &[])?;
    assert_eq!(answer.status, 0, "{}", answer.text);
    let line = failed(ground.near(), from, &["connection complete", "io error"])?;
    assert_eq!(line.field("dst.workload"), "waypoint-0", "{}", line.text);
    let labels = [("reporter", "source"), ("response_flags", "CONNECT")];
    counted(ground.near(), FAILED, &labels, 1.0)?;
    nothing_around(&ground)?;
    // and when it is there, the same address leads through it
    let _envoy = ground.envoy("waypoint-0")?;
    integration::until(SOON, "through the waypoint", || {
        let answer = get(client, &format!("http://{VIP}/public/a"), &[])?;
        Ok((answer.status == 200).then_some(()))
    })?;
    nothing_around(&ground)
}

#[test]
fn a_policy_against_the_waypoint_cuts_what_it_carries() -> Result<()> {
    let mut ground = ready()?;
    ground.serve("server-0", &["echo"])?;
    let _envoy = ground.envoy("waypoint-0")?;
    let client = ground.pod("client-0");
    let (binary, to) = (place::binary("podapp")?, vip(ECHO).to_string());
    let held = client.spawn(&[&binary.to_string_lossy(), "hold", "--to", &to])?;
    held.wait_line(SOON, "tick 3", |line| line == "tick 3")?;
    let deny =
        "{principals: [!Exact \"cluster.local/ns/shop/sa/waypoint\"], destinationPorts: [9000]}";
    ground.edit(|model| {
        let policy = Policy::new("Deny", "shop", "no-bytes", &[deny]);
        model.policies.push(policy);
    })?;
    held.wait_line(SOON, "the cut", |line| line.starts_with("cut"))?;
    ground.far().wait_access("the cut", |line| {
        line.is("inbound") && line.field("error") == "connection closed due to policy change"
    })?;
    let from = ground.far().log_len();
    let seen = client.podapp(&["greet", "--to", &to, "--timeout-ms", "3000"])?;
    assert_eq!(seen["ok"], false, "{seen}");
    ground
        .far()
        .wait_log(from, &["explicitly denied by: shop/no-bytes"])?;
    // requests to the other port are not concerned
    answered(client, &format!("http://{VIP}/api/a"), &[])?;
    Ok(())
}
