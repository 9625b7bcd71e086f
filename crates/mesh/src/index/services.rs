//! Services by host name, address and range; and per Service the workloads that list it, whether or not it is known yet.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use ipnet::IpNet;

use super::arena::{Arena, Slot};
use super::groups::{Groups, LARGE};
use super::members::{Member, MemberChanges, changed};
use super::table::{KeyHash, Table};
use super::workloads::Workloads;
use crate::name::NamespacedHostname;
use crate::service::Service;

#[derive(Clone, Debug, Default)]
pub(super) struct Services {
    slots: Arena<Known>,
    by_name: Table,
    by_host: Table,
    vips: Table,
    ranges: Table,
    /// How many ranges there are of each family (IPv4?) and length, longest first: what a lookup has to try.
    lengths: BTreeMap<(bool, Reverse<u8>), usize>,
    /// How many Services have so many members that these are grouped.
    large: usize,
    /// Those whose groups have to be worked out anew.
    unsettled: BTreeSet<Slot>,
}

/// What is known under one name. Its slot is there while it has a Service or members.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) name: Arc<NamespacedHostname>,
    pub(super) service: Option<Arc<Service>>,
    pub(super) members: Arc<[Member]>,
    groups: OnceLock<Arc<Groups>>,
}

impl Known {
    fn is_large(&self) -> bool {
        self.members.len() >= LARGE
    }

    /// The members in groups, if they are many.
    pub(super) fn groups(&self, workloads: &Workloads) -> Option<&Groups> {
        let groups = || Arc::new(self.regrouped(workloads));
        self.is_large().then(|| &**self.groups.get_or_init(groups))
    }

    fn regrouped(&self, workloads: &Workloads) -> Groups {
        let balancer = self.service.as_ref().and_then(|s| s.load_balancer.as_ref());
        let asked = balancer.map_or(&[][..], |balancer| &balancer.routing_preferences);
        Groups::of(&self.name, &self.members, asked, workloads)
    }
}

impl PartialEq for Services {
    fn eq(&self, other: &Self) -> bool {
        self.iter().count() == other.iter().count()
            && self
                .iter()
                .all(|s| other.get(&s.namespace, &s.hostname) == Some(s))
    }
}

impl Services {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.slots
            .iter()
            .filter_map(|(_, known)| known.service.as_ref())
    }

    /// Names that have members and no Service.
    pub(super) fn unknown(&self) -> impl Iterator<Item = &Known> {
        let all = self.slots.iter().map(|(_, known)| &**known);
        all.filter(|known| known.service.is_none())
    }

    fn slot_of(&self, namespace: &str, hostname: &str) -> Option<Slot> {
        let is_meant = |known: &Arc<Known>| {
            *known.name.hostname == *hostname && *known.name.namespace == *namespace
        };
        let mut found = self.by_name.find(name_hash(namespace, hostname));
        found.find(|slot| self.slots.get(*slot).is_some_and(is_meant))
    }

    pub(super) fn known(&self, namespace: &str, hostname: &str) -> Option<&Known> {
        let slot = self.slot_of(namespace, hostname)?;
        self.slots.get(slot).map(|known| &**known)
    }

    pub(super) fn get(&self, namespace: &str, hostname: &str) -> Option<&Arc<Service>> {
        self.known(namespace, hostname)?.service.as_ref()
    }

    pub(super) fn by_host(&self, hostname: &str, namespace: Option<&str>) -> Option<&Arc<Service>> {
        let all = self.found(&self.by_host, host_hash(hostname));
        let of_host = all.filter(|s| *s.hostname == *hostname && s.is_visible_to(namespace));
        of_host.max_by_key(|s| (namespace == Some(&s.namespace), s.canonical, first(s)))
    }

    /// All of a host name as names of DNS are compared: case and a last dot do not matter.
    pub(super) fn named<'a>(&'a self, hostname: &str) -> impl Iterator<Item = &'a Arc<Service>> {
        let all = self.found(&self.by_host, host_hash(hostname));
        all.filter(move |s| same_host(&s.hostname, hostname))
    }

    /// The Service that has just this address.
    pub(super) fn by_vip(
        &self,
        network: &str,
        ip: IpAddr,
        namespace: Option<&str>,
    ) -> Option<&Arc<Service>> {
        let ip = ip.to_canonical();
        let all = self.found(&self.vips, vip_hash(network, ip));
        let at_ip = |s: &&Arc<Service>| {
            let mut vips = s.vips.iter();
            vips.any(|vip| vip.ip == ip && *vip.network == *network) && s.is_visible_to(namespace)
        };
        all.filter(at_ip)
            .max_by_key(|s| (namespace == Some(&s.namespace), s.canonical, first(s)))
    }

    /// The Service with a range that holds this address.
    pub(super) fn by_range(
        &self,
        network: &str,
        ip: IpAddr,
        namespace: Option<&str>,
    ) -> Option<&Arc<Service>> {
        let ip = ip.to_canonical();
        let lengths = self.lengths.keys().filter(|(v4, _)| *v4 == ip.is_ipv4());
        let ranges = lengths.filter_map(|(_, Reverse(length))| IpNet::new(ip, *length).ok());
        let holding = ranges.flat_map(|range| {
            let range = range.trunc();
            let of_range = move |s: &&Arc<Service>| {
                let mut ranges = s.cidr_vips.iter();
                ranges.any(|held| held.cidr.trunc() == range && *held.network == *network)
            };
            let all = self.found(&self.ranges, range_hash(network, range));
            all.filter(of_range).map(move |s| (range.prefix_len(), s))
        });
        let visible = holding.filter(|(_, s)| s.is_visible_to(namespace));
        let best = visible.max_by_key(|(length, s)| {
            let own = namespace == Some(&s.namespace);
            (own, *length, s.canonical, first(s))
        });
        best.map(|(_, service)| service)
    }

    fn found<'a>(
        &'a self,
        table: &'a Table,
        hash: KeyHash,
    ) -> impl Iterator<Item = &'a Arc<Service>> {
        let known = table.find(hash).filter_map(|slot| self.slots.get(slot));
        known.filter_map(|known| known.service.as_ref())
    }

    /// The slot of that name, made if it is not there.
    fn slot_for(&mut self, name: &Arc<NamespacedHostname>) -> Slot {
        if let Some(slot) = self.slot_of(&name.namespace, &name.hostname) {
            return slot;
        }
        let slot = self.slots.insert(Arc::new(Known {
            name: name.clone(),
            service: None,
            members: Arc::default(),
            groups: OnceLock::new(),
        }));
        let hash = name_hash(&name.namespace, &name.hostname);
        self.by_name.insert(hash, slot);
        slot
    }

    fn known_mut(&mut self, slot: Slot) -> Option<&mut Known> {
        self.slots.get_mut(slot).map(Arc::make_mut)
    }

    /// Puts it in, in place of the one of its name.
    pub(super) fn insert(&mut self, service: Arc<Service>) {
        let slot = match self.slot_of(&service.namespace, &service.hostname) {
            Some(slot) => slot,
            None => self.slot_for(&Arc::new(service.key())),
        };
        let old = self
            .known_mut(slot)
            .and_then(|known| known.service.replace(service.clone()));
        let asked = |service: &Service| service.load_balancer.clone();
        if old.as_deref().map(asked) != Some(asked(&service)) {
            self.unsettle(slot);
        }
        self.rename(slot, old.as_deref(), Some(&service));
    }

    /// Takes it out; its slot goes when the change is done, if nothing else is in it.
    pub(super) fn remove(&mut self, name: &NamespacedHostname, changes: &mut MemberChanges) {
        let Some(slot) = self.slot_of(&name.namespace, &name.hostname) else {
            return;
        };
        if let Some(old) = self.known_mut(slot).and_then(|known| known.service.take()) {
            self.rename(slot, Some(&old), None);
            self.unsettle(slot);
            changes.touch(slot);
        }
    }

    /// Brings the tables from the names of `old` to those of `new`.
    fn rename(&mut self, slot: Slot, old: Option<&Service>, new: Option<&Service>) {
        if let (Some(old), Some(new)) = (old, new)
            && old.vips == new.vips
            && old.cidr_vips == new.cidr_vips
        {
            return;
        }
        if let Some(old) = old {
            self.by_host.remove(host_hash(&old.hostname), slot);
            for hash in vip_hashes(old) {
                self.vips.remove(hash, slot);
            }
            for (network, range) in ranges(old) {
                self.ranges.remove(range_hash(network, range), slot);
                self.count(range, -1);
            }
        }
        if let Some(new) = new {
            self.by_host.insert(host_hash(&new.hostname), slot);
            for hash in vip_hashes(new) {
                self.vips.insert(hash, slot);
            }
            for (network, range) in ranges(new) {
                self.ranges.insert(range_hash(network, range), slot);
                self.count(range, 1);
            }
        }
    }

    fn count(&mut self, range: IpNet, by: isize) {
        let key = (range.addr().is_ipv4(), Reverse(range.prefix_len()));
        let count = self.lengths.entry(key).or_default();
        *count = count.saturating_add_signed(by);
        if *count == 0 {
            self.lengths.remove(&key);
        }
    }

    /// Notes that a workload joins or leaves the Service of that name.
    pub(super) fn note(
        &mut self,
        name: &Arc<NamespacedHostname>,
        member: Member,
        joins: bool,
        changes: &mut MemberChanges,
    ) {
        let slot = self.slot_for(name);
        changes.note(slot, member, joins);
    }

    /// Brings in what was noted, and lets go of names under which nothing is left.
    pub(super) fn change_members(&mut self, changes: MemberChanges, workloads: &Workloads) {
        for (slot, change) in changes.into_services() {
            let Some(known) = self.slots.get(slot) else {
                continue;
            };
            if !change.is_empty() {
                self.large -= usize::from(known.is_large());
                let members = changed(&known.members, &change, workloads);
                self.large += usize::from(members.len() >= LARGE);
                if let Some(known) = self.known_mut(slot) {
                    known.members = members.into();
                }
                self.unsettle(slot);
            }
            self.tidy(slot);
        }
    }

    /// Whether there is a Service whose members are grouped.
    pub(super) fn has_large(&self) -> bool {
        self.large > 0
    }

    /// Notes that a member of the Service of that name is not what it was.
    pub(super) fn member_changed(&mut self, name: &NamespacedHostname) {
        if let Some(slot) = self.slot_of(&name.namespace, &name.hostname) {
            self.unsettle(slot);
        }
    }

    fn unsettle(&mut self, slot: Slot) {
        let Some(known) = self.slots.get(slot) else {
            return;
        };
        if known.is_large() {
            self.unsettled.insert(slot);
        }
        if known.groups.get().is_some()
            && let Some(known) = self.known_mut(slot)
        {
            known.groups = OnceLock::new();
        }
    }

    /// Works out the groups of one Service that has changed; `false` when there is none left.
    pub(super) fn settle(&mut self, workloads: &Workloads) -> bool {
        let Some(slot) = self.unsettled.pop_first() else {
            return false;
        };
        if let Some(known) = self.slots.get(slot) {
            known.groups(workloads);
        }
        true
    }

    fn tidy(&mut self, slot: Slot) {
        let Some(known) = self.slots.get(slot) else {
            return;
        };
        if known.service.is_none() && known.members.is_empty() {
            let hash = name_hash(&known.name.namespace, &known.name.hostname);
            self.by_name.remove(hash, slot);
            self.slots.remove(slot);
        }
    }

    /// Panics unless each table says what the Services and the workloads say.
    pub(super) fn audit(&self, workloads: &Workloads) {
        let all = || self.slots.iter();
        let known = || all().filter_map(|(slot, known)| Some((slot, known.service.as_deref()?)));
        self.by_name.audit(
            all().map(|(slot, known)| {
                (name_hash(&known.name.namespace, &known.name.hostname), slot)
            }),
        );
        self.by_host
            .audit(known().map(|(slot, s)| (host_hash(&s.hostname), slot)));
        self.vips
            .audit(known().flat_map(|(slot, s)| vip_hashes(s).map(move |hash| (hash, slot))));
        self.ranges.audit(known().flat_map(|(slot, s)| {
            ranges(s).map(move |(network, range)| (range_hash(network, range), slot))
        }));
        let count = known().flat_map(|(_, s)| ranges(s)).count();
        assert_eq!(self.lengths.values().sum::<usize>(), count);
        let mut members = 0;
        for (_, known) in all() {
            assert!(known.service.is_some() || !known.members.is_empty());
            members += known.members.len();
            if let Some(groups) = known.groups.get() {
                let afresh = known.regrouped(workloads);
                assert!(
                    known.is_large() && **groups == afresh,
                    "groups are as they were"
                );
            }
            for member in &*known.members {
                let workload = workloads.at(member.slot).expect("a member is a workload");
                let listed = workload.membership(&known.name.namespace, &known.name.hostname);
                assert!(listed.is_some(), "a member lists the Service");
                assert_eq!(Member::new(workload, member.slot), *member);
            }
        }
        let large = all().filter(|(_, known)| known.is_large()).count();
        assert_eq!(self.large, large);
        let listed: usize = workloads.iter().map(|w| w.services.len()).sum();
        assert_eq!(members, listed, "each is a member of what it lists");
    }
}

/// Rank of the first by namespace, then host name, in an order where the highest wins.
fn first(service: &Service) -> impl Ord + use<'_> {
    Reverse((&service.namespace, &service.hostname))
}

fn name_hash(namespace: &str, hostname: &str) -> KeyHash {
    KeyHash::of((namespace, hostname))
}

/// The same for all writings of a host name that [`same_host`] takes for one.
fn host_hash(hostname: &str) -> KeyHash {
    let name = undotted(hostname);
    match name.bytes().any(|b| b.is_ascii_uppercase()) {
        true => KeyHash::of(&*name.to_ascii_lowercase()),
        false => KeyHash::of(name),
    }
}

fn same_host(a: &str, b: &str) -> bool {
    undotted(a).eq_ignore_ascii_case(undotted(b))
}

fn undotted(hostname: &str) -> &str {
    hostname.strip_suffix('.').unwrap_or(hostname)
}

fn vip_hash(network: &str, ip: IpAddr) -> KeyHash {
    KeyHash::of((network, ip))
}

fn range_hash(network: &str, range: IpNet) -> KeyHash {
    KeyHash::of((network, range))
}

fn vip_hashes(service: &Service) -> impl Iterator<Item = KeyHash> {
    let vips = service.vips.iter();
    vips.map(|vip| vip_hash(&vip.network, vip.ip))
}

/// Its ranges without host bits, with their networks.
fn ranges(service: &Service) -> impl Iterator<Item = (&str, IpNet)> {
    let ranges = service.cidr_vips.iter();
    ranges.map(|range| (&*range.network, range.cidr.trunc()))
}
