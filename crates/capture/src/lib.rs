//! Redirects enrolled pods' traffic to the daemon: loads and pins the kernel programs, and keeps links, maps, rules and routes right.
//!
//! Order of a pod's life: [`sockets::open`], [`Capture::enroll`], every now and then [`Capture::check`], [`Capture::release`].
//! Leaves to others which pods are wanted, and everything that happens on the sockets.
#![forbid(unsafe_code)]

mod capture;
mod cgroups;
pub mod diff;
mod error;
pub mod exempt;
pub mod external;
mod kubelet;
mod maps;
pub mod monitor;
mod netlink;
pub mod own_cgroup;
mod pins;
mod pod;
pub mod probe;
mod processes;
mod programs;
mod saved;
pub mod sockets;
mod sysctl;

pub use capture::{Adopted, Capture, Config, Drift, Released, Survey, release_pinned};
pub use cgroups::{CgroupView, HOLD_WINDOW_MAX};
pub use diff::{Cure, DriftKind};
pub use error::{EnrollError, ReleaseError, StartError, Step};
pub use pod::PodWanted;
pub use programs::BUILT;
pub use redirect_common::{CgroupState, DAEMON_MARK, REDIRECT_MARK};
pub use sockets::{Dns, PodFlags, PodSockets};
