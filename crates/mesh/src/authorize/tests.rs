//! Tables of cases for verdicts.

use super::*;
use crate::index::Resource;
use crate::policy::PolicyScope;
use crate::workload::{Destination, GatewayAddress};
use Action::{Allow, Deny};

const WEB: &str = "spiffe://td/ns/shop/sa/web";

fn exact(text: &str) -> StringMatch {
    StringMatch::Exact(text.into())
}

fn any() -> Match {
    Match {
        destination_ports: vec![80],
        ..Match::default()
    }
}

fn never() -> Match {
    Match {
        destination_ports: vec![81],
        ..Match::default()
    }
}

/// A mesh-wide policy of one match.
fn policy(name: &str, action: Action, wanted: Match) -> Policy {
    Policy::new(
        "root",
        name,
        PolicyScope::Global,
        action,
        vec![vec![vec![wanted]]],
    )
}

fn dry(policy: Policy) -> Policy {
    Policy {
        dry_run: true,
        ..policy
    }
}

fn local(listed: &[&str]) -> Workload {
    Workload::default().with(|profile| {
        profile.namespace = "shop".into();
        profile.authorization_policies = listed.iter().map(|key| Str::from(*key)).collect();
    })
}

fn index(policies: &[Policy]) -> Index {
    Index::build(
        policies
            .iter()
            .map(|p| Resource::Policy(Arc::new(p.clone())))
            .collect(),
    )
}

/// The verdict on a connection from 10.0.0.9 to 10.0.0.1:80, as its reason and its notes.
fn ask(policies: &[Policy], identity: Option<&str>, local: &Workload) -> (String, Vec<String>) {
    let identity = identity.map(|id| id.parse().expect("an id"));
    let attempt = Attempt {
        identity: identity.as_ref(),
        source: "10.0.0.9:40000".parse().expect("an address"),
        destination: "10.0.0.1:80".parse().expect("an address"),
        local,
    };
    let verdict = authorize(&index(policies), &attempt);
    assert_eq!(verdict.is_allowed(), verdict.outcome.is_ok());
    let notes = verdict
        .notes
        .iter()
        .map(|n| n.policy().map_or(n.to_string(), |p| format!("{p}: {n}")));
    (
        verdict
            .outcome
            .map_or_else(|why| why.to_string(), |()| "ok".into()),
        notes.collect(),
    )
}

fn allows(wanted: Match, identity: Option<&str>) -> bool {
    ask(&[policy("p", Allow, wanted)], identity, &local(&[])).0 == "ok"
}

const NOT_ALLOWED: &str = "allow policies exist, but none allowed";

#[test]
fn decision_order() {
    let (yes, no) = (any(), never());
    let cases: Vec<(&str, Vec<Policy>, &str, Vec<&str>)> = vec![
        ("nothing", vec![], "ok", vec!["no allow policies, allow"]),
        (
            "deny before allow",
            vec![
                policy("a", Allow, yes.clone()),
                policy("d", Deny, yes.clone()),
            ],
            "explicitly denied by: root/d",
            vec!["root/d: deny policy match"],
        ),
        (
            "deny that does not match",
            vec![policy("d", Deny, no.clone())],
            "ok",
            vec!["no allow policies, allow"],
        ),
        (
            "one allow of several",
            vec![
                policy("a", Allow, no.clone()),
                policy("b", Allow, yes.clone()),
            ],
            "ok",
            vec!["root/b: allow policy match"],
        ),
        (
            "no allow matches",
            vec![
                policy("a", Allow, no.clone()),
                policy("d", Deny, no.clone()),
            ],
            NOT_ALLOWED,
            vec!["no allow policies matched"],
        ),
        (
            "dry-run deny",
            vec![dry(policy("d", Deny, yes.clone()))],
            "ok",
            vec![
                "root/d: dry-run: deny policy match",
                "no allow policies, allow",
            ],
        ),
        (
            "dry-run deny before deny",
            vec![
                dry(policy("x", Deny, yes.clone())),
                policy("d", Deny, yes.clone()),
            ],
            "explicitly denied by: root/d",
            vec![
                "root/x: dry-run: deny policy match",
                "root/d: deny policy match",
            ],
        ),
        (
            "dry-run allow matches",
            vec![dry(policy("a", Allow, yes.clone()))],
            "ok",
            vec![
                "root/a: dry-run: allow policy match",
                "no allow policies, allow",
            ],
        ),
        (
            "dry-run allow does not match",
            vec![
                dry(policy("a", Allow, no.clone())),
                dry(policy("b", Allow, no.clone())),
            ],
            "ok",
            vec![
                "dry-run: no allow policies match",
                "no allow policies, allow",
            ],
        ),
        (
            "dry-run allow does not match, dry-run deny does",
            vec![
                dry(policy("a", Allow, no.clone())),
                dry(policy("d", Deny, yes.clone())),
            ],
            "ok",
            vec![
                "root/d: dry-run: deny policy match",
                "dry-run: no allow policies match",
                "no allow policies, allow",
            ],
        ),
        (
            "dry-run allow beside an enforced one",
            vec![
                dry(policy("a", Allow, no.clone())),
                policy("b", Allow, no.clone()),
            ],
            NOT_ALLOWED,
            vec!["no allow policies matched"],
        ),
        (
            "dry-run allow does not open",
            vec![dry(policy("a", Allow, yes)), policy("b", Allow, no)],
            NOT_ALLOWED,
            vec![
                "root/a: dry-run: allow policy match",
                "no allow policies matched",
            ],
        ),
    ];
    for (what, policies, reason, notes) in cases {
        let (found, said) = ask(&policies, Some(WEB), &local(&[]));
        assert_eq!(
            (found.as_str(), said),
            (reason, notes.into_iter().map(String::from).collect()),
            "{what}"
        );
    }
}

#[test]
fn which_policies_apply() {
    let scoped = |namespace: &str, scope| Policy::new(namespace, "p", scope, Deny, vec![vec![]]);
    let cases = [
        (scoped("shop", PolicyScope::Namespace), vec![], false),
        (scoped("other", PolicyScope::Namespace), vec![], true),
        (scoped("", PolicyScope::Namespace), vec![], true),
        (scoped("other", PolicyScope::Global), vec![], false),
        (scoped("shop", PolicyScope::WorkloadSelector), vec![], true),
        (
            scoped("shop", PolicyScope::WorkloadSelector),
            vec!["shop/p"],
            false,
        ),
        (
            scoped("other", PolicyScope::WorkloadSelector),
            vec!["other/p"],
            false,
        ),
        (
            scoped("other", PolicyScope::Namespace),
            vec!["other/p"],
            false,
        ),
    ];
    for (policy, listed, allowed) in cases {
        let found = ask(std::slice::from_ref(&policy), Some(WEB), &local(&listed)).0;
        assert_eq!(
            found == "ok",
            allowed,
            "{} {:?} {listed:?}",
            policy.key,
            policy.scope
        );
    }
}

#[test]
fn unknown_names_are_skipped_with_a_warning() {
    let (found, notes) = ask(
        &[policy("a", Allow, any())],
        None,
        &local(&["shop/gone", "root/a"]),
    );
    assert_eq!(found, "ok");
    assert_eq!(
        notes,
        [
            "skipping unknown policy shop/gone",
            "root/a: allow policy match"
        ]
    );
    assert!(Note::UnknownPolicy("x".into()).is_warning() && !Note::NoAllowMatched.is_warning());
}

#[test]
fn the_tree() {
    let (yes, no, empty) = (any, never, Match::default);
    let cases: Vec<(&str, Vec<crate::policy::Rule>, bool)> = vec![
        ("no rules", vec![], false),
        ("rule without clauses", vec![vec![]], true),
        ("clause without matches", vec![vec![vec![]]], true),
        ("empty match", vec![vec![vec![empty()]]], false),
        (
            "empty match beside one that holds",
            vec![vec![vec![empty(), yes()]]],
            true,
        ),
        (
            "empty match in another clause",
            vec![vec![vec![yes()], vec![empty()]]],
            false,
        ),
        (
            "rules are any",
            vec![vec![vec![no()]], vec![vec![yes()]]],
            true,
        ),
        (
            "clauses are all",
            vec![vec![vec![yes()], vec![no()]]],
            false,
        ),
        (
            "clauses all hold",
            vec![vec![vec![yes()], vec![yes()]]],
            true,
        ),
        ("matches are any", vec![vec![vec![no(), yes()]]], true),
        ("matches none", vec![vec![vec![no(), no()]]], false),
    ];
    for (what, rules, expected) in cases {
        let policy = |action| Policy::new("root", "p", PolicyScope::Global, action, rules.clone());
        let allowed = ask(&[policy(Allow)], Some(WEB), &local(&[])).0;
        let denied = ask(&[policy(Deny)], Some(WEB), &local(&[])).0;
        assert_eq!(
            (allowed == "ok", denied != "ok"),
            (expected, expected),
            "{what}"
        );
    }
}

#[test]
fn attributes() {
    let net = |text: &str| -> Vec<IpNet> { vec![text.parse().expect("a range")] };
    let account = |namespace: &str, name: &str| {
        vec![ServiceAccountMatch {
            namespace: namespace.into(),
            service_account: name.into(),
        }]
    };
    let empty = Match::default;
    // what, match, holds with identity, holds without
    let cases: Vec<(&str, Match, bool, bool)> = vec![
        (
            "namespace",
            Match {
                namespaces: vec![exact("shop")],
                ..empty()
            },
            true,
            false,
        ),
        (
            "other namespace",
            Match {
                namespaces: vec![exact("x")],
                ..empty()
            },
            false,
            false,
        ),
        (
            "one of two",
            Match {
                namespaces: vec![exact("x"), exact("shop")],
                ..empty()
            },
            true,
            false,
        ),
        (
            "no namespace",
            Match {
                namespaces: vec![exact("")],
                ..empty()
            },
            false,
            true,
        ),
        (
            "namespace present",
            Match {
                namespaces: vec![StringMatch::Presence],
                ..empty()
            },
            true,
            false,
        ),
        (
            "not namespace",
            Match {
                not_namespaces: vec![exact("shop")],
                ..empty()
            },
            false,
            true,
        ),
        (
            "not other",
            Match {
                not_namespaces: vec![exact("x")],
                ..empty()
            },
            true,
            true,
        ),
        (
            "principal",
            Match {
                principals: vec![exact("td/ns/shop/sa/web")],
                ..empty()
            },
            true,
            false,
        ),
        (
            "principal with scheme",
            Match {
                principals: vec![exact(WEB)],
                ..empty()
            },
            false,
            false,
        ),
        (
            "principal prefix with scheme",
            Match {
                principals: vec![StringMatch::Prefix("spiffe://".into())],
                ..empty()
            },
            false,
            false,
        ),
        (
            "principal suffix",
            Match {
                principals: vec![StringMatch::Suffix("/web".into())],
                ..empty()
            },
            true,
            false,
        ),
        (
            "principal, empty prefix",
            Match {
                principals: vec![StringMatch::Prefix("".into())],
                ..empty()
            },
            true,
            false,
        ),
        (
            "principal present",
            Match {
                principals: vec![StringMatch::Presence],
                ..empty()
            },
            true,
            false,
        ),
        (
            "principal absent",
            Match {
                not_principals: vec![StringMatch::Presence],
                ..empty()
            },
            false,
            true,
        ),
        (
            "account",
            Match {
                service_accounts: account("shop", "web"),
                ..empty()
            },
            true,
            false,
        ),
        (
            "account elsewhere",
            Match {
                service_accounts: account("x", "web"),
                ..empty()
            },
            false,
            false,
        ),
        (
            "not account",
            Match {
                not_service_accounts: account("shop", "web"),
                ..empty()
            },
            false,
            true,
        ),
        (
            "source",
            Match {
                source_ips: net("10.0.0.8/31"),
                ..empty()
            },
            true,
            true,
        ),
        (
            "other source",
            Match {
                source_ips: net("10.0.1.0/24"),
                ..empty()
            },
            false,
            false,
        ),
        (
            "not source",
            Match {
                not_source_ips: net("10.0.0.0/8"),
                ..empty()
            },
            false,
            false,
        ),
        (
            "source of the other family",
            Match {
                source_ips: net("::/0"),
                ..empty()
            },
            false,
            false,
        ),
        (
            "not source of the other family",
            Match {
                not_source_ips: net("::/0"),
                ..empty()
            },
            true,
            true,
        ),
        (
            "every source",
            Match {
                source_ips: net("0.0.0.0/0"),
                ..empty()
            },
            true,
            true,
        ),
        (
            "destination",
            Match {
                destination_ips: net("10.0.0.1/32"),
                ..empty()
            },
            true,
            true,
        ),
        (
            "not destination",
            Match {
                not_destination_ips: net("10.0.0.1/32"),
                ..empty()
            },
            false,
            false,
        ),
        (
            "destination of the other family",
            Match {
                destination_ips: net("::/0"),
                ..empty()
            },
            false,
            false,
        ),
        (
            "not destination of the other family",
            Match {
                not_destination_ips: net("::/0"),
                ..empty()
            },
            true,
            true,
        ),
        (
            "destination of either family",
            Match {
                destination_ips: [net("::/0"), net("10.0.0.0/8")].concat(),
                ..empty()
            },
            true,
            true,
        ),
        (
            "port",
            Match {
                destination_ports: vec![79, 80],
                ..empty()
            },
            true,
            true,
        ),
        (
            "other port",
            Match {
                destination_ports: vec![8080],
                ..empty()
            },
            false,
            false,
        ),
        (
            "not port",
            Match {
                not_destination_ports: vec![80],
                ..empty()
            },
            false,
            false,
        ),
        (
            "not other port",
            Match {
                not_destination_ports: vec![81],
                ..empty()
            },
            true,
            true,
        ),
        (
            "not other account",
            Match {
                not_service_accounts: account("shop", "x"),
                ..empty()
            },
            true,
            true,
        ),
        (
            "account and not principal: one of them fails",
            Match {
                service_accounts: account("shop", "web"),
                not_principals: vec![StringMatch::Suffix("/web".into())],
                ..empty()
            },
            false,
            false,
        ),
        (
            "in the list and not in the other",
            Match {
                namespaces: vec![StringMatch::Prefix("sh".into())],
                not_namespaces: vec![StringMatch::Suffix("x".into())],
                ..empty()
            },
            true,
            false,
        ),
        (
            "in the list and in the other",
            Match {
                namespaces: vec![StringMatch::Prefix("sh".into())],
                not_namespaces: vec![StringMatch::Suffix("op".into())],
                ..empty()
            },
            false,
            false,
        ),
        (
            "namespace in another case",
            Match {
                namespaces: vec![exact("Shop")],
                ..empty()
            },
            false,
            false,
        ),
        (
            "not principal, any text",
            Match {
                not_principals: vec![StringMatch::Prefix("".into())],
                ..empty()
            },
            false,
            true,
        ),
        (
            "all kinds must hold",
            Match {
                namespaces: vec![exact("shop")],
                destination_ports: vec![81],
                ..empty()
            },
            false,
            false,
        ),
        (
            "strict port",
            Match {
                destination_ports: vec![80],
                not_principals: vec![StringMatch::Presence],
                ..empty()
            },
            false,
            true,
        ),
    ];
    for (what, wanted, with, without) in cases {
        let found = (allows(wanted.clone(), Some(WEB)), allows(wanted, None));
        assert_eq!(found, (with, without), "{what}");
    }
}

#[test]
fn mapped_addresses_are_ipv4() {
    let wanted = Match {
        source_ips: vec!["10.0.0.9/32".parse().expect("a range")],
        destination_ips: vec!["10.0.0.1/32".parse().expect("a range")],
        ..Match::default()
    };
    let attempt = Attempt {
        identity: None,
        source: "[::ffff:10.0.0.9]:40000".parse().expect("an address"),
        destination: "[::ffff:10.0.0.1]:80".parse().expect("an address"),
        local: &local(&[]),
    };
    assert!(!authorize(&index(&[policy("d", Deny, wanted)]), &attempt).is_allowed());
}

/// STRICT as the control plane sends it.
#[test]
fn peer_authentication() {
    let absent = || Match {
        not_principals: vec![StringMatch::Presence],
        ..Match::default()
    };
    let exempt = |port| Match {
        not_destination_ports: vec![port],
        ..Match::default()
    };
    let strict = |rules| Policy::new("root", "strict", PolicyScope::WorkloadSelector, Deny, rules);
    let strict_port = |port| Match {
        destination_ports: vec![port],
        ..absent()
    };
    let cases = [
        (
            "permissive but for this port",
            strict(vec![
                vec![vec![strict_port(80)]],
                vec![vec![strict_port(81)]],
            ]),
            false,
        ),
        (
            "permissive but for another port",
            strict(vec![vec![vec![strict_port(81)]]]),
            true,
        ),
        (
            "strict but for two ports, one of them this",
            strict(vec![vec![
                vec![absent()],
                vec![exempt(80)],
                vec![exempt(81)],
            ]]),
            true,
        ),
        ("strict", strict(vec![vec![vec![absent()]]]), false),
        (
            "strict but for this port",
            strict(vec![vec![vec![absent()], vec![exempt(80)]]]),
            true,
        ),
        (
            "strict but for another port",
            strict(vec![vec![vec![absent()], vec![exempt(81)]]]),
            false,
        ),
    ];
    for (what, policy, plain) in cases {
        let local = local(&["root/strict"]);
        let policies = [policy];
        assert_eq!(
            ask(&policies, None, &local).0 == "ok",
            plain,
            "{what}, plain"
        );
        assert_eq!(
            ask(&policies, Some(WEB), &local).0,
            "ok",
            "{what}, with identity"
        );
    }
}

/// policy.md §2: a policy that applies twice over counts once; of several that match, the first by key is named.
#[test]
fn each_policy_once_and_the_first_by_key_is_named() {
    let deny = |name| Policy::new("shop", name, PolicyScope::Namespace, Deny, vec![vec![]]);
    let (found, notes) = ask(
        &[deny("b"), deny("a"), dry(deny("c"))],
        Some(WEB),
        &local(&["shop/c", "shop/a", "shop/c"]),
    );
    assert_eq!(found, "explicitly denied by: shop/a");
    assert_eq!(
        notes,
        [
            "shop/c: dry-run: deny policy match",
            "shop/a: deny policy match"
        ]
    );
}

/// policy.md §4: service accounts are compared whatever the trust domain, principals with it.
#[test]
fn the_trust_domain_matters_to_principals_only() {
    let account = Match {
        service_accounts: vec![ServiceAccountMatch {
            namespace: "shop".into(),
            service_account: "web".into(),
        }],
        ..Match::default()
    };
    let principal = Match {
        principals: vec![exact("td/ns/shop/sa/web")],
        ..Match::default()
    };
    let other = Some("spiffe://other/ns/shop/sa/web");
    assert!(allows(account, other));
    assert!(!allows(principal, other));
}

/// policy.md §7: behind a waypoint its own identity is what counts.
#[test]
fn only_the_waypoint_may_come() {
    let waypoint = Match {
        principals: vec![exact("td/ns/shop/sa/waypoint")],
        ..Match::default()
    };
    let only = Policy::new(
        "shop",
        "istio_allow_waypoint_x",
        PolicyScope::WorkloadSelector,
        Allow,
        vec![vec![vec![waypoint]]],
    );
    let bound = local(&["shop/istio_allow_waypoint_x"]);
    for (identity, expected) in [
        (Some("spiffe://td/ns/shop/sa/waypoint"), "ok"),
        (Some(WEB), NOT_ALLOWED),
        (None, NOT_ALLOWED),
    ] {
        assert_eq!(
            ask(std::slice::from_ref(&only), identity, &bound).0,
            expected
        );
    }
}

/// policy.md §1: the port that counts is the one that the connection is really sent to.
#[test]
fn the_port_is_that_of_delivery() {
    let mesh = crate::local::parse(
        r#"
workloads:
- {uid: pod, namespace: shop, workloadIps: [10.0.0.1], services: {shop/cart: {80: 8081}}}
- {uid: tunnelled, namespace: shop, workloadIps: [10.0.0.2], applicationTunnel: {protocol: PROXY, port: 9000}, services: {shop/cart: {}}}
services: [{name: cart, namespace: shop, hostname: cart, vips: [/10.1.0.1], ports: {80: 8080}}]
"#,
    )
    .expect("a good file");
    let only = |port| {
        let wanted = Match {
            destination_ports: vec![port],
            ..Match::default()
        };
        Resource::Policy(Arc::new(policy("p", Allow, wanted)))
    };
    for (uid, authority, port) in [
        ("pod", "cart:80", 8081),
        ("pod", "10.0.0.1:80", 80),
        ("tunnelled", "cart:80", 9000),
        ("tunnelled", "10.0.0.2:80", 9000),
    ] {
        let allowed = |asked: u16| {
            let index = Index::build(mesh.iter().cloned().chain([only(asked)]).collect());
            let local = index.workload(uid).expect("in the mesh");
            let authority = crate::Authority::parsed(authority);
            let client = "10.0.0.9:40000".parse().expect("an address");
            let connect = crate::Connect {
                local,
                tunnel_local: local.addresses[0],
                client,
                identity: None,
                authority: &authority,
                forwarded_host: None,
                socks: false,
                localhost_app_tunnel: true,
                keep_source: true,
            };
            let admitted = crate::admit(&index, &connect).expect("admitted");
            let attempt = Attempt {
                identity: None,
                source: client,
                destination: admitted.destination,
                local,
            };
            authorize(&index, &attempt).is_allowed()
        };
        for asked in [80, 8080, 8081, 9000] {
            assert_eq!(allowed(asked), asked == port, "{uid} {authority} {asked}");
        }
    }
}

/// policy.md §7: a waypoint's own pod and that of the daemon are destinations like any, judged by what they list themselves.
#[test]
fn waypoints_and_the_own_pod_are_destinations_like_any() {
    let strict = Match {
        not_principals: vec![StringMatch::Presence],
        ..Match::default()
    };
    let scoped = |name: &str, namespace: &str, scope| {
        let rules = vec![vec![vec![strict.clone()]]];
        Policy::new(namespace, name, scope, Deny, rules)
    };
    let policies = [
        scoped("listed", "root", PolicyScope::WorkloadSelector),
        scoped("infra", "infra", PolicyScope::Namespace),
    ];
    let pod = |namespace: &str, listed: &[&str], account: &str| {
        let waypoint = GatewayAddress {
            destination: Destination::Hostname("shop/waypoint".parse().expect("a name")),
            hbone_mtls_port: 15008,
        };
        local(listed).with(|profile| {
            profile.namespace = namespace.into();
            profile.service_account = account.into();
            profile.waypoint = Some(Arc::new(waypoint));
        })
    };
    // the pod, whether plaintext may come
    let cases = [
        (pod("shop", &[], "waypoint"), true),
        (pod("shop", &["root/listed"], "waypoint"), false),
        (pod("infra", &[], "ztunnel"), false),
        (pod("istio-system", &["root/listed"], "ztunnel"), false),
        (pod("istio-system", &[], "ztunnel"), true),
    ];
    for (pod, plaintext) in cases {
        let of = format!("{}/{}", pod.namespace, pod.service_account);
        assert_eq!(ask(&policies, None, &pod).0 == "ok", plaintext, "{of}");
        assert_eq!(ask(&policies, Some(WEB), &pod).0, "ok", "{of}");
    }
}

/// policy.md §4: ranges hold addresses of their own family only.
#[test]
fn ipv6_ranges_hold_ipv6_addresses() {
    let wanted = |range: &str| Match {
        source_ips: vec![range.parse().expect("a range")],
        ..Match::default()
    };
    for (range, source, expected) in [
        ("2001:db8::/32", "[2001:db8::9]:1", true),
        ("2001:db8::/32", "[2001:db9::9]:1", false),
        ("::/0", "[2001:db8::9]:1", true),
        ("0.0.0.0/0", "[2001:db8::9]:1", false),
        ("::/0", "[::ffff:10.0.0.9]:1", false),
        ("10.0.0.0/8", "[::ffff:10.0.0.9]:1", true),
    ] {
        let attempt = Attempt {
            identity: None,
            source: source.parse().expect("an address"),
            destination: "10.0.0.1:80".parse().expect("an address"),
            local: &local(&[]),
        };
        let verdict = authorize(&index(&[policy("a", Allow, wanted(range))]), &attempt);
        assert_eq!(verdict.is_allowed(), expected, "{range} {source}");
    }
}
