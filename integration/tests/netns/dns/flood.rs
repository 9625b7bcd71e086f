//! One pod that asks as fast as it can is its own matter: others lose no question and no connection.

use std::time::Duration;

use anyhow::{Context, Result};
use integration::{App, Pod, place};
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

/// Floods of the names given, side by side with another pod's questions and connections, which all have to succeed. What the
/// flood got.
fn beside_a_flood(scene: &Scene, rate: &str, loud: &[&str], quiet: &[&str]) -> Result<Value> {
    let (client, other, server) = (
        scene.pod("client-0"),
        scene.pod("other-0"),
        scene.pod("db-0"),
    );
    let _echo = server.serve(&["echo"])?;
    let resolver = format!("{}:53", scene.resolver());
    let binary = place::binary("podapp")?;
    let binary = binary.to_string_lossy();
    let start = |pod: &Pod, rate, names: &[&str]| {
        let mut args = vec![
            &*binary, "dig", "--server", &resolver, "--rate", rate, "--secs", SECS,
        ];
        for name in names {
            args.extend(["--name", name]);
        }
        pod.spawn(&args)
    };
    let mut loud = start(client, rate, loud)?;
    let mut quiet = start(other, OTHER_RATE, quiet)?;
    let to = server.at(9000).to_string();
    let load = other.podapp(&["load", "--to", &to, "--count", "300", "--threads", "2"])?;
    let last = |app: &mut App| -> Result<Value> {
        let (_, said) = app.finish(ALL_MAX)?;
        said.context("a flood that says nothing")
    };
    let (quiet, loud) = (last(&mut quiet)?, last(&mut loud)?);
    println!("the flood: {loud}\nthe other pod: {quiet}\nits connections: {load}");
    let asked = quiet["sent"].as_u64().unwrap_or_default();
    assert!(asked >= 500, "{quiet}");
    assert_eq!(quiet["answered"], asked, "{quiet}\nflood: {loud}");
    let made = (load["ok"].as_u64(), load["failed"].as_u64());
    assert_eq!(made, (Some(300), Some(0)), "{load}");
    Ok(loud)
}

#[test]
fn ten_thousand_questions_a_second_cost_others_nothing() -> Result<()> {
    let scene = Scene::set()?;
    let names = [
        "web.shop",
        "ttl300.test",
        "db.shop",
        "pay.example.com",
        "ttl301.test",
        "x.corp.example",
    ];
    let loud = beside_a_flood(&scene, RATE, &names, &names)?;
    // the machine asked as much as it was to, or this shows nothing
    let sent = loud["sent"].as_u64().unwrap_or_default();
    assert!(sent >= 50_000, "{loud}");
    // what was cached was asked for once by each
    for name in ["ttl300.test", "ttl301.test"] {
        let times = scene.asked(name)?;
        assert_eq!(times, 2, "{name}");
    }
    Ok(())
}

/// Questions that nobody answers fill the places of the pod that asks them, and of no other.
#[test]
fn questions_without_answers_cost_others_nothing() -> Result<()> {
    let scene = Scene::set()?;
    let loud = ["silent.test", "web.shop", "silent.example"];
    let quiet = ["web.shop", "ttl0.test", "db.shop"];
    let loud = beside_a_flood(&scene, "3000", &loud, &quiet)?;
    // a third of the flood is about the mesh
    let sent = loud["sent"].as_u64().unwrap_or_default();
    let answered = loud["answered"].as_u64().unwrap_or_default();
    assert!(sent >= 15_000 && answered >= sent / 3 - 1, "{loud}");
    Ok(())
}
