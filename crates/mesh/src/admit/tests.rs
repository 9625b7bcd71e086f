//! Tables of cases for inbound connections.

use super::*;
use crate::local;

const CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 99)), 40000);

const MESH: &str = r#"
workloads:
- {uid: pod, name: pod, namespace: shop, serviceAccount: pod, workloadIps: [10.0.0.1], services: {shop/cart: {80: 8081}, shop/second: {}, shop/named: {}, shop/vips: {}}}
- {uid: other, namespace: shop, workloadIps: [10.0.0.2], services: {}}
- {uid: wp, namespace: shop, workloadIps: [10.0.0.3], hostname: wp-host, services: {shop/waypoint: {}}}
- {uid: b1, namespace: shop, workloadIps: [10.0.0.11], waypoint: {destination: shop/waypoint, hboneMtlsPort: 15008}, services: {}}
- {uid: b2, namespace: shop, workloadIps: [10.0.0.12], waypoint: {destination: /10.0.0.3, hboneMtlsPort: 15008}, services: {}}
- {uid: b3, namespace: shop, workloadIps: [10.0.0.13], waypoint: {destination: shop/wp-host, hboneMtlsPort: 15008}, services: {}}
- {uid: b4, namespace: shop, workloadIps: [10.0.0.14], waypoint: {destination: shop/gone, hboneMtlsPort: 15008}, services: {}}
- {uid: app, namespace: shop, workloadIps: [10.0.0.4], applicationTunnel: {protocol: NONE, port: 15088}, services: {}}
- {uid: proxied, namespace: shop, workloadIps: [10.0.0.5, "2001:db8::5"], network: net, applicationTunnel: {protocol: PROXY, port: 15088}, services: {}}
- {uid: proxied-as-asked, namespace: shop, workloadIps: [10.0.0.6], applicationTunnel: {protocol: PROXY}, services: {}}
services:
- {name: cart, namespace: shop, hostname: cart, vips: [/10.1.0.1], ports: {80: 8080, 81: 8181, 15: 15008}}
- {name: second, namespace: shop, hostname: second, vips: [], ports: {9000: 9000}}
- {name: named, namespace: shop, hostname: named, vips: [], ports: {80: 0}}
- {name: vips, namespace: shop, hostname: vips, vips: ["/2001:db8:1::1", /10.1.0.9, "net/2001:db8:1::2"], ports: {80: 80}}
- {name: hidden, namespace: other, hostname: hidden, vips: [], ports: {80: 80}, visibility: Namespace}
- {name: waypoint, namespace: shop, hostname: waypoint, vips: [/10.1.0.3], ports: {15008: 15008}}
- {name: bound, namespace: shop, hostname: bound, vips: [/10.1.0.4], ports: {80: 80}, waypoint: {destination: shop/waypoint, hboneMtlsPort: 15008}}
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

fn ask(index: &Index, uid: &str, authority: &str, forwarded_host: Option<&str>) -> String {
    let local = index.workload(uid).expect("in the mesh");
    let authority = authority.parse().expect("well formed");
    shown(&admit(
        index,
        &Connect {
            local,
            tunnel_local: local.addresses[0],
            client: CLIENT,
            identity: None,
            keep_source: true,
            authority: &authority,
            forwarded_host,
            socks: false,
            localhost_app_tunnel: true,
        },
    ))
}

#[rustfmt::skip]
const CASES: &[(&str, &str, &str, &str)] = &[
    // what, pod, authority, answer
    ("own address, endpoint's port", "pod", "10.0.0.1:8081", "10.0.0.1:8081 as 10.0.0.1:8081 cart"),
    ("own address, target port", "pod", "10.0.0.1:8181", "10.0.0.1:8181 as 10.0.0.1:8181 cart"),
    ("own address, second service", "pod", "10.0.0.1:9000", "10.0.0.1:9000 as 10.0.0.1:9000 second"),
    ("own address, any port", "pod", "10.0.0.1:7", "10.0.0.1:7 as 10.0.0.1:7 -"),
    ("own address, mapped", "pod", "[::ffff:10.0.0.1]:7", "10.0.0.1:7 as 10.0.0.1:7 -"),
    ("another address", "pod", "10.0.0.2:80", "400: ip mismatch: 10.0.0.1 != 10.0.0.2"),
    ("unknown address", "pod", "192.0.2.1:80", "400: ip mismatch: 10.0.0.1 != 192.0.2.1"),
    ("service address", "pod", "10.1.0.1:80", "400: ip mismatch: 10.0.0.1 != 10.1.0.1"),
    ("own port", "pod", "10.0.0.1:15001", "503: attempted recursive call to ourselves"),
    ("own port, another address", "pod", "10.0.0.2:15006", "400: ip mismatch: 10.0.0.1 != 10.0.0.2"),
    ("SOCKS port while it is closed", "pod", "10.0.0.1:15080", "10.0.0.1:15080 as 10.0.0.1:15080 -"),
    ("host name, endpoint's port", "pod", "cart:80", "10.0.0.1:8081 as 10.0.0.1:8081 cart"),
    ("host name, target port", "pod", "cart:81", "10.0.0.1:8181 as 10.0.0.1:8181 cart"),
    ("host name, undefined port", "pod", "cart:82", "503: requested service cart:82 found, but cannot resolve port"),
    ("host name, named port", "pod", "named:80", "503: requested service named:80 found, but cannot resolve port"),
    ("host name, own port", "pod", "cart:15", "503: attempted recursive call to ourselves"),
    ("host name, unknown", "pod", "nobody:80", "503: no service or workload for hostname: nobody"),
    ("host name, not visible", "pod", "hidden:80", "503: no service or workload for hostname: hidden"),
    ("waypoint by service", "wp", "10.0.0.11:80", "10.0.0.3:80 as 10.0.0.3:80 -"),
    ("waypoint by address", "wp", "10.0.0.12:80", "10.0.0.3:80 as 10.0.0.3:80 -"),
    ("waypoint by workload host name", "wp", "10.0.0.13:80", "10.0.0.3:80 as 10.0.0.3:80 -"),
    ("waypoint of a service", "wp", "10.1.0.4:80", "10.0.0.3:80 as 10.0.0.3:80 -"),
    ("waypoint in a weighted set only", "wp", "10.1.0.5:80", "400: ip mismatch: 10.0.0.3 != 10.1.0.5"),
    ("waypoint that is gone", "wp", "10.0.0.14:80", "400: ip mismatch: 10.0.0.3 != 10.0.0.14"),
    ("waypoint of something else", "pod", "10.0.0.11:80", "400: ip mismatch: 10.0.0.1 != 10.0.0.11"),
    ("application tunnel, port override", "app", "192.0.2.1:80", "10.0.0.4:15088 as 10.0.0.4:15088 -"),
    ("application tunnel, own port before the override", "app", "10.0.0.4:15008", "503: attempted recursive call to ourselves"),
    ("PROXY on loopback", "proxied", "10.0.0.5:80", "127.0.0.1:15088 as 10.0.0.5:15088 - proxy 10.0.0.5:80"),
    ("PROXY for any address", "proxied", "192.0.2.1:80", "127.0.0.1:15088 as 10.0.0.5:15088 - proxy 192.0.2.1:80"),
    ("PROXY without port", "proxied-as-asked", "10.0.0.6:80", "127.0.0.1:80 as 10.0.0.6:80 - proxy 10.0.0.6:80"),
    ("PROXY for a host name, own network first", "proxied", "vips:80", "127.0.0.1:15088 as 10.0.0.5:15088 vips proxy [2001:db8:1::2]:80"),
    ("PROXY for a host name, then IPv4 first", "proxied-as-asked", "vips:80", "127.0.0.1:80 as 10.0.0.6:80 vips proxy 10.1.0.9:80"),
    ("PROXY for a host name without address", "proxied", "second:9000", "503: service second has no address to state in a PROXY header"),
];

#[test]
fn answers() {
    let index = mesh();
    for (what, pod, authority, expected) in CASES {
        assert_eq!(ask(&index, pod, authority, None), *expected, "{what}");
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
    let local = index.workload("proxied").expect("in the mesh");
    let authority = "10.0.0.5:80".parse().expect("well formed");
    let asked = Connect {
        local,
        tunnel_local: local.addresses[0],
        client: CLIENT,
        identity: None,
        keep_source: true,
        authority: &authority,
        forwarded_host: None,
        socks: true,
        localhost_app_tunnel: false,
    };
    assert_eq!(
        shown(&admit(&index, &asked)),
        "10.0.0.5:15088 as 10.0.0.5:15088 - proxy 10.0.0.5:80"
    );
    let six = Connect {
        tunnel_local: local.addresses[1],
        localhost_app_tunnel: true,
        ..asked
    };
    assert_eq!(
        shown(&admit(&index, &six)),
        "[::1]:15088 as [2001:db8::5]:15088 - proxy 10.0.0.5:80"
    );
    let socks = "10.0.0.5:15080".parse().expect("well formed");
    let answer = admit(
        &index,
        &Connect {
            authority: &socks,
            ..asked
        },
    );
    assert_eq!(answer, Err(Rejection::SelfCall));
}

#[test]
fn plain_connections() {
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
            "10.0.0.1:15080 as 10.0.0.1:15080 -",
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

#[test]
fn the_source_is_kept_where_it_can_be() {
    let cases = [
        ("10.0.0.1:80", "10.0.0.2", true),
        ("10.0.0.1:80", "::ffff:10.0.0.2", true),
        ("10.0.0.1:80", "10.0.0.1", false),
        ("10.0.0.1:80", "::ffff:10.0.0.1", false),
        ("127.0.0.1:80", "10.0.0.2", false),
        ("[::1]:80", "2001:db8::2", false),
    ];
    for (to, client, expected) in cases {
        let to = to.parse().expect("an address");
        let client = SocketAddr::new(client.parse().expect("an address"), 40000);
        let from = expected.then(|| client.ip().to_canonical());
        assert_eq!(kept(client, to, true), from, "{to} {client}");
        assert_eq!(kept(client, to, false), None, "{to} {client}");
    }
}
