//! Sockets in a pod's network namespace, as the data plane asks for them: `proxy::needs` over `sys` and `capture`.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use capture::{DAEMON_MARK, Dns, PodSockets, REDIRECT_MARK};
use proxy::needs::{Asked, Dial, DnsPort, Net};
use socket2::SockRef;
use sys::Netns;
use sys::socket::{DialOptions, Keepalive, dial_socket, udp_plain};
use tokio::net::TcpSocket;

use crate::config;

/// Source ports of connections to the application that keep the client's address. Outside of the usual ephemeral range,
/// so that they do not meet the client's own port: connecting from that one would hang.
const KEPT_SOURCE_PORTS: std::ops::RangeInclusive<u16> = 61_000..=65_535;

/// Keepalive of what `sockets` will accept: accepted connections inherit it.
///
/// Errors: the kernel's.
pub fn keep_alive(sockets: &PodSockets, keepalive: &config::Keepalive) -> io::Result<()> {
    for listener in [&sockets.outbound, &sockets.hbone, &sockets.plaintext] {
        let socket = SockRef::from(listener);
        if keepalive.enabled {
            probes(keepalive).apply(&socket)?;
        } else {
            socket.set_keepalive(false)?;
        }
        socket.set_tcp_user_timeout(user_timeout(keepalive))?;
    }
    Ok(())
}

fn probes(keepalive: &config::Keepalive) -> Keepalive {
    Keepalive {
        idle: keepalive.time,
        interval: keepalive.interval,
        probes: keepalive.retries,
    }
}

/// How long data may stay unacknowledged. The kernel takes whole milliseconds that fit an `int`.
fn user_timeout(keepalive: &config::Keepalive) -> Option<Duration> {
    let wanted = keepalive.time + keepalive.interval * keepalive.retries;
    let most = Duration::from_millis(i32::MAX.unsigned_abs().into());
    keepalive.user_timeout.then(|| wanted.min(most))
}

/// One pod's namespace with the socket options of the configuration.
pub struct PodNet {
    netns: Arc<Netns>,
    base: DialOptions,
}

impl PodNet {
    /// Sockets in `netns`.
    pub fn new(netns: Arc<Netns>, keepalive: &config::Keepalive) -> Self {
        let base = DialOptions {
            keepalive: keepalive.enabled.then(|| probes(keepalive)),
            user_timeout: user_timeout(keepalive),
            ..DialOptions::default()
        };
        Self { netns, base }
    }
}

impl Net for PodNet {
    fn socket(&self, dial: &Dial) -> io::Result<TcpSocket> {
        let options = match *dial {
            Dial::Hop { .. } => self.base.clone(),
            Dial::App { from, .. } => app_options(&self.base, from),
        };
        let socket = self.netns.run(|| dial_socket(dial.to(), &options))??;
        socket.set_nonblocking(true)?;
        Ok(TcpSocket::from_std_stream(socket.into()))
    }

    fn resolver(&self, resolver: SocketAddr) -> io::Result<UdpSocket> {
        let socket = self
            .netns
            .run(|| udp_plain(resolver, Some(DAEMON_MARK)))??;
        socket.set_nonblocking(true)?;
        socket.connect(resolver)?;
        Ok(socket)
    }
}

/// With a foreign source address the answer must come back over loopback: mark and device see to it.
fn app_options(base: &DialOptions, from: Option<IpAddr>) -> DialOptions {
    match from {
        None => base.clone(),
        Some(from) => DialOptions {
            mark: Some(REDIRECT_MARK),
            device: Some("lo"),
            source: Some((from, KEPT_SOURCE_PORTS)),
            ..base.clone()
        },
    }
}

/// A pod's DNS socket.
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
