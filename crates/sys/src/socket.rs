//! TCP and UDP sockets with the options that a transparent proxy needs, and those options one by one.
//!
//! All sockets are non-blocking and close-on-exec. Which option a socket needs is left to the callers.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};

/// `SO_NETNS_COOKIE` of `asm-generic/socket.h`, since Linux 5.14.
const SO_NETNS_COOKIE: libc::c_int = 71;
/// `IP_BIND_ADDRESS_NO_PORT` of `linux/in.h`: the port is chosen by `connect()`.
const IP_BIND_ADDRESS_NO_PORT: libc::c_int = 24;
/// Attempts to find a free port by hand.
const PORT_TRIES_MAX: u16 = 64;

/// Keepalive of a TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first probe.
    pub idle: Duration,
    /// Time between probes.
    pub interval: Duration,
    /// Unanswered probes until the connection is dead.
    pub probes: u32,
}

impl Default for Keepalive {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(180),
            interval: Duration::from_secs(180),
            probes: 9,
        }
    }
}

impl Keepalive {
    /// Switches keepalive on for `socket`.
    pub fn apply(&self, socket: &Socket) -> io::Result<()> {
        let wanted = TcpKeepalive::new()
            .with_time(self.idle)
            .with_interval(self.interval)
            .with_retries(self.probes);
        socket.set_tcp_keepalive(&wanted)
    }
}

/// Connections that may wait to be accepted; the kernel lowers it to `net.core.somaxconn`, 4096 by default.
const BACKLOG: i32 = 4096;

/// How a TCP listener, and by inheritance every connection it accepts, is set up.
#[derive(Clone, Copy, Debug)]
pub struct ListenOptions {
    /// Accept connections to addresses that are not ours (`IP_TRANSPARENT`, `IPV6_TRANSPARENT`); needs `CAP_NET_ADMIN` or `CAP_NET_RAW`.
    pub transparent: bool,
    /// `TCP_NODELAY`.
    pub nodelay: bool,
    /// Keepalive, or none.
    pub keepalive: Option<Keepalive>,
    /// `TCP_USER_TIMEOUT`, or the kernel's default.
    pub user_timeout: Option<Duration>,
    /// `SO_MARK`, or none.
    pub mark: Option<u32>,
    /// `SO_REUSEPORT`.
    pub reuse_port: bool,
    /// Length of the queue of connections not yet accepted.
    pub backlog: i32,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self {
            transparent: false,
            nodelay: true,
            keepalive: Some(Keepalive::default()),
            user_timeout: None,
            mark: None,
            reuse_port: false,
            backlog: BACKLOG,
        }
    }
}

/// Opens a TCP listener. An IPv6 wildcard address also takes IPv4 (as v4-mapped).
pub fn listen(address: SocketAddr, options: &ListenOptions) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    if options.transparent {
        set_transparent(&socket, address.ip())?;
    }
    if options.reuse_port {
        socket.set_reuse_port(true)?;
    } else {
        socket.set_reuse_address(true)?;
    }
    socket.set_tcp_nodelay(options.nodelay)?;
    if let Some(keepalive) = options.keepalive {
        keepalive.apply(&socket)?;
    }
    socket.set_tcp_user_timeout(options.user_timeout)?;
    if let Some(mark) = options.mark {
        socket.set_mark(mark)?;
    }
    socket.bind(&address.into())?;
    socket.listen(options.backlog)?;
    Ok(socket.into())
}

/// How a UDP socket at a known address is set up.
#[derive(Clone, Copy, Debug, Default)]
pub struct UdpOptions {
    /// `SO_MARK`, or none.
    pub mark: Option<u32>,
    /// `SO_REUSEPORT`.
    pub reuse_port: bool,
}

/// Opens a UDP socket bound to `address`, for this address alone.
pub fn udp_listen(address: SocketAddr, options: &UdpOptions) -> io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM.nonblocking(),
        Some(Protocol::UDP),
    )?;
    if options.reuse_port {
        socket.set_reuse_port(true)?;
    }
    if let Some(mark) = options.mark {
        socket.set_mark(mark)?;
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// How a TCP socket to be connected is set up.
#[derive(Clone, Debug)]
pub struct DialOptions {
    /// `TCP_NODELAY`.
    pub nodelay: bool,
    /// Keepalive, or none.
    pub keepalive: Option<Keepalive>,
    /// `TCP_USER_TIMEOUT`, or the kernel's default.
    pub user_timeout: Option<Duration>,
    /// `SO_MARK`, or none.
    pub mark: Option<u32>,
    /// `SO_BINDTODEVICE`, or none.
    pub device: Option<&'static str>,
    /// Source address that need not be ours, and the ports to choose from, or the kernel's choice.
    pub source: Option<(IpAddr, RangeInclusive<u16>)>,
}

impl Default for DialOptions {
    fn default() -> Self {
        Self {
            nodelay: true,
            keepalive: Some(Keepalive::default()),
            user_timeout: None,
            mark: None,
            device: None,
            source: None,
        }
    }
}

/// A TCP socket ready to be connected to `target`, in the namespace of the calling thread.
pub fn dial_socket(target: SocketAddr, options: &DialOptions) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(target),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    socket.set_tcp_nodelay(options.nodelay)?;
    if let Some(keepalive) = options.keepalive {
        keepalive.apply(&socket)?;
    }
    socket.set_tcp_user_timeout(options.user_timeout)?;
    if let Some(mark) = options.mark {
        socket.set_mark(mark)?;
    }
    if let Some(device) = options.device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    if let Some((source, ports)) = &options.source {
        set_transparent(&socket, *source)?;
        bind_source(&socket, *source, ports.clone())?;
    }
    Ok(socket)
}

/// Binds an unconnected socket to `source` and a free port of `ports`.
///
/// The same port may serve several targets: `SO_REUSEADDR` is set, so that only the whole four-tuple must be unique.
/// The ports are tried by hand, from a random start: `IP_LOCAL_PORT_RANGE` can only narrow the namespace's own range, never leave it.
///
/// Errors: no port of the range is free for `source` within [`PORT_TRIES_MAX`] attempts, or the address is refused.
pub fn bind_source(socket: &Socket, source: IpAddr, ports: RangeInclusive<u16>) -> io::Result<()> {
    socket.set_reuse_address(true)?;
    let first = *ports.start();
    let count = ports.end().saturating_sub(first).saturating_add(1);
    let start = random_below(count)?;
    for attempt in 0..PORT_TRIES_MAX.min(count) {
        let offset = (u32::from(start) + u32::from(attempt)) % u32::from(count);
        // offset < count, so the sum is at most ports.end().
        let port = first + offset as u16;
        match socket.bind(&SockAddr::from(SocketAddr::new(source, port))) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            other => return other,
        }
    }
    Err(io::Error::from(io::ErrorKind::AddrInUse))
}

fn random_below(bound: u16) -> io::Result<u16> {
    let mut bytes = [0u8; 4];
    fill_random(&mut bytes)?;
    // The remainder is below a u16.
    Ok((u32::from_ne_bytes(bytes) % u32::from(bound.max(1))) as u16)
}

#[allow(unsafe_code)]
fn fill_random(bytes: &mut [u8; 4]) -> io::Result<()> {
    // SAFETY: the pointer and length describe a live, writable buffer of ours.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if got == bytes.len() as isize {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A UDP socket bound to `address` that reports each datagram's original destination (see [`crate::udp`]).
pub fn udp_transparent(address: SocketAddr, mark: Option<u32>) -> io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM.nonblocking(),
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
        set_option(&socket, libc::SOL_IPV6, libc::IPV6_RECVORIGDSTADDR, 1)?;
    }
    set_option(&socket, libc::SOL_IP, libc::IP_RECVORIGDSTADDR, 1)?;
    set_transparent(&socket, address.ip())?;
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// A plain UDP socket for questions to a resolver, bound to no address yet known, marked if asked to.
pub fn udp_plain(target: SocketAddr, mark: Option<u32>) -> io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(target),
        Type::DGRAM.nonblocking(),
        Some(Protocol::UDP),
    )?;
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    let any: IpAddr = if target.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    socket.bind(&SocketAddr::new(any, 0).into())?;
    Ok(socket.into())
}

/// Lets `socket` use addresses that are not this namespace's (`IP_TRANSPARENT` or `IPV6_TRANSPARENT` after the family of `address`).
pub fn set_transparent(socket: &Socket, address: IpAddr) -> io::Result<()> {
    match address {
        IpAddr::V4(_) => set_option(socket, libc::SOL_IP, libc::IP_TRANSPARENT, 1),
        IpAddr::V6(_) => set_option(socket, libc::SOL_IPV6, libc::IPV6_TRANSPARENT, 1),
    }
}

/// Leaves the choice of the port to `connect()` when only an address is bound (`IP_BIND_ADDRESS_NO_PORT`).
pub fn set_bind_address_no_port(socket: &impl AsFd) -> io::Result<()> {
    set_option(socket, libc::SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1)
}

/// Where an accepted connection was meant to go before a rule of the packet filter redirected it; none = no rule did.
///
/// Errors: the socket is not connected any more.
/// Source: `SO_ORIGINAL_DST` of netfilter's connection tracking, asked for in the family of the packets.
pub fn original_destination(accepted: &impl AsFd) -> io::Result<Option<SocketAddr>> {
    let socket = SockRef::from(accepted);
    let unexpected = || io::Error::from(io::ErrorKind::InvalidData);
    let local = socket.local_addr()?.as_socket().ok_or_else(unexpected)?;
    let local = crate::udp::unmapped(local);
    let asked = match local {
        SocketAddr::V4(_) => socket.original_dst_v4(),
        SocketAddr::V6(_) => socket.original_dst_v6(),
    };
    let original = match asked {
        Ok(address) => crate::udp::unmapped(address.as_socket().ok_or_else(unexpected)?),
        // the connection is not tracked, or nothing in this kernel tracks
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENOENT | libc::ENOPROTOOPT | libc::EOPNOTSUPP)
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let same = original.ip() == local.ip() && original.port() == local.port();
    Ok((!same).then_some(original))
}

/// The kernel's cookie of the socket's network namespace; `ENOPROTOOPT` before Linux 5.14.
pub fn netns_cookie(socket: &impl AsFd) -> io::Result<u64> {
    get_u64(socket, libc::SOL_SOCKET, SO_NETNS_COOKIE)
}

/// The kernel's cookie of the socket itself (`SO_COOKIE`).
pub fn cookie(socket: &impl AsFd) -> io::Result<u64> {
    get_u64(socket, libc::SOL_SOCKET, libc::SO_COOKIE)
}

/// Any socket of the calling thread's namespace, to ask it questions.
pub(crate) fn probe() -> io::Result<Socket> {
    Socket::new(Domain::UNIX, Type::STREAM, None)
        .and_then(|socket| netns_cookie(&socket).map(|_| socket))
        .or_else(|_| Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)))
}

#[allow(unsafe_code)]
fn set_option(
    socket: &impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: pointer and size describe `value`, which lives through the call; the descriptor is borrowed, hence open.
    let done = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[allow(unsafe_code)]
fn get_u64(socket: &impl AsFd, level: libc::c_int, name: libc::c_int) -> io::Result<u64> {
    let mut value = 0u64;
    let mut size = size_of::<u64>() as libc::socklen_t;
    // SAFETY: pointer and size describe `value`, which is writable through the call; the descriptor is borrowed, hence open.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw mut value).cast(),
            &raw mut size,
        )
    };
    if done == 0 {
        Ok(value)
    } else {
        Err(io::Error::last_os_error())
    }
}
