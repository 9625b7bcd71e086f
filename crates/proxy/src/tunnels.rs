//! One pod's HBONE tunnels on one data thread: dialled, authenticated, pooled.
//!
//! Which tunnel a destination needs is decided in `mesh`; sharing and bounds are the pool's.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use identity::{Side, Watch};
use mesh::{SpiffeId, Str};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::Config;
use crate::connect::connect;
use crate::copy::{Count, into_tunnel};
use crate::failure::Failure;
use crate::needs::Dial;
use crate::pod::Pod;
use crate::shard::Shard;

/// Longest wait for a TLS handshake, on either side, so that a half-open peer holds nothing for long.
pub(crate) const TLS_TIMEOUT: Duration = Duration::from_secs(10);

/// Tunnels tried for one connection when the peer leaves (it restarts) before it has answered.
const CONNECT_TRIES_MAX: usize = 3;

/// What two connections must have in common to share a tunnel. Not the authority: many destinations share a waypoint.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// the pod's identity
    pub(crate) source: SpiffeId,
    /// identities of which the peer must prove one
    pub(crate) expected: Vec<SpiffeId>,
    /// workload behind the next hop, so that a reused address never meets an old tunnel
    pub(crate) destination: Option<Str>,
    /// the application's address
    pub(crate) client: IpAddr,
    /// where the tunnel goes
    pub(crate) next_hop: SocketAddr,
}

/// The pool of one pod on one thread.
pub(crate) struct Tunnels {
    pool: hbone::Pool<Key>,
    settings: hbone::Settings,
}

impl Tunnels {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            pool: hbone::Pool::new(&config.hbone),
            settings: config.hbone.clone(),
        }
    }

    /// A tunnel to `key.next_hop` for one connection, shared or new.
    ///
    /// Errors: no certificate, no connection, no handshake, a CONNECT refused.
    pub(crate) async fn open(
        &self,
        shard: &Shard,
        pod: &Pod,
        key: &Key,
        connect: &hbone::Connect<'_>,
    ) -> Result<hbone::Tunnel, Failure> {
        let mut tried = 1;
        loop {
            let slot = self
                .pool
                .get(key, || self.dial(shard, pod, key))
                .await
                .map_err(|error| match error {
                    hbone::GetError::Dial(failure) => failure,
                    other => Failure::Pool(other.to_string()),
                })?;
            match slot.connect(connect).await {
                Ok(tunnel) => return Ok(tunnel),
                // no byte of the application has been sent before the answer, so it may be asked again
                Err(lost) if lost.peer_left() && tried < CONNECT_TRIES_MAX => tried += 1,
                Err(refused) => return Err(Failure::Refused(refused)),
            }
        }
    }

    async fn dial(
        &self,
        shard: &Shard,
        pod: &Pod,
        key: &Key,
    ) -> Result<(hbone::Sender, hbone::Driver<TlsStream<TcpStream>>), Failure> {
        let to = key.next_hop;
        let credential = shard.shared.certs.get(&key.source).await?;
        let stream = connect(&*pod.net, &Dial::Hop { to })
            .await
            .map_err(|cause| match cause.kind() {
                std::io::ErrorKind::TimedOut => Failure::ConnectTimeout { to },
                _ => Failure::Connect { to, cause },
            })?;
        let tls = TlsConnector::from(credential.client_config(&key.expected));
        // the name is not sent and not compared: identity is the SPIFFE id
        let handshake = tls.connect(ServerName::IpAddress(to.ip().into()), stream);
        let stream = match timeout(TLS_TIMEOUT, handshake).await {
            Ok(done) => done.map_err(Failure::Tls)?,
            Err(_) => return Err(Failure::Tls(std::io::ErrorKind::TimedOut.into())),
        };
        let presented = stream.get_ref().1.peer_certificates();
        let watch = credential.watch(Side::Connecting, presented, SystemTime::now());
        let (sender, driver) = hbone::handshake(stream, &self.settings)
            .await
            .map_err(Failure::Handshake)?;
        if !watch.is_on() {
            return Ok((sender, driver));
        }
        Ok((sender, driver.cut_when(revoked(watch, pod.uid.clone(), to))))
    }

    /// Shares none of the tunnels any longer; idle ones close.
    pub(crate) fn clear(self: &Rc<Self>) {
        self.pool.clear();
    }
}

/// Waits until the certificate of the peer at `to` is taken back.
async fn revoked(mut watch: Watch, pod: Str, to: SocketAddr) {
    watch.revoked().await;
    tracing::warn!(%pod, %to, "tunnel dropped: the peer's certificate is revoked");
}

/// Copies between a plain client and a tunnel until both directions have ended, or the tunnel is cut.
///
/// Errors: the tunnel broke, or the peer's certificate was revoked.
pub(crate) async fn copy(
    client: &mut TcpStream,
    tunnel: hbone::Tunnel,
    count: &impl Count,
) -> Result<(), Failure> {
    let cut = tunnel.cut();
    tokio::select! {
        biased;
        () = cut => Err(Failure::CertRevoked),
        ended = into_tunnel(client, tunnel, count) => ended,
    }
}
