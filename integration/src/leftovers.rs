//! Taking a world down again, also one whose process was killed: everything it made is found by its id alone.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, umount2};

use crate::cgroup;
use crate::place::{self, NETNS_DIR, RUN_DIR};

/// All ids begin with this.
pub const PREFIX: &str = "zt-";
/// File in the run directory of a world: pid and start time of the process that owns it.
const OWNER: &str = "owner";
/// File in the run directory of a world that is to stay after its owner.
const KEPT: &str = "kept";

/// The run directory of a world.
pub fn dir(id: &str) -> PathBuf {
    Path::new(RUN_DIR).join(id)
}

/// Writes who owns the world.
///
/// Errors: the run directory is not writable.
pub fn claim(id: &str) -> Result<()> {
    let pid = std::process::id();
    let text = format!("{pid} {}", start_time(pid).unwrap_or_default());
    fs::write(dir(id).join(OWNER), text).with_context(|| format!("write {RUN_DIR}/{id}/{OWNER}"))
}

/// Marks the world to stay after its owner.
///
/// Errors: the run directory is not writable.
pub fn keep(id: &str) -> Result<()> {
    fs::write(dir(id).join(KEPT), "").with_context(|| format!("write {RUN_DIR}/{id}/{KEPT}"))
}

/// Ids of all worlds on the machine, and whether each was kept on purpose.
pub fn worlds() -> Vec<(String, bool)> {
    let places = [
        Some(PathBuf::from(RUN_DIR)),
        place::cgroup_root().ok(),
        Some(PathBuf::from(NETNS_DIR)),
    ];
    let entries = places
        .into_iter()
        .flatten()
        .flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
    let ids: BTreeSet<_> = entries
        .filter_map(|entry| id_of(&entry.file_name().to_string_lossy()))
        .collect();
    ids.into_iter()
        .map(|id| (id.clone(), dir(&id).join(KEPT).exists()))
        .collect()
}

/// The id that a name begins with: prefix, pid, number.
fn id_of(name: &str) -> Option<String> {
    let mut parts = name.strip_prefix(PREFIX)?.split('-');
    let (pid, number): (u32, u32) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some(format!("{PREFIX}{pid}-{number}"))
}

/// Takes down every world whose owner is dead and which was not kept; returns their ids.
pub fn sweep() -> Vec<String> {
    let dead = worlds()
        .into_iter()
        .filter(|(id, kept)| !kept && !alive(id))
        .map(|(id, _)| id);
    dead.filter(|id| demolish(id).is_ok()).collect()
}

/// Takes down one world: its processes, namespaces, mounts, cgroups and files. Doing it twice is fine.
///
/// Errors: the first thing that would not go; the rest is tried all the same.
pub fn demolish(id: &str) -> Result<()> {
    let mut first = cgroup::remove(&place::cgroup_root()?.join(id));
    let mut note = |outcome: Result<()>| {
        if first.is_ok() {
            first = outcome;
        }
    };
    for mount in mounts_below(&dir(id)) {
        let gone = umount2(&mount, MntFlags::MNT_DETACH);
        note(gone.with_context(|| format!("unmount {}", mount.display())));
    }
    for name in namespaces(id) {
        let out = Command::new("ip").args(["netns", "delete", &name]).output();
        note(
            out.map(drop)
                .with_context(|| format!("delete namespace {name}")),
        );
    }
    if dir(id).exists() {
        let gone = fs::remove_dir_all(dir(id));
        note(gone.with_context(|| format!("remove {RUN_DIR}/{id}")));
    }
    first
}

/// Names of the network namespaces of a world.
pub fn namespaces(id: &str) -> Vec<String> {
    let prefix = format!("{id}-");
    let entries = fs::read_dir(NETNS_DIR).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(&prefix))
        .collect()
}

fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from);
    points.filter(|point| point.starts_with(dir)).collect()
}

/// Whether the process that made the world still runs; while its marker is not yet written, the pid in the id decides.
fn alive(id: &str) -> bool {
    let text = fs::read_to_string(dir(id).join(OWNER)).unwrap_or_default();
    let (pid, start) = text
        .split_once(' ')
        .unwrap_or_else(|| (id.split('-').nth(1).unwrap_or_default(), ""));
    let Ok(pid) = pid.parse() else { return false };
    let now = start_time(pid);
    now.is_some() && (start.is_empty() || now.as_deref() == Some(start))
}

/// Start time of a process in clock ticks since boot: with the pid it names a process for good.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // the second field is the name in parentheses and may hold anything; after it come fields 3, 4, ...; 22 is ours
    stat.rsplit_once(") ")?
        .1
        .split(' ')
        .nth(19)
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::id_of;

    #[test]
    fn finds_the_world_that_a_name_belongs_to() {
        assert_eq!(
            id_of("zt-12-3-node1-ztunnel-200").as_deref(),
            Some("zt-12-3")
        );
        assert_eq!(id_of("zt-12-3").as_deref(), Some("zt-12-3"));
        for other in ["zt-12", "zt-x-3", "cni-12-3", ""] {
            assert_eq!(id_of(other), None);
        }
    }
}
