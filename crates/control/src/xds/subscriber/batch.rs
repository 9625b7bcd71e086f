//! One response, from the first resource to the answer.
//!
//! Each resource is taken or refused by itself. Leaves to others: what resources become (`convert`).

use std::collections::HashSet;
use std::vec;

use bytes::Bytes;
use mesh::index::Key;
use mesh::{Delta, Resource};
use prost::Message as _;
use proto::discovery::{self, DeltaDiscoveryRequest, DeltaDiscoveryResponse, Status};

use super::{Kind, Subscriber};
use crate::xds::convert::{self, Fault};

/// Resources that are taken from one response; the largest mesh that is known of is a twentieth of it.
const RESOURCES_MAX: usize = 4_000_000;
/// Aliases of one resource that are looked at: one for each of its addresses.
const ALIASES_MAX: usize = 1024;
/// Resources for which there is room before the first is converted.
const ROOM: usize = 4096;
/// Refused resources that are told one by one.
const REJECTED_MAX: usize = 64;
/// Bytes of a refused resource's name that are told.
const NAME_BYTES_MAX: usize = 512;

/// One response under way. To be finished, unless the subscriber goes as well: what was converted counts as held.
#[derive(Debug)]
#[must_use = "a response that was begun must be finished"]
pub struct Batch<'a> {
    subscriber: &'a mut Subscriber,
    kind: Option<Kind>,
    type_url: String,
    nonce: String,
    resources: vec::IntoIter<Bytes>,
    taken: usize,
    unnamed: usize,
    removed: Vec<String>,
    /// What names stood for that stand for something else now.
    replaced: Vec<Key>,
    upsert: Vec<Resource>,
    released: Vec<(String, Answer)>,
    rejected: Vec<Rejected>,
    rejected_count: usize,
    payload_bytes: u64,
}

/// What is to be done about a response: apply `delta`, then send `reply`, then let go who waits for `released`.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Type of the response; `None` for a type that nobody subscribed to, whose resources were skipped.
    pub kind: Option<Kind>,
    /// The change of the mesh.
    pub delta: Delta,
    /// ACK, or NACK with what was refused.
    pub reply: DeltaDiscoveryRequest,
    /// Names asked for by [`Subscriber::demand`] that are answered now.
    pub released: Vec<(String, Answer)>,
    /// The first resources that were refused.
    pub rejected: Vec<Rejected>,
    /// How many were refused in all.
    pub rejected_count: usize,
    /// Bytes of all payloads.
    pub payload_bytes: u64,
}

/// What became of a demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The mesh holds it, once the change is applied.
    Held,
    /// There is no such thing.
    Absent,
    /// It came and could not be understood.
    Rejected,
}

/// A resource that was refused. Its earlier version, if any, stays in effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Its name, cut at a bound.
    pub name: String,
    /// Why: the field, its value, what was expected.
    pub reason: String,
}

impl<'a> Batch<'a> {
    pub(super) fn new(subscriber: &'a mut Subscriber, response: DeltaDiscoveryResponse) -> Self {
        subscriber.pools.prune();
        // the response before this one is done with
        subscriber.leaving.clear();
        let DeltaDiscoveryResponse {
            resources,
            removed_resources,
            type_url,
            nonce,
            ..
        } = response;
        let kind = Kind::ALL.into_iter().find(|kind| kind.url() == type_url);
        let of_interest = kind.is_some();
        Self {
            subscriber,
            kind,
            type_url,
            nonce,
            upsert: Vec::with_capacity(if of_interest {
                resources.len().min(ROOM)
            } else {
                0
            }),
            resources: if of_interest { resources } else { Vec::new() }.into_iter(),
            taken: 0,
            unnamed: 0,
            removed: removed_resources,
            replaced: Vec::new(),
            released: Vec::new(),
            rejected: Vec::new(),
            rejected_count: 0,
            payload_bytes: 0,
        }
    }

    /// Converts up to `count` further resources. Returns whether there are more.
    pub fn step(&mut self, count: usize) -> bool {
        let Some(kind) = self.kind else { return false };
        for _ in 0..count {
            match self.resources.next() {
                Some(encoded) => self.take(kind, encoded),
                None => break,
            }
        }
        !self.resources.as_slice().is_empty()
    }

    fn take(&mut self, kind: Kind, encoded: Bytes) {
        self.taken += 1;
        if self.taken > RESOURCES_MAX {
            self.unnamed += 1;
            return self.reject(&format!("#{}", self.taken), &Fault::TooMany(RESOURCES_MAX));
        }
        let resource = match discovery::Resource::decode(encoded) {
            Ok(resource) => resource,
            // no name to tell: its place in the response has to do
            Err(error) => {
                self.unnamed += 1;
                return self.reject(&format!("#{}", self.taken), &Fault::from(error));
            }
        };
        self.payload_bytes += resource
            .resource
            .as_ref()
            .map_or(0, |any| any.value.len() as u64);
        let answer = match self.convert(kind, &resource) {
            Ok(()) => Answer::Held,
            Err(fault) => {
                self.subscriber.holdings_mut(kind).hear(&resource.name);
                self.subscriber.note(kind, &resource.name);
                self.reject(&resource.name, &fault);
                Answer::Rejected
            }
        };
        if kind == Kind::Address {
            self.release(&resource.name, answer);
            for alias in resource.aliases.iter().take(ALIASES_MAX) {
                self.release(alias, answer);
            }
        }
    }

    fn convert(&mut self, kind: Kind, from: &discovery::Resource) -> Result<(), Fault> {
        let payload = from
            .resource
            .as_ref()
            .ok_or(Fault::NoPayload)?
            .value
            .clone();
        let Subscriber {
            addresses,
            policies,
            pools,
            leaving,
            ..
        } = &mut *self.subscriber;
        let name = from.name.as_str();
        let (resource, holdings) = match kind {
            Kind::Address => (convert::address(payload, pools)?, addresses),
            Kind::Authorization => {
                let policy = convert::authorization(name.into(), payload, pools)?;
                (Resource::Policy(policy.into()), policies)
            }
        };
        if let Some(older) = holdings.hold(name, &from.version, &resource) {
            leaving.push((kind, name.into(), older.clone()));
            self.replaced.push(older);
        }
        self.upsert.push(resource);
        Ok(())
    }

    fn reject(&mut self, name: &str, fault: &Fault) {
        self.rejected_count += 1;
        if self.rejected.len() < REJECTED_MAX {
            self.rejected.push(Rejected {
                name: convert::quoted(name, NAME_BYTES_MAX),
                reason: fault.to_string(),
            });
        }
    }

    fn release(&mut self, name: &str, answer: Answer) {
        let demands = &mut self.subscriber.demands;
        if !demands.is_empty() && demands.answer(name) {
            self.released.push((name.to_owned(), answer));
        }
    }

    /// Converts what is left, and says what came out of it.
    pub fn finish(mut self) -> Outcome {
        while self.step(usize::MAX) {}
        self.sweep();
        let remove = self.removals();
        if !remove.is_empty() {
            // removals count as the last of a response, but come first in a delta
            let gone: HashSet<&Key> = remove.iter().collect();
            self.upsert
                .retain(|resource| !gone.contains(&resource.key()));
        }
        if let (Some(kind), 0) = (self.kind, self.rejected_count) {
            self.subscriber.unseen.retain(|unseen| *unseen != kind);
        }
        Outcome {
            kind: self.kind,
            reply: DeltaDiscoveryRequest {
                error_detail: self.error_detail(),
                type_url: self.type_url,
                response_nonce: self.nonce,
                ..DeltaDiscoveryRequest::default()
            },
            delta: Delta {
                remove,
                upsert: self.upsert,
            },
            released: self.released,
            rejected: self.rejected,
            rejected_count: self.rejected_count,
            payload_bytes: self.payload_bytes,
        }
    }

    /// If this response holds all there is, what is held and not in it is gone.
    fn sweep(&mut self) {
        let Some(kind) = self.kind else { return };
        let sweeping = &mut self.subscriber.sweeping;
        let Some(at) = sweeping.iter().position(|of| *of == kind) else {
            return;
        };
        sweeping.swap_remove(at);
        if self.unnamed == 0 {
            self.removed
                .extend(self.subscriber.holdings(kind).unheard());
        }
    }

    /// What the mesh holds and does not any more. A name that is not held is nothing to remove.
    fn removals(&mut self) -> Vec<Key> {
        let Some(kind) = self.kind else {
            return Vec::new();
        };
        let mut keys = std::mem::take(&mut self.replaced);
        for name in std::mem::take(&mut self.removed) {
            if let Some((held, key)) = self.subscriber.holdings_mut(kind).forget(&name) {
                self.subscriber.leaving.push((kind, held, key.clone()));
                keys.push(key);
            }
            if kind == Kind::Address {
                self.subscriber.note(kind, &name);
                self.release(&name, Answer::Absent);
            }
        }
        // under another name it is still there
        keys.retain(|key| !self.subscriber.holdings(kind).holds(key));
        keys
    }

    /// `<name>: <reason>` of what was refused; absent when all was taken.
    fn error_detail(&self) -> Option<Status> {
        if self.rejected_count == 0 {
            return None;
        }
        let mut told: Vec<String> = (self.rejected.iter())
            .map(|rejected| format!("{}: {}", rejected.name, rejected.reason))
            .collect();
        let untold = self.rejected_count - self.rejected.len();
        if untold > 0 {
            told.push(format!("and {untold} more"));
        }
        Some(Status {
            message: told.join("; "),
            ..Status::default()
        })
    }
}
