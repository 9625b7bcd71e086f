//! Which processes are in a pod's cgroup, and whether they are in the network namespace that was enrolled.
//!
//! A process elsewhere is not captured, whatever all else says. Leaves what follows from it to others.
//! Source: cgroups(7), proc(5) (`cgroup`, `stat`, `uptime`).

use std::cell::OnceCell;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use sys::NetnsId;

use crate::own_cgroup;

/// Levels below a pod's cgroup that are looked at.
const DEPTH_MAX: usize = 8;
/// Cgroups of one pod that are looked at.
const CGROUPS_MAX: usize = 1024;
/// Processes of one pod that are looked at.
const OF_POD_MAX: usize = 4096;
/// Processes of the node that are looked at, where they have to be told by their cgroup.
const OF_NODE_MAX: usize = 131_072;
/// A process that is younger may still be on its way: a container runtime puts it into the cgroup first.
const SETTLED_SECONDS: f64 = 2.0;
/// `USER_HZ`: the unit of times in procfs, on all architectures that matter.
const TICKS_PER_SECOND: f64 = 100.0;
/// Place of the time of start in `stat`, counted from the field after the command.
const START_TIME: usize = 19;

/// The processes of the node, as one procfs shows them.
pub(crate) struct Processes<'a> {
    proc: &'a Path,
    all: &'a AllProcesses,
}

/// All processes of the node with their cgroup's path, once that was needed.
pub(crate) type AllProcesses = OnceCell<Vec<(u32, PathBuf)>>;

/// Processes of a pod that are not where they should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Elsewhere {
    /// How many.
    pub count: usize,
    /// How many are where they should be.
    pub right: usize,
    /// One of them.
    pub pid: u32,
    /// Inode of the namespace that it is in.
    pub inode: u64,
}

/// Processes of a network namespace that the programs at the capture cgroup do not see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outside {
    /// How many.
    pub count: usize,
    /// One of them.
    pub pid: u32,
    /// Its cgroup, as the procfs shows it.
    pub path: PathBuf,
}

impl<'a> Processes<'a> {
    /// - `all`: where they are kept for the next look, should they have to be read
    pub fn new(proc: &'a Path, all: &'a AllProcesses) -> Self {
        Self { proc, all }
    }

    /// Those of the cgroup, or below it, that have been in another network namespace for a while.
    pub fn elsewhere(&self, cgroup: &Path, netns: NetnsId) -> Option<Elsewhere> {
        let mut found: Option<Elsewhere> = None;
        let mut right = 0;
        for pid in self.of(cgroup) {
            let Ok(meta) = fs::metadata(self.proc.join(format!("{pid}/ns/net"))) else {
                // gone, or about to
                continue;
            };
            let inode = meta.ino();
            if (meta.dev(), inode) == (netns.dev, netns.inode) {
                right += 1;
            } else if let Some(found) = &mut found {
                found.count += 1;
            } else if self.has_settled(pid) {
                found = Some(Elsewhere {
                    count: 1,
                    right: 0,
                    pid,
                    inode,
                });
            }
        }
        found.map(|found| Elsewhere { right, ..found })
    }

    /// Those of the network namespace that have been elsewhere than below the cgroup for a while; daemons do not count.
    pub fn outside(&self, cgroup: &Path, netns: NetnsId) -> Option<Outside> {
        if sys::cgroup::id(cgroup).is_ok_and(|id| id == own_cgroup::TOP_ID) {
            return None;
        }
        let mounts = sys::cgroup::mounts().unwrap_or_default();
        let is_below = |path: &Path| {
            mounts.iter().any(|mount| {
                let inside = path.strip_prefix(&mount.root);
                inside.is_ok_and(|inside| mount.point.join(inside).starts_with(cgroup))
            })
        };
        let mut found: Option<Outside> = None;
        for (pid, path) in read_all(self.proc) {
            let net = fs::metadata(self.proc.join(format!("{pid}/ns/net")));
            let is_here =
                net.is_ok_and(|meta| (meta.dev(), meta.ino()) == (netns.dev, netns.inode));
            if !is_here
                || is_below(&path)
                || own_cgroup::is_daemons(&path)
                || !self.has_settled(pid)
            {
                continue;
            }
            match &mut found {
                Some(found) => found.count += 1,
                None => {
                    found = Some(Outside {
                        count: 1,
                        pid,
                        path,
                    })
                }
            }
        }
        found
    }

    /// Processes in the cgroup or below it, by the ids of the procfs.
    fn of(&self, cgroup: &Path) -> Vec<u32> {
        let mut pids = Vec::new();
        let mut cgroups = vec![(cgroup.to_owned(), 0)];
        let mut looked = 0;
        while let Some((path, depth)) = cgroups.pop() {
            pids.extend(sys::cgroup::processes(&path).unwrap_or_default());
            looked += 1;
            if depth == DEPTH_MAX || looked + cgroups.len() >= CGROUPS_MAX {
                continue;
            }
            let below = fs::read_dir(&path).into_iter().flatten().flatten();
            cgroups.extend(
                below
                    .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                    .take(CGROUPS_MAX - looked)
                    .map(|entry| (entry.path(), depth + 1)),
            );
        }
        // 0 is a process that this one's pid namespace does not show
        if pids.contains(&0) {
            pids = self.by_path(cgroup);
        }
        pids.truncate(OF_POD_MAX);
        pids
    }

    /// The same, told by what the procfs says of each process.
    fn by_path(&self, cgroup: &Path) -> Vec<u32> {
        let mounts = sys::cgroup::mounts().unwrap_or_default();
        let inside = mounts
            .iter()
            .find_map(|mount| cgroup.strip_prefix(&mount.point).ok());
        let wanted = names(inside.unwrap_or(cgroup));
        let all = self.all.get_or_init(|| read_all(self.proc));
        let inside =
            |(pid, path): &(u32, PathBuf)| is_within(&names(path), &wanted).then_some(*pid);
        all.iter().filter_map(inside).collect()
    }

    /// Whether the process has been there for some time.
    fn has_settled(&self, pid: u32) -> bool {
        let read = |name: &str| fs::read_to_string(self.proc.join(name)).ok();
        let age = || {
            let stat = read(&format!("{pid}/stat"))?;
            // the command may hold anything, but ends with the last bracket
            let (_, after) = stat.rsplit_once(") ")?;
            let start: f64 = after.split(' ').nth(START_TIME)?.parse().ok()?;
            let uptime = read("uptime")?;
            let now: f64 = uptime.split(' ').next()?.parse().ok()?;
            Some(now - start / TICKS_PER_SECOND)
        };
        age().is_some_and(|age| age >= SETTLED_SECONDS)
    }
}

fn read_all(proc: &Path) -> Vec<(u32, PathBuf)> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.take(OF_NODE_MAX)
        .filter_map(|pid| {
            let text = fs::read_to_string(proc.join(format!("{pid}/cgroup"))).ok()?;
            let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
            Some((pid, PathBuf::from(path)))
        })
        .collect()
}

/// The named parts of a path: what a cgroup namespace shows of a cgroup outside of it begins with `/..`.
fn names(path: &Path) -> Vec<&std::ffi::OsStr> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name),
            _ => None,
        })
        .collect()
}

/// Whether a process's cgroup is `wanted` or below it, of whose path the procfs may show the last parts only.
fn is_within(path: &[&std::ffi::OsStr], wanted: &[&std::ffi::OsStr]) -> bool {
    let Some(last) = wanted.last() else {
        return true;
    };
    (0..path.len()).any(|at| {
        path[at] == *last
            && path[..at]
                .iter()
                .rev()
                .zip(wanted[..wanted.len() - 1].iter().rev())
                .all(|(a, b)| a == b)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_compared_as_far_as_they_are_shown() {
        let cases = [
            (
                "/kubepods.slice/pod1.slice/c1",
                "kubepods.slice/pod1.slice",
                true,
            ),
            (
                "/kubepods.slice/pod1.slice",
                "kubepods.slice/pod1.slice",
                true,
            ),
            ("/../../pod1.slice/c1", "kubepods.slice/pod1.slice", true),
            (
                "/kubepods.slice/pod2.slice/c1",
                "kubepods.slice/pod1.slice",
                false,
            ),
            (
                "/other.slice/pod1.slice/c1",
                "kubepods.slice/pod1.slice",
                false,
            ),
            ("/", "kubepods.slice/pod1.slice", false),
            ("/", "", true),
        ];
        for (path, wanted, expected) in cases {
            let (path, wanted) = (Path::new(path), Path::new(wanted));
            assert_eq!(
                is_within(&names(path), &names(wanted)),
                expected,
                "{path:?}"
            );
        }
    }

    #[test]
    fn this_process_is_found_either_way_and_is_at_home() {
        let own = sys::cgroup::own_path().unwrap();
        let mount = sys::cgroup::mounts().unwrap().remove(0);
        let cgroup = mount.point.join(own.trim_start_matches('/'));
        let all = OnceCell::new();
        let processes = Processes::new(Path::new("/proc"), &all);
        let pid = std::process::id();
        assert!(processes.of(&cgroup).contains(&pid));
        assert!(processes.by_path(&cgroup).contains(&pid));
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        assert!(!processes.has_settled(child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!processes.has_settled(child.id()) && processes.has_settled(1));
    }
}
