//! The node's pods: takes what the enrolment source says, opens sockets, switches capture on and off, starts and ends the
//! data plane's part. The only writer of the kernel's capture state.
//!
//! A pod that leaves the mesh keeps the connections it has: new ones are no longer captured at once, the rest of its
//! capture goes when the last of them has ended.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use capture::{Capture, PodFlags, PodWanted};
use enroll::{Action, PodEvent, PodSpec, Roster, StopReason};
use mesh::workload::Protocol;
use mesh::{SpiffeId, Str};
use proxy::{Listeners, Phase, Pod, PodName, Shards, Shared};
use sys::Netns;
use telemetry::metrics::PodMetrics;
use tokio::sync::{mpsc, watch};

use crate::config;
use crate::endpoint::ready::Ready;
use crate::mesh_file::Fault;
use crate::net::{PodDns, PodNet, keep_alive};

/// Readiness task: the enrolment source was read and every pod in it serves.
pub const READY_TASK: &str = "workload proxy manager";
/// How often pods whose start failed are tried again.
const RETRY: Duration = Duration::from_secs(5);
/// How often the kernel's state is compared with what is wanted.
const RECONCILE: Duration = Duration::from_secs(30);
/// An old process keeps its listeners this long after a successor took over, for connections half-way into them.
const HANDOVER: Duration = Duration::from_secs(1);
/// Most single ports that a pod may exclude.
const EXCLUDED_PORTS_MAX: usize = 1024;

/// State of one pod, as the dump shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Start failed; why.
    Pending(String),
    /// Captured, says the kernel.
    Up,
    /// Left the mesh; this many of its connections still go on.
    Leaving,
    /// Not in the mesh; why.
    Out(String),
}

/// One pod, as the dump shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// pod name
    pub name: Str,
    /// pod namespace
    pub namespace: Str,
    /// service account; empty when it is not in the mesh
    pub service_account: Str,
    /// state
    pub state: State,
}

/// The pods by UID, shared with the dump.
pub type Views = Arc<Mutex<BTreeMap<Str, View>>>;

/// A lock whose holder cannot leave it half-written.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Member {
    spec: Arc<PodSpec>,
    serving: Option<Serving>,
    /// why the last start failed
    error: Option<String>,
}

struct Serving {
    pod: Arc<Pod>,
    cookie: u64,
}

/// What the node's task is made of.
pub struct Parts {
    /// settings
    pub config: Arc<config::Config>,
    /// kernel side
    pub capture: Arc<Mutex<Capture>>,
    /// data threads
    pub shards: Arc<Shards>,
    /// what they share
    pub shared: Arc<Shared>,
    /// where readiness is told
    pub ready: Ready,
    /// pod counts
    pub metrics: PodMetrics,
    /// for the dump
    pub views: Views,
    /// why the enrolment file on disk is not the one in force
    pub enroll_fault: Fault,
}

/// The pods of this node.
pub struct Node {
    parts: Parts,
    roster: Roster,
    members: HashMap<Str, Member>,
    /// pods that left and still have connections, with what is to be undone after them
    leaving: Vec<(Str, Serving)>,
    ended: (mpsc::UnboundedSender<()>, mpsc::UnboundedReceiver<()>),
    superseded: bool,
    /// identities whose certificates are kept
    identities: HashSet<SpiffeId>,
}

impl Node {
    /// A node without pods.
    pub fn new(parts: Parts) -> Self {
        Self {
            parts,
            roster: Roster::default(),
            members: HashMap::new(),
            leaving: Vec::new(),
            ended: mpsc::unbounded_channel(),
            superseded: false,
            identities: HashSet::new(),
        }
    }

    /// Follows the enrolment source until `quit`, then drains.
    pub async fn run(
        mut self,
        mut events: mpsc::Receiver<PodEvent>,
        mut quit: watch::Receiver<bool>,
    ) {
        let mut retry = tokio::time::interval(RETRY);
        let mut reconcile = tokio::time::interval(RECONCILE);
        let mut index = self.parts.shared.index.clone();
        loop {
            tokio::select! {
                biased;
                _ = quit.wait_for(|quit| *quit) => break,
                Some(()) = self.ended.1.recv() => {
                    self.settle();
                    self.show();
                }
                event = events.recv() => match event {
                    Some(event) => self.take(event).await,
                    None => break,
                },
                Ok(()) = index.changed() => self.refresh_identities(),
                _ = retry.tick() => self.retry().await,
                _ = reconcile.tick() => self.reconcile().await,
            }
        }
        self.drain().await;
    }

    fn capture(&self) -> MutexGuard<'_, Capture> {
        lock(&self.parts.capture)
    }

    async fn take(&mut self, event: PodEvent) {
        // the source has logged what is wrong
        *lock(&self.parts.enroll_fault) = match &event {
            PodEvent::Invalid(error) => Some(error.to_string()),
            _ => None,
        };
        for action in self.roster.apply(event) {
            match action {
                Action::Start(spec) | Action::Update(spec) => self.start(spec).await,
                Action::Stop(spec, reason) => self.stop(&spec, reason),
                // what a predecessor left is found below, by what the kernel says
                Action::Release(_) => {}
            }
        }
        // what has nothing open is usually through at once
        tokio::task::yield_now().await;
        while self.ended.1.try_recv().is_ok() {}
        self.settle();
        self.disown();
        self.show();
    }

    /// Starts serving a pod, or serves it with other options; connections that it has go on.
    async fn start(&mut self, spec: Arc<PodSpec>) {
        if self.is_superseded() {
            // the successor serves it, or nobody does: this process is not what makes the node ready
            self.parts.ready.pending(READY_TASK);
            return;
        }
        let uid = spec.uid.clone();
        match self.open(&spec).await {
            Ok(serving) => {
                tracing::info!(pod = %uid, name = %spec.name, namespace = %spec.namespace, "pod enrolled");
                self.parts.metrics.started.add(1);
                let before = self.members.insert(
                    uid.clone(),
                    Member {
                        spec,
                        serving: Some(serving),
                        error: None,
                    },
                );
                if let Some(before) = before.and_then(|m| m.serving) {
                    self.parts.metrics.stopped.add(1);
                    // connections half-way into the old listeners are still taken
                    self.let_go(uid, before, HANDOVER);
                }
                self.refresh_identities();
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(pod = %uid, name = %spec.name, namespace = %spec.namespace, error, "pod not enrolled, trying again");
                // what serves already goes on
                let serving = self.members.remove(&uid).and_then(|m| m.serving);
                self.members.insert(
                    uid,
                    Member {
                        spec,
                        serving,
                        error: Some(error),
                    },
                );
            }
        }
    }

    /// Sockets first, then capture: connections that capture brings find an open door.
    async fn open(&self, spec: &PodSpec) -> anyhow::Result<Serving> {
        let netns = match &spec.netns_handle {
            Some(handle) => Arc::clone(&handle.0),
            None => Netns::open(&spec.netns)
                .with_context(|| format!("network namespace {}", spec.netns.display()))?
                .into(),
        };
        let flags = PodFlags {
            dns: spec
                .capture
                .dns_capture
                .unwrap_or(self.parts.config.capture.dns),
            bypass_inbound: spec.capture.bypass_inbound,
        };
        let ports: Vec<u16> = spec
            .capture
            .exclude_ports
            .iter()
            .cloned()
            .flatten()
            .take(EXCLUDED_PORTS_MAX + 1)
            .collect();
        ensure!(
            ports.len() <= EXCLUDED_PORTS_MAX,
            "more than {EXCLUDED_PORTS_MAX} excluded ports"
        );
        let sockets = capture::sockets::open(&netns, flags).context("open sockets in the pod")?;
        keep_alive(&sockets, &self.parts.config.keepalive)
            .context("keepalive of the pod's listeners")?;
        let wanted = PodWanted {
            uid: spec.uid.to_string(),
            netns: Arc::clone(&netns),
            netns_path: spec.netns.clone(),
            cgroup: spec.cgroup.clone().context("its cgroup is not known")?,
            exclude_ranges: spec.capture.exclude_cidrs.clone(),
            exclude_ports: ports,
            flags,
        };
        self.capture().enroll(&wanted, &sockets)?;
        let cookie = netns.cookie();
        let net = Arc::new(PodNet::new(netns, &self.parts.config.keepalive));
        let who = PodName {
            uid: spec.uid.clone(),
            name: spec.name.clone(),
            namespace: spec.namespace.clone(),
            service_account: spec.service_account.clone(),
        };
        let pod = Pod::new(who, net);
        let listeners = Listeners {
            outbound: sockets.outbound,
            hbone: sockets.hbone,
            plaintext: sockets.plaintext,
            dns: sockets.dns.map(|dns| Box::new(PodDns(dns)) as _),
        };
        self.parts.shards.serve(Arc::clone(&pod), listeners).await;
        Ok(Serving { pod, cookie })
    }

    /// Ends a pod's stay. One that left the mesh keeps its connections; one that is replaced stays closed until its
    /// start, which follows, takes its capture over.
    fn stop(&mut self, spec: &PodSpec, reason: StopReason) {
        let Some(member) = self.members.remove(&spec.uid) else {
            return;
        };
        tracing::info!(pod = %spec.uid, name = %spec.name, namespace = %spec.namespace, ?reason, "pod un-enrolled");
        let Some(serving) = member.serving else {
            return;
        };
        self.parts.metrics.stopped.add(1);
        self.refresh_identities();
        // a successor undoes the pod's routes without knowing of connections here, so they would hang
        let superseded = self.is_superseded();
        if superseded || !matches!(reason, StopReason::Left(_)) {
            serving.pod.advance(Phase::Cut);
        }
        if !superseded
            && reason != StopReason::Replaced
            && let Err(error) = self.capture().retire(serving.cookie)
        {
            tracing::error!(pod = %spec.uid, %error, "capture of new connections could not be switched off");
        }
        self.let_go(spec.uid.clone(), serving, Duration::ZERO);
    }

    /// Keeps track of what no longer serves until its last connection has ended. Its listeners close after `grace`.
    fn let_go(&mut self, uid: Str, serving: Serving, grace: Duration) {
        let (pod, ended) = (Arc::clone(&serving.pod), self.ended.0.clone());
        if grace.is_zero() {
            pod.advance(Phase::Drain);
        }
        self.leaving.push((uid, serving));
        tokio::task::spawn_local(async move {
            tokio::time::sleep(grace).await;
            pod.advance(Phase::Drain);
            pod.idle().await;
            // the receiver is gone when the process ends, which leaves capture in place
            let _ = ended.send(());
        });
    }

    /// Undoes what is left of those that were let go and whose last connection has ended.
    fn settle(&mut self) {
        let superseded = self.is_superseded();
        let (done, open) = std::mem::take(&mut self.leaving)
            .into_iter()
            .partition(|(uid, s): &(Str, Serving)| s.pod.is_idle() && !self.awaits_start(uid));
        self.leaving = open;
        for (uid, serving) in done {
            let cookie = serving.cookie;
            let same = |s: &Serving| s.cookie == cookie;
            let needed = self.leaving.iter().any(|(_, s)| same(s))
                || self
                    .members
                    .values()
                    .any(|m| m.serving.as_ref().is_some_and(same));
            if !needed
                && !superseded
                && let Err(error) = self.capture().release(cookie)
            {
                tracing::error!(pod = %uid, %error, "capture could not be undone wholly, trying again");
            }
            let (shards, serial) = (Arc::clone(&self.parts.shards), serving.pod.serial());
            tokio::task::spawn_local(async move { shards.forget(serial).await });
        }
    }

    /// Whether a pod is in the mesh and does not serve yet: what captures it must stay, so that it stays closed.
    fn awaits_start(&self, uid: &str) -> bool {
        matches!(self.roster.pod(uid), Some(enroll::Sighting::In(_)))
            && self.members.get(uid).is_none_or(|m| m.error.is_some())
    }

    /// Undoes capture that nobody wants any more: left by a predecessor, or by a release that failed.
    fn disown(&mut self) {
        if !self.roster.synced() {
            return;
        }
        let adopted = self.capture().adopted();
        for left in adopted {
            if self.is_superseded() {
                return;
            }
            if self.awaits_start(&left.uid) {
                continue;
            }
            tracing::info!(pod = %left.uid, netns = %left.netns_path.display(), "undoing capture that nobody wants");
            if let Err(error) = self.capture().release(left.cookie) {
                tracing::error!(pod = %left.uid, %error, "capture could not be undone wholly, trying again");
            }
        }
    }

    async fn retry(&mut self) {
        let pending: Vec<_> = self
            .members
            .values()
            .filter(|m| m.error.is_some())
            .map(|m| Arc::clone(&m.spec))
            .collect();
        if pending.is_empty() {
            return;
        }
        for spec in pending {
            self.start(spec).await;
        }
        self.settle();
        self.show();
    }

    /// Compares the kernel's state with what is wanted, and repairs it.
    async fn reconcile(&mut self) {
        if self.is_superseded() {
            return;
        }
        let mut reopen = BTreeSet::new();
        let drifts = self.capture().check();
        for drift in drifts {
            tracing::warn!(pod = %drift.uid, what = %drift.what, "capture drifted, repairing");
            if drift.cure() == capture::Cure::Sockets {
                reopen.insert(drift.uid);
            } else if let Err(error) = self.capture().repair(&drift) {
                tracing::error!(pod = %drift.uid, %error, "capture not repaired, trying again");
            }
        }
        for uid in reopen {
            if let Some(spec) = self.members.get(uid.as_str()).map(|m| Arc::clone(&m.spec)) {
                self.start(spec).await;
            }
        }
        self.settle();
        self.disown();
        self.show();
    }

    /// Asks for the certificates of all pods whose identity is known, and of the node's workloads that speak HBONE and are
    /// about to be enrolled; drops those that nobody has any more.
    fn refresh_identities(&mut self) {
        let index = Arc::clone(&self.parts.shared.index.borrow());
        let known = self.members.values().filter_map(|member| {
            let spec = &member.spec;
            index.local_workload(&spec.namespace, &spec.name, &spec.service_account)
        });
        let mut now: HashSet<SpiffeId> = known.map(|workload| workload.identity()).collect();
        // without a node name every workload of the mesh would count as ours
        if self.parts.config.node_name.is_some() {
            let tunnelled = index
                .local_workloads()
                .filter(|w| w.profile.protocol == Protocol::Hbone || w.profile.native_tunnel);
            now.extend(tunnelled.map(|workload| workload.identity()));
        }
        drop(index);
        for gone in self.identities.difference(&now) {
            self.parts.shared.certs.forget(gone);
        }
        for identity in &now {
            self.parts.shared.certs.prefetch(identity);
        }
        self.identities = now;
    }

    /// Tells readiness, metrics and the dump how things stand.
    fn show(&self) {
        let pending = self.members.values().filter(|m| m.error.is_some()).count();
        self.parts
            .metrics
            .active
            .set((self.members.len() - pending) as i64);
        self.parts.metrics.pending.set(pending as i64);
        if pending == 0 && self.roster.synced() {
            self.parts.ready.done(READY_TASK);
        } else {
            self.parts.ready.pending(READY_TASK);
        }
        let mut views = lock(&self.parts.views);
        views.clear();
        for sighting in self.roster.pods() {
            let view = match sighting {
                enroll::Sighting::Out(pod) => View {
                    name: pod.name.clone(),
                    namespace: pod.namespace.clone(),
                    service_account: Str::default(),
                    state: State::Out(pod.why.to_string()),
                },
                enroll::Sighting::In(spec) => View {
                    name: spec.name.clone(),
                    namespace: spec.namespace.clone(),
                    service_account: spec.service_account.clone(),
                    state: match self.members.get(&spec.uid).map(|m| &m.error) {
                        Some(None) => State::Up,
                        Some(Some(error)) => State::Pending(error.clone()),
                        None => State::Pending("a successor serves this pod".to_owned()),
                    },
                },
            };
            views.insert(sighting.uid().clone(), view);
        }
        for (uid, serving) in &self.leaving {
            let view = View {
                name: serving.pod.name.clone(),
                namespace: serving.pod.namespace.clone(),
                service_account: serving.pod.service_account.clone(),
                state: State::Leaving,
            };
            // one that came back meanwhile is shown as what it is now
            let back = |v: &View| matches!(v.state, State::Up | State::Pending(_));
            if !views.get(uid).is_some_and(back) {
                views.insert(uid.clone(), view);
            }
        }
    }

    fn is_superseded(&mut self) -> bool {
        if !self.superseded && lock(&self.parts.capture).superseded() {
            tracing::info!(
                "a successor has taken over capture, serving what is open until told to end"
            );
            self.superseded = true;
        }
        self.superseded
    }

    /// Ends gracefully: listeners first, then what is open has until the deadline. Capture stays, so nothing leaks.
    async fn drain(mut self) {
        if self.is_superseded() {
            tokio::time::sleep(HANDOVER).await;
        }
        let pods: Vec<_> = self
            .members
            .into_values()
            .filter_map(|m| m.serving)
            .chain(self.leaving.into_iter().map(|(_, s)| s))
            .map(|s| s.pod)
            .collect();
        let open: usize = pods.iter().map(|p| p.flows()).sum();
        let deadline = self.parts.config.drain_deadline;
        tracing::info!(open, ?deadline, "draining");
        pods.iter().for_each(|pod| pod.advance(Phase::Drain));
        let all_idle = async {
            for pod in &pods {
                pod.idle().await;
            }
        };
        if tokio::time::timeout(deadline, all_idle).await.is_err() {
            pods.iter().for_each(|pod| pod.advance(Phase::Cut));
            for pod in &pods {
                // the tasks only have to notice; a stuck thread must not keep the process
                let _ = tokio::time::timeout(HANDOVER, pod.idle()).await;
            }
        }
    }
}
