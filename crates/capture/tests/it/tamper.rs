//! Attempts of an application to get a captured connection out of the pod after all.

use std::net::IpAddr;
use std::time::Duration;

use redirect_common::{DAEMON_MARK, REDIRECT_MARK};
use socket2::{Domain, Protocol, Socket, Type};

use crate::world::{FAR4, World, accept, echo};

const EPERM: &str = "error 1";

/// Sees every TCP segment that reaches the outside.
pub struct Tap(Socket);

impl Tap {
    pub fn new(world: &World) -> Self {
        let open = || Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)).unwrap();
        let socket = world.outside.run(open).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self(socket)
    }

    /// Whether a segment came to port 80 of the far address.
    pub fn saw_anything(&self) -> bool {
        let mut seen = false;
        let mut packet = [0u8; 2048];
        while let Ok(len) = std::io::Read::read(&mut &self.0, &mut packet) {
            let header = usize::from(packet[0] & 0xf) * 4;
            let far: IpAddr = FAR4.parse().unwrap();
            let to = IpAddr::from(<[u8; 4]>::try_from(&packet[16..20]).unwrap());
            seen |= len > header + 4
                && to == far
                && packet[header + 2..header + 4] == 80u16.to_be_bytes();
        }
        seen
    }
}

fn held_fast(options: &str) {
    let world = World::new();
    let tap = Tap::new(&world);
    let (capture, sockets) = world.enrolled();
    let mut app = world.app();
    app.begin(&format!("connect {FAR4}:80 {options}"));
    let (mut stream, _) = accept(&sockets.outbound);
    app.answer();
    for request in [
        "mark 0",
        "mark 1337",
        "mark 1339",
        "device eth0",
        "device lo",
    ] {
        assert_eq!(app.ask(request), EPERM, "{request}");
    }
    assert_eq!(app.ask("nodelay"), "ok");
    app.begin("send ping");
    echo(&mut stream);
    assert_eq!(app.answer(), "sent 4");
    assert!(!tap.saw_anything());
    let counters = capture.counters();
    assert_eq!(
        counters
            .iter()
            .find(|(name, _)| *name == "setsockopt_refused")
            .unwrap()
            .1,
        5
    );
}

#[test]
fn captured_connections_cannot_be_marked_or_bound_again() {
    held_fast("");
}

/// The refusal is decided before the option is set: a connect() in between slips past it, but not past the guard.
#[test]
fn marking_while_connecting_lets_nothing_out() {
    let world = World::new();
    let tap = Tap::new(&world);
    let (_capture, sockets) = world.enrolled();
    let mut app = world.app();
    app.begin(&format!("race {FAR4}:80 300"));
    let daemon = std::thread::spawn(move || {
        // Serves until the application is done, then finds the door closed.
        sockets.outbound.set_nonblocking(false).unwrap();
        while let Ok((stream, _)) = sockets.outbound.accept() {
            let _ = stream.set_nonblocking(true);
            if let Ok(1) = std::io::Read::read(&mut &stream, &mut [0; 1]) {
                continue;
            }
            if stream.local_addr().unwrap().port() == 81 {
                break;
            }
        }
    });
    assert_eq!(app.answer(), "over");
    app.ask(&format!("connect {FAR4}:81"));
    daemon.join().unwrap();
    assert!(!tap.saw_anything());
}

#[test]
fn nor_can_multipath_ones() {
    held_fast("mptcp");
}

#[test]
fn the_guard_holds_when_the_routing_is_gone() {
    let world = World::new();
    let tap = Tap::new(&world);
    let (capture, sockets) = world.enrolled();
    let mut app = world.app();
    app.begin(&format!("connect {FAR4}:80"));
    let (_stream, _) = accept(&sockets.outbound);
    app.answer();
    // As an application with CAP_NET_ADMIN could: a rule before ours takes the connection out by the device.
    world.pod_ip("rule add pref 50 table main");
    world.pod_ip("route flush cache");
    assert_eq!(app.ask("send leak"), "sent 4");
    let dropped = || {
        capture
            .counters()
            .into_iter()
            .find(|(name, _)| *name == "egress_dropped")
            .unwrap()
            .1
    };
    assert!(crate::world::until(|| dropped() > 0));
    assert_eq!(
        app.ask(&format!("connect {FAR4}:80 patience=300"))
            .split(' ')
            .next(),
        Some("error")
    );
    assert!(!tap.saw_anything());
}

fn nothing_leaves_after_release(options: &str) {
    let world = World::new();
    let tap = Tap::new(&world);
    let (mut capture, sockets) = world.enrolled();
    let mut app = world.app();
    app.begin(&format!("connect {FAR4}:80 {options}"));
    let (stream, _) = accept(&sockets.outbound);
    app.answer();
    capture.release(world.pod.cookie()).unwrap();
    // No longer refused; the flag at the socket stays.
    assert_eq!(app.ask("mark 0"), "ok");
    assert_eq!(app.ask("send leak"), "sent 4");
    let dropped = || {
        let counters = capture.counters();
        counters
            .iter()
            .find(|(name, _)| *name == "egress_dropped")
            .unwrap()
            .1
    };
    assert!(crate::world::until(|| dropped() > 0));
    assert!(!tap.saw_anything());
    drop((stream, sockets));
}

#[test]
fn nothing_of_a_captured_connection_leaves_after_release() {
    nothing_leaves_after_release("");
}

#[test]
fn nor_of_a_multipath_one() {
    nothing_leaves_after_release("mptcp");
}

#[test]
fn answers_to_the_daemon_cannot_be_taken_outside() {
    let world = World::new();
    let (_capture, _sockets) = world.enrolled();
    let mut app = world.app();
    let bound: std::net::SocketAddr = app.ask("listen 0.0.0.0:0").parse().unwrap();
    let target = std::net::SocketAddr::new(crate::world::POD4.parse().unwrap(), bound.port());
    let options = sys::socket::DialOptions {
        mark: Some(REDIRECT_MARK),
        device: Some("lo"),
        source: Some((FAR4.parse().unwrap(), 61_000..=65_535)),
        ..Default::default()
    };
    let socket = world
        .pod
        .run(|| sys::socket::dial_socket(target, &options).unwrap())
        .unwrap();
    socket
        .connect_timeout(&target.into(), Duration::from_secs(5))
        .unwrap();
    assert_eq!(app.ask("accept").split(':').next(), Some(FAR4));
    assert_eq!(app.ask("device eth0"), EPERM);
    assert_eq!(app.ask("mark 0"), EPERM);
    let mut stream = std::net::TcpStream::from(socket);
    stream.set_nonblocking(false).unwrap();
    std::io::Write::write_all(&mut stream, b"ping").unwrap();
    assert_eq!(app.ask("receive"), "ping");
}

#[test]
fn a_socket_used_again_is_judged_again() {
    let world = World::new();
    let mut capture = world.start();
    let sockets = world.sockets();
    let mut wanted = world.wanted();
    wanted.exclude_ports = vec![2525];
    capture.enroll(&wanted, &sockets).unwrap();
    drop(sockets);
    let outside = world.listen_outside(&format!("{FAR4}:2525"));
    let mut app = world.app();
    assert!(
        app.ask(&format!("connect {FAR4}:80 mark=7 patience=300"))
            .starts_with("error")
    );
    assert_eq!(app.ask(&format!("reconnect {FAR4}:2525")), "mark 7");
    accept(&outside);
    assert_ne!(DAEMON_MARK, REDIRECT_MARK);
}
