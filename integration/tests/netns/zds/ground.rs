//! The agent's rules by themselves: what they refuse while nobody serves, what they let pass, and that they go again.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use integration::cni::{PROBE_V4, Rules, snat_probes};
use integration::{Layout, Pod, netns};

use crate::support::{connect, echo, world};

/// Everything the rules can have left in a pod.
fn traces(pod: &Pod) -> Result<String> {
    let mut all = String::new();
    for tool in ["iptables-save", "ip6tables-save"] {
        let out = Command::new("nsenter")
            .arg(format!("--net={}", pod.netns.display()))
            .args(["--", tool])
            .output()
            .with_context(|| format!("run {tool}"))?;
        ensure!(out.status.success(), "{tool}: {}", out.status);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        all.extend(
            text.lines()
                .filter(|line| line.starts_with("-A"))
                .map(|line| format!("{line}\n")),
        );
    }
    for args in [&["rule"][..], &["-6", "rule"]] {
        all.push_str(&netns::show(&pod.netns_name, args)?);
    }
    Ok(all)
}

#[test]
fn without_a_daemon_captured_traffic_is_refused_and_the_rest_passes() -> Result<()> {
    let world = world(&Layout::standard())?;
    let (client, server) = (world.pod("client-0"), world.pod("server-0"));
    let _apps = (
        server.serve(&["echo"])?,
        client.serve(&["echo"])?,
        server.serve(&["http"])?,
    );
    let before = traces(server)?;
    for (rules, inbound) in [
        (Rules::default(), false),
        (
            Rules {
                dns: false,
                bypass_inbound: true,
                reroute: Vec::new(),
            },
            true,
        ),
    ] {
        rules.install(server)?;
        for to in [client.at(9000), client.at6(9000)] {
            let seen = connect(server, to, &[])?;
            assert_eq!(seen["kind"], "ConnectionRefused", "{to}: {seen}");
        }
        for to in [server.at(9000), server.at6(9000)] {
            let seen = connect(client, to, &[])?;
            assert_eq!(seen["received"] == "hello", inbound, "{to}: {seen}");
            echo(server, to, &[])?;
        }
        rules.remove(server)?;
        assert_eq!(traces(server)?, before);
        echo(client, server.at(9000), &[])?;
        echo(server, client.at6(9000), &[])?;
    }
    Rules::default().install(server)?;
    snat_probes(world.node(1), server)?;
    let answer = super::traffic::probe(world.node(1), server.at(8080))?;
    ensure!(
        answer.contains(&format!("\"peer\":\"{PROBE_V4}:")),
        "{answer}"
    );
    Ok(())
}
