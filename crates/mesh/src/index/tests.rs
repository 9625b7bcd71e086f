//! Tables of cases for what the index finds.

use super::*;
use crate::local;

fn build(text: &str) -> Index {
    Index::build(local::parse(text).expect("a good file"))
}

fn workload(uid: &str, rest: &str) -> Resource {
    let text = format!("workloads: [{{uid: {uid}, namespace: a, {rest}}}]");
    local::parse(&text).expect("a good file").remove(0)
}

fn service(namespace: &str, rest: &str) -> Resource {
    let text = format!("services: [{{name: {namespace}, namespace: {namespace}, {rest}}}]");
    local::parse(&text).expect("a good file").remove(0)
}

fn upsert(resources: Vec<Resource>) -> Delta {
    Delta {
        remove: Vec::new(),
        upsert: resources,
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn uids(index: &Index, hostname: &str) -> Vec<String> {
    let service = index.service("a", hostname).expect("in the index");
    let endpoints = index.endpoints(service);
    let mut uids: Vec<_> = endpoints.map(|e| e.workload.uid.to_string()).collect();
    uids.sort();
    uids
}

#[test]
fn workloads_by_address() {
    let mut index = Index::build(vec![
        workload("x", "workloadIps: [10.0.0.1], services: {}"),
        workload(
            "x-hbone",
            "workloadIps: [10.0.0.1], services: {}, protocol: HBONE",
        ),
        workload("k//Pod/a/p", "workloadIps: [10.0.0.1], services: {}"),
        workload(
            "k//Pod/a/p-hbone",
            "workloadIps: [10.0.0.1, 10.0.0.1], services: {}, protocol: HBONE",
        ),
        workload(
            "host",
            "workloadIps: [10.0.0.2], services: {}, networkMode: HostNetwork",
        ),
        workload("net", "workloadIps: [10.0.0.1], services: {}, network: n"),
    ]);
    let found = |index: &Index| {
        index
            .workload_by_ip("", ip("10.0.0.1"))
            .map(|w| w.uid.to_string())
    };
    for uid in ["k//Pod/a/p-hbone", "k//Pod/a/p", "x-hbone", "x"] {
        assert_eq!(found(&index).as_deref(), Some(uid));
        index.apply(Delta {
            remove: vec![Key::Workload(uid.into())],
            upsert: vec![],
        });
    }
    assert_eq!(found(&index), None);
    assert_eq!(index.workload_by_ip("", ip("10.0.0.2")), None);
    assert_eq!(
        index.workload_by_ip("n", ip("10.0.0.1")).map(|w| &*w.uid),
        Some("net")
    );
}

#[test]
fn a_workload_that_moves_is_found_at_its_new_names_only() {
    let mut index = Index::build(vec![workload(
        "w",
        "workloadIps: [10.0.0.1], hostname: h, services: {}",
    )]);
    index.apply(upsert(vec![workload(
        "w",
        "workloadIps: [10.0.0.2], hostname: g, services: {}",
    )]));
    assert_eq!(index.workload_by_ip("", ip("10.0.0.1")), None);
    assert!(index.workload_by_ip("", ip("10.0.0.2")).is_some());
    assert_eq!(index.workload_by_hostname("a", "h"), None);
    assert!(index.workload_by_hostname("a", "g").is_some());
    assert_eq!(index.workload_by_hostname("b", "g"), None);
}

#[test]
fn local_workloads_are_those_of_the_node() {
    let here = workload(
        "here",
        "name: p, serviceAccount: s, node: n1, workloadIps: [], services: {}",
    );
    let there = workload(
        "there",
        "name: q, serviceAccount: s, node: n2, workloadIps: [], services: {}",
    );
    let mut index = Index::for_node("n1");
    index.apply(upsert(vec![here, there]));
    let found = |index: &Index, name: &str, account: &str| {
        index.local_workload("a", name, account).is_some()
    };
    assert!(found(&index, "p", "s"));
    assert!(!found(&index, "p", "t") && !found(&index, "q", "s"));
    let local: Vec<_> = index.local_workloads().map(|w| &*w.uid).collect();
    assert_eq!(local, ["here"]);
    assert!(index.local_workload("b", "p", "s").is_none());
    let all = Index::build(index.resources());
    assert!(
        found(&all, "q", "s"),
        "without a node every workload is local"
    );
}

#[test]
fn endpoints_come_from_the_workloads() {
    let member = |uid: &str, more: &str| {
        workload(
            uid,
            &format!("workloadIps: [], services: {{a/h: {{80: 1}}}}{more}"),
        )
    };
    let of_service = "hostname: h, vips: [], ports: {80: 80}";
    let mut index = Index::build(vec![
        member("w2", ""),
        member("w1", ""),
        member("ill", ", status: Unhealthy"),
    ]);
    assert_eq!(index.unknown_services().count(), 1);
    index.apply(upsert(vec![service("a", of_service)]));
    assert_eq!(index.unknown_services().count(), 0);
    assert_eq!(uids(&index, "h"), ["w1", "w2"]);
    index.apply(Delta {
        remove: vec![Key::Workload("w1".into())],
        upsert: vec![member("w3", "")],
    });
    assert_eq!(uids(&index, "h"), ["w2", "w3"]);
    let all = "loadBalancer: {routingPreferences: [], mode: Standard, healthPolicy: AllowAll}";
    index.apply(upsert(vec![service("a", &format!("{of_service}, {all}"))]));
    assert_eq!(
        uids(&index, "h"),
        ["ill", "w2", "w3"],
        "the health policy is asked anew"
    );
    let key = NamespacedHostname {
        namespace: "a".into(),
        hostname: "h".into(),
    };
    index.apply(Delta {
        remove: vec![Key::Service(key)],
        upsert: vec![],
    });
    index.apply(upsert(vec![service("a", of_service)]));
    assert_eq!(
        uids(&index, "h"),
        ["w2", "w3"],
        "a service that comes back finds them"
    );
    let twice = vec![member("w2", ", status: Unhealthy"), member("w2", "")];
    index.apply(upsert(twice));
    assert_eq!(
        uids(&index, "h"),
        ["w2", "w3"],
        "the last of one delta holds"
    );
    index.apply(upsert(vec![workload(
        "w2",
        "workloadIps: [], services: {}",
    )]));
    assert_eq!(uids(&index, "h"), ["w3"]);
}

#[test]
fn a_service_may_state_endpoints_itself() {
    let index = build(
        "workloads:
- {uid: w1, namespace: a, workloadIps: [], services: {a/h: {80: 1}}}
- {uid: w2, namespace: a, workloadIps: [], services: {}}
services:
- name: h
  namespace: a
  hostname: h
  vips: []
  ports: {80: 80}
  endpoints:
    w1: {workloadUid: w1, port: {80: 9}}
    w2: {workloadUid: w2, port: {}, status: Unhealthy}
    gone: {workloadUid: gone, port: {}}
",
    );
    assert_eq!(uids(&index, "h"), ["w1"]);
    let service = index.service("a", "h").expect("in the index");
    let endpoint = index.endpoint(service, "w1").expect("stated");
    assert_eq!(
        endpoint.ports.target(80),
        Some(9),
        "what the service states holds"
    );
    assert_eq!(index.endpoint(service, "w2"), None);
    assert_eq!(index.endpoint(service, "gone"), None);
}

#[test]
fn services_by_address_and_host() {
    let of = |namespace: &str, rest: &str| {
        service(namespace, &format!("hostname: h, ports: {{}}, {rest}"))
    };
    let vip = "vips: [/10.1.0.1]";
    type Case<'a> = (&'a str, Vec<Resource>, Option<&'a str>, Option<&'a str>);
    let cases: Vec<Case<'_>> = vec![
        (
            "first by namespace",
            vec![of("b", vip), of("a", vip)],
            Some("z"),
            Some("a"),
        ),
        (
            "canonical",
            vec![of("a", vip), of("b", "vips: [/10.1.0.1], canonical: true")],
            Some("z"),
            Some("b"),
        ),
        (
            "own",
            vec![of("a", "vips: [/10.1.0.1], canonical: true"), of("b", vip)],
            Some("b"),
            Some("b"),
        ),
        (
            "not visible",
            vec![of("a", "vips: [/10.1.0.1], visibility: Namespace")],
            Some("z"),
            None,
        ),
        (
            "visible to its own",
            vec![of("a", "vips: [/10.1.0.1], visibility: Namespace")],
            Some("a"),
            Some("a"),
        ),
        (
            "nobody asks",
            vec![of("a", "vips: [/10.1.0.1], visibility: Namespace")],
            None,
            Some("a"),
        ),
    ];
    for (what, services, client, expected) in cases {
        let index = Index::build(services);
        let by_ip = match index.at("", ip("10.1.0.1"), client) {
            Some(Referent::Service(s)) => Some(&*s.namespace),
            _ => None,
        };
        assert_eq!(by_ip, expected, "{what}");
        let by_host = index.service_by_host("h", client).map(|s| &*s.namespace);
        assert_eq!(by_host, expected, "{what}");
        assert_eq!(
            index.at("n", ip("10.1.0.1"), client),
            None,
            "{what}, other network"
        );
    }
}

#[test]
fn ranges_by_namespace_then_length_then_canonical() {
    let range = |namespace: &str, cidr: &str, more: &str| {
        let rest = format!(
            "hostname: h, vips: [], ports: {{}}, cidrVips: [{{network: '', cidr: {cidr}}}]{more}"
        );
        service(namespace, &rest)
    };
    let mut index = Index::build(vec![
        range("a", "10.0.0.0/8", ""),
        range("b", "10.1.0.0/16", ""),
        range("c", "10.1.0.0/16", ", canonical: true"),
        range("d", "10.1.1.0/24", ", visibility: Namespace"),
        service(
            "e",
            "hostname: h, vips: [/10.1.9.9], ports: {}, visibility: Namespace",
        ),
    ]);
    let found = |index: &Index, at: &str, client: Option<&str>| match index.at("", ip(at), client) {
        Some(Referent::Service(s) | Referent::Range(s)) => Some(s.namespace.to_string()),
        _ => None,
    };
    let cases = [
        ("10.9.0.1", Some("z"), Some("a")),
        ("10.1.1.1", Some("z"), Some("c")),
        ("10.1.1.1", Some("a"), Some("a")),
        ("10.1.1.1", Some("b"), Some("b")),
        ("10.1.1.1", None, Some("d")),
        ("10.1.9.9", Some("e"), Some("e")),
        ("10.1.9.9", Some("z"), Some("c")),
        ("11.0.0.1", Some("z"), None),
        ("::ffff:1:1", Some("z"), None),
    ];
    for (at, client, expected) in cases {
        assert_eq!(
            found(&index, at, client).as_deref(),
            expected,
            "{at} {client:?}"
        );
    }
    for namespace in ["a", "b", "c", "d", "e"] {
        let name = NamespacedHostname {
            namespace: namespace.into(),
            hostname: "h".into(),
        };
        index.apply(Delta {
            remove: vec![Key::Service(name)],
            upsert: vec![],
        });
    }
    assert_eq!(found(&index, "10.1.1.1", None), None);
    assert_eq!(index, Index::default(), "nothing is left behind");
}

#[test]
fn an_address_is_first_a_service_then_a_workload_then_in_a_range() {
    let held = "
workloads: [{uid: w, namespace: a, workloadIps: [10.1.0.1, 10.1.0.2, 10.1.0.4], services: {}}]
services:
- {name: vip, namespace: a, hostname: vip, vips: [/10.1.0.1, n/10.1.0.2], ports: {}}
- {name: private, namespace: a, hostname: private, vips: [/10.1.0.4], ports: {}, visibility: Namespace}
- {name: range, namespace: a, hostname: range, vips: [], ports: {}, cidrVips: [{network: '', cidr: 10.1.0.0/24}]}
";
    let index = Index::build(local::parse(held).expect("a good file"));
    let cases = [
        ("all three", "", "10.1.0.1", "z", "service vip"),
        (
            "all three, mapped",
            "",
            "::ffff:10.1.0.1",
            "z",
            "service vip",
        ),
        ("workload in a range", "", "10.1.0.2", "z", "workload w"),
        ("only a range", "", "10.1.0.3", "z", "range range"),
        (
            "a Service that may be used",
            "",
            "10.1.0.4",
            "a",
            "service private",
        ),
        (
            "a Service that may not be used",
            "",
            "10.1.0.4",
            "z",
            "workload w",
        ),
        ("on its network", "n", "10.1.0.2", "z", "service vip"),
        ("nothing", "", "10.2.0.1", "z", "nothing"),
    ];
    for (what, network, at, namespace, expected) in cases {
        let found = match index.at(network, ip(at), Some(namespace)) {
            Some(Referent::Service(s)) => format!("service {}", s.name),
            Some(Referent::Workload(w)) => format!("workload {}", w.uid),
            Some(Referent::Range(s)) => format!("range {}", s.name),
            None => "nothing".to_owned(),
        };
        assert_eq!(found, expected, "{what}");
    }
}

#[test]
fn a_changed_file_touches_what_changed() {
    let text = |port: u16, action: &str, node: &str| {
        format!(
            "workloads: [{{uid: w, namespace: a, node: {node}, workloadIps: [10.0.0.1], services: {{}}}}]
services: [{{name: s, namespace: a, hostname: s, vips: [], ports: {{80: {port}}}}}]
policies: [{{name: p, namespace: a, scope: Global, action: {action}, dryRun: false, rules: []}}]
"
        )
    };
    let resources = |text: &str| local::parse(text).expect("a good file");
    let mut index = build(&text(80, "Deny", "n1"));
    let version = index.policy_version();
    assert!(
        index
            .delta_to(&resources(&text(80, "Deny", "n1")))
            .is_empty()
    );

    let delta = index.delta_to(&resources(&text(81, "Deny", "n2")));
    assert_eq!((delta.upsert.len(), delta.remove.len()), (2, 0));
    assert_eq!(index.apply(delta), Applied::default());
    assert_eq!(index.policy_version(), version);

    let delta = index.delta_to(&resources(&text(81, "Allow", "n2")));
    assert_eq!(index.apply(delta).policies_set, [Str::from("a/p")]);
    assert_eq!(index.policy_version(), version + 1);
    assert_eq!(index, build(&text(81, "Allow", "n2")));

    let applied = index.apply(index.delta_to(&[]));
    assert_eq!(applied.policies_removed, [Str::from("a/p")]);
    assert_eq!(
        (index.policy_version(), &index),
        (version + 2, &Index::default())
    );
    index.apply(Delta {
        remove: vec![Key::Policy("a/p".into())],
        upsert: vec![],
    });
    assert_eq!(index.policy_version(), version + 2, "nothing was there");
}

#[test]
fn a_policy_that_changes_its_scope_moves() {
    let policy = |scope: &str, namespace: &str| {
        let text = format!(
            "policies: [{{name: p, namespace: {namespace}, scope: {scope}, action: Deny, dryRun: false, rules: []}}]"
        );
        local::parse(&text).expect("a good file").remove(0)
    };
    let mut index = Index::default();
    let here = Workload::default().with(|profile| profile.namespace = "a".into());
    for (scope, applies) in [
        ("Global", 1),
        ("Namespace", 1),
        ("WorkloadSelector", 0),
        ("Namespace", 1),
        ("Global", 1),
    ] {
        index.apply(upsert(vec![policy(scope, "a")]));
        assert_eq!(index.policies_for(&here).0.len(), applies, "{scope}");
        assert_eq!(index, Index::build(vec![policy(scope, "a")]), "{scope}");
    }
}

#[test]
fn a_copy_shares_what_a_change_does_not_touch() {
    let member = |uid: String, host: &str| {
        workload(
            &uid,
            &format!("workloadIps: [], services: {{a/{host}: {{}}}}"),
        )
    };
    let mut all: Vec<_> = (0..500).map(|i| member(format!("w{i}"), "big")).collect();
    all.push(service("a", "hostname: big, vips: [], ports: {}"));
    let before = Index::build(all);
    let mut after = before.clone();
    after.apply(upsert(vec![
        member("other".into(), "small"),
        workload(
            "w7",
            "workloadIps: [], status: Unhealthy, services: {a/big: {}}",
        ),
    ]));
    let list = |index: &Index| index.services.known("a", "big").expect("known") as *const Known;
    assert_eq!(
        list(&before),
        list(&after),
        "who is a member did not change"
    );
    after.apply(upsert(vec![workload(
        "w7",
        "workloadIps: [], services: {}",
    )]));
    assert_ne!(list(&before), list(&after));
    assert_eq!(
        (uids(&before, "big").len(), uids(&after, "big").len()),
        (500, 499)
    );
}

#[test]
fn a_swap_is_short() {
    assert!(size_of::<Index>() <= 512, "{}", size_of::<Index>());
}

/// One message may hold a workload that lists hundreds of thousands of Services.
#[test]
fn a_workload_that_lists_very_many_services_is_taken_in_at_once() {
    const MANY: usize = 100_000;
    const SOON: std::time::Duration = std::time::Duration::from_secs(10);
    let listing = |numbers: std::ops::Range<usize>| {
        let services = numbers.map(|number| Membership {
            service: Arc::new(NamespacedHostname {
                namespace: "a".into(),
                hostname: format!("host-{number:06}").into(),
            }),
            ports: Ports::default(),
        });
        let profile = crate::workload::Profile {
            services: services.collect(),
            ..Default::default()
        };
        let workload = Workload::new("w".into(), "w", [], Arc::default(), profile.into());
        upsert(vec![Resource::Workload(workload.into())])
    };
    let start = std::time::Instant::now();
    let mut index = Index::default();
    index.apply(listing(0..MANY));
    index.apply(listing(MANY / 2..MANY + MANY / 2));
    let listed: usize = index.unknown_services().map(|(_, all)| all.count()).sum();
    assert_eq!(listed, MANY);
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    let first = index.unknown_services().map(|(name, _)| name).min();
    assert_eq!(
        first.map(|name| name.hostname),
        Some(format!("host-{:06}", MANY / 2).into())
    );
}
