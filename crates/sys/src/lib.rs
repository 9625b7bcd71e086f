//! All unsafe user-space code of the project: network namespaces, socket options, raw answers, cgroup and bpf system calls.
//!
//! Every public function is safe. What the bytes mean, and when a call is right, is left to the callers.
#![deny(unsafe_code)]

pub mod bpf;
pub mod bpffs;
pub mod cgroup;
pub mod clock;
pub mod netns;
pub mod raw;
pub mod seqpacket;
pub mod socket;
pub mod udp;

pub use netns::{Netns, NetnsId};
pub use seqpacket::Seqpacket;
