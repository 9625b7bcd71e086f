//! Outbound: a connection that the application opened and capture brought here.
//!
//! accept → identify → plan → connect → copy → report. What the mesh wants is decided by `mesh::route`.

use std::sync::Arc;
use std::time::Instant;

use mesh::{Flow, Hop, Plan, SpiffeId, Workload};
use telemetry::access::Direction;
use tracing::Instrument;

use crate::accept::Accepted;
use crate::connect::connect;
use crate::copy;
use crate::failure::Failure;
use crate::identify::local_workload;
use crate::live::OpenFlow;
use crate::lookup::{self, Sources};
use crate::needs::Dial;
use crate::pod::{Phase, reached};
use crate::report::{self, End, Facts, Report};
use crate::tunnels::{self, Key};

/// Serves one captured outbound connection to its end.
pub(crate) async fn serve(flow: Accepted) {
    let trace = hbone::Traceparent::random(&mut *flow.shard.rng.borrow_mut());
    let span = tracing::info_span!("outbound", id = %format_args!("{:032x}", trace.trace()));
    path(flow, trace).instrument(span).await;
}

/// The same, in the span of the caller's.
pub(crate) async fn path(mut flow: Accepted, trace: hbone::Traceparent) {
    let since = Instant::now();
    let mut phase = flow.pod.phase();
    let planned = tokio::select! {
        biased;
        () = reached(&mut phase, Phase::Cut) => Err(Failure::Drain),
        planned = plan(&flow) => planned,
    };
    let (source, plan) = match planned {
        Ok(planned) => planned,
        Err(why) => {
            return report::refused(
                &flow.shard.shared,
                Direction::Outbound,
                flow.peer,
                flow.orig_dst,
                &why,
            );
        }
    };
    let report = Report::open(&flow.shard, &facts(&flow, &source, &plan), since);
    let shard = flow.shard.clone();
    let _place = shard.live.enter(open_flow(&flow, &plan));
    let ended = tokio::select! {
        biased;
        () = reached(&mut phase, Phase::Cut) => Err(Failure::Drain),
        ended = carry(&mut flow, &source, &plan, trace, &report) => ended,
    };
    report.close(ended);
}

/// Who asks, and where the connection goes.
async fn plan(flow: &Accepted) -> Result<(Arc<Workload>, Plan), Failure> {
    let shared = &flow.shard.shared;
    let source = local_workload(shared, &flow.pod).await?;
    let asked = Flow {
        source: Arc::clone(&source),
        client: flow.peer,
        target: flow.orig_dst,
        socks: shared.config.socks,
    };
    let plan = {
        let sources = Sources::new(shared, &flow.pod.lookups_out);
        lookup::route(sources, &asked, &flow.shard.rng).await?
    };
    Ok((source, plan))
}

/// Connects upstream and copies until both directions end.
async fn carry(
    flow: &mut Accepted,
    source: &Arc<Workload>,
    plan: &Plan,
    trace: hbone::Traceparent,
    report: &Report,
) -> Result<(), Failure> {
    match tunnel(&plan.hop)? {
        None => {
            let dial = Dial::Hop { to: plan.to };
            let mut upstream = connect(&*flow.pod.net, &dial)
                .await
                .map_err(|cause| Failure::Connect { to: plan.to, cause })?;
            copy::plain(&mut flow.stream, &mut upstream, report).await;
            Ok(())
        }
        Some((authority, expected)) => {
            let key = Key {
                source: source.identity(),
                expected: expected.to_vec(),
                destination: plan.destination.as_ref().map(|w| w.uid.clone()),
                client: flow.peer.ip(),
                next_hop: plan.to,
            };
            let service = plan.service.as_ref().map(|s| s.hostname.clone());
            let connect = hbone::Connect {
                authority,
                baggage: baggage(source),
                forwarded: hbone::Forwarded {
                    client: flow.peer,
                    host: service.as_deref(),
                },
                traceparent: trace,
                forwarded_network: None,
            };
            let tunnel = flow
                .shard
                .tunnels(&flow.pod)
                .open(&flow.shard, &flow.pod, &key, &connect)
                .await?;
            tunnels::copy(&mut flow.stream, tunnel, report).await
        }
    }
}

/// Authority and expected identities of the tunnel that `hop` asks for; none = plain TCP.
///
/// Errors: a tunnel that cannot be made yet is refused: there is no other way to where it leads.
fn tunnel(hop: &Hop) -> Result<Option<(&str, &[SpiffeId])>, Failure> {
    match hop {
        Hop::Passthrough | Hop::Tcp => Ok(None),
        Hop::Hbone {
            authority,
            expected,
        } => Ok(Some((authority, expected))),
        Hop::DoubleHbone { .. } => Err(Failure::OtherNetwork),
    }
}

/// The `baggage` header of a workload; what a header cannot carry is left out.
pub(crate) fn baggage(workload: &Workload) -> hbone::HeaderValue {
    hbone::HeaderValue::try_from(mesh::baggage(workload))
        .unwrap_or_else(|_| hbone::HeaderValue::from_static(""))
}

fn facts(flow: &Accepted, source: &Arc<Workload>, plan: &Plan) -> Facts {
    let (mutual_tls, authority) = match &plan.hop {
        Hop::Passthrough | Hop::Tcp => (false, None),
        Hop::Hbone { authority, .. } | Hop::DoubleHbone { authority, .. } => {
            (true, Some(authority.as_str().into()))
        }
    };
    Facts {
        direction: Direction::Outbound,
        source: End {
            address: Some(flow.peer),
            workload: Some(Arc::clone(source)),
            identity: Some(source.identity()),
            baggage: None,
        },
        destination: End {
            address: Some(plan.to),
            workload: plan.destination.clone(),
            identity: plan.destination.as_deref().map(|w| w.identity()),
            baggage: None,
        },
        service: plan.service.clone(),
        authority,
        mutual_tls,
    }
}

fn open_flow(flow: &Accepted, plan: &Plan) -> OpenFlow {
    OpenFlow {
        pod: flow.pod.uid.clone(),
        inbound: false,
        source: flow.peer,
        original: Some(flow.orig_dst.to_string()),
        actual: plan.to,
        protocol: match &plan.hop {
            Hop::Passthrough | Hop::Tcp => "TCP",
            Hop::Hbone { .. } => "HBONE",
            Hop::DoubleHbone { .. } => "DOUBLEHBONE",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_hop_goes_without_a_tunnel() {
        let id = |account: &str| vec![SpiffeId::new("cluster.local", "shop", account)];
        let authority = || "web.shop:80".to_owned();
        for plain in [Hop::Passthrough, Hop::Tcp] {
            assert!(tunnel(&plain).unwrap().is_none());
        }
        let hop = Hop::Hbone {
            authority: authority(),
            expected: id("web"),
        };
        assert_eq!(tunnel(&hop).unwrap(), Some(("web.shop:80", &*id("web"))));
        let hop = Hop::DoubleHbone {
            authority: authority(),
            gateway: id("gateway"),
            expected: id("web"),
        };
        let refused = tunnel(&hop).unwrap_err();
        assert!(matches!(refused, Failure::OtherNetwork), "{refused}");
    }
}
