//! The node's pods: takes what the enrolment source says, opens sockets, switches capture on and off, starts and ends the
//! data plane's part. The only writer of the kernel's capture state.
//!
//! A pod that leaves the mesh keeps the connections it has: new ones are no longer captured at once, the rest of its
//! capture goes when the last of them has ended.

mod keeper;
mod kernel;
mod orders;
mod serve;
mod view;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use anyhow::bail;
use capture::{Capture, external};
use enroll::cgroups::CgroupEvent;
use enroll::kubernetes::{Report, Reporter};
use enroll::zds::{Order, Standing};
use enroll::{Action, PodEvent, PodSpec, Roster, Why};
use mesh::workload::Protocol;
use mesh::{SpiffeId, Str};
use proxy::{Phase, Pod, Shards, Shared};
use telemetry::metrics::{CaptureMetrics, PodMetrics};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use crate::config::{self, Mode};
use crate::endpoint::ready::Ready;
use crate::hold;
use crate::mesh_file::Fault;

use crate::monitor::Monitor;
use crate::own;
use crate::repair;

pub use keeper::Keeper;
pub use view::{Held, Postures, State, View, Views};

/// Readiness task: the enrolment source was read and every pod in it serves.
pub const READY_TASK: &str = "workload proxy manager";
/// How often pods whose start failed are tried again.
const RETRY: Duration = Duration::from_secs(5);
/// An old process keeps its listeners this long after a successor took over, for connections half-way into them.
const HANDOVER: Duration = Duration::from_secs(1);

/// A lock whose holder cannot leave it half-written.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Member {
    spec: Arc<PodSpec>,
    serving: Option<Serving>,
    /// why the last start failed
    error: Option<String>,
    /// what the last look at the kernel's state found and nobody could mend
    fault: Option<String>,
}

struct Serving {
    pod: Arc<Pod>,
    cookie: u64,
}

/// Who brings the pods' connections to the daemon's sockets.
#[derive(Clone)]
pub enum Redirection {
    /// our kernel programs
    Ebpf(Arc<Mutex<Capture>>),
    /// rules that others put into the pods; these are the listeners they lead to
    External(external::Options),
}

/// Where the pods come from.
pub enum Source {
    /// a source that says what it sees
    Events(mpsc::Receiver<PodEvent>),
    /// istio-cni, which waits for each answer
    Orders(mpsc::Receiver<Order>, watch::Receiver<Standing>),
}

/// What the node's task is made of.
pub struct Parts {
    /// settings
    pub config: Arc<config::Config>,
    /// kernel side
    pub redirection: Redirection,
    /// listeners of the only member that are open already
    pub early: Option<external::Sockets>,
    /// who is held until it is enrolled
    pub keeper: Keeper,
    /// cgroups of pods as they come and go
    pub cgroups: Option<mpsc::Receiver<CgroupEvent>>,
    /// whom to tell how a pod stands
    pub reporter: Option<Reporter>,
    /// what follows the source: it ends before the process drains
    pub source_task: AbortHandle,
    /// data threads
    pub shards: Arc<Shards>,
    /// what they share
    pub shared: Arc<Shared>,
    /// where readiness is told
    pub ready: Ready,
    /// the readiness task that is done once all pods are served
    pub served: &'static str,
    /// pod counts
    pub metrics: PodMetrics,
    /// what keeps the kernel's state as it should be
    pub repair: Option<repair::Keeper>,
    /// pods by state
    pub states: CaptureMetrics,
    /// for the dump
    pub views: Views,
    /// the same
    pub posture: Postures,
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
    /// how istio-cni's connection stands, if that is the source
    standing: Option<watch::Receiver<Standing>>,
    keeper: Keeper,
    monitor: Monitor,
    repair: Option<repair::Keeper>,
}

impl Node {
    /// A node without pods.
    pub fn new(mut parts: Parts) -> Self {
        let keeper = std::mem::replace(&mut parts.keeper, Keeper::idle());
        let repair = parts.repair.take();
        Self {
            parts,
            roster: Roster::default(),
            members: HashMap::new(),
            leaving: Vec::new(),
            ended: mpsc::unbounded_channel(),
            superseded: false,
            identities: HashSet::new(),
            standing: None,
            keeper,
            monitor: Monitor::new(),
            repair,
        }
    }

    /// Follows the enrolment source until `quit`, then drains.
    ///
    /// Errors: the source has ended by itself, which is a mistake of ours; nothing is drained then, so that a successor comes soon.
    pub async fn run(
        mut self,
        source: Source,
        mut quit: watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        let mut retry = tokio::time::interval(RETRY);
        let mut reconcile = tokio::time::interval(self.parts.config.capture.reconcile);
        let mut beat = tokio::time::interval(hold::HEARTBEAT);
        let mut index = self.parts.shared.index.clone();
        let mut cgroups = self.parts.cgroups.take();
        let (mut events, mut orders, mut standing) = match source {
            Source::Events(events) => (Some(events), None, None),
            Source::Orders(orders, standing) => (None, Some(orders), Some(standing)),
        };
        self.standing.clone_from(&standing);
        loop {
            tokio::select! {
                biased;
                _ = quit.wait_for(|quit| *quit) => break,
                Some(()) = self.ended.1.recv() => {
                    self.settle();
                    self.show();
                }
                // before the source: what it says of a pod is better said to a cgroup that is known
                Some(event) = next(&mut cgroups) => {
                    if !self.is_superseded() {
                        self.keeper.noticed(event);
                    }
                }
                event = next(&mut events) => match event {
                    Some(event) => {
                        self.take(event).await;
                        self.must_serve()?;
                    }
                    None => bail!("the source of pods has ended by itself"),
                },
                order = next(&mut orders) => match order {
                    Some(order) => self.carry_out(order).await,
                    None => bail!("the source of pods has ended by itself"),
                },
                () = changed(&mut standing) => self.show(),
                Ok(()) = index.changed() => self.refresh_identities(),
                cookie = self.monitor.changed() => self.inspect(cookie).await,
                () = self.keeper.due() => self.held(),
                _ = beat.tick() => {
                    if !self.is_superseded() {
                        self.keeper.beat();
                        self.held();
                    }
                }
                _ = retry.tick() => self.retry().await,
                _ = reconcile.tick() => self.reconcile().await,
            }
        }
        // istio-cni is not to count on this process any more, and pods are the successor's to write on
        self.parts.source_task.abort();
        if let Some(reporter) = &self.parts.reporter {
            reporter.retire();
        }
        drop((events, orders, cgroups));
        self.drain().await;
        Ok(())
    }

    /// A machine of its own that cannot be served is nobody's to try again: the one who started the daemon is to know.
    ///
    /// Errors: why it is not served.
    fn must_serve(&self) -> anyhow::Result<()> {
        if self.parts.config.mode == Mode::Shared {
            return Ok(());
        }
        let error = self.members.values().find_map(|m| m.error.as_deref());
        error.map_or(Ok(()), |error| bail!("PROXY_MODE=dedicated: {error}"))
    }

    async fn take(&mut self, event: PodEvent) {
        // the source has logged what is wrong
        *lock(&self.parts.enroll_fault) = match &event {
            PodEvent::Invalid(error) => Some(error.to_string()),
            _ => None,
        };
        let touched = self.roster.touched(&event);
        let actions = self.roster.apply(event);
        self.expect(&touched);
        for action in actions {
            match action {
                Action::Start(spec) | Action::Update(spec) => self.start(spec).await,
                Action::Stop(spec, reason) => self.stop(&spec, reason),
                // it waits, and that was said
                Action::Release(pod) if pod.why == Why::PlaceUnknown => {}
                // what a predecessor left is found below, by what the kernel says
                Action::Release(pod) => self.report(&pod.uid, Report::Left),
            }
        }
        // what has nothing open is usually through at once
        tokio::task::yield_now().await;
        while self.ended.1.try_recv().is_ok() {}
        self.settle();
        self.disown();
        self.show();
    }

    fn report(&self, uid: &Str, report: Report) {
        if let Some(reporter) = &self.parts.reporter {
            reporter.report(uid, report);
        }
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
        if self.parts.config.node_name.is_some() && self.parts.config.mode == Mode::Shared {
            let tunnelled = index
                .local_workloads()
                .filter(|w| w.profile.protocol == Protocol::Hbone || w.profile.native_tunnel);
            now.extend(tunnelled.map(|workload| workload.identity()));
        }
        now.extend(own::identity(&self.parts.config, &index));
        drop(index);
        for gone in self.identities.difference(&now) {
            self.parts.shared.certs.forget(gone);
        }
        for identity in &now {
            self.parts.shared.certs.prefetch(identity);
        }
        self.identities = now;
    }

    fn is_superseded(&mut self) -> bool {
        if !self.superseded && self.capture().is_some_and(|capture| capture.superseded()) {
            tracing::info!(
                "a successor has taken over capture, serving what is open until told to end"
            );
            self.superseded = true;
            if let Some(reporter) = &self.parts.reporter {
                reporter.retire();
            }
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
            .drain()
            .filter_map(|(_, m)| m.serving)
            .chain(self.leaving.drain(..).map(|(_, s)| s))
            .map(|s| s.pod)
            .collect();
        let open: usize = pods.iter().map(|p| p.flows()).sum();
        let deadline = self.parts.config.drain_deadline;
        tracing::info!(open, ?deadline, "draining");
        pods.iter().for_each(|pod| pod.advance(Phase::Drain));
        // a namespace is not kept for longer than something is open in it: the drain may take hours
        if let Some(mut capture) = self.capture() {
            capture.abandon();
        }
        drop(self.monitor);
        let weak: Vec<_> = pods.iter().map(Arc::downgrade).collect();
        let mut waits = JoinSet::new();
        for pod in pods {
            waits.spawn_local(async move { pod.idle().await });
        }
        let idle = async { while waits.join_next().await.is_some() {} };
        if tokio::time::timeout(deadline, idle).await.is_ok() {
            return;
        }
        let left = || weak.iter().filter_map(Weak::upgrade);
        left().for_each(|pod| pod.advance(Phase::Cut));
        // the tasks only have to notice; a stuck thread must not keep the process
        let idle = async { while waits.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(HANDOVER, idle).await;
    }
}

/// The next of what a channel brings; never, where there is no channel.
async fn next<T>(channel: &mut Option<mpsc::Receiver<T>>) -> Option<T> {
    match channel {
        Some(channel) => channel.recv().await,
        None => std::future::pending().await,
    }
}

/// Returns when the value has changed; never, where there is none or its sender is gone.
async fn changed<T>(value: &mut Option<watch::Receiver<T>>) {
    let gone = match value {
        Some(value) => value.changed().await.is_err(),
        None => true,
    };
    if gone {
        std::future::pending().await
    }
}
