//! The places where things are tried, a network namespace and a cgroup, and what of capture needs no kernel program.

use std::cell::OnceCell;
use std::io;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};
use sys::Netns;

use super::Finding;
use crate::netlink::{Family, Netlink, Rule};
use crate::sockets::PodFlags;
use crate::{own_cgroup, sysctl};

/// A namespace and a cgroup to try things in; the namespace has no interface but a loopback that is down.
pub struct Scratch {
    netns: Netns,
    cgroup: OnceCell<Result<PathBuf, String>>,
}

impl Scratch {
    /// Makes the namespace; the cgroup is made when it is first asked for.
    ///
    /// Errors: no right to make a namespace (`CAP_SYS_ADMIN`).
    pub fn make() -> io::Result<Self> {
        // a thread of its own: the caller's must stay where it is
        let made = std::thread::Builder::new()
            .name("scratch".into())
            .spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET)?;
                Netns::current()
            })?;
        let netns = made
            .join()
            .map_err(|_| io::Error::other("the thread that makes a namespace panicked"))??;
        Ok(Self {
            netns,
            cgroup: OnceCell::new(),
        })
    }

    /// [`Scratch::make`] as a finding.
    pub fn found() -> Result<Self, Finding> {
        Self::make().map_err(|error| {
            Finding::failed(
                "network namespaces",
                format!("cannot make and enter one: {error}"),
                "CAP_SYS_ADMIN is needed, and a seccomp profile that allows setns and unshare",
            )
        })
    }

    pub(super) fn netns(&self) -> &Netns {
        &self.netns
    }

    /// A cgroup below this process's own.
    pub(super) fn cgroup(&self) -> Result<&Path, &str> {
        let made = self
            .cgroup
            .get_or_init(|| own_cgroup::scratch().map_err(|error| error.to_string()));
        made.as_deref().map_err(String::as_str)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(Ok(cgroup)) = self.cgroup.get() {
            // an empty directory: the next daemon's sweep takes it if this fails
            let _ = std::fs::remove_dir(cgroup);
        }
    }
}

/// The daemon's sockets in a pod: transparent listeners, the DNS socket, the raw one for answers.
pub fn sockets(scratch: &Scratch) -> Finding {
    let flags = PodFlags {
        dns: true,
        bypass_inbound: false,
    };
    Finding::of(
        "sockets in a pod",
        crate::sockets::open(&scratch.netns, flags),
        |_| "transparent listeners and raw answers".to_owned(),
        "transparent and raw sockets need CAP_NET_ADMIN and CAP_NET_RAW",
    )
}

/// The rules of policy routing.
pub fn routing(scratch: &Scratch) -> Finding {
    let tried = || -> io::Result<()> {
        let mut netlink = Netlink::open(&scratch.netns)?;
        let families = [Family::V4, Family::V6];
        let rules = families.map(|of| [Rule::Daemon(of), Rule::Redirect(of), Rule::Dns(of)]);
        for rule in rules.into_iter().flatten() {
            match netlink.add_rule(rule) {
                // a kernel without IPv6
                Err(error) if error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) => {}
                other => other?,
            }
        }
        let there = netlink.rules()?;
        if there.contains(&Rule::Redirect(Family::V4)) && there.contains(&Rule::Dns(Family::V4)) {
            return Ok(());
        }
        Err(io::Error::other("rules that were added are not there"))
    };
    Finding::of(
        "policy routing",
        tried(),
        |()| "rules by mark and by port".to_owned(),
        "CAP_NET_ADMIN is needed, and a kernel with CONFIG_IP_MULTIPLE_TABLES (and CONFIG_IPV6_MULTIPLE_TABLES)",
    )
}

/// The sysctls of a pod's namespace can be written through this procfs.
///
/// - `host_proc`: the host's procfs; that of a container is read-only where sysctls are
pub fn sysctls(scratch: &Scratch, host_proc: &Path) -> Finding {
    let one = |name: &str| {
        let path = host_proc.join("sys").join(name);
        match std::fs::write(&path, sysctl::WANTED.to_string()) {
            // a kernel without IPv6
            Err(error) if error.kind() == io::ErrorKind::NotFound && name.contains("ipv6") => {
                Ok(())
            }
            Err(error) => Err(format!("{}: {error}", path.display())),
            Ok(()) => Ok(()),
        }
    };
    let tried = scratch
        .netns
        .run(|| sysctl::ALL.iter().try_for_each(|name| one(name)));
    Finding::of(
        "sysctls of a pod",
        tried.unwrap_or_else(|error| Err(error.to_string())),
        |()| sysctl::ALL.join(", ").replace("net/", ""),
        "mount the host's /proc into the container, writable, and set HOST_PROC to where it is",
    )
}
