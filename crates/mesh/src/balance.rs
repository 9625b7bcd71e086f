//! Picks one endpoint of a Service for one connection: which ones are eligible, which group is nearest, a draw by weight.
//!
//! Leaves to others: which Service, and which address of the endpoint (`route`).

use std::sync::Arc;

use rand::Rng;

use crate::index::{EndpointRef, Index};
use crate::service::{BalanceMode, LoadBalancer, Scope, Service};
use crate::workload::Workload;

/// What an endpoint is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Traffic to the Service itself: it must define the port.
    Standard,
    /// A waypoint: an application tunnel stands in for a port that the Service does not define.
    Waypoint,
}

/// For whom an endpoint is wanted, and what for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish<'a> {
    pub(crate) source: &'a Workload,
    pub(crate) service: &'a Service,
    pub(crate) service_port: u16,
    pub(crate) purpose: Purpose,
}

/// The endpoint and its port, or `None` when no endpoint is eligible.
///
/// The draw is uniform over the capacities of those that are nearest; capacity 0 is never drawn.
/// What is asked of an endpoint here must be one of the traits by which `index::groups` tells endpoints apart.
pub(crate) fn choose<'a>(
    index: &'a Index,
    wish: Wish<'a>,
    rng: &mut impl Rng,
) -> Option<(&'a Arc<Workload>, u16)> {
    if wish.service.is_passthrough() {
        return None;
    }
    let (mut best, mut weight) = (0, 0_u64);
    let mut nearest = Vec::new();
    for group in index.endpoint_groups(wish.service) {
        let Some(port) = wish.port_of(&group.like) else {
            continue;
        };
        let Some(rank) = wish.rank(group.like.workload) else {
            continue;
        };
        if rank > best {
            (best, weight) = (rank, 0);
            nearest.clear();
        }
        if rank == best {
            weight += group.weight();
            nearest.push((group, port));
        }
    }
    if weight == 0 {
        return None;
    }
    let mut drawn = rng.random_range(0..weight);
    for (group, port) in nearest {
        match drawn.checked_sub(group.weight()) {
            Some(rest) => drawn = rest,
            None => {
                let number = drawn / u64::from(group.like.workload.capacity);
                return Some((index.of_group(&group, number as usize), port));
            }
        }
    }
    None
}

impl Wish<'_> {
    /// The port to use at an endpoint; `None` = not eligible.
    fn port_of(&self, endpoint: &EndpointRef<'_>) -> Option<u16> {
        let workload = endpoint.workload;
        let remote = workload.network != self.source.network;
        let has_address = !workload.addresses.is_empty() || !workload.hostname.is_empty();
        let behind_gateway = remote && workload.network_gateway.is_some();
        if !has_address && !behind_gateway {
            return None;
        }
        let defined = self.service.ports.target(self.service_port);
        let tunnel = workload.application_tunnel;
        if defined.is_none() && (self.purpose == Purpose::Standard || tunnel.is_none()) {
            return None;
        }
        let own = endpoint
            .ports
            .target(self.service_port)
            .filter(|port| *port != 0);
        let target = own.or(defined.filter(|port| *port != 0));
        let as_asked = || {
            let by_tunnel =
                self.purpose == Purpose::Waypoint && tunnel.is_some_and(|t| t.port.is_some());
            by_tunnel.then_some(self.service_port)
        };
        target.or_else(as_asked)
    }

    /// How near a candidate is, higher is nearer; `None` = not to be used.
    fn rank(&self, candidate: &Workload) -> Option<usize> {
        let Some(LoadBalancer {
            routing_preferences: wanted,
            mode,
            ..
        }) = &self.service.load_balancer
        else {
            return Some(0);
        };
        if matches!(mode, BalanceMode::Standard | BalanceMode::Passthrough) {
            return Some(0);
        }
        let mut matched = 0;
        let mut bonus = 0;
        for (at, scope) in wanted.iter().enumerate() {
            let leading_network = at == 0 && *scope == Scope::Network;
            if same(*scope, self.source, candidate) {
                matched += 1;
                bonus = if leading_network {
                    wanted.len() - 1
                } else {
                    bonus
                };
            } else if !leading_network {
                break;
            }
        }
        (*mode != BalanceMode::Strict || matched == wanted.len()).then_some(matched + bonus)
    }
}

fn same(scope: Scope, a: &Workload, b: &Workload) -> bool {
    scope.of(a) == scope.of(b)
}

#[cfg(test)]
mod tests;
