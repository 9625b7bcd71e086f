//! All ways in which a waypoint can be named, and who goes past one by right.

use anyhow::{Result, ensure};
use integration::model::Gateway;
use integration::{AccessLine, Pod, PodPlan, Service};

use crate::ground::{Ground, HOST, HTTP, How, VIP, VIP6, answered, at_rest, get, vip, worked};

/// Connections of the weighted choice.
const CONNECTIONS: &str = "200";
/// The waypoints' own service.
const WAYPOINT_VIP: &str = "10.96.0.20";
const WAYPOINT_HOST: &str = "waypoint.shop.svc.cluster.local";

/// The outbound line of a request, which is recognised by what the application saw of it.
fn last_outbound(ground: &Ground, from: u64, host: &str) -> Result<AccessLine> {
    let line = ground.near().wait_log(
        from,
        &["connection complete", "direction=\"outbound\"", host],
    )?;
    AccessLine::parse(&line).ok_or_else(|| anyhow::anyhow!("no access line: {line}"))
}

/// A request that goes through the waypoint, by what the application was told.
fn through(pod: &Pod, url: &str, waypoint: &str) -> Result<()> {
    let answer = answered(pod, url, &[])?;
    let seen = &answer.body["headers"]["x-waypoint"];
    ensure!(*seen == waypoint, "{url} passed {seen}, not {waypoint}");
    Ok(())
}

fn ready(how: How) -> Result<Ground> {
    let mut ground = Ground::raise(how)?;
    ground.serve_http()?;
    Ok(ground)
}

/// A service of waypoints.
fn service_of(names: &[&str]) -> Service {
    Service {
        name: "waypoint".to_owned(),
        namespace: "shop".to_owned(),
        vips: vec![WAYPOINT_VIP.parse().expect("an address")],
        ports: vec![(15008, 15008)],
        pods: names.iter().map(|&name| name.to_owned()).collect(),
        ..Service::default()
    }
}

#[test]
fn a_waypoint_is_found_by_address_by_service_address_and_by_host_name() -> Result<()> {
    let ground = ready(How::Ebpf)?;
    let _envoy = ground.envoy("waypoint-0")?;
    ground.edit(|model| model.services.push(service_of(&["waypoint-0"])))?;
    let (client, waypoint) = (ground.pod("client-0"), ground.pod("waypoint-0"));
    for gateway in [
        Gateway::at(waypoint.v4),
        Gateway::at(waypoint.v6),
        Gateway::at(WAYPOINT_VIP.parse::<std::net::IpAddr>()?),
        Gateway::named("shop", WAYPOINT_HOST),
    ] {
        ground.before_service(Some(gateway.clone()))?;
        for host in [VIP.to_owned(), format!("[{VIP6}]")] {
            through(client, &format!("http://{host}/api/a"), "waypoint-0")
                .map_err(|why| why.context(format!("by {}", gateway.destination)))?;
        }
    }
    // a workload with a host name of its own is found by that
    ground.edit(|model| {
        model.services.retain(|service| service.name != "waypoint");
        if let Some(pod) = model.pod_mut("waypoint-0") {
            pod.hostname = "wp.example.org".to_owned();
        }
    })?;
    ground.before_service(Some(Gateway::named("shop", "wp.example.org")))?;
    through(client, &format!("http://{VIP}/api/a"), "waypoint-0")
}

#[test]
fn a_workload_waypoint_stands_before_the_pods_address_only() -> Result<()> {
    let ground = ready(How::Ebpf)?;
    let (client, server) = (ground.pod("client-0"), ground.pod("server-0"));
    let mut waypoint = ground.waypoint();
    waypoint
        .http
        .extend([server.at(8080).to_string(), server.at6(8080).to_string()]);
    waypoint.v2 = waypoint.v1;
    let envoy = ground.envoy_with("waypoint-0", &waypoint)?;
    let url = format!("http://{}/api/a", server.at(8080));

    // the service's waypoint is not the pod's
    let from = ground.near().log_len();
    let answer = answered(client, &url, &[])?;
    assert_eq!(
        answer.body["headers"]["x-waypoint"],
        serde_json::Value::Null
    );
    let line = last_outbound(&ground, from, &server.at(8080).to_string())?;
    assert_eq!(
        line.field("dst.addr"),
        server.at(15008).to_string(),
        "{}",
        line.text
    );

    // and the pod's is not the service's
    let gateway = Gateway::at(ground.pod("waypoint-0").v4);
    ground.edit(|model| {
        if let Some(service) = model.service_mut("server") {
            service.waypoint = None;
            service.pods = vec!["server-0".to_owned()];
        }
        if let Some(pod) = model.pod_mut("server-0") {
            pod.waypoint = Some(gateway);
        }
    })?;
    through(client, &url, "waypoint-0")?;
    through(
        client,
        &format!("http://{}/api/a", server.at6(8080)),
        "waypoint-0",
    )?;
    let entry = envoy.wait_access("hbone", "the pod's authority", |entry| {
        entry["authority"] == server.at(8080).to_string()
    })?;
    assert_eq!(entry["source"], client.identity().as_str(), "{entry}");
    let answer = answered(client, &format!("http://{VIP}/api/a"), &[])?;
    assert_eq!(
        answer.body["headers"]["x-waypoint"],
        serde_json::Value::Null
    );
    Ok(())
}

#[test]
fn a_waypoint_goes_straight_to_what_it_stands_before() -> Result<()> {
    let mut ground = ready(How::Ebpf)?;
    // a waypoint that is itself in the mesh
    let gate = ground.world.add_pod(&PodPlan::new("shop", "gate-0", 0))?;
    ground.world.publish_enrolment()?;
    let all: Vec<_> = ground.daemons.iter().collect();
    ground.world.settled_enrolment(&all)?;
    ground.edit(|model| {
        if let Some(pod) = model.pod_mut("server-0") {
            pod.waypoint = Some(Gateway::at(gate.v4));
        }
    })?;
    assert!(ground.captured("gate-0")?);
    let server = ground.pod("server-0");
    let answer = answered(&gate, &format!("http://{}/a", server.at(8080)), &[])?;
    let peer = answer.body["peer"].as_str().unwrap_or_default();
    assert!(peer.starts_with(&format!("{}:", gate.v4)), "{peer}");
    let line = ground.far().wait_access("the gate's connection", |line| {
        line.is("inbound") && line.field("src.workload") == "gate-0"
    })?;
    assert_eq!(line.field("src.identity"), gate.identity(), "{}", line.text);
    assert_eq!(line.field("error"), "", "{}", line.text);
    // others do not: the gate's daemon is asked, and finds nothing at that port there
    at_rest(ground.near())?;
    let from = ground.near().log_len();
    let answer = get(
        ground.pod("client-0"),
        &format!("http://{}/a", server.at(8080)),
        &[],
    )?;
    assert_eq!(answer.status, 0, "{}", answer.text);
    let line = last_outbound(&ground, from, &server.at(8080).to_string())?;
    assert_eq!(line.field("dst.workload"), "gate-0", "{}", line.text);
    Ok(())
}

#[test]
fn connections_are_shared_between_waypoints_by_weight() -> Result<()> {
    let ground = ready(How::Ebpf)?;
    let (first, second) = (ground.envoy("waypoint-0")?, ground.envoy("canary-0")?);
    let gateway = |name: &str| Gateway::at(ground.pod(name).v4);
    let shares = |weights: [u32; 2]| {
        ground.edit(|model| {
            if let Some(service) = model.service_mut("server") {
                service.waypoint = None;
                let names = ["waypoint-0", "canary-0"].map(gateway);
                service.weighted_waypoints = names.into_iter().zip(weights).collect();
            }
        })
    };
    let passed =
        |envoy: &integration::Envoy| envoy.stat("http.hbone_terminate.downstream_rq_total");
    let to = vip(HTTP).to_string();
    let load = [
        "load",
        "--to",
        &to,
        "--http",
        "/public/a",
        "--client-ends",
        "--count",
        CONNECTIONS,
        "--threads",
        "4",
    ];
    shares([3, 1])?;
    let seen = ground.pod("client-0").podapp(&load)?;
    assert_eq!(seen["failed"], 0, "{seen}");
    let (many, few) = (passed(&first)?, passed(&second)?);
    assert_eq!((many + few).to_string(), CONNECTIONS);
    // binomial with p = 0.25: 50 expected, one standard deviation is 6.1; beyond six a billion runs see one
    assert!(
        (14..=86).contains(&few),
        "{few} of {CONNECTIONS} for a quarter"
    );
    shares([0, 1])?;
    let seen = ground.pod("client-0").podapp(&load)?;
    assert_eq!(seen["failed"], 0, "{seen}");
    assert_eq!(passed(&first)?, many, "a weight of 0 is never chosen");
    Ok(())
}

#[test]
fn a_waypoint_serves_pods_that_an_agent_redirects() -> Result<()> {
    smoke(How::External)
}

#[test]
fn a_waypoint_serves_a_mesh_under_a_control_plane() -> Result<()> {
    smoke(How::Istiod)
}

#[test]
fn a_rule_for_ingress_gateways_changes_nothing_for_pods() -> Result<()> {
    let ground = ready(How::Istiod)?;
    let _envoy = ground.envoy("waypoint-0")?;
    let client = ground.pod("client-0");
    let rule = |with_waypoint: bool| {
        ground.edit(|model| {
            let gateway = Gateway::at(ground.pod("waypoint-0").v4);
            if let Some(service) = model.service_mut("server") {
                service.ingress_use_waypoint = true;
                service.waypoint = with_waypoint.then_some(gateway);
            }
        })
    };
    rule(true)?;
    through(client, &format!("http://{VIP}/api/a"), "waypoint-0")?;
    rule(false)?;
    let answer = answered(client, &format!("http://{VIP}/api/a"), &[])?;
    assert_eq!(
        answer.body["headers"]["x-waypoint"],
        serde_json::Value::Null
    );
    Ok(())
}

/// Allowed and denied requests, bytes, both versions of addresses, and what both logs say.
fn smoke(how: How) -> Result<()> {
    let mut ground = ready(how)?;
    ground.serve("server-0", &["echo"])?;
    let _envoy = ground.envoy("waypoint-0")?;
    let (client, intruder) = (ground.pod("client-0"), ground.pod("intruder-0"));
    for host in [VIP.to_owned(), format!("[{VIP6}]")] {
        through(client, &format!("http://{host}/api/a"), "waypoint-0")?;
        let denied = get(intruder, &format!("http://{host}/api/a"), &[])?;
        assert_eq!(denied.status, 403, "{}", denied.text);
    }
    let to = vip(crate::ground::ECHO).to_string();
    worked(client, &["transfer", "--to", &to, "--bytes", "1000000"])?;
    let waypoint = ground.pod("waypoint-0");
    let near = ground.near().wait_access("the client's line", |line| {
        line.is("outbound") && line.field("bytes_sent") == "1000000"
    })?;
    let far = ground.far().wait_access("the server's line", |line| {
        line.is("inbound") && line.field("bytes_recv") == "1000000"
    })?;
    assert_eq!(
        near.field("dst.identity"),
        waypoint.identity(),
        "{}",
        near.text
    );
    assert_eq!(near.field("dst.service"), HOST, "{}", near.text);
    assert_eq!(
        far.field("src.identity"),
        waypoint.identity(),
        "{}",
        far.text
    );
    assert_eq!(far.field("dst.workload"), "server-0", "{}", far.text);
    Ok(())
}
