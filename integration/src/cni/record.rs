//! What the agent saw and did, in order, for tests to look at and to wait for.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Most events that are kept; a test that makes more loses the rest, and waits then fail and say so.
const EVENTS_MAX: usize = 100_000;
/// Events that the error of a wait shows.
const SHOWN: usize = 16;

/// One thing that happened. Connections are numbered from 1 over the life of the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A proxy connected.
    Connected {
        /// its connection
        link: u64,
        /// when
        at: Instant,
    },
    /// Its first packet.
    Hello {
        /// its connection
        link: u64,
        /// as it came
        bytes: Vec<u8>,
    },
    /// A request was sent.
    Sent {
        /// to which connection
        link: u64,
        /// as [`super::Request::name`] says it
        request: String,
    },
    /// A request was answered.
    Replied {
        /// on which connection
        link: u64,
        /// which request
        request: String,
        /// as it came
        bytes: Vec<u8>,
        /// time since it was sent
        took: Duration,
    },
    /// A request was not answered in time.
    Late {
        /// on which connection
        link: u64,
        /// which request
        request: String,
    },
    /// The agent looked at an idle connection, and it was still there and silent.
    Looked {
        /// which
        link: u64,
    },
    /// A connection is over for the agent.
    Dropped {
        /// which
        link: u64,
        /// what the agent did not like, or `closed`
        why: String,
    },
}

/// All events so far.
#[derive(Debug, Default)]
pub struct Record {
    events: Mutex<Vec<Event>>,
    more: Condvar,
}

impl Record {
    pub(super) fn add(&self, event: Event) {
        let mut events = self.lock();
        if events.len() < EVENTS_MAX {
            events.push(event);
        }
        drop(events);
        self.more.notify_all();
    }

    /// Number of events so far; positions for [`Record::since`] and [`Record::wait`].
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether nothing has happened.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Events from a position on.
    pub fn since(&self, from: usize) -> Vec<Event> {
        self.lock().get(from..).unwrap_or_default().to_vec()
    }

    /// Waits until `look` finds something in one of the events from `from` on.
    ///
    /// - `what`: named in the error
    ///
    /// Errors: it does not within `limit`; the last events are in the text.
    pub fn wait<T>(
        &self,
        from: usize,
        limit: Duration,
        what: &str,
        look: impl Fn(&Event) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + limit;
        let mut events = self.lock();
        let mut next = from;
        loop {
            while let Some(event) = events.get(next) {
                if let Some(found) = look(event) {
                    return Ok(found);
                }
                next += 1;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let tail = &events[events.len().saturating_sub(SHOWN)..];
                let shown: Vec<_> = tail.iter().map(|event| format!("{event:?}")).collect();
                let shown = shown.join("\n");
                bail!("CNI agent: no {what} within {limit:?}; last events:\n{shown}");
            }
            let woken = self.more.wait_timeout(events, left);
            events = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for the answer to a request by name; gives the bytes and how long it took.
    ///
    /// Errors: as [`Record::wait`].
    pub fn wait_reply(
        &self,
        from: usize,
        limit: Duration,
        wanted: &str,
    ) -> Result<(Vec<u8>, Duration)> {
        self.wait(
            from,
            limit,
            &format!("answer to {wanted}"),
            |event| match event {
                Event::Replied {
                    request,
                    bytes,
                    took,
                    ..
                } if request == wanted => Some((bytes.clone(), *took)),
                _ => None,
            },
        )
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
