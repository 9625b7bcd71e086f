//! The three HTTP servers of the daemon: admin (loopback), metrics and readiness.
//!
//! This file holds what they share: bounded HTTP/1.1 serving that outlives a failed accept and ends with the process's
//! drain. The paths are in the modules below; what they show comes from the rooms.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

pub mod admin;
pub mod metrics;
pub mod ready;

/// Time that a client has to send its request head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(2);
/// Largest request head, bytes.
const HEAD_BYTES_MAX: usize = 8192;
/// Clients served at a time by one server; more wait in the kernel's backlog.
const CLIENTS_MAX: usize = 64;
/// Longest that one client may stay connected.
const CLIENT_TIME: Duration = Duration::from_secs(60);
/// Pause after a failed accept, so that exhausted descriptors do not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Whole answer of an endpoint.
pub type Answer = Response<Full<Bytes>>;

/// Binds `address` so that a successor of this process can bind it as well before this one lets go.
///
/// Errors: the kernel's, with the address in the text.
pub fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let named = |e: io::Error| io::Error::new(e.kind(), format!("bind {address}: {e}"));
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )
    .map_err(named)?;
    if address.is_ipv6() {
        socket
            .set_only_v6(!address.ip().is_unspecified())
            .map_err(named)?;
    }
    socket.set_reuse_address(true).map_err(named)?;
    socket.set_reuse_port(true).map_err(named)?;
    socket.set_tcp_nodelay(true).map_err(named)?;
    socket.set_nonblocking(true).map_err(named)?;
    socket.bind(&address.into()).map_err(named)?;
    socket.listen(128).map_err(named)?;
    Ok(socket.into())
}

/// Serves `listener` until `stop` turns true; requests in progress are finished.
///
/// Must run inside a `LocalSet`. `answer` is called for each request.
pub async fn serve<F, Fut>(
    listener: std::net::TcpListener,
    mut stop: watch::Receiver<bool>,
    answer: F,
) -> io::Result<()>
where
    F: Fn(Request<Incoming>) -> Fut + 'static,
    Fut: Future<Output = Answer> + 'static,
{
    let listener = TcpListener::from_std(listener)?;
    let answer = Rc::new(answer);
    let clients = Arc::new(Semaphore::new(CLIENTS_MAX));
    loop {
        let place = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
            place = Arc::clone(&clients).acquire_owned() => place,
        };
        let accepted = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let (answer, stop) = (Rc::clone(&answer), stop.clone());
                tokio::task::spawn_local(async move {
                    // one that never reads its answer must not keep its place
                    let _ = tokio::time::timeout(CLIENT_TIME, client(stream, stop, answer)).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept on an endpoint failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn client<F, Fut>(stream: TcpStream, mut stop: watch::Receiver<bool>, answer: Rc<F>)
where
    F: Fn(Request<Incoming>) -> Fut + 'static,
    Fut: Future<Output = Answer> + 'static,
{
    let service = hyper::service::service_fn(move |request| {
        let answer = Rc::clone(&answer);
        async move { Ok::<_, Infallible>(answer(request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = stop.wait_for(|stop| *stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "endpoint client ended early");
    }
}

/// An answer of `text/plain`.
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    typed(status, "text/plain", body)
}

/// An answer of any type.
pub fn typed(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// An answer without body.
pub fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = status;
    answer
}
