//! Compares what a pod should look like with what the kernel says: a plain function of two values.

use std::collections::BTreeSet;
use std::fmt::Debug;

pub use crate::netlink::{Family, Route, Rule};
pub use crate::pod::{Other, State};

/// What kind of thing in the kernel is not as it should be: the label of the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DriftKind {
    /// A policy routing rule of the pod.
    Rule,
    /// A route of the capture table.
    Route,
    /// The pod's addresses are others than before: capture has to follow.
    Address,
    /// An entry of a map, or a map's pin.
    Map,
    /// A kernel program, its link or the link's pin.
    Program,
    /// A sysctl of the pod's namespace.
    Sysctl,
    /// A socket of the daemon in the pod.
    Socket,
    /// Processes of the pod are in another network namespace than the one enrolled.
    Netns,
    /// The pod's cgroup, or what the kernel is told of it.
    Cgroup,
    /// The kernel's state could not be read.
    Unreadable,
    /// Something of somebody else stands in the way of capture.
    Foreign,
}

impl DriftKind {
    /// All kinds.
    pub const ALL: [Self; 11] = [
        Self::Rule,
        Self::Route,
        Self::Address,
        Self::Map,
        Self::Program,
        Self::Sysctl,
        Self::Socket,
        Self::Netns,
        Self::Cgroup,
        Self::Unreadable,
        Self::Foreign,
    ];

    /// The name, as in the metric's label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Rule => "rule",
            Self::Route => "route",
            Self::Address => "address",
            Self::Map => "map",
            Self::Program => "program",
            Self::Sysctl => "sysctl",
            Self::Socket => "socket",
            Self::Netns => "netns",
            Self::Cgroup => "cgroup",
            Self::Unreadable => "unreadable",
            Self::Foreign => "foreign",
        }
    }

    /// What mends it, as a rule.
    pub const fn cure(self) -> Cure {
        match self {
            Self::Rule
            | Self::Route
            | Self::Address
            | Self::Map
            | Self::Program
            | Self::Sysctl
            | Self::Cgroup
            | Self::Unreadable => Cure::Repair,
            Self::Socket => Cure::Sockets,
            Self::Netns => Cure::Source,
            Self::Foreign => Cure::Human,
        }
    }
}

impl std::fmt::Display for DriftKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.label())
    }
}

/// What mends a drift.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cure {
    /// [`crate::Capture::repair`].
    Repair,
    /// Starting the pod again: open its namespace and new sockets, and [`crate::Capture::enroll`].
    Sockets,
    /// The enrolment source must look again where the pod is, and say so.
    Source,
    /// Nothing that the daemon may do: it is somebody else's.
    Human,
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What kind of thing.
    pub kind: DriftKind,
    /// What mends it.
    pub cure: Cure,
    /// What is missing, surplus or changed, for a human.
    pub what: String,
}

impl Difference {
    /// One that is mended as is usual for its kind.
    pub(crate) fn new(kind: DriftKind, what: String) -> Self {
        Self {
            kind,
            cure: kind.cure(),
            what,
        }
    }
}

/// All differences, in the order of the enrolment's steps.
pub fn diff(wanted: &State, actual: &State) -> Vec<Difference> {
    let mut found = Vec::new();
    for (kind, cookie) in &wanted.sockets {
        if actual.sockets.get(kind) != Some(cookie) {
            found.push(Difference::new(
                DriftKind::Socket,
                format!("socket {kind:?} not in the map"),
            ));
        }
    }
    for kind in actual
        .sockets
        .keys()
        .filter(|kind| !wanted.sockets.contains_key(kind))
    {
        found.push(Difference::new(
            DriftKind::Map,
            format!("surplus socket {kind:?}"),
        ));
    }
    sets(
        &mut found,
        DriftKind::Map,
        "address",
        &wanted.locals,
        &actual.locals,
    );
    sets(
        &mut found,
        DriftKind::Map,
        "excluded range",
        &wanted.ranges,
        &actual.ranges,
    );
    sets(
        &mut found,
        DriftKind::Map,
        "excluded port",
        &wanted.ports,
        &actual.ports,
    );
    sets(
        &mut found,
        DriftKind::Map,
        "open port",
        &wanted.open_ports,
        &actual.open_ports,
    );
    if wanted.lookup.is_none() || wanted.lookup != actual.lookup {
        found.push(Difference::new(
            DriftKind::Program,
            "sk_lookup program not attached".into(),
        ));
    }
    sets(
        &mut found,
        DriftKind::Route,
        "route",
        &wanted.routes,
        &actual.routes,
    );
    sets(
        &mut found,
        DriftKind::Rule,
        "rule",
        &wanted.rules,
        &actual.rules,
    );
    for (name, value) in &wanted.sysctls {
        if let Some(now) = actual.sysctls.get(name).filter(|now| *now != value) {
            found.push(Difference::new(
                DriftKind::Sysctl,
                format!("{name} is {now}, not {value}"),
            ));
        }
    }
    if wanted.cgroup != actual.cgroup {
        found.push(Difference::new(
            DriftKind::Cgroup,
            format!(
                "its cgroup is told to be enrolled with {:?}, not {:?}",
                actual.cgroup, wanted.cgroup
            ),
        ));
    }
    if wanted.flags != actual.flags {
        found.push(Difference::new(
            DriftKind::Map,
            format!("flags {:?}, not {:?}", actual.flags, wanted.flags),
        ));
    }
    found.extend(actual.others.iter().map(|other| Difference {
        kind: other.kind,
        cure: other.cure,
        what: other.what.clone(),
    }));
    found
}

fn sets<T: Ord + Debug>(
    found: &mut Vec<Difference>,
    kind: DriftKind,
    noun: &str,
    wanted: &BTreeSet<T>,
    actual: &BTreeSet<T>,
) {
    for item in wanted.difference(actual) {
        found.push(Difference::new(kind, format!("missing {noun} {item:?}")));
    }
    for item in actual.difference(wanted) {
        found.push(Difference::new(kind, format!("surplus {noun} {item:?}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use redirect_common::Kind;

    type Change = (DriftKind, fn(&mut State));

    fn state() -> State {
        State {
            rules: [Rule::Redirect(Family::V4)].into(),
            routes: [Route {
                source: "10.0.0.2".parse().unwrap(),
            }]
            .into(),
            sysctls: [("net/ipv4/fwmark_reflect", 1)].into(),
            locals: ["10.0.0.2".parse().unwrap()].into(),
            ranges: [(104, "10.0.0.0".parse().unwrap())].into(),
            ports: [25].into(),
            open_ports: [15020].into(),
            flags: Some(3),
            lookup: Some(7),
            sockets: [(Kind::Outbound, 11)].into(),
            cgroup: Some(3),
            others: BTreeSet::new(),
        }
    }

    #[test]
    fn the_same_has_no_difference() {
        assert_eq!(diff(&state(), &state()), []);
    }

    #[test]
    fn each_thing_counts() {
        let changes: [Change; 12] = [
            (DriftKind::Socket, |s| s.sockets.clear()),
            (DriftKind::Map, |s| s.sockets.extend([(Kind::Dns, 5)])),
            (DriftKind::Map, |s| s.locals.clear()),
            (DriftKind::Map, |s| s.ranges.clear()),
            (DriftKind::Map, |s| s.ports.extend([26])),
            (DriftKind::Program, |s| s.lookup = None),
            (DriftKind::Route, |s| s.routes.clear()),
            (DriftKind::Rule, |s| s.rules.extend([Rule::Dns(Family::V4)])),
            (DriftKind::Sysctl, |s| {
                s.sysctls.extend([("net/ipv4/fwmark_reflect", 0)])
            }),
            (DriftKind::Map, |s| s.flags = None),
            (DriftKind::Cgroup, |s| s.cgroup = None),
            (DriftKind::Foreign, |s| {
                s.others.insert(Other {
                    kind: DriftKind::Foreign,
                    cure: Cure::Human,
                    what: String::new(),
                });
            }),
        ];
        for (kind, change) in changes {
            let mut actual = state();
            change(&mut actual);
            let found: Vec<_> = diff(&state(), &actual)
                .into_iter()
                .map(|difference| difference.kind)
                .collect();
            assert_eq!(found, [kind]);
        }
    }
}
