//! Pods that leave or move while they are in use.

use std::time::{Duration, Instant};

use anyhow::Result;
use integration::cni::{Entry, Rules};
use integration::{App, Layout, PodPlan, until};

use super::{ACTIVE, Cni, STARTED, STOPPED, wait_served, wait_value};
use crate::support::{SOON, connect, echo, hold, still_held};

/// How soon what is drained immediately has to be over.
const AT_ONCE: Duration = Duration::from_secs(1);

fn wait_cut(held: &App, what: &str) -> Result<()> {
    held.wait_line(SOON, what, |line| line.starts_with("cut"))?;
    Ok(())
}

#[test]
fn a_pod_that_leaves_is_cut_at_once_and_others_are_not() -> Result<()> {
    let mut layout = Layout::standard();
    layout.pods.push(PodPlan::new("shop", "second-0", 0));
    let cni = Cni::up(&layout)?;
    let (client, second, server) = (
        cni.pod("client-0"),
        cni.pod("second-0"),
        cni.pod("server-0"),
    );
    let _echo = server.serve(&["echo"])?;
    let (held, kept) = (
        hold(client, server.at(9000))?,
        hold(second, server.at(9000))?,
    );
    let since = Instant::now();
    cni.sites[0].release(client, &Rules::default())?;
    wait_cut(&held, "the cut of the one that leaves")?;
    assert!(since.elapsed() < AT_ONCE, "{:?}", since.elapsed());
    wait_served(&cni.daemons[0], &client.netns, 0)?;
    cni.daemons[0].wait_access("the cut one's line", |line| {
        line.is("outbound") && line.field("error") == "connection closed due to connection drain"
    })?;
    still_held(&kept)?;
    // out of the mesh it is a pod like any other
    let seen = echo(client, server.at(9000), &[])?;
    let from = crate::support::local(&seen)?;
    cni.daemons[1].wait_access("plaintext at the server", |line| {
        line.is("inbound")
            && line.field("src.addr") == from
            && line.field("src.identity").is_empty()
    })?;
    Ok(())
}

#[test]
fn a_sandbox_made_anew_is_served_and_the_old_one_is_cut() -> Result<()> {
    let mut layout = Layout::standard();
    layout.pods.push(PodPlan::new("other", "anew-0", 0));
    let cni = Cni::up(&layout)?;
    let (client, server) = (cni.pod("client-0"), cni.pod("server-0"));
    let anew = cni.pod("anew-0");
    let _echo = server.serve(&["echo"])?;
    let held = hold(client, server.at(9000))?;
    Rules::default().install(anew)?;
    let agent = &cni.sites[0].agent;
    agent.add(&Entry::at(client, &anew.netns)?)?.acked()?;
    wait_cut(&held, "the cut of the old sandbox")?;
    wait_served(&cni.daemons[0], &client.netns, 0)?;
    wait_served(&cni.daemons[0], &anew.netns, 1)?;
    let seen = echo(anew, server.at(9000), &[])?;
    let from = crate::support::local(&seen)?;
    let line = cni.daemons[0].wait_access("outbound line", |line| {
        line.is("outbound") && line.field("src.addr") == from
    })?;
    assert_eq!(
        line.field("src.identity"),
        client.identity(),
        "{}",
        line.text
    );
    // what is left of the old one goes nowhere: its rules lead to ports that nobody serves
    let seen = connect(client, server.at(9000), &["--timeout-ms", "1000"])?;
    assert_ne!(seen["received"], "hello", "{seen}");
    for (name, wanted) in [(STARTED, 2.0), (STOPPED, 1.0), (ACTIVE, 1.0)] {
        wait_value(&cni.daemons[0], name, wanted)?;
    }
    Ok(())
}

#[test]
fn leaving_and_coming_again_within_100_ms_works_under_traffic() -> Result<()> {
    let cni = Cni::up(&Layout::standard())?;
    let (client, server) = (cni.pod("client-0"), cni.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    for _ in 0..5 {
        let held = [
            hold(client, server.at(9000))?,
            hold(client, server.at6(9000))?,
        ];
        let since = Instant::now();
        for answer in cni.sites[0].agent.del(&client.uid)? {
            answer.acked()?;
        }
        cni.sites[0].agent.add(&cni.entry("client-0")?)?.acked()?;
        assert!(since.elapsed() < AT_ONCE, "{:?}", since.elapsed());
        for held in &held {
            wait_cut(held, "the cut")?;
        }
        echo(client, server.at(9000), &[])?;
    }
    Ok(())
}

#[test]
fn a_reused_address_never_meets_an_old_tunnel() -> Result<()> {
    let mut layout = Layout::standard();
    layout.pods.push(PodPlan::new("shop", "heir-0", 1));
    let cni = Cni::up(&layout)?;
    let (client, server, heir) = (cni.pod("client-0"), cni.pod("server-0"), cni.pod("heir-0"));
    let echo_app = server.serve(&["echo"])?;
    echo(client, server.at(9000), &[])?;
    // the server goes, and another pod gets its address
    cni.sites[1].release(server, &Rules::default())?;
    drop(echo_app);
    let old = [server.v4.to_string(), heir.v4.to_string()];
    integration::netns::ip(
        Some(&server.netns_name),
        &[format!("addr del {}/24 dev eth0", old[0])],
    )?;
    integration::netns::ip(
        Some(&heir.netns_name),
        &[
            format!("addr del {}/24 dev eth0", old[1]),
            format!("addr add {}/24 dev eth0", old[0]),
            format!("route add default via {}", cni.world.node(1).gateway4),
        ],
    )?;
    let (taken, given) = (server.v4, heir.v4);
    cni.edit(|model| {
        model.pods.retain(|pod| pod.name != "server-0");
        for service in &mut model.services {
            service.pods.clear();
        }
        if let Some(pod) = model.pod_mut("heir-0") {
            for ip in &mut pod.ips {
                if *ip == given {
                    *ip = taken.into();
                }
            }
        }
    })?;
    let _echo = heir.serve(&["echo"])?;
    // neighbours still know the old owner of the address until they ask again
    integration::netns::ip(
        Some(&cni.world.node(1).netns_name),
        &["neigh flush all".to_owned()],
    )?;
    let seen = until(SOON, "the heir's answer", || {
        Ok(Some(connect(client, server.at(9000), &[])?).filter(|seen| seen["received"] == "hello"))
    })?;
    let from = crate::support::local(&seen)?;
    let line = cni.daemons[0].wait_access("outbound line", |line| {
        line.is("outbound") && line.field("src.addr") == from
    })?;
    assert_eq!(line.field("dst.identity"), heir.identity(), "{}", line.text);
    Ok(())
}
