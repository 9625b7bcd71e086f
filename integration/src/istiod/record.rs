//! What clients did, in order, for tests to look at and to wait for.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use proto::discovery::DeltaDiscoveryRequest;

use super::store::Kind;

/// Most events that are kept; a test that makes more loses the rest, and waits then fail and say so.
const EVENTS_MAX: usize = 100_000;
/// Events that the error of a wait shows.
const SHOWN: usize = 12;
/// Length of such an event, in characters.
const LINE_CHARS: usize = 600;

/// How a call looked from the server's side.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// address that the connection came from
    pub peer: Option<IpAddr>,
    /// server name in the handshake
    pub sni: Option<String>,
    /// application protocol of the handshake
    pub alpn: Option<String>,
    /// headers, by lower-case name
    pub headers: BTreeMap<String, String>,
}

impl Caller {
    /// A header, empty if it is absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A discovery stream was accepted.
    Opened {
        /// number of the stream, from 1
        stream: u64,
        /// who called
        caller: Caller,
    },
    /// A request came.
    Request {
        /// number of the stream
        stream: u64,
        /// as it came
        request: DeltaDiscoveryRequest,
    },
    /// A response was sent.
    Response {
        /// number of the stream
        stream: u64,
        /// type of the resources
        url: String,
        /// as sent
        nonce: String,
        /// names of the resources
        names: Vec<String>,
        /// names of the removed
        removed: Vec<String>,
    },
    /// A stream ended, from either side.
    Ended {
        /// number of the stream
        stream: u64,
    },
    /// A discovery stream or a certificate was refused.
    Refused {
        /// who called
        caller: Caller,
        /// the status's message
        why: String,
    },
    /// A certificate was asked for.
    Asked {
        /// who called
        caller: Caller,
        /// whom for
        identity: String,
        /// for how long, in seconds
        seconds: i64,
    },
    /// A certificate was signed.
    Signed {
        /// whom for
        identity: String,
        /// its serial number
        serial: u64,
    },
}

impl Event {
    /// The request on a stream, if this is one of that type.
    pub fn request_of(&self, kind: Kind) -> Option<(u64, &DeltaDiscoveryRequest)> {
        match self {
            Self::Request { stream, request } if request.type_url == kind.url() => {
                Some((*stream, request))
            }
            _ => None,
        }
    }
}

/// An event on one line of bounded length.
fn line(event: &Event) -> String {
    format!("{event:?}").chars().take(LINE_CHARS).collect()
}

/// All events so far.
#[derive(Debug, Default)]
pub struct Record {
    events: Mutex<Vec<Event>>,
    more: Condvar,
}

impl Record {
    /// Adds an event.
    pub fn add(&self, event: Event) {
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
                let shown: Vec<_> = tail.iter().map(line).collect();
                let shown = shown.join("\n");
                bail!("control plane: no {what} within {limit:?}; last events:\n{shown}");
            }
            let woken = self.more.wait_timeout(events, left);
            events = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
