//! Messages that decode, most of their fields as they should be and some hostile, drawn from bytes.
//!
//! Random bytes almost never get past the decoder; these do. Leaves to others: what must hold of them.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use proto::discovery::{self, DeltaDiscoveryResponse};
use proto::wellknown::{Any, UInt32Value};
use proto::{security, workload as wire};

use super::super::Kind;
use super::Draw;

/// One value of so many is hostile: with the dozens of fields of a message, about half of all messages stay good.
const HOSTILE_ONE_IN: u8 = 48;
/// Most entries of a list.
const LIST_MAX: u8 = 4;
/// Bytes of the longest name.
const LONG_BYTES: usize = 5000;

const TEXTS: [&str; 12] = [
    "",
    "ns",
    "ns/s0.example",
    "s0.example",
    "s1.example",
    "c//Pod/ns/w0",
    "c//Pod/ns/w1",
    "/10.0.0.1",
    "*.example",
    "spiffe://cluster.local/ns/ns/sa/a",
    "node",
    "ns/deny",
];
const HOSTILE_TEXTS: [&str; 6] = ["/", "a/b/c", "\u{0}", "é\u{202e}", "*", "\n"];

/// Resources of a kind under names that repeat, removals, aliases; now and then with damaged encodings.
pub(super) fn response(draw: &mut Draw<'_>) -> DeltaDiscoveryResponse {
    let kind = Kind::ALL[usize::from(draw.below(2))];
    let type_url = match hostile(draw) {
        true => text(draw),
        false => kind.url().to_owned(),
    };
    DeltaDiscoveryResponse {
        resources: list(draw, |draw| resource(kind, draw)),
        removed_resources: list(draw, text),
        nonce: text(draw),
        type_url,
        system_version_info: String::new(),
    }
}

fn resource(kind: Kind, draw: &mut Draw<'_>) -> Bytes {
    let payload = match kind {
        Kind::Address => address(draw),
        Kind::Authorization => authorization(draw),
    };
    let value = Any {
        type_url: text(draw),
        value: payload.into(),
    };
    let resource = discovery::Resource {
        name: text(draw),
        version: text(draw),
        aliases: list(draw, text),
        resource: (!hostile(draw)).then_some(value),
        ..discovery::Resource::default()
    };
    encoded(&resource, draw).into()
}

/// A workload or service.
pub(super) fn address(draw: &mut Draw<'_>) -> Vec<u8> {
    let arm = if draw.flag() {
        wire::address::Type::Workload(workload(draw))
    } else {
        wire::address::Type::Service(service(draw))
    };
    let address = wire::Address {
        r#type: (!hostile(draw)).then_some(arm),
    };
    encoded(&address, draw)
}

fn workload(draw: &mut Draw<'_>) -> wire::Workload {
    let services = list(draw, |draw| {
        let key = match hostile(draw) {
            true => text(draw),
            false => format!("ns/s{}.example", draw.below(3)),
        };
        (
            key,
            wire::PortList {
                ports: list(draw, port),
            },
        )
    });
    wire::Workload {
        uid: text(draw),
        name: text(draw),
        namespace: text(draw),
        addresses: list(draw, ip),
        network: text(draw),
        tunnel_protocol: value(draw, 2),
        trust_domain: text(draw),
        service_account: text(draw),
        waypoint: maybe(draw, gateway),
        node: text(draw),
        canonical_name: text(draw),
        canonical_revision: text(draw),
        workload_type: value(draw, 5),
        workload_name: text(draw),
        native_tunnel: draw.flag(),
        authorization_policies: list(draw, text),
        status: value(draw, 2),
        cluster_id: text(draw),
        network_gateway: maybe(draw, gateway),
        hostname: text(draw),
        services: BTreeMap::from_iter(services),
        application_tunnel: maybe(draw, |draw| wire::ApplicationTunnel {
            protocol: value(draw, 2),
            port: number(draw),
        }),
        locality: maybe(draw, |draw| wire::Locality {
            region: text(draw),
            zone: text(draw),
            subzone: text(draw),
        }),
        network_mode: value(draw, 2),
        extensions: Vec::new(),
        capacity: maybe(draw, |draw| UInt32Value {
            value: number(draw),
        }),
    }
}

fn service(draw: &mut Draw<'_>) -> wire::Service {
    wire::Service {
        name: text(draw),
        namespace: text(draw),
        hostname: text(draw),
        addresses: list(draw, network_address),
        ports: list(draw, port),
        subject_alt_names: list(draw, text),
        waypoint: maybe(draw, gateway),
        load_balancing: maybe(draw, |draw| wire::LoadBalancing {
            routing_preference: list(draw, |draw| value(draw, 6).saturating_add(1)),
            mode: value(draw, 4),
            health_policy: value(draw, 2),
        }),
        ip_families: value(draw, 4),
        extensions: Vec::new(),
        canonical: draw.flag(),
        ingress_use_waypoint: draw.flag(),
        weighted_waypoints: list(draw, |draw| wire::WeightedWaypoint {
            destination: (!hostile(draw)).then(|| gateway(draw)),
            weight: number(draw),
        }),
        visibility: value(draw, 3),
    }
}

/// A policy.
pub(super) fn authorization(draw: &mut Draw<'_>) -> Vec<u8> {
    let policy = security::Authorization {
        name: text(draw),
        namespace: text(draw),
        scope: value(draw, 3),
        action: value(draw, 2),
        rules: list(draw, |draw| security::Rule {
            clauses: list(draw, |draw| security::Clause {
                matches: list(draw, one_match),
            }),
        }),
        dry_run: draw.flag(),
        extensions: Vec::new(),
    };
    encoded(&policy, draw)
}

fn one_match(draw: &mut Draw<'_>) -> security::Match {
    security::Match {
        namespaces: list(draw, string_match),
        not_namespaces: list(draw, string_match),
        principals: list(draw, string_match),
        not_principals: list(draw, string_match),
        source_ips: list(draw, range),
        not_source_ips: list(draw, range),
        destination_ips: list(draw, range),
        not_destination_ips: list(draw, range),
        destination_ports: list(draw, number),
        not_destination_ports: list(draw, number),
        service_accounts: list(draw, account),
        not_service_accounts: list(draw, account),
        extensions: Vec::new(),
    }
}

fn string_match(draw: &mut Draw<'_>) -> security::StringMatch {
    use security::string_match::MatchType;
    let arm = match draw.below(5) {
        0 => None,
        1 => Some(MatchType::Exact(text(draw))),
        2 => Some(MatchType::Prefix(text(draw))),
        3 => Some(MatchType::Suffix(text(draw))),
        _ => Some(MatchType::Presence(Default::default())),
    };
    security::StringMatch { match_type: arm }
}

fn account(draw: &mut Draw<'_>) -> security::ServiceAccountMatch {
    security::ServiceAccountMatch {
        namespace: text(draw),
        service_account: text(draw),
    }
}

fn range(draw: &mut Draw<'_>) -> security::Address {
    security::Address {
        address: ip(draw),
        length: prefix(draw),
    }
}

fn gateway(draw: &mut Draw<'_>) -> wire::GatewayAddress {
    use wire::gateway_address::Destination;
    let destination = match (hostile(draw), draw.flag()) {
        (true, _) => None,
        (false, true) => Some(Destination::Address(wire::NetworkAddress {
            network: text(draw),
            address: ip(draw),
            length: None,
        })),
        (false, false) => Some(Destination::Hostname(wire::NamespacedHostname {
            namespace: text(draw),
            hostname: text(draw),
        })),
    };
    wire::GatewayAddress {
        destination,
        hbone_mtls_port: number(draw),
    }
}

fn network_address(draw: &mut Draw<'_>) -> wire::NetworkAddress {
    wire::NetworkAddress {
        network: text(draw),
        address: ip(draw),
        length: maybe(draw, prefix),
    }
}

fn port(draw: &mut Draw<'_>) -> wire::Port {
    wire::Port {
        service_port: number(draw),
        target_port: number(draw),
        app_protocol: value(draw, 6),
    }
}

/// An address of 4 or 16 bytes; hostile, of any number of bytes around those.
fn ip(draw: &mut Draw<'_>) -> Bytes {
    const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
    let near = [10, 0, 0, draw.below(4)];
    let bytes = match (hostile(draw), draw.below(4)) {
        (true, of) => vec![draw.byte(); [0, 3, 5, 17][usize::from(of)]],
        (_, 0) => [&MAPPED[..], &near].concat(),
        (_, 1) => [&[0xfd; 12][..], &near].concat(),
        (_, 2) => vec![draw.byte(); 4],
        (..) => near.to_vec(),
    };
    bytes.into()
}

fn prefix(draw: &mut Draw<'_>) -> u32 {
    match hostile(draw) {
        true => [33, 129, 1 << 16, u32::MAX][usize::from(draw.below(4))],
        false => u32::from(draw.below(33)),
    }
}

/// A port, a weight, a capacity.
fn number(draw: &mut Draw<'_>) -> u32 {
    match draw.below(8) {
        0 => 0,
        1 => 65_536,
        2 => u32::MAX,
        3 => 15_008,
        4 => 65_535,
        _ => 80,
    }
}

/// A value of an enumeration of `end` values.
fn value(draw: &mut Draw<'_>, end: u8) -> i32 {
    match hostile(draw) {
        true => [-1, 99, i32::MAX, i32::MIN][usize::from(draw.below(4))],
        false => i32::from(draw.below(end)),
    }
}

fn text(draw: &mut Draw<'_>) -> String {
    if !hostile(draw) {
        return TEXTS[usize::from(draw.below(TEXTS.len() as u8))].to_owned();
    }
    match HOSTILE_TEXTS.get(usize::from(draw.below(8))) {
        Some(known) => (*known).to_owned(),
        None => "x".repeat(LONG_BYTES),
    }
}

fn list<T>(draw: &mut Draw<'_>, one: impl Fn(&mut Draw<'_>) -> T) -> Vec<T> {
    // short ones are the rule: a list within a list within a list must leave bytes for others
    let length = draw.byte().leading_zeros().min(u32::from(LIST_MAX));
    match draw.bytes.is_empty() {
        true => Vec::new(),
        false => (0..length).map(|_| one(draw)).collect(),
    }
}

fn maybe<T>(draw: &mut Draw<'_>, one: impl Fn(&mut Draw<'_>) -> T) -> Option<T> {
    draw.flag().then(|| one(draw))
}

fn hostile(draw: &mut Draw<'_>) -> bool {
    draw.byte() % HOSTILE_ONE_IN == 1
}

/// The message's bytes, now and then damaged: a bit, the end, or a part that stands there twice.
fn encoded(message: &impl Message, draw: &mut Draw<'_>) -> Vec<u8> {
    let mut bytes = message.encode_to_vec();
    let at = |draw: &mut Draw<'_>, length: usize| {
        usize::from(u16::from_be_bytes([draw.byte(), draw.byte()])) % length.max(1)
    };
    match draw.below(24) {
        1 => {
            let at = at(draw, bytes.len());
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << draw.below(8);
            }
        }
        2 => bytes.truncate(at(draw, bytes.len())),
        3 => bytes.extend_from_within(at(draw, bytes.len())..),
        _ => {}
    }
    bytes
}
