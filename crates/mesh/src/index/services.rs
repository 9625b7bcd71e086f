//! Services by host name, address and range; and per Service the workloads that list it, whether or not it is known yet.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::name::{NamespacedHostname, Str};
use crate::ports::Ports;
use crate::service::Service;
use crate::workload::{Health, Workload};

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Services {
    /// By host name; each list by namespace. A slot is there while it has a Service or members.
    slots: HashMap<Str, Vec<Slot>>,
    vips: HashMap<Str, ByAddress>,
    /// By network, then prefix length, longest first, then network address.
    ranges: HashMap<Str, BTreeMap<Reverse<u8>, ByAddress>>,
}

/// Services by address, each list by namespace and host name.
type ByAddress = HashMap<IpAddr, Vec<Arc<Service>>>;

#[derive(Clone, Debug, PartialEq)]
struct Slot {
    namespace: Str,
    service: Option<Arc<Service>>,
    /// Sorted by uid.
    members: Vec<Member>,
}

/// A workload that lists a Service, with its ports for it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Member {
    pub(super) workload: Arc<Workload>,
    ports: Ports,
}

impl Member {
    pub(super) fn endpoint(&self) -> EndpointRef<'_> {
        EndpointRef {
            workload: &self.workload,
            ports: &self.ports,
            status: self.workload.status,
        }
    }
}

/// One endpoint of a Service.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EndpointRef<'a> {
    /// The workload.
    pub workload: &'a Arc<Workload>,
    /// Service port to the endpoint's own port, where it has one.
    pub ports: &'a Ports,
    /// Its health.
    pub status: Health,
}

impl EndpointRef<'_> {
    /// Whether it is healthy.
    pub fn is_healthy(&self) -> bool {
        self.status == Health::Healthy
    }
}

/// Who joins and who leaves which Service, gathered over one delta.
#[derive(Debug, Default)]
pub(super) struct MemberChanges {
    by_service: HashMap<Arc<NamespacedHostname>, MemberChange>,
}

#[derive(Debug, Default)]
struct MemberChange {
    left: HashSet<Str>,
    joined: BTreeMap<Str, Member>,
}

impl MemberChanges {
    pub(super) fn leave(&mut self, workload: &Arc<Workload>) {
        for membership in workload.services.iter() {
            let change = self
                .by_service
                .entry(membership.service.clone())
                .or_default();
            change.joined.remove(&workload.uid);
            change.left.insert(workload.uid.clone());
        }
    }

    pub(super) fn join(&mut self, workload: &Arc<Workload>) {
        for membership in workload.services.iter() {
            let change = self
                .by_service
                .entry(membership.service.clone())
                .or_default();
            let member = Member {
                workload: workload.clone(),
                ports: membership.ports.clone(),
            };
            change.joined.insert(workload.uid.clone(), member);
        }
    }
}

impl Services {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.slots
            .values()
            .flatten()
            .filter_map(|slot| slot.service.as_ref())
    }

    pub(super) fn unknown(
        &self,
    ) -> impl Iterator<Item = (NamespacedHostname, impl Iterator<Item = EndpointRef<'_>>)> {
        let slots = self
            .slots
            .iter()
            .flat_map(|(hostname, slots)| slots.iter().map(move |slot| (hostname, slot)));
        slots
            .filter(|(_, slot)| slot.service.is_none())
            .map(|(hostname, slot)| {
                let name = NamespacedHostname {
                    namespace: slot.namespace.clone(),
                    hostname: hostname.clone(),
                };
                (name, slot.members.iter().map(Member::endpoint))
            })
    }

    fn slot(&self, namespace: &str, hostname: &str) -> Option<&Slot> {
        self.slots
            .get(hostname)?
            .iter()
            .find(|slot| *slot.namespace == *namespace)
    }

    /// The slot of that name, made if it is not there.
    fn slot_mut(&mut self, namespace: &Str, hostname: &Str) -> &mut Slot {
        let slots = self.slots.entry(hostname.clone()).or_default();
        let at = match slots.binary_search_by(|slot| slot.namespace.cmp(namespace)) {
            Ok(at) => at,
            Err(at) => {
                slots.insert(
                    at,
                    Slot {
                        namespace: namespace.clone(),
                        service: None,
                        members: Vec::new(),
                    },
                );
                at
            }
        };
        &mut slots[at]
    }

    /// Drops the slot of that name if nothing is in it.
    fn tidy(&mut self, hostname: &str) {
        if let Some(slots) = self.slots.get_mut(hostname) {
            slots.retain(|slot| slot.service.is_some() || !slot.members.is_empty());
            if slots.is_empty() {
                self.slots.remove(hostname);
            }
        }
    }

    pub(super) fn get(&self, namespace: &str, hostname: &str) -> Option<&Arc<Service>> {
        self.slot(namespace, hostname)?.service.as_ref()
    }

    pub(super) fn members(&self, namespace: &str, hostname: &str) -> &[Member] {
        self.slot(namespace, hostname)
            .map_or(&[], |slot| &slot.members)
    }

    pub(super) fn member(&self, namespace: &str, hostname: &str, uid: &str) -> Option<&Member> {
        let members = self.members(namespace, hostname);
        let at = members
            .binary_search_by(|m| (*m.workload.uid).cmp(uid))
            .ok()?;
        members.get(at)
    }

    pub(super) fn by_host(&self, hostname: &str, namespace: Option<&str>) -> Option<&Arc<Service>> {
        let all = self
            .slots
            .get(hostname)?
            .iter()
            .filter_map(|slot| slot.service.as_ref());
        best(all, namespace, |s| s.canonical)
    }

    pub(super) fn by_ip(
        &self,
        network: &str,
        ip: IpAddr,
        namespace: Option<&str>,
    ) -> Option<&Arc<Service>> {
        let exact = self.vips.get(network).and_then(|vips| vips.get(&ip));
        let exact = exact.and_then(|all| best(all.iter(), namespace, |s| s.canonical));
        exact.or_else(|| self.by_range(network, ip, namespace))
    }

    fn by_range(
        &self,
        network: &str,
        ip: IpAddr,
        namespace: Option<&str>,
    ) -> Option<&Arc<Service>> {
        let holding = self
            .ranges
            .get(network)?
            .iter()
            .filter_map(|(Reverse(length), ranges)| {
                let range = IpNet::new(ip, *length).ok()?;
                Some((*length, ranges.get(&range.network())?))
            });
        let all = holding.flat_map(|(length, services)| services.iter().map(move |s| (length, s)));
        let visible = all.filter(|(_, s)| s.is_visible_to(namespace));
        let rank = |(length, s): &(u8, &Arc<Service>)| {
            (namespace == Some(&s.namespace), *length, s.canonical)
        };
        first_max(visible, rank).map(|(_, service)| service)
    }

    pub(super) fn insert(&mut self, service: Arc<Service>) {
        let slot = self.slot_mut(&service.namespace, &service.hostname);
        if let Some(old) = slot.service.replace(service.clone()) {
            self.forget_addresses(&old);
        }
        for vip in &service.vips {
            let at = self
                .vips
                .entry(vip.network.clone())
                .or_default()
                .entry(vip.ip)
                .or_default();
            add(at, &service);
        }
        for range in &service.cidr_vips {
            let network = self.ranges.entry(range.network.clone()).or_default();
            let same_length = network.entry(Reverse(range.cidr.prefix_len())).or_default();
            add(
                same_length.entry(range.cidr.network()).or_default(),
                &service,
            );
        }
    }

    pub(super) fn remove(&mut self, name: &NamespacedHostname) {
        let Some(slots) = self.slots.get_mut(&name.hostname) else {
            return;
        };
        let slot = slots
            .iter_mut()
            .find(|slot| slot.namespace == name.namespace);
        if let Some(old) = slot.and_then(|slot| slot.service.take()) {
            self.forget_addresses(&old);
            self.tidy(&name.hostname);
        }
    }

    fn forget_addresses(&mut self, old: &Service) {
        for vip in &old.vips {
            if let Some(network) = self.vips.get_mut(&vip.network) {
                take_out(network, vip.ip, old);
            }
        }
        self.vips.retain(|_, network| !network.is_empty());
        for range in &old.cidr_vips {
            if let Some(network) = self.ranges.get_mut(&range.network) {
                if let Some(same_length) = network.get_mut(&Reverse(range.cidr.prefix_len())) {
                    take_out(same_length, range.cidr.network(), old);
                }
                network.retain(|_, same_length| !same_length.is_empty());
            }
        }
        self.ranges.retain(|_, network| !network.is_empty());
    }

    pub(super) fn change_members(&mut self, changes: MemberChanges) {
        for (name, MemberChange { left, joined }) in changes.by_service {
            let members = &mut self.slot_mut(&name.namespace, &name.hostname).members;
            if !left.is_empty() {
                members.retain(|m| !left.contains(&m.workload.uid));
            }
            members.extend(joined.into_values());
            members.sort_by(|a, b| a.workload.uid.cmp(&b.workload.uid));
            self.tidy(&name.hostname);
        }
    }
}

/// The best of those visible to a client namespace: its own, else one that `also` prefers, else the first.
fn best<'a>(
    all: impl Iterator<Item = &'a Arc<Service>>,
    namespace: Option<&str>,
    also: impl Fn(&Service) -> bool,
) -> Option<&'a Arc<Service>> {
    let visible = all.filter(|s| s.is_visible_to(namespace));
    first_max(visible, |s| (namespace == Some(&s.namespace), also(s)))
}

/// The first of those with the highest rank.
fn first_max<T, K: Ord>(all: impl Iterator<Item = T>, rank: impl Fn(&T) -> K) -> Option<T> {
    all.reduce(|best, next| {
        if rank(&next) > rank(&best) {
            next
        } else {
            best
        }
    })
}

/// Adds to a list kept by namespace and host name, once.
fn add(list: &mut Vec<Arc<Service>>, service: &Arc<Service>) {
    let name = (&service.namespace, &service.hostname);
    if let Err(at) = list.binary_search_by(|s| (&s.namespace, &s.hostname).cmp(&name)) {
        list.insert(at, service.clone());
    }
}

fn take_out(table: &mut ByAddress, key: IpAddr, old: &Service) {
    let Some(held) = table.get_mut(&key) else {
        return;
    };
    held.retain(|s| s.namespace != old.namespace || s.hostname != old.hostname);
    if held.is_empty() {
        table.remove(&key);
    }
}
