//! A tunnel as `AsyncRead + AsyncWrite`, for TLS inside it. Plain copying is cheaper with the halves of `tunnel.rs`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{RecvHalf, SendHalf};

/// Most bytes copied out of one write: one TLS record with its overhead, and more would only be held in memory.
const WRITE_MAX: usize = 64 << 10;

/// A tunnel to read from and write to. Shutdown ends the sending direction, dropping it unfinished resets the tunnel.
#[derive(Debug)]
pub struct TunnelIo {
    send: SendHalf,
    recv: RecvHalf,
    /// Received, not yet read.
    rest: Bytes,
}

impl TunnelIo {
    pub(crate) fn new(send: SendHalf, recv: RecvHalf) -> Self {
        TunnelIo {
            send,
            recv,
            rest: Bytes::new(),
        }
    }
}

impl AsyncRead for TunnelIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.rest.is_empty() {
            match ready!(self.recv.poll_data(cx)) {
                Some(data) => self.rest = data?,
                None => return Poll::Ready(Ok(())),
            }
        }
        let len = self.rest.len().min(buf.remaining());
        buf.put_slice(&self.rest[..len]);
        self.rest.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let len = ready!(self.send.poll_ready(cx, buf.len().min(WRITE_MAX)))?;
        self.send.write(Bytes::copy_from_slice(&buf[..len]))?;
        Poll::Ready(Ok(len))
    }

    /// Nothing is held back here: the connection's own task writes what was handed over.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.send.finish().map_err(io::Error::from))
    }
}
