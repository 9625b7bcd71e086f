//! Compares what a pod should look like with what the kernel says: a plain function of two values.

use std::collections::BTreeSet;
use std::fmt::Debug;

pub use crate::netlink::{Family, Route, Rule};
pub use crate::pod::State;

use crate::error::Step;

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The step of enrolment that would have made it right.
    pub step: Step,
    /// What is missing, surplus or changed, for a human.
    pub what: String,
}

/// All differences, in the order of the enrolment's steps.
pub fn diff(wanted: &State, actual: &State) -> Vec<Difference> {
    let mut found = Vec::new();
    for (kind, cookie) in &wanted.sockets {
        if actual.sockets.get(kind) != Some(cookie) {
            found.push(Difference {
                step: Step::Sockets,
                what: format!("socket {kind:?} not in the map"),
            });
        }
    }
    for kind in actual
        .sockets
        .keys()
        .filter(|kind| !wanted.sockets.contains_key(kind))
    {
        found.push(Difference {
            step: Step::Maps,
            what: format!("surplus socket {kind:?}"),
        });
    }
    sets(
        &mut found,
        Step::Maps,
        "address",
        &wanted.locals,
        &actual.locals,
    );
    sets(
        &mut found,
        Step::Maps,
        "excluded range",
        &wanted.ranges,
        &actual.ranges,
    );
    sets(
        &mut found,
        Step::Maps,
        "excluded port",
        &wanted.ports,
        &actual.ports,
    );
    if wanted.lookup.is_none() || wanted.lookup != actual.lookup {
        found.push(Difference {
            step: Step::Lookup,
            what: "sk_lookup program not attached".into(),
        });
    }
    sets(
        &mut found,
        Step::Routes,
        "route",
        &wanted.routes,
        &actual.routes,
    );
    sets(
        &mut found,
        Step::Rules,
        "rule",
        &wanted.rules,
        &actual.rules,
    );
    for (name, value) in &wanted.sysctls {
        if let Some(now) = actual.sysctls.get(name).filter(|now| *now != value) {
            found.push(Difference {
                step: Step::Sysctls,
                what: format!("{name} is {now}, not {value}"),
            });
        }
    }
    if wanted.flags != actual.flags {
        found.push(Difference {
            step: Step::Switch,
            what: format!("flags {:?}, not {:?}", actual.flags, wanted.flags),
        });
    }
    found
}

fn sets<T: Ord + Debug>(
    found: &mut Vec<Difference>,
    step: Step,
    noun: &str,
    wanted: &BTreeSet<T>,
    actual: &BTreeSet<T>,
) {
    for item in wanted.difference(actual) {
        found.push(Difference {
            step,
            what: format!("missing {noun} {item:?}"),
        });
    }
    for item in actual.difference(wanted) {
        found.push(Difference {
            step,
            what: format!("surplus {noun} {item:?}"),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use redirect_common::Kind;

    type Change = (Step, fn(&mut State));

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
            flags: Some(3),
            lookup: Some(7),
            sockets: [(Kind::Outbound, 11)].into(),
        }
    }

    #[test]
    fn the_same_has_no_difference() {
        assert_eq!(diff(&state(), &state()), []);
    }

    #[test]
    fn each_thing_counts() {
        let changes: [Change; 10] = [
            (Step::Sockets, |s| s.sockets.clear()),
            (Step::Maps, |s| s.sockets.extend([(Kind::Dns, 5)])),
            (Step::Maps, |s| s.locals.clear()),
            (Step::Maps, |s| s.ranges.clear()),
            (Step::Maps, |s| s.ports.extend([26])),
            (Step::Lookup, |s| s.lookup = None),
            (Step::Routes, |s| s.routes.clear()),
            (Step::Rules, |s| s.rules.extend([Rule::Dns(Family::V4)])),
            (Step::Sysctls, |s| {
                s.sysctls.extend([("net/ipv4/fwmark_reflect", 0)])
            }),
            (Step::Switch, |s| s.flags = None),
        ];
        for (step, change) in changes {
            let mut actual = state();
            change(&mut actual);
            let found: Vec<_> = diff(&state(), &actual)
                .into_iter()
                .map(|difference| difference.step)
                .collect();
            assert_eq!(found, [step]);
        }
    }
}
