//! What a subscriber of the delta protocol says and keeps: a state machine, message in, request and change out. No I/O, no clock.
//!
//! Leaves to others: the stream itself and reconnecting (`xds`), applying changes (`publish`), what resources mean (`convert`).

use mesh::{Delta, Pools};
use proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};

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
    pools: Pools,
}

impl Subscriber {
    /// A subscriber that holds nothing.
    ///
    /// - `node`: who it says that it is, in the first request of each type
    /// - `on_demand`: asks for addresses by name, see [`demand`](Self::demand), instead of for all
    pub fn new(node: Node, on_demand: bool) -> Self {
        Self {
            node,
            on_demand,
            pools: Pools::default(),
        }
    }

    /// What to say first on a new stream, in this order.
    pub fn connected(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let _ = (&self.node, self.on_demand);
        Vec::new()
    }

    /// Takes a response in. Convert it by [`Batch::step`], then [`Batch::finish`].
    pub fn begin(&mut self, response: DeltaDiscoveryResponse) -> Batch<'_> {
        Batch {
            subscriber: self,
            response,
        }
    }

    /// Asks for one address: `<network>/<ip>`, `<namespace>/<hostname>` or a workload's uid.
    ///
    /// `None`: nothing to send, because all are subscribed to, the question is under way already, or there are too many of these.
    pub fn demand(&mut self, _name: &str) -> Option<DeltaDiscoveryRequest> {
        None
    }

    /// Whether every type that must be seen was answered once without fault. Never turns back.
    pub fn synced(&self) -> bool {
        false
    }
}

/// One response under way. Not to be dropped before [`finish`](Self::finish), unless the subscriber is.
#[derive(Debug)]
#[must_use = "a response that was begun must be finished"]
pub struct Batch<'a> {
    subscriber: &'a mut Subscriber,
    response: DeltaDiscoveryResponse,
}

impl Batch<'_> {
    /// Converts up to `count` further resources. Returns whether there are more.
    pub fn step(&mut self, _count: usize) -> bool {
        let _ = &self.subscriber.pools;
        false
    }

    /// Converts what is left, and says what came out of it.
    pub fn finish(self) -> Outcome {
        Outcome {
            kind: None,
            delta: Delta::default(),
            reply: DeltaDiscoveryRequest {
                type_url: self.response.type_url,
                ..DeltaDiscoveryRequest::default()
            },
            released: Vec::new(),
            rejected: Vec::new(),
            rejected_count: 0,
            payload_bytes: 0,
        }
    }
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
