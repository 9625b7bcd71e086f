//! Services.

use mesh::name::{NetworkAddress, NetworkCidr};
use mesh::service::{
    BalanceMode, HealthPolicy, IpFamilies, LoadBalancer, Scope, SubjectAltName, Visibility,
    WeightedWaypoint,
};
use mesh::{Pools, Service};
use proto::workload as wire;

use super::{Fault, gateway, known, pairs, range, raw_ip};

pub(super) fn convert(from: &wire::Service, pools: &mut Pools) -> Result<Service, Fault> {
    let (vips, cidr_vips) = addresses(&from.addresses, pools)?;
    let waypoint = match &from.waypoint {
        None => None,
        Some(waypoint) => {
            let waypoint = gateway("waypoint", waypoint, pools)?;
            Some(pools.gateway(waypoint))
        }
    };
    let names = from.subject_alt_names.iter();
    Ok(Service {
        name: pools.text(&from.name),
        namespace: pools.text(&from.namespace),
        hostname: pools.text(&from.hostname),
        vips: vips.into(),
        cidr_vips: cidr_vips.into(),
        ports: pools.ports(pairs(&from.ports)),
        endpoints: Box::default(),
        subject_alt_names: names
            .map(|name| SubjectAltName::new(pools.text(name)))
            .collect(),
        waypoint,
        weighted_waypoints: weighted_waypoints(&from.weighted_waypoints, pools)?,
        load_balancer: from
            .load_balancing
            .as_ref()
            .map(load_balancer)
            .transpose()?,
        ip_families: ip_families(from.ip_families)?,
        canonical: from.canonical,
        visibility: visibility(from.visibility),
    })
}

fn addresses(
    all: &[wire::NetworkAddress],
    pools: &mut Pools,
) -> Result<(Vec<NetworkAddress>, Vec<NetworkCidr>), Fault> {
    let field = "addresses";
    let (mut vips, mut cidr_vips) = (Vec::new(), Vec::new());
    for one in all {
        let bytes = one.address.len();
        let ip = raw_ip(&one.address).ok_or(Fault::AddressLength { field, bytes })?;
        let host_length = if ip.is_ipv4() { 32 } else { 128 };
        let length = one.length.unwrap_or(host_length);
        let cidr = range(ip, length).map_err(|max| Fault::PrefixLength { field, length, max })?;
        let network = pools.text(&one.network);
        if length == host_length {
            let ip = ip.to_canonical();
            vips.push(NetworkAddress { network, ip });
        } else {
            cidr_vips.push(NetworkCidr { network, cidr });
        }
    }
    Ok((vips, cidr_vips))
}

fn weighted_waypoints(
    all: &[wire::WeightedWaypoint],
    pools: &mut Pools,
) -> Result<Box<[WeightedWaypoint]>, Fault> {
    let field = "weighted_waypoints";
    all.iter()
        .map(|one| {
            let destination = one.destination.as_ref();
            let destination = destination.ok_or(Fault::NoDestination { field })?;
            Ok(WeightedWaypoint {
                destination: gateway(field, destination, pools)?,
                weight: one.weight,
            })
        })
        .collect()
}

fn load_balancer(from: &wire::LoadBalancing) -> Result<LoadBalancer, Fault> {
    use wire::load_balancing::{HealthPolicy as WirePolicy, Mode};
    let scopes = from.routing_preference.iter();
    Ok(LoadBalancer {
        routing_preferences: scopes
            .map(|value| scope(*value))
            .collect::<Result<_, _>>()?,
        mode: match known("load_balancing.mode", from.mode)? {
            Mode::UnspecifiedMode => BalanceMode::Standard,
            Mode::Strict => BalanceMode::Strict,
            Mode::Failover => BalanceMode::Failover,
            Mode::Passthrough => BalanceMode::Passthrough,
        },
        health_policy: match known("load_balancing.health_policy", from.health_policy)? {
            WirePolicy::OnlyHealthy => HealthPolicy::OnlyHealthy,
            WirePolicy::AllowAll => HealthPolicy::AllowAll,
        },
    })
}

fn scope(value: i32) -> Result<Scope, Fault> {
    use wire::load_balancing::Scope as Wire;
    let field = "load_balancing.routing_preference";
    match known(field, value)? {
        other @ Wire::UnspecifiedScope => Err(Fault::Unsupported {
            field,
            value: other.as_str_name(),
        }),
        Wire::Region => Ok(Scope::Region),
        Wire::Zone => Ok(Scope::Zone),
        Wire::Subzone => Ok(Scope::Subzone),
        Wire::Node => Ok(Scope::Node),
        Wire::Cluster => Ok(Scope::Cluster),
        Wire::Network => Ok(Scope::Network),
    }
}

fn ip_families(value: i32) -> Result<Option<IpFamilies>, Fault> {
    Ok(match known("ip_families", value)? {
        wire::IpFamilies::Automatic => None,
        wire::IpFamilies::Ipv4Only => Some(IpFamilies::Ipv4),
        wire::IpFamilies::Ipv6Only => Some(IpFamilies::Ipv6),
        wire::IpFamilies::Dual => Some(IpFamilies::Dual),
    })
}

/// A number that is not known yet means the widest: istiod's contract says so.
fn visibility(value: i32) -> Visibility {
    match wire::service::Visibility::try_from(value).unwrap_or_default() {
        wire::service::Visibility::Public => Visibility::Public,
        wire::service::Visibility::Namespace => Visibility::Namespace,
    }
}
