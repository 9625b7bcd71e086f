//! What was asked, in order, for tests to look at and to wait for.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::Value;

use super::route::Ask;

/// Most requests that are kept; a test that makes more loses the rest, and waits then fail and say so.
const REQUESTS_MAX: usize = 100_000;
/// Requests that the error of a wait shows.
const SHOWN: usize = 16;

/// One request and how it was answered.
#[derive(Debug, Clone)]
pub struct Request {
    /// when it came
    pub at: Instant,
    /// what was asked; none = no resource
    pub ask: Option<Ask>,
    /// method and path
    pub line: String,
    /// `User-Agent`
    pub agent: String,
    /// `Accept`
    pub accept: String,
    /// `Content-Type`
    pub content_type: String,
    /// body, if it is JSON
    pub body: Value,
    /// status of the answer; 0 = none was given
    pub status: u16,
}

impl Request {
    /// Whether it asked for that verb on that resource.
    pub fn is(&self, verb: &str, resource: &str) -> bool {
        let ask = self.ask.as_ref();
        ask.is_some_and(|ask| ask.verb == verb && ask.resource == resource)
    }

    /// Name of the object it was about.
    pub fn name(&self) -> &str {
        let name = self.ask.as_ref().and_then(|ask| ask.name.as_deref());
        name.unwrap_or_default()
    }

    /// The annotation that a patch sets: none = it does not touch it, null = it removes it.
    pub fn annotation(&self, key: &str) -> Option<&Value> {
        self.body["metadata"]["annotations"].get(key)
    }
}

/// All requests so far; one is added when it is answered (a watch: when its stream begins).
#[derive(Debug, Default)]
pub struct Record {
    requests: Mutex<Vec<Request>>,
    more: Condvar,
}

impl Record {
    /// Adds one.
    pub(super) fn add(&self, request: Request) {
        let mut requests = self.lock();
        if requests.len() < REQUESTS_MAX {
            requests.push(request);
        }
        drop(requests);
        self.more.notify_all();
    }

    /// Number of requests so far; positions for [`Record::since`] and [`Record::wait`].
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether nothing was asked.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Requests from a position on.
    pub fn since(&self, from: usize) -> Vec<Request> {
        self.lock().get(from..).unwrap_or_default().to_vec()
    }

    /// Waits until `look` finds something in one of the requests from `from` on.
    ///
    /// - `what`: named in the error
    ///
    /// Errors: it does not within `limit`; the last requests are in the text.
    pub fn wait<T>(
        &self,
        from: usize,
        limit: Duration,
        what: &str,
        look: impl Fn(&Request) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + limit;
        let mut requests = self.lock();
        let mut next = from;
        loop {
            while let Some(request) = requests.get(next) {
                if let Some(found) = look(request) {
                    return Ok(found);
                }
                next += 1;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let tail = &requests[requests.len().saturating_sub(SHOWN)..];
                let shown: Vec<_> = tail
                    .iter()
                    .map(|one| format!("{} {} {}", one.status, one.line, one.body))
                    .collect();
                let shown = shown.join("\n");
                bail!("API server: no {what} within {limit:?}; last requests:\n{shown}");
            }
            let woken = self.more.wait_timeout(requests, left);
            requests = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Request>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
