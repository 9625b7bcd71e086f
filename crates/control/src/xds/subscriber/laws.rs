//! What always holds of a subscriber, as functions from arbitrary bytes: driven by `cargo test` with fixed seeds and by `fuzz/` with any.
//!
//! Each panics where its law is broken, and does nothing else. Not for use in the daemon.

mod hostile;
mod server;

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use mesh::dump::Snapshot;
use mesh::{Attempt, Flow, Index, Pools, Resource, authorize, route};
use prost::Message as _;
use proto::discovery::{self, DeltaDiscoveryResponse, Node};
use proto::wellknown::Any;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::{Kind, Outcome, Subscriber};
use crate::xds::convert;
use server::Server;

/// All laws.
pub const ALL: &[fn(&[u8])] = &[
    follows_the_server,
    takes_any_responses,
    takes_any_address,
    takes_any_authorization,
    takes_hostile_responses,
    takes_hostile_address,
    takes_hostile_authorization,
];

/// Bytes that a law draws its cases from; zeros when they are used up.
struct Draw<'a> {
    bytes: &'a [u8],
}

impl<'a> Draw<'a> {
    fn byte(&mut self) -> u8 {
        match self.bytes.split_first() {
            Some((first, rest)) => {
                self.bytes = rest;
                *first
            }
            None => 0,
        }
    }

    /// A number below `end`, which is not 0.
    fn below(&mut self, end: u8) -> u8 {
        self.byte() % end
    }

    fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    fn part(&mut self, length: usize) -> &'a [u8] {
        let (part, rest) = self.bytes.split_at(length.min(self.bytes.len()));
        self.bytes = rest;
        part
    }
}

/// What is true of every answer.
fn check(nonce: &str, type_url: &str, outcome: &Outcome) {
    let reply = &outcome.reply;
    assert_eq!(
        (reply.response_nonce.as_str(), reply.type_url.as_str()),
        (nonce, type_url)
    );
    assert_eq!(reply.error_detail.is_some(), outcome.rejected_count > 0);
    assert!(outcome.rejected.len() <= outcome.rejected_count);
    assert!(reply.node.is_none() && reply.initial_resource_versions.is_empty());
    let told = reply
        .error_detail
        .as_ref()
        .map_or(0, |status| status.message.len());
    assert!(told < 128 << 10, "a bounded text");
}

/// A subscriber answers each response once, holds what a model of the protocol holds, says so on each new stream, and after an
/// exchange without faults holds just what the server has: whatever was changed, cut off and refused before.
pub fn follows_the_server(bytes: &[u8]) {
    let mut draw = Draw { bytes };
    let on_demand = draw.flag();
    let mut subscriber = Subscriber::new(Node::default(), on_demand);
    if draw.flag() {
        subscriber.first_bytes_max = usize::from(draw.byte());
    }
    let mut server = Server::new(on_demand, subscriber.first_bytes_max);
    let mut index = Index::default();
    server.connect(&subscriber.connected());
    while !draw.bytes.is_empty() {
        match draw.below(9) {
            8 => {
                give_up(&mut server, &mut subscriber, &mut draw);
                server.connect(&subscriber.connected());
            }
            0 => server.connect(&subscriber.connected()),
            1 => {
                let requests = subscriber.demand(&server::name(&mut draw));
                server.asked(&requests);
            }
            2..4 => server.change(&mut draw),
            _ => exchange(&mut server, &mut subscriber, &mut index, &mut draw),
        }
    }
    server.mend();
    server.connect(&subscriber.connected());
    while exchange_next(&mut server, &mut subscriber, &mut index, usize::MAX) {}
    assert_eq!(index, Index::build(server.world()));
    assert!(subscriber.synced());
}

fn exchange(
    server: &mut Server,
    subscriber: &mut Subscriber,
    index: &mut Index,
    draw: &mut Draw<'_>,
) {
    let step = usize::from(draw.below(3)) + 1;
    exchange_next(server, subscriber, index, step);
}

/// A response that is taken in, or half of it, and of which the mesh learns nothing: a panic was in the way.
fn give_up(server: &mut Server, subscriber: &mut Subscriber, draw: &mut Draw<'_>) {
    let Some(response) = server.next() else {
        return;
    };
    let mut batch = subscriber.begin(response);
    let steps = draw.flag().then(|| usize::from(draw.below(3)));
    match steps {
        None => drop(batch.finish()),
        Some(0) => {}
        Some(steps) => {
            batch.step(steps);
        }
    }
    server.given_up(steps);
    subscriber.doubt();
    server.doubted();
}

/// One response and its answer. Returns whether there was any.
fn exchange_next(
    server: &mut Server,
    subscriber: &mut Subscriber,
    index: &mut Index,
    step: usize,
) -> bool {
    let Some(response) = server.next() else {
        return false;
    };
    let (nonce, url) = (response.nonce.clone(), response.type_url.clone());
    let (faults, rest) = (server.faults(&response), server.waiting());
    let mut batch = subscriber.begin(response);
    while batch.step(step) {}
    let outcome = batch.finish();
    check(&nonce, &url, &outcome);
    assert_eq!(outcome.rejected_count, faults);
    for (name, _) in &outcome.released {
        assert!(rest.contains(name), "{name} was not asked for");
    }
    index.apply(outcome.delta);
    server.answered(&outcome.reply, &outcome.released);
    assert_eq!(*index, Index::build(server.held()), "what the model holds");
    let would_say = Kind::ALL.map(|kind| subscriber.first_request(kind));
    assert_eq!(would_say, server.expected_first(), "what the model says");
    true
}

/// Any sequence of responses leaves an index that is equal to one built afresh, and each is answered.
///
/// The bytes are cut in responses by their first two bytes, the length.
pub fn takes_any_responses(bytes: &[u8]) {
    let mut draw = Draw { bytes };
    let mut subscriber = Subscriber::new(Node::default(), draw.flag());
    let mut index = Index::default();
    while !draw.bytes.is_empty() {
        let length = usize::from(draw.byte()) << 8 | usize::from(draw.byte());
        let part = Bytes::copy_from_slice(draw.part(length));
        let Ok(response) = DeltaDiscoveryResponse::decode(part) else {
            continue;
        };
        take(response, &mut subscriber, &mut index);
        for request in subscriber.connected() {
            assert_eq!(request.node, Some(Node::default()));
        }
    }
}

/// The same for responses that decode, with hostile parts.
pub fn takes_hostile_responses(bytes: &[u8]) {
    let mut draw = Draw { bytes };
    let mut subscriber = Subscriber::new(Node::default(), draw.flag());
    let mut index = Index::default();
    while !draw.bytes.is_empty() {
        if draw.below(4) == 0 {
            subscriber.connected();
        }
        take(hostile::response(&mut draw), &mut subscriber, &mut index);
        decide(&index);
    }
}

fn take(response: DeltaDiscoveryResponse, subscriber: &mut Subscriber, index: &mut Index) {
    let (nonce, url) = (response.nonce.clone(), response.type_url.clone());
    let outcome = subscriber.begin(response).finish();
    check(&nonce, &url, &outcome);
    index.apply(outcome.delta);
    assert_eq!(*index, Index::build(index.resources()));
}

fn response(kind: Kind, name: &str, payload: &[u8]) -> DeltaDiscoveryResponse {
    let resource = discovery::Resource {
        name: name.to_owned(),
        resource: Some(Any {
            type_url: String::new(),
            value: Bytes::copy_from_slice(payload),
        }),
        ..discovery::Resource::default()
    };
    DeltaDiscoveryResponse {
        resources: vec![resource.encode_to_vec().into()],
        type_url: kind.url().to_owned(),
        ..DeltaDiscoveryResponse::default()
    }
}

/// Any bytes as the payload of an address are refused, or make a mesh in which every connection is decided about and which can be
/// shown; the same bytes twice make the same.
pub fn takes_any_address(bytes: &[u8]) {
    let mut subscriber = Subscriber::new(Node::default(), false);
    let first = subscriber
        .begin(response(Kind::Address, "x", bytes))
        .finish();
    let again = subscriber
        .begin(response(Kind::Address, "x", bytes))
        .finish();
    assert_eq!(first.delta, again.delta);
    let mut index = Index::default();
    index.apply(first.delta);
    index.apply(again.delta);
    assert_eq!(index, Index::build(index.resources()));
    let shown = Snapshot::take(&index);
    for view in [
        serde_json::to_string(&shown.workloads()),
        serde_json::to_string(&shown.services()),
    ] {
        assert!(view.is_ok_and(|text| !text.is_empty()));
    }
    decide(&index);
}

/// The same for payloads that decode, with hostile parts.
pub fn takes_hostile_address(bytes: &[u8]) {
    takes_any_address(&hostile::address(&mut Draw { bytes }));
}

/// Every connection between what is there.
fn decide(index: &Index) {
    let here: SocketAddr = ([10, 0, 0, 1], 40_000).into();
    let sources = index.workloads().cloned().chain([Arc::default()]);
    let vips = index
        .services()
        .flat_map(|s| s.vips.iter().map(|vip| vip.ip));
    let ranges = index
        .services()
        .flat_map(|s| s.cidr_vips.iter().map(|range| range.cidr.addr()));
    let own = index.workloads().flat_map(|w| w.addresses.iter().copied());
    let ports = index
        .services()
        .flat_map(|s| s.ports.iter().map(|port| port.service));
    let ports: Vec<u16> = ports.take(4).chain([80, 15008]).collect();
    let targets: Vec<_> = vips.chain(ranges).chain(own).take(8).collect();
    for source in sources {
        for target in targets
            .iter()
            .flat_map(|ip| ports.iter().map(|port| (*ip, *port).into()))
        {
            let flow = Flow {
                source: source.clone(),
                client: here,
                target,
                socks: false,
            };
            let decided = route(index, &flow, &mut SmallRng::seed_from_u64(0));
            assert_eq!(
                decided,
                route(index, &flow, &mut SmallRng::seed_from_u64(0))
            );
        }
    }
}

/// Any bytes as the payload of a policy are refused, or make a policy that decides about every connection.
pub fn takes_any_authorization(bytes: &[u8]) {
    let mut subscriber = Subscriber::new(Node::default(), false);
    let outcome = subscriber
        .begin(response(Kind::Authorization, "a/p", bytes))
        .finish();
    let mut index = Index::default();
    let rejected = outcome.rejected_count;
    index.apply(outcome.delta);
    assert_eq!(index.policies().count() + rejected, 1);
    let shown = Snapshot::take(&index);
    assert!(serde_json::to_string(&shown.policies()).is_ok_and(|text| !text.is_empty()));
    let local = mesh::Workload::default().with(|profile| {
        profile.authorization_policies = Pools::default().keys(["a/p"]);
    });
    let identity = local.identity();
    for identity in [None, Some(&identity)] {
        let attempt = Attempt {
            identity,
            source: ([10, 0, 0, 1], 40_000).into(),
            destination: ([10, 0, 0, 2], 80).into(),
            local: &local,
        };
        assert_eq!(authorize(&index, &attempt), authorize(&index, &attempt));
    }
}

/// The same for payloads that decode, with hostile parts.
pub fn takes_hostile_authorization(bytes: &[u8]) {
    takes_any_authorization(&hostile::authorization(&mut Draw { bytes }));
}

/// What a good payload is taken for.
fn converted(kind: Kind, name: &str, payload: &Bytes) -> Option<Resource> {
    let pools = &mut Pools::default();
    match kind {
        Kind::Address => convert::address(payload.clone(), pools).ok(),
        Kind::Authorization => {
            let policy = convert::authorization(name.into(), payload.clone(), pools).ok()?;
            Some(Resource::Policy(policy.into()))
        }
    }
}

#[cfg(test)]
mod tests;
