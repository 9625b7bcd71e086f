//! The protocol, row by row: what is said first, what each response is answered, what is kept.

use bytes::Bytes;
use mesh::index::Key;
use mesh::{Index, Resource};
use prost::Message as _;
use proto::discovery;
use proto::wellknown::Any;
use proto::{security, workload as wire};

use super::*;

fn resource(name: &str, version: &str, payload: Option<Vec<u8>>) -> discovery::Resource {
    discovery::Resource {
        name: name.into(),
        version: version.into(),
        resource: payload.map(|value| Any {
            type_url: "is not looked at".into(),
            value: value.into(),
        }),
        ..discovery::Resource::default()
    }
}

fn workload(uid: &str, version: &str) -> discovery::Resource {
    let workload = wire::Workload {
        uid: uid.into(),
        ..wire::Workload::default()
    };
    let address = wire::Address {
        r#type: Some(wire::address::Type::Workload(workload)),
    };
    resource(uid, version, Some(address.encode_to_vec()))
}

fn service(namespace: &str, hostname: &str) -> discovery::Resource {
    let service = wire::Service {
        namespace: namespace.into(),
        hostname: hostname.into(),
        ..wire::Service::default()
    };
    let address = wire::Address {
        r#type: Some(wire::address::Type::Service(service)),
    };
    resource(
        &format!("{namespace}/{hostname}"),
        "",
        Some(address.encode_to_vec()),
    )
}

fn policy(name: &str) -> discovery::Resource {
    resource(
        name,
        "",
        Some(security::Authorization::default().encode_to_vec()),
    )
}

/// A resource of either kind that is refused, and why.
fn bad(name: &str, version: &str) -> discovery::Resource {
    resource(name, version, None)
}

fn aliased(resource: discovery::Resource, aliases: &[&str]) -> discovery::Resource {
    discovery::Resource {
        aliases: aliases.iter().map(ToString::to_string).collect(),
        ..resource
    }
}

fn response(
    kind: Kind,
    resources: &[discovery::Resource],
    removed: &[&str],
) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        resources: resources.iter().map(|r| r.encode_to_vec().into()).collect(),
        type_url: kind.url().into(),
        nonce: "n".into(),
        removed_resources: removed.iter().map(ToString::to_string).collect(),
        ..DeltaDiscoveryResponse::default()
    }
}

fn take(
    subscriber: &mut Subscriber,
    kind: Kind,
    resources: &[discovery::Resource],
    removed: &[&str],
) -> Outcome {
    subscriber
        .begin(response(kind, resources, removed))
        .finish()
}

fn versions(subscriber: &mut Subscriber, kind: Kind) -> Vec<(String, String)> {
    let first = subscriber.connected();
    let of_kind = first
        .into_iter()
        .find(|request| request.type_url == kind.url())
        .unwrap();
    of_kind.initial_resource_versions.into_iter().collect()
}

fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
    all.iter()
        .map(|(name, version)| (name.to_string(), version.to_string()))
        .collect()
}

fn node() -> Node {
    Node {
        id: "me".into(),
        ..Node::default()
    }
}

fn error(outcome: &Outcome) -> &str {
    outcome
        .reply
        .error_detail
        .as_ref()
        .map_or("", |status| &status.message)
}

#[test]
fn first_requests() {
    let mut wildcard = Subscriber::new(node(), false);
    let expected = Kind::ALL.map(|kind| DeltaDiscoveryRequest {
        node: Some(node()),
        type_url: kind.url().into(),
        ..DeltaDiscoveryRequest::default()
    });
    assert_eq!(wildcard.connected(), expected);
    assert_eq!(
        expected.map(|request| request.type_url),
        [
            "type.googleapis.com/istio.workload.Address",
            "type.googleapis.com/istio.security.Authorization"
        ]
    );

    let mut on_demand = Subscriber::new(node(), true);
    let [addresses, policies] = on_demand.connected().try_into().unwrap();
    assert_eq!(addresses.resource_names_subscribe, ["*"]);
    assert_eq!(addresses.resource_names_unsubscribe, ["*"]);
    assert!(policies.resource_names_subscribe.is_empty());
    assert!(policies.resource_names_unsubscribe.is_empty());
}

#[test]
fn what_was_taken_is_told_on_the_next_stream() {
    let mut subscriber = Subscriber::new(node(), false);
    let address = Kind::Address;
    take(
        &mut subscriber,
        address,
        &[workload("w", "7"), workload("v", "")],
        &[],
    );
    assert_eq!(
        versions(&mut subscriber, address),
        pairs(&[("v", ""), ("w", "7")])
    );
    assert_eq!(versions(&mut subscriber, Kind::Authorization), []);

    // refused: the older version stays, so that the server sends again
    let outcome = take(
        &mut subscriber,
        address,
        &[bad("w", "8"), bad("new", "1")],
        &[],
    );
    assert_eq!(outcome.rejected_count, 2);
    assert_eq!(
        versions(&mut subscriber, address),
        pairs(&[("v", ""), ("w", "7")])
    );

    take(
        &mut subscriber,
        address,
        &[workload("w", "9")],
        &["v", "unknown"],
    );
    assert_eq!(versions(&mut subscriber, address), pairs(&[("w", "9")]));

    // of a name that comes twice the later holds
    take(
        &mut subscriber,
        address,
        &[workload("w", "1"), workload("w", "2")],
        &[],
    );
    assert_eq!(versions(&mut subscriber, address), pairs(&[("w", "2")]));

    take(&mut subscriber, Kind::Authorization, &[policy("a/p")], &[]);
    assert_eq!(
        versions(&mut subscriber, Kind::Authorization),
        pairs(&[("a/p", "")])
    );
}

#[test]
fn too_many_versions_are_left_out_and_what_does_not_come_again_is_gone() {
    let address = Kind::Address;
    let mut subscriber = Subscriber::new(node(), false);
    subscriber.first_bytes_max = 200;
    let uids: Vec<String> = (0..10)
        .map(|n| format!("workload-{n}-of-a-large-mesh"))
        .collect();
    let all: Vec<_> = uids.iter().map(|uid| workload(uid, "1")).collect();
    take(&mut subscriber, address, &all, &[]);
    take(&mut subscriber, Kind::Authorization, &[policy("a/p")], &[]);

    assert_eq!(versions(&mut subscriber, address), []);
    let [_, policies] = subscriber.connected().try_into().unwrap();
    assert_eq!(policies.initial_resource_versions.len(), 1, "few enough");
    let rest = [all[0].clone(), bad(&uids[1], "2"), workload("new", "1")];
    let outcome = take(&mut subscriber, address, &rest, &[]);
    assert_eq!(outcome.delta.upsert.len(), 2);
    let mut gone = outcome.delta.remove;
    gone.sort();
    let expected: Vec<Key> = uids[2..]
        .iter()
        .map(|uid| Key::Workload(uid.as_str().into()))
        .collect();
    assert_eq!(gone, expected, "the refused one stays");

    let outcome = take(&mut subscriber, address, &[workload("more", "1")], &[]);
    assert_eq!(
        outcome.delta.remove,
        [],
        "only the first response holds all"
    );
    let held = [
        ("more", "1"),
        ("new", "1"),
        (&uids[0], "1"),
        (&uids[1], "1"),
    ];
    assert_eq!(versions(&mut subscriber, address), pairs(&held));
}

#[test]
fn a_large_mesh_is_not_swept_for_what_cannot_be_read() {
    let mut subscriber = Subscriber::new(node(), false);
    subscriber.first_bytes_max = 0;
    take(&mut subscriber, Kind::Address, &[workload("w", "1")], &[]);
    subscriber.connected();
    let mut garbled = response(Kind::Address, &[], &[]);
    garbled.resources.push(Bytes::from_static(&[0xff]));
    let outcome = subscriber.begin(garbled).finish();
    assert!(outcome.delta.is_empty(), "it may have been the one");
}

#[test]
fn a_good_response_is_acked() {
    let mut subscriber = Subscriber::new(node(), false);
    let outcome = take(
        &mut subscriber,
        Kind::Address,
        &[workload("w", "1"), service("a", "h")],
        &[],
    );
    let ack = DeltaDiscoveryRequest {
        type_url: Kind::Address.url().into(),
        response_nonce: "n".into(),
        ..DeltaDiscoveryRequest::default()
    };
    assert_eq!(outcome.reply, ack);
    assert_eq!(outcome.kind, Some(Kind::Address));
    let keys: Vec<Key> = outcome.delta.upsert.iter().map(Resource::key).collect();
    let host = Key::Service("a/h".parse().unwrap());
    assert_eq!(keys, [Key::Workload("w".into()), host]);
    let size = |r: discovery::Resource| r.resource.unwrap().value.len() as u64;
    assert_eq!(
        outcome.payload_bytes,
        size(workload("w", "1")) + size(service("a", "h"))
    );
}

#[test]
fn faults_are_told_in_one_nack_and_the_good_ones_are_taken() {
    let mut subscriber = Subscriber::new(node(), false);
    let unknown = wire::Address { r#type: None }.encode_to_vec();
    let mut good = response(Kind::Address, &[workload("w", "1")], &[]);
    good.resources.push(bad("b", "1").encode_to_vec().into());
    good.resources
        .push(resource("c", "1", Some(unknown)).encode_to_vec().into());
    good.resources
        .push(workload("x", "1").encode_to_vec().into());
    let outcome = subscriber.begin(good).finish();
    let nack = DeltaDiscoveryRequest {
        type_url: Kind::Address.url().into(),
        response_nonce: "n".into(),
        error_detail: Some(discovery::Status {
            code: 0,
            message: "b: no payload; c: unknown address type".into(),
            details: vec![],
        }),
        ..DeltaDiscoveryRequest::default()
    };
    assert_eq!(outcome.reply, nack);
    assert_eq!(outcome.delta.upsert.len(), 2);
    assert_eq!((outcome.rejected.len(), outcome.rejected_count), (2, 2));
}

#[test]
fn resources_without_a_readable_name_are_refused_alone() {
    let mut subscriber = Subscriber::new(node(), false);
    let mut garbled = response(Kind::Address, &[workload("w", "1")], &[]);
    garbled
        .resources
        .insert(0, Bytes::from_static(&[0x1a, 0x02, 0xff, 0xfe]));
    let outcome = subscriber.begin(garbled).finish();
    assert!(
        error(&outcome).starts_with("#1: cannot be decoded: "),
        "{}",
        error(&outcome)
    );
    assert_eq!(outcome.delta.upsert.len(), 1);
}

#[test]
fn what_a_nack_says_has_a_bound() {
    let mut subscriber = Subscriber::new(node(), false);
    let long = "é".repeat(10_000);
    let many: Vec<_> = (0..5000).map(|n| bad(&format!("{n}{long}"), "")).collect();
    let outcome = take(&mut subscriber, Kind::Authorization, &many, &[]);
    assert_eq!(outcome.rejected_count, 5000);
    assert!(
        error(&outcome).len() < 64 << 10,
        "{}",
        error(&outcome).len()
    );
    assert!(error(&outcome).ends_with("; and 4936 more"));
}

#[test]
fn a_type_that_nobody_asked_for_is_acked() {
    let mut subscriber = Subscriber::new(node(), false);
    let mut other = response(Kind::Address, &[workload("w", "1")], &["v"]);
    other.type_url = "type.googleapis.com/istio.workload.Workload".into();
    let mut batch = subscriber.begin(other);
    assert!(!batch.step(1));
    let outcome = batch.finish();
    assert_eq!(outcome.kind, None);
    assert!(outcome.delta.is_empty() && outcome.reply.error_detail.is_none());
    assert_eq!(outcome.reply.response_nonce, "n");
    assert_eq!(
        outcome.reply.type_url,
        "type.googleapis.com/istio.workload.Workload"
    );
    assert!(!subscriber.synced());
}

#[test]
fn removals_come_after_updates() {
    let mut subscriber = Subscriber::new(node(), false);
    let outcome = take(
        &mut subscriber,
        Kind::Address,
        &[workload("w", "1"), workload("v", "1")],
        &["w"],
    );
    assert_eq!(outcome.delta.remove, [Key::Workload("w".into())]);
    let keys: Vec<Key> = outcome.delta.upsert.iter().map(Resource::key).collect();
    assert_eq!(keys, [Key::Workload("v".into())]);
    assert_eq!(
        versions(&mut subscriber, Kind::Address),
        pairs(&[("v", "1")])
    );

    let outcome = take(
        &mut subscriber,
        Kind::Authorization,
        &[policy("a/p")],
        &["a/p", "a/q"],
    );
    assert_eq!(outcome.delta.upsert, []);
    assert_eq!(
        outcome.delta.remove,
        [Key::Policy("a/p".into())],
        "what is not held is nothing to remove"
    );
    assert!(outcome.reply.error_detail.is_none());
}

#[test]
fn removed_names_are_uids_first() {
    let mut subscriber = Subscriber::new(node(), false);
    let uid = "c//Pod/ns/p";
    let stray = discovery::Resource {
        name: "other name".into(),
        ..workload("a/stray", "1")
    };
    let held = [
        workload(uid, "1"),
        workload("a/like-a-host", "1"),
        service("a", "h"),
        stray,
    ];
    take(&mut subscriber, Kind::Address, &held, &[]);
    let service = |name: &str| Key::Service(name.parse().unwrap());
    let cases = [
        (uid, Some(Key::Workload(uid.into()))),
        (uid, None),
        ("a/like-a-host", Some(Key::Workload("a/like-a-host".into()))),
        ("a/like-a-host", None),
        ("a/h", Some(service("a/h"))),
        ("a/stray", Some(Key::Workload("a/stray".into()))),
        ("other name", None),
        ("a/unknown", None),
        ("c/net/WorkloadEntry/x/y", None),
        ("no-slash", None),
        ("", None),
    ];
    for (name, expected) in cases {
        let outcome = take(&mut subscriber, Kind::Address, &[], &[name]);
        assert_eq!(
            outcome.delta.remove,
            expected.into_iter().collect::<Vec<_>>(),
            "{name}"
        );
        assert!(outcome.reply.error_detail.is_none());
    }
}

#[test]
fn synced_when_each_type_was_acked_once() {
    type Case<'a> = (bool, &'a [(Kind, bool)], bool);
    let cases: [Case<'_>; 7] = [
        (false, &[], false),
        (false, &[(Kind::Address, true)], false),
        (false, &[(Kind::Authorization, true)], false),
        (
            false,
            &[(Kind::Address, true), (Kind::Authorization, true)],
            true,
        ),
        (
            false,
            &[(Kind::Address, false), (Kind::Authorization, true)],
            false,
        ),
        (true, &[(Kind::Authorization, false)], false),
        (true, &[(Kind::Authorization, true)], true),
    ];
    for (on_demand, responses, expected) in cases {
        let mut subscriber = Subscriber::new(node(), on_demand);
        for (kind, is_good) in responses {
            let faults = if *is_good { vec![] } else { vec![bad("b", "")] };
            take(&mut subscriber, *kind, &faults, &[]);
        }
        assert_eq!(subscriber.synced(), expected, "{on_demand} {responses:?}");
        subscriber.connected();
        assert_eq!(
            subscriber.synced(),
            expected,
            "a new stream changes nothing"
        );
        take(&mut subscriber, Kind::Authorization, &[bad("b", "")], &[]);
        assert_eq!(
            subscriber.synced(),
            expected,
            "a fault does not turn it back"
        );
    }
}

#[test]
fn demands_are_answered_by_name_alias_or_removal() {
    let mut subscriber = Subscriber::new(node(), true);
    let [asked] = subscriber.demand("/10.0.0.1").try_into().unwrap();
    let expected = DeltaDiscoveryRequest {
        type_url: Kind::Address.url().into(),
        resource_names_subscribe: vec!["/10.0.0.1".into()],
        ..DeltaDiscoveryRequest::default()
    };
    assert_eq!(asked, expected);
    for name in ["w", "a/h", "/10.0.0.9", "n/10.0.0.2"] {
        assert_eq!(subscriber.demand(name).len(), 1);
    }
    let unanswered = pairs(&[
        ("/10.0.0.1", ""),
        ("/10.0.0.9", ""),
        ("a/h", ""),
        ("n/10.0.0.2", ""),
        ("w", ""),
    ]);
    assert_eq!(versions(&mut subscriber, Kind::Address), unanswered);

    let resources = [
        workload("w", "3"),
        aliased(workload("v", "4"), &["/10.0.0.1", "/10.0.0.7"]),
        aliased(bad("u", "5"), &["n/10.0.0.2"]),
    ];
    let outcome = take(&mut subscriber, Kind::Address, &resources, &["/10.0.0.9"]);
    let released = [
        ("w", Answer::Held),
        ("/10.0.0.1", Answer::Held),
        ("n/10.0.0.2", Answer::Rejected),
        ("/10.0.0.9", Answer::Absent),
    ];
    let released = released.map(|(name, answer)| (name.to_owned(), answer));
    assert_eq!(outcome.released, released);
    let held = pairs(&[("a/h", ""), ("v", "4"), ("w", "3")]);
    assert_eq!(versions(&mut subscriber, Kind::Address), held);

    // a policy of that name is no answer
    let outcome = take(&mut subscriber, Kind::Authorization, &[policy("a/h")], &[]);
    assert_eq!(outcome.released, []);
    let outcome = take(&mut subscriber, Kind::Authorization, &[], &["a/h"]);
    assert_eq!(outcome.released, []);
    let outcome = take(&mut subscriber, Kind::Address, &[service("a", "h")], &[]);
    assert_eq!(outcome.released, [("a/h".to_owned(), Answer::Held)]);
}

#[test]
fn a_demand_does_not_overwrite_a_version() {
    let mut subscriber = Subscriber::new(node(), true);
    take(&mut subscriber, Kind::Address, &[workload("w", "3")], &[]);
    assert!(!subscriber.demand("w").is_empty());
    assert_eq!(
        versions(&mut subscriber, Kind::Address),
        pairs(&[("w", "3")])
    );
    assert!(Subscriber::new(node(), false).demand("w").is_empty());
}

/// Names that a demand unsubscribes, and those that it subscribes, request by request.
fn asks(subscriber: &mut Subscriber, name: &str) -> Vec<(Vec<String>, Vec<String>)> {
    let requests = subscriber.demand(name).into_iter();
    requests
        .map(|request| {
            assert_eq!(request.type_url, Kind::Address.url());
            let (coming, going) = (
                request.resource_names_subscribe,
                request.resource_names_unsubscribe,
            );
            (going, coming)
        })
        .collect()
}

#[test]
fn what_the_server_knows_already_is_asked_for_anew() {
    let name = |name: &str| vec![name.to_owned()];
    let once = |of: &str| vec![(vec![], name(of))];
    let anew = |of: &str| vec![(name(of), vec![]), (vec![], name(of))];
    let mut subscriber = Subscriber::new(node(), true);
    subscriber.connected();
    let found = aliased(workload("w", "1"), &["/10.0.0.1"]);
    let resources = [found, bad("refused", "1")];
    assert_eq!(asks(&mut subscriber, "/10.0.0.1"), once("/10.0.0.1"));
    assert_eq!(asks(&mut subscriber, "/10.0.0.2"), once("/10.0.0.2"));
    take(&mut subscriber, Kind::Address, &resources, &["/10.0.0.2"]);
    // asked for, found and not, sent under its name, sent and refused
    for known in ["/10.0.0.1", "/10.0.0.2", "w", "refused"] {
        assert_eq!(asks(&mut subscriber, known), anew(known));
    }
    take(&mut subscriber, Kind::Address, &[], &["w", "v"]);
    for gone in ["w", "v"] {
        assert_eq!(asks(&mut subscriber, gone), anew(gone), "gone");
    }
    // a new stream knows only what it is told
    take(
        &mut subscriber,
        Kind::Address,
        &[workload("w", "1")],
        &["v", "/10.0.0.1", "refused"],
    );
    take(&mut subscriber, Kind::Authorization, &[policy("a/p")], &[]);
    subscriber.connected();
    assert_eq!(asks(&mut subscriber, "v"), once("v"));
    assert_eq!(asks(&mut subscriber, "a/p"), once("a/p"));
    for told in ["w", "/10.0.0.2"] {
        assert_eq!(asks(&mut subscriber, told), anew(told));
    }
}

#[test]
fn names_that_find_no_room_are_asked_for_in_further_requests() {
    let mut subscriber = Subscriber::new(node(), true);
    let uids: Vec<String> = (0..100).map(|n| format!("workload-{n:03}")).collect();
    let all: Vec<_> = uids.iter().map(|uid| workload(uid, "12345")).collect();
    take(&mut subscriber, Kind::Address, &all, &[]);
    subscriber.demand("/10.0.0.1");
    assert_eq!(subscriber.connected().len(), 2);
    subscriber.first_bytes_max = 1000;
    let requests = subscriber.connected();
    assert!(requests.len() > 4, "{}", requests.len());
    assert!(requests.iter().all(|r| r.encoded_len() <= 1000));
    let [first, policies, late @ ..] = &requests[..] else {
        panic!("{requests:?}");
    };
    assert_eq!(policies.type_url, Kind::Authorization.url());
    let told = first.initial_resource_versions.keys();
    assert!(told.len() > 10, "as many as there is room for");
    let late = late.iter().flat_map(|request| {
        assert_eq!(request.type_url, Kind::Address.url());
        &request.resource_names_subscribe
    });
    let mut named: Vec<_> = told.chain(late).map(String::as_str).collect();
    named.sort_unstable();
    let mut expected: Vec<_> = uids.iter().map(String::as_str).collect();
    expected.insert(0, "/10.0.0.1");
    assert_eq!(named, expected);
}

#[test]
fn after_doubt_all_comes_again_and_what_went_meanwhile_goes() {
    let address = Kind::Address;
    for on_demand in [false, true] {
        let mut subscriber = Subscriber::new(node(), on_demand);
        let held = ["w", "gone", "dropped"].map(|uid| workload(uid, "7"));
        take(&mut subscriber, address, &held, &[]);
        take(&mut subscriber, Kind::Authorization, &[policy("a/p")], &[]);
        // applied by nobody
        let half = response(
            address,
            &[workload("w", "8"), workload("x", "1")],
            &["gone"],
        );
        drop(subscriber.begin(half).finish());
        let mut half = subscriber.begin(response(address, &[workload("y", "1")], &["w"]));
        half.step(1);
        drop(half);
        subscriber.doubt();
        let told = pairs(&[("dropped", ""), ("w", ""), ("x", ""), ("y", "")]);
        assert_eq!(
            versions(&mut subscriber, address),
            told,
            "the last one was applied"
        );
        let half = response(address, &[], &["w", "dropped"]);
        drop(subscriber.begin(half).finish());
        subscriber.doubt();
        assert_eq!(versions(&mut subscriber, address), told, "nobody knows");
        let outcome = take(
            &mut subscriber,
            address,
            &[workload("w", "9")],
            &["dropped"],
        );
        assert_eq!(outcome.delta.remove, [Key::Workload("dropped".into())]);
        let policies = versions(&mut subscriber, Kind::Authorization);
        assert_eq!(policies, pairs(&[("a/p", "")]));
    }
}

#[test]
fn a_name_that_brings_another_workload_takes_the_old_one_away() {
    let named = |name: &str, uid: &str| discovery::Resource {
        name: name.into(),
        ..workload(uid, "1")
    };
    let mut subscriber = Subscriber::new(node(), false);
    let mut index = Index::default();
    let mut step = |resources: &[discovery::Resource], removed: &[&str]| {
        let outcome = take(&mut subscriber, Kind::Address, resources, removed);
        index.apply(outcome.delta);
        let mut uids: Vec<_> = index.workloads().map(|w| w.uid.to_string()).collect();
        uids.sort_unstable();
        uids.join(" ")
    };
    assert_eq!(step(&[named("n", "a"), named("m", "b")], &[]), "a b");
    assert_eq!(step(&[named("n", "c")], &[]), "b c");
    // one comes under another name as it goes from the first, in either order
    assert_eq!(step(&[named("n", "d"), named("m", "c")], &[]), "c d");
    assert_eq!(step(&[named("m", "e"), named("n", "c")], &[]), "c e");
    assert_eq!(step(&[named("n", "x"), named("n", "y")], &[]), "e y");
    assert_eq!(step(&[], &["n"]), "e");
    // by its uid as well
    assert_eq!(step(&[], &["e"]), "");
}

#[test]
fn steps_are_as_one() {
    let resources: Vec<_> = (0..10).map(|n| workload(&n.to_string(), "1")).collect();
    let whole = take(
        &mut Subscriber::new(node(), false),
        Kind::Address,
        &resources,
        &["3"],
    );
    let mut subscriber = Subscriber::new(node(), false);
    let mut batch = subscriber.begin(response(Kind::Address, &resources, &["3"]));
    let mut steps = 1;
    while batch.step(3) {
        steps += 1;
    }
    assert_eq!(steps, 4);
    assert!(!batch.step(3));
    let stepped = batch.finish();
    assert_eq!(stepped.delta, whole.delta);
    let mut index = Index::default();
    index.apply(stepped.delta);
    assert_eq!(index.workloads().count(), 9);
}
