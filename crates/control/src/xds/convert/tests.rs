//! The rows of the contract, message by message: what becomes what, and what is refused with which words.

use mesh::index::Resource;
use mesh::policy::{Action, PolicyScope, ServiceAccountMatch, StringMatch};
use mesh::service::{BalanceMode, HealthPolicy, IpFamilies, Scope, Visibility};
use mesh::workload::{
    ApplicationTunnel, Health, Locality, NetworkMode, Protocol, TunnelFormat, WorkloadType,
};
use mesh::{Service, Workload};
use prost::Message;
use proto::wellknown::{Empty, UInt32Value};
use proto::{security, workload as wire};

use super::*;

fn taken(address: wire::address::Type) -> Result<Resource, String> {
    let message = wire::Address {
        r#type: Some(address),
    };
    address_of(&message)
}

fn address_of(message: &wire::Address) -> Result<Resource, String> {
    let mut pools = Pools::default();
    address(message.encode_to_vec().into(), &mut pools).map_err(|fault| fault.to_string())
}

fn workload(from: wire::Workload) -> Result<Workload, String> {
    match taken(wire::address::Type::Workload(from))? {
        Resource::Workload(workload) => Ok(Workload::clone(&workload)),
        other => panic!("{other:?}"),
    }
}

fn service(from: wire::Service) -> Result<Service, String> {
    match taken(wire::address::Type::Service(from))? {
        Resource::Service(service) => Ok(Service::clone(&service)),
        other => panic!("{other:?}"),
    }
}

fn policy(from: &Authorization) -> Result<Policy, String> {
    let payload = from.encode_to_vec().into();
    authorization("k/ey".into(), payload, &mut Pools::default()).map_err(|fault| fault.to_string())
}

fn bytes(of: &[u8]) -> Bytes {
    Bytes::copy_from_slice(of)
}

/// A workload with one thing changed.
fn with(change: impl FnOnce(&mut wire::Workload)) -> Result<Workload, String> {
    let mut from = wire::Workload::default();
    change(&mut from);
    workload(from)
}

/// A service with one thing changed.
fn service_with(change: impl FnOnce(&mut wire::Service)) -> Result<Service, String> {
    let mut from = wire::Service::default();
    change(&mut from);
    service(from)
}

fn at(network: &str, address: &[u8], length: Option<u32>) -> wire::NetworkAddress {
    wire::NetworkAddress {
        network: network.into(),
        address: bytes(address),
        length,
    }
}

fn to_address(address: &[u8], port: u32) -> wire::GatewayAddress {
    let address = at("n", address, Some(99));
    wire::GatewayAddress {
        destination: Some(wire::gateway_address::Destination::Address(address)),
        hbone_mtls_port: port,
    }
}

fn to_hostname(port: u32) -> wire::GatewayAddress {
    let name = wire::NamespacedHostname {
        namespace: "ns".into(),
        hostname: "gw".into(),
    };
    wire::GatewayAddress {
        destination: Some(wire::gateway_address::Destination::Hostname(name)),
        hbone_mtls_port: port,
    }
}

const NOWHERE: wire::GatewayAddress = wire::GatewayAddress {
    destination: None,
    hbone_mtls_port: 15008,
};

#[test]
fn a_payload_is_one_of_the_two() {
    assert_eq!(
        address_of(&wire::Address { r#type: None }).unwrap_err(),
        "unknown address type"
    );
    // an arm that is not known yet is no arm
    let mut pools = Pools::default();
    let unknown = address(Bytes::from_static(&[0x1a, 0x00]), &mut pools);
    assert_eq!(unknown, Err(Fault::NoArm));
    let garbage = address(Bytes::from_static(&[0xff]), &mut pools).unwrap_err();
    assert!(
        garbage.to_string().starts_with("cannot be decoded: "),
        "{garbage}"
    );
    let huge = Bytes::from(vec![0; PAYLOAD_BYTES_MAX + 1]);
    for fault in [
        address(huge.clone(), &mut pools).unwrap_err(),
        authorization("k".into(), huge, &mut pools).unwrap_err(),
    ] {
        let text = "a payload of 4194305 bytes, expected at most 4194304";
        assert_eq!(fault.to_string(), text);
    }
}

#[test]
fn fields_that_are_not_known_are_skipped() {
    let mut encoded = wire::Address {
        r#type: Some(wire::address::Type::Workload(wire::Workload {
            uid: "u".into(),
            ..wire::Workload::default()
        })),
    }
    .encode_to_vec();
    encoded.extend([0x98, 0x3f, 0x01]); // field 1011, varint
    let taken = address(encoded.into(), &mut Pools::default());
    assert!(matches!(taken, Ok(Resource::Workload(w)) if &*w.uid == "u"));
}

#[test]
fn an_empty_workload_has_the_defaults() {
    let empty = workload(wire::Workload::default()).unwrap();
    assert_eq!(&*empty.trust_domain, "cluster.local");
    assert_eq!(&*empty.service_account, "default");
    assert_eq!(&*empty.cluster_id, "Kubernetes");
    assert_eq!(empty.workload_type, Some(WorkloadType::Deployment));
    assert_eq!((empty.capacity, empty.protocol), (1, Protocol::Tcp));
    assert_eq!(empty.status, Health::Healthy);
    assert_eq!(empty.network_mode, NetworkMode::Standard);
    assert_eq!(empty.place.locality, Locality::default());
    assert!(empty.waypoint.is_none() && empty.network_gateway.is_none());
    assert!(empty.application_tunnel.is_none() && !empty.native_tunnel);
    let texts = [
        &empty.uid,
        &empty.namespace,
        &empty.network,
        &empty.hostname,
        empty.workload_name(),
        &empty.canonical_name,
        &empty.canonical_revision,
        &empty.place.node,
    ];
    assert!(texts.iter().all(|text| text.is_empty()) && empty.name().is_empty());
    assert!(empty.addresses.is_empty() && empty.services.is_empty());
    assert!(empty.authorization_policies.is_empty());
}

#[test]
fn every_field_of_a_workload_arrives() {
    let from = wire::Workload {
        name: "cart-0".into(),
        namespace: "shop".into(),
        addresses: vec![bytes(&[10, 0, 0, 1]), bytes(&[0x20; 16])],
        network: "net".into(),
        tunnel_protocol: wire::TunnelProtocol::Hbone.into(),
        trust_domain: "td".into(),
        service_account: "sa".into(),
        waypoint: Some(to_hostname(15008)),
        node: "n1".into(),
        canonical_name: "cart".into(),
        canonical_revision: "v1".into(),
        workload_type: wire::WorkloadType::Pod.into(),
        workload_name: "cart-owner".into(),
        native_tunnel: true,
        authorization_policies: vec!["b/p".into(), "a/q".into()],
        status: wire::WorkloadStatus::Unhealthy.into(),
        cluster_id: "c1".into(),
        network_gateway: Some(to_address(&[9, 9, 9, 9], 65_536 + 15008)),
        uid: "c1//Pod/shop/cart-0".into(),
        hostname: "cart.example".into(),
        services: [("shop/cart".to_owned(), wire::PortList::default())].into(),
        application_tunnel: Some(wire::ApplicationTunnel {
            protocol: wire::application_tunnel::Protocol::Proxy.into(),
            port: 15088,
        }),
        locality: Some(wire::Locality {
            region: "r".into(),
            zone: "z".into(),
            subzone: "s".into(),
        }),
        network_mode: wire::NetworkMode::HostNetwork.into(),
        extensions: vec![wire::Extension::default()],
        capacity: Some(UInt32Value { value: 7 }),
    };
    let taken = workload(from).unwrap();
    let texts = [
        (&*taken.uid, "c1//Pod/shop/cart-0"),
        (taken.name(), "cart-0"),
        (&*taken.namespace, "shop"),
        (&*taken.network, "net"),
        (&*taken.trust_domain, "td"),
        (&*taken.service_account, "sa"),
        (&*taken.place.node, "n1"),
        (&*taken.canonical_name, "cart"),
        (&*taken.canonical_revision, "v1"),
        (taken.workload_name(), "cart-owner"),
        (&*taken.cluster_id, "c1"),
        (&*taken.hostname, "cart.example"),
        (&*taken.place.locality.region, "r"),
        (&*taken.place.locality.zone, "z"),
        (&*taken.place.locality.subzone, "s"),
    ];
    for (found, expected) in texts {
        assert_eq!(found, expected);
    }
    let ips: Vec<String> = taken.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(ips, ["10.0.0.1", "2020:2020:2020:2020:2020:2020:2020:2020"]);
    assert_eq!(taken.protocol, Protocol::Hbone);
    assert_eq!(taken.status, Health::Unhealthy);
    assert_eq!(taken.network_mode, NetworkMode::HostNetwork);
    assert_eq!(taken.workload_type, Some(WorkloadType::Pod));
    assert_eq!((taken.capacity, taken.native_tunnel), (7, true));
    assert_eq!(
        taken.application_tunnel,
        Some(ApplicationTunnel {
            protocol: TunnelFormat::Proxy,
            port: Some(15088)
        })
    );
    let waypoint = taken.waypoint.as_ref().unwrap();
    assert_eq!(waypoint.destination.to_string(), "ns/gw");
    let gateway = taken.network_gateway.as_ref().unwrap();
    assert_eq!(gateway.destination.to_string(), "n/9.9.9.9");
    assert_eq!(gateway.hbone_mtls_port, 15008, "low 16 bits");
    let policies: Vec<&str> = taken.authorization_policies.iter().map(|p| &**p).collect();
    assert_eq!(policies, ["b/p", "a/q"]);
    assert!(taken.membership("shop", "cart").is_some());
}

#[test]
fn addresses_have_4_or_16_bytes() {
    let cases: [(&[u8], Result<&str, &str>); 6] = [
        (&[10, 0, 0, 1], Ok("10.0.0.1")),
        (&[0; 16], Ok("::")),
        (
            &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1],
            Ok("10.0.0.1"),
        ),
        (&[], Err("an IP address of 0 bytes, expected 4 or 16")),
        (
            &[1, 2, 3],
            Err("an IP address of 3 bytes, expected 4 or 16"),
        ),
        (&[0; 17], Err("an IP address of 17 bytes, expected 4 or 16")),
    ];
    for (raw, expected) in cases {
        let of_workload = with(|w| w.addresses.push(bytes(raw)));
        let of_service = service_with(|s| s.addresses.push(at("", raw, None)));
        let of_gateway = with(|w| w.waypoint = Some(to_address(raw, 1)));
        let of_weighted = service_with(|s| {
            s.weighted_waypoints = vec![wire::WeightedWaypoint {
                destination: Some(to_address(raw, 1)),
                weight: 1,
            }];
        });
        match expected {
            Ok(ip) => {
                let ip: IpAddr = ip.parse().unwrap();
                assert_eq!(of_workload.unwrap().addresses[..], [ip]);
                assert_eq!(of_service.unwrap().vips[0].ip, ip);
                let to = of_gateway
                    .unwrap()
                    .waypoint
                    .clone()
                    .unwrap()
                    .destination
                    .to_string();
                assert_eq!(to, format!("n/{ip}"), "whatever its length says");
                assert!(of_weighted.is_ok());
            }
            Err(text) => {
                assert_eq!(of_workload.unwrap_err(), format!("addresses: {text}"));
                assert_eq!(of_service.unwrap_err(), format!("addresses: {text}"));
                assert_eq!(of_gateway.unwrap_err(), format!("waypoint: {text}"));
                assert_eq!(
                    of_weighted.unwrap_err(),
                    format!("weighted_waypoints: {text}")
                );
            }
        }
    }
}

#[test]
fn enumerations_of_a_workload() {
    type Change = fn(&mut wire::Workload, i32);
    let fields: [(&str, Change, i32); 4] = [
        ("tunnel_protocol", |w, v| w.tunnel_protocol = v, 2),
        ("status", |w, v| w.status = v, 2),
        ("network_mode", |w, v| w.network_mode = v, 2),
        (
            "application_tunnel.protocol",
            |w, v| {
                w.application_tunnel = Some(wire::ApplicationTunnel {
                    protocol: v,
                    port: 0,
                });
            },
            2,
        ),
    ];
    for (field, change, known) in fields {
        for value in 0..known {
            assert!(with(|w| change(w, value)).is_ok(), "{field} {value}");
        }
        for value in [known + 1, -1, i32::MAX] {
            let text = with(|w| change(w, value)).unwrap_err();
            assert_eq!(text, format!("{field}: unknown value {value}"));
        }
    }
    let legacy = with(|w| w.tunnel_protocol = 2).unwrap_err();
    assert_eq!(
        legacy,
        "tunnel_protocol: LEGACY_ISTIO_MTLS is not supported"
    );
    let kinds = [
        (0, WorkloadType::Deployment),
        (1, WorkloadType::CronJob),
        (2, WorkloadType::Pod),
        (3, WorkloadType::Job),
        (4, WorkloadType::Deployment),
        (-1, WorkloadType::Deployment),
    ];
    for (value, kind) in kinds {
        let taken = with(|w| w.workload_type = value).unwrap();
        assert_eq!(taken.workload_type, Some(kind), "{value}");
    }
}

#[test]
fn application_tunnels_and_capacity() {
    for (port, expected) in [
        (0, None),
        (80, Some(80)),
        (65_616, Some(80)),
        (65_536, None),
    ] {
        let tunnel = wire::ApplicationTunnel { protocol: 0, port };
        let taken = with(|w| w.application_tunnel = Some(tunnel)).unwrap();
        let expected = ApplicationTunnel {
            protocol: TunnelFormat::None,
            port: expected,
        };
        assert_eq!(taken.application_tunnel, Some(expected), "{port}");
    }
    let capacities = [(None, 1), (Some(0), 0), (Some(u32::MAX), u32::MAX)];
    for (value, expected) in capacities {
        let value = value.map(|value| UInt32Value { value });
        assert_eq!(with(|w| w.capacity = value).unwrap().capacity, expected);
    }
}

#[test]
fn keys_of_services_have_a_namespace() {
    let cases = [
        ("shop/cart", Ok(("shop", "cart"))),
        ("/cart", Ok(("", "cart"))),
        ("shop/", Ok(("shop", ""))),
        ("shop/a/b", Ok(("shop", "a/b"))),
        (
            "cart",
            Err(r#"services: "cart", expected <namespace>/<hostname>"#),
        ),
        ("", Err(r#"services: "", expected <namespace>/<hostname>"#)),
    ];
    for (key, expected) in cases {
        let taken = with(|w| {
            w.services.insert(key.into(), wire::PortList::default());
        });
        match expected {
            Ok((namespace, hostname)) => {
                assert!(
                    taken.unwrap().membership(namespace, hostname).is_some(),
                    "{key}"
                );
            }
            Err(text) => assert_eq!(taken.unwrap_err(), text),
        }
    }
    let long = "é".repeat(QUOTE_BYTES_MAX);
    let text = with(|w| {
        w.services.insert(long, wire::PortList::default());
    })
    .unwrap_err();
    assert!(text.len() < 2 * QUOTE_BYTES_MAX, "{text}");
}

#[test]
fn ports_keep_their_low_16_bits_and_the_last_holds() {
    let ports = [
        (80, 8080),
        (65_536 + 443, 131_072 + 8443),
        (80, 9090),
        (1, 0),
    ];
    let ports = ports.map(|(service_port, target_port)| wire::Port {
        service_port,
        target_port,
        app_protocol: 99,
    });
    let expected = [(1, 0), (80, 9090), (443, 8443)];
    let of =
        |ports: &mesh::Ports| -> Vec<_> { ports.iter().map(|m| (m.service, m.target)).collect() };
    let list = wire::PortList {
        ports: ports.into(),
    };
    let taken = with(|w| w.services = [("a/b".to_owned(), list)].into()).unwrap();
    assert_eq!(of(&taken.services[0].ports), expected);
    let taken = service_with(|s| s.ports = ports.into()).unwrap();
    assert_eq!(of(&taken.ports), expected);
}

#[test]
fn gateways_have_a_destination() {
    assert_eq!(
        with(|w| w.waypoint = Some(NOWHERE)).unwrap_err(),
        "waypoint: no destination, expected hostname or address"
    );
    assert_eq!(
        with(|w| w.network_gateway = Some(NOWHERE)).unwrap_err(),
        "network_gateway: no destination, expected hostname or address"
    );
    assert_eq!(
        service_with(|s| s.waypoint = Some(NOWHERE)).unwrap_err(),
        "waypoint: no destination, expected hostname or address"
    );
    for destination in [None, Some(NOWHERE)] {
        let weighted = wire::WeightedWaypoint {
            destination,
            weight: 0,
        };
        assert_eq!(
            service_with(|s| s.weighted_waypoints = vec![weighted]).unwrap_err(),
            "weighted_waypoints: no destination, expected hostname or address"
        );
    }
}

#[test]
fn every_field_of_a_service_arrives() {
    let from = wire::Service {
        name: "cart".into(),
        namespace: "shop".into(),
        hostname: "Cart.shop.svc".into(),
        addresses: vec![
            at("n", &[10, 0, 0, 9], None),
            at("", &[10, 1, 0, 0], Some(16)),
        ],
        ports: vec![wire::Port {
            service_port: 80,
            target_port: 8080,
            app_protocol: 0,
        }],
        subject_alt_names: vec!["spiffe://td/ns/a/sa/b".into(), "dns.example".into()],
        waypoint: Some(to_hostname(1)),
        load_balancing: Some(wire::LoadBalancing {
            routing_preference: vec![1, 2, 3, 4, 5, 6, 1],
            mode: 2,
            health_policy: 1,
        }),
        ip_families: 3,
        extensions: vec![wire::Extension::default()],
        canonical: true,
        ingress_use_waypoint: true,
        weighted_waypoints: vec![
            wire::WeightedWaypoint {
                destination: Some(to_hostname(2)),
                weight: 9,
            },
            wire::WeightedWaypoint {
                destination: Some(to_address(&[1, 1, 1, 1], 3)),
                weight: 0,
            },
        ],
        visibility: 1,
    };
    let taken = service(from).unwrap();
    assert_eq!(
        [&*taken.name, &taken.namespace, &taken.hostname],
        ["cart", "shop", "Cart.shop.svc"]
    );
    assert_eq!(taken.vips[0].to_string(), "n/10.0.0.9");
    assert_eq!(taken.cidr_vips[0].cidr.to_string(), "10.1.0.0/16");
    assert_eq!(taken.ports.target(80), Some(8080));
    assert_eq!(taken.extra_identities().count(), 1);
    assert_eq!(taken.subject_alt_names.len(), 2);
    assert_eq!(taken.waypoint.as_ref().unwrap().hbone_mtls_port, 1);
    let balancer = taken.load_balancer.as_ref().unwrap();
    use Scope::{Cluster, Network, Node, Region, Subzone, Zone};
    assert_eq!(
        balancer.routing_preferences[..],
        [Region, Zone, Subzone, Node, Cluster, Network, Region]
    );
    assert_eq!(balancer.mode, BalanceMode::Failover);
    assert_eq!(balancer.health_policy, HealthPolicy::AllowAll);
    assert_eq!(taken.ip_families, Some(IpFamilies::Dual));
    assert!(taken.canonical && taken.endpoints.is_empty());
    let weights: Vec<_> = (taken.weighted_waypoints.iter())
        .map(|w| (w.destination.hbone_mtls_port, w.weight))
        .collect();
    assert_eq!(weights, [(2, 9), (3, 0)]);
    assert_eq!(taken.visibility, Visibility::Namespace);
}

#[test]
fn an_empty_service_has_the_defaults() {
    let empty = service(wire::Service::default()).unwrap();
    assert_eq!(empty, Service::default());
    let balanced = service_with(|s| s.load_balancing = Some(wire::LoadBalancing::default()));
    let balancer = balanced.unwrap().load_balancer.unwrap();
    assert_eq!(balancer.mode, BalanceMode::Standard);
    assert_eq!(balancer.health_policy, HealthPolicy::OnlyHealthy);
}

#[test]
fn enumerations_of_a_service() {
    type Change = fn(&mut wire::Service, i32);
    fn balancing(service: &mut wire::Service) -> &mut wire::LoadBalancing {
        service.load_balancing.get_or_insert_default()
    }
    let fields: [(&str, Change, std::ops::Range<i32>); 4] = [
        ("ip_families", |s, v| s.ip_families = v, 0..4),
        ("load_balancing.mode", |s, v| balancing(s).mode = v, 0..4),
        (
            "load_balancing.health_policy",
            |s, v| balancing(s).health_policy = v,
            0..2,
        ),
        (
            "load_balancing.routing_preference",
            |s, v| balancing(s).routing_preference.push(v),
            1..7,
        ),
    ];
    for (field, change, known) in fields {
        for value in [known.end, -1, i32::MIN] {
            let text = service_with(|s| change(s, value)).unwrap_err();
            assert_eq!(text, format!("{field}: unknown value {value}"));
        }
        for value in known {
            assert!(
                service_with(|s| change(s, value)).is_ok(),
                "{field} {value}"
            );
        }
    }
    let unspecified = service_with(|s| balancing(s).routing_preference = vec![1, 0]).unwrap_err();
    assert_eq!(
        unspecified,
        "load_balancing.routing_preference: UNSPECIFIED_SCOPE is not supported"
    );
    let families = [
        None,
        Some(IpFamilies::Ipv4),
        Some(IpFamilies::Ipv6),
        Some(IpFamilies::Dual),
    ];
    for (value, expected) in (0..).zip(families) {
        let taken = service_with(|s| s.ip_families = value).unwrap();
        assert_eq!(taken.ip_families, expected);
    }
    let modes = [
        BalanceMode::Standard,
        BalanceMode::Strict,
        BalanceMode::Failover,
        BalanceMode::Passthrough,
    ];
    for (value, expected) in (0..).zip(modes) {
        let taken = service_with(|s| balancing(s).mode = value).unwrap();
        assert_eq!(taken.load_balancer.unwrap().mode, expected);
    }
    let visibilities = [
        (0, Visibility::Public),
        (1, Visibility::Namespace),
        (2, Visibility::Public),
        (-1, Visibility::Public),
    ];
    for (value, expected) in visibilities {
        let taken = service_with(|s| s.visibility = value).unwrap();
        assert_eq!(taken.visibility, expected, "{value}");
    }
}

#[test]
fn addresses_of_services_are_single_or_ranges() {
    const MAPPED: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 2, 3];
    let v6: [u8; 16] = "2001:db8::1"
        .parse::<std::net::Ipv6Addr>()
        .unwrap()
        .octets();
    type Case<'a> = (&'a [u8], Option<u32>, Result<&'a str, &'a str>);
    let cases: [Case<'_>; 14] = [
        (&[10, 1, 2, 3], None, Ok("10.1.2.3")),
        (&[10, 1, 2, 3], Some(32), Ok("10.1.2.3")),
        (&[10, 1, 2, 3], Some(31), Ok("10.1.2.3/31")),
        (&[10, 1, 2, 3], Some(0), Ok("10.1.2.3/0")),
        (
            &[10, 1, 2, 3],
            Some(33),
            Err("prefix length 33, expected at most 32"),
        ),
        (
            &[10, 1, 2, 3],
            Some(256 + 32),
            Err("prefix length 288, expected at most 32"),
        ),
        (&v6, None, Ok("2001:db8::1")),
        (&v6, Some(128), Ok("2001:db8::1")),
        (&v6, Some(32), Ok("2001:db8::1/32")),
        (
            &v6,
            Some(129),
            Err("prefix length 129, expected at most 128"),
        ),
        (
            &v6,
            Some(u32::MAX),
            Err("prefix length 4294967295, expected at most 128"),
        ),
        (&MAPPED, Some(128), Ok("10.1.2.3")),
        (&MAPPED, Some(112), Ok("10.1.2.3/16")),
        (&MAPPED, Some(90), Ok("::ffff:10.1.2.3/90")),
    ];
    for (raw, length, expected) in cases {
        let taken = service_with(|s| s.addresses = vec![at("n", raw, length)]);
        match expected {
            Err(text) => assert_eq!(taken.unwrap_err(), format!("addresses: {text}")),
            Ok(text) => {
                let taken = taken.unwrap();
                let vips = taken
                    .vips
                    .iter()
                    .map(|vip| (vip.network.clone(), vip.ip.to_string()));
                let ranges = taken.cidr_vips.iter();
                let ranges = ranges.map(|range| (range.network.clone(), range.cidr.to_string()));
                let all: Vec<_> = vips.chain(ranges).collect();
                assert_eq!(all, [("n".into(), text.to_owned())]);
            }
        }
    }
}

#[test]
fn policies_are_keyed_by_the_name_of_their_resource() {
    for (scope, expected) in (0..).zip([
        PolicyScope::Global,
        PolicyScope::Namespace,
        PolicyScope::WorkloadSelector,
    ]) {
        for (action, dry_run) in [(0, false), (1, true)] {
            let from = Authorization {
                name: "p".into(),
                namespace: "ns".into(),
                scope,
                action,
                dry_run,
                ..Authorization::default()
            };
            let taken = policy(&from).unwrap();
            assert_eq!(
                [&*taken.key, &taken.name, &taken.namespace],
                ["k/ey", "p", "ns"]
            );
            let of_action = [Action::Allow, Action::Deny][usize::try_from(action).unwrap()];
            assert_eq!((taken.scope, taken.action), (expected, of_action));
            assert_eq!((taken.dry_run, taken.rules.len()), (dry_run, 0));
        }
    }
    let scope = Authorization {
        scope: 3,
        ..Authorization::default()
    };
    let action = Authorization {
        action: -1,
        ..Authorization::default()
    };
    assert_eq!(policy(&scope).unwrap_err(), "scope: unknown value 3");
    assert_eq!(policy(&action).unwrap_err(), "action: unknown value -1");
}

fn text(arm: Option<security::string_match::MatchType>) -> security::StringMatch {
    security::StringMatch { match_type: arm }
}

fn of_match(one: security::Match) -> mesh::policy::Match {
    let clause = security::Clause { matches: vec![one] };
    let rule = security::Rule {
        clauses: vec![clause],
    };
    let from = Authorization {
        rules: vec![rule],
        ..Authorization::default()
    };
    policy(&from).unwrap().rules.remove(0).remove(0).remove(0)
}

#[test]
fn every_attribute_of_a_match_arrives() {
    use security::string_match::MatchType::{Exact, Prefix, Presence, Suffix};
    let account = |name: &str| security::ServiceAccountMatch {
        namespace: "ns".into(),
        service_account: name.into(),
    };
    let net = |last: u8| security::Address {
        address: bytes(&[10, 0, 0, last]),
        length: 32,
    };
    let taken = of_match(security::Match {
        namespaces: vec![text(Some(Exact("a".into())))],
        not_namespaces: vec![text(Some(Prefix("b".into())))],
        principals: vec![text(Some(Suffix("c".into())))],
        not_principals: vec![text(Some(Presence(Empty {})))],
        source_ips: vec![net(1)],
        not_source_ips: vec![net(2)],
        destination_ips: vec![net(3)],
        not_destination_ips: vec![net(4)],
        destination_ports: vec![80, 65_536 + 81],
        not_destination_ports: vec![443],
        service_accounts: vec![account("x")],
        not_service_accounts: vec![account("y")],
        extensions: vec![wire::Extension::default()],
    });
    let account = |name: &str| ServiceAccountMatch {
        namespace: "ns".into(),
        service_account: name.into(),
    };
    let net = |last: u8| vec![format!("10.0.0.{last}/32").parse::<IpNet>().unwrap()];
    let expected = mesh::policy::Match {
        namespaces: vec![StringMatch::Exact("a".into())],
        not_namespaces: vec![StringMatch::Prefix("b".into())],
        principals: vec![StringMatch::Suffix("c".into())],
        not_principals: vec![StringMatch::Presence],
        service_accounts: vec![account("x")],
        not_service_accounts: vec![account("y")],
        source_ips: net(1),
        not_source_ips: net(2),
        destination_ips: net(3),
        not_destination_ips: net(4),
        destination_ports: vec![80, 81],
        not_destination_ports: vec![443],
    };
    assert_eq!(taken, expected);
}

#[test]
fn entries_of_a_match_that_say_nothing_are_left_out() {
    let cases: [(&[u8], u32, Option<&str>); 9] = [
        (&[10, 0, 0, 1], 32, Some("10.0.0.1/32")),
        (&[10, 0, 0, 1], 8, Some("10.0.0.1/8")),
        (&[10, 0, 0, 1], 0, Some("10.0.0.1/0")),
        (&[10, 0, 0, 1], 33, None),
        (&[10, 0, 0, 1], 256 + 32, None),
        (&[0; 16], 128, Some("::/128")),
        (&[0; 16], 129, None),
        (&[], 0, None),
        (&[1, 2, 3, 4, 5], 32, None),
    ];
    for (raw, length, expected) in cases {
        let net = security::Address {
            address: bytes(raw),
            length,
        };
        let taken = of_match(security::Match {
            source_ips: vec![net.clone()],
            not_source_ips: vec![net.clone()],
            destination_ips: vec![net.clone()],
            not_destination_ips: vec![net],
            ..security::Match::default()
        });
        let expected: Vec<IpNet> = expected
            .map(|net| net.parse().unwrap())
            .into_iter()
            .collect();
        for found in [
            taken.source_ips,
            taken.not_source_ips,
            taken.destination_ips,
            taken.not_destination_ips,
        ] {
            assert_eq!(found, expected, "{raw:?}/{length}");
        }
    }
    let taken = of_match(security::Match {
        namespaces: vec![text(None)],
        not_namespaces: vec![text(None)],
        principals: vec![text(None)],
        not_principals: vec![text(None)],
        ..security::Match::default()
    });
    assert_eq!(
        taken,
        mesh::policy::Match::default(),
        "which matches nothing"
    );
}

#[test]
fn rules_clauses_and_matches_keep_their_shape() {
    let ports = |port: u32| security::Match {
        destination_ports: vec![port],
        ..security::Match::default()
    };
    let clause = |matches: &[u32]| security::Clause {
        matches: matches.iter().map(|port| ports(*port)).collect(),
    };
    let rule = |clauses: Vec<security::Clause>| security::Rule { clauses };
    let from = Authorization {
        rules: vec![
            rule(vec![]),
            rule(vec![clause(&[])]),
            rule(vec![clause(&[1, 2]), clause(&[3])]),
        ],
        ..Authorization::default()
    };
    let taken = policy(&from).unwrap();
    let shape: Vec<Vec<Vec<u16>>> = (taken.rules.iter())
        .map(|rule| {
            let clauses = rule.iter();
            clauses
                .map(|clause| clause.iter().map(|m| m.destination_ports[0]).collect())
                .collect()
        })
        .collect();
    assert_eq!(shape, [vec![], vec![vec![]], vec![vec![1, 2], vec![3]]]);
}

#[test]
fn equal_names_are_held_once() {
    let mut pools = Pools::default();
    let mut next = |uid: &str| {
        let from = wire::Workload {
            uid: uid.into(),
            namespace: "shop".into(),
            services: [("shop/cart".to_owned(), wire::PortList::default())].into(),
            ..wire::Workload::default()
        };
        let message = wire::Address {
            r#type: Some(wire::address::Type::Workload(from)),
        };
        match address(message.encode_to_vec().into(), &mut pools) {
            Ok(Resource::Workload(workload)) => workload,
            other => panic!("{other:?}"),
        }
    };
    let (first, second) = (next("a"), next("b"));
    assert!(std::sync::Arc::ptr_eq(&first.profile, &second.profile));
    assert!(std::sync::Arc::ptr_eq(&first.place, &second.place));
}
