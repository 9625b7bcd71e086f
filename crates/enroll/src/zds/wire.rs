//! The connection to the agent: packets in and out, without a thought of what they say.

use std::io;
use std::path::Path;
use std::time::Duration;

use sys::Seqpacket;
use sys::seqpacket::Packet;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use super::packet::hello;

/// How long the agent may leave a packet of ours unread before the connection counts as dead; its own limit as well.
const SEND_MAX: Duration = Duration::from_secs(5);

/// A connection whose first packet was sent.
pub(super) struct Wire(AsyncFd<Seqpacket>);

impl Wire {
    /// Connects to the agent and greets it.
    ///
    /// Errors: it is not there, or does not take the greeting.
    pub(super) async fn open(path: &Path) -> io::Result<Self> {
        let both = Interest::READABLE | Interest::WRITABLE;
        #[allow(
            deprecated,
            reason = "what succeeds it is unsafe; this socket keeps its one descriptor until it is dropped"
        )]
        let wire = Self(AsyncFd::with_interest(Seqpacket::connect(path)?, both)?);
        wire.send(&hello()).await?;
        Ok(wire)
    }

    /// Sends one packet.
    pub(super) async fn send(&self, packet: &[u8]) -> io::Result<()> {
        let sent = self
            .0
            .async_io(Interest::WRITABLE, |socket| socket.send(packet, &[]));
        timeout(SEND_MAX, sent)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// The next packet. Nothing is lost when the future is dropped: a packet is taken only in the moment it is returned.
    pub(super) async fn receive(&self, buffer: &mut [u8]) -> io::Result<Packet> {
        self.0
            .async_io(Interest::READABLE, |socket| socket.receive(buffer))
            .await
    }
}
