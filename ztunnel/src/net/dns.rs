//! A pod's DNS sockets, for both ways in which questions come: with the resolver's address kept, or redirected to ours. And the
//! node's resolvers.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use capture::Dns;
use proxy::needs::{Asked, DnsPort};

/// Resolvers that are used, the first of `/etc/resolv.conf`.
const RESOLVERS_MAX: usize = 3;
/// Where nobody sends from (discard service): a socket connected to it receives nothing more.
const NOWHERE_PORT: u16 = 9;
/// Where resolvers listen.
const DNS_PORT: u16 = 53;

/// Questions that capture of our own steers here; answers leave under the address of the resolver that was asked.
pub struct PodDns(pub Dns);

impl DnsPort for PodDns {
    fn readiness(&self) -> io::Result<UdpSocket> {
        self.0.questions.set_nonblocking(true)?;
        self.0.questions.try_clone()
    }

    fn try_recv(&self, buf: &mut [u8]) -> io::Result<Asked> {
        let got = sys::udp::receive(&self.0.questions, buf)?;
        Ok(Asked {
            len: got.len,
            client: got.source,
            resolver: Some(got.destination),
        })
    }

    fn answer(&self, asked: &Asked, answer: &[u8]) -> io::Result<()> {
        let resolver = asked.resolver.ok_or(io::ErrorKind::InvalidInput)?;
        self.0.answers.send(resolver, asked.client, answer)
    }
}

/// Questions that others redirect to this socket. Which resolver was asked is lost, so the node's answer; connection tracking
/// gives answers their sender back.
pub struct RedirectedDns(pub UdpSocket);

impl DnsPort for RedirectedDns {
    fn readiness(&self) -> io::Result<UdpSocket> {
        self.0.set_nonblocking(true)?;
        self.0.try_clone()
    }

    fn try_recv(&self, buf: &mut [u8]) -> io::Result<Asked> {
        let (len, client) = self.0.recv_from(buf)?;
        Ok(Asked {
            len,
            client,
            resolver: None,
        })
    }

    fn answer(&self, asked: &Asked, answer: &[u8]) -> io::Result<()> {
        self.0.send_to(answer, asked.client).map(drop)
    }

    /// While the ports are shared, the kernel gives questions to every open socket: one that is connected elsewhere gets none,
    /// and can still send.
    fn close(&self) {
        let ip = match self.0.local_addr() {
            Ok(SocketAddr::V6(_)) => Ipv6Addr::LOCALHOST.into(),
            _ => Ipv4Addr::LOCALHOST.into(),
        };
        if let Err(error) = self.0.connect(SocketAddr::new(ip, NOWHERE_PORT)) {
            tracing::debug!(%error, "a dns socket that closes may still receive questions");
        }
    }
}

/// The node's resolvers: those of `/etc/resolv.conf` as it is now, in its order. None, and a warning, if it cannot be read.
pub fn node_resolvers() -> Vec<SocketAddr> {
    match hickory_resolver::system_conf::read_system_conf() {
        Ok((config, _)) => first_of(config.name_servers().iter().map(|server| server.ip)),
        Err(error) => {
            tracing::warn!(%error, "no resolver: questions of pods cannot be forwarded");
            Vec::new()
        }
    }
}

fn first_of(servers: impl Iterator<Item = IpAddr>) -> Vec<SocketAddr> {
    let mut list: Vec<_> = servers.map(|ip| SocketAddr::new(ip, DNS_PORT)).collect();
    list.dedup();
    list.truncate(RESOLVERS_MAX);
    list
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_resolver_counts_once_and_no_more_than_three() {
        let ip = |last: u8| IpAddr::from([10, 0, 0, last]);
        let list = first_of([1, 1, 2, 3, 4].map(ip).into_iter());
        assert_eq!(list, [1, 2, 3].map(|last| SocketAddr::new(ip(last), 53)));
    }

    #[test]
    fn a_closed_port_receives_nothing_and_still_answers() {
        let open = || {
            let options = sys::socket::UdpOptions {
                reuse_port: true,
                ..Default::default()
            };
            let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
            let first = sys::socket::udp_listen(at(0), &options).unwrap();
            let port = first.local_addr().unwrap().port();
            let second = sys::socket::udp_listen(at(port), &options).unwrap();
            (first, second)
        };
        let (first, second) = open();
        let to = first.local_addr().unwrap();
        let closed = RedirectedDns(first);
        closed.close();
        second
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        second.set_nonblocking(false).unwrap();
        // each client is hashed to one of the group
        for _ in 0..32 {
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            client
                .set_read_timeout(Some(Duration::from_secs(5)))
                .unwrap();
            client.send_to(b"question", to).unwrap();
            let mut buffer = [0; 16];
            let (_, from) = second.recv_from(&mut buffer).unwrap();
            assert_eq!(from, client.local_addr().unwrap());
            let asked = Asked {
                len: 0,
                client: from,
                resolver: None,
            };
            closed.answer(&asked, b"answer").unwrap();
            assert_eq!(client.recv_from(&mut buffer).unwrap(), (6, to));
        }
    }
}
