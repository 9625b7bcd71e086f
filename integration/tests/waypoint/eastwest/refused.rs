//! What does not cross: wrong identities on either leg, nothing to expect, nobody there, policy, pods by their address.

use std::net::SocketAddr;

use anyhow::Result;
use integration::model::TRUST_DOMAIN;
use integration::world::networks::Named;
use integration::{AccessLine, Model, Policy, until};
use serde_json::Value;

use super::scene::{EAST, ECHO, SOON, Scene, WEST, connect, echo, vips};
use crate::ground::at_rest;

/// The service in the east that the clients dial.
const SERVICE: &str = "server-east";
/// What is said of a peer that is another than it should be.
const SAN: &str = "peer did not present the expected SAN";
/// Who nobody is.
const NOBODY: &str = "spiffe://cluster.local/ns/shop/sa/nobody";

fn failed(scene: &Scene, side: usize, labels: &[(&str, &str)]) -> Result<f64> {
    Ok(scene.daemons[side]
        .metrics()?
        .sum("istio_tcp_connections_failed_total", labels))
}

/// Dials the service, is refused, and returns what the access log of the client's daemon says.
fn refused(scene: &Scene) -> Result<AccessLine> {
    let client = scene.pod("client-west-0");
    let after = scene.lines(WEST);
    let seen = connect(client, vips(20, ECHO)[0], &["--send", "never"])?;
    assert_ne!(seen["received"], "never", "{seen}");
    let daemon = &scene.daemons[WEST];
    until(SOON, "the refusal in the access log", || {
        let mut lines = daemon.access().into_iter().skip(after);
        Ok(lines.find(|line| line.is("outbound") && !line.field("error").is_empty()))
    })
}

/// Sets the names of the service's identities in the west.
fn expect(scene: &Scene, names: &[&str]) -> Result<()> {
    let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
    let wanted = names.clone();
    let change = |model: &mut Model| {
        if let Some(service) = model.service_mut(SERVICE) {
            service.subject_alt_names = names;
        }
    };
    scene.edit(WEST, change, |dump| sans(dump) == wanted)
}

fn sans(dump: &Value) -> Vec<String> {
    let services = dump["services"].as_array().into_iter().flatten();
    let mut mine = services.filter(|service| service["name"] == SERVICE);
    let list = mine
        .next()
        .map(|service| service["subjectAltNames"].clone());
    let list = list
        .and_then(|list| list.as_array().cloned())
        .unwrap_or_default();
    list.iter()
        .filter_map(|name| name.as_str().map(str::to_owned))
        .collect()
}

#[test]
fn only_the_identities_that_are_told_are_trusted_on_either_leg() -> Result<()> {
    let scene = Scene::set(Named::Address)?;
    let (client, server) = (scene.pod("client-west-0"), scene.pod("server-east-0"));
    let right = server.identity();
    echo(client, vips(20, ECHO)[0], "before")?;
    // whoever answers behind the gateway is none of those who may
    expect(&scene, &[NOBODY])?;
    at_rest(&scene.daemons[EAST])?;
    let after = scene.lines(EAST);
    let line = refused(&scene)?;
    assert_eq!(line.message, "connection complete", "{}", line.text);
    assert!(line.field("error").contains(SAN), "{}", line.text);
    assert_eq!(failed(&scene, WEST, &[("response_flags", "CONNECT")])?, 1.0);
    assert!(
        scene.daemons[EAST]
            .access()
            .iter()
            .skip(after)
            .all(|line| line.message != "connection complete")
    );
    // nobody is said to be right there
    expect(&scene, &[])?;
    let line = refused(&scene)?;
    assert_eq!(
        (line.message.as_str(), line.level.as_str()),
        ("connection failed", "warn"),
        "{}",
        line.text
    );
    let why = "no identity to expect behind a network gateway: server-east.shop.svc.cluster.local has no subject alternative names";
    assert_eq!(line.field("error"), why, "{}", line.text);
    // one of several is enough
    expect(&scene, &[NOBODY, &right])?;
    echo(client, vips(20, ECHO)[0], "again")?;
    // the gateway itself is another than the one that is told
    let dump = |account: &'static str| move |dump: &Value| account_of_gateway(dump) == account;
    scene.edit(WEST, |model| gateway_is(model, "nobody"), dump("nobody"))?;
    let requests = scene.gateways[EAST].access().len();
    let line = refused(&scene)?;
    assert!(line.field("error").contains(SAN), "{}", line.text);
    assert_eq!(
        line.field("dst.addr"),
        format!("{}:15008", scene.net.sides[EAST].outside4)
    );
    assert_eq!(
        scene.gateways[EAST].access().len(),
        requests,
        "nothing was asked of the gateway"
    );
    scene.edit(
        WEST,
        |model| gateway_is(model, "eastwest-east"),
        dump("eastwest-east"),
    )?;
    echo(client, vips(20, ECHO)[0], "in the end")?;
    Ok(())
}

fn gateway_is(model: &mut Model, account: &str) {
    for gateway in model
        .others
        .iter_mut()
        .filter(|other| other.name.starts_with("eastwest"))
    {
        account.clone_into(&mut gateway.service_account);
    }
}

fn account_of_gateway(dump: &Value) -> &str {
    let workloads = dump["workloads"].as_array().into_iter().flatten();
    let mut gateways = workloads.filter(|one| one["name"] == "eastwest-east-0");
    let account = gateways
        .next()
        .and_then(|one| one["serviceAccount"].as_str());
    account.unwrap_or_default()
}

#[test]
fn the_far_side_authorizes_the_true_client() -> Result<()> {
    let scene = Scene::set(Named::Hostname)?;
    let (client, other) = (scene.pod("client-west-0"), scene.pod("other-west-0"));
    let to = vips(20, ECHO)[0];
    for pod in [client, other] {
        echo(pod, to, "before")?;
    }
    let account = &client.service_account;
    let matches = format!("{{principals: [!Exact \"{TRUST_DOMAIN}/ns/shop/sa/{account}\"]}}");
    let policy = Policy::new("Allow", "shop", "one-of-them", &[&matches]);
    scene.edit(EAST, |model| model.policies.push(policy), |_| true)?;
    echo(client, to, "allowed")?;
    for daemon in &scene.daemons {
        at_rest(daemon)?;
    }
    let after = (scene.lines(WEST), scene.lines(EAST));
    let seen = connect(other, to, &["--send", "never"])?;
    assert_ne!(seen["received"], "never", "{seen}");
    let line = scene.inbound(EAST, after.1)?;
    let why = "connection closed due to policy rejection: allow policies exist, but none allowed";
    assert_eq!(line.field("error"), why, "{}", line.text);
    assert_eq!(
        line.field("src.identity"),
        other.identity(),
        "{}",
        line.text
    );
    let identity = other.identity();
    let denied = [
        ("reporter", "destination"),
        ("response_flags", "DENY"),
        ("source_principal", &identity),
    ];
    assert_eq!(failed(&scene, EAST, &denied)?, 1.0);
    let line = scene.outbound(WEST, &seen)?;
    assert_eq!(
        line.field("error"),
        "http status: 401 Unauthorized",
        "{}",
        line.text
    );
    let flagged = [("reporter", "source"), ("response_flags", "CONNECT")];
    assert_eq!(failed(&scene, WEST, &flagged)?, 1.0);
    assert!(after.0 < scene.lines(WEST));
    Ok(())
}

#[test]
fn a_gateway_that_is_gone_or_knows_no_such_host_is_an_error_until_it_does() -> Result<()> {
    let mut scene = Scene::set(Named::Address)?;
    let client = scene.pod("client-west-0").clone();
    let to = vips(20, ECHO)[0];
    echo(&client, to, "before")?;
    scene.gateways[EAST].kill()?;
    let line = refused(&scene)?;
    assert!(!line.field("error").is_empty(), "{}", line.text);
    assert!(
        failed(
            &scene,
            WEST,
            &[("reporter", "source"), ("response_flags", "CONNECT")]
        )? >= 1.0
    );
    scene.gateways[EAST].restart()?;
    // the dead tunnel is not asked again
    echo(&client, to, "after")?;
    // a host name that the gateway has no route for
    scene.edit(
        WEST,
        |model| {
            if let Some(service) = model.service_mut(SERVICE) {
                "unknown.shop.svc.cluster.local".clone_into(&mut service.host);
            }
        },
        |dump| {
            let mut services = dump["services"].as_array().into_iter().flatten();
            services.any(|service| service["hostname"] == "unknown.shop.svc.cluster.local")
        },
    )?;
    let line = refused(&scene)?;
    assert_eq!(
        line.field("error"),
        "http status: 404 Not Found",
        "{}",
        line.text
    );
    let flagged = [
        ("response_flags", "CONNECT"),
        ("destination_service", "unknown.shop.svc.cluster.local"),
    ];
    assert_eq!(failed(&scene, WEST, &flagged)?, 1.0);
    Ok(())
}

#[test]
fn a_pod_of_another_network_is_not_reached_by_its_address() -> Result<()> {
    let scene = Scene::set(Named::Address)?;
    let client = scene.pod("client-west-0");
    let wire = scene.net.capture(EAST)?;
    // the address that a server of the east has is a server's of the west, too: the one here is meant
    let (near, far) = (scene.pod("server-west-0"), scene.pod("server-east-0"));
    assert_eq!(near.v4, far.v4);
    let (code, body) = client.curl(&[&format!("http://{}/", far.at(8080))])?;
    assert_eq!(code, 0, "{body}");
    assert!(body.contains("\"app\":\"server-west-0\""), "{body}");
    // one that is nobody's here is nobody's
    let lonely = scene.net.sides[EAST].gateway.v4;
    let seen = connect(
        client,
        SocketAddr::new(lonely.into(), ECHO),
        &["--timeout-ms", "1500"],
    )?;
    assert_eq!(seen["ok"], false, "{seen}");
    let packets = wire.stop()?;
    let tcp: Vec<_> = packets.all.iter().filter(|packet| packet.tcp).collect();
    assert!(tcp.is_empty(), "on the transit: {tcp:?}");
    Ok(())
}
