//! The entries of the file as they are written, and what each becomes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Deserialize;
use serde_saphyr::Spanned;

use super::text::{Number, Text, TypeName};
use crate::name::{NamespacedHostname, NetworkAddress, NetworkCidr, Str};
use crate::policy::{Action, Match, Policy, PolicyScope, ServiceAccountMatch, StringMatch};
use crate::pools::Pools;
use crate::ports::Ports;
use crate::service::{
    BalanceMode, Endpoint, HealthPolicy, IpFamilies, LoadBalancer, Scope, Service, SubjectAltName,
    Visibility, WeightedWaypoint,
};
use crate::workload::{
    Addresses, ApplicationTunnel, Destination, GatewayAddress, Health, Membership, NetworkMode,
    Profile, Protocol, TunnelFormat, Workload,
};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) workloads: Option<Vec<WorkloadEntry>>,
    pub(super) services: Option<Vec<ServiceEntry>>,
    pub(super) policies: Option<Vec<PolicyEntry>>,
}

type PortMap = BTreeMap<Number<u16>, Number<u16>>;

fn ports(map: PortMap) -> Ports {
    map.into_iter()
        .map(|(Number(service), Number(target))| (service, target))
        .collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct WorkloadEntry {
    workload_ips: Vec<Text<IpAddr>>,
    namespace: String,
    services: BTreeMap<Text<NamespacedHostname>, PortMap>,
    pub(super) uid: Option<Spanned<String>>,
    #[serde(default)]
    name: String,
    #[serde(default)]
    service_account: String,
    #[serde(default)]
    network: String,
    #[serde(default)]
    node: String,
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    workload_name: String,
    workload_type: Option<Text<TypeName>>,
    #[serde(default)]
    canonical_name: String,
    #[serde(default)]
    canonical_revision: String,
    #[serde(default)]
    cluster_id: String,
    #[serde(default)]
    trust_domain: String,
    #[serde(default, with = "ProtocolName")]
    protocol: Protocol,
    #[serde(default, with = "NetworkModeName")]
    network_mode: NetworkMode,
    #[serde(default, with = "HealthName")]
    status: Health,
    waypoint: Option<GatewayEntry>,
    network_gateway: Option<GatewayEntry>,
    #[serde(default)]
    native_tunnel: bool,
    application_tunnel: Option<TunnelEntry>,
    #[serde(default)]
    authorization_policies: Vec<String>,
    #[serde(default)]
    locality: LocalityEntry,
    #[serde(default = "one")]
    capacity: Number<u32>,
}

fn one() -> Number<u32> {
    Number(1)
}

impl WorkloadEntry {
    pub(super) fn into_workload(self, pools: &mut Pools) -> Workload {
        let services = self
            .services
            .into_iter()
            .map(|(Text(name), map)| Membership {
                service: pools.service(&name.namespace, &name.hostname),
                ports: ports(map),
            });
        let services = services.collect();
        let profile = Profile {
            namespace: pools.text(&self.namespace),
            trust_domain: pools.text(&self.trust_domain),
            service_account: pools.text(&self.service_account),
            network: pools.text(&self.network),
            hostname: pools.text(&self.hostname),
            owner_name: (self.workload_name != self.name).then(|| pools.text(&self.workload_name)),
            canonical_name: pools.text(&self.canonical_name),
            canonical_revision: pools.text(&self.canonical_revision),
            cluster_id: pools.text(&self.cluster_id),
            services: pools.memberships(services),
            authorization_policies: pools
                .keys(self.authorization_policies.iter().map(String::as_str)),
            waypoint: self
                .waypoint
                .map(|gateway| Arc::new(gateway.into_address())),
            network_gateway: self
                .network_gateway
                .map(|gateway| Arc::new(gateway.into_address())),
            application_tunnel: self.application_tunnel.map(|tunnel| ApplicationTunnel {
                protocol: tunnel.protocol,
                port: tunnel.port.map(|Number(port)| port),
            }),
            capacity: self.capacity.0,
            protocol: self.protocol,
            network_mode: self.network_mode,
            workload_type: self.workload_type.and_then(|Text(TypeName(kind))| kind),
            status: self.status,
            native_tunnel: self.native_tunnel,
        };
        let LocalityEntry {
            region,
            zone,
            subzone,
        } = self.locality;
        let addresses: Addresses = self.workload_ips.into_iter().map(|Text(ip)| ip).collect();
        Workload::new(
            self.uid.map_or_else(Str::default, |uid| uid.value.into()),
            &self.name,
            addresses,
            pools.place(&self.node, [&region, &zone, &subzone]),
            pools.profile(profile),
        )
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct GatewayEntry {
    destination: Text<Destination>,
    hbone_mtls_port: Number<u16>,
}

impl GatewayEntry {
    fn into_address(self) -> GatewayAddress {
        GatewayAddress {
            destination: self.destination.0,
            hbone_mtls_port: self.hbone_mtls_port.0,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TunnelEntry {
    #[serde(with = "TunnelFormatName")]
    protocol: TunnelFormat,
    port: Option<Number<u16>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LocalityEntry {
    region: String,
    zone: String,
    subzone: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct ServiceEntry {
    name: String,
    pub(super) namespace: String,
    pub(super) hostname: Spanned<String>,
    vips: Vec<Text<NetworkAddress>>,
    ports: PortMap,
    #[serde(default)]
    cidr_vips: Vec<CidrEntry>,
    #[serde(default)]
    endpoints: BTreeMap<String, EndpointEntry>,
    #[serde(default)]
    subject_alt_names: Vec<String>,
    waypoint: Option<GatewayEntry>,
    #[serde(default)]
    weighted_waypoints: Vec<WeightedEntry>,
    load_balancer: Option<BalancerEntry>,
    #[serde(default)]
    ip_families: Option<FamiliesEntry>,
    #[serde(default)]
    canonical: bool,
    #[serde(default, with = "VisibilityName")]
    visibility: Visibility,
}

impl ServiceEntry {
    pub(super) fn into_service(self, pools: &mut Pools) -> Service {
        let network = |pools: &mut Pools, at: NetworkAddress| NetworkAddress {
            network: pools.text(&at.network),
            ..at
        };
        Service {
            name: pools.text(&self.name),
            namespace: pools.text(&self.namespace),
            hostname: pools.text(&self.hostname.value),
            vips: self
                .vips
                .into_iter()
                .map(|Text(vip)| network(pools, vip))
                .collect(),
            cidr_vips: (self.cidr_vips.into_iter())
                .map(|range| NetworkCidr {
                    network: pools.text(&range.network),
                    cidr: range.cidr.0.trunc(),
                })
                .collect(),
            ports: ports(self.ports),
            endpoints: self
                .endpoints
                .into_values()
                .map(EndpointEntry::into_endpoint)
                .collect(),
            subject_alt_names: self
                .subject_alt_names
                .into_iter()
                .map(SubjectAltName::new)
                .collect(),
            waypoint: self
                .waypoint
                .map(|gateway| Arc::new(gateway.into_address())),
            weighted_waypoints: (self.weighted_waypoints.into_iter())
                .map(|w| WeightedWaypoint {
                    destination: w.destination.into_address(),
                    weight: w.weight.0,
                })
                .collect(),
            load_balancer: self.load_balancer.map(BalancerEntry::into_balancer),
            ip_families: self.ip_families.map(|FamiliesEntry(families)| families),
            canonical: self.canonical,
            visibility: self.visibility,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CidrEntry {
    network: String,
    cidr: Text<IpNet>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct EndpointEntry {
    workload_uid: String,
    port: PortMap,
    #[serde(default, with = "HealthName")]
    status: Health,
}

impl EndpointEntry {
    fn into_endpoint(self) -> Endpoint {
        Endpoint {
            workload_uid: self.workload_uid.into(),
            ports: ports(self.port),
            status: self.status,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WeightedEntry {
    destination: GatewayEntry,
    weight: Number<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct BalancerEntry {
    routing_preferences: Vec<ScopeEntry>,
    #[serde(with = "BalanceModeName")]
    mode: BalanceMode,
    #[serde(with = "HealthPolicyName")]
    health_policy: HealthPolicy,
}

impl BalancerEntry {
    fn into_balancer(self) -> LoadBalancer {
        LoadBalancer {
            routing_preferences: self
                .routing_preferences
                .into_iter()
                .map(|ScopeEntry(scope)| scope)
                .collect(),
            mode: self.mode,
            health_policy: self.health_policy,
        }
    }
}

#[derive(Deserialize)]
#[serde(transparent)]
struct ScopeEntry(#[serde(with = "ScopeName")] Scope);

#[derive(Deserialize)]
#[serde(transparent)]
struct FamiliesEntry(#[serde(with = "IpFamiliesName")] IpFamilies);

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct PolicyEntry {
    pub(super) name: Spanned<String>,
    pub(super) namespace: String,
    #[serde(with = "PolicyScopeName")]
    scope: PolicyScope,
    #[serde(with = "ActionName")]
    action: Action,
    dry_run: bool,
    rules: Vec<Vec<Vec<MatchEntry>>>,
}

impl PolicyEntry {
    pub(super) fn into_policy(self) -> Policy {
        let clause =
            |matches: Vec<MatchEntry>| matches.into_iter().map(MatchEntry::into_match).collect();
        let rules = self
            .rules
            .into_iter()
            .map(|clauses| clauses.into_iter().map(clause).collect());
        let policy = Policy::new(
            &self.namespace,
            &self.name.value,
            self.scope,
            self.action,
            rules.collect(),
        );
        Policy {
            dry_run: self.dry_run,
            ..policy
        }
    }
}

/// One match. Keys that it does not know mean nothing to it.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct MatchEntry {
    namespaces: Vec<StringEntry>,
    not_namespaces: Vec<StringEntry>,
    principals: Vec<StringEntry>,
    not_principals: Vec<StringEntry>,
    service_accounts: Vec<AccountEntry>,
    not_service_accounts: Vec<AccountEntry>,
    source_ips: Vec<Text<IpNet>>,
    not_source_ips: Vec<Text<IpNet>>,
    destination_ips: Vec<Text<IpNet>>,
    not_destination_ips: Vec<Text<IpNet>>,
    destination_ports: Vec<Number<u16>>,
    not_destination_ports: Vec<Number<u16>>,
}

impl MatchEntry {
    fn into_match(self) -> Match {
        let strings =
            |all: Vec<StringEntry>| all.into_iter().map(StringEntry::into_match).collect();
        let accounts =
            |all: Vec<AccountEntry>| all.into_iter().map(AccountEntry::into_match).collect();
        let numbers = |all: Vec<Number<u16>>| all.into_iter().map(|Number(port)| port).collect();
        let ranges = |all: Vec<Text<IpNet>>| all.into_iter().map(|Text(range)| range).collect();
        Match {
            namespaces: strings(self.namespaces),
            not_namespaces: strings(self.not_namespaces),
            principals: strings(self.principals),
            not_principals: strings(self.not_principals),
            service_accounts: accounts(self.service_accounts),
            not_service_accounts: accounts(self.not_service_accounts),
            source_ips: ranges(self.source_ips),
            not_source_ips: ranges(self.not_source_ips),
            destination_ips: ranges(self.destination_ips),
            not_destination_ips: ranges(self.not_destination_ips),
            destination_ports: numbers(self.destination_ports),
            not_destination_ports: numbers(self.not_destination_ports),
        }
    }
}

/// A string matcher, written as a tag (`!Exact x`) or as a map of one key.
#[derive(Deserialize)]
#[serde(rename = "one of !Exact, !Prefix, !Suffix, !Presence []")]
enum StringEntry {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Presence([(); 0]),
}

impl StringEntry {
    fn into_match(self) -> StringMatch {
        match self {
            Self::Exact(text) => StringMatch::Exact(text.into()),
            Self::Prefix(text) => StringMatch::Prefix(text.into()),
            Self::Suffix(text) => StringMatch::Suffix(text.into()),
            Self::Presence([]) => StringMatch::Presence,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct AccountEntry {
    namespace: String,
    service_account: String,
}

impl AccountEntry {
    fn into_match(self) -> ServiceAccountMatch {
        ServiceAccountMatch {
            namespace: self.namespace.into(),
            service_account: self.service_account.into(),
        }
    }
}

#[derive(Deserialize)]
#[serde(remote = "Protocol", rename_all = "UPPERCASE")]
enum ProtocolName {
    Tcp,
    Hbone,
}

#[derive(Deserialize)]
#[serde(remote = "NetworkMode")]
enum NetworkModeName {
    Standard,
    HostNetwork,
}

#[derive(Deserialize)]
#[serde(remote = "Health")]
enum HealthName {
    Healthy,
    Unhealthy,
}

#[derive(Deserialize)]
#[serde(remote = "TunnelFormat", rename_all = "UPPERCASE")]
enum TunnelFormatName {
    None,
    Proxy,
}

#[derive(Deserialize)]
#[serde(remote = "Scope")]
enum ScopeName {
    Region,
    Zone,
    Subzone,
    Node,
    Cluster,
    Network,
}

#[derive(Deserialize)]
#[serde(remote = "BalanceMode")]
enum BalanceModeName {
    Standard,
    Strict,
    Failover,
    Passthrough,
}

#[derive(Deserialize)]
#[serde(remote = "HealthPolicy")]
enum HealthPolicyName {
    OnlyHealthy,
    AllowAll,
}

#[derive(Deserialize)]
#[serde(remote = "IpFamilies")]
enum IpFamiliesName {
    Dual,
    #[serde(rename = "IPv4")]
    Ipv4,
    #[serde(rename = "IPv6")]
    Ipv6,
}

#[derive(Deserialize)]
#[serde(remote = "Visibility")]
enum VisibilityName {
    Public,
    Namespace,
}

#[derive(Deserialize)]
#[serde(remote = "PolicyScope")]
enum PolicyScopeName {
    Global,
    Namespace,
    WorkloadSelector,
}

#[derive(Deserialize)]
#[serde(remote = "Action")]
enum ActionName {
    Allow,
    Deny,
}
