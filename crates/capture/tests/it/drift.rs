//! What is found when the kernel's state is not as it should be, and what is mended of it. See also [`crate::lifecycle`].

use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use aya::maps::{HashMap, Map, MapData};
use capture::{Capture, Cure, Drift, DriftKind};
use redirect_common::{CgroupEntry, Pod};
use sys::bpf::Attach;
use sys::bpf::probe::{Instruction, Kind, load};

use crate::world::{World, until};

/// The one thing found, seen the same from both sides.
fn only(capture: &Capture, world: &World) -> Drift {
    let (all, one) = (capture.check(), capture.verify(world.pod.cookie()));
    assert_eq!(all, one);
    assert_eq!(all.len(), 1, "{all:?}");
    all.into_iter().next().unwrap()
}

/// The same, and it is mended.
fn mended(capture: &mut Capture, world: &World, kind: DriftKind) {
    let found = only(capture, world);
    assert_eq!((found.kind, found.cure), (kind, Cure::Repair), "{found:?}");
    assert_eq!(found.cookie, Some(world.pod.cookie()));
    capture.repair(&found).unwrap();
    assert_eq!(capture.check(), []);
}

fn map<V: aya::Pod>(world: &World, name: &str) -> HashMap<MapData, u64, V> {
    let data = MapData::from_pin(world.pins.join("v3").join(name)).unwrap();
    Map::from_map_data(data).unwrap().try_into().unwrap()
}

#[test]
fn what_others_put_into_the_table_is_taken_out() {
    let world = World::new();
    let (mut capture, _sockets) = world.enrolled();
    let good = world.look();
    for (kind, line) in [
        (
            DriftKind::Route,
            "route add 10.99.0.0/16 via 10.77.0.1 table 139",
        ),
        (
            DriftKind::Route,
            "route add blackhole 10.98.0.0/16 table 139",
        ),
        (
            DriftKind::Route,
            "-6 route add blackhole fd99::/64 table 139",
        ),
        (
            DriftKind::Rule,
            "rule add pref 500 from 10.0.0.0/8 table 139",
        ),
        (
            DriftKind::Rule,
            "-6 rule add pref 100 uidrange 7-7 fwmark 0x53b table 139",
        ),
    ] {
        world.pod_ip(line);
        mended(&mut capture, &world, kind);
        assert_eq!(world.look(), good, "{line}");
    }
    // in place of ours, and all but the same
    world.pod_ip("rule del pref 100");
    world.pod_ip("rule add pref 100 uidrange 7-7 fwmark 0x53b table 139");
    let found = capture.verify(world.pod.cookie());
    assert!(
        found.len() == 2 && found.iter().all(|one| one.kind == DriftKind::Rule),
        "{found:?}"
    );
    capture.repair(&found[0]).unwrap();
    assert_eq!((capture.check(), world.look()), (vec![], good));
}

#[test]
fn what_others_put_before_is_told_and_left() {
    let world = World::new();
    let (mut capture, _sockets) = world.enrolled();
    for (line, undo) in [
        ("rule add pref 50 table main", "rule del pref 50"),
        (
            "rule add pref 50 fwmark 0x53b/0xff unreachable",
            "rule del pref 50",
        ),
        (
            "-6 rule add pref 100 table main",
            "-6 rule del pref 100 table main",
        ),
    ] {
        world.pod_ip(line);
        let found = only(&capture, &world);
        assert_eq!((found.kind, found.cure), (DriftKind::Foreign, Cure::Human));
        assert!(capture.repair(&found).is_err());
        world.pod_ip(undo);
        assert_eq!(capture.check(), [], "{line}");
    }
    world.pod_ip("rule add pref 50 fwmark 0x111/0xfff table main");
    assert_eq!(capture.check(), [], "it does not fit what is captured");

    let pass = [(0xb7, 1), (0x95, 0)].map(|(code, immediate)| Instruction {
        code,
        registers: 0,
        offset: 0,
        immediate,
    });
    let program = load(Kind::SkLookup, Attach::SkLookup as u32, &pass).unwrap();
    let link = sys::bpf::link(program.as_fd(), world.pod.as_fd(), Attach::SkLookup).unwrap();
    let found = only(&capture, &world);
    assert_eq!(found.kind, DriftKind::Foreign);
    assert!(found.what.contains("sk_lookup"), "{found:?}");
    drop(link);
    assert!(until(|| capture.check().is_empty()));
}

#[test]
fn entries_of_maps_are_put_back() {
    let world = World::new();
    let (mut capture, _sockets) = world.enrolled();
    let cookie = world.pod.cookie();
    let entry = map::<Pod>(&world, "PODS").get(&cookie, 0).unwrap();
    map::<Pod>(&world, "PODS").remove(&cookie).unwrap();
    mended(&mut capture, &world, DriftKind::Map);
    map::<Pod>(&world, "PODS")
        .insert(
            cookie,
            Pod {
                flags: entry.flags & !Pod::CAPTURE,
            },
            0,
        )
        .unwrap();
    mended(&mut capture, &world, DriftKind::Map);
    let id = sys::cgroup::id(&world.pod_cgroup).unwrap();
    map::<CgroupEntry>(&world, "CGROUPS").remove(&id).unwrap();
    mended(&mut capture, &world, DriftKind::Cgroup);
    std::fs::remove_file(world.pins.join("v3/PODS")).unwrap();
    let found = capture.check();
    assert_eq!(
        (found.len(), found[0].kind, found[0].cookie),
        (1, DriftKind::Map, None)
    );
    capture.repair(&found[0]).unwrap();
    assert_eq!(capture.check(), []);
    assert_eq!(map::<Pod>(&world, "PODS").get(&cookie, 0).unwrap(), entry);
}

#[test]
fn addresses_are_followed_and_their_loss_is_no_drift() {
    let world = World::new();
    let (mut capture, _sockets) = world.enrolled();
    let good = world.look();
    for line in [
        "addr add 10.77.0.33/24 dev eth0",
        "addr del 10.77.0.33/24 dev eth0",
    ] {
        world.pod_ip(line);
        mended(&mut capture, &world, DriftKind::Address);
    }
    assert_eq!(world.look(), good);
    // at the end of a pod its device goes first
    world.pod_ip("link del eth0");
    mended(&mut capture, &world, DriftKind::Address);
    assert!(world.pod_ip("rule").contains("0x53b"), "it stays closed");
    capture.release(world.pod.cookie()).unwrap();
    assert!(!world.pod_ip("rule").contains("0x53b"));
}

/// A process in a cgroup of the pod.
struct Process(Child);

impl Process {
    fn new(world: &World, container: &str, netns: &Path) -> Self {
        let cgroup = world.pod_cgroup.join(container);
        std::fs::create_dir(&cgroup).unwrap();
        let script = format!(
            "echo 0 > {}/cgroup.procs && exec nsenter --net={} sleep 600",
            cgroup.display(),
            netns.display()
        );
        Self(Command::new("sh").args(["-c", &script]).spawn().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn processes_elsewhere_are_found_once_they_have_settled() {
    let world = World::new();
    let (capture, _sockets) = world.enrolled();
    let _own = Process::new(&world, "own", &world.netns_path());
    let stray = Process::new(&world, "stray", &world.outside_path());
    assert_eq!(capture.check(), [], "it may be on its way");
    assert!(until(|| !capture.check().is_empty()));
    let found = only(&capture, &world);
    assert_eq!((found.kind, found.cure), (DriftKind::Netns, Cure::Source));
    assert!(found.what.starts_with("1 of"), "{found:?}");
    assert!(found.what.contains(&stray.0.id().to_string()), "{found:?}");
    drop(stray);
    assert_eq!(capture.check(), []);
}

#[test]
fn a_path_to_another_namespace_is_found() {
    let world = World::new();
    let (mut capture, sockets) = world.enrolled();
    let mut wanted = world.wanted();
    wanted.netns_path = world.outside_path();
    capture.enroll(&wanted, &sockets).unwrap();
    let found = only(&capture, &world);
    assert_eq!((found.kind, found.cure), (DriftKind::Netns, Cure::Sockets));
    // that of a process may be any other's by now
    wanted.netns_path = "/proc/1/ns/net".into();
    capture.enroll(&wanted, &sockets).unwrap();
    assert_eq!(capture.check(), []);
}

#[test]
fn a_look_is_cheap() {
    const LOOKS: u32 = 200;
    let world = World::new();
    let (capture, _sockets) = world.enrolled();
    let _own = Process::new(&world, "own", &world.netns_path());
    let since = Instant::now();
    for _ in 0..LOOKS {
        assert_eq!(capture.verify(world.pod.cookie()), []);
    }
    let each = since.elapsed() / LOOKS;
    println!("one look takes {each:?}");
    // twenty times what it takes on an idle machine
    assert!(each < Duration::from_millis(10), "{each:?}");
}
