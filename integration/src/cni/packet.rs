//! A Unix socket that keeps packets apart (`SOCK_SEQPACKET`): one packet out with descriptors, one packet in, each with a
//! deadline.

use std::fs;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, recvmsg, sendmsg};
use socket2::{Domain, SockAddr, Socket, Type};

/// What the agent receives into; a longer packet is cut and an error.
pub const PACKET_MAX: usize = 1024;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 16;

/// What came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// a packet
    Packet(Vec<u8>),
    /// the other side has closed
    End,
    /// nothing in time
    Nothing,
}

/// A listening socket.
pub struct Port {
    socket: Socket,
}

impl Port {
    /// Listens at `path`, after having removed what an earlier one left there.
    ///
    /// Errors: of the file system or the socket.
    pub fn listen(path: &Path) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
        socket.bind(&SockAddr::unix(path)?)?;
        socket.listen(BACKLOG)?;
        Ok(Self { socket })
    }

    /// Waits for one connection.
    ///
    /// - `limit`: no end if it is none
    ///
    /// Errors: none in time (`WouldBlock`), or [`Port::close`] was called.
    pub fn accept(&self, limit: Option<Duration>) -> io::Result<Link> {
        self.socket.set_read_timeout(limit)?;
        let (socket, _) = self.socket.accept()?;
        Ok(Link { socket })
    }

    /// Ends the wait of [`Port::accept`] on another thread; from now on nobody can connect.
    pub fn close(&self) {
        // an error means that it is closed already
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }
}

/// A connection.
pub struct Link {
    socket: Socket,
}

impl Link {
    /// Connects, as the proxy does.
    ///
    /// Errors: nobody listens there.
    pub fn dial(path: &Path) -> io::Result<Self> {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
        socket.connect(&SockAddr::unix(path)?)?;
        Ok(Self { socket })
    }

    /// Sends one packet.
    ///
    /// Errors: the other side is gone (`BrokenPipe`), or does not take it in time.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>], limit: Duration) -> io::Result<()> {
        self.socket.set_write_timeout(Some(limit))?;
        let fds: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control: &[_] = if fds.is_empty() { &[] } else { &rights };
        let sent = sendmsg::<()>(
            self.socket.as_raw_fd(),
            &[IoSlice::new(bytes)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        if sent == bytes.len() {
            Ok(())
        } else {
            Err(io::Error::other(format!("{sent} of {} bytes", bytes.len())))
        }
    }

    /// Receives one packet of at most [`PACKET_MAX`] bytes.
    ///
    /// Errors: a longer one, descriptors, or the socket's own.
    pub fn receive(&self, limit: Duration) -> io::Result<Received> {
        self.socket.set_read_timeout(Some(limit))?;
        let mut bytes = vec![0; PACKET_MAX];
        let mut parts = [IoSliceMut::new(&mut bytes)];
        // without room for control data the kernel drops descriptors, and says so
        let told = recvmsg::<()>(
            self.socket.as_raw_fd(),
            &mut parts,
            None,
            MsgFlags::MSG_CMSG_CLOEXEC,
        );
        let (len, flags) = match told {
            Ok(told) => (told.bytes, told.flags),
            Err(nix::Error::EAGAIN) => return Ok(Received::Nothing),
            Err(nix::Error::ECONNRESET) => return Ok(Received::End),
            Err(error) => return Err(error.into()),
        };
        if flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
            return Err(io::Error::other(
                "a packet of more than 1024 bytes, or with descriptors",
            ));
        }
        // an empty packet looks like the end; no message of the proxy is empty
        if len == 0 {
            return Ok(Received::End);
        }
        bytes.truncate(len);
        Ok(Received::Packet(bytes))
    }

    /// Closes both directions, also for another thread that waits.
    pub fn close(&self) {
        // an error means that the other side was faster
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }

    /// The socket, for descriptors of the test's own.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }
}
