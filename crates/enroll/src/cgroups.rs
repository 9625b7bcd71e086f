//! The pods' cgroup directories, as kubelet makes them: told apart by name, found by a walk, followed by inotify.
//!
//! What happens with a pod that is known by its cgroup only is left to others.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::mpsc;

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
    /// beside those of pods whose name tells nothing.
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

/// All directories of pods and of their groups at and below `root`, groups before what is in them; `root` itself is not among them.
///
/// - `root`: the cgroup v2 root, or any directory on the way down to the pods
pub fn scan(root: &Path) -> Vec<PodCgroup> {
    let _ = root;
    Vec::new()
}

/// Follows the directories at and below `root`. What is there already is told first, as [`CgroupEvent::Appeared`]; what comes later
/// within a millisecond or so of its `mkdir`. Ends when the receiver is gone. Must be called within a tokio runtime.
pub fn watch(root: PathBuf) -> mpsc::Receiver<CgroupEvent> {
    let _ = root;
    mpsc::channel(1).1
}
