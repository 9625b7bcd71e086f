//! The pods there are, and what has to happen when that changes. Pure: events in, actions out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::file::FileError;
use crate::pod::{OutPod, PodEvent, PodSpec, Sighting};
use crate::rules::Why;

/// Why a pod's proxy is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The pod is gone.
    Gone,
    /// The pod has left the mesh.
    Left(Why),
    /// It is the same pod, but its network namespace, cgroup or identity is another: a start follows.
    Replaced,
}

/// What has to be done, in the order given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Stop the proxy of this pod and undo its capture.
    Stop(Arc<PodSpec>, StopReason),
    /// This pod is out of the mesh: undo capture that a predecessor may have left in it.
    Release(Arc<OutPod>),
    /// Only the capture options have changed: apply them, connections stay.
    Update(Arc<PodSpec>),
    /// Start a proxy for this pod.
    Start(Arc<PodSpec>),
}

/// All pods seen on this node, in the mesh or not.
#[derive(Debug, Default)]
pub struct Roster {
    pods: BTreeMap<Arc<str>, Sighting>,
    synced: bool,
    fault: Option<FileError>,
}

impl Roster {
    /// Takes in what a source tells. Stops come before starts: a network namespace may pass from one pod to another.
    pub fn apply(&mut self, event: PodEvent) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            PodEvent::Snapshot(sightings) => {
                self.synced = true;
                self.fault = None;
                let seen: BTreeSet<Arc<str>> = sightings
                    .iter()
                    .map(|sighting| Arc::clone(sighting.uid()))
                    .collect();
                let gone: Vec<Arc<str>> = self
                    .pods
                    .keys()
                    .filter(|uid| !seen.contains(*uid))
                    .cloned()
                    .collect();
                gone.iter().for_each(|uid| self.forget(uid, &mut actions));
                sightings
                    .into_iter()
                    .for_each(|sighting| self.see(sighting, &mut actions));
            }
            PodEvent::Seen(sighting) => self.see(sighting, &mut actions),
            PodEvent::Gone { uid } => self.forget(&uid, &mut actions),
            PodEvent::Invalid(fault) => self.fault = Some(fault),
        }
        actions.sort_by_key(|action| match action {
            Action::Stop(..) => 0,
            Action::Release(_) => 1,
            Action::Update(_) => 2,
            Action::Start(_) => 3,
        });
        actions
    }

    /// UIDs of the pods that `event` tells about, or that it makes disappear.
    pub fn touched(&self, event: &PodEvent) -> Vec<Arc<str>> {
        match event {
            PodEvent::Snapshot(sightings) => {
                let seen = sightings.iter().map(Sighting::uid);
                let all: BTreeSet<&Arc<str>> = self.pods.keys().chain(seen).collect();
                all.into_iter().cloned().collect()
            }
            PodEvent::Seen(sighting) => vec![Arc::clone(sighting.uid())],
            PodEvent::Gone { uid } => vec![Arc::clone(uid)],
            PodEvent::Invalid(_) => Vec::new(),
        }
    }

    fn forget(&mut self, uid: &Arc<str>, actions: &mut Vec<Action>) {
        if let Some(Sighting::In(spec)) = self.pods.remove(uid) {
            actions.push(Action::Stop(spec, StopReason::Gone));
        }
    }

    fn see(&mut self, new: Sighting, actions: &mut Vec<Action>) {
        let old = self.pods.get(new.uid());
        match (old, &new) {
            (Some(Sighting::In(old)), Sighting::In(new)) => match compare(old, new) {
                Change::None => return,
                Change::Options => actions.push(Action::Update(Arc::clone(new))),
                Change::Place => {
                    actions.push(Action::Stop(Arc::clone(old), StopReason::Replaced));
                    actions.push(Action::Start(Arc::clone(new)));
                }
            },
            (Some(Sighting::In(old)), Sighting::Out(new)) => {
                actions.push(Action::Stop(Arc::clone(old), StopReason::Left(new.why)));
                actions.push(Action::Release(Arc::clone(new)));
            }
            (Some(Sighting::Out(old)), Sighting::Out(new)) if old == new => return,
            (_, Sighting::Out(new)) => actions.push(Action::Release(Arc::clone(new))),
            (_, Sighting::In(new)) => actions.push(Action::Start(Arc::clone(new))),
        }
        self.pods.insert(Arc::clone(new.uid()), new);
    }

    /// All pods, by UID.
    pub fn pods(&self) -> impl Iterator<Item = &Sighting> {
        self.pods.values()
    }

    /// One pod.
    pub fn pod(&self, uid: &str) -> Option<&Sighting> {
        self.pods.get(uid)
    }

    /// Whether the source has told of all pods once.
    pub fn synced(&self) -> bool {
        self.synced
    }

    /// Why the source cannot be understood now; the pods are those of before.
    pub fn fault(&self) -> Option<&FileError> {
        self.fault.as_ref()
    }
}

enum Change {
    None,
    Options,
    Place,
}

fn compare(old: &PodSpec, new: &PodSpec) -> Change {
    let keys =
        |spec: &PodSpec| [&spec.name, &spec.namespace, &spec.service_account].map(Arc::clone);
    // a handle tells the namespace; the path to it may be any process's
    let path = |spec: &PodSpec| spec.netns_handle.is_none().then(|| spec.netns.clone());
    let place = |spec: &PodSpec| (path(spec), spec.netns_handle.clone(), spec.cgroup.clone());
    // What is not there any more is no reason to stop: processes can outlive the name of their namespace.
    let moved = |old: Option<u64>, new: Option<u64>| new.is_some() && old != new;
    if keys(old) != keys(new)
        || place(old) != place(new)
        || moved(old.netns_inode, new.netns_inode)
        || moved(old.cgroup_inode, new.cgroup_inode)
    {
        Change::Place
    } else if old.capture != new.capture {
        Change::Options
    } else {
        Change::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::CaptureOptions;

    fn spec(uid: &str) -> PodSpec {
        PodSpec {
            uid: uid.into(),
            name: uid.into(),
            namespace: "shop".into(),
            service_account: "web".into(),
            netns: format!("/run/netns/{uid}").into(),
            netns_handle: None,
            netns_inode: Some(1),
            cgroup: Some(format!("/cg/{uid}").into()),
            cgroup_inode: Some(2),
            capture: CaptureOptions::default(),
        }
    }

    fn seen(spec: PodSpec) -> Sighting {
        Sighting::In(Arc::new(spec))
    }

    fn out(uid: &str, why: Why) -> Sighting {
        Sighting::Out(Arc::new(OutPod {
            uid: uid.into(),
            name: uid.into(),
            namespace: "shop".into(),
            netns: None,
            cgroup: None,
            why,
        }))
    }

    /// Actions in short.
    fn short(actions: &[Action]) -> Vec<String> {
        let name = |action: &Action| match action {
            Action::Stop(spec, why) => format!("stop {} {why:?}", spec.uid),
            Action::Release(pod) => format!("release {} {}", pod.uid, pod.why),
            Action::Update(spec) => format!("update {}", spec.uid),
            Action::Start(spec) => format!("start {}", spec.uid),
        };
        actions.iter().map(name).collect()
    }

    #[test]
    fn events_become_actions() {
        let mut roster = Roster::default();
        assert!(!roster.synced());
        let snapshot = |sightings: &[Sighting]| PodEvent::Snapshot(sightings.to_vec());
        let steps: Vec<(PodEvent, &[&str])> = vec![
            (
                snapshot(&[seen(spec("a")), out("b", Why::OptedOut)]),
                &["release b opted out by label", "start a"],
            ),
            (snapshot(&[seen(spec("a")), out("b", Why::OptedOut)]), &[]),
            (PodEvent::Seen(seen(spec("a"))), &[]),
            (
                PodEvent::Seen(out("b", Why::HostNetwork)),
                &["release b uses the host network"],
            ),
            (snapshot(&[seen(spec("a")), seen(spec("b"))]), &["start b"]),
            (
                snapshot(&[seen(spec("c")), seen(spec("b"))]),
                &["stop a Gone", "start c"],
            ),
            (
                PodEvent::Seen(out("b", Why::Terminated)),
                &["stop b Left(Terminated)", "release b terminated"],
            ),
            (PodEvent::Gone { uid: "b".into() }, &[]),
            (PodEvent::Gone { uid: "c".into() }, &["stop c Gone"]),
            (PodEvent::Gone { uid: "c".into() }, &[]),
        ];
        for (at, (event, expected)) in steps.into_iter().enumerate() {
            assert_eq!(short(&roster.apply(event)), expected, "step {at}");
        }
        assert!(roster.synced() && roster.pods().next().is_none());
    }

    #[test]
    fn what_changed_decides_between_restart_and_update() {
        let base = spec("a");
        let options = CaptureOptions {
            dns_capture: Some(false),
            ..CaptureOptions::default()
        };
        let restart: &[&str] = &["stop a Replaced", "start a"];
        for (case, changed, expected) in [
            (
                "netns",
                PodSpec {
                    netns: "/other".into(),
                    ..base.clone()
                },
                restart,
            ),
            (
                "netns inode",
                PodSpec {
                    netns_inode: Some(9),
                    ..base.clone()
                },
                restart,
            ),
            (
                "cgroup",
                PodSpec {
                    cgroup: Some("/other".into()),
                    ..base.clone()
                },
                restart,
            ),
            (
                "cgroup inode",
                PodSpec {
                    cgroup_inode: Some(9),
                    ..base.clone()
                },
                restart,
            ),
            (
                "account",
                PodSpec {
                    service_account: "db".into(),
                    ..base.clone()
                },
                restart,
            ),
            (
                "options",
                PodSpec {
                    capture: options,
                    ..base.clone()
                },
                &["update a"],
            ),
            (
                "netns file removed",
                PodSpec {
                    netns_inode: None,
                    ..base.clone()
                },
                &[],
            ),
        ] {
            let mut roster = Roster::default();
            roster.apply(PodEvent::Seen(seen(base.clone())));
            assert_eq!(
                short(&roster.apply(PodEvent::Seen(seen(changed)))),
                expected,
                "{case}"
            );
        }
    }

    #[test]
    fn a_place_that_appears_late_or_comes_back_as_another_restarts() {
        let mut roster = Roster::default();
        let at = |inode| {
            PodEvent::Seen(seen(PodSpec {
                netns_inode: inode,
                ..spec("a")
            }))
        };
        assert_eq!(short(&roster.apply(at(None))), ["start a"]);
        assert_eq!(roster.apply(at(Some(1))).len(), 2);
        assert_eq!(roster.apply(at(None)).len(), 0);
        assert_eq!(roster.apply(at(Some(1))).len(), 0);
        assert_eq!(roster.apply(at(None)).len(), 0);
        assert_eq!(roster.apply(at(Some(5))).len(), 2);
    }

    #[test]
    fn a_fault_keeps_what_was_and_ends_with_the_next_snapshot() {
        let mut roster = Roster::default();
        roster.apply(PodEvent::Snapshot(vec![seen(spec("a"))]));
        assert!(
            roster
                .apply(PodEvent::Invalid(FileError::TooLarge))
                .is_empty()
        );
        assert!(roster.fault().is_some() && roster.pod("a").is_some());
        assert!(
            roster
                .apply(PodEvent::Snapshot(vec![seen(spec("a"))]))
                .is_empty()
        );
        assert!(roster.fault().is_none());
    }

    #[test]
    fn stops_come_first_when_a_namespace_passes_on() {
        let mut roster = Roster::default();
        roster.apply(PodEvent::Snapshot(vec![seen(spec("b"))]));
        let heir = PodSpec {
            netns: "/run/netns/b".into(),
            ..spec("a")
        };
        assert_eq!(
            short(&roster.apply(PodEvent::Snapshot(vec![seen(heir)]))),
            ["stop b Gone", "start a"]
        );
    }
}
