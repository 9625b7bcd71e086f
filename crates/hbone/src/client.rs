//! The connecting end of a connection: opens tunnels and keeps count of them. It never dials and never retries.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::Reason;
use h2::client::{Builder, Connection, SendRequest};
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use crate::keepalive::Keepalive;
use crate::paced::Paced;
use crate::settings::RESETS_KEPT;
use crate::{Connect, ConnectError, ConnectionError, HandshakeError, SendHalf, Settings, Tunnel};

/// Stands for the peer's limit of streams as long as it has not told it: no SETTINGS can carry it.
const LIMIT_UNKNOWN: usize = usize::MAX - 1;

/// Starts HTTP/2 on `io` as its client. Does not wait for the peer: its SETTINGS are obeyed when they come.
///
/// The [`Driver`] must be polled for anything to move. The connection closes when all tunnels have ended and all
/// [`Sender`]s are dropped, or at once when the driver is dropped.
pub async fn handshake<IO>(
    io: IO,
    settings: &Settings,
) -> Result<(Sender, Driver<IO>), HandshakeError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let shake = builder(settings).handshake(Paced::new(io));
    let (h2, mut conn) = tokio::time::timeout(settings.handshake_timeout, shake)
        .await
        .map_err(|_| HandshakeError::Timeout(settings.handshake_timeout))?
        .map_err(HandshakeError::H2)?;
    let ping = conn.ping_pong().expect("taken once per connection, here");
    let keepalive = Keepalive::new(ping, settings);
    let line = Arc::<Line>::default();
    let sender = Sender {
        h2,
        line: Arc::clone(&line),
        limit: settings.client_streams,
    };
    let driver = Driver {
        conn,
        keepalive,
        line,
        signal: None,
        over: false,
    };
    Ok((sender, driver))
}

fn builder(settings: &Settings) -> Builder {
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(settings.stream_window_sent())
        .initial_connection_window_size(settings.connection_window_sent())
        .max_frame_size(settings.frame_size_sent())
        .max_header_list_size(settings.client_header_list)
        .initial_max_send_streams(LIMIT_UNKNOWN)
        .max_send_buffer_size(settings.client_send_buffer)
        .max_concurrent_reset_streams(RESETS_KEPT)
        .data_frame_budget(settings.data_frame_budget());
    builder
}

/// Opens tunnels on one connection. Clones share it.
#[derive(Clone)]
pub struct Sender {
    h2: SendRequest<Bytes>,
    line: Arc<Line>,
    limit: usize,
}

/// What the handle, the driver and the tunnels of one connection share; at a server too.
#[derive(Debug, Default)]
pub(crate) struct Line {
    /// Tunnels open or being opened.
    open: AtomicUsize,
    /// The connection did not end in good order: this side gave it up, or the peer ended it for an error.
    lost: AtomicBool,
    /// Whether the connection was cut; there only if it can be.
    cut: OnceLock<watch::Sender<bool>>,
}

impl Sender {
    /// Tunnels open or being opened.
    pub fn open(&self) -> usize {
        self.line.open.load(Ordering::Relaxed)
    }

    /// Tunnels allowed at once: own limit or the peer's, whichever is smaller. The peer's counts once it is known.
    pub fn limit(&self) -> usize {
        self.limit.min(self.h2.current_max_send_streams())
    }

    /// False once no new tunnel can be opened: connection closed, GOAWAY received, stream ids used up.
    pub fn is_usable(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        matches!(self.h2.clone().poll_ready(&mut cx), Poll::Ready(Ok(())))
    }

    /// False as long as the peer has not told how many tunnels it takes.
    pub fn is_settled(&self) -> bool {
        self.h2.current_max_send_streams() != LIMIT_UNKNOWN
    }

    /// A place for one more tunnel, if the connection is usable and is known to have room. For the first one
    /// [`Sender::claim`] need not wait for that.
    pub fn reserve(&self) -> Option<Slot> {
        let has_room = self.is_settled() && self.open() < self.limit();
        (has_room && self.is_usable()).then(|| self.claim())
    }

    /// A place for one more tunnel whatever the limit; beyond the peer's, opening waits until it allows.
    pub fn claim(&self) -> Slot {
        Slot {
            h2: self.h2.clone(),
            permit: Permit::new(&self.line),
        }
    }

    /// Opens a tunnel: `claim` and [`Slot::connect`] in one.
    pub async fn connect(&self, request: &Connect<'_>) -> Result<Tunnel, ConnectError> {
        self.claim().connect(request).await
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (open, limit) = (self.open(), self.limit());
        f.debug_struct("Sender")
            .field("open", &open)
            .field("limit", &limit)
            .finish()
    }
}

/// A place for one tunnel on a connection. Counted until it, or the tunnel made from it, is dropped.
#[derive(Debug)]
pub struct Slot {
    h2: SendRequest<Bytes>,
    permit: Permit,
}

impl Slot {
    /// Ready once the connection is cut by [`Driver::cut_when`], never otherwise. To be raced against
    /// [`Slot::connect`], which only sees that the connection is gone.
    pub fn cut(&self) -> impl Future<Output = ()> + use<> {
        once_cut(&self.permit)
    }

    /// Sends the CONNECT and waits for the answer; only exactly 200 is success. Dropping the future resets the stream.
    ///
    /// There is no time limit of its own: a dead connection is found by PING, a slow destination is the peer's matter.
    pub async fn connect(self, request: &Connect<'_>) -> Result<Tunnel, ConnectError> {
        let request = request.request()?;
        let mut h2 = self.h2.ready().await?;
        let (response, send) = h2.send_request(request, false)?;
        drop(h2);
        let permit = Arc::new(self.permit);
        let send = SendHalf::new(send, Arc::clone(&permit));
        let (head, recv) = response.await?.into_parts();
        match head.status {
            StatusCode::OK => Ok(Tunnel::new(send, recv, head.headers, permit)),
            other => Err(ConnectError::Status(other)),
        }
    }
}

/// One counted tunnel.
#[derive(Debug)]
pub(crate) struct Permit(Arc<Line>);

impl Permit {
    pub(crate) fn new(line: &Arc<Line>) -> Self {
        line.open.fetch_add(1, Ordering::Relaxed);
        Permit(Arc::clone(line))
    }

    /// Whether the connection's end is none of its tunnels' data.
    pub(crate) fn is_lost(&self) -> bool {
        self.0.lost.load(Ordering::Relaxed)
    }
}

impl Line {
    /// The connection ended with `error`. To its tunnels that of a peer which says GOAWAY and closes looks orderly,
    /// whatever reason it gave.
    ///
    /// Source: RFC 9113, section 5.4.1.
    pub(crate) fn ended_with(&self, error: &h2::Error) {
        if error.is_go_away() && error.reason() != Some(Reason::NO_ERROR) {
            self.lost.store(true, Ordering::Relaxed);
        }
    }
}

/// Ready once the connection of `permit` is cut.
pub(crate) fn once_cut(permit: &Permit) -> impl Future<Output = ()> + use<> {
    let cut = permit.0.cut.get().map(watch::Sender::subscribe);
    async move {
        if let Some(mut cut) = cut
            && cut.wait_for(|cut| *cut).await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Moves the frames of one connection, and its PINGs. Ends with the connection; dropping it closes the transport.
///
/// Errors: [`ConnectionError::PingTimeout`] when the peer went silent, [`ConnectionError::H2`] when the transport or
/// the protocol broke, [`ConnectionError::Cut`]. The open tunnels see an error as well.
#[must_use = "a connection only moves while its driver is polled"]
pub struct Driver<IO> {
    conn: Connection<Paced<IO>, Bytes>,
    keepalive: Keepalive,
    line: Arc<Line>,
    /// Ends the connection when it is ready.
    signal: Option<Pin<Box<dyn Future<Output = ()>>>>,
    /// The connection ended, and not because it was given up here.
    over: bool,
}

impl<IO> Drop for Driver<IO> {
    fn drop(&mut self) {
        // Before the connection goes: its tunnels then see what looks like the peer's orderly end.
        if !self.over {
            self.line.lost.store(true, Ordering::Relaxed);
        }
    }
}

impl<IO> Driver<IO>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    /// As [`Sender::is_settled`].
    pub fn is_settled(&self) -> bool {
        self.conn.max_concurrent_send_streams() != LIMIT_UNKNOWN
    }
}

impl<IO> Driver<IO> {
    /// Cuts the connection as soon as `signal` is ready: its tunnels learn it from [`Tunnel::cut`]. To be called before
    /// the first tunnel is opened; a second call replaces the signal.
    pub fn cut_when(mut self, signal: impl Future<Output = ()> + 'static) -> Self {
        self.line.cut.get_or_init(|| watch::Sender::new(false));
        self.signal = Some(Box::pin(signal));
        self
    }

    fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.signal {
            Some(signal) => ready!(signal.as_mut().poll(cx)),
            None => return Poll::Pending,
        }
        self.signal = None;
        if let Some(cut) = self.line.cut.get() {
            cut.send_replace(true);
        }
        Poll::Ready(())
    }
}

impl<IO> Future for Driver<IO>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    type Output = Result<(), ConnectionError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.poll_cut(cx).is_ready() {
            return Poll::Ready(Err(ConnectionError::Cut));
        }
        if let Poll::Ready(end) = Pin::new(&mut self.conn).poll(cx) {
            self.over = true;
            if let Err(error) = &end {
                self.line.ended_with(error);
            }
            return Poll::Ready(end.map_err(ConnectionError::H2));
        }
        self.keepalive
            .poll_lost(cx)
            .map(|()| Err(ConnectionError::PingTimeout(self.keepalive.timeout())))
    }
}

impl<IO> fmt::Debug for Driver<IO> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Driver")
    }
}
