//! Where one new outbound connection goes: its next hop, the tunnels to use, and the peers to accept there.
//!
//! One rule for networks: an address means what it means on the network that the control plane states for the source's
//! workload. The network setting of the daemon is not asked, so that a wrong one cannot hide a waypoint.
//!
//! Leaves to others: dialling, resolving host names (asked for with [`Lookup`]), asking the control plane (for what [`lookup`]
//! says), certificates.

mod gateway;
mod leg;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rand::Rng;

use crate::balance::{Purpose, Wish, choose};
use crate::index::{Index, Referent};
use crate::name::{NetworkAddress, Str};
use crate::ports::is_internal_port;
use crate::service::Service;
use crate::spiffe::SpiffeId;
use crate::workload::{GatewayAddress, Protocol, Workload};
use gateway::Found;
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
    /// The workload at the next hop: endpoint, waypoint or network gateway. Unknown for passthrough.
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
    /// A CONNECT tunnel to a network gateway, and in it another over mutual TLS of its own to whom the gateway leads.
    DoubleHbone {
        /// `:authority` of both CONNECT requests: host name of the Service and the port that was dialled.
        authority: String,
        /// Identities of which the gateway must show one; never empty.
        gateway: Vec<SpiffeId>,
        /// Identities of which the peer of the inner tunnel must show one; never empty.
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
    /// The gateway to the chosen workload's network is not known, or has no endpoint that may be used.
    #[error("unknown network gateway: {0}")]
    UnknownGateway(String),
    /// Nothing says who may answer behind the gateway: the Service through which the endpoint was chosen lists no SPIFFE id.
    #[error("no identity to expect behind a network gateway: {0} has no subject alternative names")]
    NoInnerIdentity(Str),
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
    let outcome = match index.at(network, target.ip(), Some(&flow.source.namespace)) {
        Some(Referent::Service(service) | Referent::Range(service)) => {
            asker.to_service(service, rng)
        }
        Some(Referent::Workload(workload)) => asker.to_workload(workload, rng),
        None => Ok(asker.pass_through()),
    };
    outcome.unwrap_or_else(Decision::Refuse)
}

/// What a daemon that holds only part of the mesh must ask the control plane for before [`route`] can decide.
///
/// `None` when the index answers already: with a Service that the source may use and that has just this address, or with the
/// workload there. A range that holds the address is no answer, as something unknown may have the address itself. A workload is
/// one, though a Service that is not held may have its address: asked about an address where a workload is, istiod tells of the
/// workload only, so asking would bring nothing.
pub fn lookup(index: &Index, flow: &Flow) -> Option<NetworkAddress> {
    let (network, ip) = (&flow.source.network, flow.target.ip().to_canonical());
    if ip.is_loopback() {
        return None;
    }
    let at = NetworkAddress {
        network: network.clone(),
        ip,
    };
    let known = index.at(network, ip, Some(&flow.source.namespace));
    matches!(known, None | Some(Referent::Range(_))).then_some(at)
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
            // "as dialled" also means: a workload there is spoken to as workloads are, not in the clear
            let there = (self.index).workload_by_ip(&self.source.network, self.target.ip());
            return match there {
                Some(workload) => self.to_workload(workload, rng),
                None => Ok(self.pass_through()),
            };
        }
        let wish = self.wish(service, self.target.port(), Purpose::Standard);
        let Some((workload, port)) = choose(self.index, wish, rng) else {
            return Err(Refusal::NoHealthyUpstream(self.target));
        };
        if workload.network != self.source.network {
            return self.across(workload, service, Some(service), rng);
        }
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
        let found = self.find(waypoint, Purpose::Waypoint, rng);
        let Found {
            workload,
            port,
            over,
            near,
        } = found.map_err(Refusal::UnknownWaypoint)?;
        if workload.network != self.source.network {
            // only what is addressed by a Service can be named to a gateway
            let Some(service) = service else {
                return Err(Refusal::NoDestination(workload.uid.clone()));
            };
            return self.across(workload, service, over, rng);
        }
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
