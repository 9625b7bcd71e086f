//! The last part of a decision: which address of the chosen workload, now or after its host name is resolved.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rand::Rng;

use super::{Decision, Hop, Lookup, Plan, Refusal};
use crate::ports::HBONE_PORT;
use crate::service::{IpFamilies, Service};
use crate::spiffe::SpiffeId;
use crate::workload::Workload;

/// A chosen workload and the road to it; only the address is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Leg {
    pub(super) destination: Arc<Workload>,
    pub(super) service: Option<Arc<Service>>,
    pub(super) road: Road,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Road {
    /// Plain TCP to this port.
    Plain { port: u16 },
    /// HBONE to the workload itself, asking for this port of it.
    Tunnel { port: u16, expected: Vec<SpiffeId> },
    /// HBONE to this port of a waypoint, asking for what was dialled.
    Waypoint {
        port: u16,
        authority: String,
        expected: Vec<SpiffeId>,
    },
    /// Double HBONE through this port of a network gateway.
    Gateway {
        port: u16,
        authority: String,
        gateway: Vec<SpiffeId>,
        expected: Vec<SpiffeId>,
    },
}

/// A decision that waits for the addresses of a host name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolve {
    leg: Leg,
    near: IpAddr,
}

impl Resolve {
    /// The host name to resolve, A and AAAA.
    pub fn hostname(&self) -> &str {
        &self.leg.destination.hostname
    }

    /// Goes on with the addresses found: a random one of the family that was dialled, else a random other one.
    pub fn answer(self, addresses: &[IpAddr], rng: &mut impl Rng) -> Decision {
        let near = self.near;
        let of_family = |same: bool| {
            let all = addresses.iter().map(IpAddr::to_canonical);
            all.filter(move |ip| (ip.is_ipv4() == near.is_ipv4()) == same)
        };
        let same = of_family(true).next().is_some();
        let count = of_family(same).count();
        let drawn = (count > 0).then(|| rng.random_range(0..count));
        match drawn.and_then(|at| of_family(same).nth(at)) {
            Some(ip) => Decision::Go(self.leg.plan(ip)),
            None => Decision::Refuse(Refusal::NotResolved(self.leg.destination.hostname.clone())),
        }
    }
}

impl Leg {
    /// Finds the address and finishes the plan.
    ///
    /// - `over`: the Service through which the workload was chosen; its address families bind
    /// - `near`: taken itself if it is one of the workload's, else its family is preferred
    pub(super) fn from(
        self,
        over: Option<&Arc<Service>>,
        near: IpAddr,
    ) -> Result<Decision, Refusal> {
        let addresses = &self.destination.addresses;
        let families = over.and_then(|service| service.ip_families);
        let allowed = || {
            addresses
                .iter()
                .copied()
                .filter(|ip| is_allowed(families, *ip))
        };
        let found = (addresses.contains(&near).then_some(near))
            .or_else(|| allowed().find(|ip| ip.is_ipv4() == near.is_ipv4()))
            .or_else(|| allowed().next());
        match found {
            Some(ip) => Ok(Decision::Go(self.plan(ip))),
            None if self.destination.hostname.is_empty() => {
                Err(Refusal::NoDestination(self.destination.uid.clone()))
            }
            None => Ok(Decision::Lacks(Lookup::Resolve(Box::new(Resolve {
                leg: self,
                near,
            })))),
        }
    }

    fn plan(self, ip: IpAddr) -> Plan {
        let (to, hop) = match self.road {
            Road::Plain { port } => (SocketAddr::new(ip, port), Hop::Tcp),
            Road::Tunnel { port, expected } => {
                let authority = SocketAddr::new(ip, port).to_string();
                (
                    SocketAddr::new(ip, HBONE_PORT),
                    Hop::Hbone {
                        authority,
                        expected,
                    },
                )
            }
            Road::Waypoint {
                port,
                authority,
                expected,
            } => (
                SocketAddr::new(ip, port),
                Hop::Hbone {
                    authority,
                    expected,
                },
            ),
            Road::Gateway {
                port,
                authority,
                gateway,
                expected,
            } => (
                SocketAddr::new(ip, port),
                Hop::DoubleHbone {
                    authority,
                    gateway,
                    expected,
                },
            ),
        };
        Plan {
            hop,
            to,
            destination: Some(self.destination),
            service: self.service,
        }
    }
}

fn is_allowed(families: Option<IpFamilies>, ip: IpAddr) -> bool {
    match families {
        None | Some(IpFamilies::Dual) => true,
        Some(IpFamilies::Ipv4) => ip.is_ipv4(),
        Some(IpFamilies::Ipv6) => ip.is_ipv6(),
    }
}
