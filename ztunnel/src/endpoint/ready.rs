//! Readiness: which start-up tasks are still pending, and the endpoint that says so.
//!
//! Served by a data thread, so that a stuck data plane fails the probe.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};

use super::{Answer, empty, text};

/// Tasks that must be done before the daemon is ready; a task may come back.
#[derive(Clone)]
pub struct Ready(Arc<Inner>);

struct Inner {
    since: Instant,
    pending: Mutex<BTreeSet<&'static str>>,
}

impl Ready {
    /// Not ready until each of `tasks` is done.
    pub fn new(tasks: impl IntoIterator<Item = &'static str>) -> Self {
        Self(Arc::new(Inner {
            since: Instant::now(),
            pending: Mutex::new(tasks.into_iter().collect()),
        }))
    }

    /// Marks `task` as done.
    pub fn done(&self, task: &'static str) {
        let mut pending = self
            .0
            .pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if pending.remove(task) {
            let left = pending.len();
            let after = self.0.since.elapsed();
            if left == 0 {
                tracing::info!(task, ?after, "task complete, marking server ready");
            } else {
                tracing::info!(task, ?after, left, "task complete");
            }
        }
    }

    /// Marks `task` as pending again.
    pub fn pending(&self, task: &'static str) {
        let mut pending = self
            .0
            .pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if pending.insert(task) {
            tracing::warn!(task, "not ready");
        }
    }

    fn missing(&self) -> Vec<&'static str> {
        self.0
            .pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .copied()
            .collect()
    }
}

/// Answers a probe.
pub fn answer(ready: &Ready, request: &Request<Incoming>) -> Answer {
    if request.uri().path() != "/healthz/ready" {
        return empty(StatusCode::NOT_FOUND);
    }
    if request.method() != Method::GET {
        return empty(StatusCode::METHOD_NOT_ALLOWED);
    }
    let missing = ready.missing();
    if missing.is_empty() {
        text(StatusCode::OK, "ready\n")
    } else {
        text(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("not ready, pending: {}\n", missing.join(", ")),
        )
    }
}
