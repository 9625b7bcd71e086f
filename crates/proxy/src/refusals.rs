//! The last refusals and failures of the node, with their reasons, and how many there were of each kind.
//!
//! Written only when a flow ends early, so the lock is off the path of every flow that works.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::accept::Kind;
use crate::pod::{FLOWS_PER_POD_MAX, Pod};

/// Refusals kept for the dump.
pub const REFUSALS_KEPT: usize = 256;
/// Pods whose shed connections are counted each by itself; further ones are counted together.
const PODS_COUNTED_MAX: usize = 4096;

/// One flow that ended early.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// when
    pub at: SystemTime,
    /// `inbound` or `outbound`
    pub direction: &'static str,
    /// client
    pub source: Option<SocketAddr>,
    /// proven identity of the client
    pub source_identity: Option<String>,
    /// destination as far as it was known
    pub destination: Option<SocketAddr>,
    /// a fixed word
    pub reason: &'static str,
    /// the text of the access log
    pub error: String,
}

/// Refusals of the whole process.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    last: VecDeque<Refusal>,
    counts: BTreeMap<&'static str, u64>,
    shed: BTreeMap<String, u64>,
}

impl Refusals {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn note(&self, refusal: Refusal) {
        *self.lock().counts.entry(refusal.reason).or_default() += 1;
        self.keep(refusal);
    }

    fn keep(&self, refusal: Refusal) {
        let mut inner = self.lock();
        if inner.last.len() == REFUSALS_KEPT {
            inner.last.pop_front();
        }
        inner.last.push_back(refusal);
    }

    /// A connection was dropped because its pod is at its bound.
    pub(crate) fn shed(&self, pod: &Pod, kind: Kind) {
        let mut inner = self.lock();
        *inner.counts.entry("pod_budget").or_default() += 1;
        let name = format!("{}/{}", pod.namespace, pod.name);
        let name = if inner.shed.contains_key(&name) || inner.shed.len() < PODS_COUNTED_MAX {
            name
        } else {
            "(other)".to_owned()
        };
        let count = inner.shed.entry(name.clone()).or_default();
        *count += 1;
        if count.is_power_of_two() {
            let count = *count;
            let (direction, error) = (
                kind.direction(),
                format!("{name} has {FLOWS_PER_POD_MAX} connections open ({count} dropped so far)"),
            );
            drop(inner);
            self.keep(Refusal {
                at: SystemTime::now(),
                direction,
                source: None,
                source_identity: None,
                destination: None,
                reason: "pod_budget",
                error,
            });
            tracing::warn!(pod = %pod.uid, ?kind, count, "connection dropped: the pod has too many open");
        }
    }

    /// A DNS question was dropped because too many wait.
    pub(crate) fn shed_question(&self) {
        *self.lock().counts.entry("dns_budget").or_default() += 1;
    }

    /// The last refusals, oldest first.
    pub fn last(&self) -> Vec<Refusal> {
        self.lock().last.iter().cloned().collect()
    }

    /// Count by reason.
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        self.lock().counts.iter().map(|(r, n)| (*r, *n)).collect()
    }

    /// Dropped connections by pod.
    pub fn shed_by_pod(&self) -> Vec<(String, u64)> {
        self.lock()
            .shed
            .iter()
            .map(|(p, n)| (p.clone(), *n))
            .collect()
    }
}
