//! Traffic between the networks: what arrives, who is seen, and what is on the wire between.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use integration::model::{HBONE_PORT, LoadBalancer};
use integration::world::networks::Named;
use integration::{App, Model, Pod, place, until};
use serde_json::Value;

use super::scene::{EAST, ECHO, GREET, GREET_AND_END, HTTP, SOON, Scene, WEST, echo, vips};
use crate::ground::at_rest;

/// Last parts of the services' addresses.
const SERVER_WEST: u8 = 10;
const SERVER_EAST: u8 = 20;
const FRONTED: u8 = 30;
const BOTH: u8 = 50;
/// Bytes of a large transfer.
const LARGE: usize = 32 << 20;
/// Connections at a time: fewer than one tunnel takes.
const MANY: usize = 90;
/// Most time for them to open, or to end.
const MANY_MAX: Duration = Duration::from_secs(60);

/// What an HTTP server behind an address says.
fn get(pod: &Pod, to: SocketAddr, path: &str) -> Result<Value> {
    let (code, body) = pod.curl(&[&format!("http://{to}{path}")])?;
    ensure!(code == 0, "{} to {to}: {body}", pod.name);
    Ok(serde_json::from_str(&body)?)
}

#[test]
fn both_ways_by_either_family_and_nothing_readable_between() -> Result<()> {
    let scene = Scene::set(Named::Address)?;
    let wires = [scene.net.capture(WEST)?, scene.net.capture(EAST)?];
    let marker = "marker-of-the-clear-text";
    for (from, service, server, side) in [
        ("client-west-0", SERVER_EAST, "server-east-0", EAST),
        ("client-east-0", SERVER_WEST, "server-west-0", WEST),
    ] {
        let client = scene.pod(from);
        let between = &scene.net.sides[side].gateway;
        for to in vips(service, HTTP) {
            let said = get(client, to, &format!("/{marker}"))?;
            assert_eq!(said["app"], server, "{said}");
            // the gateway's, in whichever family the gateway reaches the pod
            let peer: SocketAddr = said["peer"].as_str().unwrap_or_default().parse()?;
            let own = [between.v4.into(), between.v6.into()];
            assert!(own.contains(&peer.ip()), "the gateway's address: {said}");
        }
        for to in vips(service, ECHO) {
            let seen = echo(client, to, marker)?;
            assert_eq!(
                seen["peer"],
                to.to_string(),
                "getpeername is what was dialled"
            );
        }
    }
    for (wire, side) in wires.into_iter().zip(&scene.net.sides) {
        let packets = wire.stop()?;
        assert!(!packets.shows(marker), "clear text on the transit");
        // not even the name of the service
        assert!(
            !packets.shows("svc.cluster.local"),
            "a host name on the transit"
        );
        assert!(packets.tls(HBONE_PORT) > 0, "no TLS on the transit");
        let strange = (packets.all.iter())
            .filter(|p| p.tcp && ![p.from.port(), p.to.port()].contains(&HBONE_PORT));
        assert_eq!(strange.count(), 0, "another port on the transit");
        let pods: Vec<_> = side.world.pods().iter().map(|pod| pod.v4).collect();
        let shown = packets.all.iter().any(|p| {
            pods.iter()
                .any(|pod| p.from.ip() == *pod || p.to.ip() == *pod)
        });
        assert!(!shown, "a pod's address on the transit");
    }
    Ok(())
}

#[test]
fn a_gateway_is_found_by_either_address_and_by_name() -> Result<()> {
    for named in [Named::Address6, Named::Hostname] {
        let scene = Scene::set(named)?;
        let seen = echo(
            scene.pod("client-west-0"),
            vips(SERVER_EAST, ECHO)[0],
            "found",
        )?;
        let line = scene.outbound(WEST, &seen)?;
        let east = &scene.net.sides[EAST];
        let outside: SocketAddr = line.field("dst.addr").parse()?;
        let wanted: &[std::net::IpAddr] = match named {
            Named::Address6 => &[east.outside6.into()],
            _ => &[east.outside4.into(), east.outside6.into()],
        };
        assert!(wanted.contains(&outside.ip()), "{}", line.text);
        echo(
            scene.pod("client-east-0"),
            vips(SERVER_WEST, ECHO)[1],
            "found",
        )?;
    }
    Ok(())
}

#[test]
fn a_service_of_both_networks_is_served_by_the_near_one_while_that_can() -> Result<()> {
    let scene = Scene::set(Named::Address)?;
    let client = scene.pod("client-west-0");
    let served = |times: usize| -> Result<BTreeSet<String>> {
        let name = |_| Ok(get(client, vips(BOTH, HTTP)[0], "/")?["app"].to_string());
        (0..times).map(name).collect()
    };
    let names = |all: &[&str]| all.iter().map(|name| format!("\"{name}\"")).collect();
    // each is as good as the other: one in 2^24 sees only one of them
    let all: BTreeSet<String> = names(&["server-east-0", "server-west-0"]);
    assert_eq!(served(25)?, all);
    let balancer = LoadBalancer {
        preferences: vec!["Network".to_owned()],
        mode: "Failover".to_owned(),
        health: "OnlyHealthy".to_owned(),
    };
    let prefer = |model: &mut Model| {
        if let Some(service) = model.service_mut("both") {
            service.load_balancer = Some(balancer);
        }
    };
    scene.edit(WEST, prefer, |dump| {
        let mut services = dump["services"].as_array().into_iter().flatten();
        services.any(|one| one["name"] == "both" && one["loadBalancer"].is_object())
    })?;
    assert_eq!(served(10)?, names(&["server-west-0"]));
    let near = |model: &mut Model, down: bool| {
        if let Some(pod) = model.pod_mut("server-west-0") {
            pod.unhealthy = down;
        }
    };
    let shown = |dump: &Value, status: &str| {
        let mut pods = dump["workloads"].as_array().into_iter().flatten();
        pods.any(|one| one["name"] == "server-west-0" && one["status"] == status)
    };
    scene.edit(
        WEST,
        |model| near(model, true),
        |dump| shown(dump, "Unhealthy"),
    )?;
    assert_eq!(served(10)?, names(&["server-east-0"]));
    scene.edit(
        WEST,
        |model| near(model, false),
        |dump| shown(dump, "Healthy"),
    )?;
    assert_eq!(served(10)?, names(&["server-west-0"]));
    Ok(())
}

#[test]
fn order_ends_and_large_transfers_survive_both_tunnels() -> Result<()> {
    let scene = Scene::set(Named::Address)?;
    let bytes = LARGE.to_string();
    for (from, service, side) in [
        ("client-west-0", SERVER_EAST, EAST),
        ("client-east-0", SERVER_WEST, WEST),
    ] {
        let client = scene.pod(from);
        let at = |port| vips(service, port)[0].to_string();
        let good = |args: &[&str]| -> Result<Value> {
            let said = client.podapp(args)?;
            ensure!(said["ok"] == true, "{from}: {args:?}: {said}");
            Ok(said)
        };
        let said = good(&["greet", "--to", &at(GREET), "--bytes", "70000"])?;
        let wanted = format!("heard 70000 {}", said["hash"].as_str().unwrap_or_default());
        assert_eq!(said["rest"], wanted, "{from}: {said}");
        // the server's end comes first, and what the client then says still arrives
        let args = [
            "greet",
            "--to",
            &at(GREET_AND_END),
            "--bytes",
            "70000",
            "--end-first",
        ];
        let said = good(&args)?;
        assert_eq!(said["rest"], "", "{from}: {said}");
        let heard = format!("heard 70000 {}", said["hash"].as_str().unwrap_or_default());
        let app = scene.end_first(side);
        app.wait_line(SOON, "what it heard", |line| line == heard)?;
        let said = good(&["transfer", "--to", &at(ECHO), "--bytes", &bytes])?;
        assert_eq!(said["bytes"], LARGE, "{from}: {said}");
    }
    for daemon in &scene.daemons {
        let failed = daemon
            .metrics()?
            .sum("istio_tcp_connections_failed_total", &[]);
        assert_eq!(failed, 0.0, "{}", daemon.tail());
    }
    Ok(())
}

#[test]
fn to_a_waypoint_with_its_policy_for_the_true_client() -> Result<()> {
    let scene = Scene::set(Named::Hostname)?;
    let (client, other) = (scene.pod("client-west-0"), scene.pod("other-west-0"));
    let (server, waypoint) = (scene.pod("fronted-0"), scene.pod("waypoint-0"));
    for to in vips(FRONTED, HTTP) {
        for (pod, path, wanted) in [
            (client, "public/x", "200"),
            (other, "public/x", "200"),
            (client, "api/x", "200"),
            (other, "api/x", "403"),
        ] {
            let url = format!("http://{to}/{path}");
            let (code, said) = pod.curl(&["-i", &url])?;
            assert_eq!(code, 0, "{}: {url}: {said}", pod.name);
            let status = said.split(' ').nth(1).unwrap_or_default();
            assert_eq!(status, wanted, "{}: {url}: {said}", pod.name);
            let front = format!("x-waypoint-cluster: {}", waypoint.name);
            assert!(said.contains(&front), "{}: {url}: {said}", pod.name);
            assert_eq!(
                said.contains(&server.name),
                wanted == "200",
                "{url}: {said}"
            );
        }
    }
    let identity = client.identity();
    let asked = |entry: &Value| entry["source"] == identity.as_str();
    scene
        .waypoint
        .wait_access("hbone", "a tunnel of the client", asked)?;
    // bytes go through it as well, many of them
    let large = LARGE.to_string();
    let args = [
        "transfer",
        "--to",
        &vips(FRONTED, ECHO)[1].to_string(),
        "--bytes",
        &large,
    ];
    let said = client.podapp(&args)?;
    assert_eq!(
        (&said["ok"], &said["bytes"]),
        (&true.into(), &LARGE.into()),
        "{said}"
    );
    // its certificate is all that it says of itself
    at_rest(&scene.daemons[EAST])?;
    let after = scene.lines(EAST);
    let seen = echo(client, vips(FRONTED, ECHO)[0], "opaque")?;
    let line = scene.outbound(WEST, &seen)?;
    let authority = format!("fronted.shop.svc.cluster.local:{ECHO}");
    for (key, value) in [
        ("dst.hbone_addr", authority.as_str()),
        ("dst.service", "fronted.shop.svc.cluster.local"),
        ("dst.identity", &waypoint.identity()),
        ("error", ""),
    ] {
        assert_eq!(line.field(key), value, "{key}: {}", line.text);
    }
    let line = scene.inbound(EAST, after)?;
    assert_eq!(
        line.field("src.identity"),
        waypoint.identity(),
        "{}",
        line.text
    );
    assert_eq!(line.field("dst.workload"), server.name, "{}", line.text);
    Ok(())
}

#[test]
fn many_connections_share_one_tunnel_to_the_gateway() -> Result<()> {
    let scene = Scene::set_with(Named::Address, &[("ZTUNNEL_WORKER_THREADS", "1")])?;
    let gateway = &scene.gateways[EAST];
    let stop = scene.net.sides[WEST].world.dir().join("stop");
    let stat = |name: &str| gateway.stat(&format!("http.hbone_terminate.{name}"));
    let many = || {
        let app = many(scene.pod("client-west-0"), &stop)?;
        app.wait_line(MANY_MAX, "all open", |line| line.starts_with("open"))?;
        anyhow::Ok(app)
    };
    let mut first = many()?;
    assert_eq!(stat("downstream_rq_active")?, MANY as u64, "streams");
    assert_eq!(stat("downstream_cx_total")?, 1, "tunnels to the gateway");
    // a tunnel has room for a hundred, then there is another
    let mut second = many()?;
    let all = 2 * MANY as u64;
    assert_eq!(stat("downstream_rq_active")?, all, "streams");
    assert_eq!(stat("downstream_cx_total")?, 2, "tunnels to the gateway");
    // each has a tunnel of its own inside, and so a connection to the pod
    let to_pods = gateway.ask("GET", "/stats?filter=upstream_cx_active")?;
    let to_pods = to_pods
        .lines()
        .filter_map(|line| line.rsplit_once(": ")?.1.parse::<u64>().ok());
    assert_eq!(to_pods.sum::<u64>(), all, "tunnels to the pods");
    std::fs::write(&stop, "")?;
    for app in [&mut first, &mut second] {
        let (_, said) = app.finish(MANY_MAX)?;
        let said = said.unwrap_or_default();
        assert_eq!(said["cut"], serde_json::json!([]), "{said}");
    }
    until(SOON, "no stream left", || {
        Ok((stat("downstream_rq_active")? == 0).then_some(()))
    })?;
    echo(
        scene.pod("client-west-0"),
        vips(SERVER_EAST, ECHO)[0],
        "one more",
    )?;
    let failed = |side: usize| -> Result<f64> {
        Ok(scene.daemons[side]
            .metrics()?
            .sum("istio_tcp_connections_failed_total", &[]))
    };
    assert_eq!((failed(WEST)?, failed(EAST)?), (0.0, 0.0));
    Ok(())
}

/// Many connections to the east's server, until the file exists.
fn many(client: &Pod, stop: &Path) -> Result<App> {
    let podapp = place::binary("podapp")?.to_string_lossy().into_owned();
    let (to, count) = (vips(SERVER_EAST, ECHO)[0].to_string(), MANY.to_string());
    let stop = stop.to_string_lossy();
    client.spawn(&[
        &podapp,
        "many",
        "--to",
        &to,
        "--count",
        &count,
        "--stop-file",
        &stop,
    ])
}
