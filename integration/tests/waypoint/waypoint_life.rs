//! A waypoint that dies, comes back, goes in order, or lets go of its tunnels.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use integration::{App, Envoy, place};
use serde_json::Value;

use crate::ground::{Ground, HTTP, SOON, VIP, answered, vip};

/// How long after its return a request that was begun before may still fail, in milliseconds.
const GRACE_MS: u64 = 1000;

fn ready() -> Result<(Ground, Envoy)> {
    let mut ground = Ground::up()?;
    ground.serve_http()?;
    let envoy = ground.envoy("waypoint-0")?;
    Ok((ground, envoy))
}

/// Requests from the client, four at a time, until [`Load::end`].
struct Load {
    app: App,
    stop: std::path::PathBuf,
}

impl Load {
    fn begin(ground: &Ground, name: &str) -> Result<Self> {
        let stop = ground.world.dir().join(format!("stop-{name}"));
        let (binary, to) = (place::binary("podapp")?, vip(HTTP).to_string());
        let app = ground.pod("client-0").spawn(&[
            &binary.to_string_lossy(),
            "load",
            "--to",
            &to,
            "--http",
            "/public/load",
            "--client-ends",
            "--threads",
            "4",
            "--count",
            "100",
            "--timeout-ms",
            "20000",
            "--stop-file",
            &stop.to_string_lossy(),
        ])?;
        let load = Self { app, stop };
        load.more(1)?;
        Ok(load)
    }

    /// Waits for some hundreds of further requests.
    fn more(&self, hundreds: usize) -> Result<()> {
        let done = |app: &App| {
            app.lines()
                .iter()
                .filter(|line| line.starts_with("done"))
                .count()
        };
        let wanted = done(&self.app) + hundreds;
        integration::until(SOON * 6, "more requests", || {
            Ok((done(&self.app) >= wanted).then_some(()))
        })
        .with_context(|| format!("it printed {:?}", self.app.lines()))
    }

    fn end(mut self) -> Result<Value> {
        std::fs::write(&self.stop, "")?;
        let (_, seen) = self.app.finish(SOON * 3)?;
        seen.context("the load says what it saw")
    }
}

fn unix_ms() -> Result<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(u64::try_from(now.as_millis())?)
}

#[test]
fn requests_fail_only_while_a_killed_waypoint_is_away() -> Result<()> {
    let (ground, mut envoy) = ready()?;
    let load = Load::begin(&ground, "kill")?;
    let killed = unix_ms()?;
    envoy.kill()?;
    // while it is away nothing gets around it
    load.more(1)?;
    envoy.restart()?;
    let back = unix_ms()?;
    load.more(3)?;
    let seen = load.end()?;
    let number = |key: &str| seen[key].as_u64().unwrap_or_default();
    assert!(number("failed") > 0 && number("ok") >= 300, "{seen}");
    // those under way at the kill were begun before it
    assert!(
        number("failed_begin") + GRACE_MS >= killed,
        "{seen} killed {killed}"
    );
    assert!(
        number("failed_end") <= back + GRACE_MS,
        "{seen} back {back}"
    );

    let to = vip(HTTP).to_string();
    let args = [
        "load",
        "--to",
        &to,
        "--http",
        "/public/after",
        "--client-ends",
        "--count",
        "300",
        "--threads",
        "4",
    ];
    let after = ground.pod("client-0").podapp(&args)?;
    assert_eq!(
        (&after["ok"], &after["failed"]),
        (&300.into(), &0.into()),
        "{after}"
    );
    let direct = ground.far().access();
    let direct = direct.iter().find(|line| {
        line.is("inbound") && line.field("src.identity") != ground.pod("waypoint-0").identity()
    });
    assert!(direct.is_none(), "around the waypoint: {direct:?}");
    Ok(())
}

#[test]
fn a_waypoint_that_is_rolled_in_order_costs_no_request() -> Result<()> {
    let (ground, envoy) = ready()?;
    let load = Load::begin(&ground, "goaway")?;
    envoy.fail_health_check()?;
    load.more(4)?;
    let sent = envoy.stat("http.hbone_terminate.downstream_cx_drain_close")?;
    assert!(sent > 0, "no GOAWAY was sent");
    envoy.pass_health_check()?;
    load.more(1)?;
    let seen = load.end()?;
    assert_eq!(seen["failed"], 0, "{seen}");
    nothing_failed(&ground)
}

/// What the two daemons count and log as failed: nothing.
fn nothing_failed(ground: &Ground) -> Result<()> {
    for daemon in &ground.daemons {
        let lines = daemon.access();
        let wrong = lines.iter().find(|line| line.level != "info");
        assert!(wrong.is_none(), "{wrong:?}");
        let failed = daemon
            .metrics()?
            .sum("istio_tcp_connections_failed_total", &[]);
        assert_eq!(failed, 0.0, "counted as failures");
    }
    Ok(())
}

#[test]
fn an_answer_behind_which_the_far_side_ends_arrives_and_its_reset_is_told() -> Result<()> {
    let (ground, envoy) = ready()?;
    // the server ends first, and Envoy then resets the tunnel by CONNECT_ERROR, behind what it has sent; what it could not
    // send yet is lost, so this is no end like others
    let closing = ["-H", "connection: close"];
    let client = ground.pod("client-0");
    for _ in 0..20 {
        answered(client, &format!("http://{VIP}/public/close"), &closing)?;
    }
    envoy.wait_access("hbone", "the reset tunnel", |entry| entry["flags"] == "UC")?;
    let line = ground
        .near()
        .wait_access("the reset", |line| line.is("outbound"))?;
    let error = line.field("error");
    assert!(
        error.starts_with("h2 failed: stream reset: connection established"),
        "{}",
        line.text
    );
    let labels = [
        ("reporter", "source"),
        ("response_flags", "H2_HANDSHAKE_FAILURE"),
    ];
    let failed = "istio_tcp_connections_failed_total";
    crate::ground::counted(ground.near(), failed, &labels, 1.0)?;
    Ok(())
}

#[test]
fn tunnels_that_a_waypoint_lets_go_of_are_no_errors() -> Result<()> {
    let (ground, mut envoy) = ready()?;
    let client = ground.pod("client-0");
    let pooled = |daemon: &integration::Daemon| {
        let lines = daemon.access();
        lines.iter().filter(|line| line.is("inbound")).count()
    };
    // its pool ends tunnels that idle, by RST_STREAM INTERNAL_ERROR although all bytes were delivered
    answered(client, &format!("http://{VIP}/public/idle"), &[])?;
    ground
        .far()
        .wait_access("the idle tunnel's end", |line| line.is("inbound"))?;
    let before = pooled(ground.far());
    // and those that it still has, when it is ended
    answered(client, &format!("http://{VIP}/public/last"), &[])?;
    envoy.terminate()?;
    integration::until(SOON, "the last tunnel's end", || {
        Ok((pooled(ground.far()) > before).then_some(()))
    })?;
    let labels = [("reporter", "destination"), ("response_flags", "-")];
    let closed = ground
        .far()
        .metrics()?
        .sum("istio_tcp_connections_closed_total", &labels);
    assert!(closed >= 2.0, "{closed}");
    nothing_failed(&ground)
}

#[test]
fn tunnels_outlive_a_servers_daemon_that_is_replaced() -> Result<()> {
    let (mut ground, _envoy) = ready()?;
    let load = Load::begin(&ground, "successor")?;
    ground.daemons[1].restart_with_successor()?;
    load.more(2)?;
    ground.daemons[0].restart_with_successor()?;
    load.more(2)?;
    let seen = load.end()?;
    assert_eq!(seen["failed"], 0, "{seen}");
    Ok(())
}
