//! Outbound: a connection that the application opened and capture brought here.
//!
//! accept → identify → plan → connect → copy → report. What the mesh wants is decided by `mesh::route`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use mesh::{Flow, Hop, Plan, Workload};
use telemetry::access::Direction;
use tokio::net::TcpStream;
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
use crate::tunnels::{self, Crossing, Key};

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
    let shard = flow.shard.clone();
    let _place = shard.live.enter(open_flow(&flow, &plan));
    let mut facts = facts(&flow, &source, &plan);
    // across networks only the far end's answer says who it is
    let is_across = matches!(plan.hop, Hop::DoubleHbone { .. });
    let early = (!is_across).then(|| Report::open(&shard, &facts, since));
    let upstream = tokio::select! {
        biased;
        () = reached(&mut phase, Phase::Cut) => Err(Failure::Drain),
        upstream = reach(&flow, &source, &plan, trace) => upstream,
    };
    if let Ok(Upstream::Across(crossing)) = &upstream {
        facts.destination = behind_gateway(plan.to, crossing);
    }
    let report = early.unwrap_or_else(|| Report::open(&shard, &facts, since));
    let ended = match upstream {
        Ok(upstream) => tokio::select! {
            biased;
            () = reached(&mut phase, Phase::Cut) => Err(Failure::Drain),
            ended = upstream.copy(&mut flow.stream, &report) => ended,
        },
        Err(why) => Err(why),
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

/// What the application's connection is joined to.
enum Upstream {
    Plain(TcpStream),
    Tunnel(hbone::Tunnel),
    /// a tunnel inside of one to a network gateway
    Across(Crossing),
}

impl Upstream {
    /// Copies until both directions end.
    async fn copy(self, client: &mut TcpStream, report: &Report) -> Result<(), Failure> {
        match self {
            Upstream::Plain(mut server) => {
                copy::plain(client, &mut server, report).await;
                Ok(())
            }
            Upstream::Tunnel(tunnel) => tunnels::copy(client, tunnel, report).await,
            Upstream::Across(crossing) => crossing.copy(client, report).await,
        }
    }
}

/// Connects upstream.
async fn reach(
    flow: &Accepted,
    source: &Arc<Workload>,
    plan: &Plan,
    trace: hbone::Traceparent,
) -> Result<Upstream, Failure> {
    let (authority, expected, behind) = match &plan.hop {
        Hop::Passthrough | Hop::Tcp => {
            let dial = Dial::Hop { to: plan.to };
            let connected = connect(&*flow.pod.net, &dial).await;
            let failed = |cause| Failure::Connect { to: plan.to, cause };
            return connected.map(Upstream::Plain).map_err(failed);
        }
        Hop::Hbone {
            authority,
            expected,
        } => (authority, expected, None),
        Hop::DoubleHbone {
            authority,
            gateway,
            expected,
        } => (authority, gateway, Some(expected)),
    };
    let key = Key {
        source: source.identity(),
        expected: expected.clone(),
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
    let (shard, pod) = (&*flow.shard, &*flow.pod);
    let tunnels = shard.tunnels(pod);
    match behind {
        None => {
            let tunnel = tunnels.open(shard, pod, &key, &connect).await?;
            Ok(Upstream::Tunnel(tunnel))
        }
        Some(behind) => {
            let crossing = tunnels.cross(shard, pod, &key, &connect, behind).await?;
            Ok(Upstream::Across(crossing))
        }
    }
}

/// The destination as whoever answered behind a gateway describes it; only the certificate says who it is.
fn behind_gateway(gateway: SocketAddr, crossing: &Crossing) -> End {
    End {
        address: Some(gateway),
        workload: None,
        baggage: Some(crossing.baggage()),
        identity: crossing.peer.clone(),
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
