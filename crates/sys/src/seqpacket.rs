//! Unix sockets that keep packets apart (`SOCK_SEQPACKET`), and descriptors that come along with a packet.
//!
//! Non-blocking and close-on-exec. What a packet means, and waiting, are left to the callers.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use socket2::{Domain, SockAddr, Socket, Type};

/// Most descriptors that the kernel passes with one packet (`SCM_MAX_FD` of `net/scm.h`), so that none is ever cut off.
const FDS_MAX: usize = 253;
/// Bytes that their control message takes, in words, so that it is aligned.
const CONTROL_WORDS: usize =
    (FDS_MAX * size_of::<RawFd>() + size_of::<libc::cmsghdr>()).div_ceil(8) + 1;

/// One end of a connection of packets.
#[derive(Debug)]
pub struct Seqpacket(Socket);

/// One packet received.
#[derive(Debug)]
pub struct Packet {
    /// Bytes written to the buffer; 0 also when the other end has closed.
    pub len: usize,
    /// The packet was longer than the buffer, or descriptors of it are lost.
    pub truncated: bool,
    /// Descriptors that came with it, close-on-exec. Dropped, they are closed.
    pub fds: Vec<OwnedFd>,
}

impl Seqpacket {
    /// Connects to the socket file at `path`.
    ///
    /// Errors: the kernel's: nobody listens, the listener's queue is full (`WouldBlock`), the path is too long.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET.nonblocking(), None)?;
        socket.connect(&SockAddr::unix(path)?)?;
        Ok(Self(socket))
    }

    /// Two ends that are connected to each other.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (near, far) = Socket::pair(Domain::UNIX, Type::SEQPACKET.nonblocking(), None)?;
        Ok((Self(near), Self(far)))
    }

    /// Sends one packet, with descriptors.
    ///
    /// Errors: `WouldBlock` when there is no room; `BrokenPipe` when the other end has closed.
    pub fn send(&self, packet: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[] } else { &rights[..] };
        let parts = [io::IoSlice::new(packet)];
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        // a packet goes as a whole or not at all
        sendmsg::<()>(self.0.as_raw_fd(), &parts, control, flags, None)?;
        Ok(())
    }

    /// Receives one packet. What does not fit `buffer` is lost.
    ///
    /// Errors: `WouldBlock` when none waits; what is wrong with the connection.
    #[allow(unsafe_code)]
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Packet> {
        let mut control = [MaybeUninit::<u64>::uninit(); CONTROL_WORDS];
        let mut part = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        // SAFETY: an all-zero msghdr is a valid one without name, parts or control.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
        // SAFETY: `message` points to `part` and `control`, and `part` to `buffer`; all are writable and outlive the call.
        let got = unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut message, flags) };
        if got < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `message` is as the kernel left it, and `control` is still there; nobody else reads it.
        let fds = unsafe { take_fds(&message) };
        Ok(Packet {
            // recvmsg gives at most the length of the buffer
            len: got.unsigned_abs(),
            truncated: message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0,
            fds,
        })
    }
}

/// The descriptors of a received message.
///
/// # Safety
///
/// `message` was filled by a successful `recvmsg()`, its control buffer is still there, and this is called once for it: each
/// descriptor has one owner.
#[allow(unsafe_code)]
unsafe fn take_fds(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the caller vouches for the control buffer, within which the kernel laid out `msg_controllen` bytes of headers.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give null or a whole header within the control buffer, which is aligned for it.
        let (level, kind, len) = unsafe {
            (
                (*header).cmsg_level,
                (*header).cmsg_type,
                (*header).cmsg_len,
            )
        };
        if (level, kind) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: pure arithmetic; the data begins behind the header.
            let (data, empty) =
                unsafe { (libc::CMSG_DATA(header).cast::<RawFd>(), libc::CMSG_LEN(0)) };
            let count = len.saturating_sub(empty as usize) / size_of::<RawFd>();
            for at in 0..count {
                // SAFETY: `count` descriptors stand behind the header, perhaps unaligned; the kernel has just opened them for
                // this process, and nobody else owns them.
                fds.push(unsafe { OwnedFd::from_raw_fd(data.add(at).read_unaligned()) });
            }
        }
        // SAFETY: as for CMSG_FIRSTHDR.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    fds
}

impl AsFd for Seqpacket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Seqpacket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl From<OwnedFd> for Seqpacket {
    /// A connected socket of this type, such as an accepted one; to be non-blocking.
    fn from(fd: OwnedFd) -> Self {
        Self(fd.into())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn null() -> File {
        File::open("/dev/null").unwrap()
    }

    fn is_null(fd: &OwnedFd) -> bool {
        let meta = File::from(fd.try_clone().unwrap()).metadata().unwrap();
        meta.rdev() == null().metadata().unwrap().rdev()
    }

    fn is_open(fd: RawFd) -> bool {
        std::fs::read_link(format!("/proc/self/fd/{fd}")).is_ok()
    }

    #[test]
    fn packets_stay_apart_and_bring_their_descriptors() {
        let (near, far) = Seqpacket::pair().unwrap();
        let (null, mut buffer) = (null(), [0; 16]);
        near.send(b"one", &[null.as_fd()]).unwrap();
        near.send(b"two", &[]).unwrap();
        let one = far.receive(&mut buffer).unwrap();
        assert_eq!((&buffer[..one.len], one.truncated), (&b"one"[..], false));
        assert!(one.fds.len() == 1 && is_null(&one.fds[0]));
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", one.fds[0].as_raw_fd()));
        let flags = info.unwrap();
        let flags = flags
            .lines()
            .find_map(|l| l.strip_prefix("flags:"))
            .unwrap();
        let flags = i32::from_str_radix(flags.trim(), 8).unwrap();
        assert_ne!(flags & libc::O_CLOEXEC, 0);
        let two = far.receive(&mut buffer).unwrap();
        assert_eq!((&buffer[..two.len], two.fds.len()), (&b"two"[..], 0));
        let none = far.receive(&mut buffer).unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let (near, far) = Seqpacket::pair().unwrap();
        let mut buffer = [0; 4];
        near.send(b"12345", &[]).unwrap();
        near.send(b"1234", &[]).unwrap();
        for (len, truncated) in [(4, true), (4, false)] {
            let packet = far.receive(&mut buffer).unwrap();
            assert_eq!((packet.len, packet.truncated), (len, truncated));
        }
    }

    #[test]
    fn as_many_descriptors_as_the_kernel_passes_all_come_and_all_close() {
        let (near, far) = Seqpacket::pair().unwrap();
        let null = null();
        let many = [null.as_fd(); FDS_MAX];
        near.send(b"x", &many).unwrap();
        let packet = far.receive(&mut [0; 1]).unwrap();
        assert!(!packet.truncated);
        assert_eq!(packet.fds.len(), FDS_MAX);
        let numbers: Vec<RawFd> = packet.fds.iter().map(AsRawFd::as_raw_fd).collect();
        assert!(packet.fds.iter().all(is_null));
        // one that nobody else opens meanwhile: the highest
        let last = *numbers.iter().max().unwrap();
        drop(packet);
        assert!(!is_open(last));
    }

    #[test]
    fn the_end_is_an_empty_packet() {
        let (near, far) = Seqpacket::pair().unwrap();
        near.send(b"last", &[]).unwrap();
        drop(near);
        let mut buffer = [0; 8];
        assert_eq!(far.receive(&mut buffer).unwrap().len, 4);
        assert_eq!(far.receive(&mut buffer).unwrap().len, 0);
        let gone = far.send(b"x", &[]).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn nobody_there_is_an_error() {
        let gone = Seqpacket::connect(Path::new("/nonexistent/socket")).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
    }
}
