//! What procfs and cgroupfs tell of processes. Leaves what that means to the finder.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sys::NetnsId;

use crate::cgroups::uid_of_path;

/// Most processes of one look over the whole procfs.
const PROCESSES_MAX: usize = 1 << 18;
/// Most processes of one pod that are kept.
const PROCESSES_PER_POD_MAX: usize = 4096;
/// Most directories below one pod's cgroup.
const DIRECTORIES_MAX: usize = 256;
/// Most bytes read of one file: paths are bounded by the kernel, lists of processes by this.
const BYTES_MAX: u64 = 256 * 1024;

/// A process of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    /// as the host counts
    pub(super) pid: u32,
    /// ticks since boot
    pub(super) started: u64,
}

impl Process {
    /// Orders processes: the oldest first.
    pub(super) fn age(&self) -> (u64, u32) {
        (self.started, self.pid)
    }
}

/// The host's procfs.
#[derive(Debug, Clone)]
pub(super) struct Proc(PathBuf);

impl Proc {
    pub(super) fn new(root: &Path) -> Self {
        Self(root.to_owned())
    }

    /// The file of a process's network namespace.
    pub(super) fn namespace_path(&self, pid: u32) -> PathBuf {
        self.0.join(format!("{pid}/ns/net"))
    }

    /// The network namespace of a process, unopened.
    pub(super) fn namespace(&self, pid: u32) -> io::Result<NetnsId> {
        let path = self.namespace_path(pid);
        let metadata = fs::metadata(&path).map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        })?;
        Ok(NetnsId {
            dev: metadata.dev(),
            inode: metadata.ino(),
        })
    }

    /// The process, if it is in a cgroup of the pod with this key.
    pub(super) fn process(&self, pid: u32, key: &str) -> Option<Process> {
        let (found, process) = self.look(pid)?;
        (found == key).then_some(process)
    }

    /// All processes of pods, by what stands in their cgroups' names.
    pub(super) fn by_key(&self) -> HashMap<String, Vec<Process>> {
        let mut all: HashMap<String, Vec<Process>> = HashMap::new();
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        for (key, process) in pids.take(PROCESSES_MAX).filter_map(|pid| self.look(pid)) {
            let of_pod = all.entry(key).or_default();
            if of_pod.len() < PROCESSES_PER_POD_MAX {
                of_pod.push(process);
            }
        }
        all
    }

    fn look(&self, pid: u32) -> Option<(String, Process)> {
        let key = key_of(&read(&self.0.join(format!("{pid}/cgroup")))?)?;
        let started = started(&read(&self.0.join(format!("{pid}/stat")))?)?;
        Some((key, Process { pid, started }))
    }
}

/// The key of the pod that a process is in, by its `/proc/<pid>/cgroup`. The unified hierarchy counts before others.
fn key_of(text: &str) -> Option<String> {
    let paths = || {
        text.lines()
            .filter_map(|line| line.split_once(':')?.1.split_once(':'))
    };
    let unified = paths().filter(|(controllers, _)| controllers.is_empty());
    let others = paths().filter(|(controllers, _)| !controllers.is_empty());
    unified
        .chain(others)
        .find_map(|(_, path)| uid_of_path(path))
}

/// When a process started, by its `/proc/<pid>/stat`. Source: proc(5), field 22; the name in field 2 may hold anything.
fn started(text: &str) -> Option<u64> {
    text.rsplit_once(')')?
        .1
        .split_ascii_whitespace()
        .nth(19)?
        .parse()
        .ok()
}

/// Whether any process lives in the cgroup or below; also where its file does not say.
pub(super) fn populated(cgroup: &Path) -> bool {
    match read(&cgroup.join("cgroup.events")) {
        Some(text) => !text.lines().any(|line| line == "populated 0"),
        None => cgroup.is_dir(),
    }
}

/// The processes in the cgroup and below, as our pid namespace counts them. None when any of them has no number here.
pub(super) fn pids_below(cgroup: &Path) -> Option<Vec<u32>> {
    let mut pids = Vec::new();
    let mut directories = vec![cgroup.to_owned()];
    let mut seen = 0;
    while let Some(directory) = directories.pop() {
        seen += 1;
        let text = read(&directory.join("cgroup.procs")).unwrap_or_default();
        for pid in text.lines().filter_map(|line| line.parse::<u32>().ok()) {
            if pid == 0 || pids.len() >= PROCESSES_PER_POD_MAX {
                return None;
            }
            pids.push(pid);
        }
        if seen >= DIRECTORIES_MAX {
            break;
        }
        let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
        let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        directories.extend(below.map(|entry| entry.path()).take(DIRECTORIES_MAX));
    }
    Some(pids)
}

fn read(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path)
        .ok()?
        .take(BYTES_MAX)
        .read_to_end(&mut bytes)
        .ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0b7e1c6a-5c3d-4f7e-9a51-0d7c2f6a1b11";

    #[test]
    fn a_process_names_its_pod() {
        let cases = [
            (format!("0::/kubepods/pod{UID}/a\n"), Some(UID)),
            (format!("4:memory:/x\n0::/kubepods/pod{UID}\n"), Some(UID)),
            (format!("4:memory:/kubepods/pod{UID}\n0::/\n"), Some(UID)),
            (
                format!("4:memory:/kubepods/podother\n0::/kubepods/pod{UID}"),
                Some(UID),
            ),
            (format!("0::/kubepods/pod{UID}:odd/a"), None),
            ("0::/system.slice".to_owned(), None),
            ("nonsense".to_owned(), None),
            (String::new(), None),
        ];
        for (text, expected) in cases {
            assert_eq!(key_of(&text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_process_tells_when_it_started() {
        let tail = "S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 1";
        assert_eq!(started(&format!("12 (sh) {tail}")), Some(4711));
        assert_eq!(started(&format!("12 (a) 9 (b) ) {tail}")), Some(4711));
        assert_eq!(started("12 (sh) S 1"), None);
        assert_eq!(started(""), None);
        let own = read(Path::new("/proc/self/stat")).unwrap();
        assert!(started(&own).is_some_and(|ticks| ticks > 0));
    }
}
