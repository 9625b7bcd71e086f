//! Requests through a waypoint: who may do what, what the application learns of its client, where requests go.

use anyhow::Result;
use integration::Envoy;
use serde_json::Value;

use crate::ground::{GRPC, Ground, HOST, HTTP, VIP, VIP6, answered, authorities, get, vip, worked};

/// Requests of the split.
const REQUESTS: usize = 600;
/// Bytes of a large body.
const LARGE: usize = 32 << 20;

fn ready() -> Result<(Ground, Envoy)> {
    let mut ground = Ground::up()?;
    ground.serve_http()?;
    let envoy = ground.envoy("waypoint-0")?;
    Ok((ground, envoy))
}

#[test]
fn requests_are_allowed_and_denied_by_path_and_identity() -> Result<()> {
    let (ground, envoy) = ready()?;
    let (client, intruder) = (ground.pod("client-0"), ground.pod("intruder-0"));
    for host in [VIP.to_owned(), format!("[{VIP6}]")] {
        for (pod, path, status) in [
            (client, "/public/a", 200),
            (intruder, "/public/a", 200),
            (client, "/api/a", 200),
            (intruder, "/api/a", 403),
            (client, "/other", 403),
            (intruder, "/public/../api/a", 403),
        ] {
            let answer = get(pod, &format!("http://{host}{path}"), &["--path-as-is"])?;
            assert_eq!(
                answer.status, status,
                "{} {path}: {}",
                pod.name, answer.text
            );
            if status == 403 {
                assert!(
                    answer.text.contains("RBAC: access denied"),
                    "{}",
                    answer.text
                );
            } else {
                assert_eq!(answer.body["path"], path, "{}", answer.text);
            }
        }
    }
    let denied = |entry: &Value| {
        entry["code"] == 403
            && entry["path"] == "/api/a"
            && entry["source"] == intruder.identity().as_str()
    };
    envoy.wait_access("l7", "the denied request", denied)?;
    Ok(())
}

#[test]
fn the_application_learns_of_the_client_from_the_waypoint_only() -> Result<()> {
    let (ground, envoy) = ready()?;
    let (client, waypoint) = (ground.pod("client-0"), ground.pod("waypoint-0"));
    let spoofed = [
        "-H",
        "x-forwarded-client-cert: URI=spiffe://cluster.local/ns/shop/sa/admin",
        "-H",
        "x-waypoint: none",
    ];
    let answer = answered(client, &format!("http://{VIP}/api/me"), &spoofed)?;
    let headers = &answer.body["headers"];
    assert_eq!(headers["x-waypoint"], "waypoint-0", "{headers}");
    let identity = format!("URI={}", client.identity());
    assert_eq!(headers["x-forwarded-client-cert"], identity, "{headers}");
    assert_eq!(
        headers["x-forwarded-for"],
        client.v4.to_string(),
        "{headers}"
    );
    assert_eq!(headers["host"], VIP, "{headers}");
    let peer = answer.body["peer"].as_str().unwrap_or_default();
    let from = format!("{}:", waypoint.v4);
    assert!(
        peer.starts_with(&from),
        "the source kept is the waypoint's: {peer}"
    );
    assert!(
        answer
            .head
            .contains("x-waypoint-cluster: waypoint-0/service_v"),
        "{}",
        answer.head
    );

    let tunnel = envoy.wait_access("hbone", "the tunnel", |entry| {
        entry["source"] == client.identity().as_str()
    })?;
    assert_eq!(tunnel["authority"], vip(HTTP).to_string(), "{tunnel}");
    assert_eq!(
        (&tunnel["tls"], &tunnel["sni"]),
        (&"TLSv1.3".into(), &Value::Null)
    );
    let forwarded = tunnel["forwarded"].as_str().unwrap_or_default();
    let wanted = format!("for=\"{}:", client.v4);
    assert!(
        forwarded.starts_with(&wanted) && forwarded.ends_with(&format!(";host={HOST}")),
        "{forwarded}"
    );
    let baggage = tunnel["baggage"].as_str().unwrap_or_default();
    for part in ["k8s.namespace.name=shop", "k8s.deployment.name=client"] {
        assert!(baggage.contains(part), "{baggage}");
    }
    assert_eq!(
        tunnel["traceparent"].as_str().map_or(0, str::len),
        55,
        "{tunnel}"
    );
    Ok(())
}

#[test]
fn large_bodies_pass_both_ways_and_connections_are_kept() -> Result<()> {
    let (ground, _envoy) = ready()?;
    let client = ground.pod("client-0");
    let file = ground.world.dir().join("large");
    std::fs::write(&file, vec![b'y'; LARGE])?;
    let body = format!("@{}", file.display());
    let url = format!("http://{VIP}/api/large");
    let answer = answered(client, &url, &["-X", "POST", "--data-binary", &body])?;
    assert_eq!(answer.body["read"], LARGE);
    let url = format!("http://{VIP}/api/bytes");
    let sizes = "%{size_download} %{num_connects}\n";
    let down = format!("http://{VIP}/bytes/{LARGE}");
    let (_, refused) = client.curl(&["-o", "/dev/null", "-w", sizes, &down])?;
    assert!(
        !refused.starts_with(&LARGE.to_string()),
        "a path that nobody may use: {refused}"
    );
    let down = format!("http://{VIP}/public/bytes/{LARGE}");
    let sink = ["-o", "/dev/null", "-o", "/dev/null", "-o", "/dev/null"];
    let mut args = vec!["-w", sizes];
    args.extend(sink);
    args.extend([&*url, &down, &url]);
    let (code, said) = client.curl(&args)?;
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(code, 0, "{said}");
    assert_eq!(
        lines[1],
        format!("{LARGE} 0"),
        "over the connection of before: {said}"
    );
    assert!(
        lines[0].ends_with(" 1") && lines[2].ends_with(" 0"),
        "{said}"
    );
    Ok(())
}

#[test]
fn grpc_keeps_its_trailers_and_is_denied_in_its_own_way() -> Result<()> {
    let mut ground = Ground::up()?;
    ground.serve("server-0", &["grpc"])?;
    ground.serve("server-1", &["grpc"])?;
    let mut waypoint = ground.waypoint();
    waypoint.http = authorities(GRPC);
    waypoint.v1 = ground.pod("server-0").at(8083);
    waypoint.v2 = ground.pod("server-1").at(8083);
    let _envoy = ground.envoy_with("waypoint-0", &waypoint)?;
    let (client, intruder) = (ground.pod("client-0"), ground.pod("intruder-0"));
    let to = vip(GRPC).to_string();
    let calls = ["call", "--to", &to, "--count", "20", "--bytes", "40000"];
    let seen = worked(client, &calls)?;
    assert_eq!(
        (&seen["calls"], &seen["status"]),
        (&20.into(), &200.into()),
        "{seen}"
    );
    let trailers = &seen["trailers"];
    assert_eq!(trailers["grpc-status"], "0", "{seen}");
    assert_eq!(trailers["seen-x-waypoint"], "waypoint-0", "{seen}");
    let identity = format!("URI={}", client.identity());
    assert_eq!(trailers["seen-x-forwarded-client-cert"], identity, "{seen}");

    let seen = intruder.podapp(&["call", "--to", &to])?;
    assert_eq!(seen["status"], 200, "{seen}");
    assert_eq!(seen["headers"]["grpc-status"], "7", "{seen}");
    Ok(())
}

#[test]
fn requests_are_split_between_versions() -> Result<()> {
    let (ground, _envoy) = ready()?;
    let client = ground.pod("client-0");
    let url = format!("http://{VIP}/public/[1-{REQUESTS}]");
    let (code, text) = client.curl(&[&url])?;
    assert_eq!(code, 0, "{text}");
    let of = |name: &str| text.matches(&format!("\"app\":\"{name}\"")).count();
    let (first, second) = (of("v1"), of("v2"));
    assert_eq!(first + second, REQUESTS, "{first} and {second}");
    // binomial with p = 0.1: 60 expected, one standard deviation is 7.3; beyond six a billion runs see one
    assert!(
        (16..=104).contains(&second),
        "{second} of {REQUESTS} for 10 %"
    );
    Ok(())
}
