//! cgroup v2 directories: made, emptied of processes, removed.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::wait;

/// How long the kernel may take to bury the processes of a killed group.
const BURIAL_MAX: Duration = Duration::from_secs(5);

/// Makes the directory and its parents.
///
/// Errors: the hierarchy refuses it.
pub fn make(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("make cgroup {}", path.display()))
}

/// The processes directly in the group.
pub fn processes(path: &Path) -> Vec<u32> {
    let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Kills every process in the group and below it, waits for their end and removes the directories; a group that does
/// not exist is fine.
///
/// Errors: processes or directories that would not go.
pub fn remove(path: &Path) -> Result<()> {
    if !path.is_dir() {
        return Ok(());
    }
    empty(path)?;
    fs::remove_dir(path).with_context(|| format!("remove cgroup {}", path.display()))
}

/// The same, but the directory itself stays.
///
/// Errors: as [`remove`].
pub fn empty(path: &Path) -> Result<()> {
    // the kernel's own kill (5.14) takes the whole subtree at once and leaves no gap for a fork
    fs::write(path.join("cgroup.kill"), "1")
        .with_context(|| format!("kill cgroup {}", path.display()))?;
    let populated = || {
        fs::read_to_string(path.join("cgroup.events"))
            .is_ok_and(|text| text.contains("populated 1"))
    };
    wait::until_true(
        BURIAL_MAX,
        &format!("processes in {} gone", path.display()),
        || !populated(),
    )?;
    remove_below(path).with_context(|| format!("remove what is below cgroup {}", path.display()))
}

fn remove_below(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_below(&entry.path())?;
            fs::remove_dir(entry.path())?;
        }
    }
    Ok(())
}
