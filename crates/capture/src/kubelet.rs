//! kubelet's own connections, told by its cgroup: a program there records each one, and `sk_lookup` lets it through to the application.
//! So probes work where plaintext is refused, and no other process of the node gets through by sharing kubelet's address.
//!
//! Where kubelet cannot be found (`CAPTURE_EXEMPT_SOURCES` names addresses then) nothing is recorded, and nothing fails.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use sys::bpf::{Attach, Target};
use tracing::{info, warn};

use crate::own_cgroup::is_below;
use crate::pins::Pins;

/// Name of kubelet's process.
const PROCESS: &str = "kubelet";
/// Pin of the link at kubelet's cgroup.
pub(crate) const LINK: &str = "link-kubelet";

/// Where kubelet is, and the program that watches it.
#[derive(Debug)]
pub(crate) struct Kubelet {
    program: OwnedFd,
    host_proc: PathBuf,
    /// As configured.
    cgroup: Option<PathBuf>,
    capture: PathBuf,
    /// What was said last of why it is not watched.
    told: Option<String>,
}

impl Kubelet {
    /// Nothing is attached yet.
    pub fn new(program: OwnedFd, config: &crate::Config) -> Self {
        Self {
            program,
            host_proc: config.host_proc.clone(),
            cgroup: config.kubelet_cgroup.clone(),
            capture: config.cgroup.clone(),
            told: None,
        }
    }

    /// Attaches the program to kubelet's cgroup, if it is not there already. Says once why not.
    pub fn attach(&mut self, pins: &Pins) {
        let outcome = self.find().and_then(|cgroup| {
            let moved = self.move_to(&cgroup, pins);
            moved.map_err(|error| format!("cannot watch {}: {error}", cgroup.display()))
        });
        match outcome {
            Ok(()) => self.told = None,
            Err(reason) if self.told.as_ref() != Some(&reason) => {
                warn!(reason, "kubelet's probes are known by address only");
                self.told = Some(reason);
            }
            Err(_) => {}
        }
    }

    /// What is wrong with the link; `None` also when kubelet is not there to be watched.
    pub fn drift(&self, pins: &Pins) -> Option<String> {
        let cgroup = self.find().ok()?;
        let wanted = (
            sys::cgroup::id(&cgroup).ok()?,
            sys::bpf::program_id(&self.program).ok()?,
        );
        (attached(&pins.path(LINK)) != Some(wanted))
            .then(|| "program probes not attached to kubelet's cgroup".into())
    }

    fn move_to(&self, cgroup: &Path, pins: &Pins) -> io::Result<()> {
        let (path, id) = (pins.path(LINK), sys::cgroup::id(cgroup)?);
        if let Some((there, program)) = attached(&path)
            && there == id
        {
            if program != sys::bpf::program_id(&self.program)? {
                sys::bpf::link_update(sys::bpf::pinned(&path)?.as_fd(), self.program.as_fd())?;
            }
            return Ok(());
        }
        let directory = fs::File::open(cgroup)?;
        let link = sys::bpf::link(self.program.as_fd(), directory.as_fd(), Attach::SockOps)?;
        pins.replace(&link, &path)?;
        info!(cgroup = %cgroup.display(), "kubelet's probes are known by its cgroup");
        Ok(())
    }

    /// kubelet's cgroup, or why it cannot be watched.
    fn find(&self) -> Result<PathBuf, String> {
        let found = match &self.cgroup {
            Some(cgroup) => cgroup.clone(),
            None => by_process(&self.host_proc)
                .ok_or("no process of the name kubelet was found with a visible cgroup")?,
        };
        // The pods' own connections must not pass for probes.
        match is_below(&self.capture, &found) {
            Ok(false) => Ok(found),
            Ok(true) => Err(format!(
                "kubelet's cgroup {} holds the pods too",
                found.display()
            )),
            Err(error) => Err(format!("kubelet's cgroup {}: {error}", found.display())),
        }
    }
}

/// Id of the cgroup that the pinned link is attached to, and its program.
fn attached(path: &Path) -> Option<(u64, u32)> {
    let info = sys::bpf::link_info(&sys::bpf::pinned(path).ok()?).ok()?;
    match info.target {
        Target::Cgroup { id, .. } => Some((id, info.program)),
        _ => None,
    }
}

/// The cgroup of the first process with kubelet's name.
fn by_process(host_proc: &Path) -> Option<PathBuf> {
    let processes = fs::read_dir(host_proc).ok()?.flatten();
    let mounts = sys::cgroup::mounts().unwrap_or_default();
    let mut cgroups = processes
        .map(|entry| entry.path())
        .filter(|dir| fs::read_to_string(dir.join("comm")).is_ok_and(|comm| comm.trim() == PROCESS))
        .filter_map(|dir| fs::read_to_string(dir.join("cgroup")).ok())
        .filter_map(|text| {
            text.lines()
                .find_map(|line| line.strip_prefix("0::").map(inside))
        });
    cgroups.find_map(|cgroup| {
        let places = mounts.iter().filter_map(|mount| {
            Some(
                mount
                    .point
                    .join(cgroup.strip_prefix(inside(&mount.root)).ok()?),
            )
        });
        places.into_iter().find(|place| place.is_dir())
    })
}

/// The path from the top of the hierarchy, without the steps up that a cgroup namespace shows in front.
fn inside(path: &str) -> PathBuf {
    let plain = |part: &Component<'_>| matches!(part, Component::Normal(_));
    Path::new(path).components().filter(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_up_are_left_out() {
        for (shown, want) in [
            ("/", ""),
            (
                "/system.slice/kubelet.service",
                "system.slice/kubelet.service",
            ),
            (
                "/../../system.slice/kubelet.service",
                "system.slice/kubelet.service",
            ),
            ("/../..", ""),
        ] {
            assert_eq!(inside(shown), Path::new(want), "{shown}");
        }
    }

    #[test]
    fn the_process_is_found_by_its_name() {
        let proc = tempfile::tempdir().unwrap();
        let process = |pid: &str, comm: &str, cgroup: &str| {
            let dir = proc.path().join(pid);
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("comm"), comm).unwrap();
            fs::write(dir.join("cgroup"), cgroup).unwrap();
        };
        process("1", "init\n", "0::/\n");
        assert_eq!(by_process(proc.path()), None);
        process("7", "kubelet\n", "1:name=systemd:/x\n0::/../no/such\n");
        assert_eq!(by_process(proc.path()), None);
        process("8", "kubelet\n", "1:name=systemd:/x\n0::/..\n");
        let mounts = sys::cgroup::mounts().unwrap();
        let at = |path: PathBuf| sys::cgroup::id(&path).unwrap();
        assert_eq!(
            at(by_process(proc.path()).unwrap()),
            at(mounts[0].point.clone())
        );
    }
}
