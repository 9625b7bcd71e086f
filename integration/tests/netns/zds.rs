//! Pods that come from istio-cni's agent: what the daemon answers, what it opens, what it says about it.

mod agent;
mod changes;
mod errors;
mod ground;
mod life;
mod mixed;
mod pending;
mod rows;
mod sockets;
mod traffic;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::cni::{self, Entry, Manual, Request, Rules, Session, Site};
use integration::{Daemon, Layout, Pod, PodPlan, World, until};

use crate::support::{self, SOON};

/// Most time for a daemon to start and to dial.
const START_MAX: Duration = Duration::from_secs(30);
/// Name of the readiness task.
const TASK: &str = "workload proxy manager";

const ACTIVE: &str = "workload_manager_active_proxy_count";
const PENDING: &str = "workload_manager_pending_proxy_count";
const STARTED: &str = "workload_manager_proxies_started_total";
const STOPPED: &str = "workload_manager_proxies_stopped_total";

/// What is open in the namespace of a pod that is served, as `ss` shows it.
const SERVED: [&str; 7] = [
    "tcp *:15001",
    "tcp *:15006",
    "tcp *:15008",
    "tcp 127.0.0.1:15053",
    "tcp [::1]:15053",
    "udp 127.0.0.1:15053",
    "udp [::1]:15053",
];

/// A node with a daemon whose agent is the test itself.
struct Table {
    /// dropped first
    daemon: Daemon,
    agent: Manual,
    world: World,
}

impl Table {
    /// A daemon that has said hello, on a node with the pods `a-0` and `b-0`.
    ///
    /// - `env`: as in [`Daemon::start`]
    fn set(env: &[(&str, &str)]) -> Result<(Self, Session)> {
        let pods = ["a-0", "b-0"].map(|name| PodPlan::new("shop", name, 0));
        let world = support::world(&Layout {
            nodes: 1,
            pods: pods.to_vec(),
            services: Vec::new(),
        })?;
        let node = cni::settings(world.node(0));
        let agent = Manual::listen(&cni::socket(&node))?;
        let daemon = Daemon::launch(&node, env)?;
        let session = agent
            .session(START_MAX)
            .with_context(|| format!("log:\n{}", daemon.tail()))?;
        let table = Self {
            daemon,
            agent,
            world,
        };
        Ok((table, session))
    }

    fn pod(&self, name: &str) -> &Pod {
        self.world.pod(name)
    }

    /// The daemon's next connection; the agent's own pace is not kept here.
    fn again(&self, limit: Duration) -> Result<Session> {
        self.agent
            .session(limit)
            .with_context(|| format!("log:\n{}", self.daemon.tail()))
    }

    /// The pods that come up in a connection's snapshot have to be acked.
    fn snapshot(&self, session: &Session, pods: &[&Pod]) -> Result<()> {
        for pod in pods {
            add(session, pod, &pod.netns)?;
        }
        session.ack(&Request::snapshot_sent(), &[])
    }

    fn wait_value(&self, name: &str, wanted: f64) -> Result<()> {
        wait_value(&self.daemon, name, wanted)
    }

    fn wait_ready(&self) -> Result<()> {
        wait_ready(&self.daemon)
    }

    /// Waits until the daemon says that it is not ready, and why.
    fn wait_blocked(&self) -> Result<()> {
        let answer = until(SOON, "not ready", || {
            Ok(Some(self.daemon.get(15021, "/healthz/ready")?).filter(|a| a.status != 200))
        })?;
        ensure!(
            answer.status == 500 && answer.body.contains(TASK),
            "{answer:?}"
        );
        Ok(())
    }

    /// Waits until exactly what a served pod needs, or nothing, is open in the namespace.
    fn wait_served(&self, netns: &Path, served: bool) -> Result<()> {
        wait_served(&self.daemon, netns, usize::from(served))
    }
}

/// The bytes of an addition.
fn add_of(pod: &Pod) -> Request {
    Request::add(&pod.uid, &pod.name, &pod.namespace, &pod.service_account)
}

/// Adds a pod, with the namespace at `path`; it has to be acked.
fn add(session: &Session, pod: &Pod, path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    session.ack(&add_of(pod), &[file.as_fd()])
}

/// What listens in a namespace on ports of the daemon (15001, ...), and how many of each.
fn open_ports(netns: &Path) -> Result<BTreeMap<String, usize>> {
    let out = Command::new("nsenter")
        .arg(format!("--net={}", netns.display()))
        .args(["--", "ss", "-H", "-l", "-n", "-t", "-u"])
        .output()
        .context("run ss")?;
    ensure!(out.status.success(), "ss: {}", out.status);
    let mut found = BTreeMap::new();
    for line in String::from_utf8_lossy(&out.stdout).lines() {
        let fields: Vec<_> = line.split_whitespace().collect();
        if let [kind, _, _, _, local, ..] = *fields
            && local
                .rsplit_once(':')
                .is_some_and(|(_, port)| port.starts_with("15"))
        {
            *found.entry(format!("{kind} {local}")).or_insert(0) += 1;
        }
    }
    Ok(found)
}

/// Waits until everything of a served pod is open in the namespace `copies` times, and nothing else.
fn wait_served(daemon: &Daemon, netns: &Path, copies: usize) -> Result<()> {
    let wanted: BTreeMap<_, _> = SERVED
        .iter()
        .filter(|_| copies > 0)
        .map(|&line| (line.to_owned(), copies))
        .collect();
    let mut last = BTreeMap::new();
    until(SOON, "sockets in the pod", || {
        last = open_ports(netns)?;
        Ok((last == wanted).then_some(()))
    })
    .with_context(|| format!("open: {last:?}\nlog:\n{}", daemon.tail()))
}

fn wait_value(daemon: &Daemon, name: &str, wanted: f64) -> Result<()> {
    let mut last = None;
    until(SOON, name, || {
        last = daemon.metrics()?.value(name);
        Ok((last == Some(wanted)).then_some(()))
    })
    .with_context(|| format!("{last:?} instead of {wanted}\nlog:\n{}", daemon.tail()))
}

fn wait_ready(daemon: &Daemon) -> Result<()> {
    let mut last = String::new();
    until(SOON, "readiness", || {
        let answer = daemon.get(15021, "/healthz/ready")?;
        last.clone_from(&answer.body);
        Ok((answer.status == 200).then_some(()))
    })
    .with_context(|| format!("{last}\nlog:\n{}", daemon.tail()))
}

/// Two nodes with agents, the standard pods, and daemons that know the mesh. Namespace `shop` is in the mesh.
struct Cni {
    /// one per node; dropped before the world
    daemons: Vec<Daemon>,
    sites: Vec<Site>,
    world: World,
}

impl Cni {
    /// Agents and daemons run; no pod is enrolled.
    fn plain(layout: &Layout, env: &[(&str, &str)]) -> Result<Self> {
        let world = support::world(layout)?;
        let sites: Vec<_> = world
            .nodes()
            .iter()
            .map(Site::raise)
            .collect::<Result<_>>()?;
        let daemons = sites.iter().map(|site| Daemon::start(&site.node, env));
        Ok(Self {
            daemons: daemons.collect::<Result<_>>()?,
            sites,
            world,
        })
    }

    /// All pods of `shop` are enrolled, then announced.
    fn up(layout: &Layout) -> Result<Self> {
        let cni = Self::plain(layout, &[])?;
        cni.enroll_shop(&Rules::default())?;
        Ok(cni)
    }

    fn enroll_shop(&self, rules: &Rules) -> Result<()> {
        self.enroll_shop_with(|_| rules.clone())
    }

    /// The same, with rules for each pod.
    fn enroll_shop_with(&self, rules: impl Fn(&Pod) -> Rules) -> Result<()> {
        for pod in self
            .world
            .pods()
            .iter()
            .filter(|pod| pod.namespace == "shop")
        {
            self.sites[pod.node]
                .enroll(pod, &rules(pod))
                .with_context(|| format!("log:\n{}", self.daemons[pod.node].tail()))?;
        }
        self.announce()
    }

    /// Says in the mesh state that `shop` speaks HBONE.
    fn announce(&self) -> Result<()> {
        self.world.model().label("shop", true);
        self.settle()
    }

    /// Changes the mesh state and waits until all daemons have it.
    fn edit(&self, change: impl FnOnce(&mut integration::Model)) -> Result<()> {
        change(&mut self.world.model());
        self.settle()
    }

    fn settle(&self) -> Result<()> {
        self.world.publish_state()?;
        let all: Vec<_> = self.daemons.iter().collect();
        self.world.settled_state(&all)
    }

    fn pod(&self, name: &str) -> &Pod {
        self.world.pod(name)
    }

    fn entry(&self, name: &str) -> Result<Entry> {
        Entry::of(self.pod(name))
    }
}
