//! Workloads.

use mesh::ports::Ports;
use mesh::workload::{
    Addresses, ApplicationTunnel, GatewayAddress, Health, Membership, NetworkMode, Profile,
    Protocol, TunnelFormat, WorkloadType,
};
use mesh::{Pools, Workload};
use proto::workload as wire;

use super::{Fault, QUOTE_BYTES_MAX, gateway, ip, known, pairs, port, quoted};

/// What an empty trust domain stands for.
const TRUST_DOMAIN: &str = "cluster.local";
/// What an empty service account stands for.
const SERVICE_ACCOUNT: &str = "default";
/// What an empty cluster stands for.
const CLUSTER: &str = "Kubernetes";

pub(super) fn convert(from: &wire::Workload, pools: &mut Pools) -> Result<Workload, Fault> {
    let addresses: Addresses = (from.addresses.iter())
        .map(|bytes| ip("addresses", bytes))
        .collect::<Result<_, _>>()?;
    let profile = profile(from, pools)?;
    let nowhere = wire::Locality::default();
    let locality = from.locality.as_ref().unwrap_or(&nowhere);
    let names = [&locality.region, &locality.zone, &locality.subzone];
    Ok(Workload::new(
        from.uid.as_str().into(),
        &from.name,
        addresses,
        pools.place(&from.node, names.map(String::as_str)),
        pools.profile(profile),
    ))
}

fn profile(from: &wire::Workload, pools: &mut Pools) -> Result<Profile, Fault> {
    let keys = from.authorization_policies.iter().map(String::as_str);
    Ok(Profile {
        protocol: protocol(from.tunnel_protocol)?,
        network_mode: network_mode(from.network_mode)?,
        status: status(from.status)?,
        workload_type: Some(workload_type(from.workload_type)),
        application_tunnel: application_tunnel(from.application_tunnel.as_ref())?,
        services: services(from, pools)?,
        waypoint: shared_gateway("waypoint", from.waypoint.as_ref(), pools)?,
        network_gateway: shared_gateway("network_gateway", from.network_gateway.as_ref(), pools)?,
        namespace: pools.text(&from.namespace),
        trust_domain: pools.text(or(&from.trust_domain, TRUST_DOMAIN)),
        service_account: pools.text(or(&from.service_account, SERVICE_ACCOUNT)),
        network: pools.text(&from.network),
        hostname: pools.text(&from.hostname),
        owner_name: (from.workload_name != from.name).then(|| pools.text(&from.workload_name)),
        canonical_name: pools.text(&from.canonical_name),
        canonical_revision: pools.text(&from.canonical_revision),
        cluster_id: pools.text(or(&from.cluster_id, CLUSTER)),
        authorization_policies: pools.keys(keys),
        capacity: from.capacity.map_or(1, |capacity| capacity.value),
        native_tunnel: from.native_tunnel,
    })
}

fn or<'a>(text: &'a str, otherwise: &'a str) -> &'a str {
    if text.is_empty() { otherwise } else { text }
}

fn shared_gateway(
    field: &'static str,
    from: Option<&wire::GatewayAddress>,
    pools: &mut Pools,
) -> Result<Option<std::sync::Arc<GatewayAddress>>, Fault> {
    let Some(from) = from else { return Ok(None) };
    let gateway = gateway(field, from, pools)?;
    Ok(Some(pools.gateway(gateway)))
}

fn services(
    from: &wire::Workload,
    pools: &mut Pools,
) -> Result<std::sync::Arc<[Membership]>, Fault> {
    let mut all = Vec::with_capacity(from.services.len());
    for (key, list) in &from.services {
        let (namespace, hostname) = key.split_once('/').ok_or_else(|| Fault::ServiceKey {
            key: quoted(key, QUOTE_BYTES_MAX),
        })?;
        let ports: Ports = pools.ports(pairs(&list.ports));
        all.push(Membership {
            service: pools.service(namespace, hostname),
            ports,
        });
    }
    Ok(pools.memberships(all))
}

fn protocol(value: i32) -> Result<Protocol, Fault> {
    let field = "tunnel_protocol";
    match known(field, value)? {
        wire::TunnelProtocol::None => Ok(Protocol::Tcp),
        wire::TunnelProtocol::Hbone => Ok(Protocol::Hbone),
        other @ wire::TunnelProtocol::LegacyIstioMtls => Err(Fault::Unsupported {
            field,
            value: other.as_str_name(),
        }),
    }
}

fn network_mode(value: i32) -> Result<NetworkMode, Fault> {
    Ok(match known("network_mode", value)? {
        wire::NetworkMode::Standard => NetworkMode::Standard,
        wire::NetworkMode::HostNetwork => NetworkMode::HostNetwork,
    })
}

fn status(value: i32) -> Result<Health, Fault> {
    Ok(match known("status", value)? {
        wire::WorkloadStatus::Healthy => Health::Healthy,
        wire::WorkloadStatus::Unhealthy => Health::Unhealthy,
    })
}

/// For telemetry only, so a kind that is not known yet is no reason to refuse: it counts as the first one.
fn workload_type(value: i32) -> WorkloadType {
    match wire::WorkloadType::try_from(value).unwrap_or_default() {
        wire::WorkloadType::Deployment => WorkloadType::Deployment,
        wire::WorkloadType::Cronjob => WorkloadType::CronJob,
        wire::WorkloadType::Pod => WorkloadType::Pod,
        wire::WorkloadType::Job => WorkloadType::Job,
    }
}

fn application_tunnel(
    from: Option<&wire::ApplicationTunnel>,
) -> Result<Option<ApplicationTunnel>, Fault> {
    let Some(from) = from else { return Ok(None) };
    let protocol = match known("application_tunnel.protocol", from.protocol)? {
        wire::application_tunnel::Protocol::None => TunnelFormat::None,
        wire::application_tunnel::Protocol::Proxy => TunnelFormat::Proxy,
    };
    let port = Some(port(from.port)).filter(|port| *port != 0);
    Ok(Some(ApplicationTunnel { protocol, port }))
}
