//! What follows from lists, changes, cgroups and places.

use std::time::Duration;

use sys::Netns;

use super::*;
use crate::cgroups::Kind;
use crate::pod::{NetnsHandle, Phase};

fn pod(uid: &str, mode: Option<&str>) -> KnownPod {
    let labels = mode.map(|mode| (MODE_LABEL.to_owned(), mode.to_owned()));
    KnownPod {
        uid: uid.into(),
        name: format!("{uid}-name").into(),
        namespace: "shop".into(),
        service_account: "web".into(),
        host_network: false,
        phase: Phase::Running,
        labels: Labels::from_iter(labels),
        annotations: Labels::new(),
        redirection: None,
        config_hash: None,
        ips: Vec::new(),
        sandbox: None,
    }
}

fn cgroup(key: &str) -> PodCgroup {
    PodCgroup {
        path: format!("/cg/kubepods/pod{key}").into(),
        uid: Some(key.into()),
        kind: Kind::Pod,
    }
}

/// A namespace of its own.
fn place() -> Place {
    let netns = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("needs root");
        Netns::current().unwrap()
    });
    Place {
        netns: NetnsHandle(Arc::new(netns.join().unwrap())),
        path: "/proc/1/ns/net".into(),
    }
}

struct World {
    state: State,
    now: Instant,
}

impl World {
    fn new() -> Self {
        Self {
            state: State::new(Rules::default()),
            now: Instant::now(),
        }
    }

    /// With both lists in.
    fn listed(mode: Option<&str>, pods: Vec<KnownPod>) -> Self {
        let mut world = Self::new();
        world.namespace(mode);
        world.state.namespaces_listed = true;
        world.state.pods_listed(pods, world.now);
        world
    }

    fn namespace(&mut self, mode: Option<&str>) {
        self.state
            .namespace_applied("shop".into(), mode.map(str::to_owned));
    }

    fn cgroup(&mut self, key: &str, inode: u64) {
        self.state.cgroup_appeared(cgroup(key), inode, self.now);
    }

    fn due(&self) -> Vec<String> {
        let due = self.state.due(self.now);
        due.iter()
            .map(|(uid, sought)| format!("{uid}/{}", sought.key))
            .collect()
    }

    fn found(&mut self, uid: &str, place: &Place) {
        self.state.looked(&uid.into(), Ok(place.clone()), self.now);
    }

    fn missing(&mut self, uid: &str, missing: Missing) {
        self.state.looked(&uid.into(), Err(missing), self.now);
    }

    fn apply(&mut self, pod: KnownPod) {
        self.state.pod_applied(pod, self.now);
    }

    fn delete(&mut self, uid: &str) {
        self.state.pod_deleted(&uid.into(), self.now);
    }

    /// What is told now, in short.
    fn told(&mut self) -> Vec<String> {
        let sighting = |sighting: &Sighting| match sighting {
            Sighting::In(spec) => format!("in {}", spec.uid),
            Sighting::Out(out) => format!("out {} {:?}", out.uid, out.why),
        };
        let event = |event: PodEvent| match event {
            PodEvent::Snapshot(all) => format!(
                "all [{}]",
                all.iter().map(sighting).collect::<Vec<_>>().join(", ")
            ),
            PodEvent::Seen(one) => sighting(&one),
            PodEvent::Gone { uid } => format!("gone {uid}"),
            PodEvent::Invalid(fault) => panic!("{fault}"),
        };
        self.state.settle().events.into_iter().map(event).collect()
    }

    fn faces(&mut self) -> Vec<Face> {
        self.state
            .settle()
            .seen
            .into_iter()
            .map(|seen| seen.face)
            .collect()
    }
}

#[test]
fn the_first_snapshot_waits_for_lists_and_looks() {
    let mut world = World::new();
    let place = place();
    world.cgroup("a", 1);
    world
        .state
        .pods_listed(vec![pod("a", None), pod("b", Some("ambient"))], world.now);
    assert_eq!(world.told(), [""; 0]);
    assert_eq!(
        world.due(),
        [""; 0],
        "the namespace may not ask for it; b has no cgroup"
    );
    world
        .state
        .namespaces_listed(vec![("shop".into(), Some("ambient".into()))]);
    assert_eq!(world.due(), ["a/a"]);
    assert_eq!(world.told(), [""; 0]);
    world.found("a", &place);
    assert_eq!(world.told(), ["all [in a, out b PlaceUnknown]"]);
    assert_eq!(world.told(), [""; 0]);
    world.cgroup("b", 2);
    assert_eq!(world.told(), ["out b PlaceUnknown"], "its cgroup is news");
    world.found("b", &place);
    assert_eq!(world.told(), ["in b"]);
}

#[test]
fn a_label_of_the_namespace_decides_again_at_once() {
    let place = place();
    let mut world = World::listed(None, vec![pod("a", None), pod("b", Some("none"))]);
    world.cgroup("a", 1);
    world.cgroup("b", 2);
    assert_eq!(world.told(), ["all [out a NotLabelled, out b OptedOut]"]);
    assert_eq!(world.due(), [""; 0]);
    world.namespace(Some("ambient"));
    assert_eq!(world.due(), ["a/a"]);
    assert_eq!(world.told(), ["out a PlaceUnknown"]);
    world.found("a", &place);
    assert_eq!(world.told(), ["in a"]);
    world.namespace(None);
    assert_eq!(world.told(), ["out a NotLabelled"]);
    world.namespace(Some("ambient"));
    assert_eq!(world.told(), ["in a"], "its place is still known");
    world.namespace(Some("ambient"));
    assert_eq!(world.told(), [""; 0]);
}

#[test]
fn a_pod_of_an_unknown_namespace_is_not_judged_too_early() {
    let mut world = World::listed(Some("ambient"), vec![]);
    assert_eq!(world.told(), ["all []"]);
    let foreign = |uid: &str, mode| KnownPod {
        namespace: "new".into(),
        ..pod(uid, mode)
    };
    world.apply(foreign("a", None));
    world.apply(foreign("b", Some("none")));
    world.apply(foreign("c", Some("ambient")));
    world.apply(KnownPod {
        host_network: true,
        ..foreign("d", None)
    });
    let told = ["out b OptedOut", "out c PlaceUnknown", "out d HostNetwork"];
    assert_eq!(world.told(), told);
    world.state.namespace_applied("new".into(), None);
    assert_eq!(world.told(), ["out a NotLabelled"]);
    // and is not thrown out when the namespace goes first
    world.state.namespace_deleted("new");
    world.apply(KnownPod {
        phase: Phase::Unknown,
        ..foreign("a", None)
    });
    assert_eq!(world.told(), [""; 0]);
}

#[test]
fn a_second_list_tells_differences_only() {
    let place = place();
    let mut world = World::listed(Some("ambient"), vec![pod("a", None), pod("b", None)]);
    world.cgroup("a", 1);
    world.found("a", &place);
    assert_eq!(world.told(), ["all [in a, out b PlaceUnknown]"]);
    world
        .state
        .pods_listed(vec![pod("a", None), pod("b", None)], world.now);
    world
        .state
        .namespaces_listed(vec![("shop".into(), Some("ambient".into()))]);
    assert_eq!(world.told(), [""; 0]);
    world
        .state
        .pods_listed(vec![pod("a", None), pod("c", Some("none"))], world.now);
    assert_eq!(world.told(), ["gone b", "out c OptedOut"]);
}

#[test]
fn a_deleted_pod_stays_while_its_processes_run() {
    let place = place();
    let both = vec![pod("a", None), pod("b", None), pod("c", None)];
    let mut world = World::listed(Some("ambient"), both);
    for (uid, inode) in [("a", 1), ("b", 2), ("c", 3)] {
        world.cgroup(uid, inode);
        world.found(uid, &place);
    }
    assert_eq!(world.told(), ["all [in a, in b, in c]"]);
    ["a", "b", "c"].iter().for_each(|uid| world.delete(uid));
    assert_eq!(world.told(), [""; 0]);
    assert_eq!(world.due(), ["a/a", "b/b", "c/c"]);
    world.missing("a", Missing::NoProcess);
    world.found("b", &place);
    world.found("c", &place);
    assert_eq!(world.told(), ["gone a"]);
    // a list that has it again
    world.apply(pod("c", None));
    assert_eq!(world.told(), [""; 0]);
    world.now += LINGER;
    world.found("b", &place);
    world.found("c", &place);
    assert_eq!(world.told(), ["gone b"]);
    // one that was never in goes at once
    world.apply(pod("d", Some("none")));
    assert_eq!(world.told(), ["out d OptedOut"]);
    world.delete("d");
    assert_eq!(world.told(), ["gone d"]);
}

#[test]
fn the_same_name_again_is_another_pod() {
    let (old, new) = (place(), place());
    let named = |uid: &str| KnownPod {
        name: "web-0".into(),
        ips: vec!["10.0.0.1".parse().unwrap()],
        ..pod(uid, None)
    };
    let mut world = World::listed(Some("ambient"), vec![named("a")]);
    world.cgroup("a", 1);
    world.found("a", &old);
    world.told();
    world.delete("a");
    world.apply(named("b"));
    world.cgroup("b", 2);
    assert_eq!(world.told(), ["out b PlaceUnknown"]);
    world.missing("a", Missing::NoProcess);
    world.found("b", &new);
    assert_eq!(world.told(), ["gone a", "in b"]);
}

#[test]
fn a_place_stays_until_there_is_another() {
    let (old, new) = (place(), place());
    let mut world = World::listed(Some("ambient"), vec![pod("a", None)]);
    world.cgroup("a", 1);
    world.found("a", &old);
    world.told();
    world.missing("a", Missing::NoProcess);
    world.missing("a", Missing::NoNamespace);
    assert_eq!(world.told(), [""; 0]);
    let nowhere = |namespaces| Missing::NoAddress {
        ip: "10.0.0.1".parse().unwrap(),
        namespaces,
    };
    let (here, there) = (old.netns.0.id(), new.netns.0.id());
    world.missing("a", nowhere(vec![there, here]));
    assert_eq!(world.told(), [""; 0]);
    world.missing("a", nowhere(vec![there]));
    assert_eq!(
        world.told(),
        ["out a PlaceUnknown"],
        "it lives elsewhere now"
    );
    world.cgroup("a", 9);
    world.found("a", &new);
    let settled = world.state.settle();
    let [PodEvent::Seen(Sighting::In(spec))] = &settled.events[..] else {
        panic!("{:?}", settled.events);
    };
    assert_eq!(spec.netns_handle.as_ref(), Some(&new.netns));
    assert_eq!(
        (spec.netns_inode, spec.cgroup_inode),
        (Some(new.netns.0.inode()), Some(9))
    );
}

#[test]
fn a_pod_whose_cgroup_went_has_ended_or_comes_back() {
    let (old, new) = (place(), place());
    let both = vec![pod("a", None), pod("b", None)];
    let mut world = World::listed(Some("ambient"), both);
    for (uid, inode) in [("a", 1), ("b", 2)] {
        world.cgroup(uid, inode);
        world.found(uid, &old);
    }
    world.told();
    world.state.cgroup_gone(&cgroup("a").path);
    let settled = world.state.settle();
    assert_eq!(settled.seen[0].face, Face::Expected);
    assert_eq!(settled.events.len(), 1);
    assert_eq!(world.due(), [""; 0]);
    world.cgroup("a", 3);
    world.found("a", &new);
    assert_eq!(world.told(), ["in a"]);
    // of a deleted pod that is the end
    world.delete("b");
    assert_eq!(world.told(), [""; 0]);
    world.state.cgroup_gone(&cgroup("b").path);
    assert_eq!(world.told(), ["gone b"]);
}

#[test]
fn what_moves_a_pod_is_looked_at_again() {
    let here = place();
    let mut world = World::listed(Some("ambient"), vec![pod("a", None)]);
    world.cgroup("a", 1);
    let settle = |world: &mut World| {
        while world
            .state
            .next()
            .is_some_and(|next| next < world.now + Duration::from_secs(10))
        {
            world.now = world.state.next().unwrap();
            world.found("a", &here);
        }
        assert_eq!(world.due(), [""; 0]);
        world.told();
    };
    settle(&mut world);
    let moved = KnownPod {
        ips: vec!["10.0.0.1".parse().unwrap()],
        ..pod("a", None)
    };
    world.apply(moved.clone());
    assert_eq!(world.due(), ["a/a"]);
    settle(&mut world);
    world.apply(KnownPod {
        redirection: Some("enabled".into()),
        ..moved.clone()
    });
    assert_eq!(world.due(), [""; 0]);
    world.apply(KnownPod {
        sandbox: Some("True t2".into()),
        ..moved
    });
    assert_eq!(world.due(), ["a/a"]);
    settle(&mut world);
    world.state.nudge(&cgroup("a").path, world.now);
    assert_eq!(world.due(), ["a/a"]);
}

#[test]
fn a_static_pod_is_found_by_the_hash_of_its_configuration() {
    let place = place();
    let own = KnownPod {
        config_hash: Some("9fceb02d0ae598e9".into()),
        ..pod("a", None)
    };
    let mut world = World::listed(Some("ambient"), vec![own.clone()]);
    world.cgroup("9fceb02d0ae598e9", 1);
    assert_eq!(world.due(), ["a/9fceb02d0ae598e9"]);
    world.found("a", &place);
    assert_eq!(world.told(), ["all [in a]"]);
    // also when the cgroup came first
    let mut world = World::new();
    world.cgroup("9fceb02d0ae598e9", 1);
    world.namespace(Some("ambient"));
    world.apply(own);
    assert_eq!(world.due(), ["a/9fceb02d0ae598e9"]);
}

#[test]
fn a_terminating_pod_stays_until_it_has_ended() {
    let place = place();
    let mut world = World::listed(Some("ambient"), vec![pod("a", None)]);
    world.cgroup("a", 1);
    world.found("a", &place);
    world.told();
    world.apply(KnownPod {
        phase: Phase::Succeeded,
        ..pod("a", None)
    });
    assert_eq!(world.told(), ["out a Terminated"]);
}

#[test]
fn what_is_not_there_yet_is_no_failure() {
    let mut world = World::listed(
        Some("ambient"),
        vec![KnownPod {
            phase: Phase::Pending,
            ..pod("a", None)
        }],
    );
    assert_eq!(world.faces(), [Face::Expected]);
    world.cgroup("a", 1);
    world.missing("a", Missing::NoProcess);
    assert_eq!(world.faces(), [Face::Expected]);
    world.missing("a", Missing::NoNamespace);
    assert_eq!(
        world.faces(),
        [Face::Waiting(Missing::NoNamespace.to_string())]
    );
    world.apply(pod("a", Some("none")));
    assert_eq!(world.faces(), [Face::Out]);
    // one that runs must have one
    world.apply(pod("b", None));
    let missing = "no cgroup of the pod found";
    assert_eq!(world.faces(), [Face::Waiting(missing.into())]);
}

#[test]
fn ignored_annotations_are_told_once() {
    let place = place();
    let annotations = Labels::from([(
        "ambient.istio.io/dns-capture".to_owned(),
        "maybe".to_owned(),
    )]);
    let odd = KnownPod {
        annotations,
        ..pod("a", None)
    };
    let mut world = World::listed(Some("ambient"), vec![odd.clone()]);
    world.cgroup("a", 1);
    world.found("a", &place);
    assert_eq!(world.state.settle().warnings.len(), 1);
    world.apply(KnownPod {
        redirection: Some("enabled".into()),
        ..odd
    });
    assert_eq!(world.state.settle().warnings.len(), 0);
}

#[test]
fn the_number_of_pods_is_bounded() {
    let many = (0..PODS_MAX + 3).map(|at| pod(&format!("p{at}"), Some("none")));
    let world = World::listed(None, many.collect());
    assert_eq!(
        (world.state.pods.len(), world.state.overflow()),
        (PODS_MAX, 3)
    );
}
