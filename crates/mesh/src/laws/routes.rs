//! What holds of every decision about an outbound connection, judged with the plain lists of `naive`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::draw::Draw;
use super::naive::{Choice, Meant, Naive, extra, has_family, same, waypoints};
use crate::index::{Index, Resource};
use crate::ports::{HBONE_PORT, is_internal_port};
use crate::route::{Decision, Flow, Hop, Lookup, Plan, Refusal, route};
use crate::service::{BalanceMode, Service};
use crate::workload::{GatewayAddress, Protocol, Workload};

/// `route` leads only where the mesh allows it, refuses only where it leaves no way, does the same for the same seed, and does
/// not depend on how the index came about.
pub fn route_is_sound(bytes: &[u8]) {
    let (mut index, flow, seed) = drawn(bytes);
    let decide = |index: &Index| route(index, &flow, &mut SmallRng::seed_from_u64(seed));
    let decision = decide(&index);
    assert_eq!(decision, decide(&index));
    assert_eq!(decision, decide(&Index::build(index.resources())));
    while index.settle() {}
    assert_eq!(decision, decide(&index));
    let naive = Naive::of(&index);
    let world = World::of(&naive, &index, &flow);
    match decision {
        Decision::Go(plan) => world.check_plan(&plan, None),
        Decision::Refuse(why) => world.check_refusal(&why),
        Decision::Lacks(lookup) => world.check_lookup(&lookup, seed),
    }
}

/// What may come of a connection.
#[cfg(test)]
pub(super) const KINDS: [&str; 11] = [
    "passthrough",
    "plain",
    "tunnel",
    "waypoint",
    "gateway",
    "lookup",
    "self call",
    "no upstream",
    "no waypoint",
    "no destination",
    "no gateway",
];

/// Which of them comes of this one.
#[cfg(test)]
pub(super) fn kind_met(bytes: &[u8]) -> &'static str {
    let (index, flow, seed) = drawn(bytes);
    match route(&index, &flow, &mut SmallRng::seed_from_u64(seed)) {
        Decision::Lacks(_) => "lookup",
        Decision::Go(plan) => match plan.hop {
            Hop::Passthrough => "passthrough",
            Hop::Tcp => "plain",
            Hop::Hbone { authority, .. } => {
                let asked: SocketAddr = authority.parse().expect("an address");
                let is_direct = asked.ip() == plan.to.ip() && plan.to.port() == HBONE_PORT;
                if is_direct { "tunnel" } else { "waypoint" }
            }
            Hop::DoubleHbone { .. } => "gateway",
        },
        Decision::Refuse(why) => match why {
            Refusal::SelfCall => "self call",
            Refusal::NoHealthyUpstream(_) => "no upstream",
            Refusal::UnknownWaypoint(_) => "no waypoint",
            Refusal::NoDestination(_) => "no destination",
            Refusal::UnknownGateway(_) | Refusal::NoInnerIdentity(_) => "no gateway",
            Refusal::NotResolved(_) => "not resolved",
        },
    }
}

/// An index, a connection, and the seed of its draws.
pub(super) fn drawn(bytes: &[u8]) -> (Index, Flow, u64) {
    let mut draw = Draw::new(bytes);
    let index = draw.mesh();
    let flow = Flow {
        source: Arc::new(draw.workload()),
        client: draw.socket(),
        target: draw.target(),
        socks: draw.flag(),
    };
    // most connections are from and to what is in the mesh
    let (mut known, mut vips) = (None, None);
    for resource in index.resources() {
        match resource {
            Resource::Workload(workload) if draw.flag() => known = Some(workload),
            Resource::Service(service) if draw.flag() => vips = service.vips.first().cloned(),
            _ => {}
        }
    }
    let source = known.unwrap_or_else(|| flow.source.clone());
    let client = match source.addresses.first() {
        Some(own) => SocketAddr::new(*own, flow.client.port()),
        None => flow.client,
    };
    let target = match vips {
        Some(vip) => SocketAddr::new(vip.ip, flow.target.port()),
        None => flow.target,
    };
    let flow = Flow {
        source,
        client,
        target,
        ..flow
    };
    (index, flow, u64::from(draw.byte()))
}

/// What a connection may lead to.
struct World<'a> {
    naive: &'a Naive,
    index: &'a Index,
    flow: &'a Flow,
    /// The Service that was dialled.
    service: Option<Arc<Service>>,
    /// The waypoints of which one must be taken; then nothing else may be.
    waypoints: Vec<GatewayAddress>,
    /// What may be chosen: the waypoints' workloads, endpoints, or the workload that was dialled.
    choices: Vec<Choice>,
    /// Nothing of the mesh is at the address, or only a Service for which it does not choose.
    is_outside: bool,
}

impl<'a> World<'a> {
    fn of(naive: &'a Naive, index: &'a Index, flow: &'a Flow) -> Self {
        let (source, target) = (&*flow.source, flow.target);
        let meant = naive.meant(&source.network, target.ip(), &source.namespace);
        let mut world = Self {
            naive,
            index,
            flow,
            service: None,
            waypoints: Vec::new(),
            choices: Vec::new(),
            is_outside: false,
        };
        match meant {
            Meant::Service(service) => {
                world.waypoints = waypoints(&service).into_iter().cloned().collect();
                let balancer = service.load_balancer.as_ref();
                let passes = balancer.is_some_and(|b| b.mode == BalanceMode::Passthrough);
                let there = naive.workload_at(&source.network, target.ip());
                match there.filter(|_| passes && world.waypoints.is_empty()) {
                    Some(there) => world.add_workload(there),
                    None => {
                        world.is_outside = passes && world.waypoints.is_empty();
                        world.choices = naive.candidates(source, &service, target.port(), false);
                        world.service = (!world.is_outside).then_some(service);
                    }
                }
            }
            Meant::Workload(workload) => world.add_workload(&workload),
            Meant::Nothing => world.is_outside = true,
        }
        if !world.waypoints.is_empty() {
            let behind = |w| naive.behind(source, w, true);
            world.choices = world.waypoints.iter().flat_map(behind).collect();
        }
        world
    }

    /// The workload itself is dialled.
    fn add_workload(&mut self, workload: &Arc<Workload>) {
        let (source, client) = (&self.flow.source, self.flow.client.ip());
        let is_source =
            |w: &Workload| w.identity() == source.identity() && w.addresses.contains(&client);
        let foreign = workload
            .waypoint
            .iter()
            .filter(|waypoint| !self.naive.is_part(waypoint, &source.namespace, is_source));
        self.waypoints = foreign.map(|waypoint| (**waypoint).clone()).collect();
        self.choices.push(Choice {
            near: None,
            workload: workload.clone(),
            port: self.flow.target.port(),
            over: None,
        });
    }

    /// The choices with a certain workload on this side of a gateway or not.
    fn choices(&self, across: bool) -> impl Iterator<Item = &Choice> {
        let own = &self.flow.source.network;
        self.choices
            .iter()
            .filter(move |choice| (choice.workload.network != *own) == across)
    }

    /// - `resolved`: the addresses that the host name of the destination turned out to have
    fn check_plan(&self, plan: &Plan, resolved: Option<&[IpAddr]>) {
        assert!(!self.is_self_call(), "a call to ourselves goes nowhere");
        assert_eq!(plan.service, self.service, "the Service that was dialled");
        let Some(destination) = &plan.destination else {
            assert!(self.is_outside, "passed by: {plan:?}");
            assert_eq!((&plan.hop, plan.to), (&Hop::Passthrough, self.flow.target));
            return;
        };
        assert!(!self.is_outside, "nothing of the mesh is dialled");
        assert_eq!(self.index.workload(&destination.uid), Some(destination));
        let at = |c: &Choice| self.may_be(c, plan.to.ip(), resolved);
        match &plan.hop {
            Hop::Passthrough => panic!("in the clear past {}", destination.uid),
            Hop::Tcp => {
                assert_eq!(destination.protocol, Protocol::Tcp, "in the clear");
                assert!(self.waypoints.is_empty(), "past a waypoint");
                let meets =
                    |c: &Choice| c.workload == *destination && c.port == plan.to.port() && at(c);
                assert!(self.choices(false).any(meets), "{plan:?}");
            }
            Hop::Hbone {
                authority,
                expected,
            } => {
                let meets = |c: &Choice| {
                    at(c) && c.leads_to(destination, expected) && self.asks(c, plan.to, authority)
                };
                assert!(
                    !self.waypoints.is_empty() || destination.protocol == Protocol::Hbone,
                    "a tunnel to who has none"
                );
                assert!(self.choices(false).any(meets), "{plan:?}");
            }
            Hop::DoubleHbone {
                authority,
                gateway,
                expected,
            } => {
                let service = self.service.as_ref().expect("only for Services");
                let name = format!("{}:{}", service.hostname, self.flow.target.port());
                assert_eq!(*authority, name);
                assert!(!expected.is_empty(), "the inner peer is checked");
                let meets = |far: &Choice, c: &Choice| {
                    at(c)
                        && c.leads_to(destination, gateway)
                        && c.port == plan.to.port()
                        && same(expected, &extra(far.over.as_ref()))
                };
                let mut fars = self.choices(true);
                assert!(fars.any(|far| self.gateways(far).iter().any(|c| meets(far, c))));
            }
        }
    }

    /// Whether a tunnel to `to` asks a choice for what it must: a waypoint for what was dialled, others for their own port.
    fn asks(&self, choice: &Choice, to: SocketAddr, authority: &str) -> bool {
        let (port, asked) = match self.waypoints.is_empty() {
            true => (HBONE_PORT, SocketAddr::new(to.ip(), choice.port)),
            false => (choice.port, self.flow.target),
        };
        to.port() == port && *authority == asked.to_string()
    }

    /// The gateways to a choice on another network.
    fn gateways(&self, far: &Choice) -> Vec<Choice> {
        let reference = far.workload.network_gateway.iter();
        reference
            .flat_map(|gateway| self.naive.behind(&self.flow.source, gateway, false))
            .collect()
    }

    /// Whether an address may be used for a choice: the one that was dialled or referred to, else one of the dialled family.
    fn may_be(&self, choice: &Choice, used: IpAddr, resolved: Option<&[IpAddr]>) -> bool {
        let usable = self.usable(choice);
        let near = choice.near.unwrap_or(self.flow.target.ip());
        let of_family = |all: &[IpAddr]| all.iter().any(|ip| ip.is_ipv4() == near.is_ipv4());
        let all = match resolved {
            Some(resolved) if usable.is_empty() => resolved,
            Some(_) => return false,
            None if usable.contains(&near) => return used == near,
            None => &usable,
        };
        all.contains(&used) && (used.is_ipv4() == near.is_ipv4() || !of_family(all))
    }

    /// The own addresses of a choice that may be used.
    fn usable(&self, choice: &Choice) -> Vec<IpAddr> {
        let near = choice.near.unwrap_or(self.flow.target.ip());
        let all = choice.workload.addresses.iter().copied();
        all.filter(|ip| *ip == near || has_family(choice.over.as_ref(), *ip))
            .collect()
    }

    fn is_self_call(&self) -> bool {
        let Flow { target, socks, .. } = self.flow;
        target.ip().is_loopback() && is_internal_port(target.port(), *socks)
    }

    /// A refusal has its reason in what may be chosen.
    fn check_refusal(&self, why: &Refusal) {
        let is_balanced = self.service.is_some() && self.waypoints.is_empty();
        let is_service = self.service.is_some();
        let lost = |reference: &GatewayAddress, waypoint| {
            (self.naive.behind(&self.flow.source, reference, waypoint)).is_empty()
        };
        let nameless = |c: &Choice| c.workload.hostname.is_empty() && self.usable(c).is_empty();
        let holds = match why {
            Refusal::SelfCall => self.is_self_call(),
            Refusal::NoHealthyUpstream(at) => {
                *at == self.flow.target && is_balanced && self.choices.is_empty()
            }
            Refusal::UnknownWaypoint(_) => self.waypoints.iter().any(|w| lost(w, true)),
            Refusal::NoDestination(uid) => {
                let blocked = |far: &Choice| {
                    far.workload.uid == *uid
                        && (!is_service || far.workload.network_gateway.is_none())
                };
                let ours = |c: &Choice| c.workload.uid == *uid && nameless(c);
                self.choices(true).any(blocked)
                    || self.choices(false).any(ours)
                    || self
                        .choices(true)
                        .any(|far| self.gateways(far).iter().any(ours))
            }
            Refusal::UnknownGateway(_) => self.choices(true).any(|far| {
                let gateway = far.workload.network_gateway.as_deref();
                is_service && gateway.is_some_and(|gateway| lost(gateway, false))
            }),
            Refusal::NoInnerIdentity(_) => self
                .choices(true)
                .any(|far| is_service && extra(far.over.as_ref()).is_empty()),
            Refusal::NotResolved(_) => false,
        };
        assert!(holds, "refused without need: {why}");
    }

    /// A host name is asked for where it is all there is; what follows from its addresses is judged like anything.
    fn check_lookup(&self, lookup: &Lookup, seed: u64) {
        let Lookup::Resolve(open) = lookup;
        let answer = |all: &[IpAddr]| {
            let open = open.as_ref().clone();
            open.answer(all, &mut SmallRng::seed_from_u64(seed))
        };
        let four: IpAddr = [192, 0, 2, 1].into();
        let six: IpAddr = [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into();
        for addresses in [&[four][..], &[six], &[six, four]] {
            match answer(addresses) {
                Decision::Go(plan) => {
                    let host = plan.destination.as_ref().map(|d| &*d.hostname);
                    assert!(host == Some(open.hostname()) && host != Some(""));
                    self.check_plan(&plan, Some(addresses));
                }
                other => panic!("resolved, and still {other:?}"),
            }
        }
        assert!(matches!(
            answer(&[]),
            Decision::Refuse(Refusal::NotResolved(_))
        ));
    }
}
