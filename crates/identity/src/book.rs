//! The states of all identities and what to fetch next: a state machine without I/O, clock or chance.
//!
//! Leaves to others: fetching, waking those who wait (`certs`), and how long to wait (`schedule`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mesh::SpiffeId;

use crate::issue::IssueError;
use crate::schedule::retry_delay;

/// Requests to the issuer under way at one time, per process.
pub(crate) const FETCHES_MAX: usize = 8;
/// Identities known at one time. A node runs some hundred pods; this bounds a runaway source of pods.
pub(crate) const IDENTITIES_MAX: usize = 4096;
/// Identities fetched ahead of need that may wait at one time; more are not prefetched.
pub(crate) const PREFETCHES_MAX: usize = 256;
/// Least time between a success and the next renewal: an issuer whose certificates are already past their
/// middle is not asked in a tight loop.
const RENEWAL_PAUSE: Duration = Duration::from_secs(1);

/// Why a certificate is fetched; later variants go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Priority {
    /// A renewal or a retry.
    Background,
    /// A workload came up; nobody waits yet.
    Warmup,
    /// A connection waits.
    RealTime,
}

/// Both clocks: the monotonic one for waits, the wall clock for validity.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    pub mono: Instant,
    pub wall: SystemTime,
}

/// What a fetch brought.
#[derive(Debug)]
pub(crate) struct Fresh<C> {
    pub credential: C,
    pub renew_at: SystemTime,
    pub not_after: SystemTime,
}

/// Where one identity stands.
#[derive(Debug)]
pub(crate) enum State<C> {
    /// Never fetched yet.
    Initializing(Priority),
    /// There is a certificate, possibly while its renewal fails.
    Available {
        credential: C,
        /// Wall clock end of the certificate.
        not_after: SystemTime,
        /// When to renew.
        due: Due,
    },
    /// The last fetch failed and there is no valid certificate.
    Unavailable { error: Arc<IssueError>, due: Due },
}

/// A moment that has come when both clocks say so.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Due {
    mono: Instant,
    wall: SystemTime,
}

impl Due {
    fn at(mono: Instant) -> Self {
        Self {
            mono,
            wall: SystemTime::UNIX_EPOCH,
        }
    }

    /// How long from `now`; zero when it has come.
    fn wait(&self, now: Now) -> Duration {
        let wall = self.wall.duration_since(now.wall).unwrap_or_default();
        self.mono.saturating_duration_since(now.mono).max(wall)
    }
}

#[derive(Debug)]
struct Entry<C> {
    state: State<C>,
    /// When it was first asked for.
    since: Instant,
    failures: Option<Failures>,
}

/// Failures in a row.
#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    since: Instant,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Fetch this one now; the book counts it as under way until [`Book::done`].
    Fetch(SpiffeId),
    /// Nothing before so long; `None`: nothing until something else happens.
    Wait(Option<Duration>),
}

/// A request for an identity when [`IDENTITIES_MAX`] others are known, or a prefetch when too many wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

/// The states of all identities.
#[derive(Debug)]
pub(crate) struct Book<C> {
    entries: BTreeMap<SpiffeId, Entry<C>>,
    /// Fetches under way, also of identities forgotten since.
    under_way: BTreeSet<SpiffeId>,
}

impl<C> Default for Book<C> {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
            under_way: BTreeSet::new(),
        }
    }
}

impl<C> Book<C> {
    /// Asks for an identity: its state, new or raised to `priority` if nothing was fetched yet.
    pub fn want(
        &mut self,
        id: &SpiffeId,
        priority: Priority,
        now: Instant,
    ) -> Result<&State<C>, Full> {
        if !self.entries.contains_key(id) {
            self.add(id, priority, now)?;
        }
        let entry = self
            .entries
            .get_mut(id)
            .expect("present: it was looked up or added above");
        if let State::Initializing(known) = &mut entry.state {
            *known = priority.max(*known);
        }
        Ok(&entry.state)
    }

    fn add(&mut self, id: &SpiffeId, priority: Priority, now: Instant) -> Result<(), Full> {
        if self.entries.len() >= IDENTITIES_MAX {
            return Err(Full);
        }
        if priority == Priority::Warmup {
            let warming =
                |entry: &&Entry<C>| matches!(entry.state, State::Initializing(Priority::Warmup));
            if self.entries.values().filter(warming).count() >= PREFETCHES_MAX {
                return Err(Full);
            }
        }
        let entry = Entry {
            state: State::Initializing(priority),
            since: now,
            failures: None,
        };
        self.entries.insert(id.clone(), entry);
        Ok(())
    }

    /// The state of an identity, without asking for it.
    pub fn state(&self, id: &SpiffeId) -> Option<&State<C>> {
        self.entries.get(id).map(|entry| &entry.state)
    }

    /// All identities and their states, in order.
    pub fn states(&self) -> impl Iterator<Item = (&SpiffeId, &State<C>)> {
        self.entries.iter().map(|(id, entry)| (id, &entry.state))
    }

    /// Drops an identity. A fetch under way goes on; its result is only used if the identity is asked for again before.
    pub fn forget(&mut self, id: &SpiffeId) {
        self.entries.remove(id);
    }

    /// Picks the next fetch by priority, then by age.
    pub fn next(&mut self, now: Now) -> Next {
        if self.under_way.len() >= FETCHES_MAX {
            return Next::Wait(None);
        }
        let mut best: Option<(Priority, Instant, &SpiffeId)> = None;
        let mut soonest: Option<Duration> = None;
        for (id, entry) in self
            .entries
            .iter()
            .filter(|(id, _)| !self.under_way.contains(*id))
        {
            let (priority, at) = match &entry.state {
                State::Initializing(priority) => (*priority, entry.since),
                State::Available { due, .. } | State::Unavailable { due, .. } => {
                    let wait = due.wait(now);
                    if !wait.is_zero() {
                        soonest = Some(soonest.map_or(wait, |other| other.min(wait)));
                        continue;
                    }
                    (Priority::Background, due.mono)
                }
            };
            if best.is_none_or(|(p, t, _)| priority > p || (priority == p && at < t)) {
                best = Some((priority, at, id));
            }
        }
        let Some((_, _, id)) = best else {
            return Next::Wait(soonest);
        };
        let id = id.clone();
        self.under_way.insert(id.clone());
        Next::Fetch(id)
    }

    /// Takes in the end of a fetch. `dice`: uniform in `0.0..1.0`.
    ///
    /// Gives the new state, or `None` when the identity was forgotten meanwhile.
    pub fn done(
        &mut self,
        id: &SpiffeId,
        result: Result<Fresh<C>, Arc<IssueError>>,
        now: Now,
        dice: f64,
    ) -> Option<&State<C>> {
        self.under_way.remove(id);
        let entry = self.entries.get_mut(id)?;
        match result {
            Ok(fresh) => entry.succeed(fresh, now),
            Err(error) => entry.fail(error, now, dice),
        }
        Some(&entry.state)
    }
}

impl<C> Entry<C> {
    fn succeed(&mut self, fresh: Fresh<C>, now: Now) {
        let due = Due {
            mono: now.mono + RENEWAL_PAUSE,
            wall: fresh.renew_at,
        };
        self.failures = None;
        self.state = State::Available {
            credential: fresh.credential,
            not_after: fresh.not_after,
            due,
        };
    }

    /// A certificate that still holds is kept, and asked for once more at its end at the latest.
    fn fail(&mut self, error: Arc<IssueError>, now: Now, dice: f64) {
        let known = self.failures.unwrap_or(Failures {
            count: 0,
            since: now.mono,
        });
        let failures = Failures {
            count: known.count.saturating_add(1),
            since: known.since,
        };
        self.failures = Some(failures);
        let delay = retry_delay(
            failures.count,
            now.mono.saturating_duration_since(failures.since),
            dice,
        );
        match &mut self.state {
            State::Available { not_after, due, .. } if now.wall < *not_after => {
                let left = not_after.duration_since(now.wall).unwrap_or_default();
                *due = Due::at(now.mono + delay.min(left));
            }
            state => {
                *state = State::Unavailable {
                    error,
                    due: Due::at(now.mono + delay),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
