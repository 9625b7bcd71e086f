//! The few sysctls of a pod's network namespace that capture needs, through a procfs of the caller's choice.
//!
//! `sys/net` of every procfs follows the thread's network namespace; that of a container is read-only, the host's is not.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Accepted sockets take the mark of the connection request: the application's answers come back to the daemon.
pub(crate) const ACCEPT: &str = "net/ipv4/tcp_fwmark_accept";
/// Resets and ICMP errors carry the mark of what they answer (IPv4).
pub(crate) const REFLECT_V4: &str = "net/ipv4/fwmark_reflect";
/// The same for IPv6.
pub(crate) const REFLECT_V6: &str = "net/ipv6/fwmark_reflect";
/// All of them, in the order in which they are saved.
pub(crate) const ALL: [&str; 3] = [ACCEPT, REFLECT_V4, REFLECT_V6];
/// The value that capture needs, for each.
pub(crate) const WANTED: i32 = 1;

/// The value in the calling thread's namespace; `None` when the kernel has no such sysctl.
///
/// - `proc`: where a procfs is mounted
pub(crate) fn read(proc: &Path, name: &str) -> io::Result<Option<i32>> {
    let path = path(proc, name);
    match fs::read_to_string(&path) {
        Ok(text) => text
            .trim()
            .parse()
            .map(Some)
            .map_err(|_| io::ErrorKind::InvalidData.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(named(&path, &error)),
    }
}

/// Writes the value in the calling thread's namespace.
///
/// - `proc`: where a procfs is mounted, writable
pub(crate) fn write(proc: &Path, name: &str, value: i32) -> io::Result<()> {
    let path = path(proc, name);
    fs::write(&path, value.to_string()).map_err(|error| named(&path, &error))
}

fn path(proc: &Path, name: &str) -> PathBuf {
    proc.join("sys").join(name)
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
