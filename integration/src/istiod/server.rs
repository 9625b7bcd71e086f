//! One address, served with TLS and HTTP/2 on a thread of its own, which can live in a network namespace.
//!
//! Stopping takes the thread, its runtime and with it every connection down at once, as a crash would.

use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::sched::{CloneFlags, setns};
use proto::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use proto::discovery::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;
use tonic::body::Body;
use tonic::codegen::Service;

use super::Shared;
use super::ads::Discovery;
use super::ca::Certificates;
use super::record::Caller;

/// Largest request that is read; what a client holds of a large mesh is told in one.
const REQUEST_BYTES_MAX: usize = 64 << 20;
/// Most time for a handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Pause after an accept that failed.
const ACCEPT_AGAIN: Duration = Duration::from_millis(10);

/// Where to listen.
#[derive(Debug, Clone)]
pub struct Place {
    /// network namespace; none = the caller's
    pub netns: Option<PathBuf>,
    /// address; with port 0 one is chosen, and kept from then on
    pub address: SocketAddr,
}

/// An address that is served or not.
pub struct Server {
    place: Place,
    shared: Arc<Shared>,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Server {
    /// Not running yet.
    pub fn new(place: Place, shared: Arc<Shared>) -> Self {
        Self {
            place,
            shared,
            running: None,
        }
    }

    /// The address.
    pub fn address(&self) -> SocketAddr {
        self.place.address
    }

    /// Serves, if it does not already. It accepts when this returns.
    ///
    /// Errors: the namespace cannot be entered or the address not be bound.
    pub fn start(&mut self) -> Result<()> {
        if self.running.is_some() {
            return Ok(());
        }
        let (stop, stopped) = oneshot::channel();
        let (told, ready) = std::sync::mpsc::sync_channel(1);
        let (place, shared) = (self.place.clone(), Arc::clone(&self.shared));
        let thread = std::thread::Builder::new().name("istiod".to_owned());
        let thread = thread.spawn(move || match prepare(&place) {
            Ok((runtime, listener)) => {
                // the starter waits for this; an error would mean that it has gone
                let _ = told.send(listener.local_addr().map_err(anyhow::Error::from));
                runtime.block_on(async {
                    tokio::select! {
                        () = accept(listener, shared) => (),
                        // sent, or the value dropped: an end either way
                        _ = stopped => (),
                    }
                });
            }
            Err(why) => {
                let _ = told.send(Err(why));
            }
        })?;
        self.place.address = ready
            .recv()
            .map_err(|_| anyhow!("the server's thread ended"))?
            .with_context(|| format!("serve {}", self.place.address))?;
        self.running = Some((stop, thread));
        Ok(())
    }

    /// Ends at once, with all connections.
    pub fn stop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            drop(stop);
            // a thread that panicked has said so on standard error
            let _ = thread.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn prepare(place: &Place) -> Result<(tokio::runtime::Runtime, TcpListener)> {
    if let Some(path) = &place.netns {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        setns(&file, CloneFlags::CLONE_NEWNET).context("enter the namespace")?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let listener = runtime.block_on(TcpListener::bind(place.address))?;
    Ok((runtime, listener))
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((tcp, peer)) => {
                let shared = Arc::clone(&shared);
                // how a connection ends shows on the client's side
                tokio::spawn(async move { drop(connection(tcp, peer, shared).await) });
            }
            Err(_) => tokio::time::sleep(ACCEPT_AGAIN).await,
        }
    }
}

async fn connection(tcp: TcpStream, peer: SocketAddr, shared: Arc<Shared>) -> Result<()> {
    tcp.set_nodelay(true)?;
    let config = Arc::clone(&shared.settings().tls);
    let accepted = TlsAcceptor::from(config).accept(tcp);
    let tls = tokio::time::timeout(HANDSHAKE_MAX, accepted).await??;
    let handshake = tls.get_ref().1;
    let caller = Caller {
        peer: Some(peer.ip().to_canonical()),
        sni: handshake.server_name().map(str::to_owned),
        alpn: handshake
            .alpn_protocol()
            .map(|name| String::from_utf8_lossy(name).into_owned()),
        ..Caller::default()
    };
    let discovery = AggregatedDiscoveryServiceServer::new(Discovery(Arc::clone(&shared)))
        .max_decoding_message_size(REQUEST_BYTES_MAX);
    let certificates = IstioCertificateServiceServer::new(Certificates(shared));
    let service = service_fn(move |mut request: Request<Incoming>| {
        let (mut discovery, mut certificates) = (discovery.clone(), certificates.clone());
        let mut caller = caller.clone();
        async move {
            for (name, value) in request.headers() {
                let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
                caller.headers.insert(name.as_str().to_owned(), text);
            }
            let certificate = request.uri().path().starts_with("/istio.v1.auth.");
            request.extensions_mut().insert(caller);
            let answer: Result<Response<Body>, std::convert::Infallible> = if certificate {
                certificates.call(request).await
            } else {
                discovery.call(request).await
            };
            answer
        }
    });
    http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(tls), service)
        .await?;
    Ok(())
}
