//! The accepting end of a connection: yields CONNECT requests and carries their answers. Whether to accept, and the
//! status of a refusal, is decided by the caller.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Sleep, sleep};

use crate::client::{Line, Permit};
use crate::head::BAGGAGE;
use crate::keepalive::Keepalive;
use crate::paced::Paced;
use crate::settings::RESETS_KEPT;
use crate::{
    BadRequest, ConnectionError, HandshakeError, Head, SendHalf, Settings, Tunnel, TunnelError,
};

/// Streams a peer may open and reset before they are accepted; more is an attack (CVE-2023-44487).
const EARLY_RESETS_MAX: usize = 20;
/// Streams this side may have to reset for the peer's errors during one connection.
const ERROR_RESETS_MAX: usize = 1024;
/// How long a connection that is being cut may take to write its GOAWAY.
const CUT_MAX: Duration = Duration::from_secs(1);

/// One accepted connection. [`Server::accept`] also moves the frames of all its tunnels, so call it again and again,
/// and serve each request in a task of its own. Dropping it closes the transport at once.
pub struct Server<IO> {
    conn: Connection<Paced<IO>, Bytes>,
    keepalive: Keepalive,
    /// Set once the connection is being cut: why, and until when its GOAWAY may be written.
    cut: Option<Cut>,
    line: Arc<Line>,
    ended: bool,
}

struct Cut {
    lost: Option<ConnectionError>,
    limit: Pin<Box<Sleep>>,
}

impl<IO> Server<IO>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    /// Starts HTTP/2 on `io` as its server: waits for the client's preface, at most `handshake_timeout`.
    pub async fn handshake(io: IO, settings: &Settings) -> Result<Self, HandshakeError> {
        let shake = builder(settings).handshake(Paced::new(io));
        let mut conn = tokio::time::timeout(settings.handshake_timeout, shake)
            .await
            .map_err(|_| HandshakeError::Timeout(settings.handshake_timeout))?
            .map_err(|error| match error.reason() {
                Some(Reason::PROTOCOL_ERROR) => HandshakeError::Preface,
                _ => HandshakeError::H2(error),
            })?;
        let ping = conn.ping_pong().expect("taken once per connection, here");
        let keepalive = Keepalive::new(ping, settings);
        Ok(Server {
            conn,
            keepalive,
            cut: None,
            line: Arc::default(),
            ended: false,
        })
    }

    /// The next request, or `None` when the connection has ended as it should. After an error there is only `None`.
    ///
    /// Dropping the future loses nothing, so it may stand in a `select!`.
    ///
    /// Errors: [`ConnectionError::PingTimeout`] when the client went silent, [`ConnectionError::H2`] when the transport
    /// or the protocol broke.
    pub async fn accept(&mut self) -> Option<Result<Request, ConnectionError>> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// [`Server::accept`] as a poll function.
    pub fn poll_accept(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Request, ConnectionError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let next = ready!(self.poll_next(cx));
        self.ended = !matches!(next, Some(Ok(_)));
        Poll::Ready(next)
    }

    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Request, ConnectionError>>> {
        loop {
            match self.conn.poll_accept(cx) {
                // A connection being cut takes no more requests: dropped, they are reset.
                Poll::Ready(Some(Ok(_))) if self.cut.is_some() => continue,
                Poll::Ready(Some(Ok((request, respond)))) => {
                    let permit = Permit::new(&self.line);
                    return Poll::Ready(Some(Ok(Request::new(request, respond, permit))));
                }
                Poll::Ready(Some(Err(error))) if self.cut.is_none() => {
                    self.line.ended_with(&error);
                    return Poll::Ready(Some(Err(error.into())));
                }
                Poll::Ready(_) => return Poll::Ready(self.lost()),
                Poll::Pending => {}
            }
            if let Some(cut) = &mut self.cut {
                return cut.limit.as_mut().poll(cx).map(|()| self.lost());
            }
            match self.keepalive.poll_lost(cx) {
                Poll::Ready(()) => {
                    let lost = ConnectionError::PingTimeout(self.keepalive.timeout());
                    self.cut_for(Some(lost));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Stops taking requests, politely: GOAWAY with no last stream, a round trip for requests on their way, GOAWAY
    /// with the last one. Keep calling [`Server::accept`]: it ends when the open tunnels have.
    pub fn drain(&mut self) {
        self.conn.graceful_shutdown();
    }

    /// Cuts the connection with all its tunnels: GOAWAY NO_ERROR, then close. [`Server::accept`] ends it, within a
    /// second.
    pub fn cut(&mut self) {
        self.cut_for(None);
    }

    fn cut_for(&mut self, lost: Option<ConnectionError>) {
        if self.cut.is_none() {
            self.conn.abrupt_shutdown(Reason::NO_ERROR);
            self.cut = Some(Cut {
                lost,
                limit: Box::pin(sleep(CUT_MAX)),
            });
        }
    }

    fn lost(&mut self) -> Option<Result<Request, ConnectionError>> {
        self.cut.as_mut().and_then(|cut| cut.lost.take()).map(Err)
    }
}

impl<IO> fmt::Debug for Server<IO> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("cut", &self.cut.is_some())
            .finish()
    }
}

fn builder(settings: &Settings) -> Builder {
    let mut builder = Builder::new();
    builder
        .initial_window_size(settings.stream_window_sent())
        .initial_connection_window_size(settings.connection_window_sent())
        .max_frame_size(settings.frame_size_sent())
        .max_header_list_size(settings.server_header_list)
        .max_concurrent_streams(settings.server_streams)
        .max_send_buffer_size(settings.server_send_buffer)
        .max_pending_accept_reset_streams(EARLY_RESETS_MAX)
        .max_local_error_reset_streams(Some(ERROR_RESETS_MAX))
        .max_concurrent_reset_streams(RESETS_KEPT)
        .data_frame_budget(settings.data_frame_budget());
    builder
}

/// A request as received: what it asks, and the means to answer.
#[derive(Debug)]
pub struct Request {
    /// The CONNECT, or why it is none; a bad one is to be refused with 400.
    pub head: Result<Head, BadRequest>,
    /// Answers the request. Dropped unused, the stream is reset.
    pub reply: Reply,
}

impl Request {
    fn new(
        request: http::Request<RecvStream>,
        respond: SendResponse<Bytes>,
        permit: Permit,
    ) -> Self {
        let (parts, recv) = request.into_parts();
        Request {
            head: Head::read(&parts),
            reply: Reply {
                respond,
                recv,
                permit: Arc::new(permit),
            },
        }
    }
}

/// Answers one request.
#[derive(Debug)]
pub struct Reply {
    respond: SendResponse<Bytes>,
    recv: RecvStream,
    permit: Arc<Permit>,
}

impl Reply {
    /// Answers 200 and opens the tunnel. Only to be called when the destination is connected.
    ///
    /// - `baggage`: of the local workload, from [`crate::Baggage::header`]
    ///
    /// Errors: the client has reset the stream, or the connection is lost.
    pub fn accept(mut self, baggage: Option<&HeaderValue>) -> Result<Tunnel, TunnelError> {
        let mut response = Response::new(());
        if let Some(baggage) = baggage {
            response.headers_mut().insert(BAGGAGE, baggage.clone());
        }
        match self.respond.send_response(response, false) {
            Ok(send) => Ok(Tunnel::new(
                SendHalf::new(send, Arc::clone(&self.permit)),
                self.recv,
                HeaderMap::new(),
                self.permit,
            )),
            Err(error) => Err(self.why_refused(error)),
        }
    }

    /// Answers with an error status: HEADERS with END_STREAM and nothing else. The connection stays usable.
    pub fn refuse(mut self, status: StatusCode) {
        let mut response = Response::new(());
        *response.status_mut() = status;
        // A client that has gone meanwhile needs no answer.
        let _ = self.respond.send_response(response, true);
    }

    /// Waits until the client gives the request up, or the connection is lost. To be raced against the work that the
    /// answer depends on.
    pub async fn abandoned(&mut self) -> TunnelError {
        match poll_fn(|cx| self.respond.poll_reset(cx)).await {
            Ok(reason) => TunnelError::from_reason(reason),
            Err(error) => self.sort(error),
        }
    }

    fn sort(&self, error: h2::Error) -> TunnelError {
        TunnelError::from_h2_on(error, self.permit.is_lost())
    }

    /// Why h2 refused an answer: the stream's end if it has one, since h2 only says that it is not open.
    fn why_refused(&mut self, error: h2::Error) -> TunnelError {
        match self
            .respond
            .poll_reset(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(Ok(reason)) => TunnelError::from_reason(reason),
            Poll::Ready(Err(error)) => self.sort(error),
            Poll::Pending => self.sort(error),
        }
    }
}
