//! The network namespace that comes with an add: compared by its file, opened when the pod is started.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use sys::Netns;

/// A descriptor as received: perhaps no namespace at all, which only a start finds out.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// device and inode
    id: (u64, u64),
    handle: Handle,
}

#[derive(Debug, Clone)]
enum Handle {
    Received(Arc<OwnedFd>),
    Opened(Arc<Netns>),
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Place {
    /// Takes a descriptor.
    ///
    /// Errors: the kernel does not say what it is.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        let file = File::from(fd);
        let meta = file.metadata()?;
        Ok(Self {
            id: (meta.dev(), meta.ino()),
            handle: Handle::Received(Arc::new(file.into())),
        })
    }

    /// The namespace; from then on only that is kept open.
    ///
    /// Errors: it is none, or it is this process's own: a daemon that served itself as a pod would take its own connections.
    pub(super) fn open(&mut self) -> io::Result<Arc<Netns>> {
        let netns = match &self.handle {
            Handle::Opened(netns) => return Ok(Arc::clone(netns)),
            Handle::Received(fd) => Netns::from_fd(fd.try_clone()?)?,
        };
        if netns.id() == Netns::current()?.id() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is the daemon's own network namespace",
            ));
        }
        let netns = Arc::new(netns);
        self.handle = Handle::Opened(Arc::clone(&netns));
        Ok(netns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_pods_namespace_is_refused_when_it_is_opened() {
        let place = |path: &str| Place::new(File::open(path).unwrap().into()).unwrap();
        for (path, why) in [
            ("/dev/null", "not a namespace file"),
            ("/proc/self/ns/uts", "not a network namespace"),
            (
                "/proc/self/ns/net",
                "it is the daemon's own network namespace",
            ),
        ] {
            assert_eq!(place(path).open().unwrap_err().to_string(), why, "{path}");
            assert_eq!(place(path), place(path));
        }
        assert_ne!(place("/dev/null"), place("/proc/self/ns/net"));
    }
}
