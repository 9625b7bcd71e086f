//! The workloads that list a Service, as slots in an order of their own; and who joins and leaves, gathered over one change.
//!
//! A list is rewritten once per change, however many of its members come and go.

use hashbrown::HashMap;

use super::arena::Slot;
use super::workloads::Workloads;
use crate::workload::Workload;

/// A workload that lists a Service.
///
/// Members are kept by `order`, a hash of the uid, then by uid: the same order whatever came first, and cheap to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Member {
    order: u32,
    pub(super) slot: Slot,
}

impl Member {
    pub(super) fn new(workload: &Workload, slot: Slot) -> Self {
        Self {
            order: fnv1a(workload.uid.as_bytes()),
            slot,
        }
    }
}

/// The same in every process, so that one seed draws one endpoint. Source: FNV-1a, 32 bits, by Fowler, Noll and Vo.
fn fnv1a(bytes: &[u8]) -> u32 {
    let step = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    bytes.iter().fold(0x811C_9DC5, step)
}

/// Who joins (`true`) and who leaves (`false`) which Service, by its slot; of one member the last word holds.
#[derive(Debug, Default)]
pub(super) struct MemberChanges {
    by_service: HashMap<Slot, HashMap<Member, bool>>,
}

impl MemberChanges {
    pub(super) fn note(&mut self, service: Slot, member: Member, joins: bool) {
        self.touch(service).insert(member, joins);
    }

    /// Has the Service looked at when the change is done.
    pub(super) fn touch(&mut self, service: Slot) -> &mut HashMap<Member, bool> {
        self.by_service.entry(service).or_default()
    }

    pub(super) fn into_services(self) -> impl Iterator<Item = (Slot, HashMap<Member, bool>)> {
        self.by_service.into_iter()
    }
}

/// The list after a change. A member that left may have lost its slot to one that joined: `workloads` is as after the change.
pub(super) fn changed(
    old: &[Member],
    change: &HashMap<Member, bool>,
    workloads: &Workloads,
) -> Box<[Member]> {
    let joined = change.iter().filter(|(_, joins)| **joins).map(|(m, _)| *m);
    let mut new: Vec<Member> = Vec::with_capacity(old.len() + change.len());
    new.extend(old.iter().filter(|m| !change.contains_key(*m)));
    new.extend(joined);
    let uid = |m: &Member| workloads.at(m.slot).map(|w| &w.uid);
    new.sort_by(|a, b| a.order.cmp(&b.order).then_with(|| uid(a).cmp(&uid(b))));
    new.into_boxed_slice()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Two uids of one FNV-1a hash.
    const TWINS: [&str; 2] = ["costarring", "liquid"];

    #[test]
    fn the_hash_is_the_known_one() {
        assert_eq!(
            (fnv1a(b""), fnv1a(b"a"), fnv1a(b"foobar")),
            (0x811C_9DC5, 0xE40C_292C, 0xBF9C_F968)
        );
        assert_eq!(fnv1a(TWINS[0].as_bytes()), fnv1a(TWINS[1].as_bytes()));
    }

    #[test]
    fn one_order_whatever_came_first() {
        let workload = |uid: &str| {
            let (place, profile) = Default::default();
            Arc::new(Workload::new(uid.into(), uid, [], place, profile))
        };
        let listed = |uids: &[&str]| -> Vec<String> {
            let mut workloads = Workloads::default();
            let mut list = Box::default();
            for uid in uids {
                let new = workload(uid);
                let (slot, _) = workloads.insert(&new);
                let change = [(Member::new(&new, slot), true)].into();
                list = changed(&list, &change, &workloads);
            }
            let uid = |m: &Member| workloads.at(m.slot).map(|w| w.uid.to_string());
            list.iter().filter_map(uid).collect()
        };
        let [a, b] = TWINS;
        let first = listed(&[a, "x", b, "y"]);
        assert_eq!(first.len(), 4);
        assert_eq!(first, listed(&["y", b, a, "x"]));
    }
}
