//! Where a pod lives on this machine: its network namespace, by the processes in its cgroup.
//!
//! Plain blocking code; when to look, and again, is left to the source.

mod proc;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sys::{Netns, NetnsId};

use self::proc::{Proc, Process};
use crate::pod::NetnsHandle;

/// Most namespaces of one pod that are looked at, those with the oldest processes first.
const NAMESPACES_MAX: usize = 16;
/// How often a pod is looked for again when its processes ended under the look.
const RACES_MAX: usize = 3;

/// A pod that is looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sought {
    /// What stands in its cgroup's name: the UID, or the hash of a static pod's configuration.
    pub key: Arc<str>,
    /// Its cgroup directory, if known.
    pub cgroup: Option<PathBuf>,
    /// Its addresses; empty while they are not known.
    pub ips: Vec<IpAddr>,
}

/// Where a pod lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The namespace, held open.
    pub netns: NetnsHandle,
    /// The file that it was opened from; its process may be gone.
    pub path: PathBuf,
}

/// Why a pod has no place now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// Its sandbox is not made yet, or all has ended.
    #[error("no process in the pod's cgroup yet")]
    NoProcess,
    /// Processes are there, all in the node's namespace or the daemon's.
    #[error("no process of the pod has a network namespace of its own yet")]
    NoNamespace,
    /// Namespaces are there, and none has an address of the pod.
    #[error("no network namespace of the pod's processes has its address {ip}")]
    NoAddress {
        /// The first of its addresses.
        ip: IpAddr,
        /// The namespaces that its processes are in.
        namespaces: Vec<NetnsId>,
    },
    /// The kernel does not let us look.
    #[error(
        "network namespace of process {pid} cannot be opened: {cause} (needed: CAP_SYS_PTRACE and CAP_SYS_ADMIN)"
    )]
    Refused {
        /// The process, as the host counts.
        pid: u32,
        /// What the kernel said.
        cause: String,
    },
}

/// Looks for pods' places in the host's procfs.
#[derive(Debug, Clone)]
pub struct Finder {
    proc: Proc,
    /// namespaces that are no pod's: the node's and the daemon's
    foreign: Vec<NetnsId>,
}

impl Finder {
    /// A finder; `host_proc`: the host's procfs.
    ///
    /// Errors: it is not there, or does not let us see the namespace of process 1.
    pub fn new(host_proc: &Path) -> io::Result<Self> {
        let proc = Proc::new(host_proc);
        // process 2 is the kernel's own, there where the procfs is really the host's
        let host = proc
            .namespace(1)
            .or_else(|error| proc.namespace(2).map_err(|_| error))?;
        let foreign = vec![host, Netns::current()?.id()];
        Ok(Self { proc, foreign })
    }

    /// The first processes of pods, by what stands in their cgroups' names, where these are in the node's own network namespace. A pod
    /// is of the node's network when the same process is named by two looks some time apart: a container runtime joins the cgroup first.
    pub fn in_node_namespace(&self) -> HashMap<String, u32> {
        let first = |processes: Vec<Process>| processes.into_iter().min_by_key(Process::age);
        let all = self.proc.by_key().into_iter();
        all.filter_map(|(key, processes)| Some((key, first(processes)?.pid)))
            .filter(|(_, pid)| self.proc.namespace(*pid).ok() == self.foreign.first().copied())
            .collect()
    }

    /// Looks for all of these pods, in the order given.
    pub fn find(&self, sought: &[Sought]) -> Vec<Result<Place, Missing>> {
        let mut places: Vec<Option<Result<Place, Missing>>> =
            sought.iter().map(|one| self.quick(one)).collect();
        if places.iter().any(Option::is_none) {
            let all = self.proc.by_key();
            for (one, place) in sought.iter().zip(&mut places) {
                if place.is_none() {
                    let processes = all.get(&*one.key).map_or(&[][..], Vec::as_slice);
                    *place = Some(self.choose(one, processes));
                }
            }
        }
        places
            .into_iter()
            .map(|place| place.unwrap_or(Err(Missing::NoProcess)))
            .collect()
    }

    /// Whether the namespace has one of these addresses; true when there are none to ask for.
    pub fn owns(&self, netns: &NetnsHandle, ips: &[IpAddr]) -> bool {
        // An address can be bound exactly where it is local; nothing is sent.
        let bind = |ip: &IpAddr| UdpSocket::bind(SocketAddr::new(*ip, 0)).is_ok();
        ips.is_empty() || netns.0.run(|| ips.iter().any(bind)).unwrap_or(false)
    }

    /// By the cgroup's own list of processes. None = that does not tell: processes outside of our pid namespace are not named there.
    fn quick(&self, sought: &Sought) -> Option<Result<Place, Missing>> {
        let cgroup = sought.cgroup.as_ref()?;
        if !proc::populated(cgroup) {
            return Some(Err(Missing::NoProcess));
        }
        for _ in 0..RACES_MAX {
            let pids = proc::pids_below(cgroup)?;
            let named = pids
                .into_iter()
                .filter_map(|pid| self.proc.process(pid, &sought.key));
            let processes: Vec<Process> = named.collect();
            if let Ok(place) = self.choose(sought, &processes) {
                return Some(Ok(place));
            }
        }
        None
    }

    /// The namespace of the process that started first, among those that have an address of the pod.
    fn choose(&self, sought: &Sought, processes: &[Process]) -> Result<Place, Missing> {
        let (candidates, mut missing) = self.candidates(processes);
        for (id, process) in &candidates {
            match self.open(sought, *id, process) {
                Ok(Some(place)) if self.owns(&place.netns, &sought.ips) => return Ok(place),
                Ok(Some(_)) => {
                    missing = sought.ips.first().map_or(missing, |ip| Missing::NoAddress {
                        ip: *ip,
                        namespaces: candidates.iter().map(|(id, _)| *id).collect(),
                    });
                }
                Ok(None) => {}
                Err(error) => missing = refused(process, &error),
            }
        }
        Err(missing)
    }

    /// Namespaces with the first process of each, the oldest first; and what is missing if none of them will do.
    fn candidates<'a>(&self, processes: &'a [Process]) -> (Vec<(NetnsId, &'a Process)>, Missing) {
        let mut missing = Missing::NoProcess;
        let mut first: HashMap<NetnsId, &Process> = HashMap::new();
        for process in processes {
            match self.proc.namespace(process.pid) {
                Ok(netns) if self.foreign.contains(&netns) => {
                    if missing == Missing::NoProcess {
                        missing = Missing::NoNamespace;
                    }
                }
                Ok(netns) => {
                    let known = first.entry(netns).or_insert(process);
                    if process.age() < known.age() {
                        *known = process;
                    }
                }
                Err(error) if is_gone(&error) => {}
                Err(error) => missing = refused(process, &error),
            }
        }
        let mut candidates: Vec<(NetnsId, &Process)> = first.into_iter().collect();
        candidates.sort_by_key(|(_, process)| process.age());
        candidates.truncate(NAMESPACES_MAX);
        (candidates, missing)
    }

    /// Opens the namespace; none when the process ended, or its number is another's by now.
    fn open(&self, sought: &Sought, id: NetnsId, process: &Process) -> io::Result<Option<Place>> {
        let path = self.proc.namespace_path(process.pid);
        let netns = match Netns::open(&path) {
            Ok(netns) => netns,
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let same = netns.id() == id
            && self.proc.process(process.pid, &sought.key).as_ref() == Some(process);
        Ok(same.then(|| Place {
            netns: NetnsHandle(Arc::new(netns)),
            path,
        }))
    }
}

fn refused(process: &Process, error: &io::Error) -> Missing {
    Missing::Refused {
        pid: process.pid,
        cause: error.to_string(),
    }
}

/// The process has ended.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ESRCH)
}

#[cfg(test)]
mod tests;
