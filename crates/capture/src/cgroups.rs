//! What the kernel is told about cgroups: who is waited for, who is not for the mesh, and what holds for those nobody knows yet.
//!
//! The entries outlive the daemon, so an expected pod stays held. Leaves deciding who is expected, and for how long, to others.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use redirect_common::{CgroupEntry, CgroupState, DEPTH_MAX, LEVEL_MAX, Pod, Settings};

use crate::capture::Capture;
use crate::own_cgroup::is_below;

/// Longest time for which unknown cgroups can be held by one call of [`Capture::hold_unknown`].
pub const HOLD_WINDOW_MAX: Duration = Duration::from_secs(3600);

/// Cgroups looked at when a predecessor's are found again.
const WALK_MAX: usize = 65_536;
/// Levels of the whole hierarchy that are looked at.
const HIERARCHY_DEPTH_MAX: u32 = 64;

/// One cgroup that the kernel was told about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CgroupView {
    /// Its id.
    pub id: u64,
    /// Its directory, where known.
    pub path: Option<PathBuf>,
    /// What holds for it and for those below.
    pub state: CgroupState,
}

impl Capture {
    /// Tells the kernel what holds for the cgroup at `path`, which lies below the capture cgroup, and for those below it. Returns its id.
    ///
    /// - `state`: [`CgroupState::Enrolled`] is refused: [`Capture::enroll`] says that, when everything else stands
    ///
    /// A cgroup whose pod is captured at present (by this process or a predecessor) stays as it is: nothing happens then.
    /// Errors: it is gone or no cgroup, lies elsewhere, or there are too many.
    pub fn set_cgroup(&mut self, path: &Path, state: CgroupState) -> io::Result<u64> {
        if matches!(state, CgroupState::Enrolled(_)) {
            let text = "a cgroup becomes enrolled with its pod only";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let id = sys::cgroup::id(path)?;
        if id == self.capture_cgroup_id()? || !is_below(path, &self.config.cgroup)? {
            let text = format!("{} is not below the capture cgroup", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        if !self.is_captured(id) {
            self.write_cgroup(id, path, state)?;
        }
        Ok(id)
    }

    /// Forgets a cgroup that is gone.
    pub fn forget_cgroup(&mut self, id: u64) {
        self.cgroups.remove(&id);
        // Its absence is fine.
        let _ = self.maps.cgroups.remove(&id);
    }

    /// Holds cgroups that nobody has told about for this long from now; none ends it. To be called again before the time is over, for as long
    /// as whoever watches cgroups may lag behind: it ends by itself when nobody is there any more.
    ///
    /// - `window`: at most [`HOLD_WINDOW_MAX`]
    ///
    /// Errors: the capture cgroup is the whole hierarchy, so that the node itself would be held.
    pub fn hold_unknown(&mut self, window: Option<Duration>) -> io::Result<()> {
        if window.is_some() && is_top(&self.config.cgroup)? {
            let text = "the capture cgroup holds the whole node, not only pods";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let until = match window {
            Some(window) => sys::clock::monotonic()? + window.min(HOLD_WINDOW_MAX),
            None => Duration::ZERO,
        };
        let mut settings = self.settings()?;
        // Centuries of uptime fit.
        settings.hold_until = u64::try_from(until.as_nanos()).unwrap_or(u64::MAX);
        self.write_settings(settings)
    }

    /// Whether cgroups that nobody has told about are held now, perhaps since a predecessor asked for it.
    pub fn holds_unknown(&self) -> io::Result<bool> {
        let until = Duration::from_nanos(self.settings()?.hold_until);
        Ok(sys::clock::monotonic()? < until)
    }

    /// Cgroups that are held or denied at present.
    pub fn held(&self) -> Vec<CgroupView> {
        let waiting =
            |view: &CgroupView| matches!(view.state, CgroupState::Held | CgroupState::Denied);
        self.cgroups().into_iter().filter(waiting).collect()
    }

    /// All cgroups that the kernel was told about, by id.
    pub fn cgroups(&self) -> Vec<CgroupView> {
        let mut all: Vec<_> = self
            .maps
            .cgroups
            .iter()
            .flatten()
            .map(|(id, entry)| CgroupView {
                id,
                path: self.cgroups.get(&id).cloned(),
                state: entry.state(),
            })
            .collect();
        all.sort_unstable();
        all
    }
}

impl Capture {
    pub(crate) fn write_cgroup(
        &mut self,
        id: u64,
        path: &Path,
        state: CgroupState,
    ) -> io::Result<()> {
        let entry = CgroupEntry::new(state);
        let mut written = self.maps.cgroups.insert(id, entry, 0);
        if written.is_err() {
            // Full, perhaps of what is long gone.
            self.sweep_cgroups();
            written = self.maps.cgroups.insert(id, entry, 0);
        }
        written.map_err(io::Error::other)?;
        self.cgroups.insert(id, path.to_owned());
        Ok(())
    }

    /// Forgets cgroups that no longer exist. Ids are never used again, so late is harmless.
    pub(crate) fn sweep_cgroups(&mut self) {
        let gone = |(id, path): (&u64, &PathBuf)| {
            let there = sys::cgroup::id(path).is_ok_and(|now| now == *id);
            (!there).then_some(*id)
        };
        let gone: Vec<u64> = self.cgroups.iter().filter_map(gone).collect();
        gone.into_iter().for_each(|id| self.forget_cgroup(id));
    }

    /// Says that the pod's cgroup is enrolled, if it has one of its own.
    pub(crate) fn write_enrolled(&mut self, path: Option<&Path>, cookie: u64) -> io::Result<()> {
        let Some(path) = path else {
            return Ok(());
        };
        let id = sys::cgroup::id(path)?;
        if id == self.capture_cgroup_id()? {
            return Ok(());
        }
        self.write_cgroup(id, path, CgroupState::Enrolled(cookie))
    }

    /// Says where the walk begins, and finds out where the cgroups are that a predecessor told about. Keeps a window that is open.
    pub(crate) fn prepare_cgroups(&mut self) -> io::Result<()> {
        let (former, capture) = (self.settings()?, self.capture_cgroup_id()?);
        self.write_settings(Settings {
            capture,
            hold_until: if former.capture == capture {
                former.hold_until
            } else {
                0
            },
            level: level(&self.config.cgroup),
            padding: 0,
        })?;
        let known: Vec<u64> = self.maps.cgroups.keys().flatten().collect();
        if self.config.dedicated {
            // nobody is known by a cgroup here, whatever a node's daemon said
            known.into_iter().for_each(|id| self.forget_cgroup(id));
            return Ok(());
        }
        let walk = walk(&self.config.cgroup, DEPTH_MAX);
        for id in known {
            match walk.found.get(&id) {
                Some(path) => drop(self.cgroups.insert(id, path.clone())),
                None if walk.complete => self.forget_cgroup(id),
                None => {}
            }
        }
        Ok(())
    }

    /// Whether the cgroup's pod is captured at present, says the kernel.
    fn is_captured(&self, id: u64) -> bool {
        let entry = self.maps.cgroups.get(&id, 0).ok();
        let Some(CgroupState::Enrolled(cookie)) = entry.map(|entry| entry.state()) else {
            return false;
        };
        let pod = self.maps.pod(cookie);
        pod.is_some_and(|pod| pod.has(Pod::CAPTURE))
    }

    fn capture_cgroup_id(&self) -> io::Result<u64> {
        sys::cgroup::id(&self.config.cgroup)
    }

    fn settings(&self) -> io::Result<Settings> {
        self.maps.settings.get(&0, 0).map_err(io::Error::other)
    }

    fn write_settings(&mut self, settings: Settings) -> io::Result<()> {
        self.maps
            .settings
            .set(0, settings, 0)
            .map_err(io::Error::other)
    }
}

/// How deep the directory lies below its mount: the kernel's programs verify it.
fn level(path: &Path) -> u32 {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mounts = sys::cgroup::mounts().unwrap_or_default();
    let depths = mounts
        .iter()
        .filter_map(|mount| path.strip_prefix(&mount.point).ok());
    let depth = depths
        .map(|rest| rest.components().count())
        .min()
        .unwrap_or(0);
    u32::try_from(depth).map_or(0, |depth| depth.min(LEVEL_MAX))
}

/// Whether the cgroup is one that a hierarchy is mounted at.
fn is_top(path: &Path) -> io::Result<bool> {
    let id = sys::cgroup::id(path)?;
    let mounts = sys::cgroup::mounts()?;
    let mut tops = mounts.iter().map(|mount| sys::cgroup::id(&mount.point));
    Ok(tops.any(|top| top.is_ok_and(|top| top == id)))
}

/// Cgroups below some other, by id.
struct Walk {
    found: HashMap<u64, PathBuf>,
    /// There are no more.
    complete: bool,
}

/// Ids and directories of the cgroups below `root`, down to `depth`.
fn walk(root: &Path, depth: u32) -> Walk {
    let mut found = HashMap::new();
    let mut level = vec![root.to_owned()];
    for _ in 0..depth {
        let entries = level.iter().filter_map(|dir| fs::read_dir(dir).ok());
        let mut next = Vec::new();
        for entry in entries.flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if found.len() >= WALK_MAX {
                return Walk {
                    found,
                    complete: false,
                };
            }
            found.insert(entry.ino(), entry.path());
            next.push(entry.path());
        }
        level = next;
    }
    Walk {
        found,
        complete: true,
    }
}

/// Ids of all cgroups that this process can see; none when there are too many to tell.
pub(crate) fn living() -> Option<HashSet<u64>> {
    let mut ids = HashSet::new();
    for mount in sys::cgroup::mounts().ok()? {
        let walk = walk(&mount.point, HIERARCHY_DEPTH_MAX);
        if !walk.complete {
            return None;
        }
        ids.extend(walk.found.into_keys());
        ids.extend(sys::cgroup::id(&mount.point));
    }
    Some(ids)
}
