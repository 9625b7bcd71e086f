//! Pods that are expected and not enrolled yet: their connections wait, and nobody comes in.

use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use capture::{Capture, CgroupState};

use crate::app::App;
use crate::tamper::Tap;
use crate::world::{FAR4, FAR6, POD4, POD6, World, accept, destination, echo, nobody, until};

const EPERM: &str = "error 1";

pub fn counter(capture: &Capture, name: &str) -> u64 {
    let counters = capture.counters();
    counters.iter().find(|(one, _)| *one == name).unwrap().1
}

/// An application that has asked for a connection which is held now.
fn holding(world: &World, capture: &Capture, target: &str, options: &str) -> App {
    let before = counter(capture, "egress_dropped_held");
    let mut app = world.app();
    app.begin(&format!("connect {target} {options}"));
    assert!(until(|| counter(capture, "egress_dropped_held") > before));
    app
}

#[test]
fn the_first_connect_waits_for_the_enrolment() {
    for (target, options) in [
        (format!("{FAR4}:80"), ""),
        (format!("{FAR4}:80"), "mptcp"),
        (format!("{FAR4}:80"), "mark=7 device=eth0"),
        (format!("[{FAR6}]:80"), ""),
    ] {
        let world = World::new();
        let tap = Tap::new(&world);
        let mut capture = world.start();
        capture
            .set_cgroup(&world.pod_cgroup, CgroupState::Held)
            .unwrap();
        assert_eq!(capture.held().len(), 1);
        let mut app = holding(&world, &capture, &target, options);
        let sockets = world.sockets();
        capture.enroll(&world.wanted(), &sockets).unwrap();
        assert_eq!((capture.held(), capture.check()), (vec![], vec![]));
        let (mut stream, _) = accept(&sockets.outbound);
        assert_eq!(destination(&stream), target.parse().unwrap());
        assert!(app.answer().ends_with(&target), "{target} {options}");
        app.begin("send ping");
        echo(&mut stream);
        assert_eq!(
            (app.answer().as_str(), app.ask("receive").as_str()),
            ("sent 4", "ping")
        );
        assert_eq!(app.ask("mark 0"), EPERM, "captured for good");
        capture.release(world.pod.cookie()).unwrap();
        assert_eq!(app.ask("send leak"), "sent 4");
        assert!(until(|| counter(&capture, "egress_dropped") > 0));
        assert!(!tap.saw_anything(), "{target} {options}");
    }
}

#[test]
fn a_fast_open_waits_too() {
    let world = World::new();
    let tap = Tap::new(&world);
    let mut capture = world.start();
    capture
        .set_cgroup(&world.pod_cgroup, CgroupState::Held)
        .unwrap();
    let mut app = world.app();
    app.begin(&format!("fastopen {FAR4}:80 ping"));
    assert!(until(|| counter(&capture, "egress_dropped_held") > 0));
    let sockets = world.sockets();
    capture.enroll(&world.wanted(), &sockets).unwrap();
    let (mut stream, _) = accept(&sockets.outbound);
    echo(&mut stream);
    assert_eq!(
        (app.answer().as_str(), app.ask("receive").as_str()),
        ("sent 4", "ping")
    );
    assert!(!tap.saw_anything());
}

#[test]
fn what_is_let_go_outlives_a_later_enrolment() {
    for options in ["mark=7", "mptcp"] {
        let world = World::new();
        let outside = world.listen_outside(&format!("{FAR4}:80"));
        let mut capture = world.start();
        capture
            .set_cgroup(&world.pod_cgroup, CgroupState::Held)
            .unwrap();
        let mut app = holding(&world, &capture, &format!("{FAR4}:80"), options);
        capture
            .set_cgroup(&world.pod_cgroup, CgroupState::Free)
            .unwrap();
        let (mut stream, _) = accept(&outside);
        assert!(app.answer().ends_with(&format!("{FAR4}:80")), "{options}");
        let mut talk = || {
            app.begin("send ping");
            echo(&mut stream);
            assert_eq!(
                (app.answer().as_str(), app.ask("receive").as_str()),
                ("sent 4", "ping")
            );
        };
        talk();
        let sockets = world.sockets();
        capture.enroll(&world.wanted(), &sockets).unwrap();
        talk();
        assert!(nobody(&sockets.outbound), "{options}");
    }
}

#[test]
fn who_is_not_enrolled_in_time_is_denied() {
    let world = World::new();
    let tap = Tap::new(&world);
    let mut capture = world.start();
    capture
        .set_cgroup(&world.pod_cgroup, CgroupState::Held)
        .unwrap();
    let mut app = holding(&world, &capture, &format!("{FAR4}:80"), "patience=1500");
    let id = capture
        .set_cgroup(&world.pod_cgroup, CgroupState::Denied)
        .unwrap();
    assert!(app.answer().starts_with("error"));
    assert_eq!(world.app().ask(&format!("connect {FAR4}:80")), EPERM);
    assert_eq!(counter(&capture, "connect_denied_hold"), 1);
    assert!(!tap.saw_anything());
    // What never goes through the mesh goes on.
    let mut server = world.app();
    let bound = server.ask("listen 127.0.0.1:0");
    assert!(
        world
            .app()
            .ask(&format!("connect {bound}"))
            .ends_with(&bound)
    );
    let view = &capture.held()[0];
    assert_eq!(
        (view.id, view.path.as_ref(), view.state),
        (id, Some(&world.pod_cgroup), CgroupState::Denied)
    );
    capture.forget_cgroup(id);
    assert_eq!(capture.cgroups(), []);
    let outside = world.listen_outside(&format!("{FAR4}:80"));
    let _app = world.app().ask(&format!("connect {FAR4}:80"));
    accept(&outside);
}

#[test]
fn unknown_cgroups_wait_while_told_so() {
    let world = World::new();
    let outside = world.listen_outside(&format!("{FAR4}:80"));
    let mut capture = world.start();
    capture.hold_unknown(Some(Duration::from_secs(60))).unwrap();
    let mut app = holding(&world, &capture, &format!("{FAR4}:80"), "");
    assert!(nobody(&outside));
    // A process of the capture cgroup itself belongs to nobody.
    let mut nobodys = App::start(&world.cgroup, &world.netns_path());
    nobodys.ask(&format!("connect {FAR4}:80"));
    accept(&outside);
    capture.hold_unknown(None).unwrap();
    accept(&outside);
    app.answer();
    // It ends by itself.
    capture
        .hold_unknown(Some(Duration::from_millis(1500)))
        .unwrap();
    let mut app = holding(&world, &capture, &format!("{FAR4}:80"), "");
    drop(capture);
    accept(&outside);
    app.answer();
}

#[test]
fn the_whole_node_is_never_held() {
    let world = World::new();
    let mut config = world.config();
    config.cgroup = world.cgroup.parent().unwrap().to_owned();
    let mut capture = Capture::start(config).unwrap();
    let minute = Some(Duration::from_secs(60));
    assert!(capture.hold_unknown(minute).is_err());
    capture.hold_unknown(None).unwrap();
}

#[test]
fn groups_are_looked_into() {
    let world = World::new();
    let outside = world.listen_outside(&format!("{FAR4}:80"));
    let mut capture = world.start();
    capture.hold_unknown(Some(Duration::from_secs(60))).unwrap();
    let pod = world.pod_cgroup.join("pod");
    let container: PathBuf = pod.join("container");
    std::fs::create_dir_all(&container).unwrap();
    capture
        .set_cgroup(&world.pod_cgroup, CgroupState::Group)
        .unwrap();
    let connect = || {
        let mut app = App::start(&container, &world.netns_path());
        let answer = app.ask(&format!("connect {FAR4}:80 patience=300"));
        !answer.starts_with("error")
    };
    assert!(!connect(), "not known yet");
    capture.set_cgroup(&pod, CgroupState::Free).unwrap();
    assert!(connect());
    accept(&outside);
    capture.set_cgroup(&pod, CgroupState::Held).unwrap();
    assert!(!connect());
    let refused = [
        (world.cgroup.clone(), CgroupState::Held),
        (world.cgroup.parent().unwrap().to_owned(), CgroupState::Held),
        ("/proc".into(), CgroupState::Held),
        (pod.clone(), CgroupState::Enrolled(1)),
    ];
    for (path, state) in refused {
        assert!(capture.set_cgroup(&path, state).is_err(), "{path:?}");
    }
    // A successor finds them again, and forgets what is gone.
    drop(capture);
    let capture = world.start();
    let paths: Vec<_> = capture.held().into_iter().map(|view| view.path).collect();
    assert_eq!(paths, [Some(pod)]);
    assert!(!connect());
}

#[test]
fn an_enrolled_cgroup_is_not_held_again() {
    let world = World::new();
    let (mut capture, sockets) = world.enrolled();
    let before = capture.cgroups();
    assert_eq!(before[0].state, CgroupState::Enrolled(world.pod.cookie()));
    capture
        .set_cgroup(&world.pod_cgroup, CgroupState::Held)
        .unwrap();
    assert_eq!(capture.cgroups(), before);
    capture.retire(world.pod.cookie()).unwrap();
    assert_eq!(capture.cgroups()[0].state, CgroupState::Free);
    capture.release(world.pod.cookie()).unwrap();
    capture
        .set_cgroup(&world.pod_cgroup, CgroupState::Held)
        .unwrap();
    assert_eq!(capture.cgroups()[0].state, CgroupState::Held);
    // An enrolment that fails leaves it held.
    world.pod_ip("addr flush dev eth0");
    capture.enroll(&world.wanted(), &sockets).unwrap_err();
    assert_eq!(capture.cgroups()[0].state, CgroupState::Held);
}

#[test]
fn nobody_comes_in_before_the_enrolment() {
    let world = World::new();
    let mut capture = world.start();
    let mut server = world.app();
    let bound: SocketAddr = server.ask("listen [::]:0").parse().unwrap();
    let come = |ip: &str, patience| {
        let target = SocketAddr::new(ip.parse().unwrap(), bound.port());
        let connect = || TcpStream::connect_timeout(&target, patience);
        world.outside.run(connect).unwrap()
    };
    let (soon, never) = (Duration::from_secs(5), Duration::from_millis(300));
    let mut old = come(POD4, soon).unwrap();
    server.ask("accept");
    for state in [CgroupState::Held, CgroupState::Denied] {
        capture.set_cgroup(&world.pod_cgroup, state).unwrap();
        for ip in [POD4, POD6] {
            assert!(come(ip, never).is_err(), "{ip} {state:?}");
        }
    }
    assert!(counter(&capture, "ingress_dropped_held") >= 4);
    // From inside the pod it goes on, and so does what was there before.
    let mut inside = world.app();
    inside.ask(&format!("connect {POD4}:{}", bound.port()));
    std::io::Write::write_all(&mut old, b"ping").unwrap();
    assert_eq!(server.ask("receive"), "ping");
    capture
        .set_cgroup(&world.pod_cgroup, CgroupState::Free)
        .unwrap();
    come(POD6, soon).unwrap();
}
