//! One walk over the directories of pods and their groups. Leaves following them to the watch.

use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Class, Kind, Level, PodCgroup, classify};

/// Most directories that one walk reports; far more than a node has pods.
pub(super) const DIRECTORIES_MAX: usize = 16_384;
/// Deepest group below the root: `kubelet.slice`, `kubelet-kubepods.slice`, quality of service.
const DEPTH_MAX: usize = 4;

/// A directory whose children may be pods.
#[derive(Debug, Clone)]
pub(super) struct Branch {
    pub(super) path: PathBuf,
    pub(super) level: Level,
    pub(super) depth: usize,
}

impl Branch {
    pub(super) fn root(root: &Path) -> Self {
        Self {
            path: root.to_owned(),
            level: Level::of_root(root),
            depth: 0,
        }
    }

    /// What a child of this name is; none if that is not our business.
    pub(super) fn child(&self, name: &std::ffi::OsStr) -> Option<(PodCgroup, Option<Branch>)> {
        let path = self.path.join(name);
        let class = match name.to_str() {
            Some(name) => classify(self.level, name)?,
            None if self.level == Level::Above => return None,
            None => Class::Pod(None),
        };
        Some(match class {
            Class::Pod(uid) => {
                let uid = uid.map(Arc::from);
                let kind = Kind::Pod;
                (PodCgroup { path, uid, kind }, None)
            }
            Class::Group(level) => {
                let branch = Self {
                    path: path.clone(),
                    level,
                    depth: self.depth + 1,
                };
                let kind = Kind::Group;
                let deeper = (branch.depth < DEPTH_MAX).then_some(branch);
                (
                    PodCgroup {
                        path,
                        uid: None,
                        kind,
                    },
                    deeper,
                )
            }
        })
    }
}

/// All directories below `root` with their inodes. `enter` is called with each branch before it is read, so that nothing is missed
/// when it is watched from then on.
pub(super) fn walk(root: &Path, enter: &mut impl FnMut(&Branch)) -> Vec<(PodCgroup, u64)> {
    walk_branch(Branch::root(root), enter)
}

/// The same below one branch.
pub(super) fn walk_branch(from: Branch, enter: &mut impl FnMut(&Branch)) -> Vec<(PodCgroup, u64)> {
    let mut found = Vec::new();
    let mut branches = VecDeque::from([from]);
    while let Some(branch) = branches.pop_front() {
        enter(&branch);
        let Ok(entries) = fs::read_dir(&branch.path) else {
            // not there, or gone meanwhile
            continue;
        };
        for entry in entries.flatten() {
            if found.len() >= DIRECTORIES_MAX {
                return found;
            }
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let Some((cgroup, deeper)) = branch.child(&entry.file_name()) else {
                continue;
            };
            if let Some(inode) = inode(&cgroup.path) {
                found.push((cgroup, inode));
                branches.extend(deeper);
            }
        }
    }
    found
}

/// Inode of a directory; none when it is not there.
pub(super) fn inode(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path)
        .ok()
        .map(|metadata| metadata.ino())
}

/// Whether there is certainly no such directory.
pub(super) fn is_gone(path: &Path) -> bool {
    let seen = fs::symlink_metadata(path);
    seen.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}
