//! A successor takes over while applications go on.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use integration::{Layout, place};

use crate::support::{Mesh, SOON, echo, hold};

/// The load's own bound, far above what 10,000 connections take.
const LOAD_MAX: Duration = Duration::from_secs(300);

#[test]
fn no_connect_fails_while_daemons_are_replaced() -> Result<()> {
    let mut mesh = Mesh::up(&Layout::standard())?;
    let (client, server) = (mesh.pod("client-0").clone(), mesh.pod("server-0").clone());
    let _echo = server.serve(&["echo"])?;
    let binary = place::binary("podapp")?.to_string_lossy().into_owned();
    let stop = mesh.world.dir().join("enough");
    let stop_text = stop.to_string_lossy().into_owned();
    let load = |to: &str, count: &str| {
        let args = [
            &binary,
            "load",
            "--to",
            to,
            "--count",
            count,
            "--threads",
            "2",
            "--stop-file",
            &stop_text,
        ];
        client.spawn(&args)
    };
    let mut loads = [
        load(&server.at(9000).to_string(), "10000")?,
        load(&server.at6(9000).to_string(), "2000")?,
    ];
    for load in &loads {
        load.wait_line(SOON, "done 200", |line| line == "done 200")?;
    }
    for _ in 0..2 {
        for node in 0..2 {
            let exit = mesh.daemons[node].restart_with_successor()?;
            assert!(
                exit.status.success(),
                "the old daemon ended with {}",
                exit.status
            );
        }
    }
    fs::write(&stop, "").context("end the load")?;
    for load in &mut loads {
        let (_, told) = load.finish(LOAD_MAX)?;
        let told = told.context("the load told nothing")?;
        assert_eq!(told["failed"], 0, "{told}\n{}", troubles(&mesh.world.dir()));
        assert!(told["ok"].as_u64() >= Some(2000), "{told}");
    }
    let seen = echo(&client, server.at(9000), &[])?;
    mesh.outbound(&client, &seen)?;
    Ok(())
}

/// What the daemons, old and new, said above the level info.
fn troubles(dir: &Path) -> String {
    let logs = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let logs = logs.filter(|path| path.extension().is_some_and(|end| end == "log"));
    let mut said = String::new();
    for path in logs {
        let text = fs::read_to_string(&path).unwrap_or_default();
        let bad = |line: &&str| {
            [
                "\terror\t",
                "\twarn\t",
                "draining",
                "successor",
                "panicked",
                "os error",
            ]
            .iter()
            .any(|part| line.contains(part))
        };
        for line in text.lines().filter(bad).take(12) {
            said.push_str(&format!(
                "{}: {line}\n",
                path.file_stem().unwrap_or_default().display()
            ));
        }
    }
    said
}

#[test]
fn an_open_connection_lives_until_the_deadline_and_the_log_says_so() -> Result<()> {
    let mut mesh = Mesh::up(&Layout::standard())?;
    let (client, server) = (mesh.pod("client-0").clone(), mesh.pod("server-0").clone());
    let _echo = server.serve(&["echo"])?;
    let held = hold(&client, server.at(9000))?;
    let log = mesh.daemons[0].log_file().to_owned();
    let exit = mesh.daemons[0].restart_with_successor()?;
    assert!(exit.status.success(), "{}", exit.status);
    // the deadline of the test daemons is 5 s
    assert!(
        exit.took >= Duration::from_secs(4),
        "ended after {:?}",
        exit.took
    );
    held.wait_line(SOON, "the cut", |line| line.starts_with("cut"))?;
    let log = fs::read_to_string(log)?;
    assert!(
        log.contains("connection closed due to connection drain"),
        "{log}"
    );
    Ok(())
}

#[test]
fn an_idle_daemon_ends_at_once_and_well() -> Result<()> {
    let mut mesh = Mesh::up(&Layout::standard())?;
    let exit = mesh.daemons[0].terminate()?;
    assert!(exit.status.success(), "{}", exit.status);
    assert!(
        exit.took < Duration::from_secs(4),
        "ended only after {:?}",
        exit.took
    );
    let answer = mesh.daemons[1].post(15000, "/quitquitquit")?;
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (200, "shutdown now\n")
    );
    let exit = mesh.daemons[1].wait_exit(SOON)?;
    assert!(exit.status.success(), "{}", exit.status);
    Ok(())
}
