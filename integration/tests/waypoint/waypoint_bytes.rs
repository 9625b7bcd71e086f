//! Bytes that a waypoint does not look into: order, ends, amounts, and many connections at the same time.

use anyhow::Result;
use integration::{Envoy, place, until};

use crate::ground::{ECHO, GREET, Ground, SOON, VIP6, at_rest, authorities, vip, worked};

/// Bytes of a large transfer, each way.
const LARGE: &str = "33554432";
/// Connections held at the same time; a waypoint takes 100 in one tunnel connection.
const MANY: usize = 250;
/// What the server that speaks first says.
const GREETING: &str = "220 welcome\n";

fn with_greeter(args: &[&str]) -> Result<(Ground, Envoy)> {
    let mut ground = Ground::up()?;
    let mut all = vec!["greeter"];
    all.extend(args);
    ground.serve("server-0", &all)?;
    let mut waypoint = ground.waypoint();
    waypoint.tcp = authorities(GREET);
    waypoint.opaque = ground.pod("server-0").at(9001);
    let envoy = ground.envoy_with("waypoint-0", &waypoint)?;
    Ok((ground, envoy))
}

#[test]
fn a_server_may_speak_first_and_hears_a_half_closed_client_to_its_end() -> Result<()> {
    let (ground, _envoy) = with_greeter(&[])?;
    let client = ground.pod("client-0");
    for to in [vip(GREET).to_string(), format!("[{VIP6}]:{GREET}")] {
        for bytes in ["0", "5", "300000"] {
            let seen = worked(client, &["greet", "--to", &to, "--bytes", bytes])?;
            assert_eq!(seen["greeting"], GREETING, "{seen}");
            let hash = seen["hash"].as_str().unwrap_or_default();
            // the server's last line comes after the client's end: its own direction was still open
            assert_eq!(
                seen["rest"],
                format!("heard {bytes} {hash}"),
                "{to}: {seen}"
            );
        }
    }
    Ok(())
}

#[test]
fn a_server_may_end_first_and_still_hears_its_client() -> Result<()> {
    let (ground, _envoy) = with_greeter(&["--end-first"])?;
    let client = ground.pod("client-0");
    // past the waypoint: Envoy itself resets a tunnel whose far side ends first
    let to = ground.pod("server-0").at(9001).to_string();
    for bytes in ["7", "300000"] {
        let seen = worked(
            client,
            &["greet", "--to", &to, "--end-first", "--bytes", bytes],
        )?;
        assert_eq!(
            (&seen["greeting"], &seen["rest"]),
            (&GREETING.into(), &"".into())
        );
        let hash = seen["hash"].as_str().unwrap_or_default();
        let heard = format!("heard {bytes} {hash}");
        ground.apps[0].wait_line(SOON, &heard, |line| line == heard)?;
    }
    // through it, what the server said and its end arrive all the same
    let to = vip(GREET).to_string();
    let seen = client.podapp(&["greet", "--to", &to, "--end-first"])?;
    assert_eq!(seen["greeting"], GREETING, "{seen}");
    assert_ne!(seen["step"], "its end", "{seen}");
    Ok(())
}

#[test]
fn many_bytes_pass_both_ways_at_once() -> Result<()> {
    let mut ground = Ground::up()?;
    ground.serve("server-0", &["echo"])?;
    let _envoy = ground.envoy("waypoint-0")?;
    let client = ground.pod("client-0");
    let to = vip(ECHO).to_string();
    let seen = worked(client, &["transfer", "--to", &to, "--bytes", LARGE])?;
    assert_eq!(seen["bytes"].to_string(), LARGE, "{seen}");
    // what each daemon counted is what the application sent and got
    for (daemon, direction) in [(ground.near(), "outbound"), (ground.far(), "inbound")] {
        let line = daemon.wait_access("the transfer", |line| {
            line.is(direction) && line.field("bytes_sent") == LARGE
        })?;
        assert_eq!(line.field("bytes_recv"), LARGE, "{}", line.text);
        assert_eq!(line.field("error"), "", "{}", line.text);
    }
    Ok(())
}

#[test]
fn more_connections_than_one_tunnel_takes_are_held_at_once() -> Result<()> {
    let mut ground = Ground::up()?;
    ground.serve("server-0", &["echo"])?;
    let envoy = ground.envoy("waypoint-0")?;
    let client = ground.pod("client-0");
    let stop = ground.world.dir().join("stop-many");
    let (binary, count) = (place::binary("podapp")?, MANY.to_string());
    let (to, stop_file) = (vip(ECHO).to_string(), stop.to_string_lossy().into_owned());
    let mut many = client.spawn(&[
        &binary.to_string_lossy(),
        "many",
        "--to",
        &to,
        "--count",
        &count,
        "--stop-file",
        &stop_file,
    ])?;
    let open = format!("open {MANY}");
    many.wait_line(SOON * 3, &open, |line| line == open)?;
    let streams = envoy.stat("http.hbone_terminate.downstream_rq_active")?;
    let tunnels = envoy.stat("http.hbone_terminate.downstream_cx_active")?;
    assert_eq!(streams, MANY as u64);
    // 100 streams a connection, so at least 3; each of the daemon's threads may have one that is not full
    assert!((3..=6).contains(&tunnels), "{tunnels} tunnels");
    std::fs::write(&stop, "")?;
    let (_, seen) = many.finish(SOON * 2)?;
    let seen = seen.unwrap_or_default();
    assert_eq!(seen["cut"], serde_json::json!([]), "{seen}");
    until(SOON, "all streams ended", || {
        let left = envoy.stat("http.hbone_terminate.downstream_rq_active")?;
        Ok((left == 0).then_some(()))
    })?;
    for daemon in &ground.daemons {
        at_rest(daemon)?;
        let lines = daemon.access();
        assert_eq!(lines.len(), MANY, "{}", daemon.tail());
        let failed = lines.iter().find(|line| line.level != "info");
        assert!(failed.is_none(), "{failed:?}");
    }
    Ok(())
}
