//! Starting capture, or taking it over: programs, maps and links that all pods share.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use sys::Netns;
use sys::bpf::Target;
use tracing::info;

use super::{Capture, Config};
use crate::cgroups::living;
use crate::error::StartError;
use crate::kubelet::Kubelet;
use crate::maps::{self, Maps};
use crate::pins::Pins;
use crate::probe::packets_know_namespace;
use crate::programs::{self, CGROUP_PROGRAMS};

impl Capture {
    /// Loads the programs, takes over or makes maps and links, and becomes their owner.
    ///
    /// Pods that a predecessor enrolled stay captured; enrol them again to serve them, or [`Capture::release`] them.
    pub fn start(config: Config) -> Result<Self, StartError> {
        if !programs::BUILT {
            return Err(StartError::NotBuilt);
        }
        sys::cgroup::id(&config.cgroup).map_err(|cause| StartError::Cgroup {
            path: config.cgroup.clone(),
            cause,
        })?;
        let own_netns = Netns::current().map_err(StartError::Netns)?.id();
        let unusable = |cause| StartError::Pins {
            path: config.pins.clone(),
            cause,
        };
        Pins::must_last(&config.pins, &config.host_proc).map_err(unusable)?;
        let pins = Pins::create(&config.pins).map_err(unusable)?;
        let lock = pins.lock().map_err(unusable)?;
        maps::prepare(&pins)?;
        if config.dedicated && !packets_know_namespace() {
            info!(
                "this kernel does not tell the namespace of a packet (Linux 6.12 does): the guards judge by what connect() saw alone"
            );
        }
        let programs = programs::load_shared(&pins, config.dedicated)?;
        let mut maps = Maps::open(&pins)?;
        let generation = maps.owner()? + 1;
        maps.add_daemon(config.daemon_cgroup_id, generation, living)?;
        maps.set_exempt(&config.exempt_sources)?;
        let kubelet = Kubelet::new(programs.kubelet, &config);
        let kept = pins.maps().map_err(unusable)?;
        let mut capture = Self {
            config,
            pins,
            maps,
            programs: programs.cgroup,
            kubelet,
            generation,
            own_netns,
            pods: BTreeMap::new(),
            retired: BTreeMap::new(),
            cgroups: HashMap::new(),
            kept,
        };
        capture
            .prepare_cgroups()
            .map_err(|cause| StartError::Cgroup {
                path: capture.config.cgroup.clone(),
                cause,
            })?;
        capture.attach()?;
        capture.kubelet.attach(&capture.pins);
        capture.take_over_former();
        // Last: a predecessor goes on until everything stands.
        capture.maps.set_owner(generation)?;
        drop(lock);
        info!(generation, cgroup = %capture.config.cgroup.display(), adopted = capture.adopted().len(), "capture started");
        Ok(capture)
    }

    /// Puts the programs on their links: in place where a link is there, else by a new link.
    pub(super) fn attach(&self) -> Result<(), StartError> {
        for ((program, pin, kind), fd) in CGROUP_PROGRAMS.iter().zip(&self.programs) {
            let failed = |cause| StartError::Attach {
                program,
                cgroup: self.config.cgroup.clone(),
                cause,
            };
            let path = self.pins.path(pin);
            let there = self.cgroup_link(&path).map_err(failed)?;
            if let Some((link, _)) = there {
                sys::bpf::link_update(link.as_fd(), fd.as_fd()).map_err(failed)?;
                continue;
            }
            let cgroup = std::fs::File::open(&self.config.cgroup).map_err(failed)?;
            let link = sys::bpf::link(fd.as_fd(), cgroup.as_fd(), *kind).map_err(failed)?;
            self.pins.replace(&link, &path).map_err(failed)?;
        }
        Ok(())
    }

    /// The pinned link and its program, if it is attached to our cgroup.
    pub(super) fn cgroup_link(&self, path: &Path) -> io::Result<Option<(OwnedFd, u32)>> {
        let wanted = sys::cgroup::id(&self.config.cgroup)?;
        let Ok(link) = sys::bpf::pinned(path) else {
            return Ok(None);
        };
        let info = sys::bpf::link_info(&link)?;
        let here = matches!(info.target, Target::Cgroup { id, .. } if id == wanted);
        Ok(here.then_some((link, info.program)))
    }
}
