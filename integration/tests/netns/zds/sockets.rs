//! The sockets in a pod as the kernel shows them: marks, options, and which of them there are under which settings.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use integration::cni::Rules;
use integration::{Layout, netns};

use super::{Cni, Table, add, open_ports};
use crate::support::echo;

/// What the contract wants to wait for `accept`, at least.
const BACKLOG_MIN: u32 = 128;

/// Everything `ss` says of each socket, by `<protocol> <address>`.
fn shown(netns: &Path) -> Result<BTreeMap<String, String>> {
    let out = Command::new("nsenter")
        .arg(format!("--net={}", netns.display()))
        .args(["--", "ss", "-HlntueO", "--inet-sockopt"])
        .output()
        .context("run ss")?;
    ensure!(out.status.success(), "ss: {}", out.status);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let rows = text.lines().filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        Some((
            format!("{} {}", fields.first()?, fields.get(4)?),
            line.to_owned(),
        ))
    });
    Ok(rows.collect())
}

/// Whether a word stands in the row.
fn has(row: &str, word: &str) -> bool {
    row.split([' ', '(', ')']).any(|found| found == word)
}

#[test]
fn every_socket_is_marked_and_listeners_are_transparent() -> Result<()> {
    for (env, mark) in [
        (vec![], "fwmark:0x539"),
        (vec![("PACKET_MARK", "30009")], "fwmark:0x7539"),
    ] {
        let (table, session) = Table::set(&env)?;
        let a = table.pod("a-0");
        add(&session, a, &a.netns)?;
        let rows = shown(&a.netns)?;
        assert_eq!(rows.len(), super::SERVED.len(), "{rows:?}");
        for (name, row) in &rows {
            assert!(has(row, mark), "{name} without {mark}: {row}");
            if name.starts_with("tcp") {
                assert!(has(row, "transparent"), "{name}: {row}");
                let backlog = row
                    .split_whitespace()
                    .nth(3)
                    .and_then(|n| n.parse::<u32>().ok());
                assert!(backlog >= Some(BACKLOG_MIN), "{name}: {row}");
            }
        }
    }
    Ok(())
}

#[test]
fn another_mark_is_exempt_all_the_same() -> Result<()> {
    // the rules look at the lower twelve bits
    let cni = Cni::plain(&Layout::standard(), &[("PACKET_MARK", "30009")])?;
    cni.enroll_shop(&Rules::default())?;
    let (client, server) = (cni.pod("client-0"), cni.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    for to in [
        server.at(9000),
        server.at6(9000),
        "10.96.0.10:9000".parse()?,
    ] {
        echo(client, to, &[])?;
    }
    Ok(())
}

#[test]
fn which_sockets_there_are_is_a_matter_of_settings() -> Result<()> {
    let wild = |prefix: &str| [15001, 15006, 15008].map(|port| format!("tcp {prefix}:{port}"));
    let named = |host: &str| ["tcp", "udp"].map(|kind| format!("{kind} {host}:15053"));
    let join = |parts: &[&[String]]| {
        let mut all = parts.concat();
        all.sort();
        all
    };
    let cases = [
        (
            "IPV6_ENABLED",
            "false",
            join(&[&wild("0.0.0.0"), &named("127.0.0.1")]),
        ),
        ("ISTIO_META_DNS_CAPTURE", "false", join(&[&wild("*")])),
    ];
    for (key, value, wanted) in cases {
        let (table, session) = Table::set(&[(key, value)])?;
        let a = table.pod("a-0");
        add(&session, a, &a.netns)?;
        let open: Vec<_> = open_ports(&a.netns)?.into_keys().collect();
        assert_eq!(open, wanted, "{key}={value}");
    }
    // a pod that has no IPv6 on loopback, beside one that has
    let (table, session) = Table::set(&[])?;
    let (a, b) = (table.pod("a-0"), table.pod("b-0"));
    netns::set_sysctl(&a.netns, "net/ipv6/conf/lo/disable_ipv6", "1")?;
    add(&session, a, &a.netns)?;
    add(&session, b, &b.netns)?;
    let open: Vec<_> = open_ports(&a.netns)?.into_keys().collect();
    assert_eq!(open, join(&[&wild("*"), &named("127.0.0.1")]));
    table.wait_served(&b.netns, true)
}

#[test]
fn without_source_preservation_nothing_is_transparent() -> Result<()> {
    let cni = Cni::plain(&Layout::standard(), &[("ENABLE_ORIG_SRC", "false")])?;
    cni.enroll_shop(&Rules::default())?;
    let (client, server, outsider) = (
        cni.pod("client-0"),
        cni.pod("server-0"),
        cni.pod("outsider-0"),
    );
    for (name, row) in shown(&server.netns)? {
        assert!(!has(&row, "transparent"), "{name}: {row}");
    }
    let _http = server.serve(&["http"])?;
    for from in [client, outsider] {
        let (status, body) = from.curl(&[&format!("http://{}/", server.at(8080))])?;
        assert_eq!(status, 0, "{body}");
        let peer = format!("\"peer\":\"{}:", server.v4);
        assert!(body.contains(&peer), "the pod's own address: {body}");
    }
    Ok(())
}
