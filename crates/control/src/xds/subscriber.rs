//! What a subscriber of the delta protocol says and keeps: a state machine, message in, request and change out. No I/O, no clock.
//!
//! Leaves to others: the stream itself and reconnecting (`xds`), applying changes (`publish`), what resources mean (`convert`).

mod batch;
mod demands;
mod holdings;
pub mod laws;

use std::collections::BTreeMap;

use mesh::Pools;
use prost::Message as _;
use proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};

pub use self::batch::{Answer, Batch, Outcome, Rejected};
use self::demands::Demands;
use self::holdings::Holdings;

/// The name that stands for all names.
const WILDCARD: &str = "*";

/// Bytes that a first request may have. istiod takes messages of up to 4 MiB, which is the versions of about 50k workloads.
const FIRST_BYTES_MAX: usize = 4_000_000;

/// The types of resources that are subscribed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Workloads and services.
    Address,
    /// Policies.
    Authorization,
}

impl Kind {
    /// All of them, in the order of their first requests.
    pub const ALL: [Self; 2] = [Self::Address, Self::Authorization];

    /// Its type URL.
    pub const fn url(self) -> &'static str {
        match self {
            Self::Address => "type.googleapis.com/istio.workload.Address",
            Self::Authorization => "type.googleapis.com/istio.security.Authorization",
        }
    }
}

/// One subscriber: what it asked for, what it holds and in which version.
#[derive(Debug)]
pub struct Subscriber {
    node: Node,
    on_demand: bool,
    addresses: Holdings,
    policies: Holdings,
    demands: Demands,
    /// Types that must be answered without fault once.
    unseen: Vec<Kind>,
    /// Types whose next response holds all there is: what it does not name is gone.
    sweeping: Vec<Kind>,
    first_bytes_max: usize,
    pools: Pools,
}

impl Subscriber {
    /// A subscriber that holds nothing.
    ///
    /// - `node`: who it says that it is, in the first request of each type
    /// - `on_demand`: asks for addresses by name, see [`demand`](Self::demand), instead of for all
    pub fn new(node: Node, on_demand: bool) -> Self {
        let mut unseen = Kind::ALL.to_vec();
        unseen.retain(|kind| !(on_demand && *kind == Kind::Address));
        Self {
            node,
            on_demand,
            addresses: Holdings::default(),
            policies: Holdings::default(),
            demands: Demands::default(),
            unseen,
            sweeping: Vec::new(),
            first_bytes_max: FIRST_BYTES_MAX,
            pools: Pools::default(),
        }
    }

    /// What to say first on a new stream, in this order. Holds the versions of all that is held, so it is made anew each time.
    ///
    /// Versions that are too many for one message are left out: the server sends all again then, and what is not in its first
    /// response is gone.
    pub fn connected(&mut self) -> Vec<DeltaDiscoveryRequest> {
        self.sweeping.clear();
        Kind::ALL
            .map(|kind| self.bounded_first_request(kind))
            .into()
    }

    fn bounded_first_request(&mut self, kind: Kind) -> DeltaDiscoveryRequest {
        let is_wildcard = !(kind == Kind::Address && self.on_demand);
        // the names alone tell in most cases, without a request of megabytes made in vain
        if !(is_wildcard && self.holdings(kind).name_bytes() > self.first_bytes_max) {
            let request = self.first_request(kind);
            if !is_wildcard || request.encoded_len() <= self.first_bytes_max {
                return request;
            }
        }
        self.holdings_mut(kind).begin_sweep();
        self.sweeping.push(kind);
        self.request_with(kind, BTreeMap::new())
    }

    fn first_request(&self, kind: Kind) -> DeltaDiscoveryRequest {
        let mut versions = self.holdings(kind).versions();
        if kind == Kind::Address {
            for name in self.demands.iter() {
                versions.entry(name.to_owned()).or_default();
            }
        }
        self.request_with(kind, versions)
    }

    fn request_with(
        &self,
        kind: Kind,
        versions: BTreeMap<String, String>,
    ) -> DeltaDiscoveryRequest {
        let by_name = kind == Kind::Address && self.on_demand;
        // subscribing and unsubscribing at once is how the protocol says "to nothing yet": no name at all would mean all
        let names: Vec<String> = by_name.then(|| WILDCARD.to_owned()).into_iter().collect();
        DeltaDiscoveryRequest {
            node: Some(self.node.clone()),
            type_url: kind.url().to_owned(),
            resource_names_subscribe: names.clone(),
            resource_names_unsubscribe: names,
            initial_resource_versions: versions,
            ..DeltaDiscoveryRequest::default()
        }
    }

    fn holdings(&self, kind: Kind) -> &Holdings {
        match kind {
            Kind::Address => &self.addresses,
            Kind::Authorization => &self.policies,
        }
    }

    fn holdings_mut(&mut self, kind: Kind) -> &mut Holdings {
        match kind {
            Kind::Address => &mut self.addresses,
            Kind::Authorization => &mut self.policies,
        }
    }

    /// Takes a response in. Convert it by [`Batch::step`], then [`Batch::finish`].
    pub fn begin(&mut self, response: DeltaDiscoveryResponse) -> Batch<'_> {
        Batch::new(self, response)
    }

    /// Asks for one address: `<network>/<ip>`, `<namespace>/<hostname>` or a workload's uid.
    ///
    /// The name is asked for again on each new stream until it is answered. `None`: all are subscribed to anyway.
    pub fn demand(&mut self, name: &str) -> Option<DeltaDiscoveryRequest> {
        if !self.on_demand {
            return None;
        }
        self.demands.add(name);
        Some(DeltaDiscoveryRequest {
            type_url: Kind::Address.url().to_owned(),
            resource_names_subscribe: vec![name.to_owned()],
            ..DeltaDiscoveryRequest::default()
        })
    }

    /// Whether every type that must be seen was answered once without fault. Never turns back.
    pub fn synced(&self) -> bool {
        self.unseen.is_empty()
    }
}

#[cfg(test)]
mod tests;
