//! Waypoints and network gateways: what a reference to one means, and the way to another network.
//!
//! References are looked up in the state that is there; nothing is fetched for them.

use std::net::IpAddr;
use std::sync::Arc;

use rand::Rng;

use super::leg::{Leg, Road};
use super::{Asker, Outcome, Refusal, expected};
use crate::balance::{Purpose, choose};
use crate::index::Referent;
use crate::service::Service;
use crate::spiffe::SpiffeId;
use crate::workload::{Destination, GatewayAddress, Workload};

/// What a reference led to.
pub(super) struct Found<'a> {
    /// The waypoint or gateway itself.
    pub(super) workload: &'a Arc<Workload>,
    /// Its port for HBONE.
    pub(super) port: u16,
    /// The Service through which it was chosen.
    pub(super) over: Option<&'a Arc<Service>>,
    /// Whose family its address should have.
    pub(super) near: IpAddr,
}

impl Asker<'_> {
    /// Finds one workload for a reference; the error is what to tell after `unknown waypoint` or `unknown network gateway`.
    pub(super) fn find(
        &self,
        reference: &GatewayAddress,
        purpose: Purpose,
        rng: &mut impl Rng,
    ) -> Result<Found<'_>, String> {
        let GatewayAddress {
            destination,
            hbone_mtls_port: port,
        } = reference;
        let near = match destination {
            Destination::Hostname(_) => self.target.ip(),
            Destination::Address(literal) => literal.ip,
        };
        let (workload, port, over) = match self.referent(destination) {
            None => return Err(destination.to_string()),
            Some(Referent::Workload(workload)) => (workload, *port, None),
            Some(Referent::Service(over) | Referent::Range(over)) => {
                let chosen = choose(self.index, self.wish(over, *port, purpose), rng);
                let (workload, port) =
                    chosen.ok_or_else(|| format!("{destination} has no usable endpoint"))?;
                (workload, port, Some(over))
            }
        };
        Ok(Found {
            workload,
            port,
            over,
            near,
        })
    }

    /// To a workload on another network, through its gateway, asking for the Service by name.
    ///
    /// - `over`: the Service through which the workload was chosen: the dialled one, or its waypoint's
    pub(super) fn across(
        &self,
        workload: &Workload,
        service: &Arc<Service>,
        over: Option<&Arc<Service>>,
        rng: &mut impl Rng,
    ) -> Outcome {
        let no_way = || Refusal::NoDestination(workload.uid.clone());
        let reference = workload.network_gateway.as_ref().ok_or_else(no_way)?;
        let found = self.find(reference, Purpose::Standard, rng);
        let found = found.map_err(Refusal::UnknownGateway)?;
        let behind = names_of(over);
        if behind.is_empty() {
            let who = over.map_or(&workload.uid, |over| &over.hostname);
            return Err(Refusal::NoInnerIdentity(who.clone()));
        }
        let road = Road::Gateway {
            port: found.port,
            authority: format!("{}:{}", service.hostname, self.target.port()),
            gateway: expected(found.workload, found.over),
            expected: behind,
        };
        Leg {
            destination: found.workload.clone(),
            service: Some(service.clone()),
            road,
        }
        .from(found.over, found.near)
    }

    /// Whether the source is itself one of the workloads that make up a waypoint, whatever its health.
    pub(super) fn is_part_of(&self, waypoint: &GatewayAddress) -> bool {
        let is_source =
            |w: &Workload| w.same_identity(self.source) && w.addresses.contains(&self.client);
        match self.referent(&waypoint.destination) {
            Some(Referent::Workload(workload)) => is_source(workload),
            Some(Referent::Service(service) | Referent::Range(service)) => {
                let mut all = self.index.endpoints_whatever_health(service);
                all.any(|e| is_source(e.workload))
            }
            None => false,
        }
    }

    fn referent(&self, reference: &Destination) -> Option<Referent<'_>> {
        self.index.referent(reference, Some(&self.source.namespace))
    }
}

/// The identities that a Service lists, each once.
fn names_of(service: Option<&Arc<Service>>) -> Vec<SpiffeId> {
    let mut all = Vec::new();
    for id in service.into_iter().flat_map(|s| s.extra_identities()) {
        if !all.contains(id) {
            all.push(id.clone());
        }
    }
    all
}
