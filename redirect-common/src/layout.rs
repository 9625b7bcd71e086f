//! Keys and values of the shared maps. Any change here needs a new [`crate::LAYOUT`].

use crate::{Address, CgroupEntry, Settings};

/// Longest pod UID that is remembered, in bytes.
pub const UID_MAX: usize = 64;
/// Longest namespace path that is remembered, in bytes.
pub const NETNS_PATH_MAX: usize = 256;

/// What to do for one pod, keyed by its namespace's cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Pod {
    /// Set of the constants below.
    pub flags: u32,
}

impl Pod {
    /// `connect()` is captured: the last thing switched on, the first switched off.
    pub const CAPTURE: u32 = 1;
    /// Questions to resolvers go to the daemon.
    pub const DNS: u32 = 2;
    /// Plaintext from elsewhere goes to the application.
    pub const BYPASS_INBOUND: u32 = 4;
    /// The pod has entries among the excluded ranges.
    pub const EXCLUDED_RANGES: u32 = 8;
    /// The pod has entries among the excluded ports.
    pub const EXCLUDED_PORTS: u32 = 16;
    /// Every process in the namespace is the pod, whatever its cgroup.
    pub const WHOLE: u32 = 32;
    /// The pod has entries among the open ports.
    pub const OPEN_PORTS: u32 = 64;

    /// Whether `flag` is set.
    #[inline(always)]
    pub const fn has(self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

/// An address that is a pod's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Local {
    /// The pod's namespace.
    pub cookie: u64,
    /// One of its addresses.
    pub address: Address,
}

/// A destination range that a pod wants left alone: data of a longest-prefix key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct ExcludedRange {
    /// The two halves of the namespace's cookie; always matched whole.
    pub cookie: [u32; 2],
    /// Network address.
    pub address: Address,
}

impl ExcludedRange {
    /// Bits before the address.
    pub const COOKIE_BITS: u32 = 64;
    /// Bits of a whole key.
    pub const BITS: u32 = Self::COOKIE_BITS + 128;

    /// The key data for a pod and an address.
    #[inline(always)]
    pub const fn new(cookie: u64, address: Address) -> Self {
        // Both halves are kept: the casts drop the other half each.
        Self {
            cookie: [(cookie >> 32) as u32, cookie as u32],
            address,
        }
    }
}

/// A destination port that a pod wants left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct ExcludedPort {
    /// The pod's namespace.
    pub cookie: u64,
    /// The port, host byte order.
    pub port: u32,
    /// Always 0.
    pub padding: u32,
}

impl ExcludedPort {
    /// The key for a pod and a port.
    #[inline(always)]
    pub const fn new(cookie: u64, port: u16) -> Self {
        Self {
            cookie,
            port: port as u32,
            padding: 0,
        }
    }
}

/// A port of the pod's own at which whoever listens is reached directly, by anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct OpenPort {
    /// The pod's namespace.
    pub cookie: u64,
    /// The port, host byte order.
    pub port: u32,
    /// Always 0.
    pub padding: u32,
}

impl OpenPort {
    /// The key for a pod and a port.
    #[inline(always)]
    pub const fn new(cookie: u64, port: u16) -> Self {
        Self {
            cookie,
            port: port as u32,
            padding: 0,
        }
    }
}

/// Which of a pod's sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Kind {
    /// The pod's own connections.
    Outbound = 0,
    /// HBONE from elsewhere.
    Hbone = 1,
    /// Plaintext from elsewhere.
    Plaintext = 2,
    /// Questions to resolvers.
    Dns = 3,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Outbound, Self::Hbone, Self::Plaintext, Self::Dns];
}

/// Key of a daemon socket in a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct SocketKey {
    /// The pod's namespace.
    pub cookie: u64,
    /// A [`Kind`].
    pub kind: u32,
    /// Always 0.
    pub padding: u32,
}

impl SocketKey {
    /// The key for a pod and a kind.
    #[inline(always)]
    pub const fn new(cookie: u64, kind: Kind) -> Self {
        Self {
            cookie,
            kind: kind as u32,
            padding: 0,
        }
    }

    /// As bytes in memory order.
    pub fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.cookie.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.kind.to_ne_bytes());
        bytes[12..].copy_from_slice(&self.padding.to_ne_bytes());
        bytes
    }
}

/// A connection of kubelet, as the side that is connected to sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct ProbeKey {
    /// Who connects.
    pub source: Address,
    /// Whom to.
    pub destination: Address,
    /// Port of the source, host byte order.
    pub source_port: u16,
    /// Port of the destination, host byte order.
    pub destination_port: u16,
}

/// Kept at a socket from its `connect()` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Former {
    /// One of the constants below; fresh storage is 0.
    pub captured: u32,
    /// The mark that the application had set.
    pub mark: u32,
}

impl Former {
    /// Redirected: never leaves the pod.
    pub const CAPTURED: u32 = 1;
    /// Marked, but waiting for its pod's enrolment.
    pub const HELD: u32 = 2;
    /// Of an enrolled pod and left alone: may go where it likes.
    pub const PASSED: u32 = 3;
}

/// What is needed to leave a pod as it was found, also for a successor of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Saved {
    /// Device of the namespace file system.
    pub dev: u64,
    /// Inode of the namespace.
    pub inode: u64,
    /// Former values of `tcp_fwmark_accept`, IPv4 `fwmark_reflect`, IPv6 `fwmark_reflect`; -1 where there was none.
    pub sysctls: [i32; 3],
    /// Bytes of `uid` in use.
    pub uid_len: u16,
    /// Bytes of `netns_path` in use.
    pub netns_path_len: u16,
    /// The pod's UID.
    pub uid: [u8; UID_MAX],
    /// Path by which the namespace was opened.
    pub netns_path: [u8; NETNS_PATH_MAX],
}

/// Index of a counter of verdicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// Outgoing connections redirected.
    ConnectCaptured = 0,
    /// Outgoing connections of enrolled pods left alone.
    ConnectPassed,
    /// Refused: the socket could not be marked.
    ConnectDeniedMark,
    /// Refused: the socket could not be released from its device.
    ConnectDeniedDevice,
    /// Refused: the socket could not be flagged as captured.
    ConnectDeniedFlag,
    /// Given to the outbound socket.
    LookupOutbound,
    /// Given to the HBONE socket.
    LookupHbone,
    /// Given to the plaintext socket.
    LookupPlaintext,
    /// Given to the DNS socket.
    LookupDns,
    /// Left to the ordinary lookup.
    LookupPassed,
    /// Dropped: the daemon's socket is not there.
    LookupDroppedSocket,
    /// Dropped: the pod is not in the map.
    LookupDroppedPod,
    /// Dropped on the way out: a captured socket's packet was about to leave by another device than loopback.
    EgressDropped,
    /// Refused: an attempt to re-mark or re-bind a captured connection.
    SetsockoptRefused,
    /// Outgoing connections that wait for their pod's enrolment.
    ConnectHeld,
    /// Outgoing connections that wait because their pod is enrolled with another network namespace.
    ConnectHeldNetns,
    /// Refused: the pod was not enrolled in time.
    ConnectDeniedHold,
    /// Dropped on the way out: a connection request that waits for its pod's enrolment (each of its retransmissions counts).
    EgressDroppedHeld,
    /// Dropped on the way out: a connection request of an enrolled pod that no program has redirected.
    EgressDroppedUncaptured,
    /// Dropped on the way in: a connection request to a pod that is not enrolled yet.
    IngressDroppedHeld,
    /// Dropped on the way in: a connection request that went past the daemon to an enrolled pod.
    IngressDroppedUncaptured,
    /// Connections of kubelet recorded.
    ProbeRecorded,
}

impl Counter {
    /// All counters with their names, in order of index.
    pub const ALL: [(Self, &'static str); 22] = [
        (Self::ConnectCaptured, "connect_captured"),
        (Self::ConnectPassed, "connect_passed"),
        (Self::ConnectDeniedMark, "connect_denied_mark"),
        (Self::ConnectDeniedDevice, "connect_denied_device"),
        (Self::ConnectDeniedFlag, "connect_denied_flag"),
        (Self::LookupOutbound, "lookup_outbound"),
        (Self::LookupHbone, "lookup_hbone"),
        (Self::LookupPlaintext, "lookup_plaintext"),
        (Self::LookupDns, "lookup_dns"),
        (Self::LookupPassed, "lookup_passed"),
        (Self::LookupDroppedSocket, "lookup_dropped_socket"),
        (Self::LookupDroppedPod, "lookup_dropped_pod"),
        (Self::EgressDropped, "egress_dropped"),
        (Self::SetsockoptRefused, "setsockopt_refused"),
        (Self::ConnectHeld, "connect_held"),
        (Self::ConnectHeldNetns, "connect_held_netns"),
        (Self::ConnectDeniedHold, "connect_denied_hold"),
        (Self::EgressDroppedHeld, "egress_dropped_held"),
        (Self::EgressDroppedUncaptured, "egress_dropped_uncaptured"),
        (Self::IngressDroppedHeld, "ingress_dropped_held"),
        (Self::IngressDroppedUncaptured, "ingress_dropped_uncaptured"),
        (Self::ProbeRecorded, "probe_recorded"),
    ];
}

const _: () = {
    assert!(size_of::<Address>() == 16 && align_of::<Address>() == 4);
    assert!(size_of::<Pod>() == 4);
    assert!(size_of::<Local>() == 24);
    assert!(size_of::<ExcludedRange>() == 24 && align_of::<ExcludedRange>() == 4);
    assert!(size_of::<ExcludedPort>() == 16);
    assert!(size_of::<OpenPort>() == 16);
    assert!(size_of::<SocketKey>() == 16);
    assert!(size_of::<Former>() == 8);
    assert!(size_of::<ProbeKey>() == 36 && align_of::<ProbeKey>() == 4);
    assert!(size_of::<CgroupEntry>() == 16);
    assert!(size_of::<Settings>() == 24);
    assert!(size_of::<Saved>() == 16 + 12 + 4 + UID_MAX + NETNS_PATH_MAX);
    let mut index = 0;
    while index < Counter::ALL.len() {
        assert!(Counter::ALL[index].0 as usize == index);
        index += 1;
    }
};

#[cfg(feature = "aya")]
mod pod {
    macro_rules! plain {
        ($($kind:ty),*) => {$(
            // SAFETY: `#[repr(C)]` of integers only, every padding byte is a named field (sizes asserted above), all bit patterns are valid.
            unsafe impl aya::Pod for $kind {}
        )*};
    }
    plain!(
        crate::Address,
        super::Pod,
        super::Local,
        super::ExcludedRange,
        super::ExcludedPort,
        super::OpenPort,
        super::ProbeKey,
        super::Saved,
        crate::CgroupEntry,
        crate::Settings
    );
}
