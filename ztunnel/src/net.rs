//! Sockets in a pod's network namespace, as the data plane asks for them: `proxy::needs` over `sys` and `capture`.
//!
//! With capture of our own they need marks and devices that the kernel programs know; where others redirect, the mark that
//! those rules exempt, on each of them.

mod dns;

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use capture::{DAEMON_MARK, PodSockets, REDIRECT_MARK, external};
use proxy::Listeners;
use proxy::needs::{Dial, DnsPort, Net};
use socket2::{SockRef, Socket};
use sys::Netns;
use sys::socket::{DialOptions, Keepalive, bind_source, dial_socket, set_transparent, udp_plain};
use tokio::net::TcpSocket;

pub use self::dns::PodDns;
use self::dns::{RedirectedDns, node_resolvers};
use crate::config;

/// Source ports of connections to the application that keep the client's address. Outside of the usual ephemeral range,
/// so that they do not meet the client's own port: connecting from that one would hang.
pub const KEPT_SOURCE_PORTS: std::ops::RangeInclusive<u16> = 61_000..=65_535;

/// Keepalive of what `sockets` will accept: accepted connections inherit it.
///
/// Errors: the kernel's.
pub fn keep_alive(sockets: &PodSockets, keepalive: &config::Keepalive) -> io::Result<()> {
    [&sockets.outbound, &sockets.hbone, &sockets.plaintext]
        .into_iter()
        .try_for_each(|listener| keep_alive_of(listener, keepalive))
}

/// The same for one listener.
///
/// Errors: the kernel's.
pub fn keep_alive_of(listener: &TcpListener, keepalive: &config::Keepalive) -> io::Result<()> {
    let socket = SockRef::from(listener);
    if keepalive.enabled {
        probes(keepalive).apply(&socket)?;
    } else {
        socket.set_keepalive(false)?;
    }
    socket.set_tcp_user_timeout(user_timeout(keepalive))
}

/// What serves a pod whose traffic others redirect to `sockets`.
///
/// Errors: the kernel's, about keepalive.
pub fn external(
    sockets: external::Sockets,
    netns: &Arc<Netns>,
    options: &external::Options,
    config: &config::Config,
) -> anyhow::Result<(Listeners, PodNet)> {
    // HBONE finds out by PING
    [&sockets.outbound, &sockets.plaintext]
        .into_iter()
        .chain(&sockets.dns_tcp)
        .chain(&sockets.socks)
        .try_for_each(|listener| keep_alive_of(listener, &config.keepalive))
        .context("keepalive of the pod's listeners")?;
    let net = PodNet {
        via: Via::External {
            mark: options.mark,
            transparent: sockets.transparent,
        },
        ..PodNet::new(Arc::clone(netns), &config.keepalive)
    };
    let port = |socket| Box::new(RedirectedDns(socket)) as Box<dyn DnsPort>;
    let listeners = Listeners {
        outbound: Some(sockets.outbound),
        hbone: Some(sockets.hbone),
        plaintext: Some(sockets.plaintext),
        socks: sockets.socks,
        dns: sockets.dns.into_iter().map(port).collect(),
        dns_tcp: sockets.dns_tcp,
    };
    Ok((listeners, net))
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

/// How connections come to the daemon, which decides what its own sockets need.
#[derive(Debug, Clone, Copy)]
enum Via {
    /// our kernel programs
    Ebpf,
    /// nobody captures: the daemon's own pod
    Own,
    /// rules of others
    External {
        /// of every socket
        mark: Option<u32>,
        /// clients' addresses can be kept
        transparent: bool,
    },
}

/// One pod's namespace with the socket options of the configuration.
pub struct PodNet {
    netns: Arc<Netns>,
    base: DialOptions,
    via: Via,
    /// those of the node when this was made
    resolvers: Vec<SocketAddr>,
    /// ports of the listeners that our kernel programs lead to
    doors: Vec<u16>,
}

impl PodNet {
    /// Sockets in `netns`, which our kernel programs capture.
    pub fn new(netns: Arc<Netns>, keepalive: &config::Keepalive) -> Self {
        let base = DialOptions {
            keepalive: keepalive.enabled.then(|| probes(keepalive)),
            user_timeout: user_timeout(keepalive),
            ..DialOptions::default()
        };
        Self {
            netns,
            base,
            via: Via::Ebpf,
            resolvers: node_resolvers(),
            doors: Vec::new(),
        }
    }

    /// The same, with the listeners that captured connections come to.
    ///
    /// Errors: the kernel's, about their ports.
    pub fn behind(mut self, sockets: &PodSockets) -> io::Result<Self> {
        let doors = [&sockets.outbound, &sockets.hbone, &sockets.plaintext];
        let ports = doors.map(|door| door.local_addr().map(|at| at.port()));
        self.doors = ports.into_iter().collect::<io::Result<_>>()?;
        Ok(self)
    }

    /// Whether somebody connected to one of the listeners itself, wherever it is; what is captured was meant for elsewhere.
    /// Serving it would lead to the same listener again, and again.
    fn is_own(&self, local: SocketAddr) -> io::Result<bool> {
        if !self.doors.contains(&local.port()) {
            return Ok(false);
        }
        let ip = local.ip().to_canonical();
        let here = || UdpSocket::bind((ip, 0)).is_ok();
        Ok(ip.is_loopback() || self.netns.run(here)?)
    }

    /// Sockets in the daemon's own namespace, `netns`, which nobody captures.
    pub fn own(netns: Arc<Netns>, keepalive: &config::Keepalive) -> Self {
        Self {
            via: Via::Own,
            ..Self::new(netns, keepalive)
        }
    }

    /// A socket for `dial`, in the namespace of the calling thread.
    fn open(&self, dial: &Dial) -> io::Result<Socket> {
        let from = match *dial {
            Dial::Hop { .. } => None,
            Dial::App { from, .. } => from,
        };
        match (self.via, from) {
            (Via::Ebpf, None) | (Via::Own, _) => dial_socket(dial.to(), &self.base),
            (Via::Ebpf, Some(from)) => dial_socket(dial.to(), &looped(&self.base, from)),
            (Via::External { mark, transparent }, from) => {
                let options = DialOptions {
                    mark,
                    ..self.base.clone()
                };
                let socket = dial_socket(dial.to(), &options)?;
                if let Some(from) = from.filter(|_| transparent) {
                    bind_as(&socket, from)?;
                }
                Ok(socket)
            }
        }
    }
}

impl Net for PodNet {
    fn socket(&self, dial: &Dial) -> io::Result<TcpSocket> {
        let socket = self.netns.run(|| self.open(dial))??;
        socket.set_nonblocking(true)?;
        Ok(TcpSocket::from_std_stream(socket.into()))
    }

    fn resolver(&self, resolver: SocketAddr) -> io::Result<UdpSocket> {
        let mark = match self.via {
            Via::Ebpf => Some(DAEMON_MARK),
            Via::Own => None,
            Via::External { mark, .. } => mark,
        };
        let socket = self.netns.run(|| udp_plain(resolver, mark))??;
        socket.set_nonblocking(true)?;
        socket.connect(resolver)?;
        Ok(socket)
    }

    fn node_resolvers(&self) -> &[SocketAddr] {
        &self.resolvers
    }

    fn keeps_resolver(&self) -> bool {
        !matches!(self.via, Via::External { .. })
    }

    fn original_destination(&self, accepted: &TcpStream) -> io::Result<Option<SocketAddr>> {
        match self.via {
            Via::Ebpf => {
                let local = accepted.local_addr()?;
                Ok((!self.is_own(local)?).then_some(local))
            }
            Via::Own => accepted.local_addr().map(Some),
            Via::External { .. } => sys::socket::original_destination(accepted),
        }
    }
}

/// With a foreign source address the answer must come back over loopback: mark and device see to it.
fn looped(base: &DialOptions, from: IpAddr) -> DialOptions {
    DialOptions {
        mark: Some(REDIRECT_MARK),
        device: Some("lo"),
        source: Some((from, KEPT_SOURCE_PORTS)),
        ..base.clone()
    }
}

/// Binds under a client's address. Whatever keeps it from that is no reason to refuse the client (spec: inpod §6.2): told as
/// a port that is taken, the connection is made under the pod's own address, and counted.
fn bind_as(socket: &Socket, client: IpAddr) -> io::Result<()> {
    set_transparent(socket, client)
        .and_then(|()| bind_source(socket, client, KEPT_SOURCE_PORTS))
        .map_err(|error| io::Error::new(io::ErrorKind::AddrInUse, error))
}
