//! What the kernel programs and the daemon must agree on: marks and tables, map keys and values, and the verdicts.
//!
//! Pure and `no_std`, so that the host tests exactly what the kernel runs. Leaves helper calls to `redirect-ebpf`
//! and everything about loading, attaching and routing to `capture`.
#![no_std]

mod address;
mod cgroup;
mod guard;
mod layout;
mod verdict;

#[cfg(test)]
mod tests;

pub use address::Address;
pub use cgroup::{
    CgroupEntry, CgroupState, DEPTH_MAX, LEVEL_MAX, Lineage, Settings, Standing, by_namespace,
    standing,
};
pub use guard::{
    Departure, Egress, Ingress, Receiver, Request, Sender, Settled, egress, ingress, is_fresh,
    settle,
};
pub use layout::{
    Counter, ExcludedPort, ExcludedRange, Former, Kind, Local, NETNS_PATH_MAX, OpenPort, Pod,
    ProbeKey, Saved, SocketKey, UID_MAX,
};
pub use verdict::{
    Arrival, Attempt, Caller, Connect, Door, Lookup, Mismatch, SocketOption, Via, Wait, connect,
    lookup, setsockopt,
};

/// Mark of packets that must go to the pod's loopback, where `sk_lookup` hands them to the daemon.
pub const REDIRECT_MARK: u32 = 0x53b;
/// Mark of the daemon's own packets in a pod (1337, as in Istio).
pub const DAEMON_MARK: u32 = 0x539;
/// Routing table in the pod's namespace that makes every destination local.
pub const TABLE: u32 = 139;
/// Preference of the rule that keeps the daemon's own packets on the main table.
pub const PREF_DAEMON: u32 = 90;
/// Preference of the rule that sends marked packets to [`TABLE`].
pub const PREF_REDIRECT: u32 = 100;
/// Preference of the rule that sends questions to resolvers to [`TABLE`].
pub const PREF_DNS: u32 = 101;
/// Port of HBONE at a pod's addresses.
pub const HBONE_PORT: u16 = 15008;
/// Port of DNS.
pub const DNS_PORT: u16 = 53;
/// Index of the loopback interface, the same in every network namespace (`LOOPBACK_IFINDEX`).
pub const LOOPBACK_IFINDEX: u32 = 1;
/// Version of everything in this crate that lies in pinned maps; part of the pin path, so that versions never mix.
pub const LAYOUT: u32 = 3;

/// Pods of a node that maps have room for.
pub const PODS_MAX: u32 = 4096;
/// Addresses of pods that the map has room for.
pub const LOCALS_MAX: u32 = PODS_MAX * 8;
/// Excluded address ranges of all pods together.
pub const EXCLUDED_RANGES_MAX: u32 = PODS_MAX * 16;
/// Excluded ports of all pods together.
pub const EXCLUDED_PORTS_MAX: u32 = PODS_MAX * 16;
/// Open ports of all pods together.
pub const OPEN_PORTS_MAX: u32 = PODS_MAX * 4;
/// Exempt source ranges of the node.
pub const EXEMPT_MAX: u32 = 1024;
/// Daemon processes that may be alive at once while one replaces another.
pub const DAEMONS_MAX: u32 = 128;
/// Cgroups about which something is known.
pub const CGROUPS_MAX: u32 = 16_384;
/// Connections of kubelet remembered at once; the oldest go first.
pub const PROBES_MAX: u32 = 8192;
/// How long a connection of kubelet is recognised after it was begun, in nanoseconds: longer than kubelet waits for any.
pub const PROBE_NS_MAX: u64 = 30_000_000_000;

/// Names of the maps and programs, which are also names of pins.
pub mod name {
    /// Hash: namespace cookie → [`crate::Pod`].
    pub const PODS: &str = "PODS";
    /// Hash: [`crate::Local`] → 1.
    pub const LOCALS: &str = "LOCALS";
    /// Longest prefix: [`crate::ExcludedRange`] → 1.
    pub const EXCLUDED_RANGES: &str = "EXCLUDED_RANGES";
    /// Hash: [`crate::ExcludedPort`] → 1.
    pub const EXCLUDED_PORTS: &str = "EXCLUDED_PORTS";
    /// Hash: [`crate::OpenPort`] → 1.
    pub const OPEN_PORTS: &str = "OPEN_PORTS";
    /// Longest prefix: [`crate::Address`] → 1.
    pub const EXEMPT: &str = "EXEMPT";
    /// Socket hash: [`crate::SocketKey`] → socket.
    pub const SOCKETS: &str = "SOCKETS";
    /// Hash: cgroup id of a daemon → its generation.
    pub const DAEMONS: &str = "DAEMONS";
    /// Per-CPU array indexed by [`crate::Counter`].
    pub const COUNTERS: &str = "COUNTERS";
    /// Socket storage: [`crate::Former`] of captured sockets.
    pub const CAPTURED: &str = "CAPTURED";
    /// Array of one: generation of the daemon that owns everything.
    pub const OWNER: &str = "OWNER";
    /// Hash: namespace cookie → [`crate::Saved`].
    pub const SAVED: &str = "SAVED";
    /// Hash: cgroup id → [`crate::CgroupEntry`].
    pub const CGROUPS: &str = "CGROUPS";
    /// Array of one: [`crate::Settings`].
    pub const SETTINGS: &str = "SETTINGS";
    /// Least-recently-used hash: [`crate::ProbeKey`] → when the connection was begun.
    pub const PROBES: &str = "PROBES";
    /// Read-only datum of the `sk_lookup` program: its namespace's cookie.
    pub const COOKIE: &str = "COOKIE";
    /// Read-only datum of the programs that follow connections: whether nobody is ever held.
    pub const HOLDS_NOBODY: &str = "HOLDS_NOBODY";
    /// Read-only datum of the guards: whether they ask for the namespace of a packet that no cgroup answers for.
    pub const BY_NAMESPACE: &str = "BY_NAMESPACE";
}
