//! Holding pods until they are enrolled: carries out what [`crate::hold`] decides, tells of it, and keeps the kernel
//! holding cgroups that nobody has told about yet.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use capture::{Capture, CgroupState};
use enroll::Sighting;
use enroll::cgroups::{CgroupEvent, Kind, PodCgroup};
use enroll::place::Finder;
use enroll::rules::Why;
use mesh::Str;
use telemetry::metrics::Counters;
use tokio::time::sleep_until;

use crate::config::Hold;
use crate::hold::{HeldPod, Holder, State, Step, WINDOW, Want};

use super::lock;

/// Who is held, and how the kernel is told.
pub struct Keeper(Option<Inner>);

struct Inner {
    capture: Arc<Mutex<Capture>>,
    holder: Holder,
    /// cgroup ids of what the kernel was told
    ids: HashMap<PathBuf, u64>,
    counts: Counters,
    /// cgroups that nobody has told about are held as well
    unknown: bool,
    /// cgroups that are no pod's and hold some
    groups: HashSet<PathBuf>,
    /// who is of the node's network
    finder: Option<Finder>,
    /// pods whose first process is in the node's namespace, as of the last look
    suspects: HashMap<Str, u32>,
}

impl Keeper {
    /// Nobody is held.
    pub fn idle() -> Self {
        Self(None)
    }

    /// Holds by `rule`.
    ///
    /// - `existing`: cgroups of pods that are there already, if the source follows them: later ones are held from their
    ///   first instruction on, until the source has told about them
    pub fn new(
        capture: &Arc<Mutex<Capture>>,
        rule: Hold,
        existing: Option<Vec<PodCgroup>>,
        finder: Option<Finder>,
        counts: Counters,
    ) -> Self {
        let mut inner = Inner {
            capture: Arc::clone(capture),
            holder: Holder::new(rule),
            ids: HashMap::new(),
            counts,
            unknown: existing.is_some(),
            groups: HashSet::new(),
            finder,
            suspects: HashMap::new(),
        };
        // a predecessor told the kernel about all that it knew: what it holds beyond that has come since
        let came_since = lock(capture).holds_unknown().unwrap_or(false);
        let now = Instant::now();
        let known: HashMap<u64, CgroupState> = lock(capture)
            .cgroups()
            .into_iter()
            .map(|view| (view.id, view.state))
            .collect();
        for cgroup in existing.into_iter().flatten() {
            let step = match cgroup.kind {
                Kind::Group => Some(group(cgroup.path)),
                Kind::Pod => {
                    let (entry, told) = inner.told(&cgroup.path, &known);
                    if came_since && !entry {
                        inner.holder.appeared(&cgroup.path, cgroup.uid, now)
                    } else {
                        inner.holder.found(&cgroup.path, cgroup.uid, told, now)
                    }
                }
            };
            inner.carry_out(step);
        }
        inner.beat();
        Self(Some(inner))
    }

    /// A cgroup came or went.
    pub fn noticed(&mut self, event: CgroupEvent) {
        let Some(inner) = &mut self.0 else { return };
        let step = match event {
            CgroupEvent::Appeared(cgroup) => match cgroup.kind {
                Kind::Group => Some(group(cgroup.path)),
                Kind::Pod => inner
                    .holder
                    .appeared(&cgroup.path, cgroup.uid, Instant::now()),
            },
            CgroupEvent::Gone(path) if inner.groups.contains(&path) => Some(Step {
                state: None,
                ..group(path)
            }),
            CgroupEvent::Gone(path) => inner.holder.gone(&path),
        };
        inner.carry_out(step);
    }

    /// What the source says of a pod. `enrolled`: it is served.
    pub fn know(&mut self, sighting: &Sighting, enrolled: bool) {
        let Some(inner) = &mut self.0 else { return };
        let (want, cgroup) = match sighting {
            Sighting::In(spec) if enrolled => (Want::Nothing, spec.cgroup.as_deref()),
            Sighting::In(spec) => (Want::Enrolment, spec.cgroup.as_deref()),
            Sighting::Out(pod) => {
                let expected = pod.why == Why::PlaceUnknown;
                let want = if expected {
                    Want::Enrolment
                } else {
                    Want::Freedom
                };
                (want, pod.cgroup.as_deref())
            }
        };
        let steps = inner
            .holder
            .know(sighting.uid(), want, cgroup, Instant::now());
        inner.carry_out(steps);
    }

    /// A pod is gone.
    pub fn forget(&mut self, uid: &Str) {
        let Some(inner) = &mut self.0 else { return };
        let steps = inner.holder.forget(uid);
        inner.carry_out(steps);
    }

    /// What time has changed; and a sign of life.
    ///
    /// - `told_of_all`: the source tells of all pods now
    pub fn tick(&mut self, told_of_all: bool) {
        let Some(inner) = &mut self.0 else { return };
        inner.holder.trust(told_of_all);
        let steps = inner.holder.tick(Instant::now());
        inner.carry_out(steps);
    }

    /// A sign of life, and a look at those that nobody has told about.
    pub fn beat(&mut self) {
        if let Some(inner) = &mut self.0 {
            inner.let_node_go();
            inner.beat();
        }
    }

    /// Tells the kernel again what it does not know any more, or could not be told. Returns how much that was.
    pub fn audit(&mut self) -> usize {
        self.0.as_mut().map_or(0, Inner::audit)
    }

    /// Returns when time has something to change.
    pub async fn due(&self) {
        match self.0.as_ref().and_then(|inner| inner.holder.next()) {
            Some(at) => sleep_until(at.into()).await,
            None => std::future::pending().await,
        }
    }

    /// Pods that are held or refused.
    pub fn held(&self) -> Vec<HeldPod> {
        let inner = self.0.as_ref();
        inner.map(|inner| inner.holder.held()).unwrap_or_default()
    }
}

fn group(cgroup: PathBuf) -> Step {
    Step {
        cgroup,
        uid: None,
        state: Some(State::Group),
        expired: false,
    }
}

impl Inner {
    fn carry_out(&mut self, steps: impl IntoIterator<Item = Step>) {
        for step in steps {
            tell(&step);
            self.count(&step);
            match step.state {
                None => {
                    self.groups.remove(&step.cgroup);
                    if let Some(id) = self.ids.remove(&step.cgroup) {
                        lock(&self.capture).forget_cgroup(id);
                    }
                }
                Some(state) => {
                    if state == State::Group {
                        self.groups.insert(step.cgroup.clone());
                    }
                    self.write(&step.cgroup, state);
                }
            }
        }
    }

    fn audit(&mut self) -> usize {
        let known: HashMap<u64, CgroupState> = lock(&self.capture)
            .cgroups()
            .into_iter()
            .map(|view| (view.id, view.state))
            .collect();
        let groups = self
            .groups
            .iter()
            .map(|group| (group.clone(), State::Group));
        let told = self.holder.told();
        let told = told.map(|(cgroup, state)| (cgroup.to_owned(), state));
        let wanted: Vec<(PathBuf, State)> = groups.chain(told).collect();
        let mut mended = 0;
        for (cgroup, state) in wanted {
            let is = self.ids.get(&cgroup).and_then(|id| known.get(id));
            // capture answers for what is enrolled
            let fine = is.is_some_and(|is| {
                *is == in_kernel(state) || matches!(is, CgroupState::Enrolled(_))
            });
            if fine || !cgroup.is_dir() {
                continue;
            }
            tracing::warn!(cgroup = %cgroup.display(), ?state, "the kernel did not know about a cgroup any more, telling it again");
            self.write(&cgroup, state);
            mended += 1;
        }
        mended
    }

    fn write(&mut self, cgroup: &Path, state: State) {
        match lock(&self.capture).set_cgroup(cgroup, in_kernel(state)) {
            Ok(id) => {
                self.ids.insert(cgroup.to_owned(), id);
            }
            // one that is gone meanwhile has no processes to be held
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::error!(cgroup = %cgroup.display(), ?state, %error, "the kernel could not be told about a cgroup, trying again");
            }
        }
    }

    fn count(&self, step: &Step) {
        match step.state {
            Some(State::Held) => self.counts.inc("held"),
            Some(State::Denied) => self.counts.inc("denied"),
            Some(State::Free) if step.expired => self.counts.inc("allowed"),
            _ => {}
        }
    }

    /// Whether a predecessor told the kernel about a cgroup, and what, if it waits.
    fn told(&mut self, cgroup: &Path, known: &HashMap<u64, CgroupState>) -> (bool, Option<State>) {
        let Ok(id) = sys::cgroup::id(cgroup) else {
            return (false, None);
        };
        let Some(state) = known.get(&id) else {
            return (false, None);
        };
        self.ids.insert(cgroup.to_owned(), id);
        let state = match state {
            CgroupState::Held => Some(State::Held),
            CgroupState::Denied => Some(State::Denied),
            _ => None,
        };
        (true, state)
    }

    /// Lets go what is of the node's network: it is never in the mesh, and the API server may be of it.
    fn let_node_go(&mut self) {
        let unknown = self.holder.unknown();
        let Some(finder) = self.finder.as_ref().filter(|_| !unknown.is_empty()) else {
            self.suspects.clear();
            return;
        };
        let found = finder.in_node_namespace();
        let before = std::mem::take(&mut self.suspects);
        for (cgroup, uid) in unknown {
            let Some(pid) = found.get(&*uid).copied() else {
                continue;
            };
            if before.get(&uid) == Some(&pid) {
                let step = self.holder.release(&cgroup);
                self.carry_out(step);
            } else {
                self.suspects.insert(uid, pid);
            }
        }
    }

    /// Keeps the kernel holding what nobody has told about.
    fn beat(&self) {
        if !self.unknown {
            return;
        }
        if let Err(error) = lock(&self.capture).hold_unknown(Some(WINDOW)) {
            tracing::error!(%error, "new pods are not held before they are known");
        }
    }
}

fn in_kernel(state: State) -> CgroupState {
    match state {
        State::Group => CgroupState::Group,
        State::Free => CgroupState::Free,
        State::Held => CgroupState::Held,
        State::Denied => CgroupState::Denied,
    }
}

fn tell(step: &Step) {
    let pod = step.uid.as_deref().unwrap_or("unknown");
    let cgroup = step.cgroup.display();
    match (step.state, step.expired) {
        (Some(State::Held), _) => {
            tracing::info!(pod, %cgroup, "holding the pod until it is enrolled");
        }
        (Some(State::Denied), _) => {
            tracing::error!(pod, %cgroup, "pod was not enrolled in time, its connections are refused");
        }
        (Some(State::Free), true) => {
            tracing::warn!(pod, %cgroup, "pod was not enrolled in time, its connections go out as they are");
        }
        _ => {}
    }
}
