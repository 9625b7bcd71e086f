//! The one picture of the mesh that decisions are made on: workloads, services and policies, found by every name that traffic has.
//!
//! Fed by [`Delta`]s; equal to an index built afresh from what it holds. Endpoints of a Service are derived from the workloads
//! that list it, so a Service that comes back finds them again. Leaves to others: parsing, choosing, deciding.

mod arena;
mod delta;
mod groups;
mod members;
mod policies;
mod services;
mod table;
mod workloads;

use std::cmp::Ordering;
use std::net::IpAddr;
use std::sync::Arc;

pub use delta::{Applied, Delta, Key, Resource};

use crate::name::{NamespacedHostname, Str};
use crate::policy::Policy;
use crate::ports::Ports;
use crate::service::Service;
use crate::workload::{Destination, Health, Membership, Workload};
use arena::Slot;
use groups::surely_alike;
use members::{Member, MemberChanges};
use policies::Policies;
use services::{Known, Services};
use workloads::Workloads;

/// Workloads, services and policies of the mesh. Equality is about what it holds, not about how it came to hold it.
///
/// Cheap to copy (some 10 µs with 100k workloads): a copy shares all parts, and a change copies the parts that it touches. So a
/// writer changes a copy, in as many steps as it likes, and shows it as a whole.
#[derive(Clone, Debug, Default)]
pub struct Index {
    workloads: Workloads,
    services: Services,
    policies: Policies,
    policy_version: u64,
}

impl PartialEq for Index {
    fn eq(&self, other: &Self) -> bool {
        self.workloads == other.workloads
            && self.services == other.services
            && self.policies == other.policies
    }
}

impl Index {
    /// An empty index whose local workloads are those on `node`; the empty name makes every workload local.
    pub fn for_node(node: impl Into<Str>) -> Self {
        Self {
            workloads: Workloads::for_node(node.into()),
            ..Self::default()
        }
    }

    /// An index of just these resources, with every workload local.
    pub fn build(resources: Vec<Resource>) -> Self {
        let mut index = Self::default();
        index.apply(Delta {
            remove: Vec::new(),
            upsert: resources,
        });
        index
    }

    /// Takes over a change: removals first, then upserts; of one key the last upsert holds.
    ///
    /// A change that is cut into several, all removals before all upserts, comes to the same.
    pub fn apply(&mut self, delta: Delta) -> Applied {
        let mut members = MemberChanges::default();
        let mut applied = Applied::default();
        for key in delta.remove {
            self.remove(key, &mut members, &mut applied);
        }
        for resource in delta.upsert {
            self.upsert(resource, &mut members, &mut applied);
        }
        self.services.change_members(members, &self.workloads);
        if !applied.policies_set.is_empty() || !applied.policies_removed.is_empty() {
            self.policy_version += 1;
        }
        applied
    }

    fn remove(&mut self, key: Key, members: &mut MemberChanges, applied: &mut Applied) {
        match key {
            Key::Workload(uid) => {
                if let Some((slot, old)) = self.workloads.remove(&uid) {
                    self.move_member(slot, Some(&old), None, members);
                }
            }
            Key::Service(name) => self.services.remove(&name, members),
            Key::Policy(key) => {
                if self.policies.remove(&key) {
                    applied.policies_removed.push(key);
                }
            }
        }
    }

    fn upsert(&mut self, resource: Resource, members: &mut MemberChanges, applied: &mut Applied) {
        match resource {
            Resource::Workload(new) => {
                let (slot, old) = self.workloads.insert(&new);
                self.move_member(slot, old.as_deref(), Some(&new), members);
            }
            Resource::Service(service) => self.services.insert(service),
            Resource::Policy(policy) => {
                let key = policy.key.clone();
                if self.policies.insert(policy) {
                    applied.policies_set.push(key);
                }
            }
        }
    }

    /// Works out beforehand what the first decision about a Service with very many endpoints would have to, for one such Service
    /// that has changed. `false` when none is left. Without it decisions are the same, but one of them is slow.
    pub fn settle(&mut self) -> bool {
        self.services.settle(&self.workloads)
    }

    /// Notes that a workload lists other Services than before, or is another endpoint of them; most changes of one do neither.
    fn move_member(
        &mut self,
        slot: Slot,
        old: Option<&Workload>,
        new: Option<&Workload>,
        changes: &mut MemberChanges,
    ) {
        let Some(member) = new.or(old).map(|workload| Member::new(workload, slot)) else {
            return;
        };
        let is_alike = old
            .zip(new)
            .is_some_and(|(old, new)| surely_alike(old, new));
        let is_told = is_alike || !self.services.has_large();
        if is_told && std::ptr::eq(listed_by(old), listed_by(new)) {
            return;
        }
        for (name, joins) in differences(listed_by(old), listed_by(new)) {
            match joins {
                Some(joins) => self.services.note(name, member, joins, changes),
                None if is_told => {}
                None => self.services.member_changed(name),
            }
        }
    }

    /// Everything it holds, sorted by kind and key.
    pub fn resources(&self) -> Vec<Resource> {
        let mut all: Vec<Resource> = (self.workloads().cloned().map(Resource::Workload))
            .chain(self.services().cloned().map(Resource::Service))
            .chain(self.policies().cloned().map(Resource::Policy))
            .collect();
        all.sort_by_cached_key(Resource::key);
        all
    }

    /// What to apply so that it holds just `new`; resources that are there and equal are not touched.
    ///
    /// Of resources with one key the last holds.
    pub fn delta_to(&self, new: &[Resource]) -> Delta {
        Delta::between(&self.resources(), new)
    }

    /// Moves with every delta that adds, changes or removes a policy, and with no other.
    pub fn policy_version(&self) -> u64 {
        self.policy_version
    }

    /// The workload of that uid.
    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.by_uid(uid)
    }

    /// The workload at an address of a network: of several a pod before others, HBONE before plain, then by uid.
    ///
    /// Host-network workloads are never found this way.
    pub fn workload_by_ip(&self, network: &str, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.workloads.by_ip(network, ip)
    }

    /// The workload with that host name in that namespace; of several the first by uid.
    pub fn workload_by_hostname(&self, namespace: &str, hostname: &str) -> Option<&Arc<Workload>> {
        self.workloads.by_hostname(namespace, hostname)
    }

    /// The local workload that a pod of that namespace, name and service account is.
    pub fn local_workload(
        &self,
        namespace: &str,
        name: &str,
        service_account: &str,
    ) -> Option<&Arc<Workload>> {
        self.workloads.local(namespace, name, service_account)
    }

    /// The workloads of our node, in no order; all of them when the index is for no node.
    pub fn local_workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.locals()
    }

    /// The Service of exactly that namespace and host name, whoever asks.
    pub fn service(&self, namespace: &str, hostname: &str) -> Option<&Arc<Service>> {
        self.services.get(namespace, hostname)
    }

    /// The Service that a client of `namespace` means by a host name: its own namespace's, else the canonical, else the first
    /// by namespace; only those visible to it. `None` asks for no visibility.
    pub fn service_by_host(
        &self,
        hostname: &str,
        namespace: Option<&str>,
    ) -> Option<&Arc<Service>> {
        self.services.by_host(hostname, namespace)
    }

    /// The Services of a host name, whatever its case and with or without a last dot; in no order.
    pub(crate) fn services_named<'a>(
        &'a self,
        hostname: &str,
    ) -> impl Iterator<Item = &'a Arc<Service>> {
        self.services.named(hostname)
    }

    /// What a client of `namespace` means by an address; the one precedence for every decision:
    ///
    /// 1. a Service that has just this address, ranked as for host names;
    /// 2. the workload there;
    /// 3. a Service with a range that holds it, of several the longest within each rank of namespace.
    ///
    /// So a Service on a workload's very address stands before it, and a range never takes a known workload over. Services that
    /// the client may not see are absent; `None` asks for no visibility.
    pub(crate) fn at(
        &self,
        network: &str,
        ip: IpAddr,
        namespace: Option<&str>,
    ) -> Option<Referent<'_>> {
        let exact = self.services.by_vip(network, ip, namespace);
        let workload = || self.workload_by_ip(network, ip).map(Referent::Workload);
        let range = || self.services.by_range(network, ip, namespace);
        exact
            .map(Referent::Service)
            .or_else(workload)
            .or_else(|| range().map(Referent::Range))
    }

    /// The Services that list this workload, in the order of their names; unknown ones are left out.
    pub fn services_of<'a>(
        &'a self,
        workload: &'a Workload,
    ) -> impl Iterator<Item = &'a Arc<Service>> {
        workload
            .services
            .iter()
            .filter_map(|m| self.service(&m.service.namespace, &m.service.hostname))
    }

    /// The endpoints of a Service that its health policy admits: those that workloads make, then those that it states itself.
    ///
    /// In an order that depends on what is held only.
    pub fn endpoints<'a>(&'a self, service: &'a Service) -> impl Iterator<Item = EndpointRef<'a>> {
        self.endpoints_from(service, 0)
    }

    /// The same, those that workloads make going round from any place: for who takes a few of very many, and is to see all alike.
    pub(crate) fn endpoints_from<'a>(
        &'a self,
        service: &'a Service,
        place: usize,
    ) -> impl Iterator<Item = EndpointRef<'a>> {
        self.all_from(service, place)
            .filter(|e| e.is_healthy() || service.allows_unhealthy())
    }

    /// All of them.
    pub(crate) fn endpoints_whatever_health<'a>(
        &'a self,
        service: &'a Service,
    ) -> impl Iterator<Item = EndpointRef<'a>> {
        self.all_from(service, 0)
    }

    fn all_from<'a>(
        &'a self,
        service: &'a Service,
        place: usize,
    ) -> impl Iterator<Item = EndpointRef<'a>> {
        let known = self.services.known(&service.namespace, &service.hostname);
        let derived = known
            .into_iter()
            .flat_map(move |known| self.members(known, place));
        let derived = derived.filter(|m| {
            let mut own = service.endpoints.iter();
            own.all(|own| own.workload_uid != m.workload.uid)
        });
        let own = service.endpoints.iter().filter_map(|own| {
            let workload = self.workload(&own.workload_uid)?;
            Some(EndpointRef {
                workload,
                ports: &own.ports,
                status: own.status,
            })
        });
        derived.chain(own)
    }

    /// The same endpoints, those of a Service with very many in groups that are alike in all that a choice asks of them.
    pub(crate) fn endpoint_groups<'a>(
        &'a self,
        service: &'a Service,
    ) -> impl Iterator<Item = EndpointGroup<'a>> {
        // those that the Service states itself take the places of members
        let known = (service.endpoints.is_empty())
            .then(|| self.services.known(&service.namespace, &service.hostname))
            .flatten();
        let groups = known.and_then(|known| Some((known, known.groups(&self.workloads)?)));
        let single = groups.is_none().then(|| self.endpoints(service));
        let single = single
            .into_iter()
            .flatten()
            .map(|like| EndpointGroup { like, slots: &[] });
        let alike = groups.into_iter().flat_map(move |(known, groups)| {
            groups.iter().filter_map(move |slots| {
                let like = self.member(known, *slots.first()?)?;
                Some(EndpointGroup { like, slots })
            })
        });
        let alike = alike.filter(|group| group.like.is_healthy() || service.allows_unhealthy());
        alike.chain(single)
    }

    /// The workload of that number in a group.
    pub(crate) fn of_group<'a>(
        &'a self,
        group: &EndpointGroup<'a>,
        number: usize,
    ) -> &'a Arc<Workload> {
        let slot = group.slots.get(number);
        slot.and_then(|slot| self.workloads.at(*slot))
            .unwrap_or(group.like.workload)
    }

    /// The workloads that list a Service, going round from any place.
    fn members<'a>(
        &'a self,
        known: &'a Known,
        place: usize,
    ) -> impl Iterator<Item = EndpointRef<'a>> {
        let first = place.checked_rem(known.members.len()).unwrap_or(0);
        let (before, after) = known.members.split_at(first);
        let round = after.iter().chain(before);
        round.filter_map(|member| self.member(known, member.slot))
    }

    fn member(&self, known: &Known, slot: Slot) -> Option<EndpointRef<'_>> {
        let workload = self.workloads.at(slot)?;
        let listed = workload.membership(&known.name.namespace, &known.name.hostname)?;
        Some(EndpointRef {
            workload,
            ports: &listed.ports,
            status: workload.status,
        })
    }

    /// This workload as an endpoint of a Service, if it is one.
    pub fn endpoint<'a>(&'a self, service: &'a Service, uid: &str) -> Option<EndpointRef<'a>> {
        let workload = self.workload(uid)?;
        let mut own = service.endpoints.iter();
        let (ports, status) = match own.find(|own| *own.workload_uid == *uid) {
            Some(own) => (&own.ports, own.status),
            None => {
                let listed = workload.membership(&service.namespace, &service.hostname)?;
                (&listed.ports, workload.status)
            }
        };
        let found = EndpointRef {
            workload,
            ports,
            status,
        };
        (found.is_healthy() || service.allows_unhealthy()).then_some(found)
    }

    /// What a waypoint or gateway reference means, without visibility when `namespace` is `None`.
    pub(crate) fn referent(
        &self,
        reference: &Destination,
        namespace: Option<&str>,
    ) -> Option<Referent<'_>> {
        match reference {
            Destination::Hostname(NamespacedHostname {
                namespace,
                hostname,
            }) => {
                let service = self.service(namespace, hostname).map(Referent::Service);
                service.or_else(|| {
                    self.workload_by_hostname(namespace, hostname)
                        .map(Referent::Workload)
                })
            }
            Destination::Address(at) => self.at(&at.network, at.ip, namespace),
        }
    }

    /// The policies that apply to `workload`, each once, sorted by key; and the names it lists that nothing is known of.
    pub(crate) fn policies_for<'a>(
        &'a self,
        workload: &'a Workload,
    ) -> (Vec<&'a Arc<Policy>>, Vec<&'a Str>) {
        self.policies.applying_to(workload)
    }

    /// All workloads, in no order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.iter()
    }

    /// All services, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.iter()
    }

    /// All policies, in no order.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.iter()
    }

    /// Names of Services that workloads list and that are not known, with those workloads; in no order.
    pub fn unknown_services(
        &self,
    ) -> impl Iterator<Item = (NamespacedHostname, impl Iterator<Item = EndpointRef<'_>>)> {
        let unknown = self.services.unknown();
        unknown.map(|known| {
            (
                NamespacedHostname::clone(&known.name),
                self.members(known, 0),
            )
        })
    }

    /// Panics unless everything it can be asked follows from what it holds.
    pub(crate) fn audit(&self) {
        self.workloads.audit();
        self.services.audit(&self.workloads);
        self.policies.audit();
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

/// Endpoints of a Service that are alike in all that a choice among them asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EndpointGroup<'a> {
    /// One of them.
    pub(crate) like: EndpointRef<'a>,
    /// All of them; none when it is the only one.
    slots: &'a [Slot],
}

impl EndpointGroup<'_> {
    /// The sum of their capacities.
    pub(crate) fn weight(&self) -> u64 {
        u64::from(self.like.workload.capacity) * self.slots.len().max(1) as u64
    }
}

fn listed_by(workload: Option<&Workload>) -> &[Membership] {
    workload.map_or(&[], |workload| &workload.services)
}

/// The names in two sorted lists: whether only the second has it (`true`) or only the first (`false`), `None` when both do.
fn differences<'a>(
    old: &'a [Membership],
    new: &'a [Membership],
) -> impl Iterator<Item = (&'a Arc<NamespacedHostname>, Option<bool>)> {
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    std::iter::from_fn(move || {
        let order = match (old.peek(), new.peek()) {
            (Some(a), Some(b)) => a.service.cmp(&b.service),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return None,
        };
        let one = if order.is_le() { old.next() } else { None };
        let other = if order.is_ge() { new.next() } else { None };
        let joins = (order != Ordering::Equal).then_some(order.is_gt());
        one.or(other).map(|m| (&m.service, joins))
    })
}

/// What an address, or a reference to a gateway, turned out to mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Referent<'a> {
    /// A Service, by its name or an address of its own.
    Service(&'a Arc<Service>),
    /// One workload.
    Workload(&'a Arc<Workload>),
    /// A Service, by a range of addresses only.
    Range(&'a Arc<Service>),
}

#[cfg(test)]
mod tests;
