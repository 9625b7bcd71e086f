//! One pod that asks as fast as it can is its own matter: others lose no question and no connection.

use std::time::Duration;

use anyhow::{Context, Result};
use integration::place;
use serde_json::Value;

use super::Scene;

/// Questions each second of the pod that floods.
const RATE: &str = "10000";
/// How long.
const SECS: &str = "6";
/// Questions each second of the other one.
const OTHER_RATE: &str = "100";
/// Most time for all of it.
const ALL_MAX: Duration = Duration::from_secs(40);

#[test]
fn ten_thousand_questions_a_second_cost_others_nothing() -> Result<()> {
    let scene = Scene::set()?;
    let (client, other, server) = (
        scene.pod("client-0"),
        scene.pod("other-0"),
        scene.pod("db-0"),
    );
    let _echo = server.serve(&["echo"])?;
    let resolver = format!("{}:53", scene.resolver());
    let binary = place::binary("podapp")?;
    let binary = binary.to_string_lossy();
    let flood = |rate, secs| {
        let names = [
            "web.shop",
            "ttl300.test",
            "db.shop",
            "pay.example.com",
            "ttl301.test",
            "x.corp.example",
        ];
        let mut args = vec![
            &*binary, "dig", "--server", &resolver, "--rate", rate, "--secs", secs,
        ];
        for name in names {
            args.extend(["--name", name]);
        }
        args
    };
    let mut loud = client.spawn(&flood(RATE, SECS))?;
    let mut quiet = other.spawn(&flood(OTHER_RATE, SECS))?;
    let to = server.at(9000).to_string();
    let load = other.podapp(&["load", "--to", &to, "--count", "300", "--threads", "2"])?;
    let last = |app: &mut integration::App| -> Result<Value> {
        let (_, said) = app.finish(ALL_MAX)?;
        said.context("a flood that says nothing")
    };
    let (quiet, loud) = (last(&mut quiet)?, last(&mut loud)?);
    println!("the flood: {loud}\nthe other pod: {quiet}\nits connections: {load}");
    let asked = quiet["sent"].as_u64().unwrap_or_default();
    assert!(asked >= 500, "{quiet}");
    assert_eq!(quiet["answered"], asked, "{quiet}\nflood: {loud}");
    assert_eq!(
        (load["ok"].as_u64(), load["failed"].as_u64()),
        (Some(300), Some(0)),
        "{load}"
    );
    // the machine asked as much as it was to, or this shows nothing
    let sent = loud["sent"].as_u64().unwrap_or_default();
    assert!(sent >= 50_000, "{loud}");
    // what was cached was asked for once by each
    for name in ["ttl300.test", "ttl301.test"] {
        let times = scene.asked(name)?;
        assert!(times <= 4, "{name}: {times}");
    }
    Ok(())
}
