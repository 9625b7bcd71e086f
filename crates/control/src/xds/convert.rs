//! Resources as they come over the wire, turned into those of the mesh: parsed, checked, with shared names.
//!
//! A resource is taken as a whole or refused with the first fault found; others of the same response do not suffer.
//! Leaves to others: names, versions and answers (`subscriber`), what the resources mean (`mesh`).

mod policy;
mod service;
mod workload;

use std::net::IpAddr;

use bytes::Bytes;
use ipnet::IpNet;
use mesh::name::{NamespacedHostname, NetworkAddress, Str};
use mesh::workload::{Destination, GatewayAddress};
use mesh::{Policy, Pools, Resource};
use prost::Message as _;
use proto::security::Authorization;
use proto::workload as wire;

/// Bytes of one resource. Objects of Kubernetes have at most 1.5 MiB; decoded, small entries of a message take many times their bytes.
const PAYLOAD_BYTES_MAX: usize = 4 << 20;
/// Bytes of a value from the wire that a fault repeats.
const QUOTE_BYTES_MAX: usize = 128;

/// Why a resource is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("cannot be decoded: {0}")]
    Undecodable(prost::DecodeError),
    #[error("no payload")]
    NoPayload,
    #[error("a payload of {bytes} bytes, expected at most {PAYLOAD_BYTES_MAX}")]
    TooLarge { bytes: usize },
    #[error("beyond the {0} resources of one response")]
    TooMany(usize),
    #[error("unknown address type")]
    NoArm,
    #[error("{field}: an IP address of {bytes} bytes, expected 4 or 16")]
    AddressLength { field: &'static str, bytes: usize },
    #[error("{field}: prefix length {length}, expected at most {max}")]
    PrefixLength {
        field: &'static str,
        length: u32,
        max: u8,
    },
    #[error("{field}: no destination, expected hostname or address")]
    NoDestination { field: &'static str },
    #[error("services: {key:?}, expected <namespace>/<hostname>")]
    ServiceKey { key: String },
    #[error("{field}: unknown value {value}")]
    UnknownValue { field: &'static str, value: i32 },
    #[error("{field}: {value} is not supported")]
    Unsupported {
        field: &'static str,
        value: &'static str,
    },
}

impl From<prost::DecodeError> for Fault {
    fn from(error: prost::DecodeError) -> Self {
        Self::Undecodable(error)
    }
}

/// A workload or a service.
pub(super) fn address(payload: Bytes, pools: &mut Pools) -> Result<Resource, Fault> {
    match wire::Address::decode(bounded(payload)?)?.r#type {
        None => Err(Fault::NoArm),
        Some(wire::address::Type::Workload(workload)) => {
            workload::convert(&workload, pools).map(|w| Resource::Workload(w.into()))
        }
        Some(wire::address::Type::Service(service)) => {
            service::convert(&service, pools).map(|s| Resource::Service(s.into()))
        }
    }
}

/// A policy; `key` is the name of the resource, under which workloads list it.
pub(super) fn authorization(key: Str, payload: Bytes, pools: &mut Pools) -> Result<Policy, Fault> {
    policy::convert(key, &Authorization::decode(bounded(payload)?)?, pools)
}

fn bounded(payload: Bytes) -> Result<Bytes, Fault> {
    let bytes = payload.len();
    if bytes > PAYLOAD_BYTES_MAX {
        return Err(Fault::TooLarge { bytes });
    }
    Ok(payload)
}

/// An enumeration's value, or the fault that names it.
fn known<T: TryFrom<i32>>(field: &'static str, value: i32) -> Result<T, Fault> {
    T::try_from(value).map_err(|_| Fault::UnknownValue { field, value })
}

/// A port: what is above 16 bits means nothing, as in Istio's ztunnel.
fn port(number: u32) -> u16 {
    (number & u32::from(u16::MAX)) as u16
}

/// An address of 4 or 16 bytes; IPv4-mapped ones become IPv4.
fn ip(field: &'static str, bytes: &[u8]) -> Result<IpAddr, Fault> {
    let length = bytes.len();
    let fault = Fault::AddressLength {
        field,
        bytes: length,
    };
    raw_ip(bytes).map(|ip| ip.to_canonical()).ok_or(fault)
}

fn raw_ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// A range; one within the IPv4-mapped addresses becomes an IPv4 range. `Err` holds the longest prefix that the family has.
fn range(ip: IpAddr, length: u32) -> Result<IpNet, u8> {
    const MAPPED_BITS: u8 = 96;
    let max = if ip.is_ipv4() { 32 } else { 128 };
    let length = u8::try_from(length).map_err(|_| max)?;
    let (ip, length) = match ip.to_canonical() {
        v4 @ IpAddr::V4(_) if ip.is_ipv6() && (MAPPED_BITS..=max).contains(&length) => {
            (v4, length - MAPPED_BITS)
        }
        _ => (ip, length),
    };
    IpNet::new(ip, length).map_err(|_| max)
}

/// A reference to a waypoint or gateway. The prefix length of an address is not looked at here.
fn gateway(
    field: &'static str,
    from: &wire::GatewayAddress,
    pools: &mut Pools,
) -> Result<GatewayAddress, Fault> {
    use wire::gateway_address::Destination as Wire;
    let destination = match &from.destination {
        None => return Err(Fault::NoDestination { field }),
        Some(Wire::Hostname(name)) => Destination::Hostname(NamespacedHostname {
            namespace: pools.text(&name.namespace),
            hostname: pools.text(&name.hostname),
        }),
        Some(Wire::Address(address)) => Destination::Address(NetworkAddress {
            network: pools.text(&address.network),
            ip: ip(field, &address.address)?,
        }),
    };
    Ok(GatewayAddress {
        destination,
        hbone_mtls_port: port(from.hbone_mtls_port),
    })
}

/// Port mappings; of a repeated service port the last one holds.
fn pairs(ports: &[wire::Port]) -> impl Iterator<Item = (u16, u16)> {
    ports
        .iter()
        .map(|p| (port(p.service_port), port(p.target_port)))
}

/// A text from the wire, cut at a bound.
pub(super) fn quoted(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(max)])
}

#[cfg(test)]
mod tests;
