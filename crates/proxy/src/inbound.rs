//! Inbound HBONE on port 15008: one TLS connection from a peer, many CONNECT streams in it.
//!
//! accept → identify → admit → authorize → connect → answer → copy → report. The peer is who its certificate says; what
//! it says in headers only labels.

mod tunnel;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use mesh::{Admitted, Connect, Workload};
use telemetry::access::Direction;
use tokio::net::TcpStream;

use self::tunnel::Peer;
pub(crate) use self::tunnel::serve;
use crate::accept::plain;
use crate::budget::Share;
use crate::connect::application;
use crate::copy;
use crate::failure::Failure;
use crate::identify::local_workload;
use crate::live::{OpenFlow, Subject};
use crate::lookup::{self, Sources};
use crate::outbound::baggage;
use crate::pod::{Phase, reached};
use crate::proxy_header;
use crate::report::{self, End, Facts, Report};

/// The client's trace id, the only correlation between the logs of both ends; a fresh one where it sent none.
fn trace(peer: &Peer, request: &hbone::Request) -> String {
    let sent = request.head.as_ref().ok().and_then(|head| head.traceparent);
    let trace =
        sent.unwrap_or_else(|| hbone::Traceparent::random(&mut *peer.shard.rng.borrow_mut()));
    format!("{:032x}", trace.trace())
}

/// What a CONNECT leads to once it is admitted.
struct Call {
    head: hbone::Head,
    local: Arc<Workload>,
    admitted: Admitted,
}

async fn stream(peer: Rc<Peer>, request: hbone::Request) {
    let since = Instant::now();
    let hbone::Request { head, mut reply } = request;
    let refuse = |why: &Failure| {
        report::refused(
            &peer.shard.shared,
            Direction::Inbound,
            peer.address,
            peer.local_address,
            why,
        )
    };
    let Some(_stay) = peer.pod.enter(Share::Hbone) else {
        peer.shard.shared.refusals.shed(&peer.pod, Share::Hbone);
        return reply.refuse(hbone::StatusCode::SERVICE_UNAVAILABLE);
    };
    let mut phase = peer.pod.phase();
    let call = tokio::select! {
        biased;
        () = peer.revoked() => Err(Failure::CertRevoked),
        () = reached(&mut phase, Phase::Cut) => Err(Failure::Drain),
        call = admit(&peer, head) => call,
        // nobody waits for an answer any more
        gone = reply.abandoned() => Err(Failure::Data(gone)),
    };
    let call = match call {
        Ok(call) => call,
        Err(why) => {
            refuse(&why);
            return reply.refuse(status(&why));
        }
    };
    let subject = Subject {
        identity: Some(peer.identity.clone()),
        source: peer.address,
        destination: call.admitted.destination,
        local: Arc::clone(&call.local),
    };
    let (_place, denied) = peer
        .shard
        .live
        .guard(open_flow(&peer, &call), subject.clone());
    let report = Report::open(&peer.shard, &facts(&peer, &call), since);
    let ended = tokio::select! {
        biased;
        Ok(()) = denied => Err(Failure::PolicyChange),
        () = peer.revoked() => Err(Failure::CertRevoked),
        () = reached(&mut phase, Phase::Cut) => Err(Failure::Drain),
        ended = carry(&peer, &call, &subject, reply, &report) => ended,
    };
    report.close(ended);
}

/// Is this pod the one that is asked for, and which port of it?
async fn admit(peer: &Peer, head: Result<hbone::Head, hbone::BadRequest>) -> Result<Call, Failure> {
    let head = head.map_err(Failure::Request)?;
    let shared = &peer.shard.shared;
    let local = local_workload(shared, &peer.pod).await?;
    let asked = Connect {
        local: &local,
        tunnel_local: peer.local_address.ip(),
        client: peer.address,
        identity: Some(&peer.identity),
        authority: &authority(&head.authority),
        forwarded_host: head.forwarded_host.as_deref(),
        socks: shared.config.socks,
        localhost_app_tunnel: shared.config.localhost_app_tunnel,
        keep_source: peer.pod.options.keep_source,
    };
    let admitted = lookup::admit(Sources::new(shared, &peer.pod.lookups_in), &asked).await?;
    Ok(Call {
        head,
        local,
        admitted,
    })
}

/// The authority in the words of the mesh.
fn authority(authority: &hbone::Authority) -> mesh::Authority {
    match (authority.socket_addr(), &authority.host) {
        (Some(address), _) => mesh::Authority::Address(plain(address)),
        (None, host) => mesh::Authority::Host {
            host: host.to_string().into(),
            port: authority.port,
        },
    }
}

/// Authorizes, connects to the application, answers 200 and copies; any failure before the 200 answers with its status.
async fn carry(
    peer: &Peer,
    call: &Call,
    subject: &Subject,
    mut reply: hbone::Reply,
    report: &Report,
) -> Result<(), Failure> {
    let reached = tokio::select! {
        biased;
        reached = reach(peer, call, subject) => reached,
        gone = reply.abandoned() => return if gone.is_gone() { Ok(()) } else { Err(Failure::Data(gone)) },
    };
    let mut upstream = match reached {
        Ok(upstream) => upstream,
        Err(why) => {
            reply.refuse(status(&why));
            return Err(why);
        }
    };
    let own = peer
        .shard
        .shared
        .config
        .response_baggage
        .then(|| baggage(&call.local));
    let tunnel = reply.accept(own.as_ref()).map_err(Failure::Data)?;
    if let Some(header) = &call.admitted.proxy_header {
        let told = proxy_header::send(&mut upstream, header).await;
        told.map_err(Failure::ApplicationTunnel)?;
    }
    copy::from_tunnel(tunnel, &mut upstream, report).await
}

async fn reach(peer: &Peer, call: &Call, subject: &Subject) -> Result<TcpStream, Failure> {
    let shared = &peer.shard.shared;
    shared.decide(subject, &call.local)?;
    let (to, from) = (call.admitted.to, call.admitted.from);
    application(&peer.pod, to, from, &shared.refusals).await
}

fn status(why: &Failure) -> hbone::StatusCode {
    hbone::StatusCode::from_u16(why.status()).unwrap_or(hbone::StatusCode::SERVICE_UNAVAILABLE)
}

fn facts(peer: &Peer, call: &Call) -> Facts {
    let shared = &peer.shard.shared;
    // who comes through a gateway has the gateway's address
    let source = if is_elsewhere(&call.head, &shared.config.network) {
        None
    } else {
        let state = shared.state();
        let found = state.workload_by_ip(&call.local.network, peer.address.ip());
        found.cloned()
    };
    Facts {
        direction: Direction::Inbound,
        source: End {
            address: Some(peer.address),
            workload: source,
            baggage: shared
                .config
                .response_baggage
                .then(|| call.head.baggage.clone()),
            identity: Some(peer.identity.clone()),
        },
        destination: End {
            address: Some(peer.local_address),
            workload: Some(Arc::clone(&call.local)),
            identity: Some(call.local.identity()),
            baggage: None,
        },
        service: call.admitted.service.clone(),
        authority: Some(call.head.authority.to_string().into()),
        mutual_tls: true,
    }
}

/// Whether the client says that it is on another network than `own`. Names of networks are compared without case.
fn is_elsewhere(head: &hbone::Head, own: &str) -> bool {
    let network = head.forwarded_network.as_deref();
    network.is_some_and(|network| !network.eq_ignore_ascii_case(own))
}

fn open_flow(peer: &Peer, call: &Call) -> OpenFlow {
    OpenFlow {
        pod: peer.pod.uid.clone(),
        inbound: true,
        source: peer.address,
        original: call.head.forwarded_host.clone(),
        actual: call.admitted.to,
        protocol: "HBONE",
    }
}
