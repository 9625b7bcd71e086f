//! The last refusals and failures of the node, with their reasons, and how many there were of each kind.
//!
//! Written only when a flow ends early, so the lock is off the path of every flow that works.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::budget::Share;
use crate::pod::Pod;

/// Refusals kept for the dump.
pub const REFUSALS_KEPT: usize = 256;
/// Pods whose events are counted each by itself; further ones are counted together.
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
    /// by pod and [`Share`]
    shed: ByPod<[u64; Share::ALL.len()]>,
    /// by pod
    fell_back: ByPod<u64>,
}

/// Counts by pod, of a bounded number of pods.
#[derive(Debug, Default)]
struct ByPod<T>(BTreeMap<String, T>);

impl<T: Default> ByPod<T> {
    /// The count of `pod`, and the name under which it runs.
    fn entry(&mut self, pod: &Pod) -> (String, &mut T) {
        let own = format!("{}/{}", pod.namespace, pod.name);
        let is_room = self.0.contains_key(&own) || self.0.len() < PODS_COUNTED_MAX;
        let name = if is_room { own } else { "(other)".to_owned() };
        (name.clone(), self.0.entry(name).or_default())
    }
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

    /// A connection was dropped because its pod is at its bound for that kind.
    pub(crate) fn shed(&self, pod: &Pod, share: Share) {
        let mut inner = self.lock();
        *inner.counts.entry(share.reason()).or_default() += 1;
        let (name, counts) = inner.shed.entry(pod);
        let count = &mut counts[share as usize];
        *count += 1;
        let count = *count;
        drop(inner);
        if !count.is_power_of_two() {
            return;
        }
        let (most, kind) = (share.most(), share.word());
        self.keep(Refusal {
            at: SystemTime::now(),
            direction: share.direction(),
            source: None,
            source_identity: None,
            destination: None,
            reason: share.reason(),
            error: format!("{name} has {most} {kind} open ({count} dropped so far)"),
        });
        tracing::warn!(pod = %pod.uid, kind, count, "connection dropped: the pod has too many open");
    }

    /// A connection to the application does not show its client's address, for want of a port.
    pub(crate) fn fell_back(&self, pod: &Pod, client: IpAddr) {
        let mut inner = self.lock();
        let (_, count) = inner.fell_back.entry(pod);
        *count += 1;
        let count = *count;
        drop(inner);
        if count.is_power_of_two() {
            tracing::warn!(pod = %pod.uid, %client, count,
                "the application sees the pod's own address: no port is free under its client's");
        }
    }

    /// A DNS question was dropped, or got no answer but an error, because too many wait.
    pub(crate) fn shed_question(&self, pod: &Pod) {
        const REASON: &str = "dns_budget";
        let mut inner = self.lock();
        let count = inner.counts.entry(REASON).or_default();
        *count += 1;
        let count = *count;
        drop(inner);
        if !count.is_power_of_two() {
            return;
        }
        let (namespace, name) = (&pod.namespace, &pod.name);
        self.keep(Refusal {
            at: SystemTime::now(),
            direction: "outbound",
            source: None,
            source_identity: None,
            destination: None,
            reason: REASON,
            error: format!(
                "{namespace}/{name} has too many DNS questions waiting ({count} dropped so far, of all pods)"
            ),
        });
        tracing::warn!(pod = %pod.uid, count, "dns question dropped: the pod has too many waiting");
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
        let inner = self.lock();
        let sums = inner.shed.0.iter();
        sums.map(|(pod, n)| (pod.clone(), n.iter().sum())).collect()
    }

    /// Connections to the application that do not show their client's address, by pod.
    pub fn fell_back_by_pod(&self) -> Vec<(String, u64)> {
        let inner = self.lock();
        inner
            .fell_back
            .0
            .iter()
            .map(|(pod, n)| (pod.clone(), *n))
            .collect()
    }
}
