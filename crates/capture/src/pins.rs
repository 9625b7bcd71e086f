//! Where everything is pinned: `<pins>/v<layout>/`, so that daemons with different map layouts never share a map.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use redirect_common::LAYOUT;
use tracing::warn;

/// First part of the pin of a pod's `sk_lookup` link; the namespace's cookie in hexadecimal follows.
const LOOKUP: &str = "lookup-";
/// Last part of the name of a pin on its way to replace another.
const NEXT: &str = "-next";

/// What is wrong with a bpf file system of the container's own.
pub(crate) const CONTAINERS_OWN: &str = "no bpf file system is mounted there, and one of this container's own would vanish with it and leave the pods uncaptured: mount bpf on the host's /sys/fs/bpf and mount that into the container";

/// A pinned map that is kept open.
#[derive(Debug)]
pub(crate) struct Kept {
    /// Its pin.
    pub path: PathBuf,
    map: OwnedFd,
    id: u32,
}

impl Kept {
    /// Whether this very map is pinned there.
    pub fn is_pinned(&self) -> bool {
        sys::bpf::pinned(&self.path)
            .and_then(|map| sys::bpf::map_id(&map))
            .is_ok_and(|id| id == self.id)
    }

    /// Pins it in place of what is there.
    pub fn pin(&self, pins: &Pins) -> io::Result<()> {
        pins.replace(&self.map, &self.path)
    }
}

/// The directory of pins.
#[derive(Clone, Debug)]
pub(crate) struct Pins {
    base: PathBuf,
    dir: PathBuf,
}

impl Pins {
    /// The place below `base`; touches nothing.
    pub fn at(base: &Path) -> Self {
        Self {
            base: base.to_owned(),
            dir: base.join(format!("v{LAYOUT}")),
        }
    }

    /// Refuses a place where a bpf file system would first be mounted that ends with this container: every pod would go uncaptured then.
    pub fn must_last(base: &Path, host_proc: &Path) -> io::Result<()> {
        if sys::bpffs::holds(base)? || !base.starts_with(sys::bpffs::POINT) {
            return Ok(());
        }
        match sys::bpffs::mounts_stay(host_proc) {
            Some(true) => {}
            Some(false) => return Err(io::Error::new(io::ErrorKind::InvalidInput, CONTAINERS_OWN)),
            None => warn!(
                "a bpf file system is mounted at {}; should this be a container, then its restart leaves the pods uncaptured: mount the host's /sys/fs/bpf",
                sys::bpffs::POINT
            ),
        }
        Ok(())
    }

    /// Makes the directory, mounting a bpf file system first where there should be one.
    pub fn create(base: &Path) -> io::Result<Self> {
        sys::bpffs::ensure(base)?;
        let pins = Self::at(base);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&pins.dir)?;
        Ok(pins)
    }

    /// Places of other layouts that are there.
    pub fn formers(&self) -> io::Result<Vec<Self>> {
        let mut found = Vec::new();
        if !self.base.exists() {
            return Ok(found);
        }
        for entry in fs::read_dir(&self.base)? {
            let (entry, own) = (entry?, self.dir.file_name());
            let name = entry.file_name();
            let layout = name.to_str().and_then(|name| name.strip_prefix('v'));
            let is_layout = layout.is_some_and(|layout| layout.parse::<u32>().is_ok());
            if is_layout && Some(name.as_os_str()) != own {
                found.push(Self {
                    base: self.base.clone(),
                    dir: entry.path(),
                });
            }
        }
        Ok(found)
    }

    /// The directory itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Path of a pin by name.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Path of the `sk_lookup` link of a pod.
    pub fn lookup(&self, cookie: u64) -> PathBuf {
        self.dir.join(format!("{LOOKUP}{cookie:x}"))
    }

    /// All maps that are pinned, opened.
    pub fn maps(&self) -> io::Result<Vec<Kept>> {
        let mut maps = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let is_map =
                name.is_some_and(|name| name.bytes().all(|b| b == b'_' || b.is_ascii_uppercase()));
            if is_map {
                let map = sys::bpf::pinned(&path)?;
                let id = sys::bpf::map_id(&map)?;
                maps.push(Kept { path, map, id });
            }
        }
        Ok(maps)
    }

    /// Makes the directory again, should it have vanished.
    pub fn restore(&self) -> io::Result<()> {
        Self::create(&self.base).map(drop)
    }

    /// Cookies of all pods with a pinned `sk_lookup` link.
    pub fn lookups(&self) -> io::Result<Vec<u64>> {
        let mut cookies = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let hex = name.to_str().and_then(|name| name.strip_prefix(LOOKUP));
            cookies.extend(hex.and_then(|hex| u64::from_str_radix(hex, 16).ok()));
        }
        Ok(cookies)
    }

    /// One process at a time may change what is pinned; waits for the other. Released when dropped.
    pub fn lock(&self) -> io::Result<Flock<File>> {
        Flock::lock(File::open(&self.dir)?, FlockArg::LockExclusive)
            .map_err(|(_, error)| error.into())
    }

    /// Pins `object` under `name` in place of what is there.
    pub fn replace(&self, object: &impl std::os::fd::AsFd, path: &Path) -> io::Result<()> {
        let mut next = path.as_os_str().to_owned();
        next.push(NEXT);
        let next = PathBuf::from(next);
        remove(&next)?;
        sys::bpf::pin(object, &next)?;
        fs::rename(&next, path)
    }

    /// Removes every pin and the directories, if nothing else is in them.
    pub fn clear(&self) -> io::Result<()> {
        if !self.dir.exists() {
            return Ok(());
        }
        for entry in fs::read_dir(&self.dir)? {
            fs::remove_file(entry?.path())?;
        }
        fs::remove_dir(&self.dir)?;
        // Other layouts may still be there.
        let _ = fs::remove_dir(&self.base);
        Ok(())
    }
}

/// Removes a pin; its absence is fine.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
