//! The bpf(2) calls that the loader library does not offer: links with replaceable programs, pins, socket maps, test runs.
//!
//! Leaves loading of programs and maps, and the meaning of their contents, to others.
//! Source: `linux/bpf.h`, `union bpf_attr` and `struct bpf_link_info`.

pub mod probe;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const BPF_MAP_CREATE: u32 = 0;
const BPF_MAP_LOOKUP_ELEM: u32 = 1;
const BPF_MAP_UPDATE_ELEM: u32 = 2;
const BPF_MAP_DELETE_ELEM: u32 = 3;
const BPF_OBJ_PIN: u32 = 6;
const BPF_OBJ_GET: u32 = 7;
const BPF_PROG_TEST_RUN: u32 = 10;
const BPF_PROG_GET_FD_BY_ID: u32 = 13;
const BPF_OBJ_GET_INFO_BY_FD: u32 = 15;
const BPF_BTF_LOAD: u32 = 18;
const BPF_LINK_CREATE: u32 = 28;
const BPF_LINK_UPDATE: u32 = 29;
const BPF_LINK_DETACH: u32 = 34;

const BPF_MAP_TYPE_SOCKHASH: u32 = 18;
const BPF_MAP_TYPE_SK_STORAGE: u32 = 24;
const BPF_F_NO_PREALLOC: u32 = 1;
const BPF_LINK_TYPE_CGROUP: u32 = 3;
const BPF_LINK_TYPE_NETNS: u32 = 5;
/// Bytes of `union bpf_attr` that we fill; the kernel takes shorter ones as zero-filled.
const ATTR_SIZE: usize = 96;
/// Bytes asked for of an info structure: enough for the fields read here.
const INFO_SIZE: usize = 64;

/// Where a program attaches (`enum bpf_attach_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Attach {
    /// Packets received by sockets of a cgroup.
    CgroupIngress = 0,
    /// Packets leaving sockets of a cgroup.
    CgroupEgress = 1,
    /// Sockets made by processes of a cgroup.
    SockCreate = 2,
    /// What becomes of TCP connections of a cgroup's sockets.
    SockOps = 3,
    /// `connect()` of IPv4 sockets of a cgroup.
    Connect4 = 10,
    /// `connect()` of IPv6 sockets of a cgroup.
    Connect6 = 11,
    /// `setsockopt()` of sockets of a cgroup.
    Setsockopt = 22,
    /// Choice of the socket for a new connection or datagram of a network namespace.
    SkLookup = 36,
}

/// What a link is attached to, as the kernel says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A cgroup by id; 0 once the cgroup is gone.
    Cgroup {
        /// Id of the cgroup.
        id: u64,
        /// `enum bpf_attach_type`.
        attach: u32,
    },
    /// A network namespace by inode; 0 once it is gone.
    Netns {
        /// Inode number in nsfs.
        inode: u32,
        /// `enum bpf_attach_type`.
        attach: u32,
    },
    /// Some other kind of link.
    Other,
}

/// What the kernel says of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// Id of the link.
    pub id: u32,
    /// Id of the program that runs.
    pub program: u32,
    /// Where it runs.
    pub target: Target,
}

/// The arguments of one bpf(2) call, field by field at its offset.
#[derive(Clone, Copy)]
struct Attr([u8; ATTR_SIZE]);

impl Attr {
    fn new() -> Self {
        Self([0; ATTR_SIZE])
    }

    fn u32(mut self, at: usize, value: u32) -> Self {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn u64(mut self, at: usize, value: u64) -> Self {
        self.0[at..at + 8].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn fd(self, at: usize, fd: BorrowedFd<'_>) -> Self {
        // Open descriptors are never negative.
        self.u32(at, fd.as_raw_fd() as u32)
    }

    fn read_u32(&self, at: usize) -> u32 {
        read_u32(&self.0, at)
    }
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_ne_bytes(field)
}

fn read_u64(bytes: &[u8], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_ne_bytes(field)
}

/// One bpf(2) call; the result is a descriptor for the commands that make one, else 0.
///
/// # Safety
/// Every address in `attr` must point to memory that is valid for what `command` does with it.
#[allow(unsafe_code)]
unsafe fn call(command: u32, attr: &mut Attr) -> io::Result<i32> {
    // SAFETY: `attr` is a live buffer of ATTR_SIZE bytes; the addresses inside it are the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.0.as_mut_ptr(), ATTR_SIZE) };
    // Descriptors fit an i32.
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as i32)
    }
}

#[allow(unsafe_code)]
fn owned(fd: i32) -> OwnedFd {
    // SAFETY: only called with the result of a bpf command that returns a new descriptor, which nobody else owns.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn address<T>(data: *const T) -> u64 {
    data as usize as u64
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Pins a map, program or link at `path` of a bpf file system.
#[allow(unsafe_code)]
pub fn pin(object: &impl AsFd, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = Attr::new()
        .u64(0, address(path.as_ptr()))
        .fd(8, object.as_fd());
    // SAFETY: the path is a NUL-terminated string that lives through the call.
    unsafe { call(BPF_OBJ_PIN, &mut attr) }.map(drop)
}

/// Opens what is pinned at `path`.
#[allow(unsafe_code)]
pub fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = Attr::new().u64(0, address(path.as_ptr()));
    // SAFETY: the path is a NUL-terminated string that lives through the call.
    unsafe { call(BPF_OBJ_GET, &mut attr) }.map(owned)
}

/// Attaches `program` to a cgroup (beside others there) or a network namespace. The link detaches when its last handle and pin go.
#[allow(unsafe_code)]
pub fn link(
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    attach: Attach,
) -> io::Result<OwnedFd> {
    let mut attr = Attr::new()
        .fd(0, program)
        .fd(4, target)
        .u32(8, attach as u32);
    // SAFETY: no address in the arguments.
    unsafe { call(BPF_LINK_CREATE, &mut attr) }.map(owned)
}

/// Replaces the program of a link in place: there is no moment without one.
///
/// Errors: `ENOLINK` when the cgroup or namespace of the link is gone.
#[allow(unsafe_code)]
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = Attr::new().fd(0, link).fd(4, program);
    // SAFETY: no address in the arguments.
    unsafe { call(BPF_LINK_UPDATE, &mut attr) }.map(drop)
}

/// Detaches a link now, whoever else holds it; it stays as an empty shell until its last handle and pin go.
#[allow(unsafe_code)]
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = Attr::new().fd(0, link);
    // SAFETY: no address in the arguments.
    unsafe { call(BPF_LINK_DETACH, &mut attr) }.map(drop)
}

#[allow(unsafe_code)]
fn info(object: BorrowedFd<'_>) -> io::Result<[u8; INFO_SIZE]> {
    let mut info = [0u8; INFO_SIZE];
    let mut attr = Attr::new()
        .fd(0, object)
        .u32(4, INFO_SIZE as u32)
        .u64(8, address(info.as_mut_ptr()));
    // SAFETY: the address and length describe `info`, writable through the call; zeroed, so no embedded pointer is followed.
    unsafe { call(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

/// What the kernel says of a link.
pub fn link_info(link: &impl AsFd) -> io::Result<LinkInfo> {
    let info = info(link.as_fd())?;
    let target = match read_u32(&info, 0) {
        BPF_LINK_TYPE_CGROUP => Target::Cgroup {
            id: read_u64(&info, 16),
            attach: read_u32(&info, 24),
        },
        BPF_LINK_TYPE_NETNS => Target::Netns {
            inode: read_u32(&info, 16),
            attach: read_u32(&info, 20),
        },
        _ => Target::Other,
    };
    Ok(LinkInfo {
        id: read_u32(&info, 4),
        program: read_u32(&info, 8),
        target,
    })
}

/// The kernel's id of a program.
pub fn program_id(program: &impl AsFd) -> io::Result<u32> {
    info(program.as_fd()).map(|info| read_u32(&info, 4))
}

/// The kernel's id of a map.
pub fn map_id(map: &impl AsFd) -> io::Result<u32> {
    info(map.as_fd()).map(|info| read_u32(&info, 4))
}

/// Opens a loaded program by the kernel's id; needs `CAP_SYS_ADMIN`.
#[allow(unsafe_code)]
pub fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = Attr::new().u32(0, id);
    // SAFETY: no address in the arguments.
    unsafe { call(BPF_PROG_GET_FD_BY_ID, &mut attr) }.map(owned)
}

/// Creates a socket-local storage map with a 64-bit value per socket. The kernel demands type information for it; it is made here.
#[allow(unsafe_code)]
pub fn sk_storage(name: &str) -> io::Result<OwnedFd> {
    let btf = btf_of_two_integers();
    let mut attr = Attr::new()
        .u64(0, address(btf.as_ptr()))
        .u32(16, btf.len() as u32);
    // SAFETY: the address and length describe `btf`, which lives through the call.
    let types = unsafe { call(BPF_BTF_LOAD, &mut attr) }.map(owned)?;
    let mut attr = Attr::new()
        .u32(0, BPF_MAP_TYPE_SK_STORAGE)
        .u32(4, size_of::<u32>() as u32)
        .u32(8, size_of::<u64>() as u32)
        .u32(16, BPF_F_NO_PREALLOC)
        .fd(48, types.as_fd())
        .u32(52, 1)
        .u32(56, 2);
    // The last of the 16 bytes of the name stays NUL.
    for (slot, byte) in attr.0[28..43].iter_mut().zip(name.bytes()) {
        *slot = byte;
    }
    // SAFETY: no address in the arguments.
    unsafe { call(BPF_MAP_CREATE, &mut attr) }.map(owned)
}

/// BTF with type 1 = `u32` and type 2 = `u64` (Documentation/bpf/btf.rst, BTF_KIND_INT).
fn btf_of_two_integers() -> Vec<u8> {
    const HEADER: u32 = 24;
    const KIND_INT: u32 = 1 << 24;
    let strings = b"\0u32\0u64\0";
    let types: [u32; 8] = [1, KIND_INT, 4, 32, 5, KIND_INT, 8, 64];
    let types_len = size_of_val(&types) as u32;
    let header: [u32; 5] = [HEADER, 0, types_len, types_len, strings.len() as u32];
    let mut btf = Vec::new();
    btf.extend_from_slice(&0xeb9f_u16.to_ne_bytes());
    btf.extend_from_slice(&[1, 0]);
    for word in header.iter().chain(&types) {
        btf.extend_from_slice(&word.to_ne_bytes());
    }
    btf.extend_from_slice(strings);
    btf
}

/// A map of sockets (`BPF_MAP_TYPE_SOCKHASH`) with 64-bit values, so that it can be read as socket cookies.
#[derive(Debug)]
pub struct SocketMap {
    fd: OwnedFd,
    key_size: usize,
}

impl SocketMap {
    /// Opens the pinned map; `InvalidInput` when something else is pinned there.
    pub fn open(path: &Path) -> io::Result<Self> {
        let fd = pinned(path)?;
        let info = info(fd.as_fd())?;
        if read_u32(&info, 0) != BPF_MAP_TYPE_SOCKHASH
            || read_u32(&info, 12) != size_of::<u64>() as u32
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "pinned object is not the socket map expected",
            ));
        }
        Ok(Self {
            fd,
            key_size: read_u32(&info, 8) as usize,
        })
    }

    /// Puts `socket` under `key`, in place of any other. The entry goes when the socket is closed.
    pub fn insert(&self, key: &[u8], socket: &impl AsFd) -> io::Result<()> {
        let mut value = socket.as_fd().as_raw_fd() as u64;
        self.element(BPF_MAP_UPDATE_ELEM, key, &mut value)
    }

    /// Cookie of the socket under `key` (see [`crate::socket::cookie`]).
    pub fn cookie(&self, key: &[u8]) -> io::Result<Option<u64>> {
        let mut value = 0u64;
        absent_is_none(self.element(BPF_MAP_LOOKUP_ELEM, key, &mut value))
            .map(|found| found.map(|()| value))
    }

    /// Takes the entry away; whether there was one.
    pub fn remove(&self, key: &[u8]) -> io::Result<bool> {
        absent_is_none(self.element(BPF_MAP_DELETE_ELEM, key, &mut 0)).map(|found| found.is_some())
    }

    #[allow(unsafe_code)]
    fn element(&self, command: u32, key: &[u8], value: &mut u64) -> io::Result<()> {
        if key.len() != self.key_size {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "key of the wrong size",
            ));
        }
        let mut attr = Attr::new()
            .fd(0, self.fd.as_fd())
            .u64(8, address(key.as_ptr()));
        if command != BPF_MAP_DELETE_ELEM {
            attr = attr.u64(16, address(std::ptr::from_mut(value)));
        }
        // SAFETY: the kernel reads `key_size` bytes at the key (checked above) and reads or writes eight at the value (checked in `open`).
        unsafe { call(command, &mut attr) }.map(drop)
    }
}

fn absent_is_none(result: io::Result<()>) -> io::Result<Option<()>> {
    match result {
        Ok(()) => Ok(Some(())),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Runs a program once on a context of the caller's making (`BPF_PROG_TEST_RUN`), in the namespace of the calling thread.
///
/// - `context`: read by the program; overwritten with what the kernel gives back
///
/// Returns the program's result.
#[allow(unsafe_code)]
pub fn test_run(program: &impl AsFd, context: &mut [u8]) -> io::Result<u32> {
    let len =
        u32::try_from(context.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut attr = Attr::new()
        .fd(0, program.as_fd())
        .u32(40, len)
        .u32(44, len)
        .u64(48, address(context.as_ptr()))
        .u64(56, address(context.as_mut_ptr()));
    // SAFETY: both addresses and lengths describe `context`, readable and writable through the call.
    unsafe { call(BPF_PROG_TEST_RUN, &mut attr) }?;
    Ok(attr.read_u32(4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_takes_our_type_information() {
        let map = sk_storage("test_storage").unwrap();
        let info = info(map.as_fd()).unwrap();
        assert_eq!(
            (read_u32(&info, 0), read_u32(&info, 8), read_u32(&info, 12)),
            (BPF_MAP_TYPE_SK_STORAGE, 4, 8)
        );
    }
}
