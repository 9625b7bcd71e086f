//! One CONNECT stream as a byte stream: two halves, each ended on its own, with HTTP/2 flow control as back-pressure.
//! Where the bytes come from and go to is the copier's business.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;

use crate::client::{Permit, once_cut};
use crate::head::BAGGAGE;
use crate::{Baggage, TunnelError, TunnelIo};

/// Most bytes asked of flow control at once: below what a window can hold, so that sums do not overflow.
const WANT_MAX: usize = 1 << 30;

/// An open tunnel. Dropped before both directions ended, it is reset: the peer sees CANCEL.
#[derive(Debug)]
pub struct Tunnel {
    send: SendHalf,
    recv: RecvHalf,
    answer: HeaderMap,
}

impl Tunnel {
    /// - `answer`: headers of the 200; empty at the server
    /// - `permit`: its place among the connection's streams
    pub(crate) fn new(
        send: SendHalf,
        recv: RecvStream,
        answer: HeaderMap,
        permit: Arc<Permit>,
    ) -> Self {
        let recv = RecvHalf {
            h2: recv,
            kept: 0,
            ended: false,
            permit,
        };
        Tunnel { send, recv, answer }
    }

    /// Client: what the peer's 200 said of the destination workload; empty if nothing.
    pub fn peer_baggage(&self) -> Baggage {
        Baggage::parse(self.answer.get_all(BAGGAGE))
    }

    /// Client: ready once the connection under the tunnel is cut by [`Driver::cut_when`](crate::Driver::cut_when), never
    /// otherwise. Costs nothing where a connection cannot be cut.
    pub fn cut(&self) -> impl Future<Output = ()> + use<> {
        once_cut(&self.recv.permit)
    }

    /// The two directions, to be driven apart or together.
    pub fn split(self) -> (SendHalf, RecvHalf) {
        (self.send, self.recv)
    }

    /// The tunnel as `AsyncRead + AsyncWrite`, for protocols that run inside it.
    pub fn into_io(self) -> TunnelIo {
        TunnelIo::new(self.send, self.recv)
    }
}

/// Sorts an error of h2, with what is known of the connection.
fn sort(error: h2::Error, permit: &Permit) -> TunnelError {
    TunnelError::from_h2_on(error, permit.is_lost())
}

/// The direction towards the peer. Dropped unfinished, it resets the stream with CANCEL.
#[derive(Debug)]
pub struct SendHalf {
    h2: SendStream<Bytes>,
    /// What the last `poll_ready` found to be sendable, bytes.
    ready: usize,
    /// END_STREAM or RST_STREAM is on its way: nothing more may be sent.
    done: bool,
    permit: Arc<Permit>,
}

impl SendHalf {
    pub(crate) fn new(h2: SendStream<Bytes>, permit: Arc<Permit>) -> Self {
        SendHalf {
            h2,
            ready: 0,
            done: false,
            permit,
        }
    }

    /// Waits until some of `want` bytes can be sent, and says how many: `1..=want`.
    ///
    /// The windows of the peer and the send buffer decide. What is asked for is taken from the connection's window,
    /// so ask for bytes in hand, not for bytes that may come; [`SendHalf::write`] gives back what it did not use.
    ///
    /// Errors: [`TunnelError::Gone`] when the peer no longer reads or this half is finished.
    pub fn poll_ready(
        &mut self,
        cx: &mut Context<'_>,
        want: usize,
    ) -> Poll<Result<usize, TunnelError>> {
        if self.done {
            return Poll::Ready(Err(TunnelError::Gone));
        }
        let want = want.clamp(1, WANT_MAX);
        self.h2.reserve_capacity(want);
        loop {
            let capacity = self.h2.capacity();
            if capacity > 0 {
                self.ready = capacity;
                return Poll::Ready(Ok(capacity.min(want)));
            }
            match ready!(self.h2.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(sort(error, &self.permit))),
                None => return Poll::Ready(Err(self.why_closed(cx))),
            }
        }
    }

    /// [`SendHalf::poll_ready`] as a future.
    pub async fn ready(&mut self, want: usize) -> Result<usize, TunnelError> {
        poll_fn(|cx| self.poll_ready(cx, want)).await
    }

    /// Sends `data` as one DATA frame, as flow control allows. At most as many bytes as `poll_ready` said: more are
    /// kept in memory. Empty data sends nothing (some peers count empty frames as abuse).
    ///
    /// Errors: as [`SendHalf::poll_ready`].
    pub fn write(&mut self, data: Bytes) -> Result<(), TunnelError> {
        debug_assert!(data.len() <= self.ready, "write follows poll_ready");
        if self.done {
            return Err(TunnelError::Gone);
        }
        if data.is_empty() {
            return Ok(());
        }
        let unused = self.ready.saturating_sub(data.len());
        self.ready = 0;
        let sent = self.h2.send_data(data, false);
        if unused > 0 {
            self.h2.reserve_capacity(0);
        }
        sent.map_err(|error| self.why_refused(error))
    }

    /// Ends this direction: END_STREAM. The other goes on. Repeating it does nothing.
    ///
    /// Errors: as [`SendHalf::poll_ready`].
    pub fn finish(&mut self) -> Result<(), TunnelError> {
        if self.done {
            return Ok(());
        }
        self.done = true;
        let sent = self.h2.send_data(Bytes::new(), true);
        sent.map_err(|error| self.why_refused(error))
    }

    /// Abandons the tunnel, both directions: RST_STREAM CANCEL. What is not yet written is lost.
    pub fn reset(&mut self) {
        self.done = true;
        self.h2.send_reset(Reason::CANCEL);
    }

    /// Ready once the peer has reset the stream or the connection is lost; lets a copier that has nothing to send
    /// notice. Shares its waker with [`SendHalf::poll_ready`], so poll both from one task.
    pub fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<TunnelError> {
        match ready!(self.h2.poll_reset(cx)) {
            Ok(reason) => Poll::Ready(TunnelError::from_reason(reason)),
            Err(error) => Poll::Ready(sort(error, &self.permit)),
        }
    }

    /// Why a stream that takes no data takes none.
    fn why_closed(&mut self, cx: &mut Context<'_>) -> TunnelError {
        match self.poll_closed(cx) {
            Poll::Ready(why) => why,
            Poll::Pending => TunnelError::Gone,
        }
    }

    /// Why h2 refused a frame: the stream's end if it has one, since h2 only says that it is not open.
    fn why_refused(&mut self, error: h2::Error) -> TunnelError {
        match self.poll_closed(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(why) => why,
            Poll::Pending => sort(error, &self.permit),
        }
    }
}

impl Drop for SendHalf {
    fn drop(&mut self) {
        if !self.done {
            self.reset();
        }
    }
}

/// The direction from the peer. Window is given back as data is handed out, so a copier that stops asking stops the
/// peer after one window of bytes.
#[derive(Debug)]
pub struct RecvHalf {
    h2: RecvStream,
    /// Bytes handed out by `poll_keep` whose window has not been given back.
    kept: usize,
    ended: bool,
    permit: Arc<Permit>,
}

impl RecvHalf {
    /// The next bytes, never empty, or `None` at the end: END_STREAM, a reset that is no error, or the peer's close of the
    /// whole connection.
    ///
    /// Errors: [`TunnelError::Reset`], [`TunnelError::H2`]; afterwards `None`.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, TunnelError>>> {
        let next = ready!(self.poll_keep(cx));
        if let Some(Ok(data)) = &next {
            self.give_back(data.len());
        }
        Poll::Ready(next)
    }

    /// [`RecvHalf::poll_data`] without giving window back: for who asks on although nobody takes the bytes yet. All that
    /// is kept then fits into one stream window.
    ///
    /// Errors: as there.
    pub fn poll_keep(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, TunnelError>>> {
        while !self.ended {
            match ready!(self.h2.poll_data(cx)) {
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => {
                    self.kept += data.len();
                    return Poll::Ready(Some(Ok(data)));
                }
                Some(Err(error)) => {
                    self.ended = true;
                    let error = sort(error, &self.permit);
                    return Poll::Ready((!error.is_gone()).then_some(Err(error)));
                }
                None => self.ended = true,
            }
        }
        Poll::Ready(None)
    }

    /// Gives the window of `len` bytes back that [`RecvHalf::poll_keep`] handed out, at most of all that it has.
    pub fn give_back(&mut self, len: usize) {
        let len = len.min(self.kept);
        self.kept -= len;
        // Refused only for a stream that is closed already: then there is no window to keep.
        let _ = self.h2.flow_control().release_capacity(len);
    }

    /// [`RecvHalf::poll_data`] as a future.
    pub async fn data(&mut self) -> Option<Result<Bytes, TunnelError>> {
        poll_fn(|cx| self.poll_data(cx)).await
    }

    /// True once `poll_data` has nothing more to give.
    pub fn is_end(&self) -> bool {
        self.ended || self.h2.is_end_stream()
    }
}

impl Drop for RecvHalf {
    fn drop(&mut self) {
        // h2 would only do it once the sending half is gone too, and the connection's window is everybody's
        self.give_back(self.kept);
    }
}
