//! Moves bytes between an accepted connection and its upstream until both directions have ended.
//!
//! Half-closes travel; resets of plain connections count as an end. A tunnel's own end is judged in `ended`. While nothing
//! moves a connection holds no buffer: reads go through one scratch buffer per thread, and what a slow application leaves
//! in a tunnel is in `backlog`. Counting happens per write, so that metrics are live.

mod backlog;

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use self::backlog::Incoming;
use crate::failure::Failure;

/// Bytes of one read at the start of a flow.
const READ_FIRST: usize = 1024;
/// Bytes of one read once [`GROW_AFTER`] bytes have moved: one TLS record with room for framing.
const READ_RECORD: usize = 16_384 - 64;
/// Bytes of one read once [`GROW_MORE_AFTER`] bytes have moved.
const READ_BULK: usize = 16 * 16_384 - 64;
const GROW_AFTER: u64 = 128 * 1024;
const GROW_MORE_AFTER: u64 = 10 * 1024 * 1024;

thread_local! {
    /// Where reads of plain connections land; what cannot be written at once is copied out of it.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BULK]);
}

/// Where moved bytes are counted, as the client sees them.
pub(crate) trait Count {
    /// `bytes` went from the client to the server.
    fn up(&self, bytes: usize);
    /// `bytes` went from the server to the client.
    fn down(&self, bytes: usize);
}

/// Copies between two plain connections.
pub(crate) async fn plain(client: &mut TcpStream, server: &mut TcpStream, count: &impl Count) {
    let (client_read, client_write) = client.split();
    let (server_read, server_write) = server.split();
    tokio::join!(
        pass(client_read, server_write, |n| count.up(n)),
        pass(server_read, client_write, |n| count.down(n)),
    );
}

/// Copies between a plain client and a tunnel to the server.
///
/// Errors: the tunnel broke; both directions are over then.
pub(crate) async fn into_tunnel(
    client: &mut TcpStream,
    server: hbone::Tunnel,
    count: &impl Count,
) -> Result<(), Failure> {
    let (read, write) = client.split();
    let (send, receive) = server.split();
    both(
        enter(read, send, Far::Server, |n| count.up(n)),
        leave(receive, write, Far::Server, |n| count.down(n)),
    )
    .await
}

/// Copies between a client's tunnel and a plain server.
///
/// Errors: the tunnel broke; both directions are over then. A client that lets go of the tunnel while nothing waits to be
/// sent to it is no error.
pub(crate) async fn from_tunnel(
    client: hbone::Tunnel,
    server: &mut TcpStream,
    count: &impl Count,
) -> Result<(), Failure> {
    let (read, write) = server.split();
    let (send, receive) = client.split();
    both(
        enter(read, send, Far::Client, |n| count.down(n)),
        leave(receive, write, Far::Client, |n| count.up(n)),
    )
    .await
}

/// Both directions of a tunnel. One that breaks breaks both, but what had arrived before that is handed on: the sending half
/// learns of a reset at once, the receiving half meets it behind the bytes that came first.
async fn both(
    enter: impl Future<Output = Result<(), Failure>>,
    leave: impl Future<Output = Result<Left, Failure>>,
) -> Result<(), Failure> {
    let (mut enter, mut leave) = (pin!(enter), pin!(leave));
    let left = tokio::select! {
        entered = &mut enter => return entered.and(leave.await.map(drop)),
        left = &mut leave => left?,
    };
    if let Left::Unread(incoming) = left {
        tokio::select! {
            entered = &mut enter => return entered,
            () = incoming.discard() => {}
        }
    }
    enter.await
}

/// How the direction out of a tunnel ended.
enum Left {
    /// with all that came
    All,
    /// nobody is left to read what still comes
    Unread(Incoming),
}

/// Who is at the other end of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Far {
    /// whom the application asked
    Server,
    /// who asks the application; a waypoint keeps such tunnels in a pool of its own
    Client,
}

/// Size of the next read after `moved` bytes.
fn read_size(moved: u64) -> usize {
    match moved {
        GROW_MORE_AFTER.. => READ_BULK,
        GROW_AFTER.. => READ_RECORD,
        _ => READ_FIRST,
    }
}

/// One direction between two plain connections.
async fn pass(mut read: ReadHalf<'_>, mut write: WriteHalf<'_>, count: impl Fn(usize)) {
    let mut moved = 0;
    while let Some((len, left)) =
        poll_fn(|cx| hand_on(cx, &mut read, &write, read_size(moved))).await
    {
        if !left.is_empty() && write.write_all(&left).await.is_err() {
            return;
        }
        moved += len as u64;
        count(len);
    }
    // the other side may be gone already, then there is nobody to tell
    let _ = write.shutdown().await;
}

/// Reads once and writes at once; gives the length read and what could not be written yet. None = the end.
fn hand_on(
    cx: &mut Context<'_>,
    read: &mut ReadHalf<'_>,
    write: &WriteHalf<'_>,
    size: usize,
) -> Poll<Option<(usize, Vec<u8>)>> {
    SCRATCH.with_borrow_mut(|scratch| {
        let Some(len) = ready!(poll_read(cx, read, &mut scratch[..size])) else {
            return Poll::Ready(None);
        };
        let written = match write.try_write(&scratch[..len]) {
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(_) => return Poll::Ready(None),
        };
        Poll::Ready(Some((len, scratch[written..len].to_vec())))
    })
}

/// Length of one read. None = the end, also by a reset.
///
/// Goes through `AsyncRead`, which learns from a short read that nothing more waits; a bare `try_read` would ask again.
fn poll_read(
    cx: &mut Context<'_>,
    read: &mut ReadHalf<'_>,
    into: &mut [u8],
) -> Poll<Option<usize>> {
    let mut into = ReadBuf::new(into);
    match ready!(Pin::new(read).poll_read(cx, &mut into)) {
        Ok(()) => Poll::Ready(Some(into.filled().len()).filter(|&len| len > 0)),
        Err(_) => Poll::Ready(None),
    }
}

/// One direction from a plain connection into a tunnel.
async fn enter(
    mut read: ReadHalf<'_>,
    mut send: hbone::SendHalf,
    far: Far,
    count: impl Fn(usize),
) -> Result<(), Failure> {
    let mut moved = 0;
    loop {
        // while the application is silent, only the tunnel itself tells that nobody is left to read
        let next = poll_fn(|cx| match take(cx, &mut read, read_size(moved)) {
            Poll::Ready(data) => Poll::Ready(Ok(data)),
            Poll::Pending => send.poll_closed(cx).map(Err),
        });
        let mut data = match next.await {
            Ok(Some(data)) => data,
            Ok(None) => break,
            Err(gone) => return ended(far, gone, 0),
        };
        let len = data.len();
        while !data.is_empty() {
            let room = match send.ready(data.len()).await {
                Ok(room) => room.min(data.len()),
                Err(gone) => return ended(far, gone, data.len()),
            };
            if let Err(gone) = send.write(data.split_to(room)) {
                return ended(far, gone, room);
            }
        }
        moved += len as u64;
        count(len);
    }
    send.finish().or_else(|gone| ended(far, gone, 0))
}

/// What the end of a tunnel means to the flow. A peer that no longer reads ends a direction as a broken pipe does: without
/// an error.
///
/// Envoy resets tunnels to servers with INTERNAL_ERROR when its pool has no more use for them, after every byte was
/// delivered, and would do the same to one that it gives up halfway. What was delivered is not known here: bytes handed to
/// the tunnel may still wait in it for the peer's window, up to its send buffer, and are lost without a word. So from a
/// client this is an error when bytes wait that the tunnel has not even taken, and else passes for an end.
///
/// From a server it is always an error: who answers ends with END_STREAM. So is CONNECT_ERROR, by which Envoy tells that the
/// connection behind it was closed: what Envoy still had to send is lost then, so it must not pass for an end.
///
/// - `unsent`: bytes read from the application that the tunnel has not taken
fn ended(far: Far, error: hbone::TunnelError, unsent: usize) -> Result<(), Failure> {
    let is_let_go = far == Far::Client && unsent == 0 && error.is_let_go();
    if error.is_gone() || is_let_go {
        Ok(())
    } else {
        Err(Failure::Data(error))
    }
}

/// Reads once into a buffer of its own, no longer than what was read. None = the end.
fn take(cx: &mut Context<'_>, read: &mut ReadHalf<'_>, size: usize) -> Poll<Option<Bytes>> {
    if size < READ_BULK {
        return SCRATCH.with_borrow_mut(|scratch| {
            let len = ready!(poll_read(cx, read, &mut scratch[..size]));
            Poll::Ready(len.map(|len| Bytes::copy_from_slice(&scratch[..len])))
        });
    }
    let mut buffer = BytesMut::zeroed(size);
    let len = ready!(poll_read(cx, read, &mut buffer));
    Poll::Ready(len.map(|len| {
        buffer.truncate(len);
        // a short read must not pin a long buffer until the peer has room for it
        if len < size / 4 {
            Bytes::copy_from_slice(&buffer)
        } else {
            buffer.freeze()
        }
    }))
}

/// One direction out of a tunnel to a plain connection.
async fn leave(
    receive: hbone::RecvHalf,
    mut write: WriteHalf<'_>,
    far: Far,
    count: impl Fn(usize),
) -> Result<Left, Failure> {
    let mut incoming = Incoming::new(receive);
    while let Some(data) = poll_fn(|cx| incoming.poll_next(cx)).await {
        let mut data = match data {
            Ok(data) => data,
            Err(gone) => {
                ended(far, gone, 0)?;
                break;
            }
        };
        while !data.is_empty() {
            let written = poll_fn(|cx| write_or_take(cx, &mut write, &data, &mut incoming)).await;
            let Some(len) = written else {
                return Ok(Left::Unread(incoming));
            };
            data.advance(len);
            incoming.written(len);
            count(len);
        }
    }
    let _ = write.shutdown().await;
    Ok(Left::All)
}

/// Writes once; while that blocks, what comes is taken from the tunnel. None = nobody reads.
fn write_or_take(
    cx: &mut Context<'_>,
    write: &mut WriteHalf<'_>,
    data: &[u8],
    incoming: &mut Incoming,
) -> Poll<Option<usize>> {
    match Pin::new(write).poll_write(cx, data) {
        Poll::Ready(Ok(len)) => Poll::Ready(Some(len).filter(|&len| len > 0)),
        Poll::Ready(Err(_)) => Poll::Ready(None),
        Poll::Pending => {
            incoming.take_all(cx);
            Poll::Pending
        }
    }
}

#[cfg(test)]
mod tests;
