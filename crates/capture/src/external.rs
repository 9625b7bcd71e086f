//! The daemon's sockets in a pod whose traffic others redirect, on the ports that those rules name (istio-cni, in-pod mode).
//!
//! Leaves the rules to who made them, and everything that happens on the sockets to the data plane.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

use sys::Netns;
use sys::socket::{Keepalive, ListenOptions, UdpOptions, listen, udp_listen};

use crate::sockets::socks_here;

/// Outbound connections are redirected here.
pub const OUTBOUND_PORT: u16 = 15001;
/// Plaintext inbound connections are redirected here.
pub const PLAINTEXT_PORT: u16 = 15006;
/// HBONE; reached without redirection.
pub const HBONE_PORT: u16 = 15008;
/// DNS questions are redirected here unless told otherwise, on loopback.
pub const DNS_PORT: u16 = 15053;
/// SOCKS5 clients of the pod come here, on IPv4 loopback; reached without redirection.
pub const SOCKS_PORT: u16 = crate::sockets::SOCKS_PORT;

/// Half-open and not yet accepted connections move to another listener of the group when one closes (Linux 5.14).
const MIGRATE: &str = "sys/net/ipv4/tcp_migrate_req";
/// Whether loopback has IPv6; any other value than 1 means that it has.
const NO_V6_LOOPBACK: &str = "sys/net/ipv6/conf/lo/disable_ipv6";

/// Where DNS questions are redirected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DnsAt {
    /// this port of 127.0.0.1, and of `::1` where loopback has it
    Loopback(u16),
    /// one address
    One(SocketAddr),
}

/// How the sockets are to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// `SO_MARK` of every socket: it exempts their packets from redirection; none = the rules exempt them in another way
    pub mark: Option<u32>,
    /// share the ports with another instance of the daemon
    pub reuse_port: bool,
    /// try to make the listeners transparent, which keeping clients' addresses needs
    pub transparent: bool,
    /// IPv6 beside IPv4, where the kernel has it
    pub ipv6: bool,
    /// DNS sockets as well
    pub dns: bool,
    /// where they listen
    pub dns_at: DnsAt,
    /// a SOCKS5 listener as well
    pub socks: bool,
    /// a procfs whose `sys/net` may be written
    pub proc: PathBuf,
}

/// The sockets of one pod: non-blocking, close-on-exec.
#[derive(Debug)]
pub struct Sockets {
    /// outbound connections; the kernel knows their original destination
    pub outbound: TcpListener,
    /// HBONE; the local address of an accepted connection is the pod's
    pub hbone: TcpListener,
    /// plaintext; the kernel knows their original destination
    pub plaintext: TcpListener,
    /// questions, one socket for each family
    pub dns: Vec<UdpSocket>,
    /// connections to resolvers; the kernel knows their original destination
    pub dns_tcp: Vec<TcpListener>,
    /// SOCKS5 clients of the pod
    pub socks: Option<TcpListener>,
    /// whether clients' addresses can be kept towards the application
    pub transparent: bool,
}

/// Opens the sockets in `netns`, in the order DNS, HBONE, plaintext, outbound, SOCKS5.
///
/// Errors: a port is taken (another instance that does not share its ports, an application), or the kernel's refusal.
pub fn open(netns: &Netns, options: &Options) -> io::Result<Sockets> {
    netns.run(|| open_here(options))?
}

fn open_here(options: &Options) -> io::Result<Sockets> {
    allow_migration(&options.proc);
    let (mut dns, mut dns_tcp) = (Vec::new(), Vec::new());
    let mut transparent = options.transparent;
    if options.dns {
        for at in dns_addresses(options) {
            dns.push(named(at, udp_listen(at, &udp_options(options)))?);
            dns_tcp.push(listen_at(at, options, &mut transparent)?);
        }
    }
    let any = wildcard(options.ipv6)?;
    let mut listen = |port| listen_at(SocketAddr::new(any, port), options, &mut transparent);
    let (hbone, plaintext, outbound) = (
        listen(HBONE_PORT)?,
        listen(PLAINTEXT_PORT)?,
        listen(OUTBOUND_PORT)?,
    );
    let socks = if options.socks {
        Some(socks_here(options.mark, options.reuse_port)?)
    } else {
        None
    };
    Ok(Sockets {
        outbound,
        hbone,
        plaintext,
        dns,
        dns_tcp,
        socks,
        transparent,
    })
}

/// Best effort: without it what is half-way into a listener that closes is reset, once per upgrade.
fn allow_migration(proc: &Path) {
    let path = proc.join(MIGRATE);
    if let Err(error) = std::fs::write(&path, "1")
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!(path = %path.display(), %error, "half-open connections will not move to another instance");
    }
}

/// Where questions are taken.
fn dns_addresses(options: &Options) -> Vec<SocketAddr> {
    match options.dns_at {
        DnsAt::Loopback(port) => (loopbacks(options).map(|ip| SocketAddr::new(ip, port))).collect(),
        DnsAt::One(at) => vec![at],
    }
}

fn loopbacks(options: &Options) -> impl Iterator<Item = IpAddr> {
    let off = std::fs::read_to_string(options.proc.join(NO_V6_LOOPBACK));
    let v6 = options.ipv6 && off.is_ok_and(|off| off.trim() != "1");
    let v4 = std::iter::once(IpAddr::V4(Ipv4Addr::LOCALHOST));
    v4.chain(v6.then_some(IpAddr::V6(Ipv6Addr::LOCALHOST)))
}

/// The widest address to listen on: IPv6 with v4-mapped, or IPv4 where IPv6 is not wanted or the kernel has none.
///
/// Errors: the kernel's.
pub fn wildcard(ipv6: bool) -> io::Result<IpAddr> {
    const V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    const V6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    if !ipv6 {
        return Ok(V4);
    }
    match udp_listen(SocketAddr::new(V6, 0), &UdpOptions::default()) {
        Ok(_) => Ok(V6),
        Err(error) if error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) => Ok(V4),
        Err(error) => Err(error),
    }
}

/// A listener at `at`; `transparent` becomes false once the kernel does not allow it.
fn listen_at(at: SocketAddr, options: &Options, transparent: &mut bool) -> io::Result<TcpListener> {
    let wanted = |transparent| ListenOptions {
        transparent,
        mark: options.mark,
        reuse_port: options.reuse_port,
        keepalive: keepalive(at.port()),
        ..ListenOptions::default()
    };
    match listen(at, &wanted(*transparent)) {
        Err(error) if *transparent && error.kind() == io::ErrorKind::PermissionDenied => {
            tracing::warn!(%error, "clients' addresses cannot be kept: the listeners may not be transparent");
            *transparent = false;
            named(at, listen(at, &wanted(false)))
        }
        done => named(at, done),
    }
}

/// What accepted connections inherit; HBONE finds out by PING whether its peer lives.
fn keepalive(port: u16) -> Option<Keepalive> {
    (port != HBONE_PORT).then(Keepalive::default)
}

fn udp_options(options: &Options) -> UdpOptions {
    UdpOptions {
        mark: options.mark,
        reuse_port: options.reuse_port,
    }
}

pub(crate) fn named<T>(at: SocketAddr, done: io::Result<T>) -> io::Result<T> {
    done.map_err(|error| io::Error::new(error.kind(), format!("listen on {at}: {error}")))
}
