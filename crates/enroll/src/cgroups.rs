//! The pods' cgroup directories, as kubelet makes them: told apart by name, found by a walk, followed by inotify.
//!
//! What happens with a pod that is known by its cgroup only is left to others, as is which processes live there.

mod tree;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::mpsc;

pub(crate) use self::watch::{Change, watch_inside};

/// What a directory of the cgroup tree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Holds the processes of one pod.
    Pod,
    /// Holds the cgroups of pods, such as those of one quality of service.
    Group,
}

/// A directory of the cgroup tree that matters to us.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PodCgroup {
    /// The directory.
    pub path: PathBuf,
    /// The pod's UID as the name tells it; for static pods the value of [`CONFIG_HASH`]. None for groups, and for directories
    /// among those of pods whose name tells nothing.
    pub uid: Option<Arc<str>>,
    /// What it is.
    pub kind: Kind,
}

/// A change of the cgroup tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CgroupEvent {
    /// There now.
    Appeared(PodCgroup),
    /// Gone.
    Gone(PathBuf),
}

/// Annotation of static pods: what stands in their cgroup's name instead of the UID.
pub const CONFIG_HASH: &str = "kubernetes.io/config.hash";

/// Longest UID, in bytes; Kubernetes writes 36.
const UID_BYTES_MAX: usize = 253;
/// Shortest UID believed where other things than pods live too.
const UID_BYTES_SURE: usize = 32;

/// All directories of pods and of their groups below `root`, groups before what is in them; `root` itself is not among them.
///
/// - `root`: the cgroup v2 root, or any directory on the way down to the pods
pub fn scan(root: &Path) -> Vec<PodCgroup> {
    scan_inodes(root)
        .into_iter()
        .map(|(cgroup, _)| cgroup)
        .collect()
}

/// The same with inodes.
pub(crate) fn scan_inodes(root: &Path) -> Vec<(PodCgroup, u64)> {
    tree::walk(root, &mut |_| {})
}

/// Follows the directories below `root`. What is there already is told first, as [`CgroupEvent::Appeared`]; what comes later within a
/// millisecond or so of its `mkdir`. Ends when the receiver is gone. Must be called within a tokio runtime.
pub fn watch(root: PathBuf) -> mpsc::Receiver<CgroupEvent> {
    watch::watch(root)
}

/// Whether this directory, by its name, is one that kubelet keeps pods in and nothing else: only there is an unknown cgroup a pod's.
pub fn holds_only_pods(root: &Path) -> bool {
    Level::of_root(root) != Level::Above
}

/// The UID in the outermost cgroup of a pod on this path; for static pods the value of [`CONFIG_HASH`].
///
/// - `path`: as in `/proc/<pid>/cgroup`
pub fn uid_of_path(path: &str) -> Option<String> {
    let mut level = Level::Above;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        // Seen from a cgroup namespace, the upper part of the path is missing.
        let class = match (level, pod_uid(name)) {
            (Level::Above, Some(uid))
                if uid.len() >= UID_BYTES_SURE || name.contains("kubepods") =>
            {
                Some(Class::Pod(Some(uid)))
            }
            (Level::Above, _) => group(name).map(Class::Group),
            _ => classify(level, name),
        };
        match class {
            Some(Class::Pod(uid)) => return uid,
            Some(Class::Group(next)) => level = next,
            None => {}
        }
    }
    None
}

/// How far down a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    /// Above `kubepods`: other things than pods live there too.
    Above,
    /// `kubepods` itself.
    Pods,
    /// One quality of service.
    Quality,
}

impl Level {
    /// Of the directory that a walk begins with.
    fn of_root(root: &Path) -> Self {
        let name = root.file_name().and_then(|name| name.to_str());
        name.and_then(group).unwrap_or(Self::Above)
    }
}

/// What a name means.
#[derive(Debug, PartialEq, Eq)]
enum Class {
    /// A group, and its level.
    Group(Level),
    /// A pod, and its UID if the name tells.
    Pod(Option<String>),
}

/// What a directory of this name is in a directory of this level; none = not our business.
fn classify(parent: Level, name: &str) -> Option<Class> {
    let known = pod_uid(name);
    match (parent, group(name)) {
        (Level::Above, Some(level)) => Some(Class::Group(level)),
        (Level::Above, None) => {
            let sure = |uid: &String| name.contains("kubepods") || uid.len() >= UID_BYTES_SURE;
            known.filter(sure).map(|uid| Class::Pod(Some(uid)))
        }
        (Level::Pods, Some(Level::Quality)) => Some(Class::Group(Level::Quality)),
        _ => Some(Class::Pod(known)),
    }
}

/// The level of a group by its name.
fn group(name: &str) -> Option<Level> {
    // systemd driver: the name repeats those of its parents
    if let Some(stem) = name.strip_suffix(".slice") {
        let ends =
            |tail: &str| stem == tail || stem.strip_suffix(tail).is_some_and(|s| s.ends_with('-'));
        return match () {
            () if ends("kubepods") => Some(Level::Pods),
            () if ends("kubepods-burstable") || ends("kubepods-besteffort") => Some(Level::Quality),
            () if stem == "kubelet" => Some(Level::Above),
            () => None,
        };
    }
    match name {
        "kubepods" => Some(Level::Pods),
        "burstable" | "besteffort" => Some(Level::Quality),
        "kubelet" => Some(Level::Above),
        _ => None,
    }
}

/// The UID in a pod's directory name, in the form of either driver.
fn pod_uid(name: &str) -> Option<String> {
    let uid = match name.strip_suffix(".slice") {
        Some(stem) => {
            let (parent, uid) = stem.rsplit_once("-pod")?;
            group(&format!("{parent}.slice")).filter(|level| *level != Level::Above)?;
            uid.replace('_', "-")
        }
        None => name.strip_prefix("pod")?.to_owned(),
    };
    let plausible = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let fits = !uid.is_empty() && uid.len() <= UID_BYTES_MAX && uid.bytes().all(plausible);
    fits.then_some(uid)
}

#[cfg(test)]
mod tests;
