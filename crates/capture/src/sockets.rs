//! The daemon's sockets inside a pod's network namespace. Leaves serving them to the data plane.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use redirect_common::DAEMON_MARK;
use sys::Netns;
use sys::raw::UdpAnswers;
use sys::socket::{ListenOptions, listen, udp_transparent};

use crate::external::named;

/// SOCKS5 clients of a pod come here, on its IPv4 loopback.
pub const SOCKS_PORT: u16 = 15080;

/// What one pod wants of capture beside the ordinary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodFlags {
    /// Questions to resolvers (UDP port 53) come to the daemon.
    pub dns: bool,
    /// Plaintext connections from elsewhere go straight to the application.
    pub bypass_inbound: bool,
}

/// The DNS sockets of a pod.
#[derive(Debug)]
pub struct Dns {
    /// Receives questions; read it with [`sys::udp::receive`], which tells the resolver that was asked.
    pub questions: UdpSocket,
    /// Sends answers in the resolver's name.
    pub answers: UdpAnswers,
}

/// The sockets that serve one pod: non-blocking, close-on-exec, on ports of the kernel's choice.
///
/// Dropping them closes the door: with capture in place, new connections are then refused or wait, never pass.
#[derive(Debug)]
pub struct PodSockets {
    /// The pod's outbound connections; local address of an accepted one = its original destination.
    pub outbound: TcpListener,
    /// HBONE from elsewhere (port 15008 of the pod's addresses).
    pub hbone: TcpListener,
    /// Plaintext from elsewhere; local address = the address and port asked for.
    pub plaintext: TcpListener,
    /// There when the pod's DNS is captured.
    pub dns: Option<Dns>,
}

/// Opens the sockets in `netns`, dual-stack where the kernel has IPv6.
///
/// Accepted connections inherit: no Nagle delay, keepalive, `IP_TRANSPARENT`.
pub fn open(netns: &Netns, flags: PodFlags) -> io::Result<PodSockets> {
    netns.run(|| {
        let any = wildcard()?;
        let options = ListenOptions {
            transparent: true,
            ..ListenOptions::default()
        };
        let dns = if flags.dns {
            Some(open_dns(any)?)
        } else {
            None
        };
        Ok(PodSockets {
            outbound: listen(any, &options)?,
            hbone: listen(any, &options)?,
            plaintext: listen(any, &options)?,
            dns,
        })
    })?
}

/// Opens the SOCKS5 listener in `netns`: 127.0.0.1 alone, which no capture touches. The port is shared with another instance
/// of the daemon.
///
/// Errors: the port is taken by an application, or the kernel's refusal.
pub fn open_socks(netns: &Netns) -> io::Result<TcpListener> {
    netns.run(|| socks_here(None, true))?
}

/// The same, in the namespace of the calling thread.
pub(crate) fn socks_here(mark: Option<u32>, reuse_port: bool) -> io::Result<TcpListener> {
    let at = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), SOCKS_PORT);
    let options = ListenOptions {
        mark,
        reuse_port,
        ..ListenOptions::default()
    };
    named(at, listen(at, &options))
}

fn open_dns(any: SocketAddr) -> io::Result<Dns> {
    Ok(Dns {
        questions: udp_transparent(any, None)?,
        answers: UdpAnswers::open(Some(DAEMON_MARK))?,
    })
}

/// The widest address to listen on: IPv6 with v4-mapped, or IPv4 on a kernel without IPv6.
fn wildcard() -> io::Result<SocketAddr> {
    let v6 = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);
    match listen(v6, &ListenOptions::default()) {
        Ok(_) => Ok(v6),
        Err(error) if error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) => {
            Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0))
        }
        Err(error) => Err(error),
    }
}
