//! What is to be written onto pods, and when. Pure: sightings, reports and outcomes go in, jobs come out.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Report;
use super::state::{Face, Seen};

/// Values of the annotation.
const ENABLED: &str = "enabled";
const PENDING: &str = "pending";
/// A pod that is pending for less is not written about: most are enrolled by then.
const PENDING_AFTER: Duration = Duration::from_secs(1);
/// A pod that is pending for longer gets an Event.
const EVENT_AFTER: Duration = Duration::from_secs(5);
/// Least time between two Events of one pod that say different things, and that say the same.
const EVENT_AGAIN: Duration = Duration::from_secs(60);
const EVENT_REPEAT: Duration = Duration::from_secs(600);
/// Events at once, and the time after which there may be one more.
const EVENTS_BURST: u32 = 20;
const EVENTS_EVERY: Duration = Duration::from_secs(5);
/// Pauses after a failed write, and after one that somebody else undid.
const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// Requests on their way at once.
const JOBS_MAX: usize = 8;
/// Longest note of an Event, in bytes. Source: Kubernetes, events.k8s.io/v1 (1 KiB).
const NOTE_BYTES_MAX: usize = 1000;

/// The pod that a job is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Who {
    pub(super) uid: Arc<str>,
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) who: Who,
    pub(super) task: Task,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Task {
    /// Set the annotation, or remove it.
    Annotate(Option<&'static str>),
    /// Tell that the pod is not enrolled.
    Warn(String),
    /// Tell that it is after all.
    Recovered,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    /// There is no such pod any more: the watch will tell.
    NoPod,
    /// To be tried again.
    Failed,
}

struct Entry {
    who: Who,
    face: Face,
    report: Option<Report>,
    /// the annotation, as far as we know
    actual: Option<String>,
    /// since when the present state is wanted
    since: Instant,
    /// not before
    due: Instant,
    pause: Duration,
    busy: bool,
    /// what the last Event said, and when; none = nothing to recover from
    warned: Option<(String, Instant)>,
}

/// What a pod's annotation should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// Not known yet: as it is.
    Leave,
    Be(Option<&'static str>),
}

impl Entry {
    fn wish(&self) -> Wish {
        match (&self.face, &self.report) {
            (Face::Out, _) | (Face::In, Some(Report::Left)) => Wish::Be(None),
            (Face::In, Some(Report::Captured)) => Wish::Be(Some(ENABLED)),
            (Face::Waiting(_), _) | (Face::In, Some(Report::Pending { .. })) => {
                Wish::Be(Some(PENDING))
            }
            (Face::Expected, _) | (Face::In, None) => Wish::Leave,
        }
    }

    /// Why it is pending.
    fn trouble(&self) -> Option<&str> {
        match (&self.face, &self.report) {
            (Face::Waiting(reason), _) | (Face::In, Some(Report::Pending { reason })) => {
                Some(reason)
            }
            (Face::Out | Face::Expected | Face::In, _) => None,
        }
    }

    /// The next write, and when.
    fn annotate(&self) -> Option<(Instant, Task)> {
        let Wish::Be(value) = self.wish() else {
            return None;
        };
        if self.actual.as_deref() == value {
            return None;
        }
        // what is claimed wrongly is taken back at once
        let patient = value == Some(PENDING) && self.actual.as_deref() != Some(ENABLED);
        let from = if patient {
            self.since + PENDING_AFTER
        } else {
            self.since
        };
        Some((self.due.max(from), Task::Annotate(value)))
    }

    /// The next Event, and when.
    fn event(&self) -> Option<(Instant, Task)> {
        match (self.trouble(), &self.warned) {
            (Some(reason), None) => Some((self.since + EVENT_AFTER, Task::Warn(note(reason)))),
            (Some(reason), Some((said, at))) => {
                let again = if *said == note(reason) {
                    EVENT_REPEAT
                } else {
                    EVENT_AGAIN
                };
                Some((*at + again, Task::Warn(note(reason))))
            }
            (None, Some(_)) if self.wish() == Wish::Be(Some(ENABLED)) => {
                Some((self.since, Task::Recovered))
            }
            (None, _) => None,
        }
    }
}

/// What is to be written.
pub(super) struct Desk {
    pods: HashMap<Arc<str>, Entry>,
    running: usize,
    events_left: u32,
    /// when the budget of Events was last counted
    events_at: Instant,
    /// another process writes now
    retired: bool,
}

impl Desk {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            pods: HashMap::new(),
            running: 0,
            events_left: EVENTS_BURST,
            events_at: now,
            retired: false,
        }
    }

    /// Forgets what was to be written, and takes nothing any more.
    pub(super) fn retire(&mut self) {
        self.retired = true;
        self.pods.clear();
    }

    /// Whether nothing will be written any more.
    pub(super) fn retired(&self) -> bool {
        self.retired
    }

    /// A pod is seen by the source; the number of pods is bounded there.
    pub(super) fn observe(&mut self, seen: Seen, now: Instant) {
        if self.retired {
            return;
        }
        let pod = &seen.pod;
        let entry = self.pods.entry(pod.uid.clone()).or_insert_with(|| Entry {
            who: Who {
                uid: pod.uid.clone(),
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
            },
            face: Face::Expected,
            report: None,
            actual: None,
            since: now,
            due: now,
            pause: RETRY_MIN,
            busy: false,
            warned: None,
        });
        entry.actual = pod.redirection.clone();
        let before = entry.wish();
        if seen.face != Face::In {
            // reports of the time before do not count when it comes back
            entry.report = None;
        }
        entry.face = seen.face;
        entry.changed(before, now);
    }

    /// A pod is gone.
    pub(super) fn forget(&mut self, uid: &str) {
        self.pods.remove(uid);
    }

    /// What became of a pod; nothing is known of others than those seen.
    pub(super) fn report(&mut self, uid: &str, report: Report, now: Instant) {
        if let Some(entry) = self.pods.get_mut(uid) {
            let before = entry.wish();
            entry.report = Some(report).filter(|_| entry.face == Face::In);
            entry.changed(before, now);
        }
    }

    /// The next job that is due.
    pub(super) fn next(&mut self, now: Instant) -> Option<Job> {
        if self.running >= JOBS_MAX {
            return None;
        }
        self.count_events(now);
        let events = self.events_left > 0;
        let idle = self.pods.values_mut().filter(|entry| !entry.busy);
        let (entry, task) = idle.into_iter().find_map(|entry| {
            let due = |job: Option<(Instant, Task)>| job.filter(|(at, _)| *at <= now);
            let event = || due(entry.event()).filter(|_| events);
            let (_, task) = due(entry.annotate()).or_else(event)?;
            Some((entry, task))
        })?;
        entry.busy = true;
        match &task {
            Task::Annotate(_) => {}
            Task::Warn(reason) => {
                entry.warned = Some((reason.clone(), now));
                self.events_left -= 1;
            }
            Task::Recovered => {
                entry.warned = None;
                self.events_left -= 1;
            }
        }
        self.running += 1;
        Some(Job {
            who: entry.who.clone(),
            task,
        })
    }

    /// When the next job is due; none while one that ends has to come first.
    pub(super) fn wake(&self) -> Option<Instant> {
        if self.running >= JOBS_MAX {
            return None;
        }
        let more = if self.events_left > 0 {
            self.events_at
        } else {
            self.events_at + EVENTS_EVERY
        };
        let idle = self.pods.values().filter(|entry| !entry.busy);
        let due = idle.flat_map(|entry| {
            let event = entry.event().map(|(at, _)| at.max(more));
            [entry.annotate().map(|(at, _)| at), event]
        });
        due.flatten().min()
    }

    /// A job has ended.
    pub(super) fn done(&mut self, job: &Job, outcome: Outcome, now: Instant) {
        self.running = self.running.saturating_sub(1);
        let Some(entry) = self.pods.get_mut(&job.who.uid) else {
            return;
        };
        entry.busy = false;
        let Task::Annotate(value) = job.task else {
            return;
        };
        if outcome != Outcome::Failed {
            // of a pod that is gone this is as good as true
            entry.actual = value.map(str::to_owned);
        }
        // also after a success: somebody else may undo it for ever
        entry.due = now + entry.pause;
        entry.pause = (entry.pause * 2).min(RETRY_MAX);
    }

    fn count_events(&mut self, now: Instant) {
        let passed =
            now.saturating_duration_since(self.events_at).as_secs() / EVENTS_EVERY.as_secs();
        let more = u32::try_from(passed).unwrap_or(EVENTS_BURST);
        self.events_left = self.events_left.saturating_add(more).min(EVENTS_BURST);
        self.events_at += EVENTS_EVERY * more;
    }
}

impl Entry {
    fn changed(&mut self, before: Wish, now: Instant) {
        if self.wish() != before {
            self.since = now;
            self.due = now;
            self.pause = RETRY_MIN;
        }
    }
}

/// A reason as long as a note may be.
fn note(reason: &str) -> String {
    let end = (0..=NOTE_BYTES_MAX.min(reason.len()))
        .rev()
        .find(|at| reason.is_char_boundary(*at));
    reason[..end.unwrap_or(0)].to_owned()
}

#[cfg(test)]
mod tests;
