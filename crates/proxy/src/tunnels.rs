//! One pod's HBONE tunnels on one data thread: dialled, authenticated, pooled.
//!
//! Which tunnel a destination needs is decided in `mesh`; sharing and bounds are the pool's. The tunnel inside a tunnel that
//! leads across networks is made in `inner`.

mod inner;

pub(crate) use self::inner::Crossing;
use self::inner::Inner;

use std::cell::Cell;
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

/// How long a tunnel of a pod that has left may take to tell its peer.
const GOODBYE_MAX: Duration = Duration::from_secs(1);

/// Tunnels tried for one connection when the peer turns it away unserved, as one that restarts does.
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
    /// Asked again of another one where the peer tells that it has not acted. Where a tunnel that was there breaks without
    /// a word it is asked again once: most likely the peer had gone before, and if not, the application is dialled twice
    /// without a byte for it.
    ///
    /// Errors: no certificate, no connection, no handshake, a CONNECT refused.
    pub(crate) async fn open(
        &self,
        shard: &Shard,
        pod: &Pod,
        key: &Key,
        connect: &hbone::Connect<'_>,
    ) -> Result<hbone::Tunnel, Failure> {
        let (mut tried, mut broken) = (1, false);
        loop {
            let is_new = Cell::new(false);
            let dial = || {
                is_new.set(true);
                self.dial(shard, pod, key)
            };
            let slot = (self.pool.get(key, dial).await).map_err(|error| match error {
                hbone::GetError::Dial(failure) => failure,
                other => Failure::Pool(other.to_string()),
            })?;
            match ask(slot, connect).await {
                Err(Failure::Refused(why)) if why.is_unserved() && tried < CONNECT_TRIES_MAX => {
                    tried += 1;
                }
                Err(Failure::Refused(why)) if why.peer_left() && !is_new.get() && !broken => {
                    broken = true;
                }
                done => return done,
            }
        }
    }

    /// A tunnel of one connection to another network: through one to the gateway at `key.next_hop`, shared or new, to whom
    /// the gateway leads.
    ///
    /// - `connect`: asked of both; the inner one also learns from which network the connection comes
    ///
    /// Errors: as [`Tunnels::open`], of either of the two.
    pub(crate) async fn cross(
        &self,
        shard: &Shard,
        pod: &Pod,
        key: &Key,
        connect: &hbone::Connect<'_>,
        expected: &[SpiffeId],
    ) -> Result<Crossing, Failure> {
        let outer = self.open(shard, pod, key, connect).await?;
        let inner = Inner {
            credential: shard.shared.certs.get(&key.source).await?,
            expected,
            connect: hbone::Connect {
                forwarded_network: Some(&shard.shared.config.network),
                ..connect.clone()
            },
            settings: &self.settings,
            pod: &pod.uid,
            gateway: key.next_hop,
        };
        inner.open(outer).await
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

    /// Ends all of them, of a pod that has left: the peers are told.
    pub(crate) async fn close(self: Rc<Self>) {
        self.pool.clone().close(GOODBYE_MAX).await;
    }
}

/// Sends the CONNECT and waits for its answer.
///
/// Errors: refused, or the connection was lost; [`Failure::CertRevoked`] when it was this side that cut it.
async fn ask(slot: hbone::Slot, connect: &hbone::Connect<'_>) -> Result<hbone::Tunnel, Failure> {
    let cut = slot.cut();
    tokio::select! {
        biased;
        () = cut => Err(Failure::CertRevoked),
        done = slot.connect(connect) => done.map_err(Failure::Refused),
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

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;
    use tokio::task::{LocalSet, spawn_local};

    use super::*;

    const PIPE: usize = 1 << 16;

    fn connect() -> hbone::Connect<'static> {
        hbone::Connect {
            authority: "10.0.0.2:80",
            baggage: hbone::HeaderValue::from_static(""),
            forwarded: hbone::Forwarded {
                client: "10.0.0.1:40000".parse().unwrap(),
                host: None,
            },
            traceparent: hbone::Traceparent::random(&mut rand::rng()),
            forwarded_network: None,
        }
    }

    #[tokio::test]
    async fn a_peer_revoked_before_its_answer_is_not_asked_again() {
        let work = async {
            let (near, far) = tokio::io::duplex(PIPE);
            let settings = hbone::Settings::default();
            let (revoke, told) = oneshot::channel::<()>();
            let (sender, driver) = hbone::handshake(near, &settings).await.unwrap();
            let driving = spawn_local(driver.cut_when(async { told.await.unwrap() }));
            spawn_local(async move {
                let mut server = hbone::Server::handshake(far, &settings).await.unwrap();
                let unanswered = server.accept().await.unwrap().unwrap();
                revoke.send(()).unwrap();
                server.accept().await;
                drop(unanswered);
            });
            let done = ask(sender.claim(), &connect()).await;
            assert!(matches!(done, Err(Failure::CertRevoked)), "{done:?}");
            assert!(driving.await.unwrap().is_err());
        };
        LocalSet::new().run_until(work).await;
    }

    #[tokio::test]
    async fn whoever_differs_in_anything_that_matters_has_a_tunnel_of_its_own() {
        let id = |account: &str| SpiffeId::new("cluster.local", "shop", account);
        let key = Key {
            source: id("web"),
            expected: vec![id("cart")],
            destination: Some("c//Pod/shop/cart-0".into()),
            client: [10, 0, 0, 1].into(),
            next_hop: "10.0.0.2:15008".parse().unwrap(),
        };
        let keys = [
            key.clone(),
            Key {
                source: id("other"),
                ..key.clone()
            },
            Key {
                expected: vec![id("cart"), id("web")],
                ..key.clone()
            },
            Key {
                destination: Some("c//Pod/shop/cart-1".into()),
                ..key.clone()
            },
            Key {
                destination: None,
                ..key.clone()
            },
            Key {
                client: [10, 0, 0, 9].into(),
                ..key.clone()
            },
            Key {
                next_hop: "10.0.0.3:15008".parse().unwrap(),
                ..key.clone()
            },
            Key {
                next_hop: "10.0.0.2:15009".parse().unwrap(),
                ..key
            },
        ];
        let work = async {
            let settings = hbone::Settings::default();
            let pool = hbone::Pool::new(&settings);
            let dials = Cell::new(0);
            let dial = || async {
                let (near, far) = tokio::io::duplex(PIPE);
                dials.set(dials.get() + 1);
                let settings = settings.clone();
                spawn_local(async move {
                    let server = hbone::Server::handshake(far, &settings).await;
                    server.unwrap().accept().await
                });
                hbone::handshake(near, &hbone::Settings::default()).await
            };
            let mut slots = Vec::new();
            for _ in 0..2 {
                for key in &keys {
                    slots.push(pool.get(key, dial).await.unwrap());
                }
                assert_eq!(dials.get(), keys.len());
            }
        };
        LocalSet::new().run_until(work).await;
    }
}
