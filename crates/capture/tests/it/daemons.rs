//! Many daemons at once, dead and alive, and pods whose place has moved.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use aya::maps::{HashMap, Map, MapData};
use redirect_common::DAEMONS_MAX;

use crate::world::{World, until};

fn daemons(world: &World) -> HashMap<MapData, u64, u64> {
    let data = MapData::from_pin(world.pins.join("v3/DAEMONS")).unwrap();
    Map::from_map_data(data).unwrap().try_into().unwrap()
}

#[test]
fn living_daemons_are_kept_and_dead_ones_make_room() {
    let world = World::new();
    drop(world.start());
    let mut known = daemons(&world);
    let alive = sys::cgroup::id(&world.pod_cgroup).unwrap();
    // The oldest, and draining for hours.
    known.insert(alive, 0, 0).unwrap();
    let mut dead = 0;
    while known.keys().count() < DAEMONS_MAX as usize {
        dead += 1;
        known.insert(u64::MAX - dead, 1, 0).unwrap();
    }
    let daemon = world.cgroup.join("daemon");
    std::fs::create_dir(&daemon).unwrap();
    let mut config = world.config();
    config.daemon_cgroup_id = sys::cgroup::id(&daemon).unwrap();
    let capture = capture::Capture::start(config.clone()).unwrap();
    let left: Vec<u64> = known.keys().flatten().collect();
    assert!(left.contains(&alive) && left.contains(&config.daemon_cgroup_id));
    assert!(
        left.iter().all(|id| *id < u64::MAX / 2),
        "dead ones are gone"
    );
    drop(capture);
    // With none dead there is no room.
    for number in 0.. {
        if known.keys().count() == DAEMONS_MAX as usize {
            break;
        }
        let one = world.cgroup.join(format!("d{number}"));
        std::fs::create_dir(&one).unwrap();
        known.insert(sys::cgroup::id(&one).unwrap(), 1, 0).unwrap();
    }
    let last = world.cgroup.join("last");
    std::fs::create_dir(&last).unwrap();
    config.daemon_cgroup_id = sys::cgroup::id(&last).unwrap();
    let error = capture::Capture::start(config).err().unwrap().to_string();
    assert!(error.contains("DAEMONS"), "{error}");
    assert_eq!(known.keys().count(), DAEMONS_MAX as usize);
}

#[test]
fn a_pod_is_found_by_its_namespace_when_its_path_leads_elsewhere() {
    let world = World::new();
    let before = world.look();
    let mut capture = world.start();
    let sockets = world.sockets();
    let mut wanted = world.wanted();
    // The path of a process that is another's by now.
    wanted.netns_path = "/proc/self/ns/net".into();
    capture.enroll(&wanted, &sockets).unwrap();
    drop((capture, sockets));
    // Alive, but nowhere to be seen: nothing is given up.
    let empty = tempfile::tempdir().unwrap();
    let released = capture::release_pinned(&world.pins, empty.path()).unwrap();
    assert_eq!((released.pods, released.problems.len()), (0, 1));
    assert_ne!(world.look(), before);
    let name = world.netns_path();
    let mut process = Command::new("ip")
        .args(["netns", "exec", name.file_name().unwrap().to_str().unwrap()])
        .args(["sleep", "1000"])
        .spawn()
        .unwrap();
    let inside = |pid: u32| {
        let netns = std::fs::metadata(format!("/proc/{pid}/ns/net"));
        netns.is_ok_and(|netns| netns.ino() == world.pod.inode())
    };
    assert!(until(|| inside(process.id())));
    let released = capture::release_pinned(&world.pins, Path::new("/proc")).unwrap();
    assert_eq!((released.pods, released.problems), (1, vec![]));
    assert_eq!(world.look(), before);
    process.kill().unwrap();
    process.wait().unwrap();
}
