//! UDP answers with a source address that is not ours, sent through raw sockets with whole packets.
//!
//! Binding a UDP socket to the foreign address instead fails as soon as an application holds the port on the wildcard address.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// `IPPROTO_RAW`: the sender writes the IP header.
const IPPROTO_RAW: i32 = 255;
const UDP: u8 = 17;
const UDP_HEADER: usize = 8;
const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
const HOPS: u8 = 64;
/// Largest UDP payload of an IPv4 packet.
pub const PAYLOAD_MAX: usize = 65_535 - V4_HEADER - UDP_HEADER;

/// Sends UDP datagrams with any source address, in the namespace where it was opened. Needs `CAP_NET_RAW`.
#[derive(Debug)]
pub struct UdpAnswers {
    v4: Socket,
    v6: Option<Socket>,
}

impl UdpAnswers {
    /// Opens the raw sockets in the calling thread's namespace; IPv6 is left out where the kernel has none.
    ///
    /// - `mark`: `SO_MARK` of the packets sent
    pub fn open(mark: Option<u32>) -> io::Result<Self> {
        let v4 = Self::socket(Domain::IPV4, mark)?;
        let v6 = match Self::socket(Domain::IPV6, mark) {
            Ok(socket) => Some(socket),
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            Err(error) => return Err(error),
        };
        Ok(Self { v4, v6 })
    }

    fn socket(domain: Domain, mark: Option<u32>) -> io::Result<Socket> {
        let socket = Socket::new(
            domain,
            Type::RAW.nonblocking(),
            Some(Protocol::from(IPPROTO_RAW)),
        )?;
        // Nothing is ever read from it; without this the kernel would queue copies of packets of protocol 255.
        socket.set_recv_buffer_size(0)?;
        if let Some(mark) = mark {
            socket.set_mark(mark)?;
        }
        Ok(socket)
    }

    /// Sends `payload` to `to` as if it came from `from`.
    ///
    /// Errors: `InvalidInput` when the families differ, the payload exceeds [`PAYLOAD_MAX`], or IPv6 is not there; else the kernel's.
    pub fn send(&self, from: SocketAddr, to: SocketAddr, payload: &[u8]) -> io::Result<()> {
        if payload.len() > PAYLOAD_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "UDP payload too long",
            ));
        }
        match (from, to, &self.v6) {
            (SocketAddr::V4(source), SocketAddr::V4(target), _) => {
                let packet = packet_v4(
                    (*source.ip(), source.port()),
                    (*target.ip(), target.port()),
                    payload,
                );
                self.v4.send_to(&packet, &SockAddr::from(target)).map(drop)
            }
            (SocketAddr::V6(source), SocketAddr::V6(target), Some(socket)) => {
                let packet = packet_v6(
                    (*source.ip(), source.port()),
                    (*target.ip(), target.port()),
                    payload,
                );
                // A raw IPv6 socket takes the port of the address for a protocol number: it must be 0.
                let whole = SocketAddrV6::new(*target.ip(), 0, 0, target.scope_id());
                socket.send_to(&packet, &SockAddr::from(whole)).map(drop)
            }
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "address families do not fit",
            )),
        }
    }
}

fn packet_v4(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    let udp_len = UDP_HEADER + payload.len();
    let mut packet = Vec::with_capacity(V4_HEADER + udp_len);
    packet.extend_from_slice(&[0x45, 0]);
    packet.extend_from_slice(&((V4_HEADER + udp_len) as u16).to_be_bytes());
    // Identification 0 and "do not fragment"; the kernel fills in the header checksum.
    packet.extend_from_slice(&[0, 0, 0x40, 0, HOPS, UDP, 0, 0]);
    packet.extend_from_slice(&from.0.octets());
    packet.extend_from_slice(&to.0.octets());
    let pseudo = sum(&from.0.octets()) + sum(&to.0.octets()) + u32::from(UDP) + udp_len as u32;
    push_udp(&mut packet, pseudo, from.1, to.1, payload);
    packet
}

fn packet_v6(from: (Ipv6Addr, u16), to: (Ipv6Addr, u16), payload: &[u8]) -> Vec<u8> {
    let udp_len = UDP_HEADER + payload.len();
    let mut packet = Vec::with_capacity(V6_HEADER + udp_len);
    packet.extend_from_slice(&[0x60, 0, 0, 0]);
    packet.extend_from_slice(&(udp_len as u16).to_be_bytes());
    packet.extend_from_slice(&[UDP, HOPS]);
    packet.extend_from_slice(&from.0.octets());
    packet.extend_from_slice(&to.0.octets());
    let pseudo = sum(&from.0.octets()) + sum(&to.0.octets()) + u32::from(UDP) + udp_len as u32;
    push_udp(&mut packet, pseudo, from.1, to.1, payload);
    packet
}

fn push_udp(packet: &mut Vec<u8>, pseudo: u32, from: u16, to: u16, payload: &[u8]) {
    // Payloads are at most PAYLOAD_MAX, so the length fits.
    let len = (UDP_HEADER + payload.len()) as u16;
    let checksum = fold(pseudo + u32::from(from) + u32::from(to) + u32::from(len) + sum(payload));
    for field in [from, to, len, checksum] {
        packet.extend_from_slice(&field.to_be_bytes());
    }
    packet.extend_from_slice(payload);
}

/// Sum of the 16-bit words (RFC 1071); 65,535 bytes cannot overflow 32 bits.
fn sum(bytes: &[u8]) -> u32 {
    let words = bytes.chunks_exact(2);
    let odd = words
        .remainder()
        .first()
        .map_or(0, |last| u32::from(*last) << 8);
    words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum::<u32>()
        + odd
}

/// The checksum field for a sum; 0 would mean "none" and is sent as its equal 0xffff (RFC 768).
fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    match !(sum as u16) {
        0 => 0xffff,
        checksum => checksum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::time::Duration;

    #[test]
    fn answers_reach_connected_sockets() {
        let answers = UdpAnswers::open(None).unwrap();
        for (bind, server) in [("127.0.0.1:0", "127.9.9.9:5353"), ("[::1]:0", "[::1]:5353")] {
            let client = UdpSocket::bind(bind).unwrap();
            client
                .set_read_timeout(Some(Duration::from_secs(5)))
                .unwrap();
            client.connect(server).unwrap();
            for payload in [&b"even"[..], b"odd", b""] {
                answers
                    .send(
                        server.parse().unwrap(),
                        client.local_addr().unwrap(),
                        payload,
                    )
                    .unwrap();
                let mut buffer = [0u8; 16];
                let len = client.recv(&mut buffer).unwrap();
                assert_eq!(&buffer[..len], payload);
            }
        }
    }

    #[test]
    fn what_cannot_be_sent_is_refused() {
        let answers = UdpAnswers::open(None).unwrap();
        let (v4, v6) = ("127.0.0.1:1".parse().unwrap(), "[::1]:1".parse().unwrap());
        assert_eq!(
            answers.send(v4, v6, b"").unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
        let long = vec![0; PAYLOAD_MAX + 1];
        assert_eq!(
            answers.send(v4, v4, &long).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }

    #[test]
    fn checksum_of_rfc_1071() {
        assert_eq!(
            sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]),
            0x2ddf0
        );
        assert_eq!(fold(0x2ddf0), !0xddf2);
        assert_eq!(fold(0xffff), 0xffff);
    }
}
