//! Tables of cases for outbound decisions, one module per question, all about the mesh of `tests/mesh.yaml`.

mod address;
mod lookups;
mod networks;
mod steps;
mod waypoints;

use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::*;
use crate::local;

const MESH: &str = include_str!("tests/mesh.yaml");

/// What it is about, the client (`namespace/name`), what it dials, the decision.
type Case = (&'static str, &'static str, &'static str, &'static str);

fn mesh() -> Index {
    Index::build(local::parse(MESH).expect("a good file"))
}

fn flow(index: &Index, source: &str, target: &str) -> Flow {
    let source = index
        .workload(&format!("k//Pod/{source}"))
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

fn names(all: &[SpiffeId]) -> String {
    let all: Vec<_> = all.iter().map(SpiffeId::service_account).collect();
    all.join("+")
}

/// A decision in one line.
fn shown(decision: &Decision) -> String {
    let plan = match decision {
        Decision::Go(plan) => plan,
        Decision::Lacks(Lookup::Resolve(open)) => return format!("resolve {}", open.hostname()),
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
        } => format!(
            "hbone {to} for {authority} as {} {service}",
            names(expected)
        ),
        Hop::DoubleHbone {
            authority,
            gateway,
            expected,
        } => format!(
            "gateway {to} as {}, in it {authority} as {} {service}",
            names(gateway),
            names(expected)
        ),
    }
}

fn decide(index: &Index, source: &str, target: &str, seed: u64) -> String {
    let mut rng = SmallRng::seed_from_u64(seed);
    shown(&route(index, &flow(index, source, target), &mut rng))
}

fn check(cases: &[Case]) {
    let index = mesh();
    for (what, source, target, expected) in cases {
        assert_eq!(decide(&index, source, target, 1), *expected, "{what}");
    }
}
