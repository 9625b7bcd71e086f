//! Holding pods until they are enrolled: carries out what [`crate::hold`] decides, tells of it, and keeps the kernel
//! holding cgroups that nobody has told about yet.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use capture::{Capture, CgroupState};
use enroll::Sighting;
use enroll::cgroups::{CgroupEvent, Kind, PodCgroup};
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
        counts: Counters,
    ) -> Self {
        let mut inner = Inner {
            capture: Arc::clone(capture),
            holder: Holder::new(rule),
            ids: HashMap::new(),
            counts,
            unknown: existing.is_some(),
        };
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
                    let told = inner.told(&cgroup.path, &known);
                    inner.holder.found(&cgroup.path, cgroup.uid, told, now)
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
    pub fn tick(&mut self) {
        let Some(inner) = &mut self.0 else { return };
        let steps = inner.holder.tick(Instant::now());
        inner.carry_out(steps);
        inner.beat();
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
            let mut capture = lock(&self.capture);
            let Some(state) = step.state else {
                if let Some(id) = self.ids.remove(&step.cgroup) {
                    capture.forget_cgroup(id);
                }
                continue;
            };
            let state = match state {
                State::Group => CgroupState::Group,
                State::Free => CgroupState::Free,
                State::Held => CgroupState::Held,
                State::Denied => CgroupState::Denied,
            };
            match capture.set_cgroup(&step.cgroup, state) {
                Ok(id) => {
                    self.ids.insert(step.cgroup, id);
                }
                // one that is gone meanwhile has no processes to be held
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::error!(cgroup = %step.cgroup.display(), ?state, %error, "the kernel could not be told about a cgroup");
                }
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

    /// What a predecessor told the kernel about a cgroup that waits.
    fn told(&mut self, cgroup: &Path, known: &HashMap<u64, CgroupState>) -> Option<State> {
        let id = sys::cgroup::id(cgroup).ok()?;
        let state = match known.get(&id)? {
            CgroupState::Held => State::Held,
            CgroupState::Denied => State::Denied,
            _ => return None,
        };
        self.ids.insert(cgroup.to_owned(), id);
        Some(state)
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
