//! What holds of every decision about an inbound connection, judged with the plain lists of `naive`.

use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::draw::Draw;
use super::naive::{Meant, Naive, target};
use super::routes::drawn;
use crate::admit::{Authority, Connect, Plain, Rejection, admit, admit_plain};
use crate::index::Index;
use crate::ports::is_internal_port;
use crate::route::{Decision, Flow, Hop, Plan, route};
use crate::workload::{GatewayAddress, TunnelFormat, Workload};

/// `admit` delivers to the own pod or its loopback only, nothing that was asked for on a port of ours, and nothing that is
/// meant for another. What `route` sends through a tunnel to a workload is never refused there as meant for another.
pub fn admit_is_sound(bytes: &[u8]) {
    let (index, flow, seed) = drawn(bytes);
    let mut draw = Draw::new(bytes.get(bytes.len() / 2..).unwrap_or_default());
    let identity = flow.source.identity();
    let local = &flow.source;
    let authority = draw.authority();
    let asked = Connect {
        local,
        tunnel_local: flow.client.ip(),
        client: draw.socket(),
        identity: draw.flag().then_some(&identity),
        authority: &authority,
        forwarded_host: None,
        socks: flow.socks,
        localhost_app_tunnel: draw.flag(),
        keep_source: draw.flag(),
    };
    check_admitted(&index, &asked);
    let plain = Plain {
        local,
        target: flow.target,
        client: asked.client,
        socks: flow.socks,
        keep_source: asked.keep_source,
    };
    let is_ours = is_internal_port(flow.target.port(), flow.socks);
    match admit_plain(&index, &plain) {
        Ok(admitted) => assert!(!is_ours && admitted.to == flow.target),
        Err(why) => assert!(is_ours && why == Rejection::SelfCall),
    }
    let decision = route(&index, &flow, &mut SmallRng::seed_from_u64(seed));
    if let Decision::Go(plan) = decision {
        check_taken(&index, &flow, &plan);
    }
}

fn check_admitted(index: &Index, asked: &Connect<'_>) {
    let (local, pod) = (asked.local, asked.tunnel_local);
    let tunnel = local.application_tunnel;
    let Ok(admitted) = admit(index, asked) else {
        return;
    };
    assert!(is_meant(index, asked), "meant for another");
    assert_eq!(admitted.destination.ip(), pod, "the own pod");
    let is_proxy = tunnel.is_some_and(|t| t.protocol == TunnelFormat::Proxy);
    let on_loopback = is_proxy && asked.localhost_app_tunnel;
    assert!(admitted.to.ip() == pod || (on_loopback && admitted.to.ip().is_loopback()));
    assert_eq!(admitted.to.port(), admitted.destination.port());
    let port = admitted.to.port();
    match tunnel.and_then(|t| t.port) {
        Some(tunnel) => assert_eq!(port, tunnel),
        None => assert!(!is_internal_port(port, asked.socks), "a port of ours"),
    }
    match asked.authority {
        Authority::Address(at) => {
            assert!(!is_internal_port(at.port(), asked.socks), "a port of ours");
        }
        Authority::Host { port, .. } => {
            let service = admitted
                .service
                .as_ref()
                .expect("a host name is a Service's");
            let target = target(service, local, *port);
            assert!(
                target.is_some_and(|port| !is_internal_port(port, asked.socks)),
                "a port of ours"
            );
        }
    }
    let from = admitted.from;
    assert!(from.is_none() || (asked.keep_source && from == Some(asked.client.ip())));
}

/// Whether the pod is asked for, or stands for what the peer asks for.
fn is_meant(index: &Index, asked: &Connect<'_>) -> bool {
    let Authority::Address(at) = asked.authority else {
        return true;
    };
    let (local, pod) = (asked.local, asked.tunnel_local);
    let naive = Naive::of(index);
    let is_it = |w: &Workload| w.uid == local.uid || w.addresses.contains(&pod);
    let is_waypoint = |waypoint: Option<&Arc<GatewayAddress>>, namespace: &str| {
        waypoint.is_some_and(|w| naive.is_part(w, namespace, is_it))
    };
    let waypoint_of = |namespace: &str| match naive.meant(&local.network, at.ip(), namespace) {
        Meant::Service(service) => is_waypoint(service.waypoint.as_ref(), namespace),
        Meant::Workload(workload) => is_waypoint(workload.waypoint.as_ref(), namespace),
        Meant::Nothing => false,
    };
    // who proves no identity may have meant what anyone means
    let eyes = asked.identity.map(|id| id.namespace());
    at.ip() == pod || local.application_tunnel.is_some() || eyes.is_none_or(waypoint_of)
}

/// The other end of a plan's tunnel takes it, or refuses for another reason than whose it is.
fn check_taken(index: &Index, flow: &Flow, plan: &Plan) {
    let (Hop::Hbone { authority, .. }, Some(local)) = (&plan.hop, &plan.destination) else {
        return;
    };
    let weighted = (plan.service.as_ref()).is_some_and(|s| !s.weighted_waypoints.is_empty());
    if weighted || !local.addresses.contains(&plan.to.ip()) {
        return;
    }
    let identity = flow.source.identity();
    let asked = Connect {
        local,
        tunnel_local: plan.to.ip(),
        client: flow.client,
        identity: Some(&identity),
        authority: &Authority::Address(authority.parse().expect("an address")),
        forwarded_host: None,
        socks: false,
        localhost_app_tunnel: true,
        keep_source: true,
    };
    let mismatch = matches!(admit(index, &asked), Err(Rejection::Mismatch { .. }));
    assert!(!mismatch, "sent to {} in vain", local.uid);
}
