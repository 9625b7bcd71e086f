//! The inner tunnel of double HBONE: mutual TLS and HTTP/2 of its own inside a stream to a network gateway.
//!
//! It serves one connection and ends with it. The stream around it, shared or not, is `tunnels`' business; so is who may be
//! at its end.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use identity::{Credential, Side, Watch};
use mesh::{SpiffeId, Str};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{GOODBYE_MAX, TLS_TIMEOUT, ask};
use crate::copy::{Count, into_tunnel};
use crate::failure::Failure;

/// Bytes that wait inside for room in the outer tunnel, which has a buffer of its own.
const SEND_BUFFER: usize = 256 << 10;

/// What an inner tunnel is made of.
pub(crate) struct Inner<'a> {
    /// the source's certificate
    pub(super) credential: Arc<Credential>,
    /// identities of which the peer must prove one
    pub(super) expected: &'a [SpiffeId],
    /// what it is asked
    pub(super) connect: hbone::Connect<'a>,
    /// as for all tunnels
    pub(super) settings: &'a hbone::Settings,
    /// whose it is, for the log
    pub(super) pod: &'a Str,
    /// through which gateway, the same
    pub(super) gateway: SocketAddr,
}

/// An open tunnel through another one.
pub(crate) struct Crossing {
    tunnel: hbone::Tunnel,
    /// who is at its end, by its certificate
    pub(crate) peer: Option<SpiffeId>,
    /// ready once the outer tunnel is cut
    outer_cut: Cut,
    /// its end lets the inner connection say goodbye
    _held: oneshot::Sender<()>,
}

type Cut = Pin<Box<dyn Future<Output = ()>>>;

impl Inner<'_> {
    /// Makes the tunnel inside `outer`.
    ///
    /// Errors: TLS, HTTP/2 or the CONNECT failed; [`Failure::CertRevoked`] when this side cut one of the two.
    pub(super) async fn open(self, outer: hbone::Tunnel) -> Result<Crossing, Failure> {
        let mut outer_cut: Cut = Box::pin(outer.cut());
        let (tunnel, peer, held) = tokio::select! {
            biased;
            () = &mut outer_cut => return Err(Failure::CertRevoked),
            opened = self.within(outer) => opened?,
        };
        Ok(Crossing {
            tunnel,
            peer,
            outer_cut,
            _held: held,
        })
    }

    async fn within(
        self,
        outer: hbone::Tunnel,
    ) -> Result<(hbone::Tunnel, Option<SpiffeId>, oneshot::Sender<()>), Failure> {
        let stream = self.handshake(outer).await?;
        let presented = stream.get_ref().1.peer_certificates();
        let peer = presented.and_then(identity::peer_id);
        let watch = (self.credential).watch(Side::Connecting, presented, SystemTime::now());
        let settings = hbone::Settings {
            client_send_buffer: self.settings.client_send_buffer.min(SEND_BUFFER),
            ..self.settings.clone()
        };
        let shake = hbone::handshake(stream, &settings).await;
        let (sender, mut driver) = shake.map_err(Failure::Handshake)?;
        if watch.is_on() {
            let revoked = revoked(watch, self.pod.clone(), self.gateway, peer.clone());
            driver = driver.cut_when(revoked);
        }
        let held = drive(driver);
        let slot = sender.claim();
        // the connection is to end with its one tunnel
        drop(sender);
        let tunnel = ask(slot, &self.connect).await?;
        Ok((tunnel, peer, held))
    }

    async fn handshake(&self, outer: hbone::Tunnel) -> Result<TlsStream<Lingering>, Failure> {
        let tls = TlsConnector::from(self.credential.client_config(self.expected));
        // the name is not sent and not compared: identity is the SPIFFE id
        let name = ServerName::IpAddress(self.gateway.ip().into());
        let done = timeout(TLS_TIMEOUT, tls.connect(name, Lingering(outer.into_io()))).await;
        done.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|cause| {
                // told apart from a handshake with the gateway itself
                let text = format!("behind the gateway {}: {cause}", self.gateway);
                Failure::Tls(io::Error::new(cause.kind(), text))
            })
    }
}

impl Crossing {
    /// What the answer said of the workload at the end of the tunnel.
    pub(crate) fn baggage(&self) -> hbone::Baggage {
        self.tunnel.peer_baggage()
    }

    /// Copies between a plain client and the tunnel until both directions have ended, or one of the two tunnels is cut.
    ///
    /// Errors: one of them broke, or the certificate of one's peer was revoked.
    pub(crate) async fn copy(
        self,
        client: &mut TcpStream,
        count: &impl Count,
    ) -> Result<(), Failure> {
        let cut = self.tunnel.cut();
        tokio::select! {
            biased;
            () = self.outer_cut => Err(Failure::CertRevoked),
            () = cut => Err(Failure::CertRevoked),
            ended = into_tunnel(client, self.tunnel, count) => ended,
        }
    }
}

/// Waits until the certificate of `peer`, to whom the gateway leads, is taken back.
async fn revoked(mut watch: Watch, pod: Str, gateway: SocketAddr, peer: Option<SpiffeId>) {
    watch.revoked().await;
    let identity = peer.as_ref().map(tracing::field::display);
    tracing::warn!(%pod, %gateway, identity, "tunnel through the gateway dropped: the certificate of the peer behind it is revoked");
}

/// Moves the frames of an inner connection in a task of its own until it ends. Once the sender that this gives is dropped
/// it has a moment left to close in good order.
fn drive<IO>(driver: hbone::Driver<IO>) -> oneshot::Sender<()>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (held, released) = oneshot::channel();
    let late = async {
        // never sent to: the other end is dropped
        let _ = released.await;
        sleep(GOODBYE_MAX).await;
    };
    tokio::task::spawn_local(async move {
        tokio::select! {
            ended = driver => if let Err(error) = ended {
                tracing::debug!(%error, "inner tunnel failed");
            },
            () = late => {}
        }
    });
    held
}

/// The stream through the gateway. Shutting it down also waits for the other direction to end, so that no side resets
/// what the other takes for broken off; what still comes is not for anybody.
struct Lingering(hbone::TunnelIo);

impl AsyncRead for Lingering {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Lingering {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.0).poll_shutdown(cx))?;
        loop {
            let mut rest = [0; 1024];
            let mut rest = ReadBuf::new(&mut rest);
            let read = ready!(Pin::new(&mut self.0).poll_read(cx, &mut rest));
            if read.is_err() || rest.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

#[cfg(test)]
mod tests;
