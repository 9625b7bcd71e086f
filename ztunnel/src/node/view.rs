//! How the pods stand, for readiness, metrics and the dump.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use enroll::Sighting;
use enroll::kubernetes::Reporter;
use mesh::Str;
use telemetry::metrics::PodState;

use super::{Node, lock};
use crate::config::Mode;

/// State of one pod, as the dump shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Start failed, or it does not stand as it should; why.
    Pending(String),
    /// Captured, says the kernel; where others capture: served.
    Up,
    /// Left the mesh; some of its connections still go on.
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
    /// its connections wait or are refused until it is enrolled
    pub held: Option<Held>,
}

impl View {
    /// The state that it is counted under.
    fn counts_as(&self) -> PodState {
        match (&self.state, self.held) {
            (State::Up, _) => PodState::Enrolled,
            (State::Leaving, _) => PodState::Leaving,
            (_, Some(_)) => PodState::Held,
            (State::Pending(_), None) => PodState::Pending,
            (State::Out(_), None) => PodState::Out,
        }
    }
}

/// A pod that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// its connections wait
    Waiting,
    /// it was held for too long: its connections are refused
    Denied,
}

/// How the process stands among others, shared with the dump.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Posture {
    /// a successor owns capture
    pub superseded: bool,
    /// the source of pods is connected; none = it needs no connection
    pub connected: Option<bool>,
    /// what does not work between the source and us
    pub faults: Vec<String>,
}

/// Shared with the dump.
pub type Postures = Arc<Mutex<Posture>>;

/// The pods by UID, shared with the dump.
pub type Views = Arc<Mutex<BTreeMap<Str, View>>>;

impl Node {
    /// Tells readiness, metrics and the dump how things stand.
    pub(super) fn show(&self) {
        let pending = match &self.standing {
            Some(standing) => standing.borrow().pending.len(),
            None => self.members.values().filter(|m| m.error.is_some()).count(),
        };
        let serving = self.members.values().filter(|m| m.error.is_none()).count();
        self.parts.metrics.active.set(serving as i64);
        self.parts.metrics.pending.set(pending as i64);
        let known = match &self.standing {
            Some(standing) => {
                let standing = standing.borrow();
                standing.connected && standing.snapshot
            }
            None => self.roster.synced(),
        };
        if pending == 0 && known {
            self.parts.ready.done(self.parts.served);
        } else {
            self.not_ready();
        }
        *lock(&self.parts.posture) = self.posture();
        let mut views = lock(&self.parts.views);
        views.clear();
        match &self.standing {
            Some(standing) => {
                self.view_served(&mut views);
                for pod in &standing.borrow().pending {
                    let state = State::Pending(pod.error.clone());
                    let account = Str::default();
                    let view = view(&pod.name, &pod.namespace, &account, state);
                    views.insert(pod.uid.clone(), view);
                }
            }
            None => self.view_roster(&mut views),
        }
        self.view_leaving(&mut views);
        self.view_held(&mut views);
        for state in PodState::ALL {
            let count = views.values().filter(|view| view.counts_as() == state);
            self.parts.states.set_pods(state, count.count());
        }
    }

    /// The node's pods are not all served. A machine of its own has no such task: it is served, or its daemon has ended.
    pub(super) fn not_ready(&self) {
        if self.parts.config.mode == Mode::Shared {
            self.parts.ready.pending(self.parts.served);
        }
    }

    fn posture(&self) -> Posture {
        let api = self.parts.reporter.as_ref().map(Reporter::standing);
        let agent = self.standing.as_ref().map(|agent| agent.borrow().connected);
        let faults = api.map(|api| api.faults).unwrap_or_default();
        let reached = self.parts.reporter.is_some().then_some(faults.is_empty());
        Posture {
            superseded: self.superseded,
            connected: agent.or(reached),
            faults,
        }
    }

    fn view_served(&self, views: &mut BTreeMap<Str, View>) {
        for (uid, member) in &self.members {
            let spec = &member.spec;
            let view = view(
                &spec.name,
                &spec.namespace,
                &spec.service_account,
                State::Up,
            );
            views.insert(uid.clone(), view);
        }
    }

    fn view_roster(&self, views: &mut BTreeMap<Str, View>) {
        for sighting in self.roster.pods() {
            let view = match sighting {
                Sighting::Out(pod) => {
                    let state = State::Out(pod.why.to_string());
                    view(&pod.name, &pod.namespace, &Str::default(), state)
                }
                Sighting::In(spec) => {
                    let fault = |m: &super::Member| m.error.clone().or_else(|| m.fault.clone());
                    let state = match self.members.get(&spec.uid).map(fault) {
                        Some(None) => State::Up,
                        Some(Some(error)) => State::Pending(error),
                        None => State::Pending("a successor serves this pod".to_owned()),
                    };
                    view(&spec.name, &spec.namespace, &spec.service_account, state)
                }
            };
            views.insert(sighting.uid().clone(), view);
        }
    }

    fn view_leaving(&self, views: &mut BTreeMap<Str, View>) {
        for (uid, serving) in &self.leaving {
            let pod = &serving.pod;
            let view = view(
                &pod.name,
                &pod.namespace,
                &pod.service_account,
                State::Leaving,
            );
            // one that came back meanwhile is shown as what it is now
            let back = |v: &View| matches!(v.state, State::Up | State::Pending(_));
            // and one whose place is sought again has not left
            if !views.get(uid).is_some_and(back) && !self.awaits_start(uid) {
                views.insert(uid.clone(), view);
            }
        }
    }

    fn view_held(&self, views: &mut BTreeMap<Str, View>) {
        for pod in self.keeper.held() {
            let held = if pod.denied {
                Held::Denied
            } else {
                Held::Waiting
            };
            let nobody = Str::default();
            let unknown = || {
                let state = State::Pending("no such pod is known yet".to_owned());
                view(&nobody, &nobody, &nobody, state)
            };
            let view = views.entry(pod.uid).or_insert_with(unknown);
            view.held = Some(held);
        }
    }
}

fn view(name: &Str, namespace: &Str, service_account: &Str, state: State) -> View {
    View {
        name: name.clone(),
        namespace: namespace.clone(),
        service_account: service_account.clone(),
        state,
        held: None,
    }
}
