//! What it takes to ask the kernel by trying: programs written by hand, plain maps, and who else is attached where.
//!
//! Leaves to others what is to be asked, and what an answer means.
//! Source: `linux/bpf.h`, `struct bpf_insn`, `union bpf_attr`, `struct bpf_prog_info`, `struct bpf_link_info`.

use std::ffi::CStr;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{
    Attr, BPF_MAP_CREATE, BPF_MAP_TYPE_SOCKHASH, BPF_OBJ_GET_INFO_BY_FD, LinkInfo, SocketMap,
    address, call, owned, program_by_id, read_u32,
};

const BPF_MAP_TYPE_HASH: u32 = 1;
const BPF_MAP_TYPE_LPM_TRIE: u32 = 11;
const BPF_PROG_LOAD: u32 = 5;
const BPF_PROG_QUERY: u32 = 16;
const BPF_LINK_GET_FD_BY_ID: u32 = 30;
const BPF_LINK_GET_NEXT_ID: u32 = 31;
const BPF_F_NO_PREALLOC: u32 = 1;
/// `BPF_F_ALLOW_OVERRIDE`: programs of descendants replace this one.
pub const ALLOW_OVERRIDE: u32 = 1;
/// `BPF_F_ALLOW_MULTI`: programs of descendants run beside this one.
pub const ALLOW_MULTI: u32 = 2;

/// Most bytes of the verifier's words that are kept.
const LOG_BYTES_MAX: usize = 64 * 1024;
/// Most programs of one place that are listed.
const PROGRAMS_MAX: usize = 64;
/// Most links of the machine that are looked at.
const LINKS_MAX: usize = 4096;
/// Size of the part of `struct bpf_prog_info` up to the name and its end.
const PROGRAM_INFO_SIZE: usize = 80;
/// Where the name stands there, and its size.
const PROGRAM_NAME: std::ops::Range<usize> = 64..80;

/// `enum bpf_prog_type`, as far as capture needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Packets of a cgroup's sockets.
    CgroupSkb = 8,
    /// Events in the life of a cgroup's TCP connections.
    SockOps = 13,
    /// `connect()` and the like.
    CgroupSockAddr = 18,
    /// `setsockopt()` and `getsockopt()`.
    CgroupSockopt = 25,
    /// Choice of the socket for what arrives.
    SkLookup = 30,
}

/// One instruction (`struct bpf_insn`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// Operation.
    pub code: u8,
    /// Destination register in the low four bits, source register in the high ones.
    pub registers: u8,
    /// Offset of a jump or of memory.
    pub offset: i16,
    /// Immediate value.
    pub immediate: i32,
}

const _: () = assert!(size_of::<Instruction>() == 8);

/// The kernel refused a program.
#[derive(Debug)]
pub struct Rejected {
    /// Its error.
    pub cause: io::Error,
    /// The last words of the verifier; empty when it did not get to say any.
    pub log: String,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told = |line: &&str| !line.is_empty() && !line.starts_with("processed ");
        match self.log.lines().rev().find(told) {
            Some(line) => write!(f, "{}: {line}", self.cause),
            None => write!(f, "{}", self.cause),
        }
    }
}

impl std::error::Error for Rejected {}

/// Loads a program (licence GPL) for the attach type with this number.
///
/// Errors: what the verifier thinks of it, or that the kind, a helper or a field is not known to this kernel.
pub fn load(kind: Kind, attach: u32, program: &[Instruction]) -> Result<OwnedFd, Rejected> {
    // the words of the verifier cost more than the program, so they are asked for only when there is something to say
    try_load(kind, attach, program, &mut []).or_else(|cause| {
        let mut log = vec![0; LOG_BYTES_MAX];
        try_load(kind, attach, program, &mut log).map_err(|_| Rejected {
            cause,
            log: text(&log),
        })
    })
}

#[allow(unsafe_code)]
fn try_load(
    kind: Kind,
    attach: u32,
    program: &[Instruction],
    log: &mut [u8],
) -> io::Result<OwnedFd> {
    let count = u32::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut attr = Attr::new()
        .u32(0, kind as u32)
        .u32(4, count)
        .u64(8, address(program.as_ptr()))
        .u64(16, address(c"GPL".as_ptr()))
        .u32(68, attach);
    if !log.is_empty() {
        let size = u32::try_from(log.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        attr = attr.u32(24, 1).u32(28, size);
        attr = attr.u64(32, address(log.as_mut_ptr()));
    }
    // SAFETY: instructions, licence and log are described by address and size, and live through the call; only the log is written.
    unsafe { call(BPF_PROG_LOAD, &mut attr) }.map(owned)
}

/// Text up to the first NUL.
fn text(bytes: &[u8]) -> String {
    CStr::from_bytes_until_nul(bytes)
        .map(|text| text.to_string_lossy().into_owned())
        .unwrap_or_default()
}

#[allow(unsafe_code)]
fn map(kind: u32, key: u32, value: u32, entries: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attr = Attr::new()
        .u32(0, kind)
        .u32(4, key)
        .u32(8, value)
        .u32(12, entries)
        .u32(16, flags);
    // SAFETY: no address in the arguments.
    unsafe { call(BPF_MAP_CREATE, &mut attr) }.map(owned)
}

/// A small hash map with keys of four bytes and values of eight.
pub fn hash() -> io::Result<OwnedFd> {
    map(BPF_MAP_TYPE_HASH, 4, 8, 1, BPF_F_NO_PREALLOC)
}

/// A small trie of prefixes, with keys of eight bytes (length and four of address) and values of four.
pub fn trie() -> io::Result<OwnedFd> {
    map(BPF_MAP_TYPE_LPM_TRIE, 8, 4, 1, BPF_F_NO_PREALLOC)
}

/// A small map of sockets with keys of four bytes; its values read as socket cookies.
pub fn socket_hash() -> io::Result<SocketMap> {
    let fd = map(BPF_MAP_TYPE_SOCKHASH, 4, 8, 1, 0)?;
    Ok(SocketMap { fd, key_size: 4 })
}

impl AsFd for SocketMap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Programs of one place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attached {
    /// Of a cgroup: [`ALLOW_MULTI`], [`ALLOW_OVERRIDE`], or 0 = others are shut out as long as there is a program.
    pub flags: u32,
    /// Ids of the programs.
    pub programs: Vec<u32>,
}

/// What is attached directly to a cgroup, or to a network namespace, at the attach type with this number.
///
/// Errors: `EINVAL` when the kernel does not know the attach type, `EPERM` without `CAP_NET_ADMIN`.
#[allow(unsafe_code)]
pub fn query(target: BorrowedFd<'_>, attach: u32) -> io::Result<Attached> {
    let mut programs = [0u32; PROGRAMS_MAX];
    let mut attr = Attr::new()
        .fd(0, target)
        .u32(4, attach)
        .u64(16, address(programs.as_mut_ptr()))
        .u32(24, PROGRAMS_MAX as u32);
    // SAFETY: address and count describe `programs`, writable through the call.
    match unsafe { call(BPF_PROG_QUERY, &mut attr) } {
        // there are more: those that fit are told
        Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {}
        other => drop(other?),
    }
    let count = (attr.read_u32(24) as usize).min(PROGRAMS_MAX);
    Ok(Attached {
        flags: attr.read_u32(12),
        programs: programs[..count].to_vec(),
    })
}

/// Name of a loaded program by its id; empty when it was loaded without one.
#[allow(unsafe_code)]
pub fn program_name(id: u32) -> io::Result<String> {
    let program = program_by_id(id)?;
    let mut info = [0u8; PROGRAM_INFO_SIZE];
    let mut attr = Attr::new()
        .fd(0, program.as_fd())
        .u32(4, PROGRAM_INFO_SIZE as u32)
        .u64(8, address(info.as_mut_ptr()));
    // SAFETY: address and length describe `info`, writable through the call; zeroed, so no embedded pointer is followed.
    unsafe { call(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(text(&info[PROGRAM_NAME]))
}

/// All links of the machine, a bounded number of them; needs `CAP_SYS_ADMIN`.
#[allow(unsafe_code)]
pub fn links() -> io::Result<Vec<LinkInfo>> {
    let mut links = Vec::new();
    let mut id = 0;
    for _ in 0..LINKS_MAX {
        let mut attr = Attr::new().u32(0, id);
        // SAFETY: no address in the arguments.
        match unsafe { call(BPF_LINK_GET_NEXT_ID, &mut attr) } {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
            other => drop(other?),
        }
        id = attr.read_u32(4);
        let mut attr = Attr::new().u32(0, id);
        // SAFETY: no address in the arguments.
        let link = unsafe { call(BPF_LINK_GET_FD_BY_ID, &mut attr) }.map(owned);
        // one that went meanwhile is not there
        links.extend(link.and_then(|link| super::link_info(&link)));
    }
    Ok(links)
}

/// What the kernel counts under "type of program" of a loaded program.
pub fn program_kind(program: &impl AsFd) -> io::Result<u32> {
    super::info(program.as_fd()).map(|info| read_u32(&info, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONNECT4: u32 = super::super::Attach::Connect4 as u32;
    const fn op(code: u8, immediate: i32) -> Instruction {
        Instruction {
            code,
            registers: 0,
            offset: 0,
            immediate,
        }
    }
    /// `r0 = 1; exit`
    const PASS: [Instruction; 2] = [op(0xb7, 1), op(0x95, 0)];

    #[test]
    fn a_program_by_hand_loads_and_has_its_kind() {
        let program = load(Kind::CgroupSockAddr, CONNECT4, &PASS).unwrap();
        assert_eq!(program_kind(&program).unwrap(), Kind::CgroupSockAddr as u32);
        assert_eq!(
            program_name(super::super::program_id(&program).unwrap()).unwrap(),
            ""
        );
    }

    #[test]
    fn the_verifier_is_quoted() {
        let rejected = load(Kind::CgroupSockAddr, CONNECT4, &PASS[1..]).unwrap_err();
        assert!(rejected.to_string().contains("R0 !read_ok"), "{rejected}");
    }

    #[test]
    fn maps_are_made() {
        hash().unwrap();
        trie().unwrap();
        socket_hash().unwrap();
    }

    #[test]
    fn own_namespace_is_asked() {
        let own = crate::Netns::current().unwrap();
        query(own.as_fd(), super::super::Attach::SkLookup as u32).unwrap();
        links().unwrap();
    }
}
