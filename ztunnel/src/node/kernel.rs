//! The kernel's state against what is wanted: at enrolment, when the kernel tells of a change, and every now and then.

use std::sync::{Arc, MutexGuard};

use capture::{Capture, DriftKind};
use enroll::kubernetes::Report;
use mesh::Str;

use super::{Member, Node, Redirection, lock};
use crate::repair::Findings;

impl Node {
    /// The kernel side, where it is ours.
    pub(super) fn capture(&self) -> Option<MutexGuard<'_, Capture>> {
        match &self.parts.redirection {
            Redirection::Ebpf(capture) => Some(lock(capture)),
            Redirection::External(_) => None,
        }
    }

    /// Tells who is to be held that these pods are what the source says.
    pub(super) fn expect(&mut self, touched: &[Str]) {
        if self.is_superseded() {
            return;
        }
        for uid in touched {
            let Some(sighting) = self.roster.pod(uid) else {
                self.keeper.forget(uid);
                continue;
            };
            let member = self.members.get(uid);
            let enrolled = member.is_some_and(|m| m.serving.is_some());
            self.keeper.know(sighting, enrolled);
            // its place is looked for: nobody else would say so
            if let enroll::Sighting::Out(pod) = sighting
                && pod.why == enroll::Why::PlaceUnknown
            {
                let reason = pod.why.to_string();
                self.report(uid, Report::Pending { reason });
            }
        }
    }

    /// Time may have changed who is held.
    pub(super) fn held(&mut self) {
        if self.is_superseded() {
            return;
        }
        let api = self
            .parts
            .reporter
            .as_ref()
            .map(|reporter| reporter.standing());
        let told_of_all = api.is_none_or(|api| api.synced && api.faults.is_empty());
        self.keeper.tick(told_of_all);
        self.show();
    }

    /// What the kernel says about a pod that was enrolled just now; told to whom it concerns.
    pub(super) fn read_back(&mut self, uid: &Str) {
        let serving = self.members.get(uid).and_then(|m| m.serving.as_ref());
        let cookie = serving.map(|serving| serving.cookie);
        let found = match (cookie, &mut self.repair) {
            (Some(cookie), Some(repair)) => repair.look(cookie),
            _ => Findings::default(),
        };
        let shut = || (!found.reopen.is_empty()).then(|| "its sockets are closed".to_owned());
        let Some(reason) = found.of(uid).or_else(shut) else {
            self.report(uid, Report::Captured);
            return;
        };
        if found.broken.is_empty() && found.reopen.is_empty() {
            // starting it again would not help
            if let Some(member) = self.members.get_mut(uid) {
                member.fault = Some(reason.clone());
            }
            self.report(uid, Report::Pending { reason });
        } else {
            let reason = format!("the kernel does not hold what was set: {reason}");
            self.not_enrolled(uid, reason);
        }
    }

    pub(super) async fn retry(&mut self) {
        let pending: Vec<_> = self
            .members
            .values()
            .filter(|m| m.error.is_some())
            .map(|m| Arc::clone(&m.spec))
            .collect();
        if pending.is_empty() {
            return;
        }
        for spec in pending {
            self.start(spec).await;
        }
        self.settle();
        self.show();
    }

    /// Something has changed in a pod's namespace.
    pub(super) async fn inspect(&mut self, cookie: u64) {
        if self.is_superseded() {
            return;
        }
        let of = |m: &Member| m.serving.as_ref().is_some_and(|s| s.cookie == cookie);
        let looked_at = self.members.iter().find(|(_, m)| of(m));
        let (Some((uid, _)), Some(repair)) = (looked_at, &mut self.repair) else {
            return;
        };
        let (uid, found) = (uid.clone(), repair.look(cookie));
        self.follow(found, std::slice::from_ref(&uid)).await;
        self.show();
    }

    /// Compares the kernel's state with what is wanted, and has it repaired.
    pub(super) async fn reconcile(&mut self) {
        if self.is_superseded() {
            return;
        }
        if let Some(repair) = &mut self.repair {
            let found = repair.look_at_all().await;
            let all: Vec<Str> = self.members.keys().cloned().collect();
            self.follow(found, &all).await;
        }
        let untold = self.keeper.audit();
        let drift = &self.parts.states.drift;
        drift.add(DriftKind::Cgroup.label(), untold as u64);
        self.settle();
        self.disown();
        self.show();
    }

    /// Does what a look at these pods asks of the node.
    async fn follow(&mut self, found: Findings, looked_at: &[Str]) {
        for uid in looked_at {
            let Some(member) = self.members.get_mut(uid) else {
                continue;
            };
            let now = found.of(uid);
            let before = std::mem::replace(&mut member.fault, now.clone());
            let pending = member.error.is_some();
            match now {
                _ if now == before => {}
                Some(reason) => self.report(uid, Report::Pending { reason }),
                None if pending => {}
                None => self.report(uid, Report::Captured),
            }
        }
        for uid in &found.reopen {
            if let Some(spec) = self.members.get(&**uid).map(|m| Arc::clone(&m.spec)) {
                self.start(spec).await;
            }
        }
    }

    /// Undoes capture that nobody wants any more: left by a predecessor, or by a release that failed.
    pub(super) fn disown(&mut self) {
        if !self.roster.synced() {
            return;
        }
        let adopted = self.capture().map(|capture| capture.adopted());
        for left in adopted.unwrap_or_default() {
            if self.is_superseded() {
                return;
            }
            if self.awaits_start(&left.uid) {
                continue;
            }
            tracing::info!(pod = %left.uid, netns = %left.netns_path.display(), "undoing capture that nobody wants");
            if let Some(Err(error)) = self.capture().map(|mut c| c.release(left.cookie)) {
                tracing::error!(pod = %left.uid, %error, "capture could not be undone wholly, trying again");
            }
        }
    }
}
