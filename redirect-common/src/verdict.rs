//! The decisions of the kernel programs, as plain functions. What they need to know of the maps they ask through a trait, lazily.

use crate::{Address, DNS_PORT, HBONE_PORT, Kind, Pod, REDIRECT_MARK, Standing};

/// A `connect()` about to happen.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// TCP or multipath TCP.
    pub tcp: bool,
    /// Where to.
    pub destination: Address,
    /// Where to, host byte order.
    pub port: u16,
}

/// What `connect` may ask about the caller; each answer costs a lookup.
pub trait Caller {
    /// Cookie of the socket's network namespace.
    fn cookie(&self) -> u64;
    /// The entry of that namespace.
    fn pod(&self) -> Option<Pod>;
    /// Whether the calling process is a daemon.
    fn is_daemon(&self) -> bool;
    /// What holds for the calling process by its cgroup.
    fn standing(&self) -> Standing;
    /// Whether the pod excludes the address.
    fn excludes_range(&self, destination: &Address) -> bool;
    /// Whether the pod excludes the port.
    fn excludes_port(&self, port: u16) -> bool;
}

/// What to do with a `connect()`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connect {
    /// Not from an enrolled or expected pod: none of our business.
    Foreign,
    /// From an enrolled pod, left alone; needs no leave to go out.
    Pass,
    /// From an enrolled pod, left alone: the socket is flagged, so that the guard lets it out.
    Exclude,
    /// Redirect, or deny when that fails.
    Capture,
    /// Mark and flag, so that the guard keeps it in until it can be redirected; or deny when that fails.
    Hold(Wait),
    /// Deny.
    Deny,
}

/// What a held connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// For its pod to be enrolled, or to turn out not to be for the mesh.
    Enrolment,
    /// For its pod to be enrolled with this network namespace: it is with another one.
    Namespace,
}

/// Decides about a `connect()`.
#[inline(always)]
pub fn connect(attempt: &Attempt, caller: &impl Caller) -> Connect {
    let Some(pod) = caller.pod() else {
        return uncaptured(attempt, caller);
    };
    if !pod.has(Pod::CAPTURE) {
        return uncaptured(attempt, caller);
    }
    if !attempt.tcp || attempt.destination.is_loopback() || caller.is_daemon() {
        return Connect::Pass;
    }
    if attempt.destination.is_never_captured() {
        return Connect::Exclude;
    }
    if pod.has(Pod::EXCLUDED_PORTS) && caller.excludes_port(attempt.port) {
        return Connect::Exclude;
    }
    if pod.has(Pod::EXCLUDED_RANGES) && caller.excludes_range(&attempt.destination) {
        return Connect::Exclude;
    }
    Connect::Capture
}

/// Decides where the namespace is not captured: then the cgroup says whether it should be.
#[inline(always)]
fn uncaptured(attempt: &Attempt, caller: &impl Caller) -> Connect {
    if !attempt.tcp || attempt.destination.is_never_captured() {
        return Connect::Foreign;
    }
    let standing = caller.standing();
    if standing == Standing::Free || caller.is_daemon() {
        return Connect::Foreign;
    }
    match standing {
        Standing::Denied => Connect::Deny,
        Standing::Enrolled(cookie) if cookie != caller.cookie() => Connect::Hold(Wait::Namespace),
        _ => Connect::Hold(Wait::Enrolment),
    }
}

/// How a packet came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// Through the loopback device: from inside the pod.
    Loopback,
    /// Through any other device, or towards an own address.
    Elsewhere,
}

/// A connection request or datagram for which a socket is sought.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// TCP, else UDP.
    pub tcp: bool,
    /// How it came.
    pub via: Via,
    /// Who sent it.
    pub source: Address,
    /// Port it was sent from, host byte order.
    pub source_port: u16,
    /// Whom it was sent to.
    pub destination: Address,
    /// Port it was sent to, host byte order.
    pub port: u16,
}

/// What `lookup` may ask about the pod; each answer costs a lookup.
pub trait Door {
    /// The pod's entry.
    fn pod(&self) -> Option<Pod>;
    /// Whether the address is one of the pod's own.
    fn is_local(&self, address: &Address) -> bool;
    /// Whether the source may reach applications directly.
    fn is_exempt(&self, source: &Address) -> bool;
    /// Whether whoever listens at this port of the pod is reached directly.
    fn is_open(&self, port: u16) -> bool;
    /// Whether it is a connection of kubelet.
    fn is_probe(&self, arrival: &Arrival) -> bool;
}

/// Why an arrival is dropped before any socket is sought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// The program runs, but the pod has no entry.
    NoPod,
}

/// What to do with an arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// The ordinary lookup goes on.
    Pass,
    /// Give it to the daemon's socket, or drop when there is none.
    Assign(Kind),
    /// Drop.
    Drop(Mismatch),
}

/// Decides about an arrival.
///
/// Connections from one own address to another show the device of that address, not loopback; they are told by their source.
#[inline(always)]
pub fn lookup(arrival: &Arrival, door: &impl Door) -> Lookup {
    let Some(pod) = door.pod() else {
        return Lookup::Drop(Mismatch::NoPod);
    };
    match (arrival.via, arrival.tcp) {
        (Via::Loopback, tcp) => {
            if arrival.destination.is_loopback() || door.is_local(&arrival.destination) {
                return Lookup::Pass;
            }
            if tcp {
                return Lookup::Assign(Kind::Outbound);
            }
            if pod.has(Pod::DNS) && arrival.port == DNS_PORT {
                return Lookup::Assign(Kind::Dns);
            }
            Lookup::Pass
        }
        (Via::Elsewhere, false) => Lookup::Pass,
        (Via::Elsewhere, true) => {
            if door.is_local(&arrival.source) {
                return Lookup::Pass;
            }
            if arrival.port == HBONE_PORT {
                return Lookup::Assign(Kind::Hbone);
            }
            if pod.has(Pod::OPEN_PORTS) && door.is_open(arrival.port) {
                return Lookup::Pass;
            }
            if pod.has(Pod::BYPASS_INBOUND) || door.is_exempt(&arrival.source) {
                return Lookup::Pass;
            }
            if door.is_probe(arrival) {
                return Lookup::Pass;
            }
            Lookup::Assign(Kind::Plaintext)
        }
    }
}

/// A socket option about to be set.
#[derive(Clone, Copy, Debug)]
pub struct SocketOption {
    /// `SOL_SOCKET` and so on.
    pub level: i32,
    /// `SO_MARK` and so on.
    pub name: i32,
    /// The socket is a stream socket.
    pub stream: bool,
    /// The socket is neither connected nor connecting (state `TCP_CLOSE`): its next `connect()` is seen.
    pub closed: bool,
    /// Multipath TCP: its connections are marked, not the socket itself.
    pub multipath: bool,
    /// The socket's present mark.
    pub mark: u32,
}

/// `SOL_SOCKET`.
const SOL_SOCKET: i32 = 1;
/// `SO_BINDTODEVICE`.
const SO_BINDTODEVICE: i32 = 25;
/// `SO_MARK`.
const SO_MARK: i32 = 36;
/// `SO_BINDTOIFINDEX`.
const SO_BINDTOIFINDEX: i32 = 62;

/// Whether an option could tear a redirected connection off its route, in either direction: the caller refuses it then,
/// unless the daemon asks.
#[inline(always)]
pub fn setsockopt(option: &SocketOption) -> bool {
    option.level == SOL_SOCKET
        && (option.name == SO_MARK
            || option.name == SO_BINDTODEVICE
            || option.name == SO_BINDTOIFINDEX)
        && option.stream
        && !option.closed
        && (option.mark == REDIRECT_MARK || option.multipath)
}
