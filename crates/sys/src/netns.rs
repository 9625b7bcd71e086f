//! Network namespaces: opening, telling apart, and running a piece of code inside one.
//!
//! Leaves to others which namespace belongs to whom.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sched::{CloneFlags, setns};

use crate::socket;

/// The namespace of the calling thread; follows the thread, unlike `/proc/self/ns/net`.
const OWN: &str = "/proc/thread-self/ns/net";
/// `NS_GET_NSTYPE` of `linux/nsfs.h`: `_IO(0xb7, 3)`.
const NS_GET_NSTYPE: libc::c_ulong = 0xb703;

/// Identity of a network namespace as seen through its file: two handles of one namespace are equal.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub struct NetnsId {
    /// Device number of nsfs.
    pub dev: u64,
    /// Inode number of the namespace.
    pub inode: u64,
}

impl NetnsId {
    fn of(file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        Ok(Self {
            dev: meta.dev(),
            inode: meta.ino(),
        })
    }
}

/// An open network namespace. While it is open, the kernel keeps the namespace alive.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    id: NetnsId,
    cookie: u64,
}

impl Netns {
    /// Opens a namespace file such as `/run/netns/web` or `/proc/4711/ns/net`.
    ///
    /// Errors: the file cannot be opened, is no network namespace, or the kernel refuses to enter it.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::from_fd(File::open(path)?.into())
    }

    /// Takes a descriptor received from elsewhere; the same errors as [`Netns::open`].
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        if namespace_kind(fd.as_fd())? != libc::CLONE_NEWNET {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a network namespace",
            ));
        }
        let id = NetnsId::of(&File::from(fd.try_clone()?))?;
        let mut netns = Self { fd, id, cookie: 0 };
        netns.cookie = netns.run(|| socket::netns_cookie(&socket::probe()?))??;
        Ok(netns)
    }

    /// The namespace that the calling thread is in.
    pub fn current() -> io::Result<Self> {
        Self::open(Path::new(OWN))
    }

    /// What tells this namespace from others.
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// Inode number, as in `/proc/<pid>/ns/net -> net:[…]`.
    pub fn inode(&self) -> u64 {
        self.id.inode
    }

    /// The kernel's cookie of the namespace (`SO_NETNS_COOKIE`), which `bpf_get_netns_cookie` returns too; never re-used.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// A second handle.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            fd: self.fd.try_clone()?,
            id: self.id,
            cookie: self.cookie,
        })
    }

    /// Runs `work` with the calling thread inside this namespace, then goes back to where the thread was.
    ///
    /// Sockets made by `work` belong to this namespace for good. `work` must not await and should be short: the thread is elsewhere meanwhile.
    /// A thread that cannot come back would serve other pods from the wrong namespace, so the process aborts then, also when `work` panics.
    ///
    /// A thread that is there already goes nowhere, and needs no leave for that.
    ///
    /// Errors: the thread cannot enter (`EPERM` without `CAP_SYS_ADMIN`); `work` has not run then.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        let home = File::open(OWN)?;
        if NetnsId::of(&home)? == self.id {
            return Ok(work());
        }
        setns(&self.fd, CloneFlags::CLONE_NEWNET)?;
        let _back = WayBack { home };
        Ok(work())
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

struct WayBack {
    home: File,
}

impl Drop for WayBack {
    fn drop(&mut self) {
        if setns(&self.home, CloneFlags::CLONE_NEWNET).is_err() {
            eprintln!("cannot return to the own network namespace: aborting");
            std::process::abort();
        }
    }
}

#[allow(unsafe_code)]
fn namespace_kind(fd: BorrowedFd<'_>) -> io::Result<libc::c_int> {
    use std::os::fd::AsRawFd;
    // SAFETY: NS_GET_NSTYPE takes no argument and touches no memory of ours; the descriptor is borrowed, hence open.
    let kind = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE) };
    match kind {
        -1 => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOTTY) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a namespace file",
            )),
            error => Err(error),
        },
        kind => Ok(kind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_namespace_is_itself() {
        let a = Netns::current().unwrap();
        let b = Netns::open(Path::new("/proc/self/ns/net")).unwrap();
        assert_eq!(a.id(), b.id());
        assert_eq!(a.cookie(), b.cookie());
        assert_ne!(a.cookie(), 0);
    }

    #[test]
    fn other_files_are_refused() {
        for path in ["/dev/null", "/proc/self/ns/uts"] {
            assert_eq!(
                Netns::open(Path::new(path)).unwrap_err().kind(),
                io::ErrorKind::InvalidInput,
                "{path}"
            );
        }
    }

    #[test]
    fn work_runs_elsewhere_and_comes_back() {
        let home = Netns::current().unwrap();
        let other = std::thread::spawn(|| {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET).unwrap();
            Netns::current().unwrap()
        })
        .join()
        .unwrap();
        assert_ne!(home.id(), other.id());
        let seen = other.run(|| Netns::current().unwrap().id()).unwrap();
        assert_eq!(seen, other.id());
        assert_eq!(Netns::current().unwrap().id(), home.id());
        let panicked = std::panic::catch_unwind(|| other.run(|| panic!("inside")));
        assert!(panicked.is_err());
        assert_eq!(Netns::current().unwrap().id(), home.id());
    }
}
