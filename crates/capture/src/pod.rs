//! What one pod should look like to the kernel, and what it does look like. Leaves changing anything to [`crate::capture`].

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;
use redirect_common::{Kind, LOOPBACK_IFINDEX, Pod};
use sys::Netns;
use sys::bpf::Target;

use crate::maps::{Maps, prefix};
use crate::netlink::{Family, LocalAddress, Netlink, Route, Rule};
use crate::pins::Pins;
use crate::sockets::PodFlags;
use crate::sysctl;

/// A pod to be captured.
#[derive(Clone, Debug)]
pub struct PodWanted {
    /// The pod's UID.
    pub uid: String,
    /// Its network namespace; kept open until release.
    pub netns: Arc<Netns>,
    /// Path by which the namespace can be opened again, also by a successor of this process.
    pub netns_path: PathBuf,
    /// The pod's cgroup v2 directory; at or below the capture cgroup.
    pub cgroup: PathBuf,
    /// Destinations that are left alone.
    pub exclude_ranges: Vec<IpNet>,
    /// Destination ports that are left alone.
    pub exclude_ports: Vec<u16>,
    /// DNS and inbound variants.
    pub flags: PodFlags,
}

/// Everything that capture keeps in the kernel for one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Policy routing rules.
    pub rules: BTreeSet<Rule>,
    /// Routes of the capture table.
    pub routes: BTreeSet<Route>,
    /// Sysctls and their values.
    pub sysctls: BTreeMap<&'static str, i32>,
    /// Own addresses in the map.
    pub locals: BTreeSet<IpAddr>,
    /// Excluded ranges in the map: prefix length of the 128-bit form, and address.
    pub ranges: BTreeSet<(u32, IpAddr)>,
    /// Excluded ports in the map.
    pub ports: BTreeSet<u16>,
    /// Flags of the pod's entry, if there is one.
    pub flags: Option<u32>,
    /// Id of the program that the pod's `sk_lookup` link runs, if it is attached to the pod's namespace.
    pub lookup: Option<u32>,
    /// Cookies of the sockets in the map.
    pub sockets: BTreeMap<Kind, u64>,
}

/// What `pod` should look like, given its present addresses.
///
/// Errors: it has no address that could be a source.
pub(crate) fn wanted(
    pod: &PodWanted,
    addresses: &[LocalAddress],
    sysctls: &[&'static str],
    lookup: Option<u32>,
    sockets: BTreeMap<Kind, u64>,
) -> io::Result<State> {
    let routes: BTreeSet<_> = [Family::V4, Family::V6]
        .into_iter()
        .filter_map(|family| source(addresses, family))
        .collect();
    if routes.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::AddrNotAvailable,
            "the pod has no global address",
        ));
    }
    let mut rules = BTreeSet::new();
    for route in &routes {
        let family = if route.source.is_ipv4() {
            Family::V4
        } else {
            Family::V6
        };
        rules.extend([Rule::Daemon(family), Rule::Redirect(family)]);
        if pod.flags.dns {
            rules.insert(Rule::Dns(family));
        }
    }
    Ok(State {
        rules,
        routes,
        sysctls: sysctls.iter().map(|name| (*name, sysctl::WANTED)).collect(),
        locals: addresses
            .iter()
            .map(|address| address.ip)
            .filter(|ip| !ip.is_loopback())
            .collect(),
        ranges: pod
            .exclude_ranges
            .iter()
            .map(|net| prefix(*net))
            .map(|(bits, ip)| (bits, ip.into()))
            .collect(),
        ports: pod.exclude_ports.iter().copied().collect(),
        flags: Some(flags(pod)),
        lookup,
        sockets,
    })
}

/// The flags of a pod's entry once it is captured.
fn flags(pod: &PodWanted) -> u32 {
    let when = |condition: bool, flag: u32| if condition { flag } else { 0 };
    Pod::CAPTURE
        | when(pod.flags.dns, Pod::DNS)
        | when(pod.flags.bypass_inbound, Pod::BYPASS_INBOUND)
        | when(!pod.exclude_ranges.is_empty(), Pod::EXCLUDED_RANGES)
        | when(!pod.exclude_ports.is_empty(), Pod::EXCLUDED_PORTS)
}

/// The first global address of the family, one of a real device before one of loopback.
fn source(addresses: &[LocalAddress], family: Family) -> Option<Route> {
    let fitting = |address: &&LocalAddress| {
        address.global
            && !address.ip.is_loopback()
            && address.ip.is_ipv4() == (family == Family::V4)
    };
    let real = addresses
        .iter()
        .filter(fitting)
        .find(|address| address.device != LOOPBACK_IFINDEX);
    real.or_else(|| addresses.iter().find(fitting))
        .map(|address| Route { source: address.ip })
}

/// What the kernel says of a pod now.
pub(crate) fn actual(
    netns: &Netns,
    proc: &Path,
    netlink: &mut Netlink,
    maps: &Maps,
    pins: &Pins,
) -> io::Result<State> {
    let cookie = netns.cookie();
    let mut sysctls = BTreeMap::new();
    for name in sysctl::ALL {
        if let Some(value) = netns.run(|| sysctl::read(proc, name))?? {
            sysctls.insert(name, value);
        }
    }
    Ok(State {
        rules: netlink.rules()?,
        routes: netlink.routes()?,
        sysctls,
        locals: maps.locals(cookie),
        ranges: maps.ranges(cookie),
        ports: maps.ports(cookie),
        flags: maps.pod(cookie).map(|pod| pod.flags),
        lookup: lookup(netns, pins),
        sockets: Kind::ALL
            .into_iter()
            .filter_map(|kind| Some((kind, maps.socket(cookie, kind)?)))
            .collect(),
    })
}

/// Id of the program that runs in the namespace by the pinned link.
pub(crate) fn lookup(netns: &Netns, pins: &Pins) -> Option<u32> {
    let link = sys::bpf::pinned(&pins.lookup(netns.cookie())).ok()?;
    let info = sys::bpf::link_info(&link).ok()?;
    match info.target {
        Target::Netns { inode, .. } if u64::from(inode) == netns.inode() => Some(info.program),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(ip: &str, device: u32, global: bool) -> LocalAddress {
        LocalAddress {
            ip: ip.parse().unwrap(),
            device,
            global,
        }
    }

    fn pod(dns: bool) -> PodWanted {
        PodWanted {
            uid: "u".into(),
            netns: Arc::new(Netns::current().unwrap()),
            netns_path: "/proc/self/ns/net".into(),
            cgroup: "/".into(),
            exclude_ranges: vec!["10.1.2.3/8".parse().unwrap(), "fd00::/16".parse().unwrap()],
            exclude_ports: vec![25],
            flags: PodFlags {
                dns,
                bypass_inbound: false,
            },
        }
    }

    #[test]
    fn families_follow_the_addresses() {
        let v4 = [
            address("127.0.0.1", 1, false),
            address("10.9.9.9", 1, true),
            address("10.0.0.2", 2, true),
        ];
        let state = wanted(&pod(true), &v4, &[], None, BTreeMap::new()).unwrap();
        assert_eq!(
            state.routes,
            [Route {
                source: "10.0.0.2".parse().unwrap()
            }]
            .into()
        );
        assert_eq!(state.rules.len(), 3);
        assert_eq!(state.locals.len(), 2);
        assert_eq!(
            state.ranges,
            [
                (104, "10.0.0.0".parse().unwrap()),
                (16, "fd00::".parse().unwrap())
            ]
            .into()
        );

        let both = [
            v4[2],
            address("fe80::1", 2, false),
            address("fd00::2", 2, true),
        ];
        let state = wanted(&pod(false), &both, &[], None, BTreeMap::new()).unwrap();
        assert_eq!(
            (state.routes.len(), state.rules.len(), state.locals.len()),
            (2, 4, 3)
        );

        assert!(wanted(&pod(true), &v4[..1], &[], None, BTreeMap::new()).is_err());
    }
}
