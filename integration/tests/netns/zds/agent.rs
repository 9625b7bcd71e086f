//! The daemon and an agent that keeps to its own rules: deadlines, idle connections, restarts, several daemons.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::cni::{Entry, Event, Rules, Site};
use integration::{Daemon, Layout, PodPlan, until};

use super::{ACTIVE, Cni, STARTED, STOPPED, wait_ready, wait_served, wait_value};
use crate::support::{SOON, echo, hold, longest_wait, still_held, world};

/// Pods that come in a row.
const MANY: usize = 50;
/// The agent's own deadline.
const DEADLINE: Duration = Duration::from_secs(5);
/// After this long a daemon that found nobody has surely tried again once it was away this long: its pauses double.
const DIAL_MAX: Duration = Duration::from_secs(6);

fn hello(site: &Site, from: usize, limit: Duration) -> Result<u64> {
    let record = site.agent.record();
    let (link, bytes) = record.wait(from, limit, "hello", |event| match event {
        Event::Hello { link, bytes } => Some((*link, bytes.clone())),
        _ => None,
    })?;
    ensure!(bytes == [8, 1], "{bytes:02x?}");
    Ok(link)
}

/// What the agent did not like, apart from its own end.
fn complaints(site: &Site) -> Vec<Event> {
    let bad = |event: &Event| match event {
        Event::Late { .. } => true,
        Event::Dropped { why, .. } => why != "stopped",
        Event::Replied { bytes, .. } => bytes != &[0x0a, 0],
        _ => false,
    };
    let all = site.agent.record().since(0);
    all.into_iter().filter(bad).collect()
}

#[test]
fn no_answer_is_late_with_many_pods_in_a_row() -> Result<()> {
    let pods = (0..MANY).map(|n| PodPlan::new("shop", &format!("many-{n}"), 0));
    let world = world(&Layout {
        nodes: 1,
        pods: pods.collect(),
        services: Vec::new(),
    })?;
    let site = Site::raise(world.node(0))?;
    let half = MANY / 2;
    for pod in &world.pods()[..half] {
        site.agent.cache(&pod.uid, Some(Entry::of(pod)?));
    }
    let daemon = Daemon::start(&site.node, &[])?;
    // those of the snapshot were all acked before the daemon was ready
    for pod in &world.pods()[..half] {
        wait_served(&daemon, &pod.netns, 1)?;
    }
    for pod in &world.pods()[half..] {
        site.agent.add(&Entry::of(pod)?)?.acked()?;
    }
    wait_value(&daemon, ACTIVE, 50.0)?;
    wait_ready(&daemon)?;
    let took = site
        .agent
        .record()
        .since(0)
        .into_iter()
        .filter_map(|event| match event {
            Event::Replied { took, .. } => Some(took),
            _ => None,
        });
    let slowest = took.max().context("no answers")?;
    assert!(slowest < DEADLINE / 2, "slowest answer after {slowest:?}");
    for pod in world.pods() {
        for answer in site.agent.del(&pod.uid)? {
            answer.acked()?;
        }
    }
    wait_value(&daemon, STOPPED, 50.0)?;
    assert_eq!(complaints(&site), []);
    Ok(())
}

#[test]
fn an_idle_connection_is_silent() -> Result<()> {
    let world = world(&Layout {
        nodes: 1,
        pods: vec![PodPlan::new("shop", "a-0", 0)],
        services: Vec::new(),
    })?;
    let site = Site::raise(world.node(0))?;
    let _daemon = Daemon::start(&site.node, &[])?;
    // one such look comes after 5 s without work
    site.agent.record().wait(0, 2 * SOON, "look", |event| {
        matches!(event, Event::Looked { .. }).then_some(())
    })?;
    site.agent.add(&Entry::of(world.pod("a-0"))?)?.acked()?;
    assert_eq!(complaints(&site), []);
    Ok(())
}

#[test]
fn the_daemon_dials_until_the_agent_is_there() -> Result<()> {
    let world = world(&Layout {
        nodes: 1,
        pods: vec![PodPlan::new("shop", "a-0", 0)],
        services: Vec::new(),
    })?;
    let mut site = Site::raise(world.node(0))?;
    let pod = world.pod("a-0");
    site.agent.stop();
    site.agent.cache(&pod.uid, Some(Entry::of(pod)?));
    let mut daemon = Daemon::launch(&site.node, &[])?;
    let answer = until(SOON, "the readiness endpoint", || {
        Ok(daemon.get(15021, "/healthz/ready").ok())
    })?;
    assert_eq!(answer.status, 500, "{answer:?}");
    assert!(answer.body.contains(super::TASK), "{answer:?}");
    for round in 0..2 {
        let from = site.agent.record().len();
        site.agent.resume()?;
        hello(&site, from, DIAL_MAX)?;
        daemon.wait_ready()?;
        wait_served(&daemon, &pod.netns, 1)?;
        wait_value(&daemon, STARTED, 1.0)?;
        site.agent.stop();
        until(SOON, "not ready without the agent", || {
            Ok((daemon.get(15021, "/healthz/ready")?.status == 500).then_some(()))
        })?;
        wait_served(&daemon, &pod.netns, 1).with_context(|| format!("round {round}"))?;
        // an agent that restarts may have no handle of the namespace any more
        site.agent.cache(&pod.uid, Some(Entry::kept(pod)));
    }
    Ok(())
}

#[test]
fn traffic_does_not_notice_that_the_agent_restarts() -> Result<()> {
    let mut cni = Cni::up(&Layout::standard())?;
    let (client, server) = (cni.pod("client-0").clone(), cni.pod("server-0").clone());
    let _echo = server.serve(&["echo"])?;
    let held = hold(&client, server.at(9000))?;
    for _ in 0..2 {
        for node in 0..2 {
            let from = cni.sites[node].agent.record().len();
            cni.sites[node].agent.stop();
            for _ in 0..5 {
                echo(&client, server.at(9000), &[])?;
                echo(&client, server.at6(9000), &[])?;
            }
            cni.sites[node].agent.resume()?;
            hello(&cni.sites[node], from, DIAL_MAX)?;
            wait_ready(&cni.daemons[node])?;
        }
    }
    still_held(&held)?;
    let longest = longest_wait(&held)?;
    assert!(longest < Duration::from_secs(1), "{longest:?}");
    for daemon in &cni.daemons {
        wait_value(daemon, STARTED, 1.0)?;
        wait_value(daemon, STOPPED, 0.0)?;
    }
    Ok(())
}

#[test]
fn two_daemons_share_the_ports_and_hear_of_every_end() -> Result<()> {
    let cni = Cni::plain(&Layout::standard(), &[])?;
    let site = &cni.sites[0];
    let (client, rules) = (cni.pod("client-0"), Rules::default());
    site.enroll(client, &rules)?;
    let old = &cni.daemons[0];
    let mut new = Daemon::start(&site.node, &[])?;
    wait_served(&new, &client.netns, 2)?;
    // the newest alone hears of additions: the same pod again
    let answer = site.agent.add(&Entry::of(client)?)?.acked()?;
    assert_eq!(answer.link, 2);
    let answers = site.agent.del(&client.uid)?;
    assert_eq!(answers.len(), 2);
    wait_served(&new, &client.netns, 0)?;
    for daemon in [old, &new] {
        wait_value(daemon, STOPPED, 1.0)?;
    }
    site.agent.add(&Entry::of(client)?)?.acked()?;
    wait_value(&new, ACTIVE, 1.0)?;
    wait_value(old, ACTIVE, 0.0)?;
    new.kill9()?;
    // then the one before it
    let answer = site.agent.add(&Entry::of(client)?)?.acked()?;
    assert_eq!(answer.link, 1);
    wait_served(old, &client.netns, 1)
}

#[test]
fn without_shared_ports_a_successor_waits_for_the_end_of_the_old_one() -> Result<()> {
    let env = [("INPOD_PORT_REUSE", "false")];
    let mut cni = Cni::plain(&Layout::standard(), &env)?;
    let client = cni.pod("client-0").clone();
    cni.sites[0].enroll(&client, &Rules::default())?;
    let mut new = Daemon::launch(&cni.sites[0].node, &env)?;
    let from = cni.sites[0].agent.record().len();
    let name = format!("add {}", client.uid);
    let (bytes, _) = cni.sites[0]
        .agent
        .record()
        .wait_reply(from, 3 * SOON, &name)?;
    assert_ne!(bytes, [0x0a, 0], "both cannot have the ports");
    wait_served(&new, &client.netns, 1)?;
    assert!(cni.daemons[0].terminate()?.status.success());
    let freed = Instant::now();
    new.wait_ready()?;
    assert!(
        freed.elapsed() < Duration::from_secs(7),
        "{:?}",
        freed.elapsed()
    );
    wait_served(&new, &client.netns, 1)
}
