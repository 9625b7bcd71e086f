//! What a subscriber of the delta protocol says and keeps: a state machine, message in, request and change out. No I/O, no clock.
//!
//! Leaves to others: the stream itself and reconnecting (`xds`), applying changes (`publish`), what resources mean (`convert`).

mod batch;
mod demands;
mod holdings;
pub mod laws;

use std::collections::BTreeMap;

use mesh::index::Key;
use mesh::{Pools, Str};
use prost::Message as _;
use proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};

pub use self::batch::{Answer, Batch, Outcome, Rejected};
use self::demands::{Asked, Demands};
use self::holdings::Holdings;

/// The name that stands for all names.
const WILDCARD: &str = "*";

/// Bytes that a request on a new stream may have. istiod takes messages of up to 4 MiB, which is the versions of about 50k workloads.
const FIRST_BYTES_MAX: usize = 4_000_000;
/// What a name takes in a request besides its own bytes and those of its version, at most: tags and lengths.
const NAME_BYTES_MORE: usize = 24;

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
    /// Names to which the server has subscribed this stream, but for those that are held.
    asked: Asked,
    /// What the response of now takes from the holdings, for as long as it is not certain that the mesh has lost it.
    leaving: Vec<(Kind, Str, Key)>,
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
            asked: Asked::default(),
            leaving: Vec::new(),
            unseen,
            sweeping: Vec::new(),
            first_bytes_max: FIRST_BYTES_MAX,
            pools: Pools::default(),
        }
    }

    /// What to say first on a new stream, in this order. Holds the versions of all that is held, so it is made anew each time.
    ///
    /// No request is larger than a server takes. Where that is not enough for all versions, none is told of a type of which everything
    /// is subscribed to: the server sends all again then, and what is not in its first response is gone. On demand, the names
    /// that found no room follow in requests of their own.
    pub fn connected(&mut self) -> Vec<DeltaDiscoveryRequest> {
        self.sweeping.clear();
        self.asked.clear();
        let mut late = BTreeMap::new();
        let mut requests: Vec<_> = Kind::ALL
            .map(|kind| self.bounded_first_request(kind, &mut late))
            .into();
        requests.extend(self.late_requests(late));
        let demanded = self.demands.iter();
        demanded.for_each(|name| self.asked.note(name));
        requests
    }

    fn bounded_first_request(
        &mut self,
        kind: Kind,
        late: &mut BTreeMap<String, String>,
    ) -> DeltaDiscoveryRequest {
        let bound = self.first_bytes_max;
        if kind == Kind::Address && self.on_demand {
            let mut request = self.first_request(kind);
            if request.encoded_len() > bound {
                let all = std::mem::take(&mut request.initial_resource_versions);
                let mut bytes = request.encoded_len();
                let mut fits = |name: &str, version: &str| {
                    bytes += name.len() + version.len() + NAME_BYTES_MORE;
                    bytes <= bound
                };
                (request.initial_resource_versions, *late) = all
                    .into_iter()
                    .partition(|(name, version)| fits(name, version));
            }
            return request;
        }
        // the names alone tell in most cases, without a request of megabytes made in vain
        if self.holdings(kind).name_bytes() <= bound {
            let request = self.first_request(kind);
            if request.encoded_len() <= bound {
                return request;
            }
        }
        self.holdings_mut(kind).begin_sweep();
        self.sweeping.push(kind);
        self.request_with(kind, BTreeMap::new())
    }

    /// Asks for names, in requests of bounded size.
    fn late_requests(&self, names: BTreeMap<String, String>) -> Vec<DeltaDiscoveryRequest> {
        let mut requests: Vec<DeltaDiscoveryRequest> = Vec::new();
        let mut bytes = 0;
        for name in names.into_keys() {
            bytes += name.len() + NAME_BYTES_MORE;
            match requests.last_mut() {
                Some(last) if bytes <= self.first_bytes_max => {
                    last.resource_names_subscribe.push(name);
                }
                _ => {
                    let first = subscribe(vec![name]);
                    bytes = first.encoded_len();
                    requests.push(first);
                }
            }
        }
        requests
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

    /// Asks for one address: `<network>/<ip>`, `<namespace>/<hostname>` or a workload's uid. Nothing, if all are subscribed to anyway.
    ///
    /// istiod answers a subscription only where it is new. A name that it may have subscribed this stream to already (asked for, sent
    /// or removed before) is therefore unsubscribed first, in a request of its own, as names that come and go in one request are
    /// gone in the end. It is asked for again on each new stream until it is answered.
    pub fn demand(&mut self, name: &str) -> Vec<DeltaDiscoveryRequest> {
        if !self.on_demand {
            return Vec::new();
        }
        self.demands.add(name);
        let mut requests = Vec::with_capacity(2);
        if self.asked.contains(name) || self.addresses.contains(name) {
            requests.push(DeltaDiscoveryRequest {
                type_url: Kind::Address.url().to_owned(),
                resource_names_unsubscribe: vec![name.to_owned()],
                ..DeltaDiscoveryRequest::default()
            });
        }
        requests.push(subscribe(vec![name.to_owned()]));
        self.asked.note(name);
        requests
    }

    /// The server knows this name on this stream.
    fn note(&mut self, kind: Kind, name: &str) {
        if self.on_demand && kind == Kind::Address {
            self.asked.note(name);
        }
    }

    /// Makes the best of a response that was given up halfway: nobody knows how much of it the mesh has. The names of all that
    /// it may hold are kept, in no version, so that the next stream brings all of it again and tells what is gone.
    pub fn doubt(&mut self) {
        self.addresses = self.addresses.doubted();
        self.policies = self.policies.doubted();
        self.pools = Pools::default();
        for (kind, name, key) in std::mem::take(&mut self.leaving) {
            self.holdings_mut(kind).hold_key(name, "", key);
        }
    }

    /// Whether every type that must be seen was answered once without fault. Never turns back.
    pub fn synced(&self) -> bool {
        self.unseen.is_empty()
    }
}

fn subscribe(names: Vec<String>) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: Kind::Address.url().to_owned(),
        resource_names_subscribe: names,
        ..DeltaDiscoveryRequest::default()
    }
}

#[cfg(test)]
mod tests;
