//! A waypoint that dies, comes back, goes in order, or lets go of its tunnels.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use integration::{App, Daemon, Envoy, place, until};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::ground::{ECHO, Ground, HTTP, How, SOON, VIP, answered, at_rest, vip, worked};

/// How long after its return a request that was begun before may still fail, in milliseconds.
const GRACE_MS: u64 = 1000;
/// How long a daemon that was replaced may take, which is far longer than a test.
const DRAIN: [(&str, &str); 1] = [("DRAIN_MAX", "10m")];
/// How long a waypoint keeps a tunnel that has nothing to do, where it is not to let go of it within a test.
const KEPT: Duration = Duration::from_secs(3600);
/// Long connections that are held.
const HELD: usize = 4;

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
        until(SOON * 6, "more requests", || {
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
        at_rest(daemon)?;
        let lines = daemon.access();
        assert!(!lines.is_empty(), "nothing passed");
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
    // not every one: a tunnel may have ended in order before the reset
    let line = ground.near().wait_access("the reset", |line| {
        line.is("outbound") && !line.field("error").is_empty()
    })?;
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

/// Tunnels of a waypoint that a server's daemon has.
fn pooled(daemon: &Daemon) -> Result<f64> {
    let metrics = daemon.metrics()?;
    let labels = [("reporter", "destination")];
    let sum = |what| metrics.sum(what, &labels);
    Ok(sum("istio_tcp_connections_opened_total") - sum("istio_tcp_connections_closed_total"))
}

/// The waypoint's one tunnel has ended, and nothing is counted or logged as failed.
fn one_tunnel_closed(ground: &Ground) -> Result<()> {
    nothing_failed(ground)?;
    let labels = [("reporter", "destination"), ("response_flags", "-")];
    let closed = "istio_tcp_connections_closed_total";
    assert_eq!(ground.far().metrics()?.sum(closed, &labels), 1.0);
    Ok(())
}

#[test]
fn idle_tunnels_that_a_waypoint_lets_go_of_are_no_errors() -> Result<()> {
    let (ground, _envoy) = ready()?;
    // its pool ends tunnels that idle, by RST_STREAM INTERNAL_ERROR although all bytes were delivered
    answered(
        ground.pod("client-0"),
        &format!("http://{VIP}/public/idle"),
        &[],
    )?;
    one_tunnel_closed(&ground)
}

#[test]
fn tunnels_that_a_waypoint_takes_along_at_its_end_are_no_errors() -> Result<()> {
    let mut ground = Ground::up()?;
    ground.serve_http()?;
    let mut waypoint = ground.waypoint();
    waypoint.idle = KEPT;
    let mut envoy = ground.envoy_with("waypoint-0", &waypoint)?;
    answered(
        ground.pod("client-0"),
        &format!("http://{VIP}/public/last"),
        &[],
    )?;
    assert_eq!(pooled(ground.far())?, 1.0, "no tunnel is kept");
    envoy.terminate()?;
    one_tunnel_closed(&ground)
}

/// Replaces a daemon while it has connections; the old one, which now serves them to their end and takes no further ones,
/// is returned.
fn replaced(daemon: &mut Daemon) -> Result<Daemon> {
    let mut old = Daemon::start(daemon.node(), &DRAIN)?;
    std::mem::swap(daemon, &mut old);
    old.signal(Signal::SIGTERM)?;
    old.wait_log(0, &["\tdraining\t"])?;
    Ok(old)
}

/// [`HELD`] connections to the echo server that exchange bytes until the load ends.
fn held(ground: &Ground, stop: &Path) -> Result<App> {
    let (binary, to) = (place::binary("podapp")?, vip(ECHO).to_string());
    let app = ground.pod("client-0").spawn(&[
        &binary.to_string_lossy(),
        "many",
        "--to",
        &to,
        "--count",
        &HELD.to_string(),
        "--every-ms",
        "20",
        "--stop-file",
        &stop.to_string_lossy(),
    ])?;
    let open = format!("open {HELD}");
    app.wait_line(SOON, &open, |line| line == open)?;
    Ok(app)
}

#[test]
fn tunnels_outlive_daemons_that_are_replaced() -> Result<()> {
    let mut ground = Ground::raise_with(How::Ebpf, &DRAIN)?;
    ground.serve_http()?;
    ground.serve("server-0", &["echo"])?;
    let envoy = ground.envoy("waypoint-0")?;
    let load = Load::begin(&ground, "successor")?;
    let mut long = held(&ground, &load.stop)?;
    let mut old = vec![replaced(&mut ground.daemons[1])?];
    load.more(2)?;
    old.push(replaced(&mut ground.daemons[0])?);
    load.more(2)?;
    // what is opened now passes the successors, once the waypoint has heard of the end of its old tunnels
    let mut late = held(&ground, &load.stop)?;
    let to = vip(ECHO).to_string();
    until(SOON, "connections through the successors", || {
        worked(
            ground.pod("client-0"),
            &["transfer", "--to", &to, "--bytes", "100"],
        )?;
        let serves = |daemon: &Daemon| !daemon.access().is_empty();
        Ok(ground.daemons.iter().all(serves).then_some(()))
    })?;
    for daemon in &mut old {
        assert!(
            daemon.alive(),
            "ended before its connections:\n{}",
            daemon.tail()
        );
    }
    let seen = load.end()?;
    assert_eq!(seen["failed"], 0, "{seen}");
    for app in [&mut long, &mut late] {
        let (_, seen) = app.finish(SOON)?;
        let seen = seen.context("what was held says how it went")?;
        assert_eq!(seen["cut"], serde_json::json!([]), "{seen}");
    }
    // the waypoint had nothing to try again either
    let entries = envoy.access();
    let mut requests = entries.iter().filter(|entry| entry["log"] == "l7");
    let again = requests.find(|entry| entry["attempts"] != 1);
    assert!(again.is_none(), "{again:?}");
    nothing_failed(&ground)?;
    for mut daemon in old {
        let exit = daemon.wait_exit(SOON * 2)?;
        assert!(exit.status.success(), "{}\n{}", exit.status, daemon.tail());
        let lines = daemon.access();
        let wrong = lines.iter().find(|line| line.level != "info");
        assert!(wrong.is_none(), "{wrong:?}");
        // those that were held first ended in it
        let to = format!(":{ECHO}");
        let ended = lines.iter().filter(|line| line.text.contains(&to));
        assert!(ended.count() >= HELD, "{}", daemon.tail());
    }
    Ok(())
}
