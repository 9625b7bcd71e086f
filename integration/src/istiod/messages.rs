//! Turns the model into the messages that istiod makes of the same objects.
//!
//! Matches of a policy are written in the form of the mesh state file, and read here with the same library.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use ipnet::IpNet;
use proto::wellknown::UInt32Value;
use proto::{security, workload};
use serde::Deserialize;

use super::store::{self, Entries, Kind};
use crate::model::{
    AppTunnel, Destination, Gateway, LoadBalancer, Model, PodRecord, Policy, Service,
};

/// All resources of a model.
///
/// - `hbone`: names of the pods that are reached through HBONE
///
/// Errors: a match of a policy that cannot be read.
pub fn resources(model: &Model, hbone: &[String]) -> Result<BTreeMap<Kind, Entries>> {
    let mut addresses = Entries::new();
    for pod in model.pods.iter().chain(&model.others) {
        let tunnels = pod.native_tunnel || hbone.contains(&pod.name);
        let message = workload(model, pod, tunnels);
        addresses.insert(message.uid.clone(), store::of_workload(message));
    }
    for each in &model.services {
        let message = service(each)?;
        addresses.insert(service_name(&message), store::of_service(message));
    }
    let mut policies = Entries::new();
    for policy in &model.policies {
        let message = authorization(policy)?;
        let name = format!("{}/{}", policy.namespace, policy.name);
        policies.insert(name, store::of_policy(&message));
    }
    Ok([(Kind::Address, addresses), (Kind::Authorization, policies)].into())
}

/// A pod.
pub fn workload(model: &Model, pod: &PodRecord, hbone: bool) -> workload::Workload {
    let mine = model
        .services
        .iter()
        .filter(|service| service.pods.contains(&pod.name));
    let services = mine.map(|service| {
        let key = format!("{}/{}", service.namespace, service.hostname());
        (
            key,
            workload::PortList {
                ports: ports(&service.ports),
            },
        )
    });
    let (protocol, mode) = (
        if hbone {
            workload::TunnelProtocol::Hbone
        } else {
            workload::TunnelProtocol::None
        },
        if pod.host_network {
            workload::NetworkMode::HostNetwork
        } else {
            workload::NetworkMode::Standard
        },
    );
    workload::Workload {
        uid: uid(pod),
        name: pod.name.clone(),
        namespace: pod.namespace.clone(),
        addresses: pod.ips.iter().map(|&ip| octets(ip)).collect(),
        tunnel_protocol: protocol.into(),
        service_account: pod.service_account.clone(),
        node: pod.node.clone(),
        canonical_name: pod.workload_name().to_owned(),
        canonical_revision: "v1".to_owned(),
        workload_type: workload::WorkloadType::Deployment.into(),
        workload_name: pod.workload_name().to_owned(),
        authorization_policies: pod.policies.clone(),
        cluster_id: pod.cluster().to_owned(),
        services: services.collect(),
        network_mode: mode.into(),
        ..rare(pod)
    }
}

/// What only some workloads have.
fn rare(pod: &PodRecord) -> workload::Workload {
    let locality = |[region, zone, subzone]: &[String; 3]| workload::Locality {
        region: region.clone(),
        zone: zone.clone(),
        subzone: subzone.clone(),
    };
    let status = if pod.unhealthy {
        workload::WorkloadStatus::Unhealthy
    } else {
        workload::WorkloadStatus::Healthy
    };
    workload::Workload {
        network: pod.network.clone(),
        hostname: pod.hostname.clone(),
        native_tunnel: pod.native_tunnel,
        waypoint: pod.waypoint.as_ref().map(gateway),
        network_gateway: pod.network_gateway.as_ref().map(gateway),
        application_tunnel: pod.app_tunnel.map(app_tunnel),
        locality: pod.locality.as_ref().map(locality),
        status: status.into(),
        capacity: pod.capacity.map(|value| UInt32Value { value }),
        ..Default::default()
    }
}

fn gateway(gateway: &Gateway) -> workload::GatewayAddress {
    use workload::gateway_address::Destination as To;
    let destination = match &gateway.destination {
        Destination::Address(network, ip) => To::Address(address(network, *ip)),
        Destination::Hostname(namespace, hostname) => To::Hostname(workload::NamespacedHostname {
            namespace: namespace.clone(),
            hostname: hostname.clone(),
        }),
    };
    workload::GatewayAddress {
        destination: Some(destination),
        hbone_mtls_port: gateway.port.into(),
    }
}

fn address(network: &str, ip: IpAddr) -> workload::NetworkAddress {
    workload::NetworkAddress {
        network: network.to_owned(),
        address: octets(ip),
        length: None,
    }
}

fn app_tunnel(tunnel: AppTunnel) -> workload::ApplicationTunnel {
    use workload::application_tunnel::Protocol;
    let protocol = if tunnel.proxy {
        Protocol::Proxy
    } else {
        Protocol::None
    };
    workload::ApplicationTunnel {
        protocol: protocol.into(),
        port: tunnel.port.unwrap_or_default().into(),
    }
}

fn load_balancing(balancer: &LoadBalancer) -> Result<workload::LoadBalancing> {
    use workload::load_balancing::{HealthPolicy, Mode, Scope};
    let scopes = balancer.preferences.iter().map(|scope| {
        let scope = Scope::from_str_name(&scope.to_uppercase())
            .with_context(|| format!("scope {scope:?}"))?;
        Ok(scope.into())
    });
    let mode = match balancer.mode.as_str() {
        "Standard" => Mode::UnspecifiedMode,
        "Strict" => Mode::Strict,
        "Failover" => Mode::Failover,
        "Passthrough" => Mode::Passthrough,
        other => bail!("mode {other:?}"),
    };
    let health = match balancer.health.as_str() {
        "OnlyHealthy" => HealthPolicy::OnlyHealthy,
        "AllowAll" => HealthPolicy::AllowAll,
        other => bail!("health policy {other:?}"),
    };
    Ok(workload::LoadBalancing {
        routing_preference: scopes.collect::<Result<_>>()?,
        mode: mode.into(),
        health_policy: health.into(),
    })
}

fn families(families: Option<&str>) -> Result<workload::IpFamilies> {
    Ok(match families {
        None => workload::IpFamilies::Automatic,
        Some("IPv4") => workload::IpFamilies::Ipv4Only,
        Some("IPv6") => workload::IpFamilies::Ipv6Only,
        Some("Dual") => workload::IpFamilies::Dual,
        Some(other) => bail!("IP families {other:?}"),
    })
}

/// The uid of a pod.
pub fn uid(pod: &PodRecord) -> String {
    pod.mesh_uid()
}

/// A service.
///
/// Errors: a load balancer or families that cannot be read.
pub fn service(service: &Service) -> Result<workload::Service> {
    let local = service
        .vips
        .iter()
        .map(|&vip| address(&service.network, vip));
    let remote = service.remote_vips.iter();
    let addresses = local.chain(remote.map(|(network, vip)| address(network, *vip)));
    let weighted = service.weighted_waypoints.iter();
    let weighted = weighted.map(|(to, weight)| workload::WeightedWaypoint {
        destination: Some(gateway(to)),
        weight: *weight,
    });
    let visibility = if service.private {
        workload::service::Visibility::Namespace
    } else {
        workload::service::Visibility::Public
    };
    let balancer = service.load_balancer.as_ref();
    Ok(workload::Service {
        name: service.name.clone(),
        namespace: service.namespace.clone(),
        hostname: service.hostname(),
        addresses: addresses.collect(),
        ports: ports(&service.ports),
        canonical: !service.not_canonical,
        subject_alt_names: service.subject_alt_names.clone(),
        waypoint: service.waypoint.as_ref().map(gateway),
        ingress_use_waypoint: service.ingress_use_waypoint,
        weighted_waypoints: weighted.collect(),
        load_balancing: balancer.map(load_balancing).transpose()?,
        ip_families: families(service.ip_families.as_deref())?.into(),
        visibility: visibility.into(),
        ..Default::default()
    })
}

/// The name of a service as a resource.
pub fn service_name(service: &workload::Service) -> String {
    format!("{}/{}", service.namespace, service.hostname)
}

/// A policy.
///
/// Errors: scope, action or a match that cannot be read.
pub fn authorization(policy: &Policy) -> Result<security::Authorization> {
    let scope = match policy.scope.as_str() {
        "Global" => security::Scope::Global,
        "Namespace" => security::Scope::Namespace,
        "WorkloadSelector" => security::Scope::WorkloadSelector,
        other => bail!("scope {other:?}"),
    };
    let action = match policy.action.as_str() {
        "Allow" => security::Action::Allow,
        "Deny" => security::Action::Deny,
        other => bail!("action {other:?}"),
    };
    let matches = policy
        .matches
        .iter()
        .map(|text| one_match(text))
        .collect::<Result<Vec<_>>>()?;
    let rules = if matches.is_empty() {
        Vec::new()
    } else {
        vec![security::Rule {
            clauses: vec![security::Clause { matches }],
        }]
    };
    Ok(security::Authorization {
        name: policy.name.clone(),
        namespace: policy.namespace.clone(),
        scope: scope.into(),
        action: action.into(),
        rules,
        ..Default::default()
    })
}

/// The bytes of an address.
pub fn octets(ip: IpAddr) -> Bytes {
    match ip {
        IpAddr::V4(ip) => Bytes::copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => Bytes::copy_from_slice(&ip.octets()),
    }
}

/// The address of 4 or 16 bytes.
pub fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(<[u8; 4]>::try_from(bytes).ok()?.into()),
        16 => Some(<[u8; 16]>::try_from(bytes).ok()?.into()),
        _ => None,
    }
}

fn ports(ports: &[(u16, u16)]) -> Vec<workload::Port> {
    let port = |&(service, target): &(u16, u16)| workload::Port {
        service_port: service.into(),
        target_port: target.into(),
        ..Default::default()
    };
    ports.iter().map(port).collect()
}

#[derive(Deserialize)]
enum Text {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Presence([(); 0]),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Account {
    namespace: String,
    service_account: String,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct Match {
    namespaces: Vec<Text>,
    not_namespaces: Vec<Text>,
    principals: Vec<Text>,
    not_principals: Vec<Text>,
    service_accounts: Vec<Account>,
    not_service_accounts: Vec<Account>,
    source_ips: Vec<IpNet>,
    not_source_ips: Vec<IpNet>,
    destination_ips: Vec<IpNet>,
    not_destination_ips: Vec<IpNet>,
    destination_ports: Vec<u32>,
    not_destination_ports: Vec<u32>,
}

fn one_match(text: &str) -> Result<security::Match> {
    let parsed: Match =
        serde_saphyr::from_str(text).with_context(|| format!("match of a policy: {text}"))?;
    Ok(security::Match {
        namespaces: texts(parsed.namespaces),
        not_namespaces: texts(parsed.not_namespaces),
        principals: texts(parsed.principals),
        not_principals: texts(parsed.not_principals),
        source_ips: ranges(&parsed.source_ips),
        not_source_ips: ranges(&parsed.not_source_ips),
        destination_ips: ranges(&parsed.destination_ips),
        not_destination_ips: ranges(&parsed.not_destination_ips),
        destination_ports: parsed.destination_ports,
        not_destination_ports: parsed.not_destination_ports,
        service_accounts: accounts(parsed.service_accounts),
        not_service_accounts: accounts(parsed.not_service_accounts),
        extensions: Vec::new(),
    })
}

fn texts(all: Vec<Text>) -> Vec<security::StringMatch> {
    use security::string_match::MatchType;
    let one = |text| match text {
        Text::Exact(text) => MatchType::Exact(text),
        Text::Prefix(text) => MatchType::Prefix(text),
        Text::Suffix(text) => MatchType::Suffix(text),
        Text::Presence([]) => MatchType::Presence(Default::default()),
    };
    all.into_iter()
        .map(|text| security::StringMatch {
            match_type: Some(one(text)),
        })
        .collect()
}

fn ranges(all: &[IpNet]) -> Vec<security::Address> {
    let range = |net: &IpNet| security::Address {
        address: octets(net.addr()),
        length: net.prefix_len().into(),
    };
    all.iter().map(range).collect()
}

fn accounts(all: Vec<Account>) -> Vec<security::ServiceAccountMatch> {
    let account = |account: Account| security::ServiceAccountMatch {
        namespace: account.namespace,
        service_account: account.service_account,
    };
    all.into_iter().map(account).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_are_read_in_the_form_of_the_state_file() {
        let text = "{principals: [!Exact \"a/b\", !Presence []], sourceIps: [10.0.0.0/8], \
                    destinationPorts: [80], serviceAccounts: [{namespace: a, serviceAccount: b}]}";
        let read = one_match(text).unwrap();
        assert_eq!(
            (read.principals.len(), read.destination_ports.as_slice()),
            (2, [80].as_slice())
        );
        assert_eq!(read.source_ips[0].length, 8);
        assert_eq!(read.service_accounts[0].service_account, "b");
        assert!(one_match("{prinzipals: []}").is_err());
    }
}
