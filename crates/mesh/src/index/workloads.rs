//! Workloads by uid, by network and address, by host name, and the local ones by pod name.
//!
//! Sized for 100k of them: a pointer each, and tables of slot numbers that hold no text.

use std::net::IpAddr;
use std::sync::Arc;

use super::arena::{Arena, Slot};
use super::table::{KeyHash, Table};
use crate::name::Str;
use crate::workload::{NetworkMode, Protocol, Workload};

#[derive(Clone, Debug, Default)]
pub(super) struct Workloads {
    node: Str,
    slots: Arena<Workload>,
    by_uid: Table,
    by_ip: Table,
    by_hostname: Table,
    local: Table,
}

impl PartialEq for Workloads {
    fn eq(&self, other: &Self) -> bool {
        self.node == other.node
            && self.slots.len() == other.slots.len()
            && self.iter().all(|w| other.by_uid(&w.uid) == Some(w))
    }
}

impl Workloads {
    pub(super) fn for_node(node: Str) -> Self {
        Self {
            node,
            ..Self::default()
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.slots.iter().map(|(_, workload)| workload)
    }

    pub(super) fn at(&self, slot: Slot) -> Option<&Arc<Workload>> {
        self.slots.get(slot)
    }

    pub(super) fn slot_of(&self, uid: &str) -> Option<Slot> {
        let mut found = self.by_uid.find(uid_hash(uid));
        found.find(|slot| self.at(*slot).is_some_and(|w| *w.uid == *uid))
    }

    pub(super) fn by_uid(&self, uid: &str) -> Option<&Arc<Workload>> {
        let mut found = self.found(&self.by_uid, uid_hash(uid));
        found.find(|w| *w.uid == *uid)
    }

    pub(super) fn by_ip(&self, network: &str, ip: IpAddr) -> Option<&Arc<Workload>> {
        let ip = ip.to_canonical();
        self.found(&self.by_ip, ip_hash(network, ip))
            .filter(|w| *w.network == *network && is_found_by_ip(w) && w.addresses.contains(&ip))
            .min_by(|a, b| preference(a).cmp(&preference(b)))
    }

    pub(super) fn by_hostname(&self, namespace: &str, hostname: &str) -> Option<&Arc<Workload>> {
        self.found(&self.by_hostname, hostname_hash(namespace, hostname))
            .filter(|w| *w.namespace == *namespace && *w.hostname == *hostname)
            .min_by(|a, b| a.uid.cmp(&b.uid))
    }

    pub(super) fn local(
        &self,
        namespace: &str,
        name: &str,
        service_account: &str,
    ) -> Option<&Arc<Workload>> {
        self.found(&self.local, local_hash(namespace, name))
            .filter(|w| {
                w.name() == name
                    && *w.namespace == *namespace
                    && *w.service_account == *service_account
            })
            .min_by(|a, b| a.uid.cmp(&b.uid))
    }

    pub(super) fn locals(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.local.slots().filter_map(|slot| self.at(slot))
    }

    fn found<'a>(
        &'a self,
        table: &'a Table,
        hash: KeyHash,
    ) -> impl Iterator<Item = &'a Arc<Workload>> {
        table.find(hash).filter_map(|slot| self.at(slot))
    }

    fn is_local(&self, workload: &Workload) -> bool {
        self.node.is_empty() || self.node == workload.place.node
    }

    /// Puts in a workload, in place of the one with its uid. Returns its slot, and what was there.
    pub(super) fn insert(&mut self, new: &Arc<Workload>) -> (Slot, Option<Arc<Workload>>) {
        let (slot, old) = match self.slot_of(&new.uid) {
            Some(slot) => {
                let place = self.slots.get_mut(slot);
                (
                    slot,
                    place.map(|place| std::mem::replace(place, new.clone())),
                )
            }
            None => {
                let slot = self.slots.insert(new.clone());
                self.by_uid.insert(uid_hash(&new.uid), slot);
                (slot, None)
            }
        };
        self.rename(slot, old.as_deref(), Some(new));
        (slot, old)
    }

    /// Takes out the workload of that uid, and says which slot it had.
    pub(super) fn remove(&mut self, uid: &str) -> Option<(Slot, Arc<Workload>)> {
        let slot = self.slot_of(uid)?;
        let old = self.slots.remove(slot)?;
        self.by_uid.remove(uid_hash(uid), slot);
        self.rename(slot, Some(&old), None);
        Some((slot, old))
    }

    /// Brings the tables from the names of `old` to those of `new`; most changes of a workload change none.
    fn rename(&mut self, slot: Slot, old: Option<&Workload>, new: Option<&Workload>) {
        let local = |w: Option<&Workload>| {
            w.filter(|w| self.is_local(w))
                .map(|w| local_hash(&w.namespace, w.name()))
        };
        let (local_old, local_new) = (local(old), local(new));
        shift(&mut self.local, slot, local_old, local_new);
        let hostname = |w: Option<&Workload>| {
            w.filter(|w| !w.hostname.is_empty())
                .map(|w| hostname_hash(&w.namespace, &w.hostname))
        };
        shift(&mut self.by_hostname, slot, hostname(old), hostname(new));
        if let (Some(old), Some(new)) = (old, new)
            && old.addresses == new.addresses
            && old.network == new.network
            && old.network_mode == new.network_mode
        {
            return;
        }
        for hash in old.into_iter().flat_map(ip_hashes) {
            self.by_ip.remove(hash, slot);
        }
        for hash in new.into_iter().flat_map(ip_hashes) {
            self.by_ip.insert(hash, slot);
        }
    }

    /// Panics unless each table says what the workloads say.
    pub(super) fn audit(&self) {
        let all = || self.slots.iter();
        self.by_uid
            .audit(all().map(|(slot, w)| (uid_hash(&w.uid), slot)));
        self.by_ip
            .audit(all().flat_map(|(slot, w)| ip_hashes(w).map(move |hash| (hash, slot))));
        let named = all().filter(|(_, w)| !w.hostname.is_empty());
        self.by_hostname
            .audit(named.map(|(slot, w)| (hostname_hash(&w.namespace, &w.hostname), slot)));
        let local = all().filter(|(_, w)| self.is_local(w));
        self.local
            .audit(local.map(|(slot, w)| (local_hash(&w.namespace, w.name()), slot)));
    }
}

/// Moves a slot from one key to another.
fn shift(table: &mut Table, slot: Slot, old: Option<KeyHash>, new: Option<KeyHash>) {
    if old == new {
        return;
    }
    if let Some(hash) = old {
        table.remove(hash, slot);
    }
    if let Some(hash) = new {
        table.insert(hash, slot);
    }
}

fn uid_hash(uid: &str) -> KeyHash {
    KeyHash::of(uid)
}

fn ip_hash(network: &str, ip: IpAddr) -> KeyHash {
    KeyHash::of((network, ip))
}

fn hostname_hash(namespace: &str, hostname: &str) -> KeyHash {
    KeyHash::of((namespace, hostname))
}

fn local_hash(namespace: &str, name: &str) -> KeyHash {
    KeyHash::of((namespace, name))
}

fn is_found_by_ip(workload: &Workload) -> bool {
    workload.network_mode == NetworkMode::Standard
}

fn ip_hashes(workload: &Workload) -> impl Iterator<Item = KeyHash> {
    let addresses = is_found_by_ip(workload).then_some(&*workload.addresses);
    let addresses = addresses.into_iter().flatten();
    addresses.map(|ip| ip_hash(&workload.network, *ip))
}

/// Order of workloads that share an address: pod with HBONE, pod, other with HBONE, the rest; then by uid.
fn preference(workload: &Workload) -> (u8, &str) {
    let rank = match (workload.is_pod(), workload.protocol) {
        (true, Protocol::Hbone) => 0,
        (true, Protocol::Tcp) => 1,
        (false, Protocol::Hbone) => 2,
        (false, Protocol::Tcp) => 3,
    };
    (rank, &workload.uid)
}
