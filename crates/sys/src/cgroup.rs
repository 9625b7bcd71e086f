//! The cgroup v2 hierarchy: where it is mounted, ids of cgroups, and which one a process is in.
//!
//! Leaves to others which cgroup means what.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

/// Where a cgroup v2 hierarchy is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The cgroup that shows at the mount point, relative to the reader's cgroup namespace; may begin with `/..`.
    pub root: String,
    /// The mount point.
    pub point: PathBuf,
}

/// All cgroup v2 mounts that this process sees, in the order of mounting.
pub fn mounts() -> io::Result<Vec<Mount>> {
    Ok(parse_mounts(&fs::read_to_string("/proc/self/mountinfo")?))
}

/// Picks the cgroup2 lines out of the text of `/proc/self/mountinfo` (proc(5)).
fn parse_mounts(text: &str) -> Vec<Mount> {
    text.lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let mut fields = left.split(' ').skip(3);
            let (root, point) = (fields.next()?, fields.next()?);
            (right.split(' ').next()? == "cgroup2").then(|| Mount {
                root: unescape(root),
                point: PathBuf::from(unescape(point)),
            })
        })
        .collect()
}

/// Undoes the octal escapes of mountinfo: space, tab, newline and backslash.
fn unescape(field: &str) -> String {
    [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ]
    .iter()
    .fold(field.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// Path of this process's cgroup relative to its cgroup namespace, from `/proc/self/cgroup`.
pub fn own_path() -> io::Result<String> {
    let text = fs::read_to_string("/proc/self/cgroup")?;
    text.lines()
        .find_map(|line| line.strip_prefix("0::").map(str::to_owned))
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                "no cgroup v2 line in /proc/self/cgroup",
            )
        })
}

/// Id of the cgroup at `path`, as `bpf_get_current_cgroup_id` returns it.
///
/// Errors: the path is missing, or not on a cgroup v2 file system.
/// Source: kernfs uses the node id as inode number on 64-bit kernels.
pub fn id(path: &Path) -> io::Result<u64> {
    if statfs(path)?.filesystem_type() != CGROUP2_SUPER_MAGIC {
        let text = format!("{} is not in a cgroup v2 hierarchy", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    Ok(fs::metadata(path)?.ino())
}

/// Processes in the cgroup itself, not in its children; 0 stands for one outside the reader's pid namespace.
pub fn processes(path: &Path) -> io::Result<Vec<u32>> {
    Ok(fs::read_to_string(path.join("cgroup.procs"))?
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect())
}

/// Moves the calling process, with all its threads, into the cgroup at `path`.
pub fn enter(path: &Path) -> io::Result<()> {
    fs::write(path.join("cgroup.procs"), "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_cgroup2_lines() {
        let text = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                    38 31 0:41 /../.. /sys/fs/cgroup/uni\\040fied rw,relatime shared:4 - cgroup2 cgroup2 rw\n\
                    37 31 0:40 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\nrubbish\n";
        let want = Mount {
            root: "/../..".into(),
            point: "/sys/fs/cgroup/uni fied".into(),
        };
        assert_eq!(parse_mounts(text), [want]);
    }

    #[test]
    fn ids_are_only_for_cgroups() {
        let mount = mounts().unwrap().remove(0);
        assert_ne!(id(&mount.point).unwrap(), 0);
        assert_eq!(
            id(Path::new("/")).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }
}
