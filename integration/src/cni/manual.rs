//! An agent without rules of its own: the test accepts, sends any packet with any descriptors, and looks at what comes.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use prost::Message;

use super::messages::{Request, error_of};
use super::packet::{Link, Port, Received};

/// Most time for an answer: the agent's own deadline.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// A listening socket.
pub struct Manual {
    port: Port,
}

impl Manual {
    /// Listens at `path`.
    ///
    /// Errors: of the socket.
    pub fn listen(path: &Path) -> Result<Self> {
        let port = Port::listen(path).with_context(|| format!("listen at {}", path.display()))?;
        Ok(Self { port })
    }

    /// Waits for a proxy and its hello.
    ///
    /// Errors: none comes within `limit`, or its first packet is not the hello of the contract.
    pub fn session(&self, limit: Duration) -> Result<Session> {
        let link = self.port.accept(Some(limit)).context("wait for a proxy")?;
        let session = Session {
            link,
            since: Instant::now(),
        };
        let hello = session.receive(ANSWER_MAX)?;
        ensure!(
            hello == Received::Packet(vec![8, 1]),
            "hello is {hello:02x?}"
        );
        Ok(session)
    }
}

/// A connection whose hello was read. Dropping it closes it.
pub struct Session {
    link: Link,
    since: Instant,
}

impl Session {
    /// When it was accepted.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Sends a packet.
    ///
    /// Errors: of the socket.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.link.send(bytes, fds, ANSWER_MAX)
    }

    /// What comes next.
    ///
    /// Errors: of the socket.
    pub fn receive(&self, limit: Duration) -> io::Result<Received> {
        self.link.receive(limit)
    }

    /// Sends raw bytes and returns the answer's.
    ///
    /// Errors: no answer within the agent's deadline.
    pub fn exchange(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Vec<u8>> {
        self.send(bytes, fds)
            .with_context(|| format!("send {bytes:02x?}"))?;
        match self.receive(ANSWER_MAX)? {
            Received::Packet(answer) => Ok(answer),
            other => bail!("{other:?} instead of an answer to {bytes:02x?}"),
        }
    }

    /// A request that has to be acked, byte for byte.
    ///
    /// Errors: it is not.
    pub fn ack(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let answer = self.exchange(&request.encode_to_vec(), fds)?;
        ensure!(
            answer == [0x0a, 0],
            "{}: {answer:02x?}: {:?}",
            request.name(),
            error_of(&answer)
        );
        Ok(())
    }

    /// Bytes that have to be refused; the reason.
    ///
    /// Errors: they are acked, or the answer is none.
    pub fn nack(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<String> {
        let answer = self.exchange(bytes, fds)?;
        let error = error_of(&answer).with_context(|| format!("no answer: {answer:02x?}"))?;
        ensure!(!error.is_empty(), "{bytes:02x?} was acked");
        Ok(error)
    }

    /// Waits for the proxy to close.
    ///
    /// Errors: it does not within `limit`, or sends something.
    pub fn closed(&self, limit: Duration) -> Result<()> {
        let came = self.receive(limit)?;
        ensure!(came == Received::End, "{came:02x?} instead of the end");
        Ok(())
    }

    /// Looks whether anything comes unasked.
    ///
    /// Errors: something does within `limit`, or the proxy closes.
    pub fn silent(&self, limit: Duration) -> Result<()> {
        let came = self.receive(limit)?;
        ensure!(came == Received::Nothing, "unasked: {came:02x?}");
        Ok(())
    }
}
