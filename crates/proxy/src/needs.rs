//! What the data plane asks of the rest of the process, as traits of its own.
//!
//! `ztunnel` implements them over namespaces and raw sockets; this crate never sees a file descriptor or a namespace.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::pin::Pin;

use mesh::{NamespacedHostname, NetworkAddress};
use tokio::net::TcpSocket;

/// An answer that is on its way; dropping it takes the question back.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Addresses of host names.
pub trait Resolver: Send + Sync {
    /// The addresses of `host`, IPv4 and IPv6 as far as they may be used, in no order; none is no error.
    ///
    /// Errors: no answer; why, as text for the access log.
    fn resolve<'a>(&'a self, host: &'a str) -> Pending<'a, Result<Vec<IpAddr>, String>>;
}

/// Asks the control plane for what the mesh state does not hold (on-demand mode). Ready once the state holds the answer.
pub trait Finder: Send + Sync {
    /// Whether something has this address.
    ///
    /// Errors: no answer; why, as text for the access log.
    fn address<'a>(&'a self, address: &'a NetworkAddress) -> Pending<'a, Result<bool, String>>;

    /// Whether a service or a workload has this host name.
    ///
    /// Errors: as above.
    fn host<'a>(&'a self, name: &'a NamespacedHostname) -> Pending<'a, Result<bool, String>>;
}

/// Where a new TCP socket is to be connected to; it decides mark, source address and device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dial {
    /// A peer outside of the pod: another node's daemon, a waypoint, a plain destination.
    Hop {
        /// next hop
        to: SocketAddr,
    },
    /// The application in the pod.
    App {
        /// address the application listens on
        to: SocketAddr,
        /// client address that the application is to see as its peer; none = the pod's own
        from: Option<IpAddr>,
    },
}

impl Dial {
    /// The address to connect to.
    pub fn to(&self) -> SocketAddr {
        match self {
            Dial::Hop { to } | Dial::App { to, .. } => *to,
        }
    }
}

/// Sockets inside one pod's network namespace.
pub trait Net: Send + Sync {
    /// A non-blocking TCP socket in the pod's namespace, bound and marked for `dial`, not yet connected.
    ///
    /// Errors: whatever the kernel says about creating, marking or binding it.
    fn socket(&self, dial: &Dial) -> io::Result<TcpSocket>;

    /// A non-blocking UDP socket in the pod's namespace, connected to `resolver` and exempt from DNS steering.
    fn resolver(&self, resolver: SocketAddr) -> io::Result<UdpSocket>;

    /// Resolvers of the node, for questions of which it is not known whom they were meant for. In the order of `/etc/resolv.conf`.
    fn node_resolvers(&self) -> &[SocketAddr] {
        &[]
    }

    /// Whether connections to resolvers keep the address of the one that the application chose, so that it is to be asked.
    fn keeps_resolver(&self) -> bool {
        true
    }

    /// Where a captured connection was meant to go; none = nobody captured it, it was made to the listener itself.
    ///
    /// Capture that leaves addresses as they are needs nothing but the local address.
    ///
    /// Errors: the connection is gone already.
    fn original_destination(&self, accepted: &TcpStream) -> io::Result<Option<SocketAddr>> {
        accepted.local_addr().map(Some)
    }
}

/// One DNS question as the pod sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// bytes of the message
    pub len: usize,
    /// the application's socket
    pub client: SocketAddr,
    /// the resolver that it was meant for; none = capture lost it
    pub resolver: Option<SocketAddr>,
}

/// One of the pod's DNS sockets: questions in, answers out under the address that the client expects.
pub trait DnsPort: Send {
    /// A duplicate of the socket, only to wait for readiness on.
    fn readiness(&self) -> io::Result<UdpSocket>;

    /// Takes one question if there is one.
    ///
    /// Errors: `WouldBlock` when none waits.
    fn try_recv(&self, buf: &mut [u8]) -> io::Result<Asked>;

    /// Sends `answer` to the client of `asked`, as if the resolver that it asked had.
    fn answer(&self, asked: &Asked, answer: &[u8]) -> io::Result<()>;

    /// No more questions are to come here; answers still go out.
    fn close(&self) {}
}
