//! Follows the tree of pods' cgroups by inotify. Whatever the kernel does not tell, because its queue was full or a directory could
//! not be watched, the next walk finds.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::tree::{Branch, DIRECTORIES_MAX, inode, is_gone, walk, walk_branch};
use super::{CgroupEvent, Kind, PodCgroup};

/// Changes waiting for their reader; beyond, the kernel's queue fills and a walk finds the rest.
const QUEUE_MAX: usize = 1024;
/// Time between two walks that make sure of what the kernel tells.
const WALK_EVERY: Duration = Duration::from_secs(30);
/// The same while the kernel tells nothing: no root directory yet, or no inotify to be had.
const WALK_BLIND: Duration = Duration::from_millis(500);

/// What can be told of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// A directory of a pod or a group came, with its inode.
    Appeared(PodCgroup, u64),
    /// One went.
    Gone(PathBuf),
    /// Something came inside the directory of a pod, such as the cgroup of a container.
    Inside(PathBuf),
}

/// As [`super::watch`].
pub(super) fn watch(root: PathBuf) -> mpsc::Receiver<CgroupEvent> {
    let (sender, receiver) = mpsc::channel(QUEUE_MAX);
    tokio::spawn(follow(root, false, sender, |change| match change {
        Change::Appeared(cgroup, _) => Some(CgroupEvent::Appeared(cgroup)),
        Change::Gone(path) => Some(CgroupEvent::Gone(path)),
        Change::Inside(_) => None,
    }));
    receiver
}

/// The same with inodes, and with what happens inside of pods' directories.
pub(crate) fn watch_inside(root: PathBuf) -> mpsc::Receiver<Change> {
    let (sender, receiver) = mpsc::channel(QUEUE_MAX);
    tokio::spawn(follow(root, true, sender, Some));
    receiver
}

async fn follow<T>(
    root: PathBuf,
    inside: bool,
    sender: mpsc::Sender<T>,
    say: impl Fn(Change) -> Option<T>,
) {
    let inotify = open().inspect_err(|error| {
        tracing::warn!(%error, "no inotify, cgroups are looked for by walks only");
    });
    let mut tree = Tree {
        root,
        inside,
        inotify: inotify.ok(),
        branches: HashMap::new(),
        pods: HashMap::new(),
        known: BTreeMap::new(),
    };
    let mut changes = tree.walk();
    loop {
        for change in changes.drain(..).filter_map(&say) {
            if sender.send(change).await.is_err() {
                return;
            }
        }
        let pause = if tree.branches.is_empty() {
            WALK_BLIND
        } else {
            WALK_EVERY
        };
        tokio::select! {
            read = tree.told() => changes = match read {
                Some(told) => tree.take(told),
                None => tree.walk(),
            },
            () = tokio::time::sleep(pause) => changes = tree.walk(),
            () = sender.closed() => return,
        }
    }
}

/// The kernel's queue, as tokio wants it.
struct Queue(Inotify);

impl AsRawFd for Queue {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

fn open() -> io::Result<AsyncFd<Queue>> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    // deprecated for types that may state a descriptor they do not own; this one owns it
    #[allow(deprecated)]
    AsyncFd::with_interest(Queue(inotify), Interest::READABLE)
}

/// One thing that the kernel told.
struct Told {
    watch: WatchDescriptor,
    mask: AddWatchFlags,
    name: Option<OsString>,
}

struct Tree {
    root: PathBuf,
    inside: bool,
    inotify: Option<AsyncFd<Queue>>,
    branches: HashMap<WatchDescriptor, Branch>,
    /// directories of pods, where what happens inside is wanted
    pods: HashMap<WatchDescriptor, PathBuf>,
    known: BTreeMap<PathBuf, (PodCgroup, u64)>,
}

impl Tree {
    /// What the kernel tells next; none = it lost count. Cancel-safe: what was read is returned at once.
    async fn told(&self) -> Option<Vec<Told>> {
        let Some(inotify) = &self.inotify else {
            return std::future::pending().await;
        };
        let read = inotify.async_io(Interest::READABLE, |queue| Ok(queue.0.read_events()?));
        let told = read.await.ok()?.into_iter().map(|event| Told {
            watch: event.wd,
            mask: event.mask,
            name: event.name,
        });
        let told: Vec<Told> = told.collect();
        let lost = told
            .iter()
            .any(|told| told.mask.contains(AddWatchFlags::IN_Q_OVERFLOW));
        (!lost).then_some(told)
    }

    fn take(&mut self, told: Vec<Told>) -> Vec<Change> {
        let mut changes = Vec::new();
        for Told { watch, mask, name } in told {
            if mask.contains(AddWatchFlags::IN_IGNORED) {
                self.branches.remove(&watch);
                self.pods.remove(&watch);
            } else if let Some(pod) = self.pods.get(&watch) {
                if mask.contains(AddWatchFlags::IN_CREATE) {
                    changes.push(Change::Inside(pod.clone()));
                }
            } else if let (Some(branch), Some(name)) = (self.branches.get(&watch).cloned(), name) {
                if mask.contains(AddWatchFlags::IN_CREATE) {
                    self.appeared(&branch, &name, &mut changes);
                } else if mask.contains(AddWatchFlags::IN_DELETE) {
                    self.gone(&branch.path.join(name), &mut changes);
                }
            }
        }
        changes
    }

    fn appeared(&mut self, parent: &Branch, name: &std::ffi::OsStr, changes: &mut Vec<Change>) {
        let Some((cgroup, deeper)) = parent.child(name) else {
            return;
        };
        // gone again: its end is told as well
        let Some(inode) = inode(&cgroup.path) else {
            return;
        };
        self.know(cgroup, inode, changes);
        if let Some(branch) = deeper {
            // what was made before it was watched
            let found = walk_branch(branch, &mut self.watcher());
            found
                .into_iter()
                .for_each(|(cgroup, inode)| self.know(cgroup, inode, changes));
        }
    }

    fn know(&mut self, cgroup: PodCgroup, inode: u64, changes: &mut Vec<Change>) {
        match self.known.get(&cgroup.path) {
            Some((_, known)) if *known == inode => return,
            Some(_) => self.gone(&cgroup.path.clone(), changes),
            None if self.known.len() >= DIRECTORIES_MAX => return,
            None => {}
        }
        if self.inside && cgroup.kind == Kind::Pod {
            self.watch_pod(&cgroup.path);
        }
        self.known
            .insert(cgroup.path.clone(), (cgroup.clone(), inode));
        changes.push(Change::Appeared(cgroup, inode));
    }

    /// A directory is gone, and with it all below.
    fn gone(&mut self, path: &Path, changes: &mut Vec<Change>) {
        let below = self.known.range(path.to_owned()..).map(|(known, _)| known);
        let mut gone: Vec<PathBuf> = below
            .take_while(|known| known.starts_with(path))
            .cloned()
            .collect();
        gone.reverse();
        for path in gone {
            self.known.remove(&path);
            changes.push(Change::Gone(path));
        }
    }

    /// Looks at everything; what differs from what is known.
    fn walk(&mut self) -> Vec<Change> {
        let root = self.root.clone();
        let found = walk(&root, &mut self.watcher());
        let mut changes = Vec::new();
        let there: std::collections::HashSet<&PathBuf> =
            found.iter().map(|(cgroup, _)| &cgroup.path).collect();
        // a walk may miss what it could not read
        let lost = self.known.keys().filter(|known| !there.contains(known));
        let lost: Vec<PathBuf> = lost.filter(|known| is_gone(known)).cloned().collect();
        lost.iter()
            .rev()
            .for_each(|path| self.gone(path, &mut changes));
        found
            .into_iter()
            .for_each(|(cgroup, inode)| self.know(cgroup, inode, &mut changes));
        changes
    }

    /// Watches each branch that a walk enters; watching one twice is the same watch.
    fn watcher(&mut self) -> impl FnMut(&Branch) {
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ONLYDIR
            | AddWatchFlags::IN_DONT_FOLLOW;
        let (inotify, branches) = (&self.inotify, &mut self.branches);
        move |branch| {
            if let Some(watch) = add(inotify, &branch.path, flags) {
                branches.insert(watch, branch.clone());
            }
        }
    }

    fn watch_pod(&mut self, path: &Path) {
        let flags =
            AddWatchFlags::IN_CREATE | AddWatchFlags::IN_ONLYDIR | AddWatchFlags::IN_DONT_FOLLOW;
        if let Some(watch) = add(&self.inotify, path, flags) {
            self.pods.insert(watch, path.to_owned());
        }
    }
}

fn add(
    inotify: &Option<AsyncFd<Queue>>,
    path: &Path,
    flags: AddWatchFlags,
) -> Option<WatchDescriptor> {
    match inotify.as_ref()?.get_ref().0.add_watch(path, flags) {
        Ok(watch) => Some(watch),
        Err(Errno::ENOENT | Errno::ENOTDIR) => None,
        Err(error) => {
            // ENOSPC: fs.inotify.max_user_watches; walks find what is missed
            tracing::debug!(path = %path.display(), %error, "cgroup not watched");
            None
        }
    }
}
