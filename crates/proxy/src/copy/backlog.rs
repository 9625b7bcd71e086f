//! What came out of a tunnel and waits for a slow reader.
//!
//! It does not wait in the tunnel, because HTTP/2 holds frames that nobody takes against the whole connection: many small
//! ones end it, with all that share it. Here small frames cost their bytes only. Window is given back when bytes are
//! written, so one stream window bounds what waits.

use std::collections::VecDeque;
use std::mem;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use hbone::{RecvHalf, TunnelError};

/// Frames shorter than this are copied together, others are kept as they came.
const SMALL: usize = 2048;

/// The receiving half of a tunnel with what has been taken from it ahead of time.
pub(super) struct Incoming {
    receive: RecvHalf,
    /// oldest first, all of it before `small`
    whole: VecDeque<Bytes>,
    small: BytesMut,
    /// met behind all that waits
    failed: Option<TunnelError>,
}

impl Incoming {
    pub(super) fn new(receive: RecvHalf) -> Self {
        Self {
            receive,
            whole: VecDeque::new(),
            small: BytesMut::new(),
            failed: None,
        }
    }

    /// The next bytes, as [`RecvHalf::poll_keep`] gives them.
    pub(super) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, TunnelError>>> {
        if let Some(data) = self.whole.pop_front() {
            if self.whole.is_empty() {
                // with its memory: an idle connection holds none
                self.whole = VecDeque::new();
            }
            return Poll::Ready(Some(Ok(data)));
        }
        if !self.small.is_empty() {
            return Poll::Ready(Some(Ok(mem::take(&mut self.small).freeze())));
        }
        if let Some(failed) = self.failed.take() {
            return Poll::Ready(Some(Err(failed)));
        }
        self.receive.poll_keep(cx)
    }

    /// `len` of the bytes given by [`Incoming::poll_next`] are written: the peer may send as many more.
    pub(super) fn written(&mut self, len: usize) {
        self.receive.give_back(len);
    }

    /// Takes what has come, and registers for what comes.
    pub(super) fn take_all(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some(next)) = self.receive.poll_keep(cx) {
            match next {
                Ok(data) => self.push(data),
                Err(failed) => self.failed = Some(failed),
            }
        }
    }

    fn push(&mut self, data: Bytes) {
        if data.len() < SMALL {
            self.small.extend_from_slice(&data);
            return;
        }
        if !self.small.is_empty() {
            self.whole.push_back(mem::take(&mut self.small).freeze());
        }
        self.whole.push_back(data);
    }

    /// Drops all that waits and comes until the tunnel's end. Dropping the half instead leaves its frames unanswered for.
    pub(super) async fn discard(mut self) {
        self.whole = VecDeque::new();
        self.small = BytesMut::new();
        // all there is
        self.written(usize::MAX);
        while self.receive.data().await.is_some() {}
    }
}
