//! The compiled kernel programs and how they are loaded. Leaves attaching and map contents to others.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use aya::programs::Program;
use aya::{Ebpf, EbpfLoader};
use redirect_common::name;
use sys::bpf::Attach;

use crate::error::StartError;
use crate::pins::Pins;
use crate::probe::packets_know_namespace;

/// Whether this build holds the kernel programs.
pub const BUILT: bool = cfg!(has_programs);

#[cfg(has_programs)]
static REDIRECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/redirect.o"));
#[cfg(has_programs)]
static GUARD: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/guard.o"));
#[cfg(has_programs)]
static TRACK: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/track.o"));
#[cfg(has_programs)]
static LOOKUP: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lookup.o"));
#[cfg(has_programs)]
static OWN: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/own.o"));
#[cfg(not(has_programs))]
static REDIRECT: &[u8] = &[];
#[cfg(not(has_programs))]
static GUARD: &[u8] = &[];
#[cfg(not(has_programs))]
static TRACK: &[u8] = &[];
#[cfg(not(has_programs))]
static LOOKUP: &[u8] = &[];
#[cfg(not(has_programs))]
static OWN: &[u8] = &[];

/// A program of the capture cgroup: its name in its object, its pin, its place. The guards come first, so that no connection is captured unguarded.
pub(crate) const CGROUP_PROGRAMS: [(&str, &str, Attach); 6] = [
    ("leaving", "link-egress", Attach::CgroupEgress),
    ("entering", "link-ingress", Attach::CgroupIngress),
    ("options", "link-setsockopt", Attach::Setsockopt),
    ("settled", "link-settled", Attach::SockOps),
    ("connect4", "link-connect4", Attach::Connect4),
    ("connect6", "link-connect6", Attach::Connect6),
];

/// The object of the guards.
const GUARD_OBJECT: &str = "guard";
/// The object of the programs that follow connections.
const TRACK_OBJECT: &str = "track";
/// Value of a datum that is switched on.
const YES: u32 = 1;

/// The program at kubelet's cgroup.
pub(crate) const KUBELET_PROGRAM: &str = "probes";

/// The shared programs, loaded.
pub(crate) struct Shared {
    /// In the order of [`CGROUP_PROGRAMS`].
    pub cgroup: Vec<OwnedFd>,
    /// [`KUBELET_PROGRAM`].
    pub kubelet: OwnedFd,
}

/// Loads all programs that are not a single pod's, and makes or opens the shared maps.
///
/// - `dedicated`: as of [`crate::Config`]. The guards then ask for the namespace of packets, where the kernel tells
pub(crate) fn load_shared(pins: &Pins, dedicated: bool) -> Result<Shared, StartError> {
    if !BUILT {
        return Err(StartError::NotBuilt);
    }
    let by_namespace = dedicated && packets_know_namespace();
    let mut objects = Vec::new();
    for (object, bytes) in [
        ("redirect", REDIRECT),
        (GUARD_OBJECT, GUARD),
        (TRACK_OBJECT, TRACK),
    ] {
        let mut loader = loader(pins);
        if object == GUARD_OBJECT && by_namespace {
            loader.override_global(name::BY_NAMESPACE, &YES, true);
        }
        if object == TRACK_OBJECT && dedicated {
            loader.override_global(name::HOLDS_NOBODY, &YES, true);
        }
        let loaded = loader.load(bytes);
        objects.push(loaded.map_err(|error| refused(object, &error))?);
    }
    let mut find = |program: &'static str| {
        let object = objects
            .iter_mut()
            .find(|object| object.program(program).is_some());
        let object = object.ok_or(StartError::Load {
            program,
            cause: "not in any object".into(),
        })?;
        load(object, program)?;
        fd(object, program).map_err(|cause| StartError::Load {
            program,
            cause: cause.to_string(),
        })
    };
    let cgroup = CGROUP_PROGRAMS.iter().map(|(program, _, _)| find(program));
    Ok(Shared {
        cgroup: cgroup.collect::<Result<_, _>>()?,
        kubelet: find(KUBELET_PROGRAM)?,
    })
}

/// Loads an instance of the `sk_lookup` program for the namespace with `cookie`.
pub(crate) fn load_lookup(pins: &Pins, cookie: u64) -> Result<Ebpf, StartError> {
    let mut loader = loader(pins);
    let mut object = loader
        .override_global(name::COOKIE, &cookie, true)
        .load(LOOKUP)
        .map_err(|error| refused("lookup", &error))?;
    load(&mut object, LOOKUP_PROGRAM)?;
    Ok(object)
}

/// Loads the program at the cgroup of a daemon that captures its own namespace. It has no maps.
pub(crate) fn load_own() -> Result<OwnedFd, StartError> {
    if !BUILT {
        return Err(StartError::NotBuilt);
    }
    let mut object = EbpfLoader::new()
        .btf(None)
        .load(OWN)
        .map_err(|error| refused(OWN_PROGRAM, &error))?;
    load(&mut object, OWN_PROGRAM)?;
    fd(&object, OWN_PROGRAM).map_err(|cause| StartError::Load {
        program: OWN_PROGRAM,
        cause: cause.to_string(),
    })
}

/// The program at the cgroup of a daemon that captures its own namespace.
pub(crate) const OWN_PROGRAM: &str = "created";

/// Name of the only program in the lookup object.
pub(crate) const LOOKUP_PROGRAM: &str = "pod_lookup";

fn loader<'a>(pins: &Pins) -> EbpfLoader<'a> {
    let mut loader = EbpfLoader::new();
    // No field of the kernel's own structures is read, so its type information (megabytes) need not be parsed.
    loader
        .btf(None)
        .default_map_pin_directory(pins.dir())
        .allow_unsupported_maps();
    loader
}

fn load(object: &mut Ebpf, name: &'static str) -> Result<(), StartError> {
    let program = object.program_mut(name).ok_or(StartError::Load {
        program: name,
        cause: "not in the object".into(),
    })?;
    let result = match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSockopt(program) => program.load(),
        Program::CgroupSkb(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        _ => {
            return Err(StartError::Load {
                program: name,
                cause: "unexpected kind".into(),
            });
        }
    };
    result.map_err(|error| refused(name, &error))
}

/// The descriptor of a loaded program, duplicated.
pub(crate) fn fd(object: &Ebpf, name: &'static str) -> io::Result<OwnedFd> {
    let program = object.program(name).ok_or(io::ErrorKind::NotFound)?;
    program
        .fd()
        .map_err(io::Error::other)?
        .as_fd()
        .try_clone_to_owned()
}

/// The loader's error with its causes; of the verifier's log the end, where the reason stands.
fn refused(program: &'static str, error: &dyn std::error::Error) -> StartError {
    const TAIL: usize = 1500;
    let mut cause = error.to_string();
    let mut next = error.source();
    while let Some(inner) = next {
        cause.push_str(": ");
        cause.push_str(&inner.to_string());
        next = inner.source();
    }
    let start = cause.char_indices().rev().nth(TAIL).map_or(0, |(at, _)| at);
    StartError::Load {
        program,
        cause: cause[start..].to_owned(),
    }
}

/// Whether `path` is worth opening as a pin.
pub(crate) fn is_pinned(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
