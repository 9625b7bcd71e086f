//! Whoever finds the daemon's own sockets in a pod and talks to them directly gets nothing from it: capture brings there what was
//! meant for elsewhere, and serving the rest would lead to the same socket again.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use integration::{Layout, Pod};
use serde_json::Value;

use crate::support::Mesh;

/// Descriptors that a few refused connections may still hold; a loop takes thousands in a second.
const SPARE_FDS: usize = 64;

/// What is sent.
const MARK: &str = "to-a-listener-of-the-daemon";
/// A TLS alert: all that the HBONE listener has to say to bytes that are no handshake.
const ALERT_BYTES: u64 = 7;

/// Whether nothing came back but an alert.
fn is_refused(seen: &Value) -> bool {
    let received = seen["received"].as_str().unwrap_or_default();
    seen["bytes"].as_u64().unwrap_or_default() <= ALERT_BYTES && !received.contains(MARK)
}

/// Ports on which something listens on the wildcard in the pod's namespace: nothing but the daemon, as long as no server runs.
fn doors(pod: &Pod, protocol: &str) -> Result<Vec<u16>> {
    let listed = pod.read(&["ss", "--no-header", "--numeric", "--listening", protocol])?;
    let local = listed.lines().filter_map(|line| {
        line.split_whitespace()
            .find(|word| word.starts_with("*:") || word.starts_with("[::]:"))
    });
    let ports: Vec<u16> = local
        .filter_map(|at| at.rsplit_once(':')?.1.parse().ok())
        .collect();
    ensure!(!ports.is_empty(), "no socket of the daemon: {listed}");
    Ok(ports)
}

#[test]
fn a_listener_of_the_daemon_leads_nowhere() -> Result<()> {
    let mesh = Mesh::up(&Layout::standard())?;
    let (pod, stranger) = (mesh.pod("client-0"), mesh.pod("outsider-0"));
    let daemon = mesh.daemon_of(pod);
    let doors = doors(pod, "--tcp")?;
    ensure!(doors.len() >= 3, "{doors:?}");
    let before = daemon.fds();
    for port in &doors {
        let inside: [SocketAddr; 4] = [
            ([127, 0, 0, 1], *port).into(),
            ([0, 0, 0, 0, 0, 0, 0, 1], *port).into(),
            pod.at(*port),
            pod.at6(*port),
        ];
        for to in inside {
            let seen = pod.podapp(&["connect", "--to", &to.to_string(), "--send", MARK])?;
            ensure!(is_refused(&seen), "{to}: {seen}");
        }
        for to in [pod.at(*port), pod.at6(*port)] {
            let seen = stranger.podapp(&["connect", "--to", &to.to_string(), "--send", MARK])?;
            ensure!(is_refused(&seen), "{to}: {seen}");
        }
    }
    let after = daemon.fds();
    ensure!(
        after < before + SPARE_FDS,
        "{before} descriptors became {after}"
    );
    let refused = daemon
        .metrics()?
        .sum("ztunnel_refusals_total", &[("reason", "self_call")]);
    ensure!(refused >= 4.0, "{refused} refused as calls to ourselves");
    // what is meant for another machine's port of that number is not taken for one of them
    let server = mesh.pod("server-0");
    let echo = server.serve(&["echo"])?;
    let seen = pod.podapp(&["connect", "--to", &server.at(9000).to_string()])?;
    assert_eq!(seen["ok"].as_bool(), Some(true), "{seen}");
    drop(echo);
    Ok(())
}

#[test]
fn the_dns_socket_answers_only_what_was_asked_of_a_resolver() -> Result<()> {
    let mesh = Mesh::up(&Layout::standard())?;
    let (pod, stranger) = (mesh.pod("client-0"), mesh.pod("outsider-0"));
    let name = mesh
        .world
        .model()
        .services
        .first()
        .context("a service")?
        .hostname();
    let ask = |who: &Pod, at: &str, port: u16| {
        let (at, port) = (format!("@{at}"), port.to_string());
        let args = [
            "dig", "+tries=1", "+time=1", "+short", &at, "-p", &port, &name, "A",
        ];
        who.run(&args)
            .map(|done| String::from_utf8_lossy(&done.stdout).into_owned())
    };
    let own = pod.v4.to_string();
    let steered = ask(pod, "192.0.2.53", 53)?;
    ensure!(
        steered.contains("10.96.0.10"),
        "steered questions are answered: {steered}"
    );
    for port in doors(pod, "--udp")? {
        for (who, at) in [(pod, "127.0.0.1"), (pod, &*own), (stranger, &*own)] {
            let said = ask(who, at, port)?;
            ensure!(!said.contains("10.96.0.10"), "{at}:{port} answered {said}");
        }
    }
    Ok(())
}
