//! Why capture could not do what was asked: one enum per question. Leaves deciding what to do about it to others.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why capture cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// This build holds no kernel programs.
    #[error(
        "this build has no eBPF programs: build it where a BPF toolchain is installed (rustc with the bpfel-unknown-none target and llc, or a nightly rustc with rust-src and bpf-linker)"
    )]
    NotBuilt,
    /// The cgroup to attach to is unusable.
    #[error("capture cgroup {path}: {cause}")]
    Cgroup {
        /// As configured.
        path: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// No place for pins.
    #[error("pin directory {path}: {cause}")]
    Pins {
        /// As configured.
        path: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// The kernel refused a program or map.
    #[error("cannot load the program {program}: {cause}")]
    Load {
        /// Name of program or object.
        program: &'static str,
        /// The loader's answer, with the verifier's last words.
        cause: String,
    },
    /// The kernel refused to attach.
    #[error(
        "cannot attach {program} to {cgroup}: {cause}{}",
        if cause.raw_os_error() == Some(nix::libc::EPERM) { " (missing CAP_NET_ADMIN, or a parent cgroup holds an exclusive attachment)" } else { "" }
    )]
    Attach {
        /// Name of the program.
        program: &'static str,
        /// Where.
        cgroup: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// A shared map could not be read or written.
    #[error("map {map}: {cause}")]
    Map {
        /// Name of the map.
        map: &'static str,
        /// The kernel's answer.
        cause: String,
    },
    /// A namespace question failed.
    #[error("own network namespace: {0}")]
    Netns(io::Error),
}

/// A step of enrolling or releasing a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Is this a pod that can be captured?
    Admission,
    /// Reading the pod's addresses.
    Addresses,
    /// Remembering what is to be restored.
    Saving,
    /// Socket map entries.
    Sockets,
    /// Address, exclusion and pod map entries.
    Maps,
    /// The `sk_lookup` program of the pod's namespace.
    Lookup,
    /// Policy routing rules.
    Rules,
    /// Routes of the capture table.
    Routes,
    /// Sysctls of the namespace.
    Sysctls,
    /// The switch that makes `connect()` captured.
    Switch,
    /// What the kernel is told about the pod's cgroup.
    Cgroup,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Admission => "admission",
            Self::Addresses => "addresses",
            Self::Saving => "saving",
            Self::Sockets => "sockets",
            Self::Maps => "maps",
            Self::Lookup => "sk_lookup",
            Self::Rules => "rules",
            Self::Routes => "routes",
            Self::Sysctls => "sysctls",
            Self::Switch => "switch",
            Self::Cgroup => "cgroup",
        })
    }
}

/// Why a pod could not be enrolled. Everything done for it before has been undone, unless it was enrolled already.
#[derive(Debug, thiserror::Error)]
#[error("enrolling pod {uid} failed at {step}: {cause}")]
pub struct EnrollError {
    /// The pod.
    pub uid: String,
    /// Where it failed.
    pub step: Step,
    /// Why.
    pub cause: io::Error,
}

/// Why a pod could not be released wholly; the remaining steps were still taken.
#[derive(Debug, thiserror::Error)]
#[error("releasing pod {uid} failed at {step}: {cause}")]
pub struct ReleaseError {
    /// The pod.
    pub uid: String,
    /// The first step that failed.
    pub step: Step,
    /// Why.
    pub cause: io::Error,
}
