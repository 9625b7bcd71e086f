//! The mesh as plain lists, asked in the plainest of ways: what the rules of routing allow, by which decisions are judged.
//!
//! Shares no lookup and no choice with what it judges, only the data.

use std::net::IpAddr;
use std::sync::Arc;

use crate::index::{Index, Resource};
use crate::ports::Ports;
use crate::service::{BalanceMode, HealthPolicy, IpFamilies, Scope, Service, Visibility};
use crate::spiffe::SpiffeId;
use crate::workload::{Destination, GatewayAddress, Health, NetworkMode, Protocol, Workload};

/// Everything that an index holds.
pub(super) struct Naive {
    workloads: Vec<Arc<Workload>>,
    services: Vec<Arc<Service>>,
}

/// What an address or a reference means.
pub(super) enum Meant {
    Service(Arc<Service>),
    Workload(Arc<Workload>),
    Nothing,
}

/// A workload that may be chosen, its port, and the Service through which it is.
pub(super) struct Choice {
    /// Whose family its address should have, or is; `None` = what was dialled.
    pub(super) near: Option<IpAddr>,
    pub(super) workload: Arc<Workload>,
    pub(super) port: u16,
    pub(super) over: Option<Arc<Service>>,
}

impl Choice {
    /// Whether it is this workload, of which these identities are expected.
    pub(super) fn leads_to(&self, workload: &Workload, expected: &[SpiffeId]) -> bool {
        let mut ids = extra(self.over.as_ref());
        ids.push(workload.identity());
        *self.workload == *workload && same(expected, &ids)
    }
}

impl Naive {
    pub(super) fn of(index: &Index) -> Self {
        let (mut workloads, mut services) = (Vec::new(), Vec::new());
        for resource in index.resources() {
            match resource {
                Resource::Workload(workload) => workloads.push(workload),
                Resource::Service(service) => services.push(service),
                Resource::Policy(_) => {}
            }
        }
        Self {
            workloads,
            services,
        }
    }

    /// A Service with just this address, else the workload there, else the best range.
    pub(super) fn meant(&self, network: &str, ip: IpAddr, namespace: &str) -> Meant {
        let own = |s: &Service| *s.namespace == *namespace;
        let sees = |s: &Service| s.visibility == Visibility::Public || own(s);
        let mut best: Option<(_, &Arc<Service>)> = None;
        for service in self.services.iter().filter(|s| sees(s)) {
            let mut vips = service.vips.iter();
            let exact = vips.any(|vip| *vip.network == *network && vip.ip == ip);
            let ranges = service.cidr_vips.iter();
            let held = ranges.filter(|r| *r.network == *network && r.cidr.contains(&ip));
            let length = held.map(|r| r.cidr.prefix_len()).max();
            if !exact && (length.is_none() || self.workload_at(network, ip).is_some()) {
                continue;
            }
            let length = if exact { 0 } else { length.unwrap_or(0) };
            let rank = (exact, own(service), length, service.canonical);
            // they come sorted by name, so of equals the first stays
            if best.is_none_or(|(other, _)| rank > other) {
                best = Some((rank, service));
            }
        }
        match (best, self.workload_at(network, ip)) {
            (Some((_, service)), _) => Meant::Service(service.clone()),
            (None, Some(workload)) => Meant::Workload(workload.clone()),
            (None, None) => Meant::Nothing,
        }
    }

    /// A pod before others, one that speaks HBONE before plain ones, then the first by uid.
    pub(super) fn workload_at(&self, network: &str, ip: IpAddr) -> Option<&Arc<Workload>> {
        let there = self.workloads.iter().filter(|w| {
            *w.network == *network
                && w.network_mode == NetworkMode::Standard
                && w.addresses.contains(&ip)
        });
        there.min_by_key(|w| (!w.uid.contains("//Pod/"), w.protocol == Protocol::Tcp))
    }

    fn referred(&self, reference: &Destination, namespace: &str) -> Meant {
        let name = match reference {
            Destination::Address(at) => return self.meant(&at.network, at.ip, namespace),
            Destination::Hostname(name) => name,
        };
        let service = self.services.iter().find(|s| s.key() == *name);
        let mut workloads = self.workloads.iter();
        let named =
            |w: &&Arc<Workload>| w.namespace == name.namespace && w.hostname == name.hostname;
        match (service, workloads.find(named)) {
            (Some(service), _) => Meant::Service(service.clone()),
            (None, Some(workload)) => Meant::Workload(workload.clone()),
            (None, None) => Meant::Nothing,
        }
    }

    /// The endpoints of a Service whatever their health, with their own ports: what it states itself holds.
    fn endpoints<'a>(
        &'a self,
        service: &'a Service,
    ) -> Vec<(&'a Arc<Workload>, &'a Ports, Health)> {
        let key = service.key();
        let of = |w: &Arc<Workload>| service.endpoints.iter().find(|e| e.workload_uid == w.uid);
        let mut all = Vec::new();
        for workload in &self.workloads {
            let listed = workload.services.iter().find(|m| *m.service == key);
            if let Some(stated) = of(workload) {
                all.push((workload, (&stated.ports), stated.status));
            } else if let Some(listed) = listed {
                all.push((workload, &listed.ports, workload.status));
            }
        }
        all
    }

    /// Whether a workload is an endpoint of a Service, whatever its health.
    fn lists(&self, service: &Service, workload: &Workload) -> bool {
        let mut all = self.endpoints(service).into_iter();
        all.any(|(other, ..)| other.uid == workload.uid)
    }

    /// Those of which one is drawn.
    ///
    /// - `waypoint`: an application tunnel stands in for a port that the Service does not define
    pub(super) fn candidates(
        &self,
        source: &Workload,
        service: &Arc<Service>,
        port: u16,
        waypoint: bool,
    ) -> Vec<Choice> {
        let balancer = service.load_balancer.as_ref();
        if balancer.is_some_and(|b| b.mode == BalanceMode::Passthrough) {
            return Vec::new();
        }
        let any_health = balancer.is_some_and(|b| b.health_policy == HealthPolicy::AllowAll);
        let mut ranked = Vec::new();
        for (workload, own, health) in self.endpoints(service) {
            let far = workload.network != source.network;
            let reachable = !workload.addresses.is_empty()
                || !workload.hostname.is_empty()
                || (far && workload.network_gateway.is_some());
            let healthy = any_health || health == Health::Healthy;
            let rank = rank(source, workload, service);
            let port = port_of(service, workload, own, port, waypoint);
            if let (true, true, Some(rank), Some(port)) = (reachable, healthy, rank, port) {
                ranked.push((rank, workload, port));
            }
        }
        let best = ranked.iter().map(|(rank, ..)| *rank).max();
        let nearest = ranked.into_iter().filter(|(rank, ..)| Some(*rank) == best);
        let drawn = nearest.filter(|(_, workload, _)| workload.capacity > 0);
        let choice = |(_, workload, port): (usize, &Arc<Workload>, u16)| Choice {
            near: None,
            workload: workload.clone(),
            port,
            over: Some(service.clone()),
        };
        drawn.map(choice).collect()
    }

    /// Those to which a reference may lead.
    pub(super) fn behind(
        &self,
        source: &Workload,
        reference: &GatewayAddress,
        waypoint: bool,
    ) -> Vec<Choice> {
        let port = reference.hbone_mtls_port;
        let mut found = match self.referred(&reference.destination, &source.namespace) {
            Meant::Service(service) => self.candidates(source, &service, port, waypoint),
            Meant::Workload(workload) => vec![Choice {
                near: None,
                workload,
                port,
                over: None,
            }],
            Meant::Nothing => Vec::new(),
        };
        if let Destination::Address(at) = &reference.destination {
            found
                .iter_mut()
                .for_each(|choice| choice.near = Some(at.ip));
        }
        found
    }

    /// Whether a workload makes up what a reference means, whatever its health.
    pub(super) fn is_part(
        &self,
        of: &GatewayAddress,
        namespace: &str,
        is_it: impl Fn(&Workload) -> bool,
    ) -> bool {
        match self.referred(&of.destination, namespace) {
            Meant::Workload(workload) => is_it(&workload),
            Meant::Service(service) => {
                let mut all = self.workloads.iter();
                all.any(|w| is_it(w) && self.lists(&service, w))
            }
            Meant::Nothing => false,
        }
    }
}

/// The waypoints of which one is taken for a connection to a Service.
pub(super) fn waypoints(service: &Service) -> Vec<&GatewayAddress> {
    let weighted = service.weighted_waypoints.iter().filter(|w| w.weight > 0);
    let drawn: Vec<_> = weighted.map(|w| &w.destination).collect();
    match drawn.is_empty() {
        true => service.waypoint.as_deref().into_iter().collect(),
        false => drawn,
    }
}

/// The SPIFFE ids that a Service adds.
pub(super) fn extra(service: Option<&Arc<Service>>) -> Vec<SpiffeId> {
    let names = service.iter().flat_map(|s| s.subject_alt_names.iter());
    let mut all: Vec<_> = names.filter_map(|n| n.text().parse().ok()).collect();
    all.sort();
    all.dedup();
    all
}

/// Whether both hold the same, in any order.
pub(super) fn same<T: PartialEq>(some: &[T], others: &[T]) -> bool {
    some.iter().all(|one| others.contains(one)) && others.iter().all(|one| some.contains(one))
}

/// Whether a Service lets this address be used.
pub(super) fn has_family(service: Option<&Arc<Service>>, ip: IpAddr) -> bool {
    match service.and_then(|s| s.ip_families) {
        Some(IpFamilies::Ipv4) => ip.is_ipv4(),
        Some(IpFamilies::Ipv6) => ip.is_ipv6(),
        Some(IpFamilies::Dual) | None => true,
    }
}

/// The port of a workload for one of its Services: its own, else the Service's.
pub(super) fn target(service: &Service, workload: &Workload, asked: u16) -> Option<u16> {
    let key = service.key();
    let mut stated = service.endpoints.iter();
    let mut listed = workload.services.iter();
    let own = match stated.find(|e| e.workload_uid == workload.uid) {
        Some(stated) => Some(&stated.ports),
        None => listed.find(|m| *m.service == key).map(|m| &m.ports),
    };
    let in_list = |ports: &Ports| ports.iter().find(|m| m.service == asked).map(|m| m.target);
    let targets = [own.and_then(in_list), in_list(&service.ports)];
    targets.into_iter().flatten().find(|target| *target != 0)
}

/// The port of an endpoint: its own, else the Service's, else for waypoints the one asked for.
fn port_of(
    service: &Service,
    workload: &Workload,
    own: &Ports,
    asked: u16,
    waypoint: bool,
) -> Option<u16> {
    let in_list = |ports: &Ports| ports.iter().find(|m| m.service == asked).map(|m| m.target);
    let tunnel = workload.application_tunnel.filter(|_| waypoint);
    if in_list(&service.ports).is_none() && tunnel.is_none() {
        return None;
    }
    let targets = [in_list(own), in_list(&service.ports)];
    let target = targets.into_iter().flatten().find(|target| *target != 0);
    target.or(tunnel.and_then(|t| t.port).map(|_| asked))
}

/// How many preferences hold, in order up to the first that does not; `None` = not to be used. A network that comes first is
/// skipped when it differs, and else worth more than all others.
fn rank(source: &Workload, candidate: &Workload, service: &Service) -> Option<usize> {
    let Some(balancer) = &service.load_balancer else {
        return Some(0);
    };
    if balancer.mode == BalanceMode::Standard {
        return Some(0);
    }
    let (here, there) = (&source.place.locality, &candidate.place.locality);
    let holds = |scope: &Scope| match scope {
        Scope::Region => here.region == there.region,
        Scope::Zone => here.zone == there.zone,
        Scope::Subzone => here.subzone == there.subzone,
        Scope::Node => source.place.node == candidate.place.node,
        Scope::Cluster => source.cluster_id == candidate.cluster_id,
        Scope::Network => source.network == candidate.network,
    };
    let all = &*balancer.routing_preferences;
    if balancer.mode == BalanceMode::Strict && !all.iter().all(holds) {
        return None;
    }
    let in_a_row = |scopes: &[Scope]| scopes.iter().take_while(|s| holds(s)).count();
    Some(match all.split_first() {
        Some((Scope::Network, rest)) if holds(&Scope::Network) => all.len() + in_a_row(rest),
        Some((Scope::Network, rest)) => in_a_row(rest),
        _ => in_a_row(all),
    })
}
