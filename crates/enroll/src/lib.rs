//! Which pods of this node are ours: sources say what they see, the [`Roster`] says what to start and to stop.
//!
//! Starting listeners, capturing traffic and certificates are left to the assembly: this room only emits.
#![forbid(unsafe_code)]

pub mod cgroups;
pub mod file;
pub mod kubernetes;
pub mod own;
pub mod place;
pub mod pod;
pub mod roster;
pub mod rules;
pub mod watch;
pub mod zds;

pub use pod::{
    CaptureOptions, Labels, NetnsHandle, OutPod, Phase, Pod, PodEvent, PodSpec, Sighting,
};
pub use roster::{Action, Roster, StopReason};
pub use rules::{Rules, Verdict, Warning, Why};
