//! The daemon's own cgroup, by whose id it is exempt from capture, and the cgroup that capture attaches to.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use sys::cgroup;

/// First part of the name of a cgroup that the daemon makes for itself; the process id follows.
const PREFIX: &str = "ztunnel-";
/// Id of the root of every hierarchy: the first that the kernel gives.
pub(crate) const TOP_ID: u64 = 1;
/// Names of the cgroup that holds all pods of a Kubernetes node, by kubelet's cgroup driver.
const KUBEPODS: [&str; 4] = [
    "kubepods",
    "kubepods.slice",
    "kubelet/kubepods",
    "kubelet.slice/kubelet-kubepods.slice",
];

/// Why the daemon has no cgroup of its own.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No cgroup v2 at all.
    #[error("no cgroup v2 hierarchy is mounted")]
    NotMounted,
    /// Only a part of the hierarchy is mounted.
    #[error(
        "the cgroup v2 hierarchy mounted at {} is a part of it: processes elsewhere would not be captured. Share the host's cgroup namespace (--cgroupns=host), or set CAPTURE_CGROUP to a directory that holds all processes of this network namespace", point.display()
    )]
    Part {
        /// Where.
        point: PathBuf,
    },
    /// The own cgroup cannot be found below any mount.
    #[error(
        "the own cgroup {path} is not visible below any cgroup v2 mount: mount the host's hierarchy"
    )]
    Hidden {
        /// As in `/proc/self/cgroup`.
        path: String,
    },
    /// A cgroup cannot be read, made or entered.
    #[error("cannot {what} cgroup {path}: {cause}")]
    Refused {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
}

/// Makes sure that this process is alone in its cgroup, and returns the cgroup's id.
///
/// It moves to a fresh child `ztunnel-<pid>`: an exemption by cgroup must never cover a pod, also not one that joins the
/// cgroup later. Where none can be made (a read-only mount) it stays, unless other processes share its cgroup, or pods'
/// cgroups are or may be made of it (it is the capture cgroup or above).
pub fn settle(capture_cgroup: &Path) -> Result<u64, CgroupError> {
    let own = find_own()?;
    sweep(&own);
    let name = format!("{PREFIX}{}", std::process::id());
    if own.ends_with(&name) {
        return cgroup::id(&own).map_err(|cause| refused("read", &own, cause));
    }
    let place = own.join(name);
    match fs::create_dir(&place) {
        Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => {
            return stay(&own, capture_cgroup, || refused("make", &place, cause));
        }
        _ => {}
    }
    let id = cgroup::id(&place).map_err(|cause| refused("read", &place, cause))?;
    match cgroup::enter(&place) {
        Ok(()) => Ok(id),
        Err(cause) => stay(&own, capture_cgroup, || refused("enter", &place, cause)),
    }
}

/// Id of the cgroup that the process is in, if nobody else can be taken for it there; else why it did not move.
fn stay(
    own: &Path,
    capture_cgroup: &Path,
    why_not_moved: impl FnOnce() -> CgroupError,
) -> Result<u64, CgroupError> {
    let shared = read(own)?.iter().any(|pid| *pid != std::process::id());
    let above = is_below(capture_cgroup, own).map_err(|cause| refused("compare", own, cause))?;
    if shared || above {
        return Err(why_not_moved());
    }
    cgroup::id(own).map_err(|cause| refused("read", own, cause))
}

/// The node's cgroup of all pods, else the root of the hierarchy. One that another cgroup driver left empty is not taken for it.
pub fn default_cgroup() -> Result<PathBuf, CgroupError> {
    let mounts = cgroup::mounts().unwrap_or_default();
    let first = mounts.first().ok_or(CgroupError::NotMounted)?;
    let pods = mounts
        .iter()
        .flat_map(|mount| KUBEPODS.iter().map(|name| mount.point.join(name)));
    Ok(of_pods(pods).unwrap_or_else(|| first.point.clone()))
}

/// The root of the hierarchy: holds every process of a machine of its own.
///
/// Errors: what is mounted is a part of it, as a container with a cgroup namespace of its own sees it. Programs attached there would
/// miss all processes but this container's, and what they send would leave as it is.
pub fn top_cgroup() -> Result<PathBuf, CgroupError> {
    let mounts = cgroup::mounts().unwrap_or_default();
    let is_top = |point: &Path| cgroup::id(point).is_ok_and(|id| id == TOP_ID);
    let top = mounts.iter().find(|mount| is_top(&mount.point));
    match (top, mounts.first()) {
        (Some(top), _) => Ok(top.point.clone()),
        (None, Some(part)) => Err(CgroupError::Part {
            point: part.point.clone(),
        }),
        (None, None) => Err(CgroupError::NotMounted),
    }
}

/// The first of these directories in which processes run, else the first that is there.
fn of_pods(candidates: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    let there: Vec<PathBuf> = candidates.filter(|path| path.is_dir()).collect();
    let populated = |path: &&PathBuf| {
        fs::read_to_string(path.join("cgroup.events"))
            .is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
    };
    there.iter().find(populated).or(there.first()).cloned()
}

/// Makes an empty cgroup below this process's own, to try things in; the next daemon sweeps it away if it stays.
pub(crate) fn scratch() -> Result<PathBuf, CgroupError> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("{PREFIX}check-{}-{count}", std::process::id());
    let place = find_own()?.join(name);
    match fs::create_dir(&place) {
        Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => {
            Err(refused("make", &place, cause))
        }
        _ => Ok(place),
    }
}

/// Whether a cgroup is one that a daemon made for itself, by its name.
pub(crate) fn is_daemons(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let number = name.and_then(|name| name.strip_prefix(PREFIX));
    number.is_some_and(|number| number.parse::<u32>().is_ok())
}

/// Whether `path` is `above` or lies below it, whatever mounts the paths go through.
pub(crate) fn is_below(path: &Path, above: &Path) -> io::Result<bool> {
    let wanted = cgroup::id(above)?;
    for ancestor in fs::canonicalize(path)?.ancestors() {
        match cgroup::id(ancestor) {
            Ok(id) if id == wanted => return Ok(true),
            Ok(_) => {}
            Err(_) => break,
        }
    }
    Ok(false)
}

/// The directory of this process's cgroup, found by trying each mount and confirmed by the list of processes there.
pub(crate) fn find_own() -> Result<PathBuf, CgroupError> {
    let path = cgroup::own_path().map_err(|_| CgroupError::NotMounted)?;
    let mounts = cgroup::mounts().unwrap_or_default();
    if mounts.is_empty() {
        return Err(CgroupError::NotMounted);
    }
    let candidates = mounts.iter().filter_map(|mount| {
        let inside = Path::new(&path).strip_prefix(&mount.root).ok()?;
        Some(mount.point.join(inside))
    });
    let pid = std::process::id();
    let mut own =
        candidates.filter(|dir| cgroup::processes(dir).is_ok_and(|pids| pids.contains(&pid)));
    own.next().ok_or(CgroupError::Hidden { path })
}

/// Removes cgroups that former daemons made and left; those with processes stay, the kernel sees to it.
fn sweep(own: &Path) {
    let Ok(entries) = fs::read_dir(own) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

fn read(path: &Path) -> Result<Vec<u32>, CgroupError> {
    cgroup::processes(path).map_err(|cause| refused("read", path, cause))
}

fn refused(what: &'static str, path: &Path, cause: io::Error) -> CgroupError {
    CgroupError::Refused {
        what,
        path: path.to_owned(),
        cause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_driver_left_empty_is_passed_over() {
        let place = tempfile::tempdir().unwrap();
        let [empty, full, none] =
            ["kubepods", "kubepods.slice", "kubelet"].map(|name| place.path().join(name));
        for (path, populated) in [(&empty, 0), (&full, 1)] {
            fs::create_dir(path).unwrap();
            fs::write(
                path.join("cgroup.events"),
                format!("populated {populated}\nfrozen 0\n"),
            )
            .unwrap();
        }
        let of = |paths: &[&PathBuf]| of_pods(paths.iter().map(|path| (*path).clone()));
        assert_eq!(of(&[&none, &empty, &full]), Some(full.clone()));
        assert_eq!(of(&[&none, &empty]), Some(empty.clone()));
        assert_eq!(of(&[&none]), None);
    }
}
