//! What stays shut when one of the programs or entries is gone.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData};
use redirect_common::Pod;

use crate::app::App;
use crate::hold::counter;
use crate::tamper::Tap;
use crate::world::{FAR4, FAR6, OUTSIDE4, POD4, POD6, World, accept, nobody, until};

fn detach(world: &World, pin: &str) {
    let link = sys::bpf::pinned(&world.pins.join("v3").join(pin)).unwrap();
    sys::bpf::link_detach(link.as_fd()).unwrap();
}

fn forget_pod(world: &World) {
    let data = MapData::from_pin(world.pins.join("v3/PODS")).unwrap();
    let map = Map::from_map_data(data).unwrap();
    let mut pods: HashMap<_, u64, Pod> = map.try_into().unwrap();
    pods.remove(&world.pod.cookie()).unwrap();
}

fn from_outside(world: &World, ip: &str, port: u16) -> std::io::Result<TcpStream> {
    let target = SocketAddr::new(ip.parse().unwrap(), port);
    let connect = || TcpStream::connect_timeout(&target, Duration::from_millis(400));
    world.outside.run(connect).unwrap()
}

#[test]
fn requests_that_nobody_redirected_do_not_leave() {
    let world = World::new();
    let tap = Tap::new(&world);
    let mut capture = world.start();
    let mut wanted = world.wanted();
    wanted.exclude_ports = vec![2525];
    let sockets = world.sockets();
    capture.enroll(&wanted, &sockets).unwrap();
    detach(&world, "link-connect4");
    detach(&world, "link-connect6");
    for (count, target) in [(1, format!("{FAR4}:80")), (2, format!("[{FAR6}]:80"))] {
        for options in ["", "mptcp", "mark=1337", "device=eth0"] {
            let request = format!("connect {target} patience=300 {options}");
            assert!(world.app().ask(&request).starts_with("error"), "{request}");
        }
        assert!(counter(&capture, "egress_dropped_uncaptured") >= count * 4);
    }
    assert!(!tap.saw_anything());
    // What the pod excludes goes on.
    let outside = world.listen_outside("[::]:2525");
    for target in [format!("{FAR4}:2525"), format!("[{FAR6}]:2525")] {
        assert!(
            world
                .app()
                .ask(&format!("connect {target}"))
                .ends_with(&target)
        );
        accept(&outside);
    }
    let found = capture.check();
    assert_eq!(found.len(), 2, "{found:?}");
    found
        .iter()
        .for_each(|drift| capture.repair(drift).unwrap());
    let mut app = world.app();
    app.begin(&format!("connect {FAR4}:80"));
    accept(&sockets.outbound);
}

#[test]
fn a_destination_excluded_at_connect_may_be_translated() {
    let world = World::new();
    let mut capture = world.start();
    let mut wanted = world.wanted();
    // As a load balancer in the pod's kernel does: the address that leaves is not the one that was asked for.
    wanted.exclude_ranges = vec!["203.0.113.1/32".parse().unwrap()];
    let sockets = world.sockets();
    capture.enroll(&wanted, &sockets).unwrap();
    let rules = "add table ip t; add chain ip t out { type nat hook output priority -100; }; \
                 add rule ip t out ip daddr 203.0.113.1 dnat to 10.88.0.1";
    let load = || {
        std::process::Command::new("nft")
            .arg(rules)
            .status()
            .unwrap()
    };
    assert!(world.pod.run(load).unwrap().success());
    let outside = world.listen_outside(&format!("{FAR4}:80"));
    let mut app = world.app();
    assert!(
        app.ask("connect 203.0.113.1:80")
            .ends_with("203.0.113.1:80")
    );
    accept(&outside);
}

#[test]
fn nobody_gets_past_the_daemon_to_the_application() {
    let world = World::new();
    let mut config = world.config();
    config.exempt_sources = vec![format!("{OUTSIDE4}/32").parse().unwrap()];
    let mut capture = capture::Capture::start(config).unwrap();
    let sockets = world.sockets();
    capture.enroll(&world.wanted(), &sockets).unwrap();
    let mut app = world.app();
    let bound: SocketAddr = app.ask("listen [::]:0").parse().unwrap();
    detach(&world, &format!("lookup-{:x}", world.pod.cookie()));
    assert!(from_outside(&world, POD6, bound.port()).is_err());
    assert!(counter(&capture, "ingress_dropped_uncaptured") > 0);
    // Who may come without the daemon still may.
    from_outside(&world, POD4, bound.port()).unwrap();
    app.ask("accept");
    let mut inside = world.app();
    inside.ask(&format!("connect 127.0.0.1:{}", bound.port()));
    app.ask("accept");
    assert!(nobody(&sockets.plaintext));
}

#[test]
fn a_lost_entry_shuts_the_pod() {
    let world = World::new();
    let tap = Tap::new(&world);
    let (mut capture, sockets) = world.enrolled();
    let mut server = world.app();
    let bound: SocketAddr = server.ask("listen [::]:0").parse().unwrap();
    forget_pod(&world);
    let mut app = world.app();
    app.begin(&format!("connect {FAR4}:80"));
    assert!(until(|| counter(&capture, "connect_held") > 0));
    assert!(from_outside(&world, POD6, bound.port()).is_err());
    detach(&world, &format!("lookup-{:x}", world.pod.cookie()));
    assert!(from_outside(&world, POD6, bound.port()).is_err());
    // Mended, the connection is made.
    for drift in capture.check() {
        capture.repair(&drift).unwrap();
    }
    assert_eq!(capture.check(), []);
    accept(&sockets.outbound);
    assert!(app.answer().ends_with(&format!("{FAR4}:80")));
    assert!(!tap.saw_anything());
}

#[test]
fn another_namespace_than_the_one_enrolled_is_shut() {
    let world = World::new();
    let (capture, sockets) = world.enrolled();
    let mut app = App::start(&world.pod_cgroup, &world.outside_path());
    assert!(
        app.ask(&format!("connect {POD4}:80 patience=300"))
            .starts_with("error")
    );
    assert!(nobody(&sockets.plaintext));
    assert_eq!(counter(&capture, "connect_held_netns"), 1);
    assert!(counter(&capture, "egress_dropped") > 0);
}

#[test]
fn connections_older_than_the_enrolment_go_on() {
    let world = World::new();
    let outside = world.listen_outside(&format!("{FAR4}:80"));
    let mut capture = world.start();
    let mut app = world.app();
    app.ask(&format!("connect {FAR4}:80"));
    let (mut stream, _) = accept(&outside);
    capture.enroll(&world.wanted(), &world.sockets()).unwrap();
    app.begin("send ping");
    crate::world::echo(&mut stream);
    assert_eq!(
        (app.answer().as_str(), app.ask("receive").as_str()),
        ("sent 4", "ping")
    );
}
