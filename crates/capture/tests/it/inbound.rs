//! Connections from elsewhere to an enrolled pod, and the daemon's own to the application.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use capture::{Capture, PodFlags};
use redirect_common::REDIRECT_MARK;

use crate::world::{FAR4, FAR6, OUTSIDE4, POD4, POD6, World, accept, destination, nobody};

fn from_outside(world: &World, target: &str) -> TcpStream {
    let target: SocketAddr = target.parse().unwrap();
    world
        .outside
        .run(|| TcpStream::connect_timeout(&target, Duration::from_secs(5)).unwrap())
        .unwrap()
}

#[test]
fn plaintext_and_hbone_come_to_the_daemon() {
    let world = World::new();
    let (_capture, sockets) = world.enrolled();
    for ip in [POD4.to_owned(), format!("[{POD6}]")] {
        for (listener, port) in [
            (&sockets.plaintext, 8080),
            (&sockets.plaintext, 53),
            (&sockets.hbone, 15008),
        ] {
            let client = from_outside(&world, &format!("{ip}:{port}"));
            let (stream, peer) = accept(listener);
            assert_eq!(peer, client.local_addr().unwrap());
            assert_eq!(destination(&stream), client.peer_addr().unwrap());
        }
    }
}

#[test]
fn exempt_sources_and_bypassing_pods_reach_the_application() {
    let world = World::new();
    let mut config = world.config();
    config.exempt_sources = vec![format!("{OUTSIDE4}/32").parse().unwrap()];
    let mut capture = Capture::start(config).unwrap();
    let sockets = world.sockets();
    capture.enroll(&world.wanted(), &sockets).unwrap();
    let mut app = world.app();
    let bound: SocketAddr = app.ask("listen [::]:0").parse().unwrap();
    let _probe = from_outside(&world, &format!("{POD4}:{}", bound.port()));
    assert!(app.ask("accept").contains(OUTSIDE4));
    let _client = from_outside(&world, &format!("[{POD6}]:{}", bound.port()));
    accept(&sockets.plaintext);
    let mut wanted = world.wanted();
    wanted.flags = PodFlags {
        dns: false,
        bypass_inbound: true,
    };
    let sockets = capture::sockets::open(&world.pod, wanted.flags).unwrap();
    capture.enroll(&wanted, &sockets).unwrap();
    let _client = from_outside(&world, &format!("[{POD6}]:{}", bound.port()));
    app.ask("accept");
    assert!(nobody(&sockets.plaintext));
    from_outside(&world, &format!("[{POD6}]:15008"));
    accept(&sockets.hbone);
    assert!(!world.pod_ip("rule").contains("dport"));
}

#[test]
fn the_daemon_reaches_the_application_with_a_foreign_source() {
    let world = World::new();
    let (_capture, sockets) = world.enrolled();
    let mut app = world.app();
    let bound: SocketAddr = app.ask("listen [::]:0").parse().unwrap();
    for (pod, client) in [
        (POD4, FAR4),
        (POD6, FAR6),
        (POD4, "192.0.2.77"),
        (POD6, "2001:db8::77"),
    ] {
        let target = SocketAddr::new(pod.parse().unwrap(), bound.port());
        let options = sys::socket::DialOptions {
            mark: Some(REDIRECT_MARK),
            device: Some("lo"),
            source: Some((client.parse().unwrap(), 61_000..=65_535)),
            ..Default::default()
        };
        let socket = world
            .pod
            .run(|| sys::socket::dial_socket(target, &options).unwrap())
            .unwrap();
        socket
            .connect_timeout(&target.into(), Duration::from_secs(5))
            .unwrap();
        let seen = sys::udp::unmapped(app.ask("accept").parse().unwrap());
        assert_eq!(seen.ip().to_string(), client);
        let mut stream = TcpStream::from(socket);
        stream.set_nonblocking(false).unwrap();
        stream.write_all(b"ping").unwrap();
        assert_eq!(app.ask("receive"), "ping");
        app.ask("send pong");
        let mut bytes = [0; 4];
        std::io::Read::read_exact(&mut stream, &mut bytes).unwrap();
        assert_eq!(&bytes, b"pong");
    }
    assert!(nobody(&sockets.outbound) && nobody(&sockets.plaintext));
}
