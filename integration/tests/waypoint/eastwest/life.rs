//! Gateways and daemons that go, in order or not, while connections between the networks are made and open.

use std::path::PathBuf;

use anyhow::{Context, Result};
use integration::world::networks::Named;
use integration::{App, place, until};
use serde_json::{Value, json};

use super::scene::{EAST, ECHO, SOON, Scene, WEST, echo, hold, vips};

/// Connections from the west to the east, four at a time, until [`Load::end`].
struct Load {
    app: App,
    stop: PathBuf,
}

impl Load {
    fn begin(scene: &Scene) -> Result<Self> {
        let stop = scene.net.sides[WEST].world.dir().join("stop-load");
        let binary = place::binary("podapp")?.to_string_lossy().into_owned();
        let (to, file) = (vips(20, ECHO)[0].to_string(), stop.to_string_lossy());
        let args = [
            &*binary,
            "load",
            "--to",
            &to,
            "--count",
            "100",
            "--threads",
            "4",
            "--stop-file",
            &file,
        ];
        let app = scene.pod("client-west-0").spawn(&args)?;
        let load = Self { app, stop };
        load.more(1)?;
        Ok(load)
    }

    /// Waits for some hundreds of further connections.
    fn more(&self, hundreds: usize) -> Result<()> {
        let done = || {
            self.app
                .lines()
                .iter()
                .filter(|line| line.starts_with("done"))
                .count()
        };
        let wanted = done() + hundreds;
        until(SOON * 3, "more connections", || {
            Ok((done() >= wanted).then_some(()))
        })
        .with_context(|| format!("it printed {:?}", self.app.lines()))
    }

    fn end(mut self) -> Result<Value> {
        std::fs::write(&self.stop, "")?;
        let (_, seen) = self.app.finish(SOON * 3)?;
        seen.context("the load says what it saw")
    }
}

#[test]
fn a_gateway_that_is_rolled_in_order_and_daemons_that_are_replaced_cost_no_connection() -> Result<()>
{
    let mut scene = Scene::set(Named::Address)?;
    let load = Load::begin(&scene)?;
    let gateway = &scene.gateways[EAST];
    gateway.fail_health_check()?;
    load.more(2)?;
    let sent = gateway.stat("http.hbone_terminate.downstream_cx_drain_close")?;
    assert!(sent > 0, "no GOAWAY was sent");
    gateway.pass_health_check()?;
    for side in [EAST, WEST] {
        scene.daemons[side].restart_with_successor()?;
        load.more(2)?;
    }
    let seen = load.end()?;
    assert_eq!(seen["failed"], 0, "{seen}");
    Ok(())
}

#[test]
fn what_is_open_ends_with_the_gateway_and_leaves_nothing_behind() -> Result<()> {
    let mut scene = Scene::set(Named::Address)?;
    let (client, server) = (
        scene.pod("client-west-0").clone(),
        scene.pod("server-east-0").clone(),
    );
    let to = vips(20, ECHO)[0];
    echo(&client, to, "before")?;
    // the outer tunnel is kept for the next connection, nothing else is
    let mut last = ([0; 2], 0);
    let steady = until(SOON, "a steady number of descriptors", || {
        let now = [WEST, EAST].map(|side| scene.daemons[side].fds());
        last = (now, if last.0 == now { last.1 + 1 } else { 0 });
        Ok((last.1 > 20).then_some(now))
    })?;
    let held: Vec<_> = (0..5).map(|_| hold(&client, to)).collect::<Result<_>>()?;
    scene.gateways[EAST].kill()?;
    for app in &held {
        app.wait_line(SOON, "the cut", |line| line.starts_with("cut"))?;
    }
    for (side, uid, direction) in [
        (WEST, &client.uid, "outbound"),
        (EAST, &server.uid, "inbound"),
    ] {
        let daemon = &scene.daemons[side];
        daemon.wait_dump(SOON, "no connection in the dump", |dump| {
            let list = &dump["workloadState"][uid]["connections"][direction];
            list.as_array().is_none_or(Vec::is_empty)
        })?;
        until(SOON, "descriptors given back", || {
            Ok((daemon.fds() <= steady[side]).then_some(()))
        })
        .with_context(|| format!("{} now, {} before", daemon.fds(), steady[side]))?;
    }
    scene.gateways[EAST].restart()?;
    echo(&client, to, "after")?;
    let cut: Vec<_> = held.iter().map(|app| app.lines().len() > 3).collect();
    assert_eq!(
        json!(cut),
        json!([true, true, true, true, true]),
        "they were in use"
    );
    Ok(())
}
