//! Inbound plaintext: a captured connection to the application from a peer without HBONE.
//!
//! accept → identify → admit → authorize without identity → connect → copy → report.

use std::sync::Arc;
use std::time::Instant;

use mesh::{Admitted, Plain, Service, Workload};
use telemetry::access::Direction;

use crate::accept::Accepted;
use crate::connect::application;
use crate::copy;
use crate::failure::Failure;
use crate::identify::local_workload;
use crate::live::{OpenFlow, Subject};
use crate::pod::{Phase, reached};
use crate::report::{self, End, Facts, Report};

/// Serves one captured plaintext connection to its end.
pub(crate) async fn serve(mut flow: Accepted) {
    let since = Instant::now();
    let mut phase = flow.pod.phase();
    let admitted = tokio::select! {
        biased;
        () = reached(&mut phase, Phase::Cut) => Err(Failure::Drain),
        admitted = admit(&flow) => admitted,
    };
    let (local, admitted) = match admitted {
        Ok(admitted) => admitted,
        Err(why) => {
            return report::refused(
                &flow.shard.shared,
                Direction::Inbound,
                flow.peer,
                flow.orig_dst,
                &why,
            );
        }
    };
    let subject = Subject {
        identity: None,
        source: flow.peer,
        destination: admitted.destination,
        local: Arc::clone(&local),
    };
    let shard = flow.shard.clone();
    let (_place, denied) = shard.live.guard(open_flow(&flow), subject.clone());
    let report = Report::open(
        &shard,
        &facts(&flow, local, admitted.service.clone()),
        since,
    );
    let ended = tokio::select! {
        biased;
        Ok(()) = denied => Err(Failure::PolicyChange),
        () = reached(&mut phase, Phase::Cut) => Err(Failure::Drain),
        ended = carry(&mut flow, &subject, &admitted, &report) => ended,
    };
    report.close(ended);
}

async fn admit(flow: &Accepted) -> Result<(Arc<Workload>, Admitted), Failure> {
    let shared = &flow.shard.shared;
    let local = local_workload(shared, &flow.pod).await?;
    let asked = Plain {
        local: &local,
        target: flow.orig_dst,
        client: flow.peer,
        socks: shared.config.socks,
        keep_source: flow.pod.options.keep_source,
    };
    let admitted = mesh::admit_plain(&shared.state(), &asked).map_err(Failure::Rejected)?;
    Ok((local, admitted))
}

async fn carry(
    flow: &mut Accepted,
    subject: &Subject,
    admitted: &Admitted,
    report: &Report,
) -> Result<(), Failure> {
    let shared = &flow.shard.shared;
    shared.decide(subject, &subject.local)?;
    let (to, from) = (admitted.to, admitted.from);
    let mut upstream = application(&flow.pod, to, from, &shared.refusals).await?;
    copy::plain(&mut flow.stream, &mut upstream, report).await;
    Ok(())
}

fn facts(flow: &Accepted, local: Arc<Workload>, service: Option<Arc<Service>>) -> Facts {
    let shared = &flow.shard.shared;
    let state = shared.state();
    let source = state.workload_by_ip(&local.network, flow.peer.ip());
    Facts {
        direction: Direction::Inbound,
        source: End {
            address: Some(flow.peer),
            workload: source.cloned(),
            ..End::default()
        },
        destination: End {
            address: Some(flow.orig_dst),
            identity: Some(local.identity()),
            workload: Some(local),
            baggage: None,
        },
        service,
        authority: None,
        mutual_tls: false,
    }
}

fn open_flow(flow: &Accepted) -> OpenFlow {
    OpenFlow {
        pod: flow.pod.uid.clone(),
        inbound: true,
        source: flow.peer,
        original: None,
        actual: flow.orig_dst,
        protocol: "TCP",
    }
}
