//! Tables of cases for the local file.

use super::*;
use crate::policy::StringMatch;
use crate::workload::{Destination, Protocol, TunnelFormat, WorkloadType};

const EXAMPLE: &str = r#"
workloads:
- uid: demo//Pod/shop/cart-0
  name: cart-0
  namespace: shop
  serviceAccount: cart
  trustDomain: cluster.local
  workloadIps: ["10.1.0.7"]
  protocol: HBONE
  node: n1
  services:
    shop/cart.shop.svc.cluster.local:
      80: 8080
  authorizationPolicies: ["shop/only-web"]
- uid: demo//Pod/shop/web-0
  name: web-0
  namespace: shop
  serviceAccount: web
  trustDomain: cluster.local
  workloadIps: ["10.1.0.9"]
  node: n1
  services: {}
services:
- name: cart
  namespace: shop
  hostname: cart.shop.svc.cluster.local
  vips: ["/10.2.0.4"]
  ports: {80: 8080}
  canonical: true
policies:
- name: only-web
  namespace: shop
  scope: WorkloadSelector
  action: Allow
  dryRun: false
  rules:
  - - - principals: [!Exact "cluster.local/ns/shop/sa/web", !Prefix a, !Suffix b, !Presence []]
        destinationPorts: [8080]
        whatever: 1
"#;

const FULL: &str = include_str!("../laws/local.yaml");

fn workloads(text: &str) -> Vec<Arc<crate::Workload>> {
    let resources = parse(text).expect("a good file");
    resources
        .into_iter()
        .filter_map(|r| {
            if let Resource::Workload(w) = r {
                Some(w)
            } else {
                None
            }
        })
        .collect()
}

#[test]
fn reads_the_example() {
    let resources = parse(EXAMPLE).expect("a good file");
    assert_eq!(resources.len(), 4);
    let [cart, web] = &workloads(EXAMPLE)[..] else {
        panic!("two workloads")
    };
    assert_eq!(
        cart.identity().to_string(),
        "spiffe://cluster.local/ns/shop/sa/cart"
    );
    assert_eq!(
        (cart.protocol, web.protocol),
        (Protocol::Hbone, Protocol::Tcp)
    );
    let part = cart
        .membership("shop", "cart.shop.svc.cluster.local")
        .expect("the service is on its list");
    assert_eq!(part.ports.target(80), Some(8080));
    assert!(
        Arc::ptr_eq(&cart.namespace, &web.namespace),
        "names are shared"
    );
    let Some(Resource::Policy(policy)) = resources.last() else {
        panic!("a policy")
    };
    assert_eq!(&*policy.key, "shop/only-web");
    let [exact, prefix, suffix, presence] = &policy.rules[0][0][0].principals[..] else {
        panic!("four")
    };
    assert_eq!(
        *exact,
        StringMatch::Exact("cluster.local/ns/shop/sa/web".into())
    );
    assert_eq!(
        (prefix, suffix),
        (
            &StringMatch::Prefix("a".into()),
            &StringMatch::Suffix("b".into())
        )
    );
    assert_eq!(*presence, StringMatch::Presence);
}

#[test]
fn reads_every_key() {
    let w = &workloads(FULL)[0];
    assert_eq!(
        w.addresses
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["10.0.0.1", "2001:db8::1"]
    );
    assert_eq!(
        (w.workload_type, w.capacity, w.native_tunnel),
        (Some(WorkloadType::Pod), 3, true)
    );
    let tunnel = w.application_tunnel.expect("given");
    assert_eq!(
        (tunnel.protocol, tunnel.port),
        (TunnelFormat::Proxy, Some(15088))
    );
    let kinds =
        [&w.waypoint, &w.network_gateway].map(|g| g.as_deref().expect("given").destination.clone());
    assert!(matches!(
        kinds,
        [Destination::Address(_), Destination::Hostname(_)]
    ));
    let json = serde_json::to_value(crate::dump::static_config(
        &parse(FULL).expect("a good file"),
    ))
    .expect("plain");
    let expected = serde_json::json!({
        "policies": [{
            "action": "Deny", "dryRun": true, "name": "p", "namespace": "a", "scope": "Global",
            "rules": [[[{
                "destinationIps": ["10.0.0.0/8"], "namespaces": [{"Exact": "x"}],
                "notDestinationIps": ["10.0.0.0/8"], "notDestinationPorts": [1],
                "notNamespaces": [{"Exact": "x"}], "notPrincipals": [{"Presence": []}],
                "notServiceAccounts": [{"namespace": "a", "serviceAccount": "b"}],
                "notSourceIps": ["2001:db8::/32"],
                "serviceAccounts": [{"namespace": "a", "serviceAccount": "b"}], "sourceIps": ["10.0.0.0/8"],
            }]]],
        }],
        "services": [{
            "canonical": true, "cidrVips": [{"cidr": "10.8.0.0/16", "network": "net"}],
            "endpoints": {"x": {"port": {"80": 81}, "status": "Unhealthy", "workloadUid": "x"}},
            "hostname": "h", "ipFamilies": "IPv6",
            "loadBalancer": {
                "healthPolicy": "AllowAll", "mode": "Failover",
                "routingPreferences": ["Region", "Zone", "Subzone", "Node", "Cluster", "Network"],
            },
            "name": "svc", "namespace": "a", "ports": {"80": 8080},
            "subjectAltNames": ["spiffe://td/ns/a/sa/s"], "vips": ["net/10.9.0.1"], "visibility": "Namespace",
            "waypoint": {"destination": "a/w", "hboneMtlsPort": 15008},
            "weightedWaypoints": [{"destination": {"destination": "a/w2", "hboneMtlsPort": 15008}, "weight": 2}],
        }],
        "workloads": [{
            "applicationTunnel": {"port": 15088, "protocol": "PROXY"}, "authorizationPolicies": ["a/p"],
            "canonicalName": "cn", "canonicalRevision": "cr", "capacity": 3, "clusterId": "c",
            "hostname": "host.example", "locality": {"region": "r", "subzone": "s", "zone": "z"},
            "name": "n", "namespace": "a", "nativeTunnel": true, "network": "net",
            "networkGateway": {"destination": "a/gw.a", "hboneMtlsPort": 15009}, "networkMode": "HostNetwork",
            "node": "o", "protocol": "HBONE", "serviceAccount": "s",
            "services": {"a/h": {"80": 8080, "443": 0}}, "status": "Unhealthy", "trustDomain": "td", "uid": "u",
            "waypoint": {"destination": "net/10.0.0.9", "hboneMtlsPort": 15008},
            "workloadIps": ["10.0.0.1", "2001:db8::1"], "workloadName": "wn", "workloadType": "pod",
        }],
    });
    assert_eq!(json, expected);
}

#[test]
fn an_unknown_workload_type_counts_as_deployment() {
    for (kind, expected) in [
        ("cronjob", Some(WorkloadType::CronJob)),
        ("Pod", Some(WorkloadType::Pod)),
        ("ReplicaSet", Some(WorkloadType::Deployment)),
        ("''", None),
    ] {
        let text = format!(
            "workloads: [{{workloadIps: [], namespace: a, services: {{}}, workloadType: {kind}}}]"
        );
        assert_eq!(workloads(&text)[0].workload_type, expected, "{kind}");
    }
}

#[test]
fn what_is_left_out_has_its_default() {
    let text = "workloads: [{workloadIps: [], namespace: a, services: {}}]";
    let expected = crate::Workload::default().with(|w| w.namespace = "a".into());
    assert_eq!(*workloads(text)[0], expected);
    assert_eq!((&*expected.trust_domain, expected.capacity), ("", 1));
    let text = "services: [{name: s, namespace: a, hostname: h, vips: [], ports: {}}]";
    let expected = crate::Service {
        name: "s".into(),
        namespace: "a".into(),
        hostname: "h".into(),
        ..crate::Service::default()
    };
    assert_eq!(
        parse(text).expect("a good file"),
        [Resource::Service(expected.into())]
    );
}

#[test]
fn gateways_are_addresses_or_host_names() {
    let cases = [
        ("net/10.0.0.9", Some("net/10.0.0.9")),
        ("/10.0.0.9", Some("/10.0.0.9")),
        ("'net/::ffff:10.0.0.9'", Some("net/10.0.0.9")),
        ("shop/gw.example", Some("shop/gw.example")),
        ("shop/10.0.0.900", Some("shop/10.0.0.900")),
        ("10.0.0.9", None),
        ("gw.example", None),
        ("shop/", None),
    ];
    for (gateway, expected) in cases {
        let text = format!(
            "workloads: [{{workloadIps: [], namespace: a, services: {{}}, waypoint: {{destination: {gateway}, hboneMtlsPort: 1}}}}]"
        );
        let read = parse(&text).ok().map(|_| {
            let waypoint = workloads(&text)[0].waypoint.clone().expect("given");
            let is_address = matches!(waypoint.destination, Destination::Address(_));
            assert_eq!(is_address, !gateway.starts_with("shop"), "{gateway}");
            waypoint.destination.to_string()
        });
        assert_eq!(read.as_deref(), expected, "{gateway}");
    }
}

#[test]
fn nothing_is_a_file_too() {
    for text in [
        "",
        "# only a comment\n",
        "{}",
        "---\n",
        "workloads:\nservices: []\n",
    ] {
        assert_eq!(parse(text), Ok(Vec::new()), "{text:?}");
    }
}

/// What to change in the example, and what the error then says: line, path, a part of the problem.
#[rustfmt::skip]
const BAD: &[(&str, &str, u64, &str, &str)] = &[
    ("10.1.0.7", "10.1.0.700", 8, "workloads[0].workloadIps[0]", r#"string "10.1.0.700", expected an IP address"#),
    ("80: 8080}", "80: 80800}", 28, "services[0].ports.80", "`80800`, expected a port number from 0 to 65535"),
    ("80: 8080}", "80: -1}", 28, "services[0].ports.80", "`-1`, expected a port number from 0 to 65535"),
    ("80: 8080}", "x: 1}", 28, "services[0].ports.x", r#"string "x", expected a port number from 0 to 65535"#),
    ("canonical: true", "canonicl: true", 29, "services[0].canonicl", "unknown field `canonicl`, expected one of name"),
    ("workloads:", "workload:", 2, "workload", "unknown field `workload`, expected one of workloads, services, policies"),
    ("canonical: true", "canonical: yes", 29, "services[0].canonical", "found `yes`"),
    ("//Pod/shop/web-0", "//Pod/shop/cart-0", 15, "workloads[1].uid", r#""demo//Pod/shop/cart-0" is already taken by workloads[0].uid"#),
    ("!Exact", "!Exakt", 37, "policies[0].rules[0][0][0].principals[0]", "`Exakt` does not match target enum `one of !Exact, !Prefix, !Suffix, !Presence []`"),
    ("protocol: HBONE", "protocol: hbone", 9, "workloads[0].protocol", "unknown variant `hbone`, expected one of TCP, HBONE"),
    ("/10.2.0.4", "10.2.0.4", 27, "services[0].vips[0]", r#""10.2.0.4", expected <network>/<ip>"#),
    ("  ports: {80: 8080}\n", "", 28, "services[0]", "missing field `ports`"),
    ("shop/cart.shop", "cart.shop", 12, "workloads[0].services.cart.shop.svc.cluster.local", "expected <namespace>/<hostname>"),
    ("services:\n- name", "services:\n- - name", 24, "services[0]", "expected mapping start"),
    ("policies:", "services:", 30, "", "duplicate mapping key: services"),
    ("[8080]", "[x]", 38, "policies[0].rules[0][0][0].destinationPorts[0]", r#"string "x", expected a port"#),
    ("name: cart-0", "name: \"cart", 5, "workloads[0]", "quoted scalar"),
];

#[test]
fn a_bad_file_names_line_field_and_value() {
    for (from, to, line, path, problem) in BAD {
        assert!(EXAMPLE.contains(from), "{from}");
        let error = parse(&EXAMPLE.replacen(from, to, 1)).expect_err(to);
        assert_eq!(
            (error.line, error.path.as_str()),
            (*line, *path),
            "{to}: {error}"
        );
        assert!(error.problem.contains(problem), "{to}: {error}");
        assert!(error.column > 0, "{to}: {error}");
    }
}

#[test]
fn one_document_only() {
    assert!(parse("---\n{}\n---\nworkloads: []\n").is_err());
}

#[test]
fn keys_are_unique_per_kind() {
    let service = "- {name: x, namespace: a, hostname: h, vips: [], ports: {}}\n";
    let error = parse(&format!("services:\n{service}{service}")).expect_err("twice");
    assert_eq!(
        (error.line, error.path.as_str()),
        (3, "services[1].hostname"),
        "{error}"
    );
    let policy =
        "- {name: x, namespace: a, scope: Global, action: Deny, dryRun: false, rules: []}\n";
    let error = parse(&format!("policies:\n{policy}{policy}")).expect_err("twice");
    assert_eq!(
        (error.line, error.path.as_str()),
        (3, "policies[1].name"),
        "{error}"
    );
    let nameless = "- {workloadIps: [], namespace: a, services: {}}\n";
    let error = parse(&format!("workloads:\n{nameless}{nameless}")).expect_err("twice without uid");
    assert_eq!(error.path, "workloads[1].uid", "{error}");
}

#[test]
fn deep_and_repeated_structures_are_bounded() {
    let deep = format!("policies: {}{}", "[".repeat(5000), "]".repeat(5000));
    assert!(parse(&deep).is_err());
    let mut bomb =
        String::from("policies:\n- name: p\n  rules: [[[{a0: &a0 [x, x, x, x, x, x, x, x, x]");
    for i in 1..9 {
        let nine = vec![format!("*a{}", i - 1); 9].join(", ");
        bomb.push_str(&format!(", a{i}: &a{i} [{nine}]"));
    }
    bomb.push_str("}]]]\n");
    let error = parse(&bomb).expect_err("too much");
    assert!(error.problem.contains("budget"), "{error}");
}
