//! Inbound HBONE on port 15008: one TLS connection from a peer, many CONNECT streams in it.
//!
//! accept → identify → admit → authorize → connect → answer → copy → report. The peer is who its certificate says; what
//! it says in headers only labels.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use identity::{Side, Watch};
use mesh::{Admitted, Connect, SpiffeId, Workload};
use telemetry::access::Direction;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::Instrument;

use crate::accept::{Accepted, plain};
use crate::connect::connect;
use crate::copy;
use crate::failure::Failure;
use crate::identify::local_workload;
use crate::live::{OpenFlow, Subject};
use crate::lookup;
use crate::needs::Dial;
use crate::outbound::baggage;
use crate::pod::{Phase, Pod, reached};
use crate::report::{self, End, Facts, Report};
use crate::shard::Shard;
use crate::tunnels::TLS_TIMEOUT;

/// One authenticated tunnel from a peer, shared by its streams.
struct Peer {
    shard: Rc<Shard>,
    pod: Arc<Pod>,
    address: SocketAddr,
    /// where the tunnel was accepted: pod address, port 15008
    local_address: SocketAddr,
    identity: SpiffeId,
    /// set once the peer's certificate is revoked; none where that is not watched
    revoked: Option<watch::Sender<bool>>,
}

impl Peer {
    /// Ready once the peer's certificate is revoked.
    async fn revoked(&self) {
        let told = self.revoked.as_ref().map(watch::Sender::subscribe);
        if let Some(mut told) = told
            && told.wait_for(|revoked| *revoked).await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }
}

/// A tunnel whose peer has proven who it is.
struct Authenticated {
    server: hbone::Server<TlsStream<TcpStream>>,
    identity: SpiffeId,
    watch: Watch,
}

/// Serves one accepted TLS connection to its end.
pub(crate) async fn serve(flow: Accepted) {
    let mut phase = flow.pod.phase();
    let Accepted {
        shard,
        pod,
        stream,
        peer: address,
        orig_dst: local_address,
        held,
    } = flow;
    let refuse = |why: &Failure| {
        report::refused(
            &shard.shared,
            Direction::Inbound,
            address,
            local_address,
            why,
        )
    };
    let handshake = tokio::select! {
        biased;
        () = reached(&mut phase, Phase::Cut) => return,
        done = authenticate(&shard, &pod, stream) => done,
    };
    let Authenticated {
        server,
        identity,
        watch,
    } = match handshake {
        Ok(done) => done,
        Err(why) => return refuse(&why),
    };
    let peer = Rc::new(Peer {
        shard,
        pod,
        address,
        local_address,
        identity,
        revoked: watch.is_on().then(|| watch::Sender::new(false)),
    });
    streams(&peer, server, watch).await;
    drop(held);
}

/// TLS, the peer's identity, HTTP/2.
async fn authenticate(
    shard: &Shard,
    pod: &Pod,
    stream: TcpStream,
) -> Result<Authenticated, Failure> {
    let shared = &shard.shared;
    let local = local_workload(shared, pod).await?;
    let credential = shared.certs.get(&local.identity()).await?;
    let accept = TlsAcceptor::from(credential.server_config()).accept(stream);
    let tls = match timeout(TLS_TIMEOUT, accept).await {
        Ok(done) => done.map_err(Failure::Tls)?,
        Err(_) => {
            return Err(Failure::Tls(std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                "no TLS handshake in time",
            )));
        }
    };
    let presented = tls.get_ref().1.peer_certificates();
    let watch = credential.watch(Side::Accepting, presented, SystemTime::now());
    let identity = presented.and_then(identity::peer_id);
    let identity = identity.ok_or_else(|| Failure::TlsConfig("peer has no identity".into()))?;
    let server = hbone::Server::handshake(tls, &shared.config.hbone)
        .await
        .map_err(Failure::Handshake)?;
    Ok(Authenticated {
        server,
        identity,
        watch,
    })
}

/// Takes streams until the connection ends; each is served by a task of its own.
async fn streams(
    peer: &Rc<Peer>,
    mut server: hbone::Server<TlsStream<TcpStream>>,
    mut watch: Watch,
) {
    let (mut phase, mut end) = (peer.pod.phase(), peer.pod.phase());
    let (mut draining, mut revoked) = (false, false);
    loop {
        let next = tokio::select! {
            biased;
            () = reached(&mut end, Phase::Cut) => return,
            () = watch.revoked(), if !revoked => {
                revoked = true;
                tracing::warn!(peer = %peer.address, pod = %peer.pod.uid, identity = %peer.identity,
                    "tunnel closed: the peer's certificate is revoked");
                // the streams first, so that each ends for this reason and not for the broken tunnel
                if let Some(told) = &peer.revoked {
                    told.send_replace(true);
                }
                server.cut();
                continue;
            }
            () = reached(&mut phase, Phase::Drain), if !draining => {
                draining = true;
                server.drain();
                continue;
            }
            next = server.accept() => next,
        };
        match next {
            Some(Ok(request)) => {
                let span = tracing::info_span!("inbound", id = %trace(peer, &request), peer = %peer.address);
                tokio::task::spawn_local(stream(Rc::clone(peer), request).instrument(span));
            }
            Some(Err(error)) => {
                tracing::debug!(peer = %peer.address, pod = %peer.pod.uid, %error, "tunnel ended early");
                return;
            }
            None => return,
        }
    }
}

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
    let hbone::Request { head, reply } = request;
    let refuse = |why: &Failure| {
        report::refused(
            &peer.shard.shared,
            Direction::Inbound,
            peer.address,
            peer.local_address,
            why,
        )
    };
    let Some(_stay) = peer.pod.enter() else {
        peer.shard
            .shared
            .refusals
            .shed(&peer.pod, crate::accept::Kind::Hbone);
        return reply.refuse(hbone::StatusCode::SERVICE_UNAVAILABLE);
    };
    let call = match head.map_err(Failure::Request) {
        Ok(head) => admit(&peer, head).await,
        Err(bad) => Err(bad),
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
    let mut phase = peer.pod.phase();
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
async fn admit(peer: &Peer, head: hbone::Head) -> Result<Call, Failure> {
    let shared = &peer.shard.shared;
    let local = local_workload(shared, &peer.pod).await?;
    let asked = Connect {
        local: &local,
        tunnel_local: peer.local_address.ip(),
        client: peer.address,
        identity: Some(&peer.identity),
        authority: &authority(&head.authority),
        forwarded_host: head.forwarded_host.as_deref(),
        socks: false,
        localhost_app_tunnel: shared.config.localhost_app_tunnel,
        keep_source: shared.config.keep_source,
    };
    let admitted = lookup::admit((&**shared).into(), &asked).await?;
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
    copy::from_tunnel(tunnel, &mut upstream, report).await
}

async fn reach(peer: &Peer, call: &Call, subject: &Subject) -> Result<TcpStream, Failure> {
    let shared = &peer.shard.shared;
    shared.decide(subject, &call.local)?;
    let to = call.admitted.to;
    if call.admitted.proxy_header.is_some() {
        return Err(Failure::ApplicationTunnel(
            "the PROXY protocol towards applications is not supported yet",
        ));
    }
    let from = call.admitted.from;
    connect(&*peer.pod.net, &Dial::App { to, from })
        .await
        .map_err(|cause| Failure::Application { to, cause })
}

fn status(why: &Failure) -> hbone::StatusCode {
    hbone::StatusCode::from_u16(why.status()).unwrap_or(hbone::StatusCode::SERVICE_UNAVAILABLE)
}

fn facts(peer: &Peer, call: &Call) -> Facts {
    let shared = &peer.shard.shared;
    let gateway = call
        .head
        .forwarded_network
        .as_deref()
        .is_some_and(|n| !n.eq_ignore_ascii_case(&shared.config.network));
    let source = (!gateway)
        .then(|| {
            shared
                .index
                .borrow()
                .workload_by_ip(&call.local.network, peer.address.ip())
                .cloned()
        })
        .flatten();
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
