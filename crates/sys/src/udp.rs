//! Receiving UDP datagrams together with the address they were sent to.
//!
//! Leaves the meaning of the payload, and answering (see [`crate::raw`]), to others.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd};

use nix::cmsg_space;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage, recvmsg,
};

/// One datagram received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Bytes written to the buffer.
    pub len: usize,
    /// The datagram was longer than the buffer; the rest is lost.
    pub truncated: bool,
    /// Who sent it; never v4-mapped.
    pub source: SocketAddr,
    /// Whom it was sent to; never v4-mapped.
    pub destination: SocketAddr,
}

/// Receives one datagram from a socket made by [`crate::socket::udp_transparent`].
///
/// Errors: `WouldBlock` when none waits; `InvalidData` when the kernel gave no source or destination.
pub fn receive(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<Datagram> {
    let mut control = cmsg_space!(SockaddrIn, SockaddrIn6);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrStorage>(
        socket.as_fd().as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::MSG_DONTWAIT,
    )?;
    let source = message
        .address
        .as_ref()
        .and_then(address)
        .ok_or_else(|| invalid("no source address"))?;
    let destination = message
        .cmsgs()?
        .find_map(original_destination)
        .ok_or_else(|| invalid("no original destination"))?;
    Ok(Datagram {
        len: message.bytes,
        truncated: message.flags.contains(MsgFlags::MSG_TRUNC),
        source,
        destination,
    })
}

fn original_destination(message: ControlMessageOwned) -> Option<SocketAddr> {
    match message {
        ControlMessageOwned::Ipv4OrigDstAddr(raw) => {
            Some(SocketAddrV4::from(SockaddrIn::from(raw)).into())
        }
        ControlMessageOwned::Ipv6OrigDstAddr(raw) => {
            Some(unmapped(SocketAddrV6::from(SockaddrIn6::from(raw)).into()))
        }
        _ => None,
    }
}

fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = storage.as_sockaddr_in() {
        return Some(SocketAddrV4::from(*v4).into());
    }
    storage
        .as_sockaddr_in6()
        .map(|v6| unmapped(SocketAddrV6::from(*v6).into()))
}

/// The address with a v4-mapped IPv6 address told as IPv4; all others unchanged.
pub fn unmapped(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(v4) => SocketAddr::new(v4.into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket;

    #[test]
    fn both_families_on_one_socket() {
        let server = socket::udp_transparent("[::]:0".parse().unwrap(), None).unwrap();
        let port = server.local_addr().unwrap().port();
        for (bind, ip) in [("127.0.0.1:0", "127.0.0.7"), ("[::1]:0", "::1")] {
            let client = std::net::UdpSocket::bind(bind).unwrap();
            let target = SocketAddr::new(ip.parse().unwrap(), port);
            client.send_to(b"hello", target).unwrap();
            let mut buffer = [0u8; 4];
            let got = receive(&server, &mut buffer).unwrap();
            assert_eq!((got.len, got.truncated), (4, true));
            assert_eq!(got.source, client.local_addr().unwrap());
            assert_eq!(got.destination, target);
        }
        assert_eq!(
            receive(&server, &mut [0; 4]).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
    }
}
