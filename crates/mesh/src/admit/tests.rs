//! Tables of cases for inbound connections.

use super::*;
use crate::local;

const CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 99)), 40000);

const MESH: &str = r#"
workloads:
- {uid: pod, name: pod, namespace: shop, serviceAccount: pod, workloadIps: [10.0.0.1], services: {shop/cart: {80: 8081}, shop/second: {}, shop/named: {}, shop/vips: {}}}
- {uid: other, namespace: shop, workloadIps: [10.0.0.2], services: {}}
- {uid: sick, namespace: shop, workloadIps: [10.0.0.7], status: Unhealthy, services: {shop/cart: {80: 8082}}}
- {uid: stated, namespace: shop, workloadIps: [10.0.0.8], services: {}}
- {uid: wp, namespace: shop, workloadIps: [10.0.0.3, "2001:db8::3"], hostname: wp-host, services: {shop/waypoint: {}}}
- {uid: wp-sick, namespace: shop, workloadIps: [10.0.0.9], status: Unhealthy, services: {shop/waypoint: {}}}
- {uid: b1, namespace: shop, workloadIps: [10.0.0.11], waypoint: {destination: shop/waypoint, hboneMtlsPort: 15008}, services: {}}
- {uid: b2, namespace: shop, workloadIps: [10.0.0.12], waypoint: {destination: /10.0.0.3, hboneMtlsPort: 15008}, services: {}}
- {uid: b3, namespace: shop, workloadIps: [10.0.0.13], waypoint: {destination: shop/wp-host, hboneMtlsPort: 15008}, services: {}}
- {uid: b4, namespace: shop, workloadIps: [10.0.0.14], waypoint: {destination: shop/gone, hboneMtlsPort: 15008}, services: {}}
- {uid: b5, namespace: shop, workloadIps: [10.0.0.15], waypoint: {destination: /10.1.0.3, hboneMtlsPort: 15008}, services: {}}
- {uid: b6, namespace: shop, network: net, workloadIps: [10.0.0.16], waypoint: {destination: shop/waypoint, hboneMtlsPort: 15008}, services: {}}
- {uid: b7, namespace: shop, workloadIps: [10.7.1.7], services: {}}
- {uid: b8, namespace: shop, workloadIps: [10.7.1.8], waypoint: {destination: /10.0.0.3, hboneMtlsPort: 15008}, services: {}}
- {uid: b9, namespace: shop, workloadIps: [10.1.0.4, 10.1.0.6], waypoint: {destination: shop/other-wp, hboneMtlsPort: 15008}, services: {}}
- {uid: other-wp, namespace: shop, workloadIps: [10.0.0.19], hostname: other-wp, services: {}}
- {uid: app, namespace: shop, workloadIps: [10.0.0.4], applicationTunnel: {protocol: NONE, port: 15088}, services: {}}
- {uid: app-as-asked, namespace: shop, workloadIps: [10.0.0.18], applicationTunnel: {protocol: NONE}, services: {}}
- {uid: proxied, namespace: shop, workloadIps: [10.0.0.5, "2001:db8::5"], network: net, applicationTunnel: {protocol: PROXY, port: 15088}, services: {}}
- {uid: proxied-as-asked, namespace: shop, workloadIps: [10.0.0.6], applicationTunnel: {protocol: PROXY}, services: {}}
services:
- {name: cart, namespace: shop, hostname: cart, vips: [/10.1.0.1], ports: {80: 8080, 81: 8181, 15: 15008, 16: 15080}, endpoints: {x: {workloadUid: stated, port: {80: 8083}}}}
- {name: second, namespace: shop, hostname: second, vips: [], ports: {9000: 9000}}
- {name: named, namespace: shop, hostname: named, vips: [], ports: {80: 0}}
- {name: vips, namespace: shop, hostname: vips, vips: ["/2001:db8:1::1", /10.1.0.9, "net/2001:db8:1::2"], ports: {80: 80}}
- {name: six, namespace: shop, hostname: six, vips: ["far/10.1.0.66", "net/2001:db8:1::6"], ports: {80: 80}}
- {name: hidden, namespace: other, hostname: hidden, vips: [], ports: {80: 80}, visibility: Namespace}
- {name: twice-other, namespace: other, hostname: twice, vips: [], ports: {80: 1}, canonical: true}
- {name: twice, namespace: shop, hostname: twice, vips: [], ports: {80: 2}}
- {name: waypoint, namespace: shop, hostname: waypoint, vips: [/10.1.0.3], ports: {15008: 15008}}
- {name: bound, namespace: shop, hostname: bound, vips: [/10.1.0.4], cidrVips: [{network: "", cidr: 10.7.0.0/16}], ports: {80: 80}, waypoint: {destination: shop/waypoint, hboneMtlsPort: 15008}}
- {name: private-bound, namespace: shop, hostname: private-bound, vips: [/10.1.0.6], ports: {80: 80}, visibility: Namespace, waypoint: {destination: shop/waypoint, hboneMtlsPort: 15008}}
- name: weighted
  namespace: shop
  hostname: weighted
  vips: [/10.1.0.5]
  ports: {80: 80}
  weightedWaypoints: [{destination: {destination: shop/waypoint, hboneMtlsPort: 15008}, weight: 1}]
"#;

fn mesh() -> Index {
    Index::build(local::parse(MESH).expect("a good file"))
}

/// The answer in one line.
fn shown(answer: &Result<Admitted, Rejection>) -> String {
    match answer {
        Ok(admitted) => {
            let service = admitted.service.as_ref().map_or("-", |s| &s.name);
            let header = admitted
                .proxy_header
                .as_ref()
                .map_or(String::new(), |header| {
                    format!(" proxy {}", header.destination)
                });
            format!(
                "{} as {} {service}{header}",
                admitted.to, admitted.destination
            )
        }
        Err(why) => format!("{}: {why}", why.status()),
    }
}

/// A request to a pod as its proxy hands it in.
fn connect<'a>(index: &'a Index, uid: &str, authority: &'a Authority) -> Connect<'a> {
    let local = index.workload(uid).expect("in the mesh");
    Connect {
        local,
        tunnel_local: local.addresses[0],
        client: CLIENT,
        identity: None,
        authority,
        forwarded_host: None,
        socks: false,
        localhost_app_tunnel: true,
        keep_source: true,
    }
}

fn parsed(authority: &str) -> Authority {
    Authority::parsed(authority)
}

fn ask(index: &Index, uid: &str, authority: &str, forwarded_host: Option<&str>) -> String {
    let authority = parsed(authority);
    let asked = Connect {
        forwarded_host,
        ..connect(index, uid, &authority)
    };
    shown(&admit(index, &asked))
}

/// What it is about, the pod, the authority, the answer.
type Case = (&'static str, &'static str, &'static str, &'static str);

fn check(cases: &[Case]) {
    let index = mesh();
    for (what, pod, authority, expected) in cases {
        assert_eq!(ask(&index, pod, authority, None), *expected, "{what}");
    }
}

/// routing.md §8.1: is the pod the one that is asked for?
#[rustfmt::skip]
const DESTINATIONS: &[Case] = &[
    ("host name", "pod", "cart:80", "10.0.0.1:8081 as 10.0.0.1:8081 cart"),
    ("host name of a Service that the pod is not in", "other", "cart:80", "10.0.0.2:8080 as 10.0.0.2:8080 cart"),
    ("own address", "pod", "10.0.0.1:7", "10.0.0.1:7 as 10.0.0.1:7 -"),
    ("own address, mapped", "pod", "[::ffff:10.0.0.1]:7", "10.0.0.1:7 as 10.0.0.1:7 -"),
    ("own address of the other family, mapped, another's", "pod", "[::ffff:10.0.0.2]:7", "400: ip mismatch: 10.0.0.1 != 10.0.0.2"),
    ("own address, another than the tunnel's", "wp", "[2001:db8::3]:7", "400: ip mismatch: 10.0.0.3 != 2001:db8::3"),
    ("application tunnel: any", "app", "192.0.2.1:80", "10.0.0.4:15088 as 10.0.0.4:15088 -"),
    ("waypoint of a workload, by service", "wp", "10.0.0.11:80", "10.0.0.3:80 as 10.0.0.3:80 -"),
    ("waypoint of a workload, by its address", "wp", "10.0.0.12:80", "10.0.0.3:80 as 10.0.0.3:80 -"),
    ("waypoint of a workload, by its host name", "wp", "10.0.0.13:80", "10.0.0.3:80 as 10.0.0.3:80 -"),
    ("waypoint of a workload, by the service's address", "wp", "10.0.0.15:80", "10.0.0.3:80 as 10.0.0.3:80 -"),
    ("waypoint of a service", "wp", "10.1.0.4:80", "10.0.0.3:80 as 10.0.0.3:80 -"),
    ("waypoint of a range", "wp", "10.7.1.1:80", "10.0.0.3:80 as 10.0.0.3:80 -"),
    ("waypoint of a service whose address a workload has too", "wp", "10.1.0.4:80", "10.0.0.3:80 as 10.0.0.3:80 -"),
    ("waypoint of a workload whose address a service has too", "other-wp", "10.1.0.4:80", "400: ip mismatch: 10.0.0.19 != 10.1.0.4"),
    ("waypoint of a range that holds a workload with none", "wp", "10.7.1.7:80", "400: ip mismatch: 10.0.0.3 != 10.7.1.7"),
    ("waypoint of a workload in a range", "wp", "10.7.1.8:80", "10.0.0.3:80 as 10.0.0.3:80 -"),
    ("waypoint in a weighted set only", "wp", "10.1.0.5:80", "400: ip mismatch: 10.0.0.3 != 10.1.0.5"),
    ("waypoint of a workload on another network", "wp", "10.0.0.16:80", "400: ip mismatch: 10.0.0.3 != 10.0.0.16"),
    ("waypoint that is no endpoint, for its health", "wp-sick", "10.0.0.11:80", "400: ip mismatch: 10.0.0.9 != 10.0.0.11"),
    ("waypoint that is gone", "wp", "10.0.0.14:80", "400: ip mismatch: 10.0.0.3 != 10.0.0.14"),
    ("another's waypoint", "pod", "10.0.0.11:80", "400: ip mismatch: 10.0.0.1 != 10.0.0.11"),
    ("another pod", "pod", "10.0.0.2:80", "400: ip mismatch: 10.0.0.1 != 10.0.0.2"),
    ("a service of the pod by its address", "pod", "10.1.0.1:80", "400: ip mismatch: 10.0.0.1 != 10.1.0.1"),
    ("unknown address", "pod", "192.0.2.1:80", "400: ip mismatch: 10.0.0.1 != 192.0.2.1"),
];

/// routing.md §8.2: which port?
#[rustfmt::skip]
const TARGETS: &[Case] = &[
    ("host name, endpoint's port", "pod", "cart:80", "10.0.0.1:8081 as 10.0.0.1:8081 cart"),
    ("host name, endpoint's port, stated by the Service", "stated", "cart:80", "10.0.0.8:8083 as 10.0.0.8:8083 cart"),
    ("host name, endpoint's port, whatever its health", "sick", "cart:80", "10.0.0.7:8082 as 10.0.0.7:8082 cart"),
    ("host name, Service's target port", "pod", "cart:81", "10.0.0.1:8181 as 10.0.0.1:8181 cart"),
    ("host name, undefined port", "pod", "cart:82", "503: requested service cart:82 found, but cannot resolve port"),
    ("host name, named port", "pod", "named:80", "503: requested service named:80 found, but cannot resolve port"),
    ("host name, unknown", "pod", "nobody:80", "503: no service or workload for hostname: nobody"),
    ("host name, not visible", "pod", "hidden:80", "503: no service or workload for hostname: hidden"),
    ("host name of several: the own namespace's before the canonical", "pod", "twice:80", "10.0.0.1:2 as 10.0.0.1:2 twice"),
    ("address: the port as given, though a Service has it as service port", "pod", "10.0.0.1:80", "10.0.0.1:80 as 10.0.0.1:80 vips"),
    ("address, endpoint's port", "pod", "10.0.0.1:8081", "10.0.0.1:8081 as 10.0.0.1:8081 cart"),
    ("address, target port", "pod", "10.0.0.1:8181", "10.0.0.1:8181 as 10.0.0.1:8181 cart"),
    ("address, second service", "pod", "10.0.0.1:9000", "10.0.0.1:9000 as 10.0.0.1:9000 second"),
    // step 6: ports of ours, after the destination and before the tunnel
    ("own port", "pod", "10.0.0.1:15001", "503: attempted recursive call to ourselves"),
    ("own port, 15006", "pod", "10.0.0.1:15006", "503: attempted recursive call to ourselves"),
    ("own port, 15008", "pod", "10.0.0.1:15008", "503: attempted recursive call to ourselves"),
    ("own port, by a service's mapping", "pod", "cart:15", "503: attempted recursive call to ourselves"),
    ("own port, another address", "pod", "10.0.0.2:15006", "400: ip mismatch: 10.0.0.1 != 10.0.0.2"),
    ("own port, before the override", "app", "10.0.0.4:15008", "503: attempted recursive call to ourselves"),
    ("SOCKS port while it is closed", "pod", "10.0.0.1:15080", "10.0.0.1:15080 as 10.0.0.1:15080 cart"),
];

/// routing.md §9: application tunnels.
#[rustfmt::skip]
const TUNNELS: &[Case] = &[
    ("NONE, no port", "app-as-asked", "10.0.0.18:80", "10.0.0.18:80 as 10.0.0.18:80 -"),
    ("NONE, port", "app", "10.0.0.4:80", "10.0.0.4:15088 as 10.0.0.4:15088 -"),
    ("NONE, port, host name", "app", "cart:80", "10.0.0.4:15088 as 10.0.0.4:15088 cart"),
    ("PROXY, port", "proxied", "10.0.0.5:80", "127.0.0.1:15088 as 10.0.0.5:15088 - proxy 10.0.0.5:80"),
    ("PROXY, port, any address", "proxied", "192.0.2.1:80", "127.0.0.1:15088 as 10.0.0.5:15088 - proxy 192.0.2.1:80"),
    ("PROXY, no port", "proxied-as-asked", "10.0.0.6:80", "127.0.0.1:80 as 10.0.0.6:80 - proxy 10.0.0.6:80"),
    ("PROXY, mapped address", "proxied", "[::ffff:192.0.2.1]:80", "127.0.0.1:15088 as 10.0.0.5:15088 - proxy 192.0.2.1:80"),
    ("PROXY, an address of another family than the client's, so UNSPEC", "proxied", "[2001:db8:9::1]:80", "127.0.0.1:15088 as 10.0.0.5:15088 - proxy [2001:db8:9::1]:80"),
    ("PROXY, host name: VIP of another family than the client's, so UNSPEC", "proxied", "six:80", "127.0.0.1:15088 as 10.0.0.5:15088 six proxy [2001:db8:1::6]:80"),
    ("PROXY, host name: VIP of the own network first", "proxied", "vips:80", "127.0.0.1:15088 as 10.0.0.5:15088 vips proxy [2001:db8:1::2]:80"),
    ("PROXY, host name: then IPv4 first", "proxied-as-asked", "vips:80", "127.0.0.1:80 as 10.0.0.6:80 vips proxy 10.1.0.9:80"),
    ("PROXY, host name: the port as asked for", "proxied-as-asked", "cart:81", "127.0.0.1:8181 as 10.0.0.6:8181 cart proxy 10.1.0.1:81"),
    ("PROXY, host name: no VIP", "proxied", "second:9000", "503: service second has no address to state in a PROXY header"),
];

#[test]
fn destinations() {
    check(DESTINATIONS);
}

#[test]
fn targets() {
    check(TARGETS);
}

#[test]
fn tunnels() {
    check(TUNNELS);
}

#[test]
fn a_proxy_header_states_client_and_identity() {
    let index = mesh();
    let (authority, identity) = (parsed("[2001:db8::5]:80"), SpiffeId::new("td", "a", "b"));
    let asked = Connect {
        tunnel_local: "2001:db8::5".parse().expect("an address"),
        client: "[::ffff:10.0.0.99]:40000".parse().expect("an address"),
        identity: Some(&identity),
        ..connect(&index, "proxied", &authority)
    };
    let admitted = admit(&index, &asked).expect("admitted");
    let header = ProxyHeader {
        source: CLIENT,
        destination: "[2001:db8::5]:80".parse().expect("an address"),
        identity: Some(identity.clone()),
    };
    assert_eq!(admitted.proxy_header, Some(header));
}

/// routing.md §8.4 and §10.
#[test]
fn the_source_is_kept_where_it_can_be() {
    let index = mesh();
    // pod, authority, client, delivered on loopback, kept with a listener that keeps sources
    let cases = [
        ("pod", "10.0.0.1:7", "10.0.0.99", true, Some("10.0.0.99")),
        (
            "pod",
            "10.0.0.1:7",
            "::ffff:10.0.0.99",
            true,
            Some("10.0.0.99"),
        ),
        (
            "pod",
            "10.0.0.1:7",
            "2001:db8::9",
            true,
            Some("2001:db8::9"),
        ),
        ("pod", "10.0.0.1:7", "10.0.0.1", true, None),
        ("pod", "10.0.0.1:7", "::ffff:10.0.0.1", true, None),
        ("app", "10.0.0.4:7", "10.0.0.99", true, Some("10.0.0.99")),
        ("proxied", "10.0.0.5:7", "10.0.0.99", true, None),
        (
            "proxied",
            "10.0.0.5:7",
            "10.0.0.99",
            false,
            Some("10.0.0.99"),
        ),
    ];
    for (pod, authority, client, localhost_app_tunnel, expected) in cases {
        let authority = parsed(authority);
        let asked = |keep_source| Connect {
            client: SocketAddr::new(client.parse().expect("an address"), 40000),
            localhost_app_tunnel,
            keep_source,
            ..connect(&index, pod, &authority)
        };
        let from = |keep| admit(&index, &asked(keep)).expect("admitted").from;
        let expected = expected.map(|ip| ip.parse().expect("an address"));
        assert_eq!(from(true), expected, "{pod} {client}");
        assert_eq!(from(false), None, "{pod} {client}, listener of the own pod");
    }
}

#[test]
fn what_the_index_does_not_answer() {
    let index = mesh();
    let cases = [
        ("own address", "pod", "10.0.0.1:80", None),
        ("own address, mapped", "pod", "[::ffff:10.0.0.1]:80", None),
        ("application tunnel", "app", "192.0.2.1:80", None),
        ("known workload", "wp", "10.0.0.11:80", None),
        ("known VIP", "wp", "10.1.0.4:80", None),
        ("workload in a range", "wp", "10.7.1.7:80", None),
        ("only a range", "wp", "10.7.1.1:80", Some("/10.7.1.1")),
        ("unknown address", "wp", "192.0.2.1:80", Some("/192.0.2.1")),
        (
            "on the pod's own network",
            "wp",
            "10.0.0.16:80",
            Some("/10.0.0.16"),
        ),
        ("known host", "pod", "cart:80", None),
        ("known host, unknown port", "pod", "cart:82", None),
        ("unknown host", "pod", "nobody:80", Some("shop/nobody")),
        (
            "host that is not visible",
            "pod",
            "hidden:80",
            Some("shop/hidden"),
        ),
    ];
    for (what, pod, authority, expected) in cases {
        let authority = parsed(authority);
        let asked = match lookup_inbound(&index, &connect(&index, pod, &authority)) {
            Some(Name::Address(at)) => Some(at.to_string()),
            Some(Name::Host(name)) => Some(name.to_string()),
            None => None,
        };
        assert_eq!(asked.as_deref(), expected, "{what}");
    }
}

/// What a peer means by an address is what its own proxy means: a Service that it may not see is not there for it.
#[test]
fn addresses_are_seen_with_the_eyes_of_the_peer() {
    let index = mesh();
    let authority = parsed("10.1.0.6:80");
    let cases = [
        ("shop", "wp", true),
        ("shop", "other-wp", false),
        ("elsewhere", "wp", false),
        ("elsewhere", "other-wp", true),
    ];
    for (namespace, pod, admitted) in cases {
        let identity = SpiffeId::new("td", namespace, "a");
        let asked = Connect {
            identity: Some(&identity),
            ..connect(&index, pod, &authority)
        };
        assert_eq!(admit(&index, &asked).is_ok(), admitted, "{namespace} {pod}");
        assert_eq!(lookup_inbound(&index, &asked), None);
    }
}

/// routing.md §10: the daemon's own pod, whose listener keeps no source.
#[test]
fn the_own_pod_is_admitted_like_any() {
    let index = mesh();
    let asked_for = |authority: &str| {
        let authority = parsed(authority);
        let asked = Connect {
            keep_source: false,
            ..connect(&index, "pod", &authority)
        };
        admit(&index, &asked)
    };
    let metrics = asked_for("10.0.0.1:15020").expect("admitted");
    assert_eq!((metrics.to.port(), metrics.from), (15020, None));
    assert_eq!(asked_for("10.0.0.1:15008"), Err(Rejection::SelfCall));
    assert!(asked_for("10.0.0.2:15020").is_err());
}

/// routing.md §8 step 3 and §11 step 2: without its workload a pod takes nothing. Who is asked for, is not in the state.
#[test]
fn an_unknown_local_workload_is_not_found() {
    let index = mesh();
    let cases = [
        ("shop", "pod", "pod", true),
        ("shop", "pod", "other", false),
        ("shop", "gone", "pod", false),
        ("other", "pod", "pod", false),
    ];
    for (namespace, name, account, known) in cases {
        let found = index.local_workload(namespace, name, account);
        assert_eq!(found.is_some(), known, "{namespace}/{name} {account}");
    }
}

#[test]
fn the_forwarded_host_only_names_the_service() {
    let index = mesh();
    let cases = [
        (
            "10.0.0.1:8081",
            "second",
            "10.0.0.1:8081 as 10.0.0.1:8081 second",
        ),
        (
            "10.0.0.1:8081",
            "nobody",
            "10.0.0.1:8081 as 10.0.0.1:8081 cart",
        ),
        (
            "10.0.0.1:8081",
            "waypoint",
            "10.0.0.1:8081 as 10.0.0.1:8081 cart",
        ),
        ("10.0.0.1:7", "cart", "10.0.0.1:7 as 10.0.0.1:7 cart"),
        ("cart:80", "second", "10.0.0.1:8081 as 10.0.0.1:8081 cart"),
        (
            "10.0.0.2:80",
            "cart",
            "400: ip mismatch: 10.0.0.1 != 10.0.0.2",
        ),
    ];
    for (authority, host, expected) in cases {
        assert_eq!(
            ask(&index, "pod", authority, Some(host)),
            expected,
            "{authority} {host}"
        );
    }
}

#[test]
fn application_tunnels_without_loopback() {
    let index = mesh();
    let authority = parsed("10.0.0.5:80");
    let asked = connect(&index, "proxied", &authority);
    let elsewhere = Connect {
        localhost_app_tunnel: false,
        ..asked
    };
    assert_eq!(
        shown(&admit(&index, &elsewhere)),
        "10.0.0.5:15088 as 10.0.0.5:15088 - proxy 10.0.0.5:80"
    );
    let six = Connect {
        tunnel_local: asked.local.addresses[1],
        ..asked
    };
    assert_eq!(
        shown(&admit(&index, &six)),
        "[::1]:15088 as [2001:db8::5]:15088 - proxy 10.0.0.5:80"
    );
}

#[test]
fn socks_port_is_ours_while_it_is_open() {
    let index = mesh();
    for authority in ["10.0.0.1:15080", "cart:16"] {
        let authority = parsed(authority);
        let asked = Connect {
            socks: true,
            ..connect(&index, "pod", &authority)
        };
        assert_eq!(admit(&index, &asked), Err(Rejection::SelfCall));
    }
}

#[test]
fn plain_connections() {
    // routing.md §11
    let index = mesh();
    let local = index.workload("pod").expect("in the mesh");
    let cases = [
        (
            "10.0.0.1:8081",
            false,
            "10.0.0.1:8081 as 10.0.0.1:8081 cart",
        ),
        (
            "[::ffff:10.0.0.1]:9000",
            false,
            "10.0.0.1:9000 as 10.0.0.1:9000 second",
        ),
        ("192.0.2.1:7", false, "192.0.2.1:7 as 192.0.2.1:7 -"),
        (
            "10.0.0.1:15001",
            false,
            "503: attempted recursive call to ourselves",
        ),
        (
            "10.0.0.1:15006",
            false,
            "503: attempted recursive call to ourselves",
        ),
        (
            "10.0.0.1:15008",
            false,
            "503: attempted recursive call to ourselves",
        ),
        (
            "10.0.0.1:15080",
            false,
            "10.0.0.1:15080 as 10.0.0.1:15080 cart",
        ),
        (
            "10.0.0.1:15080",
            true,
            "503: attempted recursive call to ourselves",
        ),
    ];
    for (target, socks, expected) in cases {
        let target = target.parse().expect("an address");
        assert_eq!(
            shown(&admit_plain(
                &index,
                &Plain {
                    local,
                    target,
                    client: CLIENT,
                    socks,
                    keep_source: true,
                }
            )),
            expected,
            "{target} {socks}"
        );
    }
}

/// routing.md §11: no hairpin to a waypoint.
#[test]
fn plain_connections_to_a_pod_behind_a_waypoint_are_delivered() {
    let index = mesh();
    for uid in ["b1", "b2", "b4", "wp"] {
        let local = index.workload(uid).expect("in the mesh");
        let target = SocketAddr::new(local.addresses[0], 80);
        let plain = Plain {
            local,
            target,
            client: CLIENT,
            socks: false,
            keep_source: true,
        };
        let admitted = admit_plain(&index, &plain).expect("admitted");
        assert_eq!(
            (admitted.to, admitted.destination, admitted.from),
            (target, target, Some(CLIENT.ip())),
            "{uid}"
        );
    }
}

#[test]
fn plain_connections_keep_their_source() {
    let index = mesh();
    let from = |client: &str, keep_source| {
        let plain = Plain {
            local: index.workload("pod").expect("in the mesh"),
            target: "10.0.0.1:7".parse().expect("an address"),
            client: SocketAddr::new(client.parse().expect("an address"), 40000),
            socks: false,
            keep_source,
        };
        admit_plain(&index, &plain).expect("admitted").from
    };
    assert_eq!(from("10.0.0.99", true), Some(CLIENT.ip()));
    assert_eq!(from("::ffff:10.0.0.99", true), Some(CLIENT.ip()));
    assert_eq!(from("10.0.0.1", true), None);
    assert_eq!(from("10.0.0.99", false), None);
}
