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
/// Line of the status of a process that init started (proc(5)).
const INITS_CHILD: &str = "PPid:\t1";
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
    /// There is no kubelet to be known.
    none: bool,
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
            none: config.dedicated,
            told: None,
        }
    }

    /// Attaches the program to kubelet's cgroup, if it is not there already. Says once why not.
    pub fn attach(&mut self, pins: &Pins) {
        if self.none {
            return;
        }
        let found = self.find();
        // A predecessor may have watched what is refused now.
        if found.is_err()
            && let Err(error) = crate::pins::remove(&pins.path(LINK))
        {
            warn!(%error, "cannot stop watching what passed for kubelet's cgroup");
        }
        let outcome = found.and_then(|cgroup| {
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
        let cgroup = self.find().ok().filter(|_| !self.none)?;
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
        if let Some(cgroup) = &self.cgroup {
            return self.apart(cgroup).map(|()| cgroup.clone());
        }
        if self.captures_all() {
            return Err(
                "capture is attached to the top of the cgroups, where every process could be a pod's (set CAPTURE_CGROUP to the pods' cgroup)".into(),
            );
        }
        let mut refused = None;
        for cgroup in by_process(&self.host_proc) {
            match self.apart(&cgroup) {
                Ok(()) => return Ok(cgroup),
                Err(reason) => refused = refused.or(Some(reason)),
            }
        }
        Err(refused.unwrap_or_else(|| {
            "no process of the name kubelet was found with a visible cgroup".into()
        }))
    }

    /// Whether the pods' own connections cannot pass for probes: no pod is in this cgroup, and it is no pod's.
    fn apart(&self, cgroup: &Path) -> Result<(), String> {
        let shown = cgroup.display();
        let unknown = |error| format!("kubelet's cgroup {shown}: {error}");
        if is_below(&self.capture, cgroup).map_err(unknown)? {
            return Err(format!("kubelet's cgroup {shown} holds the pods too"));
        }
        if is_below(cgroup, &self.capture).map_err(unknown)? {
            return Err(format!(
                "a process that passes for kubelet is refused: its cgroup {shown} is among the pods', in {}",
                self.capture.display()
            ));
        }
        Ok(())
    }

    /// Whether every cgroup that can be seen is below the capture cgroup.
    fn captures_all(&self) -> bool {
        let captured = sys::cgroup::id(&self.capture).ok();
        let mounts = sys::cgroup::mounts().unwrap_or_default();
        let mut tops = mounts
            .iter()
            .filter_map(|mount| sys::cgroup::id(&mount.point).ok());
        tops.any(|top| Some(top) == captured)
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

/// The cgroups of the processes with kubelet's name, which anybody can take: init's children first, then by pid.
fn by_process(host_proc: &Path) -> Vec<PathBuf> {
    let processes = fs::read_dir(host_proc).into_iter().flatten().flatten();
    let mounts = sys::cgroup::mounts().unwrap_or_default();
    let mut named: Vec<_> = processes
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let read = |name| fs::read_to_string(entry.path().join(name)).ok();
            if read("comm")?.trim() != PROCESS {
                return None;
            }
            let started_by_init =
                read("status").is_some_and(|text| text.lines().any(|line| line == INITS_CHILD));
            let text = read("cgroup")?;
            let cgroup = text.lines().find_map(|line| line.strip_prefix("0::"))?;
            Some((!started_by_init, pid, inside(cgroup)))
        })
        .collect();
    named.sort_unstable();
    let place = |cgroup: PathBuf| {
        let mut places = mounts.iter().filter_map(|mount| {
            let below = cgroup.strip_prefix(inside(&mount.root)).ok()?;
            Some(mount.point.join(below))
        });
        places.find(|place| place.is_dir())
    };
    let named = named.into_iter().map(|(_, _, cgroup)| cgroup);
    named.filter_map(place).collect()
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
        process("7", "kubelet\n", "1:name=systemd:/x\n0::/../no/such\n");
        assert_eq!(by_process(proc.path()), [""; 0].map(PathBuf::from));
        process("8", "kubelet\n", "1:name=systemd:/x\n0::/..\n");
        let top = sys::cgroup::mounts().unwrap().remove(0).point;
        let at = |path: &PathBuf| sys::cgroup::id(path).unwrap();
        let found = by_process(proc.path());
        assert_eq!(found.iter().map(at).collect::<Vec<_>>(), [at(&top)]);
    }
}
