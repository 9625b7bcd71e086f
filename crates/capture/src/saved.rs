//! What is remembered of a pod in the pinned map, so that any later process can leave it as it was found.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use redirect_common::{NETNS_PATH_MAX, Saved, UID_MAX};
use sys::Netns;

use crate::pod::PodWanted;
use crate::sysctl;

/// Stands for a sysctl that the kernel does not have.
const ABSENT: i32 = -1;

/// Reads what is to be restored of a pod never enrolled before. Runs inside its namespace.
pub(crate) fn take(proc: &Path, pod: &PodWanted) -> io::Result<Saved> {
    let mut sysctls = [ABSENT; sysctl::ALL.len()];
    for (slot, name) in sysctls.iter_mut().zip(sysctl::ALL) {
        *slot = sysctl::read(proc, name)?.unwrap_or(ABSENT);
    }
    record(pod, sysctls)
}

/// The record of a pod enrolled before: who and where is new, what to restore stays.
pub(crate) fn renew(former: &Saved, pod: &PodWanted) -> io::Result<Saved> {
    record(pod, former.sysctls)
}

fn record(pod: &PodWanted, sysctls: [i32; sysctl::ALL.len()]) -> io::Result<Saved> {
    let path = pod.netns_path.as_os_str().as_bytes();
    if pod.uid.len() > UID_MAX || path.len() > NETNS_PATH_MAX {
        let text = format!(
            "UID longer than {UID_MAX} or namespace path longer than {NETNS_PATH_MAX} bytes"
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let mut saved = Saved {
        dev: pod.netns.id().dev,
        inode: pod.netns.inode(),
        sysctls,
        // Both fit, see above.
        uid_len: pod.uid.len() as u16,
        netns_path_len: path.len() as u16,
        uid: [0; UID_MAX],
        netns_path: [0; NETNS_PATH_MAX],
    };
    saved.uid[..pod.uid.len()].copy_from_slice(pod.uid.as_bytes());
    saved.netns_path[..path.len()].copy_from_slice(path);
    Ok(saved)
}

/// The sysctls that the kernel has, with their former values.
pub(crate) fn sysctls(saved: &Saved) -> Vec<(&'static str, i32)> {
    sysctl::ALL
        .into_iter()
        .zip(saved.sysctls)
        .filter(|(_, value)| *value != ABSENT)
        .collect()
}

/// Writes the former values back. Runs inside the pod's namespace.
pub(crate) fn restore(proc: &Path, saved: &Saved) -> io::Result<()> {
    let results: Vec<_> = sysctls(saved)
        .into_iter()
        .map(|(name, value)| sysctl::write(proc, name, value))
        .collect();
    results.into_iter().collect()
}

/// The pod's UID.
pub(crate) fn uid(saved: &Saved) -> String {
    let len = usize::from(saved.uid_len).min(UID_MAX);
    String::from_utf8_lossy(&saved.uid[..len]).into_owned()
}

/// Path of the pod's namespace when it was enrolled.
pub(crate) fn netns_path(saved: &Saved) -> PathBuf {
    let len = usize::from(saved.netns_path_len).min(NETNS_PATH_MAX);
    PathBuf::from(OsStr::from_bytes(&saved.netns_path[..len]))
}

/// Opens the very namespace that was enrolled: by its path, which may lead elsewhere by now, else through any process in it. `None` when it is gone.
///
/// - `proc`: a procfs that shows the processes of the node
pub(crate) fn reach(cookie: u64, saved: &Saved, proc: &Path) -> Option<Netns> {
    let same = |path: &Path| {
        let meta = fs::metadata(path).ok()?;
        if (meta.dev(), meta.ino()) != (saved.dev, saved.inode) {
            return None;
        }
        Netns::open(path)
            .ok()
            .filter(|netns| netns.cookie() == cookie)
    };
    same(&netns_path(saved)).or_else(|| {
        let processes = fs::read_dir(proc).ok()?.flatten();
        processes
            .filter_map(|entry| same(&entry.path().join("ns/net")))
            .next()
    })
}
