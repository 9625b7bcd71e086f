//! Where pins may lie: never on a bpf file system that would end with the daemon's container.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

use crate::world::World;

/// A procfs whose first process is in this mount namespace, and whose second has this name.
fn procfs(mounts: &Path, second: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("1/ns")).unwrap();
    fs::create_dir(dir.path().join("2")).unwrap();
    symlink(mounts, dir.path().join("1/ns/mnt")).unwrap();
    fs::write(dir.path().join("2/comm"), second).unwrap();
    symlink("/proc/sys", dir.path().join("sys")).unwrap();
    dir
}

#[test]
fn only_the_hosts_mounts_stay() {
    let own = fs::read_link("/proc/self/ns/mnt").unwrap();
    for (mounts, second, want) in [
        (own.as_path(), "kthreadd\n", Some(true)),
        // a container's own procfs
        (&own, "sleep\n", None),
        (Path::new("mnt:[1]"), "kthreadd\n", Some(false)),
    ] {
        let proc = procfs(mounts, second);
        assert_eq!(sys::bpffs::mounts_stay(proc.path()), want, "{second}");
    }
    let nothing = tempfile::tempdir().unwrap();
    assert_eq!(sys::bpffs::mounts_stay(nothing.path()), None);
}

#[test]
fn no_pins_on_a_containers_own_bpffs() {
    let world = World::new();
    let proc = procfs(Path::new("mnt:[1]"), "kthreadd\n");
    let mut config = world.config();
    config.host_proc = proc.path().to_owned();
    // what there is already is the host's
    drop(capture::Capture::start(config.clone()).unwrap());
    let container = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).unwrap();
        while sys::bpffs::holds(Path::new(sys::bpffs::POINT)).unwrap() {
            umount2(sys::bpffs::POINT, MntFlags::MNT_DETACH).unwrap();
        }
        let found = capture::probe::pins(&config.pins, &config.host_proc);
        let refused = capture::Capture::start(config).err().unwrap();
        assert!(
            !sys::bpffs::holds(Path::new(sys::bpffs::POINT)).unwrap(),
            "nothing is mounted"
        );
        (found, refused.to_string())
    });
    let (found, refused) = container.join().unwrap();
    assert!(
        refused.contains("would vanish with it and leave the pods uncaptured"),
        "{refused}"
    );
    let place = &found[0];
    assert!(place.detail.contains("would vanish with it"), "{place:?}");
}
