//! Settings whose effect only the kernel or a peer can show.

use std::time::Duration;

use anyhow::Result;
use integration::{Daemon, Layout, until};

use crate::support::{Mesh, SOON, connect, echo, hold, local, world};

/// Daemons with these settings, nothing is labelled.
fn with(env: &[(&str, &str)]) -> Result<Mesh> {
    let world = world(&Layout::standard())?;
    let daemons = world.nodes().iter().map(|node| Daemon::start(node, env));
    Ok(Mesh {
        daemons: daemons.collect::<Result<_>>()?,
        world,
    })
}

#[test]
fn with_ipv6_off_it_is_refused_and_never_passes_by() -> Result<()> {
    let mesh = with(&[("IPV6_ENABLED", "false")])?;
    mesh.label("shop", true)?;
    let (client, server, outsider) = (
        mesh.pod("client-0"),
        mesh.pod("server-0"),
        mesh.pod("outsider-0"),
    );
    let (_a, _b) = (server.serve(&["echo"])?, outsider.serve(&["echo"])?);
    echo(client, server.at(9000), &[])?;
    for to in [server.at6(9000), outsider.at6(9000)] {
        let seen = connect(client, to, &["--send", "clear"])?;
        assert_ne!(seen["received"], "clear", "{to}: {seen}");
        let line = mesh.daemons[0].wait_access("the refusal", |line| {
            line.is("outbound") && line.field("dst.addr") == to.to_string()
        })?;
        let error = line.field("error");
        assert_eq!(
            error, "IPv6 is switched off by IPV6_ENABLED",
            "{}",
            line.text
        );
    }
    // and towards a pod of the mesh
    let seen = connect(outsider, server.at6(9000), &["--send", "clear"])?;
    assert_ne!(seen["received"], "clear", "{seen}");
    Ok(())
}

#[test]
fn without_source_preservation_the_application_sees_the_pods_own_address() -> Result<()> {
    let mesh = with(&[("ENABLE_ORIG_SRC", "false")])?;
    mesh.label("shop", true)?;
    let (client, server, outsider) = (
        mesh.pod("client-0"),
        mesh.pod("server-0"),
        mesh.pod("outsider-0"),
    );
    let _http = server.serve(&["http"])?;
    for pod in [client, outsider] {
        let (status, body) = pod.curl(&[&format!("http://{}/", server.at(8080))])?;
        assert_eq!(status, 0, "{body}");
        let own = format!("\"peer\":\"{}:", server.v4);
        assert!(body.contains(&own), "{}: {body}", pod.name);
    }
    Ok(())
}

/// The timers of established connections in a pod, as `ss -o` tells them, that end within `range` seconds.
fn keepalives(timers: &str, range: std::ops::RangeInclusive<u64>) -> usize {
    let seconds = timers
        .split("timer:(keepalive,")
        .skip(1)
        .filter_map(|rest| {
            let (text, _) = rest.split_once(',')?;
            match text.split_once("min") {
                Some((minutes, seconds)) => {
                    let seconds = seconds.trim_end_matches("sec").parse().unwrap_or(0);
                    Some(minutes.parse::<u64>().ok()? * 60 + seconds)
                }
                None => text.trim_end_matches("sec").parse().ok(),
            }
        });
    seconds.filter(|seconds| range.contains(seconds)).count()
}

#[test]
fn keepalive_is_set_on_accepted_and_dialled_connections() -> Result<()> {
    for (env, range, wanted) in [
        (&[("KEEPALIVE_TIME", "600s")][..], 500..=600, 2),
        (&[("KEEPALIVE_ENABLED", "false")], 1..=10_000, 0),
    ] {
        let mesh = with(env)?;
        mesh.label("shop", true)?;
        let (client, server) = (mesh.pod("client-0"), mesh.pod("server-0"));
        let _echo = server.serve(&["echo"])?;
        let _held = hold(client, server.at(9000))?;
        // the client's pod has what was accepted from the application, and the tunnel
        let settled = until(SOON, "keepalive timers", || {
            let timers = client.read(&["ss", "-tnoH", "state", "established"])?;
            Ok((keepalives(&timers, range.clone()) == wanted).then_some(()))
        });
        if let Err(error) = settled {
            panic!("{env:?}: {error}: {}", client.read(&["ss", "-tno"])?);
        }
    }
    Ok(())
}

#[test]
fn inline_state_and_an_endpoint_by_host_name() -> Result<()> {
    let world = world(&Layout::standard())?;
    let (client, outsider) = (world.pod("client-0"), world.pod("outsider-0"));
    let _echo = outsider.serve(&["echo"])?;
    world.model().label("shop", true);
    world.publish_enrolment()?;
    // an address is a name that resolves to itself, wherever the machine's name servers are
    let state = world
        .model()
        .state(&["client-0".to_owned(), "server-0".to_owned()]);
    let by_name = format!(
        "workloads:\n- {{uid: by-name, name: db, namespace: shop, workloadIps: [], hostname: '{}', \
         trustDomain: cluster.local, services: {{shop/db.shop: {{80: 9000}}}}}}\n",
        outsider.v4
    );
    let service = "\nservices:\n- {name: db, namespace: shop, hostname: db.shop, vips: [/10.96.0.77], ports: {80: 9000}}\n";
    let state = state
        .replace("workloads:\n", &by_name)
        .replace("\nservices:\n", service);
    // an empty value takes the variable away
    let env = [("LOCAL_XDS_PATH", ""), ("LOCAL_XDS", state.as_str())];
    let daemon = Daemon::start(world.node(0), &env)?;
    world.settled_enrolment(&[&daemon])?;
    let seen = echo(client, "10.96.0.77:80".parse()?, &[])?;
    let from = local(&seen)?;
    let line = daemon.wait_access("the connection", |line| line.field("src.addr") == from)?;
    assert_eq!(
        (line.field("dst.addr"), line.field("dst.service")),
        (outsider.at(9000).to_string().as_str(), "db.shop"),
        "{}",
        line.text
    );
    let name = outsider.v4.to_string();
    let labels = [("hostname", name.as_str()), ("source_workload", "client")];
    until(Duration::from_secs(5), "the count", || {
        let count = daemon.metrics()?.sum("istio_on_demand_dns_total", &labels);
        Ok((count == 1.0).then_some(()))
    })
}
