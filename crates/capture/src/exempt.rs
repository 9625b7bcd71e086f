//! What a daemon that captures its own namespace needs before it speaks with anybody: capture that a predecessor left stands whether
//! or not somebody serves it, and would catch the daemon's own connections and questions to resolvers.
//!
//! Leaves taking capture over to [`crate::Capture::start`].

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use sys::bpf::Attach;

use crate::cgroups::living;
use crate::error::StartError;
use crate::maps;
use crate::own_cgroup::{self, CgroupError, find_own};
use crate::pins::Pins;
use crate::programs::{self, OWN_PROGRAM};

/// The daemon is told from the processes that it captures. Its questions are captured when this is dropped.
#[derive(Debug)]
pub struct Exemption {
    _link: OwnedFd,
    /// Id of the daemon's cgroup.
    pub cgroup_id: u64,
}

/// Why the daemon cannot be told from the processes around it.
#[derive(Debug, thiserror::Error)]
pub enum ExemptError {
    /// It has no cgroup of its own.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The kernel refused.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// Gives this process a cgroup of its own, marks the datagram sockets that it makes from now on, and exempts its connections from what
/// predecessors of any layout have pinned. Takes over nothing.
///
/// - `capture_cgroup`, `pins`: as of [`crate::Config`]
pub fn take(capture_cgroup: &Path, pins: &Path) -> Result<Exemption, ExemptError> {
    let cgroup_id = own_cgroup::settle(capture_cgroup)?;
    let link = mark_questions()?;
    let pins = Pins::at(pins);
    let unusable = |cause| StartError::Pins {
        path: pins.dir().to_owned(),
        cause,
    };
    let formers = pins.formers().map_err(unusable)?;
    for place in formers.iter().chain([&pins]) {
        maps::exempt_early(place, cgroup_id, living)?;
    }
    Ok(Exemption {
        _link: link,
        cgroup_id,
    })
}

fn mark_questions() -> Result<OwnedFd, ExemptError> {
    let program = programs::load_own()?;
    let place = find_own()?;
    let refused = |cause| StartError::Attach {
        program: OWN_PROGRAM,
        cgroup: place.clone(),
        cause,
    };
    let cgroup = File::open(&place).map_err(refused)?;
    let link = sys::bpf::link(program.as_fd(), cgroup.as_fd(), Attach::SockCreate);
    Ok(link.map_err(refused)?)
}
