//! The few sysctls of a pod's network namespace that capture needs. `/proc/sys/net` follows the thread's namespace.

use std::fs;
use std::io;

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
pub(crate) fn read(name: &str) -> io::Result<Option<i32>> {
    match fs::read_to_string(path(name)) {
        Ok(text) => text
            .trim()
            .parse()
            .map(Some)
            .map_err(|_| io::ErrorKind::InvalidData.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(named(name, &error)),
    }
}

/// Writes the value in the calling thread's namespace.
pub(crate) fn write(name: &str, value: i32) -> io::Result<()> {
    fs::write(path(name), value.to_string()).map_err(|error| named(name, &error))
}

fn path(name: &str) -> String {
    format!("/proc/sys/{name}")
}

fn named(name: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path(name)))
}
