//! What a connection of the control plane is: TLS, then HTTP/2 with discovery and certificates.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use proto::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use proto::discovery::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tonic::body::Body;
use tonic::codegen::Service;

use super::Shared;
use super::ads::Discovery;
use super::ca::Certificates;
use super::record::Caller;
use crate::serve::Handler;
pub use crate::serve::{Place, Server};

/// Largest request that is read; what a client holds of a large mesh is told in one.
const REQUEST_BYTES_MAX: usize = 64 << 20;
/// Most time for a handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// A server that is not running yet.
pub(super) fn server(place: Place, shared: Arc<Shared>) -> Server {
    let handler: Handler = Arc::new(move |tcp, peer| {
        let shared = Arc::clone(&shared);
        // how a connection ends shows on the client's side
        Box::pin(async move { drop(connection(tcp, peer, shared).await) })
    });
    Server::new(place, "istiod", handler)
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
