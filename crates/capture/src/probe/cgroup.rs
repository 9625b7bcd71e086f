//! Cgroups: the daemon's own, the one that capture attaches to, and the programs of others that are in the way there.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use sys::bpf::probe::{ALLOW_MULTI, ALLOW_OVERRIDE, Attached, links, program_name, query};
use sys::bpf::{Attach, Target};

use super::Finding;
use crate::own_cgroup::{self, find_own, is_below};
use crate::programs::CGROUP_PROGRAMS;

const SK_LOOKUP: u32 = Attach::SkLookup as u32;
/// First parts of the names of pins that are links.
const LINK_PINS: [&str; 2] = ["link-", "lookup-"];

/// The cgroup that capture attaches to, and whether the daemon can be told from the pods in it.
///
/// - `configured`: none = the node's kubepods, else the root
///
/// Returns the capture cgroup as well, where there is one.
pub fn own_cgroup(configured: Option<&Path>) -> (Vec<Finding>, Option<PathBuf>) {
    let hint = "mount the host's /sys/fs/cgroup (cgroup v2) into the container and set CAPTURE_CGROUP to the cgroup that holds all pods";
    let capture = configured.map_or_else(
        || own_cgroup::default_cgroup().map_err(|error| error.to_string()),
        |path| Ok(path.to_owned()),
    );
    let capture = capture.and_then(|path| {
        sys::cgroup::id(&path)
            .map(|_| path.clone())
            .map_err(|error| format!("{}: {error}", path.display()))
    });
    let place = Finding::of(
        "capture cgroup",
        capture.as_ref(),
        |path| {
            let how = if configured.is_some() {
                "as configured"
            } else {
                "found"
            };
            format!("{}, {how}", path.display())
        },
        hint,
    );
    let mut findings = vec![place];
    if let Ok(capture) = &capture {
        findings.push(separable(capture));
    }
    (findings, capture.ok())
}

/// Whether this process can be exempt from capture by its cgroup.
fn separable(capture: &Path) -> Finding {
    const NAME: &str = "own cgroup";
    let hint = "the daemon needs a cgroup without other processes: mount the host's cgroup v2 hierarchy writable, or start it in a cgroup of its own";
    let own = match find_own() {
        Ok(own) => own,
        Err(error) => return Finding::failed(NAME, error.to_string(), hint),
    };
    match own_cgroup::scratch() {
        Ok(made) => {
            // empty; and if it stays, the next daemon sweeps it away
            let _ = fs::remove_dir(made);
            return Finding::ok(
                NAME,
                format!("{}, one more can be made in it", own.display()),
            );
        }
        Err(error) if is_below(capture, &own).unwrap_or(true) => {
            return Finding::failed(
                NAME,
                format!(
                    "{} holds the pods as well, and no other can be made in it: {error}",
                    own.display()
                ),
                hint,
            );
        }
        Err(_) => {}
    }
    match sys::cgroup::processes(&own) {
        Ok(processes) if processes.len() <= 1 => {
            Finding::ok(NAME, format!("{}, alone in it", own.display()))
        }
        // as `kubectl exec` makes them, beside a daemon that runs
        Ok(processes) if is_containers() && !processes.contains(&0) => Finding::ok(
            NAME,
            format!(
                "{}, the container's own, with {} processes now",
                own.display(),
                processes.len()
            ),
        ),
        Ok(processes) => Finding::failed(
            NAME,
            format!(
                "{} holds {} processes, and no other can be made in it",
                own.display(),
                processes.len()
            ),
            hint,
        ),
        Err(error) => Finding::failed(NAME, format!("{}: {error}", own.display()), hint),
    }
}

/// Whether our cgroup is the root of a cgroup namespace, so that all of its processes are of this container.
fn is_containers() -> bool {
    sys::cgroup::own_path().is_ok_and(|path| path == "/")
}

/// Programs of others at the capture cgroup and above: those that shut capture out, and those that run beside it.
///
/// - `pins`: where this daemon's own links are pinned
pub fn others_at_cgroup(capture: &Path, pins: &Path) -> Vec<Finding> {
    let ours = pinned_programs(pins);
    let (mut shut, mut replaced, mut beside) = (Vec::new(), Vec::new(), Vec::new());
    for (_, _, attach) in CGROUP_PROGRAMS {
        let place = word(attach);
        let mut settled = false;
        for (depth, cgroup) in ancestors(capture).into_iter().enumerate() {
            let attached = match attached(&cgroup, attach) {
                Ok(attached) => attached,
                Err(error) => {
                    let detail = format!("{} at {}: {error}", place, cgroup.display());
                    let hint = "listing programs needs CAP_NET_ADMIN and CAP_SYS_ADMIN";
                    return vec![Finding::failed("programs of others", detail, hint)];
                }
            };
            let others: Vec<String> = attached
                .programs
                .iter()
                .filter(|id| !ours.contains(id))
                .map(|id| format!("{place} {} at {}", named(*id), cgroup.display()))
                .collect();
            if others.is_empty() {
                settled |= attached.flags & ALLOW_MULTI != 0;
                continue;
            }
            match hindrance(&attached, depth, settled) {
                Hindrance::Shuts => shut.extend(others),
                Hindrance::IsReplaced => replaced.extend(others),
                Hindrance::None => beside.extend(others),
            }
            settled = true;
        }
    }
    vec![verdict(&shut, &replaced), listed(&beside)]
}

#[derive(Debug, PartialEq, Eq)]
enum Hindrance {
    /// Capture cannot attach.
    Shuts,
    /// Capture can, and this program then no longer runs for pods.
    IsReplaced,
    /// Both run.
    None,
}

/// What the kernel thinks of another program where programs of others stand above it (`hierarchy_allows_attach`).
///
/// - `depth`: 0 at the capture cgroup itself
/// - `settled`: a cgroup nearer to the capture cgroup has decided already
fn hindrance(attached: &Attached, depth: usize, settled: bool) -> Hindrance {
    if attached.flags & ALLOW_MULTI != 0 {
        return Hindrance::None;
    }
    if depth == 0 {
        return Hindrance::Shuts;
    }
    match (settled, attached.flags & ALLOW_OVERRIDE != 0) {
        (false, false) => Hindrance::Shuts,
        _ => Hindrance::IsReplaced,
    }
}

fn verdict(shut: &[String], replaced: &[String]) -> Finding {
    const NAME: &str = "exclusive programs of others";
    if !shut.is_empty() {
        return Finding::failed(
            NAME,
            shut.join(", "),
            "attached without BPF_F_ALLOW_MULTI, so the kernel refuses capture beside it (EPERM): attach it with that flag or by a link, detach it, or set CAPTURE_CGROUP to a cgroup that is not below",
        );
    }
    if !replaced.is_empty() {
        return Finding::warning(
            NAME,
            replaced.join(", "),
            "attached with BPF_F_ALLOW_OVERRIDE: it no longer runs for pods once capture is attached below it",
        );
    }
    Finding::ok(NAME, "none")
}

fn listed(beside: &[String]) -> Finding {
    if beside.is_empty() {
        return Finding::ok("programs beside capture", "none");
    }
    Finding::ok("programs beside capture", beside.join(", "))
}

/// Choosers of sockets that are not this daemon's, wherever on the machine they are.
pub fn others_at_sockets(pins: &Path) -> Finding {
    const NAME: &str = "sk_lookup programs of others";
    let ours = pinned_programs(pins);
    let links = match links() {
        Ok(links) => links,
        Err(error) => {
            return Finding::warning(NAME, error.to_string(), "listing links needs CAP_SYS_ADMIN");
        }
    };
    let others: Vec<String> = links
        .iter()
        .filter(|link| !ours.contains(&link.program))
        .filter_map(|link| match link.target {
            Target::Netns { inode, attach } if attach == SK_LOOKUP && inode != 0 => {
                Some(format!("{} in net:[{inode}]", named(link.program)))
            }
            _ => None,
        })
        .collect();
    if others.is_empty() {
        return Finding::ok(NAME, "none");
    }
    Finding::warning(
        NAME,
        others.join(", "),
        "in a pod's namespace it would choose sockets beside capture; one of another ztunnel on this machine is only a neighbour",
    )
}

fn named(id: u32) -> String {
    match program_name(id) {
        Ok(name) if !name.is_empty() => format!("{name} (id {id})"),
        _ => format!("id {id}"),
    }
}

/// As bpftool writes it.
fn word(attach: Attach) -> &'static str {
    match attach {
        Attach::CgroupIngress => "ingress",
        Attach::CgroupEgress => "egress",
        Attach::SockCreate => "sock_create",
        Attach::SockOps => "sock_ops",
        Attach::Connect4 => "connect4",
        Attach::Connect6 => "connect6",
        Attach::Setsockopt => "setsockopt",
        Attach::SkLookup => "sk_lookup",
    }
}

fn attached(cgroup: &Path, attach: Attach) -> io::Result<Attached> {
    let target = File::open(cgroup)?;
    match query(target.as_fd(), attach as u32) {
        // a kernel without this place has nobody there
        Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => Ok(Attached::default()),
        other => other,
    }
}

/// The cgroup and those above it, as far as they can be seen.
fn ancestors(cgroup: &Path) -> Vec<PathBuf> {
    let Ok(whole) = fs::canonicalize(cgroup) else {
        return Vec::new();
    };
    whole
        .ancestors()
        .take_while(|dir| sys::cgroup::id(dir).is_ok())
        .map(Path::to_owned)
        .collect()
}

/// Ids of the programs on all links pinned below `pins`, of every layout.
fn pinned_programs(pins: &Path) -> BTreeSet<u32> {
    let directories = fs::read_dir(pins).into_iter().flatten().flatten();
    directories
        .filter_map(|directory| fs::read_dir(directory.path()).ok())
        .flatten()
        .flatten()
        .filter(|pin| {
            let name = pin.file_name();
            let name = name.to_string_lossy();
            LINK_PINS.iter().any(|first| name.starts_with(first))
        })
        .filter_map(|pin| sys::bpf::pinned(&pin.path()).ok())
        .filter_map(|link| sys::bpf::link_info(&link).ok())
        .map(|info| info.program)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_shuts_whom_out() {
        let with = |flags| Attached {
            flags,
            programs: vec![1],
        };
        let cases = [
            (with(0), 0, false, Hindrance::Shuts),
            (with(ALLOW_OVERRIDE), 0, false, Hindrance::Shuts),
            (with(ALLOW_MULTI), 0, false, Hindrance::None),
            (with(0), 1, false, Hindrance::Shuts),
            (with(0), 2, true, Hindrance::IsReplaced),
            (with(ALLOW_OVERRIDE), 1, false, Hindrance::IsReplaced),
            (with(ALLOW_MULTI), 1, false, Hindrance::None),
        ];
        for (attached, depth, settled, expected) in cases {
            assert_eq!(
                hindrance(&attached, depth, settled),
                expected,
                "{attached:?} {depth} {settled}"
            );
        }
    }
}
