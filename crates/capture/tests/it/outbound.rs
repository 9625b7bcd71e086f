//! An enrolled pod's own connections and questions.

use std::net::SocketAddr;

use redirect_common::DAEMON_MARK;

use crate::app::App;
use crate::world::{
    FAR4, FAR6, OUTSIDE4, OUTSIDE6, POD4, World, accept, destination, echo, nobody, until,
};

fn captured(world: &World, options: &[&str]) {
    let (_capture, sockets) = world.enrolled();
    for target in [
        "10.77.0.1:80",
        "10.88.0.1:443",
        "192.0.2.1:53",
        "[fd88::1]:80",
        "[2001:db8::9]:443",
        "[::ffff:10.88.0.1]:81",
    ] {
        let mut app = world.app();
        app.begin(&format!("connect {target} {}", options.join(" ")));
        let (mut stream, peer) = accept(&sockets.outbound);
        let want = sys::udp::unmapped(target.parse().unwrap());
        assert_eq!(destination(&stream), want, "{target}");
        let answer = app.answer();
        let (local, remote) = answer
            .split_once(' ')
            .unwrap_or_else(|| panic!("{target}: {answer}"));
        assert_eq!(remote, target, "the application sees whom it asked for");
        assert_eq!(
            sys::udp::unmapped(local.parse::<SocketAddr>().unwrap()),
            peer
        );
        app.begin("send ping");
        echo(&mut stream);
        assert_eq!(
            (app.answer().as_str(), app.ask("receive").as_str()),
            ("sent 4", "ping")
        );
    }
}

#[test]
fn connections_come_with_their_destination() {
    captured(&World::new(), &[]);
}

#[test]
fn multipath_tcp_too() {
    captured(&World::new(), &["mptcp"]);
}

#[test]
fn marks_and_devices_set_before_do_not_help() {
    let world = World::new();
    let leak = world.listen_outside("[::]:80");
    captured(&world, &["mark=1337"]);
    captured(&world, &["mark=1339"]);
    captured(&world, &["mark=7", "device=eth0"]);
    assert!(nobody(&leak));
}

#[test]
fn fast_open_and_bound_sources_are_captured() {
    let world = World::new();
    let (_capture, sockets) = world.enrolled();
    let mut app = world.app();
    app.begin("fastopen 10.88.0.1:80 ping");
    let (mut stream, _) = accept(&sockets.outbound);
    echo(&mut stream);
    assert_eq!(
        (app.answer().as_str(), app.ask("receive").as_str()),
        ("sent 4", "ping")
    );
    assert_eq!(destination(&stream), "10.88.0.1:80".parse().unwrap());
    app.begin(&format!("connect 10.88.0.1:80 bind={POD4}:0"));
    assert_eq!(accept(&sockets.outbound).1.ip().to_string(), POD4);
}

#[test]
fn loopback_link_local_excluded_and_own_go_straight() {
    let world = World::new();
    let mut capture = world.start();
    let sockets = world.sockets();
    let mut wanted = world.wanted();
    wanted.exclude_ranges = vec![
        "10.88.0.0/24".parse().unwrap(),
        "fd88::/64".parse().unwrap(),
    ];
    wanted.exclude_ports = vec![2525];
    capture.enroll(&wanted, &sockets).unwrap();
    let mut app = world.app();
    for target in [
        format!("{FAR4}:80"),
        format!("[{FAR6}]:80"),
        format!("{OUTSIDE4}:2525"),
        format!("[{OUTSIDE6}]:2525"),
    ] {
        let outside = world.listen_outside(&target);
        let answer = app.ask(&format!("connect {target}"));
        assert!(answer.ends_with(&target), "{target}: {answer}");
        assert!(!nobody(&outside));
    }
    for address in ["127.0.0.1", "[::1]", POD4, "[fd77::2]"] {
        let mut server = world.app();
        let bound = server.ask(&format!("listen {address}:0"));
        assert!(
            app.ask(&format!("connect {bound}")).ends_with(&bound),
            "{address}"
        );
        server.ask("accept");
    }
    assert!(nobody(&sockets.outbound) && nobody(&sockets.plaintext));
}

#[test]
fn only_enrolled_pods_and_not_the_daemon() {
    let world = World::new();
    let outside = world.listen_outside(&format!("{FAR4}:80"));
    let straight = |app: &mut App| {
        assert!(app.ask(&format!("connect {FAR4}:80")).contains(FAR4));
        accept(&outside);
    };
    let mut config = world.config();
    let daemon = world.cgroup.join("daemon");
    std::fs::create_dir(&daemon).unwrap();
    config.daemon_cgroup_id = sys::cgroup::id(&daemon).unwrap();
    let mut capture = capture::Capture::start(config).unwrap();
    straight(&mut world.app());
    let sockets = world.sockets();
    capture.enroll(&world.wanted(), &sockets).unwrap();
    outside.set_nonblocking(true).unwrap();
    straight(&mut App::start(&daemon, &world.netns_path()));
    let mut app = world.app();
    app.begin(&format!("connect {FAR4}:80"));
    accept(&sockets.outbound);
    capture.release(world.pod.cookie()).unwrap();
    straight(&mut world.app());
    assert!(until(|| std::fs::remove_dir(&daemon).is_ok()));
}

#[test]
fn closed_sockets_mean_closed_doors() {
    let world = World::new();
    let outside = world.listen_outside("[::]:80");
    let (capture, sockets) = world.enrolled();
    drop(sockets);
    let mut app = world.app();
    for target in [format!("{FAR4}:80"), format!("[{FAR6}]:80")] {
        let answer = app.ask(&format!("connect {target} patience=300"));
        assert!(answer.starts_with("error"), "{target}: {answer}");
    }
    assert!(nobody(&outside));
    let dropped = capture
        .counters()
        .into_iter()
        .find(|(name, _)| *name == "lookup_dropped_socket")
        .unwrap();
    assert!(dropped.1 >= 2, "{dropped:?}");
}

#[test]
fn questions_come_with_their_resolver_and_answers_in_its_name() {
    let world = World::new();
    let (_capture, sockets) = world.enrolled();
    let dns = sockets.dns.as_ref().unwrap();
    for resolver in ["10.99.0.10:53", "[fd99::10]:53"] {
        let mut app = world.app();
        app.begin(&format!("query {resolver} question"));
        let mut buffer = [0; 64];
        let mut got = None;
        assert!(until(|| {
            got = sys::udp::receive(&dns.questions, &mut buffer).ok();
            got.is_some()
        }));
        let got = got.unwrap();
        assert_eq!(
            (&buffer[..got.len], got.destination),
            (&b"question"[..], resolver.parse().unwrap())
        );
        dns.answers
            .send(got.destination, got.source, b"answer")
            .unwrap();
        assert_eq!(app.answer(), "answer");
    }
}

#[test]
fn the_daemons_own_questions_leave() {
    let world = World::new();
    let (_capture, sockets) = world.enrolled();
    let resolver = world
        .outside
        .run(|| std::net::UdpSocket::bind((FAR4, 53)).unwrap())
        .unwrap();
    resolver.set_read_timeout(Some(crate::world::SOON)).unwrap();
    let target: SocketAddr = (FAR4.parse::<std::net::IpAddr>().unwrap(), 53).into();
    let asker = world
        .pod
        .run(|| sys::socket::udp_plain(target, Some(DAEMON_MARK)).unwrap())
        .unwrap();
    asker.send_to(b"question", target).unwrap();
    let mut buffer = [0; 16];
    let (len, from) = resolver.recv_from(&mut buffer).unwrap();
    assert_eq!(
        (&buffer[..len], from.ip().to_string().as_str()),
        (&b"question"[..], POD4)
    );
    assert!(sys::udp::receive(&sockets.dns.as_ref().unwrap().questions, &mut buffer).is_err());
}
