//! One tunnel from a peer, from its TLS handshake to its end: drained with its pod, cut when the peer's certificate is revoked.
//!
//! What its streams ask for is left to `inbound`.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use identity::{Side, Watch};
use mesh::SpiffeId;
use telemetry::access::Direction;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::Instrument;

use crate::accept::Accepted;
use crate::budget::Share;
use crate::failure::Failure;
use crate::identify::local_workload;
use crate::pod::{Phase, Pod, reached};
use crate::report;
use crate::shard::Shard;
use crate::tunnels::TLS_TIMEOUT;

/// One authenticated tunnel from a peer, shared by its streams.
pub(super) struct Peer {
    pub(super) shard: Rc<Shard>,
    pub(super) pod: Arc<Pod>,
    pub(super) address: SocketAddr,
    /// where the tunnel was accepted: pod address, port 15008
    pub(super) local_address: SocketAddr,
    pub(super) identity: SpiffeId,
    /// set once the peer's certificate is revoked; none where that is not watched
    revoked: Option<watch::Sender<bool>>,
}

impl Peer {
    /// Ready once the peer's certificate is revoked.
    pub(super) async fn revoked(&self) {
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
    stream: TlsStream<TcpStream>,
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
        mut held,
        ..
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
        stream,
        identity,
        watch,
    } = match handshake {
        Ok(done) => done,
        Err(why) => return refuse(&why),
    };
    if !held.proven() {
        return shard.shared.refusals.shed(&pod, Share::Hbone);
    }
    let settings = &shard.shared.config.hbone;
    let handshake = tokio::select! {
        biased;
        () = reached(&mut phase, Phase::Cut) => return,
        done = hbone::Server::handshake(stream, settings) => done,
    };
    let server = match handshake {
        Ok(server) => server,
        Err(why) => return refuse(&Failure::Handshake(why)),
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

/// TLS and the peer's identity.
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
    Ok(Authenticated {
        stream: tls,
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
    let (mut draining, mut revoked, mut cut) = (false, false, false);
    loop {
        let next = tokio::select! {
            biased;
            // the peer is told, so that it does not wait for what will never answer
            () = reached(&mut end, Phase::Cut), if !cut => {
                cut = true;
                server.cut();
                continue;
            }
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
                let span = tracing::info_span!("inbound", id = %super::trace(peer, &request), peer = %peer.address);
                tokio::task::spawn_local(super::stream(Rc::clone(peer), request).instrument(span));
            }
            Some(Err(error)) => {
                tracing::debug!(peer = %peer.address, pod = %peer.pod.uid, %error, "tunnel ended early");
                return;
            }
            None => return,
        }
    }
}
