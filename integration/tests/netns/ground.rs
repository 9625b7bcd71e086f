//! The ground the other tests stand on, without any daemon: pods reach each other in the clear, the capture sees it,
//! and nothing of a world is left behind.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use integration::{Layout, leftovers, place, until};

use crate::support::{SOON, hold, world};

#[test]
fn pods_talk_in_the_clear_and_the_wire_shows_it() -> Result<()> {
    let world = world(&Layout::standard())?;
    let (client, server) = (world.pod("client-0"), world.pod("server-0"));
    let _http = server.serve(&["http", "--name", "server"])?;
    let _echo = server.serve(&["echo"])?;
    let wire = world.node(0).capture(world.node(1))?;
    for to in [server.at(9000), server.at6(9000)] {
        let seen = client.podapp(&[
            "connect",
            "--to",
            &to.to_string(),
            "--send",
            "marker-of-the-clear-text",
        ])?;
        assert_eq!(
            (seen["ok"].as_bool(), &seen["received"]),
            (Some(true), &"marker-of-the-clear-text".into()),
            "{seen}"
        );
        assert_eq!(seen["peer"], to.to_string());
    }
    let (status, body) = client.curl(&[&format!("http://{}/x", server.at(8080))])?;
    assert_eq!(status, 0, "{body}");
    assert!(
        body.contains(&format!("\"peer\":\"{}:", client.v4)),
        "{body}"
    );
    let packets = wire.stop()?;
    assert!(packets.shows("marker-of-the-clear-text"));
    assert_eq!(packets.tls(15008), 0);
    assert!(packets.tcp_to(server.at(9000)) > 0 && packets.tcp_to(server.at6(9000)) > 0);
    Ok(())
}

#[test]
fn every_way_to_connect_works_without_a_mesh() -> Result<()> {
    let world = world(&Layout::standard())?;
    let (client, server) = (world.pod("client-0"), world.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    let to = server.at(9000).to_string();
    let ways: [&[&str]; 7] = [
        &["--way", "blocking"],
        &["--way", "nonblocking"],
        &["--way", "fastopen"],
        &["--way", "mptcp"],
        &["--mapped"],
        &[
            "--bind-device",
            "eth0",
            "--mark-before",
            "0x539",
            "--mark-after",
            "7",
        ],
        &["--bind-address", &client.v4.to_string()],
    ];
    for way in ways {
        let args: Vec<_> = ["connect", "--to", &to]
            .iter()
            .copied()
            .chain(way.iter().copied())
            .collect();
        let seen = client.podapp(&args)?;
        assert_eq!(
            (seen["ok"].as_bool(), &seen["received"]),
            (Some(true), &"hello".into()),
            "{way:?}: {seen}"
        );
    }
    Ok(())
}

#[test]
fn dns_load_and_hold_work_without_a_mesh() -> Result<()> {
    let world = world(&Layout::standard())?;
    let (client, server) = (world.pod("client-0"), world.pod("server-0"));
    let _dns = server.serve(&["dns", "--answer", "192.0.2.7"])?;
    let echo = server.serve(&["echo"])?;
    for way in ["connected", "unconnected", "tcp"] {
        let seen = client.podapp(&["dig", "--server", &server.at(53).to_string(), "--way", way])?;
        assert_eq!(seen["answers"][0]["answer"], "192.0.2.7", "{way}: {seen}");
        assert_eq!(
            seen["answers"][0]["from"],
            server.at(53).to_string(),
            "{way}: {seen}"
        );
    }
    let seen = client.podapp(&[
        "load",
        "--to",
        &server.at(9000).to_string(),
        "--count",
        "200",
        "--threads",
        "4",
    ])?;
    assert_eq!(
        (seen["ok"].as_u64(), seen["failed"].as_u64()),
        (Some(200), Some(0)),
        "{seen}"
    );
    let held = hold(client, server.at(9000))?;
    drop(echo);
    held.wait_line(SOON, "cut", |line| line.starts_with("cut"))?;
    Ok(())
}

#[test]
fn a_world_whose_owner_was_killed_leaves_nothing() -> Result<()> {
    place::require()?;
    place::build_once()?;
    let mut command = Command::new(place::binary("world")?);
    command
        .arg("hold")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut owner = command.spawn()?;
    let mut id = String::new();
    BufReader::new(owner.stdout.take().context("its output")?).read_line(&mut id)?;
    let id = id.trim();
    assert_eq!(leftovers::namespaces(id).len(), 6);
    owner.kill()?;
    owner.wait()?;
    until(SOON, "the world gone", || {
        Ok((!leftovers::dir(id).exists()).then_some(()))
    })?;
    assert!(leftovers::namespaces(id).is_empty());
    assert!(!place::cgroup_root()?.join(id).exists());
    Ok(())
}

#[test]
fn a_dropped_world_leaves_nothing() -> Result<()> {
    let world = world(&Layout::standard())?;
    let id = world.id().to_owned();
    let _left_running = world.pod("client-0").spawn(&["sleep", "1000"])?;
    assert_eq!(leftovers::namespaces(&id).len(), 6);
    drop(world);
    assert!(leftovers::namespaces(&id).is_empty());
    assert!(!leftovers::dir(&id).exists());
    assert!(!place::cgroup_root()?.join(&id).exists());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    assert!(!mounts.contains(&id), "{mounts}");
    Ok(())
}
