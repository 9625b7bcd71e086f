//! What one pod should look like to the kernel, and what it does look like. Leaves changing anything to [`crate::capture`].

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;
use redirect_common::{CgroupState, Kind, LOOPBACK_IFINDEX, Pod};
use sys::Netns;
use sys::bpf::{Attach, Target};

use crate::diff::{Cure, DriftKind};
use crate::maps::{Entries, Maps, Tables, prefix};
use crate::netlink::{Family, LocalAddress, Netlink, Route, Rule, Stray};
use crate::pins::Pins;
use crate::processes::{Elsewhere, Outside, Processes};
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
    /// The pod's cgroup v2 directory, at or below the capture cgroup. None for the daemon's own namespace ([`crate::Config::dedicated`]):
    /// every process in it is the pod, whatever its cgroup.
    pub cgroup: Option<PathBuf>,
    /// Destinations that are left alone.
    pub exclude_ranges: Vec<IpNet>,
    /// Destination ports that are left alone.
    pub exclude_ports: Vec<u16>,
    /// Own ports at which whoever listens is reached directly, by anybody.
    pub open_ports: Vec<u16>,
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
    /// Open ports in the map.
    pub open_ports: BTreeSet<u16>,
    /// Flags of the pod's entry, if there is one.
    pub flags: Option<u32>,
    /// Id of the program that the pod's `sk_lookup` link runs, if it is attached to the pod's namespace.
    pub lookup: Option<u32>,
    /// Cookies of the sockets in the map.
    pub sockets: BTreeMap<Kind, u64>,
    /// Cookie of the namespace that the pod's cgroup is enrolled with, as the kernel was told.
    pub cgroup: Option<u64>,
    /// What is in the way, or elsewhere: nothing of it is ever wanted.
    pub others: BTreeSet<Other>,
}

/// Something that should not be there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Other {
    /// What it counts as.
    pub kind: DriftKind,
    /// What mends it.
    pub cure: Cure,
    /// What it is, for a human.
    pub what: String,
}

impl Other {
    fn new(kind: DriftKind, what: String) -> Self {
        Self {
            kind,
            cure: kind.cure(),
            what,
        }
    }
}

/// What `pod` should look like, given its present addresses.
///
/// - `former`: what was wanted of it before
///
/// Errors: it has no address that could be a source, and never had one.
pub(crate) fn wanted(
    pod: &PodWanted,
    addresses: &[LocalAddress],
    sysctls: &[&'static str],
    lookup: Option<u32>,
    sockets: BTreeMap<Kind, u64>,
    former: Option<&State>,
) -> io::Result<State> {
    let routes: BTreeSet<_> = [Family::V4, Family::V6]
        .into_iter()
        .filter_map(|family| source(addresses, family))
        .collect();
    let mut rules = BTreeSet::new();
    if routes.is_empty() {
        // one that loses its addresses (as it does at its end) stays closed by the rules it has
        let former = former.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::AddrNotAvailable,
                "the pod has no global address",
            )
        })?;
        rules.clone_from(&former.rules);
    }
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
        open_ports: pod.open_ports.iter().copied().collect(),
        flags: Some(flags(pod)),
        lookup,
        sockets,
        cgroup: None,
        others: BTreeSet::new(),
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
        | when(!pod.open_ports.is_empty(), Pod::OPEN_PORTS)
        | when(pod.cgroup.is_none(), Pod::WHOLE)
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

/// What reading a pod back needs.
pub(crate) struct Sight<'a> {
    /// The shared maps.
    pub maps: &'a Maps,
    /// Entries of all pods, when they have been read; else those that matter are asked for.
    pub tables: Option<&'a Tables>,
    /// The pins.
    pub pins: &'a Pins,
    /// The host's procfs.
    pub proc: &'a Path,
    /// What the programs are attached to.
    pub cgroup: &'a Path,
    /// The node's processes.
    pub processes: Processes<'a>,
    /// Inodes of the namespaces of all enrolled pods.
    pub enrolled: HashSet<u64>,
}

/// What the kernel says of a pod now.
///
/// - `wanted`, `former`: what should be there, and what may still be
pub(crate) fn actual(
    sight: &Sight<'_>,
    pod: &PodWanted,
    netlink: &mut Netlink,
    wanted: &State,
    former: Option<&State>,
) -> io::Result<State> {
    let (netns, maps) = (&pod.netns, sight.maps);
    let cookie = netns.cookie();
    let mut sysctls = BTreeMap::new();
    netns.run(|| {
        for name in sysctl::ALL {
            if let Some(value) = sysctl::read(sight.proc, name)? {
                sysctls.insert(name, value);
            }
        }
        Ok::<_, io::Error>(())
    })??;
    let entries = match sight.tables {
        Some(tables) => tables.of(cookie),
        None => maps.entries(cookie, &asked(wanted, former)),
    };
    let (rules, routes) = (netlink.all_rules()?, netlink.all_routes()?);
    let strays = |kind, strays: &[Stray]| -> Vec<_> {
        let what = strays.iter().map(|stray| stray.text.clone());
        what.map(|what| Other::new(kind, what)).collect()
    };
    let mut others: BTreeSet<_> = strays(DriftKind::Rule, &rules.strays).into_iter().collect();
    others.extend(strays(DriftKind::Route, &routes.strays));
    let foreign = rules.foreign.into_iter();
    others.extend(foreign.map(|what| Other::new(DriftKind::Foreign, what)));
    others.extend(other_programs(netns, wanted.lookup));
    others.extend(elsewhere(sight, pod));
    Ok(State {
        rules: rules.ours,
        routes: routes.ours,
        sysctls,
        locals: entries.locals,
        ranges: entries.ranges,
        ports: entries.ports,
        open_ports: entries.open_ports,
        flags: maps.pod(cookie).map(|pod| pod.flags),
        lookup: lookup(netns, sight.pins),
        sockets: Kind::ALL
            .into_iter()
            .filter_map(|kind| Some((kind, maps.socket(cookie, kind)?)))
            .collect(),
        cgroup: cgroup_told(maps, pod, wanted),
        others,
    })
}

fn asked(wanted: &State, former: Option<&State>) -> Entries {
    let mut asked = Entries {
        locals: wanted.locals.clone(),
        ranges: wanted.ranges.clone(),
        ports: wanted.ports.clone(),
        open_ports: wanted.open_ports.clone(),
    };
    if let Some(former) = former {
        asked.locals.extend(&former.locals);
        asked.ranges.extend(&former.ranges);
        asked.ports.extend(&former.ports);
        asked.open_ports.extend(&former.open_ports);
    }
    asked
}

/// Cookie of the namespace that the pod's cgroup is told to be enrolled with; of one that is gone, what is wanted.
fn cgroup_told(maps: &Maps, pod: &PodWanted, wanted: &State) -> Option<u64> {
    wanted.cgroup?;
    let Ok(id) = sys::cgroup::id(pod.cgroup.as_deref()?) else {
        return wanted.cgroup;
    };
    match maps.cgroup(id) {
        Some(CgroupState::Enrolled(cookie)) => Some(cookie),
        _ => None,
    }
}

/// `sk_lookup` programs in the pod's namespace that are not ours: they may hand arrivals elsewhere.
fn other_programs(netns: &Netns, ours: Option<u32>) -> Vec<Other> {
    let attached = sys::bpf::probe::query(netns.as_fd(), Attach::SkLookup as u32);
    let programs = attached.map(|attached| attached.programs);
    let others = programs.unwrap_or_default().into_iter();
    others
        .filter(|program| Some(*program) != ours)
        .map(|program| {
            let what = format!("sk_lookup program {program} of another");
            Other::new(DriftKind::Foreign, what)
        })
        .collect()
}

/// The pod's processes, or the path to its namespace, are elsewhere.
fn elsewhere(sight: &Sight<'_>, pod: &PodWanted) -> Vec<Other> {
    let mut found = Vec::new();
    let (id, path) = (pod.netns.id(), &pod.netns_path);
    // the file of a process says where that process is, whosever it is by now
    let of_process = path.starts_with(sight.proc) || path.starts_with("/proc");
    if let Some(meta) = fs::metadata(path).ok().filter(|_| !of_process)
        && meta.dev() == id.dev
        && meta.ino() != id.inode
        // one that is enrolled already takes this one's place just now
        && !sight.enrolled.contains(&meta.ino())
    {
        let path = path.display();
        found.push(Other {
            kind: DriftKind::Netns,
            cure: Cure::Sockets,
            what: format!("{path} is another namespace than the one enrolled"),
        });
    }
    if let Some(Elsewhere {
        count,
        right,
        pid,
        inode,
    }) = pod
        .cgroup
        .as_deref()
        .and_then(|cgroup| sight.processes.elsewhere(cgroup, id))
    {
        let enrolled = id.inode;
        let what = format!(
            "{count} of its processes are not in net:[{enrolled}] ({right} are): {pid} is in net:[{inode}]"
        );
        found.push(Other::new(DriftKind::Netns, what));
    }
    let is_machine = pod.cgroup.is_none();
    if let Some(Outside { count, pid, path }) = is_machine
        .then(|| sight.processes.outside(sight.cgroup, id))
        .flatten()
    {
        found.push(Other {
            kind: DriftKind::Cgroup,
            cure: Cure::Human,
            what: format!(
                "{count} processes of this network namespace are not below {}, where they would be captured: {pid} is in {}; CAPTURE_CGROUP must hold all of them",
                sight.cgroup.display(),
                path.display()
            ),
        });
    }
    found
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
            cgroup: Some("/".into()),
            exclude_ranges: vec!["10.1.2.3/8".parse().unwrap(), "fd00::/16".parse().unwrap()],
            exclude_ports: vec![25],
            open_ports: Vec::new(),
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
        let state = wanted(&pod(true), &v4, &[], None, BTreeMap::new(), None).unwrap();
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
        let state = wanted(&pod(false), &both, &[], None, BTreeMap::new(), None).unwrap();
        assert_eq!(
            (state.routes.len(), state.rules.len(), state.locals.len()),
            (2, 4, 3)
        );

        assert!(wanted(&pod(true), &v4[..1], &[], None, BTreeMap::new(), None).is_err());
    }
}
