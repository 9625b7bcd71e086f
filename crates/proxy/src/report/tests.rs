//! Who is told to be at the two ends of a flow, path by path.

use mesh::Index;

use super::*;

const MESH: &str = "
workloads:
- {uid: a, name: web-0, namespace: shop, serviceAccount: web, workloadName: web, canonicalName: web-app, canonicalRevision: v1, clusterId: c1, workloadIps: [10.0.0.1], trustDomain: t, services: {}}
- {uid: w, name: waypoint-0, namespace: shop, serviceAccount: waypoint, workloadName: waypoint, canonicalName: waypoint, clusterId: c1, workloadIps: [10.0.0.3], trustDomain: t, services: {}}
services:
- {name: cart, namespace: shop, hostname: cart.shop.svc, vips: [/10.1.0.1], ports: {80: 8080}}
";

fn index() -> Index {
    Index::build(mesh::local::parse(MESH).expect("the test's own state"))
}

fn workload(uid: &str) -> Option<Arc<Workload>> {
    index().workload(uid).cloned()
}

fn service() -> Option<Arc<Service>> {
    index().service_by_host("cart.shop.svc", None).cloned()
}

fn id(account: &str) -> Option<SpiffeId> {
    Some(SpiffeId::new("t", "shop", account))
}

fn baggage() -> Option<hbone::Baggage> {
    let text = |text: &str| Some(Str::from(text));
    Some(hbone::Baggage {
        cluster: text("c2"),
        namespace: text("east"),
        workload: Some((hbone::WorkloadKind::Deployment, "cart-deploy".into())),
        service: text("cart-app"),
        revision: text("v7"),
        region: text("eu-2"),
        zone: None,
    })
}

fn end(address: &str) -> End {
    End {
        address: Some(address.parse().unwrap()),
        ..End::default()
    }
}

fn facts(direction: Direction, source: End, destination: End) -> Facts {
    Facts {
        direction,
        source,
        destination,
        service: service(),
        authority: Some("10.1.0.1:80".into()),
        mutual_tls: true,
    }
}

/// One line of what a test expects of an end: workload, namespace, identity, cluster.
fn shown(peer: &Peer) -> [String; 4] {
    let text = |text: &Option<Str>| text.as_deref().unwrap_or("-").to_owned();
    let identity = peer.identity.as_ref().map(|id| id.service_account().into());
    [
        text(&peer.workload),
        text(&peer.namespace),
        text(&identity),
        text(&peer.cluster),
    ]
}

/// The same of its labels: workload, app, canonical service, version, namespace, principal.
fn labelled(end: &EndLabels) -> [String; 6] {
    let known = end.workload.clone().unwrap_or_default();
    let principal = end.principal.as_ref();
    [
        known.workload.to_string(),
        known.app.to_string(),
        known.canonical_service.to_string(),
        known.version.to_string(),
        known.namespace.to_string(),
        principal.map_or("", |id| id.service_account()).to_owned(),
    ]
}

#[test]
fn through_a_waypoint_the_service_is_the_one_dialled_and_the_workload_the_waypoint() {
    let source = End {
        workload: workload("a"),
        identity: id("web"),
        ..end("10.0.0.1:40000")
    };
    let destination = End {
        workload: workload("w"),
        identity: id("waypoint"),
        ..end("10.0.0.3:15008")
    };
    let facts = facts(Direction::Outbound, source, destination);
    let record = record(&facts);
    assert_eq!(record.service.as_deref(), Some("cart.shop.svc"));
    assert_eq!(record.hbone_authority.as_deref(), Some("10.1.0.1:80"));
    let waypoint = ["waypoint-0", "shop", "waypoint", "c1"];
    assert_eq!(shown(&record.destination), waypoint);
    assert_eq!(shown(&record.source), ["web-0", "shop", "web", "c1"]);
    let labels = labels(&facts);
    assert_eq!(&*labels.service.host, "cart.shop.svc");
    let [name, app, .., principal] = labelled(&labels.destination);
    assert_eq!([&*name, &app, &principal], ["waypoint"; 3]);
}

#[test]
fn across_networks_the_far_ends_word_labels_and_its_certificate_names() {
    let source = End {
        workload: workload("a"),
        identity: id("web"),
        ..end("10.0.0.1:40000")
    };
    let destination = End {
        baggage: baggage(),
        identity: id("cart"),
        ..end("192.0.2.1:15008")
    };
    let facts = facts(Direction::Outbound, source, destination);
    let record = record(&facts);
    assert_eq!(record.destination.address, facts.destination.address);
    let server = ["cart-deploy", "east", "cart", "c2"];
    assert_eq!(shown(&record.destination), server);
    assert_eq!(
        labelled(&labels(&facts).destination),
        [
            "cart-deploy",
            "cart-deploy",
            "cart-app",
            "v7",
            "east",
            "cart"
        ]
    );
}

#[test]
fn a_client_behind_a_gateway_is_who_its_certificate_says_and_what_it_says_itself() {
    let client = || End {
        baggage: baggage(),
        identity: id("web"),
        ..end("192.0.2.1:40000")
    };
    let local = || End {
        workload: workload("a"),
        identity: id("web"),
        ..end("10.0.0.1:15008")
    };
    let facts = facts(Direction::Inbound, client(), local());
    assert_eq!(
        shown(&record(&facts).source),
        ["cart-app", "east", "web", "c2"]
    );
    assert_eq!(
        labelled(&labels(&facts).source),
        [
            "cart-deploy",
            "cart-deploy",
            "cart-app",
            "v7",
            "east",
            "web"
        ]
    );
    // the mesh's word counts for more than the client's, but never for who it is
    let known = Facts {
        source: End {
            workload: workload("w"),
            ..client()
        },
        ..facts
    };
    let from = ["waypoint-0", "shop", "web", "c1"];
    assert_eq!(shown(&record(&known).source), from);
    let [name, .., principal] = labelled(&labels(&known).source);
    assert_eq!([&*name, &principal], ["waypoint", "web"]);
}

#[test]
fn plain_connections_prove_nobody() {
    let plain = Facts {
        mutual_tls: false,
        ..facts(
            Direction::Inbound,
            End {
                workload: workload("w"),
                identity: id("waypoint"),
                ..end("10.0.0.3:40000")
            },
            End {
                workload: workload("a"),
                identity: id("web"),
                ..end("10.0.0.1:80")
            },
        )
    };
    let record = record(&plain);
    for peer in [&record.source, &record.destination] {
        assert_eq!(peer.identity, None);
    }
    let labels = labels(&plain);
    assert_eq!(labels.source.principal, None);
    // of the server it is known from the mesh
    assert_eq!(labels.destination.principal, id("web"));
}
