//! A pod's DNS sockets, for both ways in which questions come: with the resolver's address kept, or redirected to ours.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use capture::Dns;
use proxy::needs::{Asked, DnsPort};

/// Resolvers that are used, the first of `/etc/resolv.conf`.
const SERVERS_MAX: usize = 3;
/// A resolver that answers nobody for this long is passed over.
const SILENCE_MAX: Duration = Duration::from_secs(2);
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
            resolver: got.destination,
        })
    }

    fn answer(&self, resolver: SocketAddr, client: SocketAddr, answer: &[u8]) -> io::Result<()> {
        self.0.answers.send(resolver, client, answer)
    }
}

/// Questions that others redirect to this socket. Which resolver was asked is lost, so the node's answer; connection tracking
/// gives answers their sender back.
pub struct RedirectedDns {
    socket: UdpSocket,
    servers: Servers,
}

impl RedirectedDns {
    /// Questions from `socket`, for `servers`.
    pub fn new(socket: UdpSocket, servers: Servers) -> Self {
        Self { socket, servers }
    }
}

impl DnsPort for RedirectedDns {
    fn readiness(&self) -> io::Result<UdpSocket> {
        self.socket.set_nonblocking(true)?;
        self.socket.try_clone()
    }

    fn try_recv(&self, buf: &mut [u8]) -> io::Result<Asked> {
        let (len, client) = self.socket.recv_from(buf)?;
        let resolver = self.servers.ask(Instant::now());
        let resolver = resolver
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "this node has no resolver"))?;
        Ok(Asked {
            len,
            client,
            resolver,
        })
    }

    fn answer(&self, resolver: SocketAddr, client: SocketAddr, answer: &[u8]) -> io::Result<()> {
        self.servers.answered(resolver);
        self.socket.send_to(answer, client).map(drop)
    }

    /// While the ports are shared, the kernel gives questions to every open socket: one that is connected elsewhere gets none,
    /// and can still send.
    fn close(&self) {
        let ip = match self.socket.local_addr() {
            Ok(SocketAddr::V6(_)) => Ipv6Addr::LOCALHOST.into(),
            _ => Ipv4Addr::LOCALHOST.into(),
        };
        if let Err(error) = self.socket.connect(SocketAddr::new(ip, NOWHERE_PORT)) {
            tracing::debug!(%error, "a dns socket that closes may still receive questions");
        }
    }
}

/// The node's resolvers, one in use. Clones share which.
#[derive(Clone, Default)]
pub struct Servers {
    list: Arc<[SocketAddr]>,
    turn: Arc<Mutex<Turn>>,
}

#[derive(Default)]
struct Turn {
    number: usize,
    /// the first question since the last answer
    silent_since: Option<Instant>,
}

impl Servers {
    /// Those of `/etc/resolv.conf` as it is now.
    pub fn of_node() -> Self {
        match hickory_resolver::system_conf::read_system_conf() {
            Ok((config, _)) => {
                let port = |server: &hickory_resolver::config::NameServerConfig| {
                    SocketAddr::new(server.ip, DNS_PORT)
                };
                let mut list: Vec<_> = config.name_servers().iter().map(port).collect();
                list.dedup();
                list.truncate(SERVERS_MAX);
                Self::new(list)
            }
            Err(error) => {
                tracing::warn!(%error, "no resolver: questions of pods cannot be answered");
                Self::default()
            }
        }
    }

    fn new(list: Vec<SocketAddr>) -> Self {
        Self {
            list: list.into(),
            turn: Arc::default(),
        }
    }

    /// Whom to ask now; the next in turn when the last answered nobody for too long.
    fn ask(&self, now: Instant) -> Option<SocketAddr> {
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let silent = turn.silent_since.get_or_insert(now);
        if now.duration_since(*silent) > SILENCE_MAX {
            *silent = now;
            turn.number = turn.number.wrapping_add(1);
        }
        self.list.get(turn.number % self.list.len().max(1)).copied()
    }

    fn answered(&self, server: SocketAddr) {
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if self.list.get(turn.number % self.list.len().max(1)) == Some(&server) {
            turn.silent_since = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_resolver_is_passed_over_and_an_answering_one_kept() {
        let at = |last: u8| SocketAddr::from(([10, 0, 0, last], DNS_PORT));
        let servers = Servers::new(vec![at(1), at(2)]);
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(servers.ask(start), Some(at(1)));
        assert_eq!(servers.ask(after(1)), Some(at(1)));
        servers.answered(at(1));
        assert_eq!(servers.ask(after(60)), Some(at(1)));
        assert_eq!(servers.ask(after(63)), Some(at(2)));
        // late, and no longer in use
        servers.answered(at(1));
        assert_eq!(servers.ask(after(66)), Some(at(1)));
        assert_eq!(Servers::default().ask(start), None);
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
        let closed = RedirectedDns::new(first, Servers::default());
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
            closed.answer(to, from, b"answer").unwrap();
            assert_eq!(client.recv_from(&mut buffer).unwrap(), (6, to));
        }
    }
}
