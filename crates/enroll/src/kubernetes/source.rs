//! The loop of the source: everything that tells something goes into the state, what follows goes out.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::api::{NamespaceObject, PodObject};
use super::follow::Input;
use super::state::{Settled, State};
use super::{Shared, api::KnownPod};
use crate::cgroups::{self, Change, PodCgroup};
use crate::place::{Finder, Missing, Place, Sought};
use crate::pod::PodEvent;

/// Places that were looked for.
type Found = Vec<(Arc<str>, Result<Place, Missing>)>;

pub(super) struct Source {
    pub(super) state: State,
    pub(super) finder: Arc<Finder>,
    pub(super) cgroup_root: PathBuf,
    pub(super) shared: Arc<Shared>,
    pub(super) events: mpsc::Sender<PodEvent>,
    pub(super) pods: mpsc::Receiver<Input<PodObject>>,
    pub(super) namespaces: mpsc::Receiver<Input<NamespaceObject>>,
}

/// The receiver of the events is gone.
struct Ended;

impl Source {
    /// Runs until the receiver of the events is gone.
    pub(super) async fn run(mut self) {
        let mut cgroups = cgroups::watch_inside(self.cgroup_root.clone());
        // known before the first look, so that none is missed for want of a cgroup
        let now = Instant::now();
        for (cgroup, inode) in cgroups::scan_inodes(&self.cgroup_root) {
            self.state.cgroup_appeared(cgroup, inode, now);
        }
        let mut looking: Option<JoinHandle<Found>> = None;
        loop {
            if looking.is_none() {
                looking = self.look();
            }
            let due = wait_until(self.state.next().filter(|_| looking.is_none()));
            tokio::select! {
                () = self.events.closed() => return,
                Some(input) = self.pods.recv() => self.take_pod(input),
                Some(input) = self.namespaces.recv() => self.take_namespace(input),
                Some(change) = cgroups.recv() => self.take_cgroup(change),
                found = ended(&mut looking) => self.take_found(found),
                () = due => continue,
            }
            if let Err(Ended) = self.tell().await {
                return;
            }
        }
    }

    /// Looks for what is due, on a thread where that may block.
    fn look(&self) -> Option<JoinHandle<Found>> {
        let due = self.state.due(Instant::now());
        if due.is_empty() {
            return None;
        }
        let finder = self.finder.clone();
        Some(tokio::task::spawn_blocking(move || {
            let (uids, sought): (Vec<Arc<str>>, Vec<Sought>) = due.into_iter().unzip();
            uids.into_iter().zip(finder.find(&sought)).collect()
        }))
    }

    fn take_found(&mut self, found: Found) {
        let now = Instant::now();
        for (uid, place) in found {
            self.state.looked(&uid, place, now);
        }
    }

    fn take_pod(&mut self, input: Input<PodObject>) {
        let now = Instant::now();
        let known = |object: PodObject| object.pod.map(|pod| *pod);
        match input {
            Input::Listed(objects) => {
                let pods: Vec<KnownPod> = objects.into_iter().filter_map(known).collect();
                tracing::debug!(pods = pods.len(), "pods listed");
                self.bounded(|state| state.pods_listed(pods, now));
            }
            Input::Applied(object) => {
                if let Some(pod) = known(object) {
                    self.bounded(|state| state.pod_applied(pod, now));
                }
            }
            Input::Deleted(object) => {
                if let Some(pod) = known(object) {
                    self.state.pod_deleted(&pod.uid, now);
                }
            }
        }
    }

    fn take_namespace(&mut self, input: Input<NamespaceObject>) {
        let known = |object: NamespaceObject| (Arc::from(object.name()), object.mode);
        match input {
            Input::Listed(objects) => {
                let namespaces: Vec<_> = objects.into_iter().map(known).collect();
                tracing::debug!(namespaces = namespaces.len(), "namespaces listed");
                self.bounded(|state| state.namespaces_listed(namespaces));
            }
            Input::Applied(object) => {
                let (name, mode) = known(object);
                self.bounded(|state| state.namespace_applied(name, mode));
            }
            Input::Deleted(object) => self.state.namespace_deleted(object.name()),
        }
    }

    fn take_cgroup(&mut self, change: Change) {
        let now = Instant::now();
        match change {
            Change::Appeared(PodCgroup { uid: None, .. }, _) => {}
            Change::Appeared(cgroup, inode) => self.state.cgroup_appeared(cgroup, inode, now),
            Change::Gone(path) => self.state.cgroup_gone(&path),
            Change::Inside(path) => self.state.nudge(&path, now),
        }
    }

    /// Says so when there is more than the state takes.
    fn bounded(&mut self, work: impl FnOnce(&mut State)) {
        let before = self.state.overflow();
        work(&mut self.state);
        let after = self.state.overflow();
        if after != before && after.ilog2() != before.max(1).ilog2() || before == 0 && after > 0 {
            tracing::error!(
                ignored = after,
                "more pods or namespaces than this node can follow, the rest is not in the mesh"
            );
        }
    }

    async fn tell(&mut self) -> Result<(), Ended> {
        let Settled {
            events,
            seen,
            gone,
            warnings,
        } = self.state.settle();
        for (uid, warning) in warnings {
            tracing::warn!(pod = %uid, %warning, "annotation ignored");
        }
        if !seen.is_empty() || !gone.is_empty() {
            // before the events: reports about pods that were not seen do not count
            let now = Instant::now();
            let mut desk = self.shared.desk();
            gone.iter().for_each(|uid| desk.forget(uid));
            seen.into_iter().for_each(|seen| desk.observe(seen, now));
            drop(desk);
            self.shared.notify.notify_one();
        }
        if self.state.synced() {
            self.shared
                .synced
                .store(true, std::sync::atomic::Ordering::Relaxed);
        }
        for event in events {
            self.events.send(event).await.map_err(|_| Ended)?;
        }
        Ok(())
    }
}

async fn wait_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// What was found, once the look has ended.
async fn ended(looking: &mut Option<JoinHandle<Found>>) -> Found {
    match looking {
        Some(handle) => {
            let found = handle.await;
            *looking = None;
            // a look that panicked found nothing; it is looked again
            found.unwrap_or_default()
        }
        None => std::future::pending().await,
    }
}
