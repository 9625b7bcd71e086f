//! Keeps capture true: reads the kernel's state back, has repaired what is not as it should be, counts it and says so.
//!
//! What capture itself cannot mend is handed to the node: new sockets are to be opened, or the source is to look again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use capture::{Capture, Cure, Drift, DriftKind, Survey};
use telemetry::metrics::Counters;

use crate::endpoint::ready::Ready;
use crate::node::lock;

/// Readiness task that comes back while something that capture needs could not be repaired.
pub const READY_TASK: &str = "capture repair";
/// Why a pod is not captured whose processes are not where it is enrolled.
const ASTRAY: &str = "processes of the pod are in another network namespace than the one enrolled";
/// Looks in a row at one place: a repair may show what it hid.
const ROUNDS_MAX: usize = 3;
/// Once somebody undoes the same thing again and again, this long passes at least between two lines about it; doubled each time.
const SILENCE_MIN: Duration = Duration::from_secs(5);
/// The longest time without a line about a thing that goes on being undone.
const SILENCE_MAX: Duration = Duration::from_secs(600);
/// A thing not found for this long is told of at once again.
const FORGOTTEN: Duration = Duration::from_secs(900);
/// Lines about one thing of one pod before they become fewer.
const LINES_EACH: u32 = 32;
/// Things remembered, so that lines about them become fewer; those beyond are told of each time.
const REMEMBERED_MAX: usize = 4096;

/// What the node has to do after a look.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Findings {
    /// UIDs of pods whose sockets are to be opened anew: they are to be started again.
    pub reopen: Vec<String>,
    /// UIDs of pods whose processes are in another namespace than the one enrolled: the source is to look again.
    pub elsewhere: Vec<String>,
    /// UIDs of pods in which somebody else's doing stands in the way, and what. Starting them again would not help.
    pub hindered: Vec<(String, String)>,
    /// UIDs of pods that are not wholly captured, and why; empty UID: what all pods share.
    pub broken: Vec<(String, String)>,
}

impl Findings {
    fn add(&mut self, other: Self) {
        self.reopen.extend(other.reopen);
        self.elsewhere.extend(other.elsewhere);
        self.hindered.extend(other.hindered);
        self.broken.extend(other.broken);
    }

    /// Why a pod is not captured as it should be, if it is not.
    pub fn of(&self, uid: &str) -> Option<String> {
        let shared = |of: &str| of.is_empty() || of == uid;
        let broken = self.broken.iter().find(|(of, _)| shared(of));
        let hindered = || self.hindered.iter().find(|(of, _)| of == uid);
        let what = broken.or_else(hindered).map(|(_, what)| what.clone());
        let astray = || self.elsewhere.iter().any(|of| of == uid);
        what.or_else(|| astray().then(|| ASTRAY.to_owned()))
    }
}

/// Looks after what capture keeps in the kernel.
pub struct Keeper {
    capture: Arc<Mutex<Capture>>,
    drift: Counters,
    ready: Ready,
    fights: Fights,
    /// what could not be repaired, by pod
    broken: BTreeMap<Option<u64>, String>,
}

impl Keeper {
    /// - `drift`: counts what was found, by kind
    pub fn new(capture: Arc<Mutex<Capture>>, drift: Counters, ready: Ready) -> Self {
        Self {
            capture,
            drift,
            ready,
            fights: Fights::default(),
            broken: BTreeMap::new(),
        }
    }

    /// Reads one pod back and repairs it. It is captured when there is nothing about it in the findings.
    pub fn look(&mut self, cookie: u64) -> Findings {
        let mut findings = self.rounds(Some(cookie), None);
        if let Some(shared) = self.broken.get(&None) {
            findings.broken.push((String::new(), shared.clone()));
        }
        self.tell_ready();
        findings
    }

    /// The same for all pods and what they share; lets others of the thread work in between.
    pub async fn look_at_all(&mut self) -> Findings {
        let mut findings = self.rounds(None, None);
        let (survey, cookies): (_, Vec<u64>) = {
            let capture = lock(&self.capture);
            let cookies = capture.enrolled().map(|(_, cookie)| cookie).collect();
            (capture.survey(), cookies)
        };
        for cookie in cookies {
            findings.add(self.rounds(Some(cookie), Some(&survey)));
            tokio::task::yield_now().await;
        }
        self.tell_ready();
        findings
    }

    /// Forgets a pod that is captured no longer.
    pub fn forget(&mut self, cookie: u64) {
        self.broken.remove(&Some(cookie));
        self.fights.forget(cookie);
        self.tell_ready();
    }

    /// Looks at a pod, or at what all pods share, and has it repaired, until there is nothing more to repair.
    ///
    /// - `survey`: for the first look
    fn rounds(&mut self, place: Option<u64>, survey: Option<&Survey>) -> Findings {
        let mut counted = HashSet::new();
        let mut findings = Findings::default();
        for round in 1..=ROUNDS_MAX {
            let drifts = {
                let capture = lock(&self.capture);
                match (place, survey.filter(|_| round == 1)) {
                    (None, _) => capture.verify_shared(),
                    (Some(cookie), Some(survey)) => capture.verify_by(cookie, survey),
                    (Some(cookie), None) => capture.verify(cookie),
                }
            };
            findings = Findings::default();
            self.broken.remove(&place);
            let mut repaired = HashSet::new();
            for drift in drifts {
                let told = counted.insert((drift.kind, drift.what.clone())) && self.count(&drift);
                let last = round == ROUNDS_MAX;
                // one repair mends all of its kind
                if repaired.contains(&drift.kind) {
                    tell_repaired(&drift, told);
                } else if self.treat(&drift, told, last, &mut findings) {
                    repaired.insert(drift.kind);
                }
            }
            if repaired.is_empty() {
                break;
            }
        }
        findings
    }

    /// Has one thing mended, or says who can; whether it was repaired.
    fn treat(&mut self, drift: &Drift, told: bool, last: bool, findings: &mut Findings) -> bool {
        let error = match drift.cure {
            Cure::Repair if last => "it comes back at once".to_owned(),
            Cure::Repair => match lock(&self.capture).repair(drift) {
                Ok(()) => {
                    tell_repaired(drift, told);
                    return true;
                }
                Err(error) => error.to_string(),
            },
            Cure::Sockets => {
                findings.reopen.push(drift.uid.clone());
                return false;
            }
            Cure::Source => {
                findings.elsewhere.push(drift.uid.clone());
                return false;
            }
            Cure::Human => {
                findings
                    .hindered
                    .push((drift.uid.clone(), drift.what.clone()));
                return false;
            }
        };
        if told {
            tracing::error!(pod = %drift.uid, kind = %drift.kind, error, "capture not repaired, trying again");
        }
        let text = format!("{}: {error}", drift.what);
        findings.broken.push((drift.uid.clone(), text.clone()));
        self.broken.insert(drift.cookie, text);
        false
    }

    /// Counts one thing, and tells of it unless there were lines about it lately; whether it told.
    fn count(&mut self, drift: &Drift) -> bool {
        let (pod, kind, what) = (&drift.uid, drift.kind, &drift.what);
        if kind == DriftKind::Address {
            tracing::info!(%pod, what, "the pod's addresses have changed, capture follows");
            return false;
        }
        self.drift.inc(kind.label());
        let Some(unsaid) = self.fights.count((drift.cookie, kind), Instant::now()) else {
            return false;
        };
        match drift.cure {
            Cure::Repair | Cure::Sockets => {
                tracing::warn!(%pod, %kind, what, unsaid, "capture drifted, repairing");
            }
            Cure::Source => {
                tracing::warn!(%pod, %kind, what, unsaid, "the pod is not where it was enrolled");
            }
            Cure::Human => {
                tracing::warn!(%pod, %kind, what, unsaid, "something stands in the way of capture");
            }
        }
        true
    }

    fn tell_ready(&self) {
        if self.broken.is_empty() {
            self.ready.done(READY_TASK);
        } else {
            self.ready.pending(READY_TASK);
        }
    }
}

fn tell_repaired(drift: &Drift, told: bool) {
    if told {
        tracing::info!(pod = %drift.uid, kind = %drift.kind, "capture repaired");
    }
}

/// What is remembered of a thing that was not as it should be.
struct Fight {
    last: Instant,
    /// lines about it so far
    lines: u32,
    said: Instant,
    /// found since the last line
    unsaid: u64,
}

/// Who undoes what, and how often: so that a thing undone again and again does not fill the log.
#[derive(Default)]
struct Fights(HashMap<(Option<u64>, DriftKind), Fight>);

impl Fights {
    /// Remembers that a thing was found. A line is due when this is something: how often it was found since the last one.
    fn count(&mut self, thing: (Option<u64>, DriftKind), now: Instant) -> Option<u64> {
        self.0
            .retain(|_, fight| now.saturating_duration_since(fight.last) < FORGOTTEN);
        if self.0.len() >= REMEMBERED_MAX && !self.0.contains_key(&thing) {
            return Some(0);
        }
        let fight = self.0.entry(thing).or_insert(Fight {
            last: now,
            lines: 0,
            said: now,
            unsaid: 0,
        });
        fight.last = now;
        let silence = match fight.lines.checked_sub(LINES_EACH) {
            None => Duration::ZERO,
            Some(more) => SILENCE_MIN
                .saturating_mul(1 << more.min(16))
                .min(SILENCE_MAX),
        };
        if now.saturating_duration_since(fight.said) < silence {
            fight.unsaid += 1;
            return None;
        }
        fight.lines = fight.lines.saturating_add(1);
        fight.said = now;
        Some(std::mem::take(&mut fight.unsaid))
    }

    fn forget(&mut self, cookie: u64) {
        self.0.retain(|(of, _), _| *of != Some(cookie));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_fewer_and_nothing_is_lost() {
        let (mut fights, start) = (Fights::default(), Instant::now());
        let thing = (Some(1), DriftKind::Rule);
        let found = 3600;
        let mut lines = 0;
        let mut told = 0;
        for second in 0..found {
            if let Some(unsaid) = fights.count(thing, start + Duration::from_secs(second)) {
                lines += 1;
                told += unsaid + 1;
            }
        }
        assert!((36..=48).contains(&lines), "{lines}");
        assert_eq!(told + fights.0[&thing].unsaid, found);
        // others are told of at once, and so is the same after a long time
        let other = (Some(2), DriftKind::Rule);
        let now = start + Duration::from_secs(found);
        assert_eq!(fights.count(other, now), Some(0));
        assert_eq!(fights.count(thing, now + 2 * FORGOTTEN), Some(0));
        fights.forget(1);
        assert!(fights.0.is_empty());
    }
}
