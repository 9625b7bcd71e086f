//! Tables of cases for the choice of an endpoint.

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::*;
use crate::index::Resource;
use crate::service::HealthPolicy;
use crate::workload::{Locality, Membership, Place, Profile};

fn place(node: &str, [region, zone, subzone]: [&str; 3]) -> Arc<Place> {
    Arc::new(Place {
        node: node.into(),
        locality: Locality {
            region: region.into(),
            zone: zone.into(),
            subzone: subzone.into(),
        },
    })
}

fn at(uid: &str, network: &str, region: &str, zone: &str, capacity: u32) -> Workload {
    let service = crate::NamespacedHostname {
        namespace: "a".into(),
        hostname: "s".into(),
    };
    let profile = Profile {
        network: network.into(),
        capacity,
        services: [Membership {
            service: Arc::new(service),
            ports: Default::default(),
        }]
        .into(),
        ..Profile::default()
    };
    let addresses = ["10.0.0.1".parse().expect("an address")];
    let place = place("", [region, zone, ""]);
    Workload::new(uid.into(), uid, addresses, place, profile.into())
}

fn service(preferences: &[Scope], mode: BalanceMode) -> Service {
    Service {
        namespace: "a".into(),
        hostname: "s".into(),
        ports: [(80, 8080)].into_iter().collect(),
        load_balancer: Some(LoadBalancer {
            routing_preferences: preferences.into(),
            mode,
            health_policy: HealthPolicy::OnlyHealthy,
        }),
        ..Service::default()
    }
}

/// How often each endpoint is drawn in 300 draws.
fn draws(service: &Service, endpoints: &[Workload]) -> BTreeMap<String, u32> {
    let mut all: Vec<_> = endpoints
        .iter()
        .map(|w| Resource::Workload(Arc::new(w.clone())))
        .collect();
    all.push(Resource::Service(Arc::new(service.clone())));
    let index = Index::build(all);
    let source = at("source", "n", "r", "z", 1);
    let wish = Wish {
        source: &source,
        service,
        service_port: 80,
        purpose: Purpose::Standard,
    };
    let mut drawn = BTreeMap::new();
    let mut rng = SmallRng::seed_from_u64(7);
    for _ in 0..300 {
        if let Some((workload, _)) = choose(&index, wish, &mut rng) {
            *drawn.entry(workload.uid.to_string()).or_default() += 1;
        }
    }
    drawn
}

fn chosen(service: &Service, endpoints: &[Workload]) -> Vec<String> {
    draws(service, endpoints).into_keys().collect()
}

#[test]
fn ranks_with_the_network_first() {
    let service = service(
        &[Scope::Network, Scope::Region, Scope::Zone],
        BalanceMode::Failover,
    );
    let source = at("source", "n", "r", "z", 1);
    let wish = Wish {
        source: &source,
        service: &service,
        service_port: 80,
        purpose: Purpose::Standard,
    };
    let cases = [
        (("n", "r", "z"), 5),
        (("n", "r", "-"), 4),
        (("n", "-", "z"), 3),
        (("n", "-", "-"), 3),
        (("-", "r", "z"), 2),
        (("-", "r", "-"), 1),
        (("-", "-", "z"), 0),
        (("-", "-", "-"), 0),
    ];
    for ((network, region, zone), rank) in cases {
        assert_eq!(
            wish.rank(&at("e", network, region, zone, 1)),
            Some(rank),
            "{network} {region} {zone}"
        );
    }
}

#[test]
fn ranks_without_the_network_first_stop_at_a_mismatch() {
    let source = at("source", "n", "r", "z", 1);
    let rank = |preferences: &[Scope], mode, candidate: &Workload| {
        let service = service(preferences, mode);
        Wish {
            source: &source,
            service: &service,
            service_port: 80,
            purpose: Purpose::Standard,
        }
        .rank(candidate)
    };
    let regional = [Scope::Region, Scope::Network, Scope::Subzone];
    let cases = [
        (BalanceMode::Failover, ("n", "r"), Some(3)),
        (BalanceMode::Failover, ("-", "r"), Some(1)),
        (BalanceMode::Failover, ("n", "-"), Some(0)),
        (BalanceMode::Strict, ("n", "r"), Some(3)),
        (BalanceMode::Strict, ("-", "r"), None),
        (BalanceMode::Standard, ("-", "-"), Some(0)),
    ];
    for (mode, (network, region), expected) in cases {
        assert_eq!(
            rank(&regional, mode, &at("e", network, region, "-", 1)),
            expected,
            "{mode:?} {network} {region}"
        );
    }
    let networked = [Scope::Network, Scope::Region];
    assert_eq!(
        rank(&networked, BalanceMode::Strict, &at("e", "n", "-", "-", 1)),
        None,
        "the bonus does not count"
    );
    assert_eq!(
        rank(&networked, BalanceMode::Strict, &at("e", "-", "r", "-", 1)),
        None
    );
}

#[test]
fn every_scope_is_compared() {
    let mut near = at("near", "n", "", "", 1).with(|profile| profile.cluster_id = "c".into());
    near.place = place("o", ["r", "z", ""]);
    let elsewhere = |node: &str, locality: [&str; 3]| {
        let mut other = near.clone();
        other.place = place(node, locality);
        other
    };
    let cases = [
        (Scope::Region, elsewhere("o", ["x", "z", ""])),
        (Scope::Zone, elsewhere("o", ["r", "x", ""])),
        (Scope::Subzone, elsewhere("o", ["r", "z", "x"])),
        (Scope::Node, elsewhere("x", ["r", "z", ""])),
        (
            Scope::Cluster,
            near.clone().with(|profile| profile.cluster_id = "x".into()),
        ),
        (
            Scope::Network,
            near.clone().with(|profile| profile.network = "x".into()),
        ),
    ];
    for (scope, other) in cases {
        assert!(
            same(scope, &near, &near) && !same(scope, &near, &other),
            "{scope:?}"
        );
    }
}

#[test]
fn modes_keep_the_group_that_they_name() {
    let all = [
        at("near", "n", "r", "z", 1),
        at("zone-off", "n", "r", "-", 1),
        at("far", "-", "-", "-", 1),
    ];
    let wanted = [Scope::Network, Scope::Region, Scope::Zone];
    assert_eq!(
        chosen(&service(&wanted, BalanceMode::Standard), &all),
        ["far", "near", "zone-off"]
    );
    assert_eq!(
        chosen(&service(&wanted, BalanceMode::Failover), &all),
        ["near"]
    );
    assert_eq!(
        chosen(&service(&wanted, BalanceMode::Failover), &all[1..]),
        ["zone-off"]
    );
    assert_eq!(
        chosen(&service(&wanted, BalanceMode::Failover), &all[2..]),
        ["far"]
    );
    assert_eq!(
        chosen(&service(&wanted, BalanceMode::Strict), &all),
        ["near"]
    );
    assert_eq!(
        chosen(&service(&wanted, BalanceMode::Strict), &all[1..]),
        Vec::<String>::new()
    );
    assert_eq!(
        chosen(&service(&wanted, BalanceMode::Passthrough), &all),
        Vec::<String>::new()
    );
    assert_eq!(
        chosen(&service(&[], BalanceMode::Failover), &all),
        ["far", "near", "zone-off"]
    );
    assert_eq!(
        chosen(&service(&[], BalanceMode::Strict), &all),
        ["far", "near", "zone-off"]
    );
}

#[test]
fn draws_by_capacity() {
    let any = service(&[], BalanceMode::Standard);
    let drawn = draws(
        &any,
        &[
            at("one", "n", "", "", 1),
            at("none", "n", "", "", 0),
            at("two", "n", "", "", 2),
        ],
    );
    assert_eq!(drawn.keys().collect::<Vec<_>>(), ["one", "two"]);
    assert!((70..130).contains(&drawn["one"]), "{drawn:?}");
    assert!(draws(&any, &[at("none", "n", "", "", 0)]).is_empty());
    let best = service(&[Scope::Network], BalanceMode::Failover);
    let all = [at("near", "n", "", "", 0), at("far", "-", "", "", 1)];
    assert!(
        draws(&best, &all).is_empty(),
        "the best group has no weight: no endpoint"
    );
}

#[test]
fn largest_capacities_do_not_overflow() {
    let all: Vec<_> = (0..4)
        .map(|i| at(&i.to_string(), "n", "", "", u32::MAX))
        .collect();
    assert_eq!(draws(&service(&[], BalanceMode::Standard), &all).len(), 4);
}

/// routing.md §3.1 and §3.3: one endpoint, asked for a service port by a source on network `n`.
#[test]
fn who_is_a_candidate_and_its_port() {
    const TUNNEL: &str = "applicationTunnel: {protocol: NONE, port: 9}";
    const BARE_TUNNEL: &str = "applicationTunnel: {protocol: PROXY}";
    const GATEWAY: &str = "networkGateway: {destination: x/gw, hboneMtlsPort: 1}";
    const ALLOW_ALL: &str =
        "loadBalancer: {routingPreferences: [], mode: Standard, healthPolicy: AllowAll}";
    use Purpose::{Standard, Waypoint};
    #[rustfmt::skip]
    let cases = [
        // what, the endpoint's ports, more of it, the Service's ports, more of it, purpose, port
        ("endpoint's own", "80: 1", "", "80: 2", "", Standard, Some(1)),
        ("Service's target", "", "", "80: 2", "", Standard, Some(2)),
        ("Service's target, for a waypoint", "", "", "80: 2", "", Waypoint, Some(2)),
        ("own port of another service port", "81: 1", "", "80: 2", "", Standard, Some(2)),
        ("an own port of 0 is none", "80: 0", "", "80: 2", "", Standard, Some(2)),
        ("named port, mapped", "80: 1", "", "80: 0", "", Standard, Some(1)),
        ("named port, not mapped", "", "", "80: 0", "", Standard, None),
        ("named port, mapped to 0", "80: 0", "", "80: 0", "", Standard, None),
        ("undefined port", "", "", "81: 2", "", Standard, None),
        ("undefined port, mapped", "80: 1", "", "81: 2", "", Standard, None),
        ("undefined port, waypoint", "80: 1", "", "81: 2", "", Waypoint, None),
        ("undefined port, waypoint with tunnel, mapped", "80: 1", TUNNEL, "81: 2", "", Waypoint, Some(1)),
        ("undefined port, waypoint with tunnel and its port: as asked", "", TUNNEL, "81: 2", "", Waypoint, Some(80)),
        ("undefined port, waypoint with tunnel without port", "", BARE_TUNNEL, "81: 2", "", Waypoint, None),
        ("undefined port, tunnel, but no waypoint", "80: 1", TUNNEL, "81: 2", "", Standard, None),
        ("named port, waypoint with tunnel and its port: as asked", "", TUNNEL, "80: 0", "", Waypoint, Some(80)),
        ("Service's target before the tunnel", "", TUNNEL, "80: 2", "", Waypoint, Some(2)),
        ("no address, host name", "", "workloadIps: [], hostname: h", "80: 2", "", Standard, Some(2)),
        ("no address", "", "workloadIps: []", "80: 2", "", Standard, None),
        ("no address, gateway, same network", "", "workloadIps: [], network: n, networkGateway: {destination: x/gw, hboneMtlsPort: 1}", "80: 2", "", Standard, None),
        ("no address, other network", "", "workloadIps: [], network: o", "80: 2", "", Standard, None),
        ("no address, gateway, other network", "", "workloadIps: [], network: o, networkGateway: {destination: x/gw, hboneMtlsPort: 1}", "80: 2", "", Standard, Some(2)),
        ("address, other network, gateway or not", "", GATEWAY, "80: 2", "", Standard, Some(2)),
        ("unhealthy", "", "status: Unhealthy", "80: 2", "", Standard, None),
        ("unhealthy, ALLOW_ALL", "", "status: Unhealthy", "80: 2", ALLOW_ALL, Standard, Some(2)),
        ("unknown workload", "", "", "80: 2", "endpoints: {x: {workloadUid: x, port: {}}}", Standard, Some(2)),
        ("capacity 0", "", "capacity: 0", "80: 2", "", Standard, None),
    ];
    for (what, own, more, ports, service, purpose, expected) in cases {
        let ips = if more.contains("workloadIps") {
            ""
        } else {
            "workloadIps: [10.0.0.1],"
        };
        let text = format!(
            "workloads: [{{uid: e, namespace: a, {ips} services: {{a/s: {{{own}}}}}, {more}}}]
services: [{{name: s, namespace: a, hostname: s, vips: [], ports: {{{ports}}}, {service}}}]
"
        );
        let index = Index::build(crate::local::parse(&text).expect(what));
        let source = at("source", "n", "", "", 1);
        let wish = Wish {
            source: &source,
            service: index.service("a", "s").expect("in the text"),
            service_port: 80,
            purpose,
        };
        let chosen = choose(&index, wish, &mut SmallRng::seed_from_u64(1));
        assert_eq!(chosen.map(|(_, port)| port), expected, "{what}");
    }
}

/// routing.md §3.2: nothing sticks, nothing takes turns.
#[test]
fn each_connection_draws_anew() {
    let any = service(&[], BalanceMode::Standard);
    let endpoints = ["a", "b", "c"].map(|uid| at(uid, "n", "", "", 1));
    let drawn = draws(&any, &endpoints);
    assert!(drawn.values().all(|n| (70..130).contains(n)), "{drawn:?}");
}

/// A Service with very many endpoints, of which few are near, some cannot be used and weights differ.
fn crowd() -> Vec<Workload> {
    let one = |number: u32| {
        let (region, zone) = [("r", "z"), ("r", "y"), ("q", "z")][number as usize % 3];
        let network = if number.is_multiple_of(10) { "n" } else { "m" };
        let mut one = at(&format!("e{number}"), network, region, zone, number % 4);
        match number % 7 {
            0 => one.addresses = Default::default(),
            1 => one = one.with(|profile| profile.status = crate::workload::Health::Unhealthy),
            2 => {
                one = one.with(|profile| {
                    let mut listed = profile.services[0].clone();
                    listed.ports = [(80, 9)].into_iter().collect();
                    profile.services = [listed].into();
                })
            }
            _ => {}
        }
        one
    };
    (0..900).map(one).collect()
}

/// A choice from many is the same as one that weighs them one by one: shares of all endpoints, mode by mode.
#[test]
fn a_choice_from_many_is_fair_and_right() {
    let endpoints = crowd();
    let near = [Scope::Network, Scope::Region, Scope::Zone];
    let modes = [
        (&[][..], BalanceMode::Standard),
        (&near, BalanceMode::Failover),
        (&near, BalanceMode::Strict),
        (&near[1..], BalanceMode::Failover),
    ];
    let source = at("source", "n", "r", "z", 1);
    for (preferences, mode) in modes {
        let service = service(preferences, mode);
        let mut all: Vec<_> = endpoints
            .iter()
            .cloned()
            .map(Arc::new)
            .map(Resource::Workload)
            .collect();
        all.push(Resource::Service(Arc::new(service.clone())));
        let index = Index::build(all);
        let wish = Wish {
            source: &source,
            service: &service,
            service_port: 80,
            purpose: Purpose::Standard,
        };
        let eligible: Vec<_> = index
            .endpoints(&service)
            .filter_map(|e| Some((wish.rank(e.workload)?, wish.port_of(&e)?, e.workload)))
            .collect();
        let best = eligible
            .iter()
            .map(|(rank, ..)| *rank)
            .max()
            .expect("some are eligible");
        let expected: BTreeMap<&str, (u16, u32)> = (eligible.iter())
            .filter(|(rank, _, w)| *rank == best && w.capacity > 0)
            .map(|(_, port, w)| (&*w.uid, (*port, w.capacity)))
            .collect();
        let total: u32 = expected.values().map(|(_, capacity)| capacity).sum();
        let mut drawn: BTreeMap<&str, u32> = BTreeMap::new();
        let mut rng = SmallRng::seed_from_u64(3);
        for _ in 0..100 * total {
            let (workload, port) = choose(&index, wish, &mut rng).expect("some are eligible");
            assert_eq!(
                expected[&*workload.uid].0, port,
                "{mode:?} {}",
                workload.uid
            );
            *drawn.entry(&workload.uid).or_default() += 1;
        }
        for (uid, (_, capacity)) in expected {
            let (times, share) = (drawn.get(uid).copied().unwrap_or_default(), 100 * capacity);
            assert!(
                times.abs_diff(share) < 6 * share.isqrt(),
                "{mode:?} {uid}: {times} of {share}"
            );
        }
    }
}

#[test]
fn a_choice_follows_what_its_endpoints_become() {
    let service = service(&[Scope::Region], BalanceMode::Failover);
    let mut all: Vec<_> = (0..20)
        .map(|number| {
            at(
                &number.to_string(),
                "n",
                if number == 7 { "r" } else { "q" },
                "",
                1,
            )
        })
        .map(|w| Resource::Workload(Arc::new(w)))
        .collect();
    all.push(Resource::Service(Arc::new(service.clone())));
    let mut index = Index::build(all);
    let source = at("source", "n", "r", "z", 1);
    let chosen = |index: &Index| {
        let wish = Wish {
            source: &source,
            service: &service,
            service_port: 80,
            purpose: Purpose::Standard,
        };
        let chosen = choose(index, wish, &mut SmallRng::seed_from_u64(1));
        chosen.map(|(workload, _)| workload.uid.to_string())
    };
    assert_eq!(chosen(&index).as_deref(), Some("7"));
    let moved = [("7", "q"), ("3", "r")].map(|(uid, region)| at(uid, "n", region, "", 1));
    let before = index.clone();
    for moved in moved {
        index.apply(crate::Delta {
            remove: Vec::new(),
            upsert: vec![Resource::Workload(Arc::new(moved))],
        });
        index.audit();
    }
    assert_eq!(chosen(&index).as_deref(), Some("3"));
    assert_eq!(
        chosen(&before).as_deref(),
        Some("7"),
        "a copy keeps what it was"
    );
}
