//! Starting, taking over, checking, repairing and releasing.

use std::io;
use std::path::Path;
use std::sync::Arc;

use capture::{Cure, DriftKind, Step, release_pinned};
use sys::Netns;

use crate::world::{FAR4, World, accept, until};

#[test]
fn release_leaves_nothing() {
    let world = World::new();
    world
        .pod
        .run(|| std::fs::write("/proc/sys/net/ipv4/fwmark_reflect", "1"))
        .unwrap()
        .unwrap();
    let before = world.look();
    let (mut capture, sockets) = world.enrolled();
    assert_ne!(world.look(), before);
    assert_eq!(capture.check(), []);
    // Again is no change.
    let during = world.look();
    capture.enroll(&world.wanted(), &sockets).unwrap();
    assert_eq!((world.look(), capture.check()), (during, vec![]));
    capture.release(world.pod.cookie()).unwrap();
    assert_eq!(world.look(), before);
    assert_eq!((capture.adopted(), capture.check()), (vec![], vec![]));
    assert!(
        !world
            .pins
            .join(format!("v3/lookup-{:x}", world.pod.cookie()))
            .exists()
    );
    drop(capture);
    assert_eq!(
        release_pinned(&world.pins, Path::new("/proc"))
            .unwrap()
            .problems,
        Vec::<String>::new()
    );
    assert!(!world.pins.exists());
}

#[test]
fn what_a_dead_daemon_left_can_be_undone() {
    let world = World::new();
    let before = world.look();
    let (capture, sockets) = world.enrolled();
    drop((capture, sockets));
    assert_ne!(world.look(), before);
    let released = release_pinned(&world.pins, Path::new("/proc")).unwrap();
    assert_eq!((released.pods, released.problems), (1, vec![]));
    assert_eq!(world.look(), before);
    assert!(!world.pins.exists());
    assert_eq!(
        release_pinned(&world.pins, Path::new("/proc"))
            .unwrap()
            .pods,
        0
    );
}

#[test]
fn a_successor_takes_over_without_a_gap() {
    let world = World::new();
    let before = world.look();
    let (first, old_sockets) = world.enrolled();
    let mut app = world.app();
    app.begin(&format!("connect {FAR4}:80"));
    let (mut held, _) = accept(&old_sockets.outbound);
    app.answer();

    let mut second = world.start();
    assert!(first.superseded() && !second.superseded());
    assert_eq!(first.check(), []);
    let adopted = second.adopted();
    assert_eq!((adopted.len(), adopted[0].cookie), (1, world.pod.cookie()));
    assert_eq!(
        (adopted[0].uid.clone(), adopted[0].netns_path.clone()),
        (world.wanted().uid, world.netns_path())
    );
    // Until the pod is enrolled again the predecessor's sockets serve it.
    let mut other = world.app();
    other.begin(&format!("connect {FAR4}:80"));
    accept(&old_sockets.outbound);
    let sockets = world.sockets();
    second.enroll(&world.wanted(), &sockets).unwrap();
    assert_eq!((second.check(), second.adopted()), (vec![], vec![]));
    drop((first, old_sockets.outbound));
    let mut third = world.app();
    third.begin(&format!("connect {FAR4}:80"));
    accept(&sockets.outbound);
    // The old connection lives on.
    app.begin("send ping");
    crate::world::echo(&mut held);
    assert_eq!(
        (app.answer().as_str(), app.ask("receive").as_str()),
        ("sent 4", "ping")
    );
    second.release(world.pod.cookie()).unwrap();
    assert_eq!(world.look(), before);
}

#[test]
fn another_map_layout_is_taken_over_without_a_gap() {
    let world = World::new();
    let before = world.look();
    let (first, old_sockets) = world.enrolled();
    let former = world.pins.join("v1");
    std::fs::rename(world.pins.join("v3"), &former).unwrap();
    let mut second = world.start();
    assert!(first.superseded());
    assert_eq!(second.adopted().len(), 1);
    assert!(!former.join("link-connect4").exists());
    let lookup = former.join(format!("lookup-{:x}", world.pod.cookie()));
    assert!(lookup.exists());
    // Captured by the new programs, served by the old sockets.
    let mut app = world.app();
    app.begin(&format!("connect {FAR4}:80"));
    accept(&old_sockets.outbound);
    let sockets = world.sockets();
    second.enroll(&world.wanted(), &sockets).unwrap();
    assert!(!former.exists());
    assert_eq!(second.check(), []);
    let mut other = world.app();
    other.begin(&format!("connect {FAR4}:80"));
    accept(&sockets.outbound);
    second.release(world.pod.cookie()).unwrap();
    assert_eq!(world.look(), before);
}

#[test]
fn a_pod_no_longer_wanted_is_released_by_the_successor() {
    let world = World::new();
    let before = world.look();
    drop(world.enrolled());
    let mut second = world.start();
    let adopted = second.adopted().remove(0);
    second.release(adopted.cookie).unwrap();
    assert_eq!((world.look(), second.adopted()), (before, vec![]));
}

#[test]
fn a_retired_pod_keeps_its_connections_and_makes_plain_ones() {
    let world = World::new();
    let before = world.look();
    let (mut capture, sockets) = world.enrolled();
    let mut app = world.app();
    app.begin(&format!("connect {FAR4}:80"));
    let (mut held, _) = accept(&sockets.outbound);
    app.answer();
    capture.retire(world.pod.cookie()).unwrap();
    drop(sockets);
    assert_eq!((capture.adopted(), capture.check()), (vec![], vec![]));
    let outside = world.listen_outside(&format!("{FAR4}:80"));
    let mut other = world.app();
    assert!(other.ask(&format!("connect {FAR4}:80")).contains(FAR4));
    accept(&outside);
    app.begin("send ping");
    crate::world::echo(&mut held);
    assert_eq!(
        (app.answer().as_str(), app.ask("receive").as_str()),
        ("sent 4", "ping")
    );
    capture.release(world.pod.cookie()).unwrap();
    assert_eq!(world.look(), before);
    // And back again.
    let sockets = world.sockets();
    capture.enroll(&world.wanted(), &sockets).unwrap();
    assert_eq!(capture.check(), []);
}

#[test]
fn a_dead_namespace_is_garbage() {
    let world = World::new();
    let mut capture = world.start();
    let (inside, path) = {
        // A namespace that only this handle keeps alive.
        let netns = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            Netns::current().unwrap()
        })
        .join()
        .unwrap();
        (Arc::new(netns), "/run/netns/never".into())
    };
    let mut wanted = world.wanted();
    (wanted.netns, wanted.netns_path) = (inside.clone(), path);
    let up = std::process::Command::new("nsenter")
        .arg(format!(
            "--net=/proc/{}/fd/{}",
            std::process::id(),
            std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(&*inside))
        ))
        .args([
            "sh",
            "-c",
            "ip link set lo up; ip addr add 10.1.1.1/32 dev lo",
        ])
        .status()
        .unwrap();
    assert!(up.success());
    let sockets = capture::sockets::open(&inside, wanted.flags).unwrap();
    let cookie = inside.cookie();
    capture.enroll(&wanted, &sockets).unwrap();
    drop((capture, wanted, inside, sockets));
    let mut second = world.start();
    assert_eq!(second.adopted().len(), 1);
    second.release(cookie).unwrap();
    assert_eq!(second.adopted(), []);
    assert!(!world.pins.join(format!("v3/lookup-{cookie:x}")).exists());
}

#[test]
fn drift_is_seen_and_mended() {
    let world = World::new();
    let (mut capture, sockets) = world.enrolled();
    let good = world.look();
    let lookup = world
        .pins
        .join(format!("v3/lookup-{:x}", world.pod.cookie()));
    let damages: [(DriftKind, &dyn Fn()); 8] = [
        (DriftKind::Rule, &|| drop(world.pod_ip("rule del pref 100"))),
        (DriftKind::Rule, &|| {
            drop(world.pod_ip("-6 rule del pref 101"))
        }),
        (DriftKind::Route, &|| {
            drop(world.pod_ip("route flush table 139"))
        }),
        (DriftKind::Route, &|| {
            drop(world.pod_ip("-6 route flush table 139"))
        }),
        (DriftKind::Sysctl, &|| {
            world
                .pod
                .run(|| std::fs::write("/proc/sys/net/ipv4/tcp_fwmark_accept", "0"))
                .unwrap()
                .unwrap();
        }),
        (DriftKind::Program, &|| {
            std::fs::remove_file(&lookup).unwrap()
        }),
        (DriftKind::Program, &|| {
            std::fs::remove_file(world.pins.join("v3/link-connect4")).unwrap()
        }),
        (DriftKind::Address, &|| {
            drop(world.pod_ip("addr add 10.77.0.22/24 dev eth0"))
        }),
    ];
    for (kind, damage) in damages {
        damage();
        let found = capture.check();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].kind, found[0].cure), (kind, Cure::Repair));
        capture.repair(&found[0]).unwrap();
        assert_eq!(capture.check(), []);
    }
    world.pod_ip("addr del 10.77.0.22/24 dev eth0");
    let found = capture.check();
    capture.repair(&found[0]).unwrap();
    assert_eq!(world.look(), good);
    drop(sockets.outbound);
    // a process that another test starts just now holds it for a moment
    assert!(until(|| !capture.check().is_empty()));
    let found = capture.check();
    assert_eq!(
        (found.len(), found[0].kind, found[0].cure),
        (1, DriftKind::Socket, Cure::Sockets)
    );
    assert_eq!(capture.repair(&found[0]).unwrap_err().step, Step::Sockets);
    capture.enroll(&world.wanted(), &world.sockets()).unwrap();
    assert!(
        until(|| capture.check().len() == 4),
        "the sockets just opened are closed again"
    );
}

#[test]
fn a_failed_enrolment_leaves_nothing() {
    let world = World::new();
    world.pod_ip("addr flush dev eth0");
    let before = world.look();
    let mut capture = world.start();
    let error = capture
        .enroll(&world.wanted(), &world.sockets())
        .unwrap_err();
    assert_eq!(
        (error.step, error.cause.kind()),
        (Step::Addresses, io::ErrorKind::AddrNotAvailable)
    );
    assert_eq!(
        (world.look(), capture.adopted(), capture.check()),
        (before, vec![], vec![])
    );
}

#[test]
fn pods_that_cannot_be_captured_are_refused() {
    let world = World::new();
    let mut capture = world.start();
    let sockets = world.sockets();
    let mut elsewhere = world.wanted();
    let above = world.cgroup.parent().unwrap();
    elsewhere.cgroup = Some(above.to_owned());
    let error = capture.enroll(&elsewhere, &sockets).unwrap_err();
    assert_eq!(error.step, Step::Admission);
    let text = error.to_string();
    let both = [above.to_str().unwrap(), world.cgroup.to_str().unwrap()];
    assert!(both.iter().all(|path| text.contains(path)), "{text}");
    let mut own = world.wanted();
    own.netns = Arc::new(Netns::current().unwrap());
    assert_eq!(
        capture.enroll(&own, &sockets).unwrap_err().step,
        Step::Admission
    );
    capture.enroll(&world.wanted(), &sockets).unwrap();
    let mut twin = world.wanted();
    twin.uid = "another".into();
    assert_eq!(
        capture.enroll(&twin, &sockets).unwrap_err().step,
        Step::Admission
    );
}

#[test]
fn a_daemon_settles_in_a_cgroup_of_its_own() {
    let world = World::new();
    // The child's cgroup is the capture cgroup: it must not stay there.
    let mut app = crate::app::App::start(&world.cgroup, &world.netns_path());
    let id: u64 = app
        .ask(&format!("settle {}", world.cgroup.display()))
        .parse()
        .unwrap();
    let child = std::fs::read_dir(&world.cgroup)
        .unwrap()
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with("ztunnel-"))
        .unwrap()
        .path();
    assert_eq!(sys::cgroup::id(&child).unwrap(), id);
    assert_eq!(
        app.ask(&format!("settle {}", world.cgroup.display())),
        id.to_string(),
        "once settled, it stays"
    );
    drop(app);
    assert!(until(|| std::fs::remove_dir(&child).is_ok()));
}
