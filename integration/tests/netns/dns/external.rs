//! The same with the rules of istio-cni, which lead questions to port 15053 in the pod.

use std::fs;

use anyhow::{Context, Result, ensure};
use integration::cni::{Rules, Site};
use integration::{App, Daemon, Pod, World};

use super::{ENV, Reply, dig, layout};
use crate::support::{SOON, world};

/// A node whose pods come from the agent.
struct Node {
    daemon: Daemon,
    upstream: App,
    _site: Site,
    world: World,
}

impl Node {
    fn set() -> Result<Self> {
        let world = world(&layout())?;
        let resolver = world.pod("resolver-0");
        let upstream = resolver.serve(&["dns"])?;
        fs::write(
            world.node(0).resolver(),
            format!("nameserver {}\n", resolver.v4),
        )?;
        let site = Site::raise(world.node(0))?;
        let daemon = Daemon::start(&site.node, &ENV)?;
        for name in ["client-0", "db-0"] {
            site.enroll(world.pod(name), &Rules::default())?;
        }
        let off = Rules {
            dns: false,
            ..Rules::default()
        };
        site.enroll(world.pod("private-0"), &off)?;
        Ok(Self {
            daemon,
            upstream,
            _site: site,
            world,
        })
    }

    fn pod(&self, name: &str) -> &Pod {
        self.world.pod(name)
    }

    /// Asks an address where no resolver is: who answers is the daemon.
    fn dig(&self, args: &[&str]) -> Result<Reply> {
        let nobody = "192.0.2.53".parse()?;
        let reply = dig(self.pod("client-0"), nobody, args);
        reply.with_context(|| format!("log:\n{}", self.daemon.tail()))
    }
}

#[test]
fn names_are_answered_and_others_asked_for_at_the_nodes_resolver() -> Result<()> {
    let node = Node::set()?;
    for more in ["+notcp", "+noedns", "+tcp"] {
        let reply = node.dig(&["WEB.shop", more])?;
        assert_eq!(
            reply.answers,
            ["web.shop. 30 A 10.96.0.4"],
            "{more}: {}",
            reply.text
        );
        assert!(reply.has_flag("aa"), "{}", reply.text);
        let reply = node.dig(&["web.shop.svc.cluster.local.cluster.local", "AAAA", more])?;
        assert_eq!(reply.data("AAAA"), ["fd96::4"], "{more}: {}", reply.text);
        assert_eq!(
            reply.data("CNAME"),
            ["web.shop.svc.cluster.local."],
            "{more}: {}",
            reply.text
        );
        let reply = node.dig(&["example.com", more])?;
        assert_eq!(reply.data("A"), ["192.0.2.1"], "{more}: {}", reply.text);
        let reply = node.dig(&["example.com", "MX", more])?;
        assert_eq!(
            reply.data("MX"),
            ["10 host.example.com."],
            "{more}: {}",
            reply.text
        );
        assert_eq!(node.dig(&["nx.test", more])?.status, "NXDOMAIN");
        let reply = node.dig(&["api.ext", more])?;
        assert!(
            reply.answers.is_empty() && reply.status == "NOERROR",
            "{}",
            reply.text
        );
    }
    // the pod's own address asks, so that its network policies hold
    let client = node.pod("client-0");
    node.upstream
        .wait_line(SOON, "a question of the pod", |line| {
            line.starts_with(&format!("udp from {}:", client.v4))
        })?;
    Ok(())
}

#[test]
fn a_pod_without_the_rules_for_dns_asks_by_itself() -> Result<()> {
    let node = Node::set()?;
    let resolver = node.pod("resolver-0").v4.into();
    let reply = dig(node.pod("private-0"), resolver, &["web.shop"])?;
    assert_eq!(reply.data("A"), ["192.0.2.1"], "{}", reply.text);
    Ok(())
}

#[test]
fn without_a_resolver_the_meshs_names_are_there() -> Result<()> {
    let mut node = Node::set()?;
    node.upstream.kill(SOON)?;
    let reply = node.dig(&["gone.test"])?;
    assert_eq!(reply.status, "SERVFAIL", "{}", reply.text);
    let reply = node.dig(&["web.shop"])?;
    ensure!(reply.data("A") == ["10.96.0.4"], "{}", reply.text);
    Ok(())
}
