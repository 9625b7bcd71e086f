//! What is known of this node's pods, and what follows from it. Pure: lists, changes, cgroups and places go in, events come out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::api::KnownPod;
use super::look::{LINGER, Look};
use crate::cgroups::PodCgroup;
use crate::place::{Missing, Place, Sought};
use crate::pod::{Labels, OutPod, Phase, Pod, PodEvent, Sighting};
use crate::rules::{MODE_LABEL, Rules, Verdict, Warning, Why};

/// Most pods of a node; Kubernetes' own limit is 110, few raise it beyond 1,000.
pub(super) const PODS_MAX: usize = 4096;
/// Most namespaces; ten times what Kubernetes is tested with.
pub(super) const NAMESPACES_MAX: usize = 100_000;

/// How a pod stands to the mesh, for what is written onto it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Face {
    /// Not in the mesh.
    Out,
    /// In the mesh, and handed on.
    In,
    /// Will be in the mesh, and does not run yet.
    Expected,
    /// Should be in the mesh, and cannot be handed on.
    Waiting(String),
}

/// A pod, for what is written onto it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) pod: Arc<KnownPod>,
    pub(super) face: Face,
}

/// What follows from what went in.
#[derive(Debug, Default)]
pub(super) struct Settled {
    pub(super) events: Vec<PodEvent>,
    pub(super) seen: Vec<Seen>,
    pub(super) gone: Vec<Arc<str>>,
    pub(super) warnings: Vec<(Arc<str>, Warning)>,
}

struct Entry {
    pod: Arc<KnownPod>,
    place: Option<Place>,
    missing: Option<Missing>,
    cgroup: Option<(PathBuf, u64)>,
    /// it had a cgroup, and nothing of it runs now
    ended: bool,
    look: Look,
    /// in the mesh if it has a place
    wanted: bool,
    /// the API has it no more, and its processes still run
    deleted: Option<Instant>,
    warnings: Vec<Warning>,
    told: Option<Sighting>,
}

pub(super) struct State {
    rules: Rules,
    /// by name, with the mode that their label asks for
    namespaces: BTreeMap<Arc<str>, Option<String>>,
    namespaces_listed: bool,
    pods: BTreeMap<Arc<str>, Entry>,
    pods_listed: bool,
    /// by what stands in their names
    cgroups: HashMap<Arc<str>, (PathBuf, u64)>,
    snapshot_told: bool,
    dirty: BTreeSet<Arc<str>>,
    gone: BTreeSet<Arc<str>>,
    /// pods and namespaces beyond the bounds
    overflow: u64,
}

impl State {
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            rules,
            namespaces: BTreeMap::new(),
            namespaces_listed: false,
            pods: BTreeMap::new(),
            pods_listed: false,
            cgroups: HashMap::new(),
            snapshot_told: false,
            dirty: BTreeSet::new(),
            gone: BTreeSet::new(),
            overflow: 0,
        }
    }

    /// Whether the first snapshot was told.
    pub(super) fn synced(&self) -> bool {
        self.snapshot_told
    }

    /// How many pods and namespaces were too many so far.
    pub(super) fn overflow(&self) -> u64 {
        self.overflow
    }

    /// All pods of the node, as of now.
    pub(super) fn pods_listed(&mut self, pods: Vec<KnownPod>, now: Instant) {
        self.pods_listed = true;
        let there: BTreeSet<Arc<str>> = pods.iter().map(|pod| pod.uid.clone()).collect();
        let lost: Vec<Arc<str>> = self
            .pods
            .keys()
            .filter(|uid| !there.contains(*uid))
            .cloned()
            .collect();
        lost.iter().for_each(|uid| self.pod_deleted(uid, now));
        pods.into_iter().for_each(|pod| self.pod_applied(pod, now));
    }

    /// A pod is new or has changed.
    pub(super) fn pod_applied(&mut self, pod: KnownPod, now: Instant) {
        let uid = pod.uid.clone();
        let full = self.pods.len() >= PODS_MAX;
        match self.pods.get_mut(&uid) {
            Some(entry) => {
                let moved = (&entry.pod.ips, &entry.pod.sandbox) != (&pod.ips, &pod.sandbox);
                if entry.deleted.take().is_none() && *entry.pod == pod {
                    return;
                }
                entry.pod = Arc::new(pod);
                if moved {
                    entry.look.soon(now);
                }
            }
            None if full => {
                self.overflow += 1;
                return;
            }
            None => {
                let key = pod.config_hash.as_ref().unwrap_or(&uid);
                let cgroup = self
                    .cgroups
                    .get(key)
                    .or_else(|| self.cgroups.get(&uid))
                    .cloned();
                let entry = Entry {
                    pod: Arc::new(pod),
                    place: None,
                    missing: None,
                    cgroup,
                    ended: false,
                    look: Look::new(now),
                    wanted: false,
                    deleted: None,
                    warnings: Vec::new(),
                    told: None,
                };
                self.pods.insert(uid.clone(), entry);
                self.gone.remove(&uid);
            }
        }
        self.touch(uid);
    }

    /// Something of a pod has changed.
    fn touch(&mut self, uid: Arc<str>) {
        if let Some(entry) = self.pods.get(&uid) {
            let wanted = self.wanted(&entry.pod);
            if let Some(entry) = self.pods.get_mut(&uid) {
                entry.wanted = wanted;
            }
            self.dirty.insert(uid);
        }
    }

    /// A pod is deleted. While its processes run it stays what it was: a forced deletion does not wait for them.
    pub(super) fn pod_deleted(&mut self, uid: &Arc<str>, now: Instant) {
        let Some(entry) = self.pods.get_mut(uid) else {
            return;
        };
        let captured = matches!(entry.told, Some(Sighting::In(_)));
        if captured && entry.cgroup.is_some() {
            if entry.deleted.is_none() {
                entry.deleted = Some(now);
                entry.look.soon(now);
            }
        } else {
            self.forget(uid);
        }
    }

    fn forget(&mut self, uid: &Arc<str>) {
        if self.pods.remove(uid).is_some() {
            self.dirty.remove(uid);
            self.gone.insert(uid.clone());
        }
    }

    /// All namespaces, as of now, with the value of the mode label.
    pub(super) fn namespaces_listed(&mut self, namespaces: Vec<(Arc<str>, Option<String>)>) {
        self.namespaces_listed = true;
        let there: BTreeSet<Arc<str>> = namespaces.iter().map(|(name, _)| name.clone()).collect();
        self.namespaces.retain(|name, _| there.contains(name));
        namespaces
            .into_iter()
            .for_each(|(name, mode)| self.namespace_applied(name, mode));
    }

    /// A namespace is new or has changed.
    pub(super) fn namespace_applied(&mut self, name: Arc<str>, mode: Option<String>) {
        if self.namespaces.len() >= NAMESPACES_MAX && !self.namespaces.contains_key(&name) {
            self.overflow += 1;
            return;
        }
        let before = self.namespaces.insert(name.clone(), mode);
        if before.as_ref() != self.namespaces.get(&name) {
            let own = self
                .pods
                .values()
                .filter(|entry| entry.pod.namespace == name);
            let own: Vec<Arc<str>> = own.map(|entry| entry.pod.uid.clone()).collect();
            own.into_iter().for_each(|uid| self.touch(uid));
        }
    }

    /// A namespace is gone; pods that seem to be left in it stay what they were.
    pub(super) fn namespace_deleted(&mut self, name: &str) {
        self.namespaces.remove(name);
    }

    /// A cgroup of a pod is there.
    pub(super) fn cgroup_appeared(&mut self, cgroup: PodCgroup, inode: u64, now: Instant) {
        let Some(key) = cgroup.uid else { return };
        let place = (cgroup.path.clone(), inode);
        if self.cgroups.insert(key.clone(), place.clone()).as_ref() == Some(&place) {
            return;
        }
        for uid in self.of_key(&key) {
            if let Some(entry) = self.pods.get_mut(&uid) {
                entry.cgroup = Some((cgroup.path.clone(), inode));
                entry.ended = false;
                entry.look.soon(now);
                self.dirty.insert(uid);
            }
        }
    }

    /// A cgroup is gone, and with it all that ran there: a pod that comes back comes back elsewhere.
    pub(super) fn cgroup_gone(&mut self, path: &Path) {
        self.cgroups.retain(|_, (known, _)| known != path);
        let own = |entry: &&Entry| {
            entry
                .cgroup
                .as_ref()
                .is_some_and(|(known, _)| known == path)
        };
        let own = self.pods.values().filter(own);
        for uid in own.map(|entry| entry.pod.uid.clone()).collect::<Vec<_>>() {
            let Some(entry) = self.pods.get_mut(&uid) else {
                continue;
            };
            if entry.deleted.is_some() {
                self.forget(&uid);
                continue;
            }
            entry.cgroup = None;
            entry.place = None;
            entry.missing = None;
            entry.ended = true;
            self.dirty.insert(uid);
        }
    }

    /// Something has changed inside of a pod's cgroup: look there soon.
    pub(super) fn nudge(&mut self, path: &Path, now: Instant) {
        let own = |entry: &&mut Entry| {
            entry
                .cgroup
                .as_ref()
                .is_some_and(|(known, _)| known == path)
        };
        self.pods
            .values_mut()
            .filter(own)
            .for_each(|entry| entry.look.soon(now));
    }

    fn of_key(&self, key: &Arc<str>) -> Vec<Arc<str>> {
        if self.pods.contains_key(key) {
            return vec![key.clone()];
        }
        let own = self
            .pods
            .values()
            .filter(|entry| entry.pod.config_hash.as_ref() == Some(key));
        own.map(|entry| entry.pod.uid.clone()).collect()
    }

    /// Pods whose places are to be looked for now.
    pub(super) fn due(&self, now: Instant) -> Vec<(Arc<str>, Sought)> {
        let due = self
            .pods
            .values()
            .filter(|entry| Self::wants_look(entry) && entry.look.next <= now);
        due.map(|entry| {
            let pod = &entry.pod;
            let cgroup = entry.cgroup.as_ref().map(|(path, _)| path.clone());
            let key = cgroup.as_deref().and_then(key_of_cgroup);
            let sought = Sought {
                key: key.unwrap_or_else(|| pod.uid.clone()),
                cgroup,
                ips: pod.ips.clone(),
            };
            (pod.uid.clone(), sought)
        })
        .collect()
    }

    /// When the next look is due.
    pub(super) fn next(&self) -> Option<Instant> {
        let wanted = self.pods.values().filter(|entry| Self::wants_look(entry));
        wanted.map(|entry| entry.look.next).min()
    }

    /// What a look for a pod found.
    pub(super) fn looked(&mut self, uid: &Arc<str>, found: Result<Place, Missing>, now: Instant) {
        let Some(entry) = self.pods.get_mut(uid) else {
            return;
        };
        if let Some(deleted) = entry.deleted {
            let ended = found == Err(Missing::NoProcess);
            if ended || now.saturating_duration_since(deleted) >= LINGER {
                self.forget(uid);
            } else {
                entry.look.linger(now);
            }
            return;
        }
        match found {
            Ok(place) => {
                entry.missing = None;
                if entry
                    .place
                    .as_ref()
                    .is_none_or(|known| known.netns != place.netns)
                {
                    entry.place = Some(place);
                    self.dirty.insert(uid.clone());
                }
            }
            Err(missing)
                if entry
                    .place
                    .as_ref()
                    .is_some_and(|place| left(place, &missing)) =>
            {
                entry.place = None;
                entry.missing = Some(missing);
                self.dirty.insert(uid.clone());
            }
            // else what is known of a pod's place stays true until there is another
            Err(missing) if entry.place.is_none() && entry.missing.as_ref() != Some(&missing) => {
                entry.missing = Some(missing);
                self.dirty.insert(uid.clone());
            }
            Err(_) => {}
        }
        entry.look.done(now, entry.place.is_some());
    }

    /// Without a cgroup there is nothing to look at; when it comes, that is told.
    fn wants_look(entry: &Entry) -> bool {
        entry.cgroup.is_some() && (entry.deleted.is_some() || entry.wanted)
    }

    /// Whether the pod is in the mesh if it has a place.
    fn wanted(&self, pod: &KnownPod) -> bool {
        match self.decide(pod, None, None) {
            Some(Verdict::Out(why)) => why == Why::PlaceUnknown,
            Some(Verdict::In(..)) => true,
            None => false,
        }
    }

    /// None = that depends on a namespace that is not known yet.
    fn decide(
        &self,
        pod: &KnownPod,
        place: Option<&Place>,
        cgroup: Option<&Path>,
    ) -> Option<Verdict> {
        let full = Pod {
            uid: pod.uid.clone(),
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            service_account: pod.service_account.clone(),
            netns: place.map(|place| place.path.clone()),
            netns_handle: place.map(|place| place.netns.clone()),
            cgroup: cgroup.map(Path::to_owned),
            host_network: pod.host_network,
            phase: pod.phase,
            labels: pod.labels.clone(),
            annotations: pod.annotations.clone(),
        };
        let with = |mode: Option<&str>| {
            let labels = mode.map(|mode| (MODE_LABEL.to_owned(), mode.to_owned()));
            self.rules.decide(&full, &Labels::from_iter(labels))
        };
        match self.namespaces.get(&pod.namespace) {
            Some(mode) => Some(with(mode.as_deref())),
            None => {
                let (asked, not) = (with(Some("ambient")), with(None));
                (asked == not).then_some(asked)
            }
        }
    }

    /// What is to be told now: the first time a snapshot, once all is known; later what has changed.
    pub(super) fn settle(&mut self) -> Settled {
        let mut settled = Settled::default();
        let looking = |entry: &Entry| Self::wants_look(entry) && !entry.look.was_done();
        let complete = self.pods_listed && self.namespaces_listed;
        if !self.snapshot_told && (!complete || self.pods.values().any(looking)) {
            return settled;
        }
        for uid in std::mem::take(&mut self.gone) {
            settled.events.push(PodEvent::Gone { uid: uid.clone() });
            settled.gone.push(uid);
        }
        for uid in std::mem::take(&mut self.dirty) {
            self.see(&uid, &mut settled);
        }
        if !self.snapshot_told {
            self.snapshot_told = true;
            let all = self.pods.values().filter_map(|entry| entry.told.clone());
            settled.events = vec![PodEvent::Snapshot(all.collect())];
        }
        settled
    }

    fn see(&mut self, uid: &Arc<str>, settled: &mut Settled) {
        let Some(entry) = self.pods.get(uid).filter(|entry| entry.deleted.is_none()) else {
            return;
        };
        let cgroup = entry.cgroup.as_ref().map(|(path, _)| path.as_path());
        let Some(verdict) = self.decide(&entry.pod, entry.place.as_ref(), cgroup) else {
            return;
        };
        let (sighting, face, warnings) = match verdict {
            Verdict::In(mut spec, warnings) => {
                spec.netns_inode = entry.place.as_ref().map(|place| place.netns.0.inode());
                spec.cgroup_inode = entry.cgroup.as_ref().map(|(_, inode)| *inode);
                (Sighting::In(Arc::from(spec)), Face::In, warnings)
            }
            Verdict::Out(why) => {
                let out = OutPod {
                    uid: uid.clone(),
                    name: entry.pod.name.clone(),
                    namespace: entry.pod.namespace.clone(),
                    netns: None,
                    cgroup: cgroup.map(Path::to_owned),
                    why,
                };
                let face = match why {
                    Why::PlaceUnknown => waiting(entry),
                    _ => Face::Out,
                };
                (Sighting::Out(Arc::new(out)), face, Vec::new())
            }
        };
        let pod = entry.pod.clone();
        let Some(entry) = self.pods.get_mut(uid) else {
            return;
        };
        settled.seen.push(Seen { pod, face });
        if entry.warnings != warnings {
            let new = warnings
                .iter()
                .map(|warning| (uid.clone(), warning.clone()));
            settled.warnings.extend(new);
            entry.warnings = warnings;
        }
        if entry.told.as_ref() != Some(&sighting) {
            entry.told = Some(sighting.clone());
            settled.events.push(PodEvent::Seen(sighting));
        }
    }
}

/// Whether the pod's processes are elsewhere by now: nobody may take the place they had for theirs.
fn left(place: &Place, missing: &Missing) -> bool {
    match missing {
        Missing::NoAddress { namespaces, .. } => !namespaces.contains(&place.netns.0.id()),
        Missing::NoProcess | Missing::NoNamespace | Missing::Refused { .. } => false,
    }
}

/// A pod without a place: one that does not run is none of our failures.
fn waiting(entry: &Entry) -> Face {
    let reason = match &entry.missing {
        _ if entry.ended => return Face::Expected,
        _ if entry.cgroup.is_none() => "no cgroup of the pod found".to_owned(),
        None => return Face::Expected,
        Some(missing) => missing.to_string(),
    };
    let empty = matches!(entry.missing, None | Some(Missing::NoProcess));
    match entry.pod.phase {
        Phase::Pending if empty => Face::Expected,
        _ => Face::Waiting(reason),
    }
}

/// The key in a cgroup's own name: of a static pod it is not its UID.
fn key_of_cgroup(path: &Path) -> Option<Arc<str>> {
    let name = path.file_name()?.to_str()?;
    crate::cgroups::uid_of_path(&format!("/kubepods/{name}")).map(Arc::from)
}

#[cfg(test)]
mod tests;
