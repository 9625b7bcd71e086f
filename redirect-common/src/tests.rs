//! Tables of cases for the verdicts and address classes.

extern crate std;

use core::net::IpAddr;
use std::vec::Vec;

use crate::*;

fn address(text: &str) -> Address {
    text.parse::<IpAddr>().unwrap().into()
}

struct World {
    flags: Option<u32>,
    daemon: bool,
    ranges: Vec<Address>,
    ports: Vec<u16>,
    locals: Vec<Address>,
    exempt: Vec<Address>,
}

impl Caller for World {
    fn pod(&self) -> Option<Pod> {
        self.flags.map(|flags| Pod { flags })
    }
    fn is_daemon(&self) -> bool {
        self.daemon
    }
    fn excludes_range(&self, destination: &Address) -> bool {
        self.ranges.contains(destination)
    }
    fn excludes_port(&self, port: u16) -> bool {
        self.ports.contains(&port)
    }
}

impl Door for World {
    fn pod(&self) -> Option<Pod> {
        self.flags.map(|flags| Pod { flags })
    }
    fn is_local(&self, address: &Address) -> bool {
        self.locals.contains(address)
    }
    fn is_exempt(&self, source: &Address) -> bool {
        self.exempt.contains(source)
    }
}

fn world(flags: u32) -> World {
    World {
        flags: Some(flags),
        daemon: false,
        ranges: [address("10.9.9.9")].into(),
        ports: [25].into(),
        locals: [address("10.0.0.2"), address("fd00::2")].into(),
        exempt: [address("10.0.0.1")].into(),
    }
}

#[test]
fn address_classes() {
    for (text, never) in [
        ("10.0.0.1", false),
        ("127.0.0.1", true),
        ("127.255.0.1", true),
        ("::ffff:127.0.0.1", true),
        ("::1", true),
        ("0.0.0.0", true),
        ("::", true),
        ("::2", false),
        ("169.254.169.254", true),
        ("169.253.0.1", false),
        ("fe80::1", true),
        ("febf::1", true),
        ("fec0::1", false),
        ("224.0.0.1", true),
        ("239.1.1.1", true),
        ("240.0.0.1", false),
        ("ff02::1", true),
        ("fd00::1", false),
        ("::fffe:127.0.0.1", false),
    ] {
        assert_eq!(address(text).is_never_captured(), never, "{text}");
    }
    assert_eq!(address("::ffff:10.0.0.1"), address("10.0.0.1"));
    assert_eq!(
        IpAddr::from(address("::ffff:10.0.0.1")),
        "10.0.0.1".parse::<IpAddr>().unwrap()
    );
    assert_eq!(
        address("10.0.0.1"),
        Address::v4(u32::from_ne_bytes([10, 0, 0, 1]))
    );
}

#[test]
fn connects() {
    let all = Pod::CAPTURE | Pod::EXCLUDED_RANGES | Pod::EXCLUDED_PORTS;
    let ask = |world: &World, tcp, destination, port| {
        connect(
            &Attempt {
                tcp,
                destination: address(destination),
                port,
            },
            world,
        )
    };
    assert_eq!(ask(&world(all), true, "10.1.1.1", 80), Connect::Capture);
    assert_eq!(ask(&world(all), true, "fd00::9", 80), Connect::Capture);
    assert_eq!(ask(&world(all), true, "10.0.0.2", 80), Connect::Capture);
    assert_eq!(ask(&world(all), false, "10.1.1.1", 80), Connect::Pass);
    assert_eq!(
        ask(&world(all), true, "::ffff:127.0.0.1", 80),
        Connect::Pass
    );
    assert_eq!(ask(&world(all), true, "10.9.9.9", 80), Connect::Pass);
    assert_eq!(ask(&world(all), true, "10.1.1.1", 25), Connect::Pass);
    assert_eq!(
        ask(&world(Pod::CAPTURE), true, "10.9.9.9", 25),
        Connect::Capture
    );
    assert_eq!(
        ask(&world(all & !Pod::CAPTURE), true, "10.1.1.1", 80),
        Connect::Foreign
    );
    assert_eq!(
        ask(
            &World {
                flags: None,
                ..world(0)
            },
            true,
            "10.1.1.1",
            80
        ),
        Connect::Foreign
    );
    assert_eq!(
        ask(
            &World {
                daemon: true,
                ..world(all)
            },
            true,
            "10.1.1.1",
            80
        ),
        Connect::Pass
    );
}

#[test]
fn lookups() {
    use Via::{Elsewhere, Loopback};
    let cases = [
        (
            Pod::DNS,
            true,
            Loopback,
            "10.0.0.2",
            "10.1.1.1",
            80,
            Lookup::Assign(Kind::Outbound),
        ),
        (
            Pod::DNS,
            true,
            Loopback,
            "10.0.0.2",
            "10.1.1.1",
            53,
            Lookup::Assign(Kind::Outbound),
        ),
        (
            Pod::DNS,
            true,
            Loopback,
            "10.7.7.7",
            "10.0.0.2",
            80,
            Lookup::Pass,
        ),
        (
            Pod::DNS,
            true,
            Loopback,
            "127.0.0.1",
            "127.0.0.1",
            80,
            Lookup::Pass,
        ),
        (Pod::DNS, true, Loopback, "::1", "::1", 80, Lookup::Pass),
        (
            Pod::DNS,
            true,
            Loopback,
            "fd00::2",
            "fd00::9",
            80,
            Lookup::Assign(Kind::Outbound),
        ),
        (
            Pod::DNS,
            false,
            Loopback,
            "10.0.0.2",
            "10.1.1.1",
            53,
            Lookup::Assign(Kind::Dns),
        ),
        (0, false, Loopback, "10.0.0.2", "10.1.1.1", 53, Lookup::Pass),
        (
            Pod::DNS,
            false,
            Loopback,
            "10.0.0.2",
            "127.0.0.1",
            53,
            Lookup::Pass,
        ),
        (
            Pod::DNS,
            false,
            Loopback,
            "10.0.0.2",
            "10.1.1.1",
            443,
            Lookup::Pass,
        ),
        (
            Pod::DNS,
            true,
            Elsewhere,
            "10.0.0.2",
            "10.0.0.2",
            15008,
            Lookup::Pass,
        ),
        (
            Pod::DNS,
            true,
            Elsewhere,
            "10.7.7.7",
            "10.0.0.2",
            15008,
            Lookup::Assign(Kind::Hbone),
        ),
        (
            Pod::DNS,
            true,
            Elsewhere,
            "10.0.0.1",
            "10.0.0.2",
            15008,
            Lookup::Assign(Kind::Hbone),
        ),
        (
            Pod::DNS,
            true,
            Elsewhere,
            "10.0.0.1",
            "10.0.0.2",
            80,
            Lookup::Pass,
        ),
        (
            Pod::DNS,
            true,
            Elsewhere,
            "10.7.7.7",
            "10.0.0.2",
            80,
            Lookup::Assign(Kind::Plaintext),
        ),
        (
            Pod::BYPASS_INBOUND,
            true,
            Elsewhere,
            "10.7.7.7",
            "10.0.0.2",
            80,
            Lookup::Pass,
        ),
        (
            Pod::BYPASS_INBOUND,
            true,
            Elsewhere,
            "10.7.7.7",
            "10.0.0.2",
            15008,
            Lookup::Assign(Kind::Hbone),
        ),
        (
            Pod::DNS,
            false,
            Elsewhere,
            "10.7.7.7",
            "10.0.0.2",
            53,
            Lookup::Pass,
        ),
    ];
    for (flags, tcp, via, source, destination, port, want) in cases {
        let arrival = Arrival {
            tcp,
            via,
            source: address(source),
            destination: address(destination),
            port,
        };
        assert_eq!(lookup(&arrival, &world(flags)), want, "{arrival:?}");
    }
    let arrival = Arrival {
        tcp: true,
        via: Loopback,
        source: address("::1"),
        destination: address("::1"),
        port: 1,
    };
    assert_eq!(
        lookup(
            &arrival,
            &World {
                flags: None,
                ..world(0)
            }
        ),
        Lookup::Drop(Mismatch::NoPod)
    );
}

#[test]
fn options_and_egress() {
    let captured = SocketOption {
        level: 1,
        name: 36,
        stream: true,
        closed: false,
        multipath: false,
        mark: REDIRECT_MARK,
    };
    assert!(setsockopt(&captured));
    assert!(setsockopt(&SocketOption {
        name: 25,
        ..captured
    }));
    assert!(setsockopt(&SocketOption {
        name: 62,
        ..captured
    }));
    assert!(!setsockopt(&SocketOption {
        name: 9,
        ..captured
    }));
    assert!(!setsockopt(&SocketOption {
        level: 6,
        ..captured
    }));
    assert!(!setsockopt(&SocketOption {
        stream: false,
        ..captured
    }));
    assert!(!setsockopt(&SocketOption {
        closed: true,
        ..captured
    }));
    assert!(!setsockopt(&SocketOption {
        mark: 0,
        ..captured
    }));
    assert!(setsockopt(&SocketOption {
        mark: 0,
        multipath: true,
        ..captured
    }));
    assert!(!egress(LOOPBACK_IFINDEX, REDIRECT_MARK, || true));
    assert!(egress(2, REDIRECT_MARK, || false));
    assert!(egress(2, 0, || true));
    assert!(!egress(2, DAEMON_MARK, || false));
}
