//! Tables of cases for outbound decisions.

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::*;
use crate::local;

/// Clients `c*`, endpoints `e*`, waypoints `w*`; networks are the default one and `far`.
const MESH: &str = r#"
workloads:
- {uid: k//Pod/shop/c, name: c, namespace: shop, serviceAccount: c, trustDomain: td, workloadIps: [10.0.0.1, "2001:db8::1"], services: {}}
- {uid: k//Pod/shop/e1, name: e1, namespace: shop, serviceAccount: e1, trustDomain: td, workloadIps: [10.0.0.11, "2001:db8::11"], protocol: HBONE, services: {shop/hbone: {80: 8080}, shop/sans: {}, shop/wp-svc: {}, shop/wp-ip-svc: {}, shop/wp-weighted: {}, shop/wp-none: {}, shop/private: {}, shop/pass: {}, shop/v6: {}}}
- {uid: k//Pod/shop/e2, name: e2, namespace: shop, serviceAccount: e2, trustDomain: td, workloadIps: [10.0.0.12], services: {shop/plain: {}, shop/named: {90: 9090}, shop/v6only: {}}}
- {uid: k//Pod/shop/sick, namespace: shop, workloadIps: [10.0.0.13], status: Unhealthy, services: {shop/sick: {}, shop/sick-ok: {}}}
- {uid: k//Pod/shop/heavy, namespace: shop, workloadIps: [10.0.0.14], capacity: 0, services: {shop/weightless: {}}}
- {uid: k//Pod/shop/host, namespace: shop, workloadIps: [10.0.0.15], networkMode: HostNetwork, services: {shop/host: {}}}
- {uid: dns, namespace: shop, serviceAccount: dns, trustDomain: td, workloadIps: [], hostname: db.example, services: {shop/dns: {}}}
- {uid: dns-hbone, namespace: shop, serviceAccount: dns, trustDomain: td, workloadIps: [], hostname: db.example, protocol: HBONE, services: {shop/dns-hbone: {}}}
- {uid: k//Pod/shop/far-gw, namespace: shop, network: far, workloadIps: [], protocol: HBONE, services: {shop/far-gw: {}}, networkGateway: {destination: istio/gw, hboneMtlsPort: 15008}}
- {uid: k//Pod/shop/far, namespace: shop, network: far, workloadIps: [10.9.0.1], protocol: HBONE, services: {shop/far: {}}}
- {uid: k//Pod/shop/near-gw, namespace: shop, workloadIps: [], services: {shop/near-gw: {}}, networkGateway: {destination: istio/gw, hboneMtlsPort: 15008}}
- {uid: k//Pod/shop/w1, name: w1, namespace: shop, serviceAccount: w1, trustDomain: td, workloadIps: [10.0.0.21, "2001:db8::21"], protocol: HBONE, services: {shop/waypoint: {15008: 15018}}}
- {uid: k//Pod/shop/w2, name: w2, namespace: shop, serviceAccount: w2, trustDomain: td, workloadIps: [10.0.0.22], protocol: HBONE, hostname: wp.example, services: {shop/waypoint-2: {}}}
- {uid: k//Pod/shop/w3, name: w3, namespace: shop, serviceAccount: w3, trustDomain: td, workloadIps: [10.0.0.23], applicationTunnel: {protocol: PROXY, port: 15088}, services: {shop/waypoint-tunnel: {}}}
- {uid: k//Pod/shop/w4, namespace: shop, network: far, workloadIps: [10.9.0.4], networkGateway: {destination: istio/gw, hboneMtlsPort: 15008}, services: {shop/waypoint-far: {}}}
- {uid: k//Pod/shop/b1, namespace: shop, serviceAccount: b1, trustDomain: td, workloadIps: [10.0.0.31], waypoint: {destination: shop/waypoint, hboneMtlsPort: 15008}, services: {}}
- {uid: k//Pod/shop/b2, namespace: shop, workloadIps: [10.0.0.32], waypoint: {destination: shop/none, hboneMtlsPort: 15008}, services: {}}
- {uid: k//Pod/shop/b3, namespace: shop, workloadIps: [10.0.0.33], waypoint: {destination: shop/wp.example, hboneMtlsPort: 15008}, services: {shop/skip: {}}}
- {uid: k//Pod/shop/b4, namespace: shop, workloadIps: [10.0.0.34], waypoint: {destination: shop/waypoint-far, hboneMtlsPort: 15008}, services: {}}
- {uid: k//Pod/shop/two, namespace: shop, workloadIps: [10.0.0.41, 10.0.0.42], services: {}}
- {uid: both, namespace: shop, workloadIps: [10.1.0.1], services: {}}
services:
- {name: hbone, namespace: shop, hostname: hbone, vips: [/10.1.0.1, "/2001:db8:1::1"], ports: {80: 8081, 81: 8181}}
- {name: plain, namespace: shop, hostname: plain, vips: [/10.1.0.2], ports: {80: 8080}}
- {name: named, namespace: shop, hostname: named, vips: [/10.1.0.3], ports: {80: 0, 90: 0}}
- {name: sick, namespace: shop, hostname: sick, vips: [/10.1.0.4], ports: {80: 8080}}
- {name: sick-ok, namespace: shop, hostname: sick-ok, vips: [/10.1.0.5], ports: {80: 8080}, loadBalancer: {routingPreferences: [], mode: Standard, healthPolicy: AllowAll}}
- {name: sans, namespace: shop, hostname: sans, vips: [/10.1.0.6], ports: {80: 80}, subjectAltNames: [spiffe://td/ns/x/sa/y, other.example, spiffe://td/ns/shop/sa/e1]}
- {name: weightless, namespace: shop, hostname: weightless, vips: [/10.1.0.7], ports: {80: 80}}
- {name: host, namespace: shop, hostname: host, vips: [/10.1.0.8], ports: {80: 80}}
- {name: dns, namespace: shop, hostname: dns, vips: [/10.1.0.9], ports: {80: 81}}
- {name: dns-hbone, namespace: shop, hostname: dns-hbone, vips: [/10.1.0.10], ports: {80: 81}}
- {name: far-gw, namespace: shop, hostname: far-gw, vips: [/10.1.0.11], ports: {80: 80}}
- {name: far, namespace: shop, hostname: far, vips: [/10.1.0.12], ports: {80: 80}}
- {name: near-gw, namespace: shop, hostname: near-gw, vips: [/10.1.0.13], ports: {80: 80}}
- {name: wp-svc, namespace: shop, hostname: wp-svc, vips: [/10.1.0.14, "/2001:db8:1::14"], ports: {80: 80}, waypoint: {destination: shop/waypoint, hboneMtlsPort: 15008}}
- {name: wp-ip-svc, namespace: shop, hostname: wp-ip-svc, vips: ["/2001:db8:1::15"], ports: {80: 80}, waypoint: {destination: /10.1.0.50, hboneMtlsPort: 15008}}
- {name: wp-none, namespace: shop, hostname: wp-none, vips: [/10.1.0.16], ports: {80: 80}, waypoint: {destination: shop/nobody, hboneMtlsPort: 15008}}
- name: wp-weighted
  namespace: shop
  hostname: wp-weighted
  vips: [/10.1.0.17]
  ports: {80: 80}
  waypoint: {destination: shop/nobody, hboneMtlsPort: 15008}
  weightedWaypoints:
  - {destination: {destination: shop/waypoint, hboneMtlsPort: 15008}, weight: 1}
  - {destination: {destination: /10.0.0.22, hboneMtlsPort: 15009}, weight: 3}
  - {destination: {destination: shop/nobody, hboneMtlsPort: 15008}, weight: 0}
- {name: wp-zero, namespace: shop, hostname: wp-zero, vips: [/10.1.0.18], ports: {80: 80}, waypoint: {destination: /10.0.0.22, hboneMtlsPort: 15008}, weightedWaypoints: [{destination: {destination: shop/nobody, hboneMtlsPort: 15008}, weight: 0}]}
- {name: private, namespace: shop, hostname: private, vips: [/10.1.0.19], ports: {80: 80}, visibility: Namespace}
- {name: pass, namespace: shop, hostname: pass, vips: [/10.1.0.20], cidrVips: [{network: "", cidr: 10.7.0.0/16}], ports: {80: 80}, loadBalancer: {routingPreferences: [], mode: Passthrough, healthPolicy: OnlyHealthy}}
- {name: pass-wp, namespace: shop, hostname: pass-wp, vips: [], cidrVips: [{network: "", cidr: 10.7.7.0/24}], ports: {80: 80}, waypoint: {destination: shop/waypoint, hboneMtlsPort: 15008}, loadBalancer: {routingPreferences: [], mode: Passthrough, healthPolicy: OnlyHealthy}}
- {name: v6, namespace: shop, hostname: v6, vips: [/10.1.0.21], ports: {80: 80}, ipFamilies: IPv6}
- {name: v6only, namespace: shop, hostname: v6only, vips: [/10.1.0.22], ports: {80: 80}, ipFamilies: IPv6}
- {name: wp-tunnel, namespace: shop, hostname: wp-tunnel, vips: [/10.1.0.23], ports: {80: 80}, waypoint: {destination: shop/waypoint-tunnel, hboneMtlsPort: 15008}}
- {name: wp-far, namespace: shop, hostname: wp-far, vips: [/10.1.0.24], ports: {80: 80}, waypoint: {destination: shop/waypoint-far, hboneMtlsPort: 15008}}
- {name: skip, namespace: shop, hostname: skip, vips: [/10.1.0.25], ports: {80: 80}}
- {name: waypoint, namespace: shop, hostname: waypoint, vips: [/10.1.0.50], ports: {15008: 15008}, subjectAltNames: [spiffe://td/ns/shop/sa/extra]}
- {name: waypoint-2, namespace: shop, hostname: waypoint-2, vips: [/10.1.0.51], ports: {15008: 15008}}
- {name: waypoint-tunnel, namespace: shop, hostname: waypoint-tunnel, vips: [/10.1.0.52], ports: {80: 80}}
- {name: waypoint-far, namespace: shop, hostname: waypoint-far, vips: [/10.1.0.53], ports: {15008: 15008}}
"#;

fn mesh() -> Index {
    Index::build(local::parse(MESH).expect("a good file"))
}

fn flow(index: &Index, source: &str, target: &str) -> Flow {
    let source = index
        .workload(&format!("k//Pod/shop/{source}"))
        .expect("in the mesh")
        .clone();
    let client = SocketAddr::new(source.addresses[0], 40000);
    Flow {
        source,
        client,
        target: target.parse().expect("an address"),
        socks: false,
    }
}

/// A decision in one line.
fn shown(decision: &Decision) -> String {
    let plan = match decision {
        Decision::Go(plan) => plan,
        Decision::Lacks(lookup @ Lookup::Resolve(_)) => return format!("lacks: {lookup}"),
        Decision::Refuse(why) => return format!("refused: {why}"),
    };
    let service = plan.service.as_ref().map_or("-", |s| &s.name);
    let to = plan.to;
    match &plan.hop {
        Hop::Passthrough => format!("pass {to} {service}"),
        Hop::Tcp => format!("tcp {to} {service}"),
        Hop::Hbone {
            authority,
            expected,
        } => {
            let expected: Vec<_> = expected
                .iter()
                .map(|id| id.service_account().to_owned())
                .collect();
            format!(
                "hbone {to} for {authority} as {} {service}",
                expected.join("+")
            )
        }
        Hop::DoubleHbone {
            authority,
            gateway,
            expected,
        } => {
            let names = |all: &[SpiffeId]| {
                let all: Vec<_> = all.iter().map(SpiffeId::service_account).collect();
                all.join("+")
            };
            format!(
                "gateway {to} as {} for {authority} as {} {service}",
                names(gateway),
                names(expected)
            )
        }
    }
}

fn decide(index: &Index, source: &str, target: &str, seed: u64) -> String {
    shown(&route(
        index,
        &flow(index, source, target),
        &mut SmallRng::seed_from_u64(seed),
    ))
}

#[rustfmt::skip]
const CASES: &[(&str, &str, &str, &str)] = &[
    // what, client, dialled, decision
    ("own port on loopback", "c", "127.0.0.1:15001", "refused: attempted recursive call to ourselves"),
    ("own port on loopback, v6", "c", "[::1]:15008", "refused: attempted recursive call to ourselves"),
    ("own port on mapped loopback", "c", "[::ffff:127.0.0.1]:15006", "refused: attempted recursive call to ourselves"),
    ("SOCKS port while it is closed", "c", "127.0.0.1:15080", "pass 127.0.0.1:15080 -"),
    ("unknown", "c", "203.0.113.1:443", "pass 203.0.113.1:443 -"),
    ("own pod address, own port", "e1", "10.0.0.11:15001", "hbone 10.0.0.11:15008 for 10.0.0.11:15001 as e1 -"),
    ("service, endpoint's own port", "c", "10.1.0.1:80", "hbone 10.0.0.11:15008 for 10.0.0.11:8080 as e1 hbone"),
    ("service, mapped target", "c", "[::ffff:10.1.0.1]:80", "hbone 10.0.0.11:15008 for 10.0.0.11:8080 as e1 hbone"),
    ("service, service's target port", "c", "10.1.0.1:81", "hbone 10.0.0.11:15008 for 10.0.0.11:8181 as e1 hbone"),
    ("service, family of the target", "c", "[2001:db8:1::1]:80", "hbone [2001:db8::11]:15008 for [2001:db8::11]:8080 as e1 hbone"),
    ("service, undefined port", "c", "10.1.0.1:82", "refused: no healthy upstream: 10.1.0.1:82"),
    ("plain endpoint", "c", "10.1.0.2:80", "tcp 10.0.0.12:8080 plain"),
    ("named port without endpoint's own", "c", "10.1.0.3:80", "refused: no healthy upstream: 10.1.0.3:80"),
    ("named port with endpoint's own", "c", "10.1.0.3:90", "tcp 10.0.0.12:9090 named"),
    ("all unhealthy", "c", "10.1.0.4:80", "refused: no healthy upstream: 10.1.0.4:80"),
    ("unhealthy allowed", "c", "10.1.0.5:80", "tcp 10.0.0.13:8080 sick-ok"),
    ("service SANs, SPIFFE ones once", "c", "10.1.0.6:80", "hbone 10.0.0.11:15008 for 10.0.0.11:80 as e1+y sans"),
    ("capacity 0", "c", "10.1.0.7:80", "refused: no healthy upstream: 10.1.0.7:80"),
    ("host network through a service", "c", "10.1.0.8:80", "tcp 10.0.0.15:80 host"),
    ("host network by address", "c", "10.0.0.15:80", "pass 10.0.0.15:80 -"),
    ("endpoint by host name", "c", "10.1.0.9:80", "lacks: no ip addresses were resolved for db.example: host name endpoints need a resolver"),
    ("on another network with gateway", "c", "10.1.0.11:80", "refused: unknown network gateway: istio/gw"),
    ("on another network without gateway", "c", "10.1.0.12:80", "refused: no valid routing destination for workload k//Pod/shop/far"),
    ("no address, gateway on the same network", "c", "10.1.0.13:80", "refused: no healthy upstream: 10.1.0.13:80"),
    ("service waypoint", "c", "10.1.0.14:80", "hbone 10.0.0.21:15018 for 10.1.0.14:80 as w1+extra wp-svc"),
    ("service waypoint, family of the target", "c", "[2001:db8:1::14]:80", "hbone [2001:db8::21]:15018 for [2001:db8:1::14]:80 as w1+extra wp-svc"),
    ("service waypoint by address, family of the reference", "c", "[2001:db8:1::15]:80", "hbone 10.0.0.21:15018 for [2001:db8:1::15]:80 as w1+extra wp-ip-svc"),
    ("service waypoint unknown", "c", "10.1.0.16:80", "refused: unknown waypoint: shop/nobody"),
    ("weights add up to nothing", "c", "10.1.0.18:80", "hbone 10.0.0.22:15008 for 10.1.0.18:80 as w2 wp-zero"),
    ("service waypoint with application tunnel", "c", "10.1.0.23:80", "hbone 10.0.0.23:15008 for 10.1.0.23:80 as w3 wp-tunnel"),
    ("service waypoint on another network", "c", "10.1.0.24:80", "refused: unknown network gateway: istio/gw"),
    ("waypoint, any port of the service", "c", "10.1.0.14:999", "hbone 10.0.0.21:15018 for 10.1.0.14:999 as w1+extra wp-svc"),
    ("passthrough service", "c", "10.1.0.20:80", "pass 10.1.0.20:80 -"),
    ("passthrough range", "c", "10.7.0.9:999", "pass 10.7.0.9:999 -"),
    ("passthrough range with waypoint, longer prefix", "c", "10.7.7.9:80", "hbone 10.0.0.21:15018 for 10.7.7.9:80 as w1+extra pass-wp"),
    ("address families, other than the target's", "c", "10.1.0.21:80", "hbone [2001:db8::11]:15008 for [2001:db8::11]:80 as e1 v6"),
    ("address families without an address", "c", "10.1.0.22:80", "refused: no valid routing destination for workload k//Pod/shop/e2"),
    ("pod", "c", "10.0.0.11:81", "hbone 10.0.0.11:15008 for 10.0.0.11:81 as e1 -"),
    ("plain pod", "c", "10.0.0.12:81", "tcp 10.0.0.12:81 -"),
    ("the address that was dialled, of several", "c", "10.0.0.42:81", "tcp 10.0.0.42:81 -"),
    ("unhealthy pod by address", "c", "10.0.0.13:81", "tcp 10.0.0.13:81 -"),
    ("pod itself", "e1", "10.0.0.11:81", "hbone 10.0.0.11:15008 for 10.0.0.11:81 as e1 -"),
    ("workload waypoint, HBONE though the pod is plain", "c", "10.0.0.31:80", "hbone 10.0.0.21:15018 for 10.0.0.31:80 as w1+extra -"),
    ("workload waypoint, asked by the waypoint", "w1", "10.0.0.31:80", "tcp 10.0.0.31:80 -"),
    ("workload waypoint unknown", "c", "10.0.0.32:80", "refused: unknown waypoint: shop/none"),
    ("workload waypoint is a workload by host name", "c", "10.0.0.33:80", "hbone 10.0.0.22:15008 for 10.0.0.33:80 as w2 -"),
    ("workload waypoint is a workload, asked by it", "w2", "10.0.0.33:80", "tcp 10.0.0.33:80 -"),
    ("workload waypoint skipped when service-addressed", "c", "10.1.0.25:80", "tcp 10.0.0.33:80 skip"),
    ("workload waypoint on another network", "c", "10.0.0.34:80", "refused: no valid routing destination for workload k//Pod/shop/w4"),
    ("pod of another network by address", "c", "10.9.0.1:80", "pass 10.9.0.1:80 -"),
    ("source on another network", "far", "10.1.0.1:80", "pass 10.1.0.1:80 -"),
    ("private service of the own namespace", "c", "10.1.0.19:80", "hbone 10.0.0.11:15008 for 10.0.0.11:80 as e1 private"),
    ("address of both a workload and a service", "c", "10.1.0.1:81", "hbone 10.0.0.11:15008 for 10.0.0.11:8181 as e1 hbone"),
];

#[test]
fn decisions() {
    let index = mesh();
    for (what, source, target, expected) in CASES {
        assert_eq!(decide(&index, source, target, 1), *expected, "{what}");
    }
}

#[test]
fn socks_port_is_ours_while_it_is_open() {
    let index = mesh();
    let asked = Flow {
        socks: true,
        ..flow(&index, "c", "127.0.0.1:15080")
    };
    let decision = route(&index, &asked, &mut SmallRng::seed_from_u64(1));
    assert_eq!(decision, Decision::Refuse(Refusal::SelfCall));
}

#[test]
fn private_service_is_nothing_to_other_namespaces() {
    let index = mesh();
    let stranger = Workload::default().with(|profile| profile.namespace = "other".into());
    let asked = Flow {
        source: Arc::new(stranger),
        ..flow(&index, "c", "10.1.0.19:80")
    };
    let decision = route(&index, &asked, &mut SmallRng::seed_from_u64(1));
    assert_eq!(shown(&decision), "pass 10.1.0.19:80 -");
}

#[test]
fn a_waypoint_is_recognised_by_identity_and_address() {
    let index = mesh();
    let waypoint = index.workload("k//Pod/shop/w1").expect("in the mesh");
    let asked = |source: Workload, client: &str| {
        let source = Arc::new(source);
        let client = format!("{client}:40000").parse().expect("an address");
        let asked = Flow {
            source,
            client,
            ..flow(&index, "c", "10.0.0.31:80")
        };
        shown(&route(&index, &asked, &mut SmallRng::seed_from_u64(1)))
    };
    let through = "hbone 10.0.0.21:15018 for 10.0.0.31:80 as w1+extra -";
    let same = Workload::clone(waypoint);
    assert_eq!(asked(same.clone(), "10.0.0.21"), "tcp 10.0.0.31:80 -");
    assert_eq!(asked(same.clone(), "10.0.0.99"), through);
    assert_eq!(
        asked(
            same.with(|profile| profile.service_account = "x".into()),
            "10.0.0.21"
        ),
        through
    );
}

#[test]
fn waypoints_are_drawn_by_weight() {
    let index = mesh();
    let mut drawn = BTreeMap::<String, u32>::new();
    for seed in 0..400 {
        *drawn
            .entry(decide(&index, "c", "10.1.0.17:80", seed))
            .or_default() += 1;
    }
    let first = "hbone 10.0.0.21:15018 for 10.1.0.17:80 as w1+extra wp-weighted";
    let second = "hbone 10.0.0.22:15009 for 10.1.0.17:80 as w2 wp-weighted";
    assert_eq!(drawn.keys().collect::<Vec<_>>(), [first, second]);
    assert!((70..130).contains(&drawn[first]), "{drawn:?}");
}

#[test]
fn host_names_go_on_when_resolved() {
    let index = mesh();
    let mut rng = SmallRng::seed_from_u64(1);
    let cases: &[(&str, &[&str], &str)] = &[
        ("10.1.0.9:80", &["192.0.2.1"], "tcp 192.0.2.1:81 dns"),
        (
            "10.1.0.9:80",
            &["2001:db8::9", "192.0.2.1"],
            "tcp 192.0.2.1:81 dns",
        ),
        ("10.1.0.9:80", &["2001:db8::9"], "tcp [2001:db8::9]:81 dns"),
        (
            "10.1.0.9:80",
            &[],
            "refused: no ip addresses were resolved for db.example",
        ),
        (
            "10.1.0.10:80",
            &["192.0.2.1"],
            "hbone 192.0.2.1:15008 for 192.0.2.1:81 as dns dns-hbone",
        ),
    ];
    for (target, addresses, expected) in cases {
        let Decision::Lacks(Lookup::Resolve(open)) =
            route(&index, &flow(&index, "c", target), &mut rng)
        else {
            panic!("{target} is known by host name");
        };
        assert_eq!(open.hostname(), "db.example");
        let addresses: Vec<IpAddr> = addresses
            .iter()
            .map(|a| a.parse().expect("an address"))
            .collect();
        assert_eq!(shown(&open.answer(&addresses, &mut rng)), *expected);
    }
}
