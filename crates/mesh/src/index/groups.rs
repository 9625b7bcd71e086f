//! The members of a Service with very many of them, in groups that are alike in all that a choice among them asks: a decision
//! looks at each group once and not at each endpoint.
//!
//! Worked out at most once per change. Leaves to others: the choice (`balance`), when to work it out ahead (`Index::settle`).

use std::ptr;

use hashbrown::HashMap;

use super::arena::Slot;
use super::members::Member;
use super::workloads::Workloads;
use crate::name::{NamespacedHostname, Str};
use crate::ports::Ports;
use crate::service::Scope;
use crate::workload::{ApplicationTunnel, Health, Workload};

/// Members from which on they are put into groups; fewer are looked at one by one within microseconds.
pub(super) const LARGE: usize = if cfg!(test) { 4 } else { 512 };

/// Members, group by group. The order of groups, and that within a group, is that of the members.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Groups {
    slots: Box<[Slot]>,
    /// Where each group ends in `slots`.
    ends: Box<[u32]>,
}

/// All that a choice asks of an endpoint; of where it is, only what the Service's preferences ask for.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Traits<'a> {
    scopes: Vec<&'a Str>,
    network: &'a Str,
    ports: &'a Ports,
    tunnel: Option<ApplicationTunnel>,
    capacity: u32,
    status: Health,
    has_address: bool,
    has_hostname: bool,
    has_gateway: bool,
}

impl<'a> Traits<'a> {
    fn of(workload: &'a Workload, ports: &'a Ports, asked: &[Scope]) -> Self {
        let scopes = asked.iter().map(|scope| scope.of(workload));
        Self {
            scopes: scopes.collect(),
            network: &workload.network,
            ports,
            tunnel: workload.application_tunnel,
            capacity: workload.capacity,
            status: workload.status,
            has_address: !workload.addresses.is_empty(),
            has_hostname: !workload.hostname.is_empty(),
            has_gateway: workload.network_gateway.is_some(),
        }
    }
}

/// Whether two versions of a workload surely are in one group of any Service that both list.
pub(super) fn surely_alike(a: &Workload, b: &Workload) -> bool {
    ptr::eq(&*a.profile, &*b.profile)
        && ptr::eq(&*a.place, &*b.place)
        && a.addresses.is_empty() == b.addresses.is_empty()
}

impl Groups {
    /// The groups of the members of the Service of that name, if it asks for those scopes.
    pub(super) fn of(
        name: &NamespacedHostname,
        members: &[Member],
        asked: &[Scope],
        workloads: &Workloads,
    ) -> Self {
        let mut group_of = Vec::with_capacity(members.len());
        let mut lengths: Vec<u32> = Vec::new();
        let mut by_traits = HashMap::new();
        // most share what they have in common: then nothing needs to be compared
        let mut by_parts = HashMap::new();
        for slot in members.iter().map(|member| member.slot) {
            let Some(workload) = workloads.at(slot) else {
                continue;
            };
            let parts = (
                ptr::from_ref(&*workload.profile),
                ptr::from_ref(&*workload.place),
                workload.addresses.is_empty(),
            );
            let find = || {
                let listed = workload.membership(&name.namespace, &name.hostname)?;
                let traits = Traits::of(workload, &listed.ports, asked);
                Some(*by_traits.entry(traits).or_insert_with(|| {
                    lengths.push(0);
                    lengths.len() - 1
                }))
            };
            let Some(group) = *by_parts.entry(parts).or_insert_with(find) else {
                continue;
            };
            lengths[group] += 1;
            group_of.push((group, slot));
        }
        Self::sorted(&group_of, &lengths)
    }

    /// Puts slots with the numbers of their groups together.
    fn sorted(group_of: &[(usize, Slot)], lengths: &[u32]) -> Self {
        let sum = |sum: &mut u32, length: &u32| {
            let start = *sum;
            *sum += length;
            Some(start)
        };
        let mut next: Vec<u32> = lengths.iter().scan(0, sum).collect();
        let mut slots = vec![0; group_of.len()].into_boxed_slice();
        for (group, slot) in group_of {
            slots[next[*group] as usize] = *slot;
            next[*group] += 1;
        }
        // each now points behind the last of its group
        Self {
            slots,
            ends: next.into_boxed_slice(),
        }
    }

    /// The slots of each group, never none.
    pub(super) fn iter(&self) -> impl Iterator<Item = &[Slot]> {
        let mut start = 0;
        self.ends.iter().map(move |end| {
            let from = std::mem::replace(&mut start, *end as usize);
            &self.slots[from..start]
        })
    }
}
