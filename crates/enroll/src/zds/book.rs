//! Which pods the agent wants, and which are served. Pure: requests in, what is to be done out.
//!
//! `N` is a network namespace: equal when it is the same one. Doing it is left to the session.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::packet::{Info, Request};
use super::{Pending, ProtocolError};

/// Pods of one node; kubelet takes 110 by default.
pub const PODS_MAX: usize = 4_096;

/// A pod to be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate<N> {
    /// Kubernetes UID
    pub uid: Arc<str>,
    /// who it is
    pub info: Info,
    /// its namespace
    pub netns: N,
}

/// What a request leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step<N> {
    /// Nothing has to be done.
    Done,
    /// It cannot be done, and will not be tried again.
    Refused(String),
    /// Serve this pod, then say how that went ([`Book::started`]).
    Start {
        /// the pod
        candidate: Candidate<N>,
        /// it was served in another namespace, which is over in any case
        replaces: bool,
    },
    /// Cut these pods.
    Stop(Vec<Arc<str>>),
}

/// How a start went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Started {
    /// It is served.
    Yes,
    /// It is not; why.
    No(String),
    /// Nobody said in time: it may be served or not.
    Unknown,
}

/// The pods of the agent.
#[derive(Debug)]
pub struct Book<N> {
    /// served, or perhaps served
    running: BTreeMap<Arc<str>, Member<N>>,
    /// to be tried again, and why
    pending: BTreeMap<Arc<str>, (Candidate<N>, String)>,
    /// told on this connection, until the snapshot is complete
    told: BTreeSet<Arc<str>>,
    /// the snapshot of this connection is complete
    snapshot: bool,
}

#[derive(Debug)]
struct Member<N> {
    candidate: Candidate<N>,
    /// the start was confirmed
    sure: bool,
}

impl<N> Default for Book<N> {
    fn default() -> Self {
        Self {
            running: BTreeMap::new(),
            pending: BTreeMap::new(),
            told: BTreeSet::new(),
            snapshot: false,
        }
    }
}

impl<N: Clone + PartialEq> Book<N> {
    /// Begins a connection: what is served goes on, the rest the agent will tell anew.
    pub fn connected(&mut self) {
        self.pending.clear();
        self.told.clear();
        self.snapshot = false;
    }

    /// Takes one request in.
    ///
    /// Errors: the protocol forbids it now; nothing has changed then.
    pub fn take(&mut self, request: Request<N>) -> Result<Step<N>, ProtocolError> {
        match request {
            Request::Add { uid, info, netns } => {
                let info = info.ok_or(ProtocolError::NoInfo)?;
                Ok(self.add(Candidate { uid, info, netns }))
            }
            Request::Keep(_) if self.snapshot => Err(ProtocolError::LateKeep),
            Request::Keep(uid) => {
                // of one that is not served there is nothing to keep
                if self.running.contains_key(&uid) {
                    self.told.insert(uid);
                }
                Ok(Step::Done)
            }
            Request::Del(uid) => Ok(self.del(&uid)),
            Request::SnapshotSent if self.snapshot => Err(ProtocolError::SecondSnapshot),
            Request::SnapshotSent => Ok(self.snapshot_sent()),
        }
    }

    fn add(&mut self, candidate: Candidate<N>) -> Step<N> {
        let uid = &candidate.uid;
        let known = self.running.contains_key(uid) || self.pending.contains_key(uid);
        if !known && self.len() >= PODS_MAX {
            return Step::Refused(format!("{PODS_MAX} pods are served already"));
        }
        if !self.snapshot {
            self.told.insert(Arc::clone(uid));
        }
        let served = self.running.get(uid);
        if served.is_some_and(|m| m.sure && m.candidate.netns == candidate.netns) {
            self.pending.remove(uid);
            return Step::Done;
        }
        let replaces = served.is_some_and(|m| m.candidate.netns != candidate.netns);
        if replaces {
            self.running.remove(uid);
        }
        Step::Start {
            candidate,
            replaces,
        }
    }

    fn del(&mut self, uid: &Arc<str>) -> Step<N> {
        self.pending.remove(uid);
        self.told.remove(uid);
        // before the snapshot is complete nothing is stopped: it may be told again
        if self.snapshot && self.running.remove(uid).is_some() {
            Step::Stop(vec![Arc::clone(uid)])
        } else {
            Step::Done
        }
    }

    fn snapshot_sent(&mut self) -> Step<N> {
        self.snapshot = true;
        let told = std::mem::take(&mut self.told);
        let untold = self.running.extract_if(.., |uid, _| !told.contains(uid));
        let stop: Vec<_> = untold.map(|(uid, _)| uid).collect();
        // of one that was only kept nobody has asked how it stands
        for (uid, member) in self.running.iter().filter(|(_, member)| !member.sure) {
            let again = (member.candidate.clone(), UNANSWERED.to_owned());
            self.pending.entry(Arc::clone(uid)).or_insert(again);
        }
        if stop.is_empty() {
            Step::Done
        } else {
            Step::Stop(stop)
        }
    }

    /// Whether another pod holds the namespace of `candidate`: two in one would be taken for each other.
    pub fn holder(&self, candidate: &Candidate<N>) -> Option<&Arc<str>> {
        let same = |m: &&Member<N>| {
            m.candidate.netns == candidate.netns && m.candidate.uid != candidate.uid
        };
        self.running.values().find(same).map(|m| &m.candidate.uid)
    }

    /// Says how a start went that [`Book::take`] or [`Book::again`] asked for.
    pub fn started(&mut self, candidate: Candidate<N>, how: Started) {
        let uid = Arc::clone(&candidate.uid);
        let (served, error) = match how {
            Started::Yes => (Some(true), None),
            Started::No(error) => (None, Some(error)),
            Started::Unknown => (Some(false), Some(UNANSWERED.to_owned())),
        };
        match error {
            Some(error) => drop(
                self.pending
                    .insert(Arc::clone(&uid), (candidate.clone(), error)),
            ),
            None => drop(self.pending.remove(&uid)),
        }
        match served {
            Some(sure) => drop(self.running.insert(uid, Member { candidate, sure })),
            None => drop(self.running.remove(&uid)),
        }
    }

    /// A pending pod, to be started again.
    pub fn again(&self, uid: &str) -> Option<Candidate<N>> {
        self.pending
            .get(uid)
            .map(|(candidate, _)| candidate.clone())
    }

    /// What is pending.
    pub fn pending(&self) -> impl Iterator<Item = Pending> {
        self.pending.values().map(|(candidate, error)| Pending {
            uid: Arc::clone(&candidate.uid),
            name: Arc::clone(&candidate.info.name),
            namespace: Arc::clone(&candidate.info.namespace),
            error: error.clone(),
        })
    }

    /// UIDs of what is pending.
    pub fn pending_uids(&self) -> impl Iterator<Item = &Arc<str>> {
        self.pending.keys()
    }

    /// Who a pod is that is served or pending.
    pub fn info(&self, uid: &str) -> Option<&Info> {
        let served = self.running.get(uid).map(|member| &member.candidate);
        let candidate = served.or_else(|| self.pending.get(uid).map(|(candidate, _)| candidate));
        candidate.map(|candidate| &candidate.info)
    }

    /// Whether the snapshot of this connection is complete.
    pub fn has_snapshot(&self) -> bool {
        self.snapshot
    }

    /// Whether exactly these pods are served, each in this namespace.
    pub fn serves(&self, pods: &BTreeMap<Arc<str>, N>) -> bool {
        let own = self
            .running
            .iter()
            .map(|(uid, m)| (uid, &m.candidate.netns));
        own.eq(pods)
    }

    /// Pods that are served, perhaps served, or pending.
    fn len(&self) -> usize {
        let both = self
            .pending
            .keys()
            .filter(|uid| self.running.contains_key(*uid));
        self.running.len() + self.pending.len() - both.count()
    }

    /// UIDs of what is served, as far as known.
    #[cfg(test)]
    fn served(&self) -> Vec<&str> {
        self.running.keys().map(|uid| &**uid).collect()
    }
}

/// Why a pod is pending that may be served.
const UNANSWERED: &str = "no answer in time";

#[cfg(test)]
mod tests;
