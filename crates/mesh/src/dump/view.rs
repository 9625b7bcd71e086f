//! One view type per object of the dump. Fields stand in the order in which they are written.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;

use crate::policy::{Action, Match, Policy, PolicyScope, StringMatch};
use crate::ports::Ports;
use crate::service::{
    BalanceMode, Endpoint, HealthPolicy, IpFamilies, LoadBalancer, Scope, Service, SubjectAltName,
    Visibility,
};
use crate::workload::{
    GatewayAddress, Health, Locality, NetworkMode, Protocol, TunnelFormat, Workload, WorkloadType,
};

/// An endpoint: workload, own ports, health.
pub(super) type Found = (Arc<Workload>, Ports, Health);

#[derive(Default, Serialize)]
pub(super) struct StaticView<'a> {
    pub(super) policies: Vec<PolicyView<'a>>,
    pub(super) services: Vec<ServiceView<'a>>,
    pub(super) workloads: Vec<WorkloadView<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PolicyView<'a> {
    action: &'static str,
    dry_run: bool,
    name: &'a str,
    namespace: &'a str,
    rules: Vec<Vec<Vec<MatchView<'a>>>>,
    scope: &'static str,
}

impl<'a> PolicyView<'a> {
    pub(super) fn of(policy: &'a Policy) -> Self {
        let clause = |matches: &'a Vec<Match>| matches.iter().map(MatchView::of).collect();
        Self {
            action: match policy.action {
                Action::Allow => "Allow",
                Action::Deny => "Deny",
            },
            dry_run: policy.dry_run,
            name: &policy.name,
            namespace: &policy.namespace,
            rules: policy
                .rules
                .iter()
                .map(|clauses| clauses.iter().map(clause).collect())
                .collect(),
            scope: match policy.scope {
                PolicyScope::Global => "Global",
                PolicyScope::Namespace => "Namespace",
                PolicyScope::WorkloadSelector => "WorkloadSelector",
            },
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MatchView<'a> {
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    destination_ips: &'a [IpNet],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    destination_ports: &'a [u16],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    namespaces: Vec<StringView<'a>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    not_destination_ips: &'a [IpNet],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    not_destination_ports: &'a [u16],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_namespaces: Vec<StringView<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_principals: Vec<StringView<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_service_accounts: Vec<AccountView<'a>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    not_source_ips: &'a [IpNet],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    principals: Vec<StringView<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    service_accounts: Vec<AccountView<'a>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    source_ips: &'a [IpNet],
}

impl<'a> MatchView<'a> {
    fn of(wanted: &'a Match) -> Self {
        let strings = |all: &'a [StringMatch]| all.iter().map(StringView::of).collect();
        let accounts = |all: &'a [crate::policy::ServiceAccountMatch]| {
            all.iter()
                .map(|a| AccountView {
                    namespace: &a.namespace,
                    service_account: &a.service_account,
                })
                .collect()
        };
        Self {
            destination_ips: &wanted.destination_ips,
            destination_ports: &wanted.destination_ports,
            namespaces: strings(&wanted.namespaces),
            not_destination_ips: &wanted.not_destination_ips,
            not_destination_ports: &wanted.not_destination_ports,
            not_namespaces: strings(&wanted.not_namespaces),
            not_principals: strings(&wanted.not_principals),
            not_service_accounts: accounts(&wanted.not_service_accounts),
            not_source_ips: &wanted.not_source_ips,
            principals: strings(&wanted.principals),
            service_accounts: accounts(&wanted.service_accounts),
            source_ips: &wanted.source_ips,
        }
    }
}

#[derive(Serialize)]
enum StringView<'a> {
    Exact(&'a str),
    Prefix(&'a str),
    Suffix(&'a str),
    Presence([(); 0]),
}

impl<'a> StringView<'a> {
    fn of(wanted: &'a StringMatch) -> Self {
        match wanted {
            StringMatch::Exact(text) => Self::Exact(text),
            StringMatch::Prefix(text) => Self::Prefix(text),
            StringMatch::Suffix(text) => Self::Suffix(text),
            StringMatch::Presence => Self::Presence([]),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AccountView<'a> {
    namespace: &'a str,
    service_account: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceView<'a> {
    canonical: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cidr_vips: Vec<CidrView<'a>>,
    endpoints: BTreeMap<&'a str, EndpointView<'a>>,
    hostname: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip_families: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    load_balancer: Option<BalancerView>,
    name: &'a str,
    namespace: &'a str,
    ports: BTreeMap<String, u16>,
    subject_alt_names: Vec<&'a str>,
    vips: Vec<String>,
    visibility: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    waypoint: Option<GatewayView>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    weighted_waypoints: Vec<WeightedView>,
}

impl<'a> ServiceView<'a> {
    /// The Service with these endpoints and those that it states itself.
    pub(super) fn of(service: &'a Service, found: &'a [Found]) -> Self {
        let mut endpoints: BTreeMap<_, _> = service
            .endpoints
            .iter()
            .map(|e| (&*e.workload_uid, EndpointView::stated(e)))
            .collect();
        endpoints.extend(self::endpoints(found));
        let weighted = service.weighted_waypoints.iter();
        Self {
            canonical: service.canonical,
            cidr_vips: (service.cidr_vips.iter())
                .map(|range| CidrView {
                    cidr: range.cidr,
                    network: &range.network,
                })
                .collect(),
            endpoints,
            hostname: &service.hostname,
            ip_families: service.ip_families.map(|families| match families {
                IpFamilies::Dual => "Dual",
                IpFamilies::Ipv4 => "IPv4",
                IpFamilies::Ipv6 => "IPv6",
            }),
            load_balancer: service.load_balancer.as_ref().map(BalancerView::of),
            name: &service.name,
            namespace: &service.namespace,
            ports: ports(&service.ports),
            subject_alt_names: service
                .subject_alt_names
                .iter()
                .map(SubjectAltName::text)
                .collect(),
            vips: service.vips.iter().map(ToString::to_string).collect(),
            visibility: match service.visibility {
                Visibility::Public => "Public",
                Visibility::Namespace => "Namespace",
            },
            waypoint: service.waypoint.as_deref().map(GatewayView::of),
            weighted_waypoints: weighted
                .map(|w| WeightedView {
                    destination: GatewayView::of(&w.destination),
                    weight: w.weight,
                })
                .collect(),
        }
    }
}

/// Endpoints by workload uid.
pub(super) fn endpoints<'a>(found: &'a [Found]) -> BTreeMap<&'a str, EndpointView<'a>> {
    let view = |(workload, own, status): &'a Found| {
        (
            &*workload.uid,
            EndpointView {
                port: ports(own),
                status: health(*status),
                workload_uid: &workload.uid,
            },
        )
    };
    found.iter().map(view).collect()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EndpointView<'a> {
    port: BTreeMap<String, u16>,
    status: &'static str,
    workload_uid: &'a str,
}

impl<'a> EndpointView<'a> {
    fn stated(endpoint: &'a Endpoint) -> Self {
        Self {
            port: ports(&endpoint.ports),
            status: health(endpoint.status),
            workload_uid: &endpoint.workload_uid,
        }
    }
}

fn ports(all: &Ports) -> BTreeMap<String, u16> {
    all.iter()
        .map(|m| (m.service.to_string(), m.target))
        .collect()
}

fn health(status: Health) -> &'static str {
    match status {
        Health::Healthy => "Healthy",
        Health::Unhealthy => "Unhealthy",
    }
}

#[derive(Serialize)]
struct CidrView<'a> {
    cidr: IpNet,
    network: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BalancerView {
    health_policy: &'static str,
    mode: &'static str,
    routing_preferences: Vec<&'static str>,
}

impl BalancerView {
    fn of(balancer: &LoadBalancer) -> Self {
        let scope = |scope: &Scope| match scope {
            Scope::Region => "Region",
            Scope::Zone => "Zone",
            Scope::Subzone => "Subzone",
            Scope::Node => "Node",
            Scope::Cluster => "Cluster",
            Scope::Network => "Network",
        };
        Self {
            health_policy: match balancer.health_policy {
                HealthPolicy::OnlyHealthy => "OnlyHealthy",
                HealthPolicy::AllowAll => "AllowAll",
            },
            mode: match balancer.mode {
                BalanceMode::Standard => "Standard",
                BalanceMode::Strict => "Strict",
                BalanceMode::Failover => "Failover",
                BalanceMode::Passthrough => "Passthrough",
            },
            routing_preferences: balancer.routing_preferences.iter().map(scope).collect(),
        }
    }
}

#[derive(Serialize)]
struct WeightedView {
    destination: GatewayView,
    weight: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GatewayView {
    destination: String,
    hbone_mtls_port: u16,
}

impl GatewayView {
    fn of(gateway: &GatewayAddress) -> Self {
        Self {
            destination: gateway.destination.to_string(),
            hbone_mtls_port: gateway.hbone_mtls_port,
        }
    }
}

/// A workload's Services: their names, or with ports as in the local file.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Memberships {
    Names(Vec<String>),
    Ports(BTreeMap<String, BTreeMap<String, u16>>),
}

impl Memberships {
    pub(super) fn names(workload: &Workload) -> Self {
        Self::Names(
            workload
                .services
                .iter()
                .map(|m| m.service.to_string())
                .collect(),
        )
    }

    pub(super) fn ports(workload: &Workload) -> Self {
        Self::Ports(
            workload
                .services
                .iter()
                .map(|m| (m.service.to_string(), ports(&m.ports)))
                .collect(),
        )
    }

    fn is_absent(&self) -> bool {
        matches!(self, Self::Names(names) if names.is_empty())
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WorkloadView<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    application_tunnel: Option<TunnelView>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    authorization_policies: Vec<&'a str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    canonical_name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    canonical_revision: &'a str,
    capacity: u32,
    cluster_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    hostname: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    locality: Option<LocalityView<'a>>,
    name: &'a str,
    namespace: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    native_tunnel: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    network: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    network_gateway: Option<GatewayView>,
    network_mode: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    node: &'a str,
    protocol: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    service_account: &'a str,
    #[serde(skip_serializing_if = "Memberships::is_absent")]
    services: Memberships,
    status: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    trust_domain: &'a str,
    uid: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    waypoint: Option<GatewayView>,
    workload_ips: &'a [IpAddr],
    #[serde(skip_serializing_if = "str::is_empty")]
    workload_name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    workload_type: Option<&'static str>,
}

impl<'a> WorkloadView<'a> {
    pub(super) fn of(workload: &'a Workload, services: Memberships) -> Self {
        Self {
            application_tunnel: workload.application_tunnel.map(|tunnel| TunnelView {
                port: tunnel.port,
                protocol: tunnel_format(tunnel.protocol),
            }),
            authorization_policies: workload
                .authorization_policies
                .iter()
                .map(|key| &**key)
                .collect(),
            canonical_name: &workload.canonical_name,
            canonical_revision: &workload.canonical_revision,
            capacity: workload.capacity,
            cluster_id: &workload.cluster_id,
            hostname: &workload.hostname,
            locality: (workload.place.locality != Locality::default())
                .then(|| LocalityView::of(&workload.place.locality)),
            name: workload.name(),
            namespace: &workload.namespace,
            native_tunnel: workload.native_tunnel,
            network: &workload.network,
            network_gateway: workload.network_gateway.as_deref().map(GatewayView::of),
            network_mode: match workload.network_mode {
                NetworkMode::Standard => "Standard",
                NetworkMode::HostNetwork => "HostNetwork",
            },
            node: &workload.place.node,
            protocol: match workload.protocol {
                Protocol::Tcp => "TCP",
                Protocol::Hbone => "HBONE",
            },
            service_account: &workload.service_account,
            services,
            status: health(workload.status),
            trust_domain: &workload.trust_domain,
            uid: &workload.uid,
            waypoint: workload.waypoint.as_deref().map(GatewayView::of),
            workload_ips: &workload.addresses,
            workload_name: workload.workload_name(),
            workload_type: workload.workload_type.map(WorkloadType::as_str),
        }
    }
}

fn tunnel_format(format: TunnelFormat) -> &'static str {
    match format {
        TunnelFormat::None => "NONE",
        TunnelFormat::Proxy => "PROXY",
    }
}

#[derive(Serialize)]
struct TunnelView {
    port: Option<u16>,
    protocol: &'static str,
}

#[derive(Serialize)]
struct LocalityView<'a> {
    region: &'a str,
    subzone: &'a str,
    zone: &'a str,
}

impl<'a> LocalityView<'a> {
    fn of(locality: &'a Locality) -> Self {
        Self {
            region: &locality.region,
            subzone: &locality.subzone,
            zone: &locality.zone,
        }
    }
}
