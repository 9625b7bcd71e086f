//! Whoever stands behind a gateway and is no peer: it babbles, falls silent, or hangs up. A reason each, and nothing kept.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::model::{PodRecord, Service};
use integration::world::networks::Named;
use integration::{Model, until};

use super::scene::{EAST, ECHO, SOON, STRANGERS, Scene, WEST, connect, echo, vips};

/// How long the daemon waits for a handshake, and some.
const HANDSHAKE_MAX: Duration = Duration::from_secs(14);

/// Adds a service whose one endpoint is behind the east's gateway, for each of the strangers there.
fn strangers(scene: &Scene, model: &mut Model) {
    for (number, (name, _)) in (60..).zip(STRANGERS) {
        let mut record = PodRecord::stranger("shop", &format!("{name}-0"), &[]);
        "east".clone_into(&mut record.network);
        record.network_gateway = Some(scene.net.sides[EAST].reference(Named::Address));
        model.services.push(Service {
            name: name.to_owned(),
            namespace: "shop".to_owned(),
            vips: vips(number, 0).iter().map(|vip| vip.ip()).collect(),
            network: "west".to_owned(),
            ports: vec![(ECHO, ECHO)],
            subject_alt_names: vec![record.identity()],
            pods: vec![record.name.clone()],
            ..Service::default()
        });
        model.others.push(record);
    }
}

#[test]
fn whoever_is_no_peer_behind_a_gateway_gets_nothing_and_costs_nothing() -> Result<()> {
    let scene = Scene::set(Named::Address)?;
    scene.edit(WEST, |model| strangers(&scene, model), |_| true)?;
    let (client, daemon) = (scene.pod("client-west-0"), &scene.daemons[WEST]);
    let silent = scene
        .pod("server-east-0")
        .serve(&["dns", "--listen", "[::]:53"])?;
    let gateway = format!("{}:15008", scene.net.sides[EAST].outside4);
    echo(client, vips(20, ECHO)[0], "first")?;
    let fds = daemon.fds();
    // a gateway that cannot connect ends the stream, and its reset may come before or after the end of the data
    let reasons = [
        "tls handshake eof",
        "timed out",
        "unexpected handshake message",
        "",
    ];
    for (number, ((name, _), reason)) in (60..).zip(STRANGERS.into_iter().zip(reasons)) {
        let (after, since) = (scene.lines(WEST), Instant::now());
        let limit = HANDSHAKE_MAX.as_millis().to_string();
        let seen = connect(
            client,
            vips(number, ECHO)[0],
            &["--send", "secret", "--timeout-ms", &limit],
        )?;
        assert_ne!(seen["received"], "secret", "{name}: {seen}");
        ensure!(
            since.elapsed() < HANDSHAKE_MAX,
            "{name}: {:?}",
            since.elapsed()
        );
        let line = until(SOON, "the reason in the access log", || {
            let mut lines = daemon.access().into_iter().skip(after);
            Ok(lines.find(|line| !line.field("error").is_empty()))
        })
        .with_context(|| format!("{name}: {}", daemon.tail()))?;
        let host = format!("{name}.shop.svc.cluster.local");
        assert_eq!(line.field("dst.service"), host, "{}", line.text);
        let (who, why) = (
            format!("behind the gateway {gateway}: "),
            line.field("error"),
        );
        assert!(why.contains(&who) && why.contains(reason), "{}", line.text);
        let labels = [
            ("response_flags", "CONNECT"),
            ("destination_service", &*host),
        ];
        let failed = daemon
            .metrics()?
            .sum("istio_tcp_connections_failed_total", &labels);
        assert_eq!(failed, 1.0, "{}", line.text);
    }
    drop(silent);
    until(SOON, "descriptors given back", || {
        Ok((daemon.fds() <= fds).then_some(()))
    })
    .with_context(|| format!("{} now, {fds} before", daemon.fds()))?;
    // the tunnel to the gateway is none the worse
    echo(client, vips(20, ECHO)[0], "last")?;
    let tunnels = scene.gateways[EAST].stat("http.hbone_terminate.downstream_cx_total")?;
    assert!(tunnels <= 2, "{tunnels} tunnels to the gateway");
    Ok(())
}
