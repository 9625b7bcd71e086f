//! Arbitrary resources from bytes, over small alphabets so that names meet. Bytes that run out are zeros.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use super::Asked;
use crate::admit::Authority;
use crate::index::{Delta, Index, Key, Resource};
use crate::name::{NamespacedHostname, NetworkAddress, NetworkCidr, Str};
use crate::policy::{Action, Match, Policy, PolicyScope, Rule, ServiceAccountMatch, StringMatch};
use crate::ports::Ports;
use crate::service::{
    BalanceMode, HealthPolicy, IpFamilies, LoadBalancer, Scope, Service, SubjectAltName,
    Visibility, WeightedWaypoint,
};
use crate::spiffe::SpiffeId;
use crate::workload::{
    Addresses, ApplicationTunnel, Destination, GatewayAddress, Health, Locality, Membership,
    NetworkMode, Place, Profile, Protocol, TunnelFormat, Workload,
};

const NAMES: [&str; 3] = ["a", "b", ""];
const NETWORKS: [&str; 3] = ["", "", "n"];
const UIDS: [&str; 6] = ["u0", "k//Pod/a/u1", "k//Pod/a/u2", "u3", "u4", "u5"];
const PORTS: [u16; 4] = [80, 81, 15008, 0];

/// Reads bytes as choices.
pub(super) struct Draw<'a> {
    rest: &'a [u8],
}

impl<'a> Draw<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(super) fn byte(&mut self) -> u8 {
        match self.rest.split_first() {
            Some((first, rest)) => {
                self.rest = rest;
                *first
            }
            None => 0,
        }
    }

    pub(super) fn flag(&mut self) -> bool {
        self.byte() % 2 == 1
    }

    fn seldom(&mut self) -> bool {
        self.byte() % 8 == 7
    }

    fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[usize::from(self.byte()) % all.len()].clone()
    }

    fn name(&mut self) -> Str {
        self.of(&NAMES).into()
    }

    /// Up to `max` things.
    fn some<T>(&mut self, max: u8, mut one: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.byte() % (max + 1)).map(|_| one(self)).collect()
    }

    fn ip(&mut self) -> IpAddr {
        let last = self.byte() % 6;
        if last < 4 {
            Ipv4Addr::new(10, 0, 0, last).into()
        } else {
            Ipv6Addr::from(u128::from(last)).into()
        }
    }

    pub(super) fn socket(&mut self) -> SocketAddr {
        SocketAddr::new(self.ip(), self.of(&PORTS))
    }

    /// What is dialled: an address like all, seldom a loopback.
    pub(super) fn target(&mut self) -> SocketAddr {
        let target = self.socket();
        match self.seldom() {
            true => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), target.port()),
            false => target,
        }
    }

    fn range(&mut self) -> IpNet {
        let ip = self.ip();
        let length = self.of(&[0, 8, 31, 32]);
        IpNet::new(ip, length).unwrap_or_else(|_| IpNet::from(ip))
    }

    /// What a peer asks for.
    pub(super) fn authority(&mut self) -> Authority {
        match self.flag() {
            true => Authority::Address(self.socket()),
            false => Authority::Host {
                host: self.of(&["h", "g"]).into(),
                port: self.of(&PORTS),
            },
        }
    }

    /// A small mesh in which most things are found, after a change.
    pub(super) fn mesh(&mut self) -> Index {
        let services: Vec<Service> = (0..2 + self.byte() % 3).map(|_| self.service()).collect();
        let (mut all, mut at) = (Vec::new(), None::<NetworkAddress>);
        for _ in 0..3 + self.byte() % 4 {
            let workload = self.workload();
            let mut listed = workload.services.to_vec();
            for service in &services {
                if self.flag() {
                    listed.push(Membership {
                        service: Arc::new(service.key()),
                        ports: Ports::default(),
                    });
                }
            }
            listed.sort();
            listed.dedup_by(|a, b| a.service == b.service);
            let mut gateway = self.gateway();
            if let Some(at) = at.clone().filter(|_| self.flag()) {
                gateway.destination = Destination::Address(at);
            }
            let gateway = self.flag().then(|| Arc::new(gateway));
            let nameless = workload.addresses.is_empty();
            if let Some(ip) = workload.addresses.first() {
                at = Some(NetworkAddress {
                    network: workload.network.clone(),
                    ip: *ip,
                });
            }
            all.push(Resource::Workload(Arc::new(workload.with(|w| {
                w.services = listed.into();
                w.network_gateway = gateway;
                if nameless {
                    w.hostname = "h".into();
                }
            }))));
        }
        all.extend(services.into_iter().map(|s| Resource::Service(Arc::new(s))));
        let mut index = Index::build(all);
        index.apply(self.delta());
        index
    }

    fn host(&mut self) -> NamespacedHostname {
        NamespacedHostname {
            namespace: self.name(),
            hostname: self.of(&["h", "g"]).into(),
        }
    }

    /// A name of up to `max` labels, some of them those of a cluster.
    pub(super) fn labels(&mut self, max: u8) -> String {
        let count = 1 + usize::from(self.byte() % max);
        let labels: Vec<_> = (0..count)
            .map(|_| self.of(&["a", "b", "A", "svc", "d"]))
            .collect();
        labels.join(".")
    }

    /// A Service with a name that pods ask for, often within the cluster domain `d`.
    pub(super) fn named_service(&mut self) -> Service {
        let front = if self.flag() { "*." } else { "" };
        let back = self.of(&["", ".a.svc.d", ".svc.d", ".d", "."]);
        let hostname = format!("{front}{}{back}", self.labels(3)).into();
        let mut service = Service {
            hostname,
            ..self.service()
        };
        if self.flag() {
            service.vips = Box::default();
        }
        service
    }

    fn address(&mut self) -> NetworkAddress {
        NetworkAddress {
            network: self.of(&NETWORKS).into(),
            ip: self.ip(),
        }
    }

    fn gateway(&mut self) -> GatewayAddress {
        let destination = match self.flag() {
            true => Destination::Hostname(self.host()),
            false => Destination::Address(self.address()),
        };
        GatewayAddress {
            destination,
            hbone_mtls_port: self.of(&PORTS),
        }
    }

    fn ports(&mut self) -> Ports {
        self.some(3, |d| (d.of(&PORTS), d.of(&PORTS)))
            .into_iter()
            .collect()
    }

    pub(super) fn workload(&mut self) -> Workload {
        let mut services = self.some(3, |d| Membership {
            service: Arc::new(d.host()),
            ports: d.ports(),
        });
        services.sort();
        services.dedup_by(|a, b| a.service == b.service);
        let (uid, name, node, region, zone) = (
            self.of(&UIDS),
            self.name(),
            self.name(),
            self.name(),
            self.name(),
        );
        let addresses: Addresses = self.some(3, Self::ip).into();
        let place = Place {
            node,
            locality: Locality {
                region,
                zone,
                subzone: Str::default(),
            },
        };
        let profile = Profile {
            namespace: self.name(),
            service_account: self.name(),
            network: self.of(&NETWORKS).into(),
            hostname: if self.seldom() {
                self.of(&["h", "g"]).into()
            } else {
                Str::default()
            },
            services: services.into(),
            authorization_policies: self.some(2, Self::policy_key).into(),
            waypoint: self.seldom().then(|| Arc::new(self.gateway())),
            network_gateway: self.seldom().then(|| Arc::new(self.gateway())),
            application_tunnel: self.seldom().then(|| ApplicationTunnel {
                protocol: self.of(&[TunnelFormat::None, TunnelFormat::Proxy]),
                port: self.flag().then_some(15088),
            }),
            capacity: self.of(&[1, 2, 0, u32::MAX]),
            protocol: self.of(&[Protocol::Tcp, Protocol::Hbone]),
            network_mode: if self.seldom() {
                NetworkMode::HostNetwork
            } else {
                NetworkMode::Standard
            },
            status: if self.seldom() {
                Health::Unhealthy
            } else {
                Health::Healthy
            },
            ..Profile::default()
        };
        Workload::new(uid.into(), &name, addresses, place.into(), profile.into())
    }

    fn service(&mut self) -> Service {
        let NamespacedHostname {
            namespace,
            hostname,
        } = self.host();
        Service {
            name: namespace.clone(),
            namespace,
            hostname,
            vips: self.some(2, Self::address).into(),
            cidr_vips: self
                .some(1, |d| NetworkCidr {
                    network: d.of(&NETWORKS).into(),
                    cidr: d.range(),
                })
                .into(),
            ports: self.ports(),
            waypoint: self.seldom().then(|| Arc::new(self.gateway())),
            weighted_waypoints: match self.seldom() {
                true => self.some(2, |d| WeightedWaypoint {
                    destination: d.gateway(),
                    weight: u32::from(d.byte() % 3),
                }),
                false => Vec::new(),
            }
            .into(),
            load_balancer: self.flag().then(|| LoadBalancer {
                routing_preferences: self
                    .some(3, |d| d.of(&[Scope::Network, Scope::Region, Scope::Zone]))
                    .into(),
                mode: self.of(&[
                    BalanceMode::Standard,
                    BalanceMode::Failover,
                    BalanceMode::Strict,
                    BalanceMode::Passthrough,
                ]),
                health_policy: self.of(&[HealthPolicy::OnlyHealthy, HealthPolicy::AllowAll]),
            }),
            ip_families: self
                .seldom()
                .then(|| self.of(&[IpFamilies::Ipv4, IpFamilies::Ipv6, IpFamilies::Dual])),
            subject_alt_names: [(); 2]
                .map(|()| self.of(&["spiffe://td/ns/a/sa/x", "spiffe:///ns/a/sa/b", "x.example"]))
                .map(SubjectAltName::new)
                .into(),
            canonical: self.flag(),
            visibility: if self.seldom() {
                Visibility::Namespace
            } else {
                Visibility::Public
            },
            ..Service::default()
        }
    }

    fn policy_key(&mut self) -> Str {
        self.of(&["a/p", "a/q", "b/p", "b/q"]).into()
    }

    pub(super) fn policies(&mut self) -> Vec<Policy> {
        self.some(5, Self::policy)
    }

    pub(super) fn policy(&mut self) -> Policy {
        let key = self.policy_key();
        let (namespace, name) = key.split_once('/').unwrap_or_default();
        let scope = self.of(&[
            PolicyScope::Global,
            PolicyScope::Namespace,
            PolicyScope::WorkloadSelector,
        ]);
        let action = self.of(&[Action::Allow, Action::Deny]);
        let rules: Vec<Rule> = self.some(2, |d| d.some(2, |d| d.some(2, Self::wanted)));
        Policy {
            dry_run: self.seldom(),
            ..Policy::new(namespace, name, scope, action, rules)
        }
    }

    fn text_match(&mut self) -> StringMatch {
        let text = self.of(&["a", "", "/ns/a/sa/a", "td/ns/"]).into();
        match self.byte() % 4 {
            0 => StringMatch::Exact(text),
            1 => StringMatch::Prefix(text),
            2 => StringMatch::Suffix(text),
            _ => StringMatch::Presence,
        }
    }

    fn wanted(&mut self) -> Match {
        let account = |d: &mut Self| ServiceAccountMatch {
            namespace: d.name(),
            service_account: d.name(),
        };
        let port = |d: &mut Self| d.of(&PORTS);
        let mut wanted = Match::default();
        for _ in 0..self.byte() % 3 {
            match self.byte() % 12 {
                0 => wanted.namespaces = self.some(2, Self::text_match),
                1 => wanted.not_namespaces = self.some(2, Self::text_match),
                2 => wanted.principals = self.some(2, Self::text_match),
                3 => wanted.not_principals = self.some(2, Self::text_match),
                4 => wanted.service_accounts = self.some(2, account),
                5 => wanted.not_service_accounts = self.some(2, account),
                6 => wanted.source_ips = self.some(2, Self::range),
                7 => wanted.not_source_ips = self.some(2, Self::range),
                8 => wanted.destination_ips = self.some(2, Self::range),
                9 => wanted.not_destination_ips = self.some(2, Self::range),
                10 => wanted.destination_ports = self.some(2, port),
                _ => wanted.not_destination_ports = self.some(2, port),
            }
        }
        wanted
    }

    pub(super) fn attempt(&mut self) -> Asked {
        let identity = self
            .flag()
            .then(|| SpiffeId::new("td", self.name(), self.name()));
        Asked {
            identity,
            source: self.socket(),
            destination: self.socket(),
        }
    }

    pub(super) fn delta(&mut self) -> Delta {
        let remove = self.some(2, |d| match d.byte() % 3 {
            0 => Key::Workload(d.of(&UIDS).into()),
            1 => Key::Service(d.host()),
            _ => Key::Policy(d.policy_key()),
        });
        let upsert = self.some(6, |d| match d.byte() % 5 {
            0..=2 => Resource::Workload(Arc::new(d.workload())),
            3 => Resource::Service(Arc::new(d.service())),
            _ => Resource::Policy(Arc::new(d.policy())),
        });
        Delta { remove, upsert }
    }
}
