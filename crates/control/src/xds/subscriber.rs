//! What a subscriber of the delta protocol says and keeps: a state machine, message in, request and change out. No I/O, no clock.
//!
//! Leaves to others: the stream itself and reconnecting (`xds`), applying changes (`publish`), what resources mean (`convert`).

mod batch;
mod demands;
mod holdings;
pub mod laws;

use mesh::Pools;
use proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};

pub use self::batch::{Answer, Batch, Outcome, Rejected};
use self::demands::Demands;
use self::holdings::Holdings;

/// The name that stands for all names.
const WILDCARD: &str = "*";

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
            pools: Pools::default(),
        }
    }

    /// What to say first on a new stream, in this order. Holds the versions of all that is held, so it is made anew each time.
    pub fn connected(&mut self) -> Vec<DeltaDiscoveryRequest> {
        Kind::ALL.map(|kind| self.first_request(kind)).into()
    }

    fn first_request(&self, kind: Kind) -> DeltaDiscoveryRequest {
        let by_name = kind == Kind::Address && self.on_demand;
        // subscribing and unsubscribing at once is how the protocol says "to nothing yet": no name at all would mean all
        let names: Vec<String> = by_name.then(|| WILDCARD.to_owned()).into_iter().collect();
        let mut versions = self.holdings(kind).versions();
        if by_name {
            for name in self.demands.iter() {
                versions.entry(name.to_owned()).or_default();
            }
        }
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
