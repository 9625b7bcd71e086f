//! The state of capture in the kernel: starting or taking it over, and enrolling, checking, repairing and releasing pods.
//!
//! Everything is pinned, so that it outlives the process: enrolled pods fail closed. Leaves opening and serving sockets to others.

mod check;
mod former;
mod leave;
mod repair;
mod start;

pub use check::{Drift, Survey};
pub use leave::{Released, release_pinned};

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;
use redirect_common::{Kind, Pod, Saved, SocketKey};
use sys::{Netns, NetnsId};
use tracing::{info, warn};

use crate::error::{EnrollError, Step};
use crate::kubelet::Kubelet;
use crate::maps::Maps;
use crate::netlink::{Family, Netlink, Table};
use crate::own_cgroup::is_below;
use crate::pins::{Kept, Pins};
use crate::pod::{self, PodWanted, State};
use crate::programs::{self, LOOKUP_PROGRAM};
use crate::saved;
use crate::sockets::PodSockets;
use crate::sysctl;

/// What capture needs to know at start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Cgroup v2 directory that holds all pods to be captured.
    pub cgroup: PathBuf,
    /// Directory for pins, on a bpf file system (one is mounted at `/sys/fs/bpf` when missing there).
    pub pins: PathBuf,
    /// Id of the daemon's own cgroup, whose processes are never captured (see [`crate::own_cgroup::settle`]).
    pub daemon_cgroup_id: u64,
    /// Sources that reach applications directly: the node, kubelet's probes.
    pub exempt_sources: Vec<IpNet>,
    /// The host's procfs: shows all processes of the node, and takes writes to sysctls. `/proc` outside of a container.
    pub host_proc: PathBuf,
    /// The daemon's own network namespace is the only pod, and its processes are told by the namespace alone: a machine of its own.
    pub dedicated: bool,
    /// Cgroup v2 directory of kubelet, whose connections reach applications directly; none = found by the process's name.
    pub kubelet_cgroup: Option<PathBuf>,
}

/// A pod found enrolled by a predecessor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopted {
    /// Cookie of its network namespace: what [`Capture::release`] takes.
    pub cookie: u64,
    /// Its UID.
    pub uid: String,
    /// Where its namespace was opened.
    pub netns_path: PathBuf,
}

struct Enrolled {
    pod: PodWanted,
    sockets: BTreeMap<Kind, u64>,
    /// Id of the `sk_lookup` program loaded for it.
    lookup: Option<u32>,
    saved: Saved,
    /// What was made true last.
    applied: Option<State>,
}

/// Capture on this machine, as owned by this process until a successor takes it over.
pub struct Capture {
    pub(crate) config: Config,
    pins: Pins,
    pub(crate) maps: Maps,
    programs: Vec<OwnedFd>,
    kubelet: Kubelet,
    generation: u64,
    own_netns: NetnsId,
    pods: BTreeMap<u64, Enrolled>,
    /// Namespaces of pods that are retired and not yet released.
    retired: BTreeMap<u64, Arc<Netns>>,
    /// Where the cgroups are that the kernel was told about, by id.
    pub(crate) cgroups: HashMap<u64, PathBuf>,
    /// All pinned maps, to be pinned again should a pin vanish.
    kept: Vec<Kept>,
}

impl Capture {
    /// Whether a successor owns capture now: this process should drain, and change nothing any more.
    pub fn superseded(&self) -> bool {
        self.maps
            .owner()
            .is_ok_and(|owner| owner != self.generation)
    }

    /// Verdicts counted by the kernel programs since they were first loaded, by name.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        self.maps.counters()
    }

    /// UIDs and cookies of the pods that this process has enrolled.
    pub fn enrolled(&self) -> impl Iterator<Item = (&str, u64)> {
        self.pods
            .iter()
            .map(|(cookie, entry)| (entry.pod.uid.as_str(), *cookie))
    }

    /// Pods that a predecessor enrolled and this process has not (yet).
    pub fn adopted(&self) -> Vec<Adopted> {
        let known = self.maps.saved.iter().flatten().filter(|(cookie, _)| {
            !self.pods.contains_key(cookie) && !self.retired.contains_key(cookie)
        });
        known
            .map(|(cookie, entry)| Adopted {
                cookie,
                uid: saved::uid(&entry),
                netns_path: saved::netns_path(&entry),
            })
            .collect()
    }

    /// Redirects a pod's traffic to `sockets`, or brings an enrolled pod up to date.
    ///
    /// The order keeps the pod closed: the daemon's sockets are ready before any packet is redirected, and `connect()` is captured only when
    /// everything else stands. A pod not enrolled before is left as it was found when a step fails.
    pub fn enroll(&mut self, pod: &PodWanted, sockets: &PodSockets) -> Result<(), EnrollError> {
        let fail = |step| {
            move |cause| EnrollError {
                uid: pod.uid.clone(),
                step,
                cause,
            }
        };
        self.admit(pod).map_err(fail(Step::Admission))?;
        let cookie = pod.netns.cookie();
        let known = self.maps.saved.get(&cookie, 0).ok();
        let record = match known {
            Some(former) => saved::renew(&former, pod),
            None => pod
                .netns
                .run(|| saved::take(&self.config.host_proc, pod))
                .and_then(|result| result),
        };
        let record = record.map_err(fail(Step::Saving))?;
        let result = self.bring_up(pod, sockets, record);
        match &result {
            Ok(()) => info!(pod = %pod.uid, cookie, "pod captured"),
            Err(_) if known.is_some() || self.pods.contains_key(&cookie) => {}
            Err(_) => {
                if let Some((step, cause)) = self.undo(cookie, Some(&pod.netns), Some(&record)) {
                    warn!(pod = %pod.uid, %step, %cause, "undoing a failed enrolment failed");
                }
            }
        }
        result.map_err(|(step, cause)| fail(step)(cause))
    }

    fn admit(&self, pod: &PodWanted) -> io::Result<()> {
        let refuse = |text: String| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        match self.pods.get(&pod.netns.cookie()) {
            Some(entry) if entry.pod.uid != pod.uid => {
                let other = &entry.pod.uid;
                let text = format!("its network namespace is already captured for pod {other}");
                return refuse(text);
            }
            _ => {}
        }
        let is_own = pod.netns.id() == self.own_netns;
        let cgroup = match (&pod.cgroup, self.config.dedicated) {
            (None, true) if is_own => return Ok(()),
            (_, true) => return refuse("it is not the daemon's own network namespace".into()),
            (None, false) => return refuse("its cgroup is not known".into()),
            (Some(_), false) if is_own => {
                return refuse("its network namespace is the daemon's own".into());
            }
            (Some(cgroup), false) => cgroup,
        };
        let unreadable = |cause: io::Error| {
            let text = format!("its cgroup {}: {cause}", cgroup.display());
            io::Error::new(cause.kind(), text)
        };
        if !is_below(cgroup, &self.config.cgroup).map_err(unreadable)? {
            let (cgroup, capture) = (cgroup.display(), self.config.cgroup.display());
            return refuse(format!(
                "its cgroup {cgroup} is not below the capture cgroup {capture}"
            ));
        }
        if sys::cgroup::id(cgroup)? == self.config.daemon_cgroup_id {
            let cgroup = cgroup.display();
            return refuse(format!("its cgroup {cgroup} is the daemon's own"));
        }
        Ok(())
    }

    fn bring_up(
        &mut self,
        pod: &PodWanted,
        sockets: &PodSockets,
        record: Saved,
    ) -> Result<(), (Step, io::Error)> {
        let cookie = pod.netns.cookie();
        self.maps
            .saved
            .insert(cookie, record, 0)
            .map_err(|error| (Step::Saving, io::Error::other(error)))?;
        let offered = offered(pod, sockets).map_err(at(Step::Sockets))?;
        // sockets that serve the pod now go only when everything else stands, so that a failure changes nothing for it
        let served = self.maps.socket(cookie, Kind::Outbound).is_some();
        if !served {
            self.insert_sockets(cookie, &offered)
                .map_err(at(Step::Sockets))?;
        }
        let cookies = offered
            .iter()
            .map(|(kind, socket)| Ok((*kind, sys::socket::cookie(socket)?)));
        let cookies = cookies
            .collect::<io::Result<BTreeMap<_, _>>>()
            .map_err(at(Step::Sockets))?;
        let lookup = self.pods.get(&cookie).and_then(|entry| entry.lookup);
        let mut entry = Enrolled {
            pod: pod.clone(),
            sockets: cookies,
            lookup,
            saved: record,
            applied: self
                .pods
                .get(&cookie)
                .and_then(|entry| entry.applied.clone()),
        };
        self.apply(&mut entry)?;
        if served {
            self.insert_sockets(cookie, &offered)
                .map_err(at(Step::Sockets))?;
        }
        self.retired.remove(&cookie);
        self.pods.insert(cookie, entry);
        Ok(())
    }

    fn insert_sockets(&self, cookie: u64, offered: &[(Kind, BorrowedFd<'_>)]) -> io::Result<()> {
        offered.iter().try_for_each(|(kind, socket)| {
            self.maps
                .sockets
                .insert(&SocketKey::new(cookie, *kind).bytes(), socket)
        })
    }

    /// Makes everything but the sockets as it should be. Safe to repeat.
    fn apply(&mut self, entry: &mut Enrolled) -> Result<(), (Step, io::Error)> {
        let netns = entry.pod.netns.clone();
        let cookie = netns.cookie();
        let mut netlink = Netlink::open(&netns).map_err(at(Step::Addresses))?;
        let wanted = self
            .wanted(entry, &mut netlink)
            .map_err(at(Step::Addresses))?;
        self.apply_maps(cookie, &wanted).map_err(at(Step::Maps))?;
        if entry.lookup.is_none() || pod::lookup(&netns, &self.pins) != entry.lookup {
            entry.lookup = Some(self.attach_lookup(&netns).map_err(at(Step::Lookup))?);
        }
        self.leave_former(cookie).map_err(at(Step::Lookup))?;
        apply_routes(&mut netlink, &wanted).map_err(at(Step::Routes))?;
        apply_rules(&mut netlink, &wanted).map_err(at(Step::Rules))?;
        let set = netns.run(|| {
            wanted
                .sysctls
                .iter()
                .try_for_each(|(name, value)| sysctl::write(&self.config.host_proc, name, *value))
        });
        set.and_then(|result| result).map_err(at(Step::Sysctls))?;
        self.maps
            .set_pod(cookie, wanted.flags)
            .map_err(at(Step::Switch))?;
        self.write_enrolled(entry.pod.cgroup.as_deref(), cookie)
            .map_err(at(Step::Cgroup))?;
        entry.applied = Some(wanted);
        Ok(())
    }

    fn wanted(&self, entry: &Enrolled, netlink: &mut Netlink) -> io::Result<State> {
        let addresses = netlink.addresses()?;
        let sysctls = saved::sysctls(&entry.saved);
        let names: Vec<_> = sysctls.iter().map(|(name, _)| *name).collect();
        let mut wanted = pod::wanted(
            &entry.pod,
            &addresses,
            &names,
            entry.lookup,
            entry.sockets.clone(),
            entry.applied.as_ref(),
        )?;
        wanted.cgroup = self.cgroup_to_tell(&entry.pod);
        Ok(wanted)
    }

    /// Addresses, exclusions and flags; the switch for `connect()` stays as it is.
    fn apply_maps(&mut self, cookie: u64, wanted: &State) -> io::Result<()> {
        self.maps.set_locals(cookie, &wanted.locals)?;
        self.maps.set_ranges(cookie, &wanted.ranges)?;
        self.maps.set_ports(cookie, &wanted.ports)?;
        self.maps.set_open_ports(cookie, &wanted.open_ports)?;
        for kind in Kind::ALL
            .into_iter()
            .filter(|kind| !wanted.sockets.contains_key(kind))
        {
            self.maps.remove_socket(cookie, kind)?;
        }
        let switch = self
            .maps
            .pod(cookie)
            .map_or(0, |pod| pod.flags & Pod::CAPTURE);
        let flags = wanted.flags.unwrap_or(0) & !Pod::CAPTURE;
        self.maps.set_pod(cookie, Some(flags | switch))
    }

    /// Loads an instance of the program and puts it on the pod's link, in place of a predecessor's where there is one.
    fn attach_lookup(&self, netns: &Netns) -> io::Result<u32> {
        let object = programs::load_lookup(&self.pins, netns.cookie()).map_err(io::Error::other)?;
        let program = programs::fd(&object, LOOKUP_PROGRAM)?;
        let path = self.pins.lookup(netns.cookie());
        let there = pod::lookup(netns, &self.pins).is_some();
        let updated = there
            && sys::bpf::pinned(&path)
                .and_then(|link| sys::bpf::link_update(link.as_fd(), program.as_fd()))
                .is_ok();
        if !updated {
            let link = sys::bpf::link(program.as_fd(), netns.as_fd(), sys::bpf::Attach::SkLookup)?;
            self.pins.replace(&link, &path)?;
        }
        sys::bpf::program_id(&program)
    }
}

/// The sockets that the pod's traffic is to come to, by kind.
fn offered<'a>(
    pod: &PodWanted,
    sockets: &'a PodSockets,
) -> io::Result<Vec<(Kind, BorrowedFd<'a>)>> {
    if pod.flags.dns && sockets.dns.is_none() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "DNS is captured, but there is no DNS socket",
        ));
    }
    let mut all = vec![
        (Kind::Outbound, sockets.outbound.as_fd()),
        (Kind::Hbone, sockets.hbone.as_fd()),
        (Kind::Plaintext, sockets.plaintext.as_fd()),
    ];
    if let Some(dns) = sockets.dns.as_ref().filter(|_| pod.flags.dns) {
        all.push((Kind::Dns, dns.questions.as_fd()));
    }
    Ok(all)
}

fn at(step: Step) -> impl Fn(io::Error) -> (Step, io::Error) {
    move |cause| (step, cause)
}

fn apply_routes(netlink: &mut Netlink, wanted: &State) -> io::Result<()> {
    let Table {
        ours: actual,
        strays,
        ..
    } = netlink.all_routes()?;
    for route in wanted.routes.difference(&actual) {
        netlink.set_route(*route)?;
    }
    for stray in &strays {
        netlink.remove_stray(stray)?;
    }
    for family in [Family::V4, Family::V6] {
        let here =
            |route: &&crate::netlink::Route| route.source.is_ipv4() == (family == Family::V4);
        if wanted.routes.iter().find(here).is_none() && actual.iter().find(here).is_some() {
            netlink.remove_route(family)?;
        }
    }
    Ok(())
}

fn apply_rules(netlink: &mut Netlink, wanted: &State) -> io::Result<()> {
    let Table {
        ours: actual,
        strays,
        ..
    } = netlink.all_rules()?;
    for stray in &strays {
        netlink.remove_stray(stray)?;
    }
    wanted
        .rules
        .difference(&actual)
        .try_for_each(|rule| netlink.add_rule(*rule))?;
    actual
        .difference(&wanted.rules)
        .try_for_each(|rule| netlink.remove_rule(*rule))
}
