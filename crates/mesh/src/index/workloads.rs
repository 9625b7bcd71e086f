//! Workloads by uid, by network and address, by host name, and the local ones by pod name.
//!
//! Sized for 100k of them: one pointer per entry, no text copied.

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use crate::name::Str;
use crate::workload::{NetworkMode, Protocol, Workload};

#[derive(Clone, Debug, Default)]
pub(super) struct Workloads {
    node: Str,
    by_uid: HashSet<ByUid>,
    by_ip: HashMap<Str, HashMap<Ipv6Addr, Sharers>>,
    by_hostname: HashMap<Str, Vec<Arc<Workload>>>,
    local: HashMap<Str, Vec<Arc<Workload>>>,
}

impl PartialEq for Workloads {
    fn eq(&self, other: &Self) -> bool {
        self.by_uid.len() == other.by_uid.len()
            && self.iter().all(|w| other.by_uid(&w.uid) == Some(w))
            && self.by_ip == other.by_ip
            && self.by_hostname == other.by_hostname
            && self.local == other.local
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
        self.by_uid.iter().map(|w| &w.0)
    }

    pub(super) fn by_uid(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.by_uid.get(uid).map(|w| &w.0)
    }

    pub(super) fn by_ip(&self, network: &str, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.by_ip
            .get(network)?
            .get(&address_key(ip))
            .and_then(Sharers::first)
    }

    pub(super) fn by_hostname(&self, namespace: &str, hostname: &str) -> Option<&Arc<Workload>> {
        self.by_hostname
            .get(hostname)?
            .iter()
            .find(|w| *w.namespace == *namespace)
    }

    pub(super) fn local(
        &self,
        namespace: &str,
        name: &str,
        service_account: &str,
    ) -> Option<&Arc<Workload>> {
        let named = self.local.get(name)?;
        named
            .iter()
            .find(|w| *w.namespace == *namespace && *w.service_account == *service_account)
    }

    pub(super) fn locals(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.local.values().flatten()
    }

    pub(super) fn is_local(&self, workload: &Workload) -> bool {
        self.node.is_empty() || self.node == workload.place.node
    }

    /// Puts in a workload whose uid is not there.
    pub(super) fn insert(&mut self, workload: Arc<Workload>) {
        if workload.network_mode == NetworkMode::Standard && !workload.addresses.is_empty() {
            let network = self.by_ip.entry(workload.network.clone()).or_default();
            for ip in workload.addresses.iter() {
                network.entry(address_key(*ip)).or_default().add(&workload);
            }
        }
        if !workload.hostname.is_empty() {
            add(
                self.by_hostname
                    .entry(workload.hostname.clone())
                    .or_default(),
                &workload,
                by_uid,
            );
        }
        if self.is_local(&workload) {
            add(
                self.local.entry(workload.name().into()).or_default(),
                &workload,
                by_uid,
            );
        }
        self.by_uid.insert(ByUid(workload));
    }

    pub(super) fn remove(&mut self, uid: &str) -> Option<Arc<Workload>> {
        let ByUid(old) = self.by_uid.take(uid)?;
        if let Some(network) = self.by_ip.get_mut(&old.network) {
            for ip in old.addresses.iter().map(|ip| address_key(*ip)) {
                if network
                    .get_mut(&ip)
                    .is_some_and(|sharers| sharers.drop_uid(uid))
                {
                    network.remove(&ip);
                }
            }
            if network.is_empty() {
                self.by_ip.remove(&old.network);
            }
        }
        take_out(&mut self.by_hostname, &old.hostname, uid);
        take_out(&mut self.local, old.name(), uid);
        Some(old)
    }
}

fn take_out(table: &mut HashMap<Str, Vec<Arc<Workload>>>, key: &str, uid: &str) {
    let Some(held) = table.get_mut(key) else {
        return;
    };
    held.retain(|w| *w.uid != *uid);
    if held.is_empty() {
        table.remove(key);
    }
}

/// Adds to a sorted list, once.
fn add<K: Ord>(
    list: &mut Vec<Arc<Workload>>,
    workload: &Arc<Workload>,
    rank: impl Fn(&Workload) -> K,
) {
    if let Err(at) = list.binary_search_by(|w| rank(w).cmp(&rank(workload))) {
        list.insert(at, workload.clone());
    }
}

fn by_uid(workload: &Workload) -> Str {
    workload.uid.clone()
}

/// IPv4 addresses as IPv4-mapped ones: no address here is itself mapped, so nothing collides.
fn address_key(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

/// A workload, found by its uid.
#[derive(Clone, Debug)]
struct ByUid(Arc<Workload>);

impl Borrow<str> for ByUid {
    fn borrow(&self) -> &str {
        &self.0.uid
    }
}

impl Hash for ByUid {
    fn hash<H: Hasher>(&self, state: &mut H) {
        str::hash(&self.0.uid, state);
    }
}

impl PartialEq for ByUid {
    fn eq(&self, other: &Self) -> bool {
        self.0.uid == other.0.uid
    }
}

impl Eq for ByUid {}

/// The workloads at one address, best first; nearly always one, and then no list.
#[derive(Clone, Debug, Default, PartialEq)]
enum Sharers {
    #[default]
    None,
    One(Arc<Workload>),
    #[expect(
        clippy::box_collection,
        reason = "keeps the 100k entries that are not this at 16 bytes"
    )]
    Many(Box<Vec<Arc<Workload>>>),
}

impl Sharers {
    fn first(&self) -> Option<&Arc<Workload>> {
        match self {
            Self::None => None,
            Self::One(only) => Some(only),
            Self::Many(several) => several.first(),
        }
    }

    fn add(&mut self, workload: &Arc<Workload>) {
        match self {
            Self::None => *self = Self::One(workload.clone()),
            Self::One(only) if only.uid == workload.uid => {}
            Self::One(only) => {
                let mut several = vec![only.clone()];
                add(&mut several, workload, preference);
                *self = Self::Many(Box::new(several));
            }
            Self::Many(several) => add(several, workload, preference),
        }
    }

    /// Takes one out; says whether nothing is left.
    fn drop_uid(&mut self, uid: &str) -> bool {
        match self {
            Self::None => true,
            Self::One(only) => *only.uid == *uid,
            Self::Many(several) => {
                several.retain(|w| *w.uid != *uid);
                if let [only] = several.as_slice() {
                    *self = Self::One(only.clone());
                }
                false
            }
        }
    }
}

/// Order of workloads that share an address: pod with HBONE, pod, other with HBONE, the rest.
fn preference(workload: &Workload) -> (u8, Str) {
    let rank = match (workload.is_pod(), workload.protocol) {
        (true, Protocol::Hbone) => 0,
        (true, Protocol::Tcp) => 1,
        (false, Protocol::Hbone) => 2,
        (false, Protocol::Tcp) => 3,
    };
    (rank, workload.uid.clone())
}
