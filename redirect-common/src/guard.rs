//! The second line of defence, as plain functions: what leaves or enters a pod past the programs that should have redirected it.
//!
//! Only connection requests are judged by the pod's standing, so that connections older than an enrolment go on.

use crate::{
    Address, Arrival, Former, LOOPBACK_IFINDEX, Lookup, PROBE_NS_MAX, Pod, REDIRECT_MARK, Standing,
};

/// A packet about to leave.
#[derive(Clone, Copy, Debug)]
pub struct Departure {
    /// Index of the device it leaves by.
    pub device: u32,
    /// Its mark.
    pub mark: u32,
}

/// What `egress` may ask about the socket that sends; each answer costs a helper call or a lookup.
pub trait Sender {
    /// [`Former::captured`] of the socket; 0 when nothing is kept at it.
    fn flag(&self) -> u32;
    /// Whether it is known to be in a namespace that is none of the pods'.
    fn is_foreign(&self) -> bool;
    /// Whether it is a TCP socket that has asked for a connection and has no answer yet (`TCP_SYN_SENT`).
    fn is_connecting(&self) -> bool;
    /// Whether the socket is a daemon's.
    fn is_daemon(&self) -> bool;
    /// What holds for the socket by its cgroup.
    fn standing(&self) -> Standing;
    /// Whom it is connecting to, and the port in host byte order.
    fn destination(&self) -> (Address, u16);
    /// The entry of a namespace.
    fn pod(&self, cookie: u64) -> Option<Pod>;
    /// Whether the pod excludes the address.
    fn excludes_range(&self, cookie: u64, destination: &Address) -> bool;
    /// Whether the pod excludes the port.
    fn excludes_port(&self, cookie: u64, port: u16) -> bool;
}

/// What to do with a packet about to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Egress {
    /// Let it go.
    Pass,
    /// Drop: of a redirected connection, and about to leave the pod.
    Captured,
    /// Drop: a request that waits for its pod's enrolment.
    Held,
    /// Drop: a request of an enrolled pod that was not redirected.
    Uncaptured,
}

/// Decides about a packet about to leave.
///
/// A socket in `TCP_SYN_SENT` sends nothing but requests, with or without data (Fast Open) and whatever headers stand in between, so
/// no packet is parsed. A multipath connection's flows carry the mark, and nothing else of what is kept at its socket.
#[inline(always)]
pub fn egress(departure: &Departure, sender: &impl Sender) -> Egress {
    if departure.device == LOOPBACK_IFINDEX {
        return Egress::Pass;
    }
    let flag = sender.flag();
    if flag == Former::CAPTURED {
        return Egress::Captured;
    }
    if flag == 0 && sender.is_foreign() {
        return Egress::Pass;
    }
    let marked = departure.mark == REDIRECT_MARK;
    if !sender.is_connecting() {
        // A held connection that was let go is nobody's any more.
        let stays = match flag {
            Former::HELD => sender.standing() != Standing::Free,
            _ => marked,
        };
        return if stays {
            Egress::Captured
        } else {
            Egress::Pass
        };
    }
    if flag == Former::PASSED || sender.is_daemon() {
        return if marked {
            Egress::Captured
        } else {
            Egress::Pass
        };
    }
    match sender.standing() {
        // Also when it is marked: a held one that was let go.
        Standing::Free => Egress::Pass,
        Standing::Enrolled(_) if marked || flag == Former::HELD => Egress::Captured,
        Standing::Enrolled(cookie) if is_excluded(cookie, sender) => Egress::Pass,
        Standing::Enrolled(_) => Egress::Uncaptured,
        Standing::Held | Standing::Denied if sender.destination().0.is_never_captured() => {
            Egress::Pass
        }
        Standing::Held | Standing::Denied => Egress::Held,
    }
}

/// Whether the destination is one that `connect` would have left alone.
#[inline(always)]
fn is_excluded(cookie: u64, sender: &impl Sender) -> bool {
    let (address, port) = sender.destination();
    if address.is_never_captured() {
        return true;
    }
    let Some(pod) = sender.pod(cookie) else {
        return false;
    };
    (pod.has(Pod::EXCLUDED_PORTS) && sender.excludes_port(cookie, port))
        || (pod.has(Pod::EXCLUDED_RANGES) && sender.excludes_range(cookie, &address))
}

/// What `ingress` may ask about the packet and the socket that receives it; each answer costs a helper call or a lookup.
pub trait Receiver {
    /// Whether it is a listening TCP socket.
    fn is_listening(&self) -> bool;
    /// Whether the socket is a daemon's.
    fn is_daemon(&self) -> bool;
    /// What holds for the socket by its cgroup.
    fn standing(&self) -> Standing;
    /// Whether the packet asks for a connection.
    fn request(&self) -> Request;
    /// What `sk_lookup` of the pod decides about it.
    fn lookup(&self, cookie: u64, arrival: &Arrival) -> Lookup;
}

/// What a packet to a listening socket is.
#[derive(Clone, Copy, Debug)]
pub enum Request {
    /// Part of a connection that has begun.
    No,
    /// The first of a connection.
    Yes(Arrival),
    /// Not to be understood: treated as a request from anywhere.
    Opaque,
}

/// What to do with a packet about to be received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ingress {
    /// Let it in.
    Pass,
    /// Drop: its pod is not enrolled yet.
    Held,
    /// Drop: it went past the daemon.
    Uncaptured,
}

/// Decides about a packet about to be received.
#[inline(always)]
pub fn ingress(device: u32, receiver: &impl Receiver) -> Ingress {
    if device == LOOPBACK_IFINDEX || !receiver.is_listening() {
        return Ingress::Pass;
    }
    let standing = receiver.standing();
    if standing == Standing::Free || receiver.is_daemon() {
        return Ingress::Pass;
    }
    let request = receiver.request();
    match (standing, request) {
        (_, Request::No) => Ingress::Pass,
        (Standing::Enrolled(cookie), Request::Yes(arrival)) => {
            match receiver.lookup(cookie, &arrival) {
                Lookup::Pass => Ingress::Pass,
                Lookup::Assign(_) | Lookup::Drop(_) => Ingress::Uncaptured,
            }
        }
        (Standing::Enrolled(_), Request::Opaque) => Ingress::Uncaptured,
        _ => Ingress::Held,
    }
}

/// What a socket becomes that was held and now has its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It was not held.
    Unchanged,
    /// Its pod is captured: so is the connection.
    Captured,
    /// Its pod is not in the mesh: the mark goes, so that a later enrolment does not tear it.
    Free,
}

/// Decides about a socket whose connection has just come about.
///
/// - `flag`, `mark`: as kept at the socket, and the socket's own
/// - `bound`: it is bound to a device, as the daemon's connections to applications are
/// - `captured`: whether its namespace is captured; asked only when needed
#[inline(always)]
pub fn settle(flag: u32, mark: u32, bound: bool, captured: impl FnOnce() -> bool) -> Settled {
    let was_held = match flag {
        Former::HELD => true,
        // A flow of a multipath connection.
        0 => mark == REDIRECT_MARK && !bound,
        _ => false,
    };
    if !was_held {
        return Settled::Unchanged;
    }
    if captured() {
        return Settled::Captured;
    }
    Settled::Free
}

/// Whether a connection of kubelet that was begun at `began` may still be on its way.
#[inline(always)]
pub fn is_fresh(began: u64, now: u64) -> bool {
    now.wrapping_sub(began) < PROBE_NS_MAX
}
