//! The bpf file system: is a directory on one, and mounting it where a machine has not.
//!
//! Leaves to others what is pinned there.

use std::fs;
use std::io;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{FsType, statfs};

/// `BPF_FS_MAGIC` of `linux/magic.h`.
const BPF_FS_MAGIC: FsType = FsType(0xcafe_4a11);
/// The customary mount point.
pub const POINT: &str = "/sys/fs/bpf";

/// Whether `path` lies on a bpf file system. A path that does not exist yet is judged by its nearest existing parent.
pub fn holds(path: &Path) -> io::Result<bool> {
    let nearest = path
        .ancestors()
        .find(|dir| dir.exists())
        .unwrap_or(Path::new("/"));
    Ok(statfs(nearest)?.filesystem_type() == BPF_FS_MAGIC)
}

/// Whether a mount made by this process stays when the process and its container are gone: whether its mount namespace is the host's.
/// `None`: it cannot be told.
///
/// - `host_proc`: the host's procfs; that of a container cannot tell
pub fn mounts_stay(host_proc: &Path) -> Option<bool> {
    let own = fs::read_link("/proc/self/ns/mnt").ok()?;
    if fs::read_link(host_proc.join("1/ns/mnt")).ok()? != own {
        return Some(false);
    }
    // kthreadd has pid 2 on every host, and is in no container
    let name = fs::read_to_string(host_proc.join("2/comm")).ok()?;
    (name.trim() == "kthreadd").then_some(true)
}

/// Makes sure that `path` lies on a bpf file system: mounts one at [`POINT`] when `path` is below it and there is none.
///
/// Errors: `path` is elsewhere and on another file system, or mounting fails.
pub fn ensure(path: &Path) -> io::Result<()> {
    if holds(path)? {
        return Ok(());
    }
    if !path.starts_with(POINT) {
        let text = format!(
            "{} is not on a bpf file system (mount -t bpf bpf <dir>)",
            path.display()
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), POINT, Some("bpf"), flags, Some("mode=0700"))?;
    Ok(())
}
