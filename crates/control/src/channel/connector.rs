//! From a host name to a TLS stream: resolve, connect, shake hands, each with a bound on the wait.

use std::fmt::Write;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower::Service;

use super::Timing;

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;
/// TCP keepalive: a silent server is asked after this time …
const KEEPALIVE_IDLE: Duration = Duration::from_secs(300);
/// … then so often …
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(75);
/// … so many times.
const KEEPALIVE_PROBES: u32 = 9;

/// Whom to dial.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// Name or address, without brackets.
    pub host: String,
    pub port: u16,
    /// The same, as TLS wants it. An address is not sent in the handshake.
    pub name: ServerName<'static>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name cannot be resolved.
    #[error("resolve {host}")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver says.
        #[source]
        cause: io::Error,
    },
    /// No address takes the connection.
    #[error("connect to {host}: {tried}")]
    Connect {
        /// The name.
        host: String,
        /// Each address with its error.
        tried: String,
    },
    /// The handshake failed.
    #[error("TLS handshake with {host} at {address}")]
    Handshake {
        /// The name.
        host: String,
        /// The address it was dialled at.
        address: SocketAddr,
        /// Why; an unexpected certificate for instance.
        #[source]
        cause: io::Error,
    },
}

/// Dials one target.
#[derive(Clone)]
pub(super) struct Connector {
    target: Target,
    tls: Arc<ClientConfig>,
    timing: Timing,
}

impl Connector {
    pub(super) fn new(target: Target, tls: Arc<ClientConfig>, timing: Timing) -> Self {
        Self {
            target,
            tls,
            timing,
        }
    }

    /// The stream after the handshake, and the address that it goes to.
    pub(super) async fn dial(self) -> Result<(TlsStream<TcpStream>, SocketAddr), DialError> {
        let addresses = self.resolve().await?;
        let (stream, address) = self.connect(&addresses).await?;
        let shake = TlsConnector::from(self.tls).connect(self.target.name, stream);
        within(self.timing.handshake, shake)
            .await
            .map(|stream| (stream, address))
            .map_err(|cause| DialError::Handshake {
                host: self.target.host,
                address,
                cause,
            })
    }

    async fn resolve(&self) -> Result<Vec<SocketAddr>, DialError> {
        let Target { host, port, .. } = &self.target;
        within(self.timing.resolve, lookup_host((host.as_str(), *port)))
            .await
            .map(|found| found.take(ADDRESSES_MAX).collect())
            .map_err(|cause| DialError::Resolve {
                host: host.clone(),
                cause,
            })
    }

    /// The first address that takes the connection.
    async fn connect(
        &self,
        addresses: &[SocketAddr],
    ) -> Result<(TcpStream, SocketAddr), DialError> {
        let mut tried = String::new();
        for &address in addresses {
            let attempt = within(self.timing.connect, TcpStream::connect(address)).await;
            match attempt.and_then(|stream| prepare(&stream).map(|()| stream)) {
                Ok(stream) => return Ok((stream, address)),
                Err(error) => {
                    let comma = if tried.is_empty() { "" } else { ", " };
                    let _ = write!(tried, "{comma}{address}: {error}"); // writing to a String cannot fail
                }
            }
        }
        if tried.is_empty() {
            tried.push_str("it has no address");
        }
        Err(DialError::Connect {
            host: self.target.host.clone(),
            tried,
        })
    }
}

/// Small messages at once, and a peer that vanished is noticed.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("no answer in {limit:?}"));
    timeout(limit, work).await.map_err(late)?
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = DialError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, DialError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let dial = self.clone().dial();
        Box::pin(async { dial.await.map(|(stream, _)| TokioIo::new(stream)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn dialled_sockets_have_keepalive_and_no_delay() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = crate::channel::Server::new(crate::channel::Config::new(
            format!("https://{}", listener.local_addr().unwrap()),
            crate::channel::Roots::System,
        ))
        .unwrap();
        let tls =
            ClientConfig::builder_with_provider(Arc::clone(identity::Tls::default().provider()))
                .with_protocol_versions(&[&rustls::version::TLS13])
                .unwrap()
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
        let connector = server.connector(Arc::new(tls));
        let addresses = connector.resolve().await.unwrap();
        let (stream, address) = connector.connect(&addresses).await.unwrap();
        assert_eq!(address, listener.local_addr().unwrap());
        let socket = SockRef::from(&stream);
        assert!(stream.nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(
            socket.tcp_keepalive_time().unwrap(),
            Duration::from_secs(300)
        );
        assert_eq!(
            socket.tcp_keepalive_interval().unwrap(),
            Duration::from_secs(75)
        );
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 9);
    }
}
