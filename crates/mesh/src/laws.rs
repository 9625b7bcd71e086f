//! What always holds, as functions from arbitrary bytes: driven by `cargo test` with fixed seeds and by `fuzz/` with any.
//!
//! Each panics where its law is broken, and does nothing else. Not for use in the daemon.

mod admits;
mod answers;
mod draw;
mod naive;
mod routes;

use std::sync::Arc;

use crate::authorize::{Attempt, authorize};
use crate::index::{Delta, EndpointRef, Index, Key, Resource};
use crate::name::{NamespacedHostname, Str};
use crate::policy::{Action, Policy};
use crate::spiffe::SpiffeId;
use crate::workload::Workload;
pub use admits::admit_is_sound;
pub use answers::{answer_is_sound, any_name_is_answered};
use draw::Draw;
pub use routes::route_is_sound;

/// All laws that start from bytes.
pub const ALL: &[fn(&[u8])] = &[
    apply_equals_build,
    slices_equal_the_whole,
    delta_leads_there,
    one_more_deny_only_refuses_more,
    policy_order_is_irrelevant,
    route_is_sound,
    admit_is_sound,
    answer_is_sound,
    spiffe_ids_print_and_parse,
];

/// An index fed delta by delta equals one built afresh from what it holds; and emptied it equals an empty one.
pub fn apply_equals_build(bytes: &[u8]) {
    let mut draw = Draw::new(bytes);
    let mut fed = Index::default();
    while !draw.is_empty() {
        let before = fed.clone();
        let held = before.resources();
        fed.apply(draw.delta());
        fed.audit();
        while fed.settle() {}
        fed.audit();
        assert_eq!(fed, Index::build(fed.resources()));
        before.audit();
        assert_eq!(before.resources(), held, "a copy keeps what it was");
    }
    fed.apply(fed.delta_to(&[]));
    fed.audit();
    assert_eq!(fed, Index::default());
}

/// A change in slices, removals first, comes to the same as the whole.
pub fn slices_equal_the_whole(bytes: &[u8]) {
    let mut draw = Draw::new(bytes);
    let mut whole = Index::default();
    let mut sliced = Index::default();
    while !draw.is_empty() {
        let Delta { remove, upsert } = draw.delta();
        let size = 1 + usize::from(draw.byte() % 3);
        for part in remove.chunks(size) {
            sliced.apply(Delta {
                remove: part.to_vec(),
                upsert: Vec::new(),
            });
        }
        for part in upsert.chunks(size) {
            sliced.apply(Delta {
                remove: Vec::new(),
                upsert: part.to_vec(),
            });
        }
        whole.apply(Delta { remove, upsert });
        while whole.settle() {}
        sliced.audit();
        assert_eq!(whole, sliced);
        assert_eq!(members(&whole), members(&sliced), "in the same order");
    }
}

/// The endpoints of all Services, in their order.
fn members(index: &Index) -> Vec<(NamespacedHostname, Vec<Str>)> {
    let uids = |all: &mut dyn Iterator<Item = EndpointRef<'_>>| {
        all.map(|e| e.workload.uid.clone()).collect()
    };
    let known = index.services();
    let mut all: Vec<_> = known
        .map(|s| (s.key(), uids(&mut index.endpoints(s))))
        .collect();
    let unknown = index.unknown_services();
    all.extend(unknown.map(|(name, mut staged)| (name, uids(&mut staged))));
    all.sort();
    all
}

/// The delta to a set of resources makes an index that holds just these, and is empty when that is so already.
pub fn delta_leads_there(bytes: &[u8]) {
    let mut draw = Draw::new(bytes);
    let mut index = Index::build(draw.delta().upsert);
    while !draw.is_empty() {
        let wanted = draw.delta().upsert;
        let version = index.policy_version();
        let delta = index.delta_to(&wanted);
        let about_policies = delta
            .upsert
            .iter()
            .map(Resource::key)
            .chain(delta.remove.iter().cloned());
        let moves = about_policies
            .into_iter()
            .any(|key| matches!(key, Key::Policy(_)));
        index.apply(delta);
        assert_eq!(index.policy_version() != version, moves);
        assert_eq!(index, Index::build(wanted.clone()));
        assert!(index.delta_to(&wanted).is_empty());
    }
}

/// With one more enforced DENY policy nothing is allowed that was not before.
pub fn one_more_deny_only_refuses_more(bytes: &[u8]) {
    let mut draw = Draw::new(bytes);
    let policies = draw.policies();
    let extra = Policy {
        key: "extra/deny".into(),
        action: Action::Deny,
        dry_run: false,
        ..draw.policy()
    };
    let (local, asked) = (draw.workload(), draw.attempt());
    let before = verdict(&policies, &local, &asked);
    let mut more = policies;
    more.push(extra);
    assert!(
        before || !verdict(&more, &local, &asked),
        "allowed only with one more DENY"
    );
}

/// The order in which policies came changes no verdict, and no note about it.
pub fn policy_order_is_irrelevant(bytes: &[u8]) {
    let mut draw = Draw::new(bytes);
    let mut policies = draw.policies();
    policies.sort_by(|a, b| a.key.cmp(&b.key));
    policies.dedup_by(|a, b| a.key == b.key);
    let (local, asked) = (draw.workload(), draw.attempt());
    let (first, second) = (index_of(&policies), {
        policies.reverse();
        index_of(&policies)
    });
    let attempt = asked.as_attempt(&local);
    assert_eq!(authorize(&first, &attempt), authorize(&second, &attempt));
}

/// What a connection asks of policy, owned.
struct Asked {
    identity: Option<SpiffeId>,
    source: std::net::SocketAddr,
    destination: std::net::SocketAddr,
}

impl Asked {
    fn as_attempt<'a>(&'a self, local: &'a Workload) -> Attempt<'a> {
        Attempt {
            identity: self.identity.as_ref(),
            source: self.source,
            destination: self.destination,
            local,
        }
    }
}

fn index_of(policies: &[Policy]) -> Index {
    Index::build(
        policies
            .iter()
            .map(|p| Resource::Policy(Arc::new(p.clone())))
            .collect(),
    )
}

fn verdict(policies: &[Policy], local: &Workload, asked: &Asked) -> bool {
    authorize(&index_of(policies), &asked.as_attempt(local)).is_allowed()
}

/// A SPIFFE id of parts without `/` parses from what it prints; and what parses prints as it was.
pub fn spiffe_ids_print_and_parse(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(id) = text.parse::<SpiffeId>() {
        assert_eq!(id.to_string(), text);
    }
    let plain = text.replace('/', "|");
    let mut thirds = plain.splitn(3, ' ');
    let mut third = || thirds.next().unwrap_or_default();
    let id = SpiffeId::new(third(), third(), third());
    assert_eq!(id.to_string().parse(), Ok(id));
}

/// Any text is a file or an error with a place in it; what is a file makes an index that shows itself.
pub fn local_file(text: &str) {
    match crate::local::parse(text) {
        Ok(resources) => {
            let index = Index::build(resources.clone());
            assert_eq!(
                index.resources().len(),
                resources.len(),
                "no two resources have one key"
            );
            assert!(index.delta_to(&resources).is_empty());
        }
        Err(error) => {
            let lines = text.matches(['\n', '\r']).count() as u64 + 1;
            assert!(error.line <= lines + 1, "{error}");
            assert!(!error.problem.is_empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    const RUNS: u64 = 400;
    /// Of the laws about decisions: the rare ones need many.
    const DECISIONS: u64 = 6000;
    const BYTES_MAX: usize = 2000;

    #[test]
    fn hold_for_fixed_seeds() {
        for law in ALL {
            for seed in 0..RUNS {
                law(&bytes(seed));
            }
        }
    }

    fn bytes(seed: u64) -> Vec<u8> {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut bytes = vec![0; rng.random_range(0..BYTES_MAX)];
        rng.fill(&mut bytes[..]);
        bytes
    }

    /// A law about decisions says nothing where none is met: each kind comes up often enough.
    #[test]
    fn decisions_of_every_kind_are_sound() {
        let mut met = std::collections::BTreeMap::<_, u32>::new();
        for seed in 0..DECISIONS {
            route_is_sound(&bytes(seed));
            admit_is_sound(&bytes(seed));
            *met.entry(routes::kind_met(&bytes(seed))).or_default() += 1;
        }
        for kind in routes::KINDS {
            assert!(met.get(kind).is_some_and(|n| *n >= 5), "{kind}: {met:?}");
        }
    }

    #[test]
    fn answers_of_every_kind_are_sound() {
        let mut met = std::collections::BTreeMap::<_, u32>::new();
        for seed in 0..DECISIONS {
            answer_is_sound(&bytes(seed));
            *met.entry(answers::kind_met(&bytes(seed))).or_default() += 1;
        }
        for kind in answers::KINDS {
            assert!(met.get(kind).is_some_and(|n| *n >= 20), "{kind}: {met:?}");
        }
    }

    #[test]
    fn any_text_is_a_name() {
        for seed in 0..RUNS {
            any_name_is_answered(&String::from_utf8_lossy(&bytes(seed)));
        }
    }

    #[test]
    fn files_with_faults_are_files_or_errors() {
        let file = include_str!("laws/local.yaml");
        local_file(file);
        let mut rng = SmallRng::seed_from_u64(1);
        let junk = b"{}[]:-,\"'!&*#|>% \n\tax0";
        for _ in 0..500 {
            let mut bytes = file.as_bytes().to_vec();
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(0..bytes.len());
                bytes[at] = junk[rng.random_range(0..junk.len())];
            }
            local_file(&String::from_utf8_lossy(&bytes));
        }
    }
}
