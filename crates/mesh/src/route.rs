//! Where one new outbound connection goes: its next hop, the tunnel to use, and the peers to accept there.
//!
//! Leaves to others: dialling, resolving host names (asked for with [`Lookup`]), certificates.

mod leg;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rand::Rng;

use crate::balance::{Purpose, Wish, choose};
use crate::index::{Index, Referent};
use crate::name::Str;
use crate::ports::is_internal_port;
use crate::service::Service;
use crate::spiffe::SpiffeId;
use crate::workload::{Destination, GatewayAddress, Protocol, Workload};
pub use leg::Resolve;
use leg::{Leg, Road};

/// One new outbound connection.
#[derive(Clone, Debug)]
pub struct Flow {
    /// The pod's own workload. Its network and namespace decide what addresses mean.
    pub source: Arc<Workload>,
    /// The application's end of the connection.
    pub client: SocketAddr,
    /// What it dialled.
    pub target: SocketAddr,
    /// Whether the SOCKS listener is open, which makes its port one of ours.
    pub socks: bool,
}

/// What to do with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Everything is known.
    Go(Plan),
    /// Something must be looked up first.
    Lacks(Lookup),
    /// The mesh says no, and why.
    Refuse(Refusal),
}

/// How to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What to speak to the next hop.
    pub hop: Hop,
    /// The TCP next hop.
    pub to: SocketAddr,
    /// The workload at the next hop: endpoint or waypoint. Unknown for passthrough.
    pub destination: Option<Arc<Workload>>,
    /// The Service that was dialled. Unknown for passthrough.
    pub service: Option<Arc<Service>>,
}

/// What to speak to the next hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hop {
    /// Plain TCP to the dialled address, which is nothing the mesh chooses for.
    Passthrough,
    /// Plain TCP to a known workload.
    Tcp,
    /// A CONNECT tunnel over mutual TLS.
    Hbone {
        /// `:authority` of the CONNECT request.
        authority: String,
        /// Identities of which the peer must show one; never empty.
        expected: Vec<SpiffeId>,
    },
}

/// What is missing for a decision.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lookup {
    /// The chosen endpoint is known by host name only.
    #[error("no ip addresses were resolved for {}: host name endpoints need a resolver", .0.hostname())]
    Resolve(Box<Resolve>),
}

/// Why a connection gets no way. The texts are those of the access log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A loopback address with one of our own ports.
    #[error("attempted recursive call to ourselves")]
    SelfCall,
    /// The Service has no endpoint that may be used.
    #[error("no healthy upstream: {0}")]
    NoHealthyUpstream(SocketAddr),
    /// The waypoint is not known, or has no endpoint that may be used.
    #[error("unknown waypoint: {0}")]
    UnknownWaypoint(String),
    /// The chosen workload has no address that may be used.
    #[error("no valid routing destination for workload {0}")]
    NoDestination(Str),
    /// A host name has no address.
    #[error("no ip addresses were resolved for {0}")]
    NotResolved(Str),
    /// The chosen workload is on another network, behind a gateway.
    #[error("workload {0} is on another network: double HBONE not available yet")]
    OtherNetwork(Str),
}

/// Decides about one outbound connection.
///
/// A waypoint that cannot be used is a refusal, never a detour; an address that means nothing is passed through.
/// The same index, flow and state of `rng` give the same decision.
pub fn route(index: &Index, flow: &Flow, rng: &mut impl Rng) -> Decision {
    let target = SocketAddr::new(flow.target.ip().to_canonical(), flow.target.port());
    if target.ip().is_loopback() && is_internal_port(target.port(), flow.socks) {
        return Decision::Refuse(Refusal::SelfCall);
    }
    let asker = Asker {
        index,
        source: &flow.source,
        client: flow.client.ip().to_canonical(),
        target,
    };
    let network = &flow.source.network;
    let outcome = match index.service_by_ip(network, target.ip(), Some(&flow.source.namespace)) {
        Some(service) => asker.to_service(service, rng),
        None => match index.workload_by_ip(network, target.ip()) {
            Some(workload) => asker.to_workload(workload, rng),
            None => Ok(asker.pass_through()),
        },
    };
    outcome.unwrap_or_else(Decision::Refuse)
}

/// One flow, while its way is found.
struct Asker<'a> {
    index: &'a Index,
    source: &'a Arc<Workload>,
    client: IpAddr,
    target: SocketAddr,
}

/// A way, or why there is none.
type Outcome = Result<Decision, Refusal>;

impl Asker<'_> {
    fn to_service(&self, service: &Arc<Service>, rng: &mut impl Rng) -> Outcome {
        if let Some(waypoint) = draw_waypoint(service, rng) {
            return self.through(waypoint, Some(service), rng);
        }
        if service.is_passthrough() {
            return Ok(self.pass_through());
        }
        let wish = self.wish(service, self.target.port(), Purpose::Standard);
        let Some((workload, port)) = choose(self.index, wish, rng) else {
            return Err(Refusal::NoHealthyUpstream(self.target));
        };
        self.stay_on_network(workload)?;
        self.direct(workload, port, Some(service))
    }

    fn to_workload(&self, workload: &Arc<Workload>, rng: &mut impl Rng) -> Outcome {
        match &workload.waypoint {
            Some(waypoint) if !self.is_part_of(waypoint) => self.through(waypoint, None, rng),
            _ => self.direct(workload, self.target.port(), None),
        }
    }

    fn pass_through(&self) -> Decision {
        Decision::Go(Plan {
            hop: Hop::Passthrough,
            to: self.target,
            destination: None,
            service: None,
        })
    }

    /// Straight to the workload, with the tunnel that it speaks.
    fn direct(
        &self,
        workload: &Arc<Workload>,
        port: u16,
        service: Option<&Arc<Service>>,
    ) -> Outcome {
        let road = match workload.protocol {
            Protocol::Tcp => Road::Plain { port },
            Protocol::Hbone => Road::Tunnel {
                port,
                expected: expected(workload, service),
            },
        };
        Leg {
            destination: workload.clone(),
            service: service.cloned(),
            road,
        }
        .from(service, self.target.ip())
    }

    /// Through a waypoint, asking it for the address that was dialled.
    fn through(
        &self,
        waypoint: &GatewayAddress,
        service: Option<&Arc<Service>>,
        rng: &mut impl Rng,
    ) -> Outcome {
        let unknown =
            |why: &str| Refusal::UnknownWaypoint(format!("{}{why}", waypoint.destination));
        let port = waypoint.hbone_mtls_port;
        let (workload, port, over) = match self.referent(waypoint).ok_or_else(|| unknown(""))? {
            Referent::Workload(workload) => (workload, port, None),
            Referent::Service(over) => {
                let wish = self.wish(over, port, Purpose::Waypoint);
                let (workload, port) = choose(self.index, wish, rng)
                    .ok_or_else(|| unknown(" has no usable endpoint"))?;
                (workload, port, Some(over))
            }
        };
        if service.is_some() {
            self.stay_on_network(workload)?;
        } else if workload.network != self.source.network {
            return Err(Refusal::NoDestination(workload.uid.clone()));
        }
        let near = match &waypoint.destination {
            Destination::Hostname(_) => self.target.ip(),
            Destination::Address(literal) => literal.ip,
        };
        let road = Road::Waypoint {
            port,
            authority: self.target.to_string(),
            expected: expected(workload, over),
        };
        Leg {
            destination: workload.clone(),
            service: service.cloned(),
            road,
        }
        .from(over, near)
    }

    /// Refuses what is on another network.
    fn stay_on_network(&self, workload: &Workload) -> Result<(), Refusal> {
        if workload.network == self.source.network {
            return Ok(());
        }
        let uid = workload.uid.clone();
        Err(if workload.network_gateway.is_some() {
            Refusal::OtherNetwork(uid)
        } else {
            Refusal::NoDestination(uid)
        })
    }

    /// Whether the source is itself one of the workloads that make up a waypoint.
    fn is_part_of(&self, waypoint: &GatewayAddress) -> bool {
        let is_source =
            |w: &Workload| w.same_identity(self.source) && w.addresses.contains(&self.client);
        match self.referent(waypoint) {
            Some(Referent::Workload(workload)) => is_source(workload),
            Some(Referent::Service(service)) => {
                self.index.endpoints(service).any(|e| is_source(e.workload))
            }
            None => false,
        }
    }

    fn referent(&self, waypoint: &GatewayAddress) -> Option<Referent<'_>> {
        self.index
            .referent(&waypoint.destination, Some(&self.source.namespace))
    }

    fn wish<'b>(&'b self, service: &'b Service, service_port: u16, purpose: Purpose) -> Wish<'b> {
        Wish {
            source: self.source,
            service,
            service_port,
            purpose,
        }
    }
}

/// The waypoint for this connection: drawn by weight if there are weights, else the single one.
fn draw_waypoint<'a>(service: &'a Service, rng: &mut impl Rng) -> Option<&'a GatewayAddress> {
    let total: u64 = service
        .weighted_waypoints
        .iter()
        .map(|w| u64::from(w.weight))
        .sum();
    if total == 0 {
        return service.waypoint.as_deref();
    }
    let mut drawn = rng.random_range(0..total);
    for waypoint in &service.weighted_waypoints {
        match drawn.checked_sub(u64::from(waypoint.weight)) {
            Some(rest) => drawn = rest,
            None => return Some(&waypoint.destination),
        }
    }
    None
}

/// Identities to accept from a workload that was chosen through a Service.
fn expected(workload: &Workload, service: Option<&Arc<Service>>) -> Vec<SpiffeId> {
    let mut all = vec![workload.identity()];
    for id in service.into_iter().flat_map(|s| s.extra_identities()) {
        if !all.contains(id) {
            all.push(id.clone());
        }
    }
    all
}

#[cfg(test)]
mod tests;
