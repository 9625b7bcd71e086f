//! Tables of cases for the verdicts and address classes; below it those of cgroups and guards.

extern crate std;

use core::net::IpAddr;
use std::vec::Vec;

use crate::*;

mod cgroup;
mod guard;

fn address(text: &str) -> Address {
    text.parse::<IpAddr>().unwrap().into()
}

struct World {
    flags: Option<u32>,
    daemon: bool,
    standing: Standing,
    ranges: Vec<Address>,
    ports: Vec<u16>,
    locals: Vec<Address>,
    exempt: Vec<Address>,
    probes: Vec<u16>,
    open: Vec<u16>,
}

/// The namespace that is asked from.
const COOKIE: u64 = 7;

impl Caller for World {
    fn cookie(&self) -> u64 {
        COOKIE
    }
    fn pod(&self) -> Option<Pod> {
        self.flags.map(|flags| Pod { flags })
    }
    fn is_daemon(&self) -> bool {
        self.daemon
    }
    fn standing(&self) -> Standing {
        self.standing
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
    fn is_open(&self, port: u16) -> bool {
        self.open.contains(&port)
    }
    fn is_probe(&self, arrival: &Arrival) -> bool {
        self.probes.contains(&arrival.source_port)
    }
}

fn world(flags: u32) -> World {
    World {
        flags: Some(flags),
        daemon: false,
        standing: Standing::Free,
        ranges: [address("10.9.9.9")].into(),
        ports: [25].into(),
        locals: [address("10.0.0.2"), address("fd00::2")].into(),
        exempt: [address("10.0.0.1")].into(),
        probes: [40_000].into(),
        open: [15020].into(),
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
    assert_eq!(ask(&world(all), true, "10.9.9.9", 80), Connect::Exclude);
    assert_eq!(ask(&world(all), true, "10.1.1.1", 25), Connect::Exclude);
    assert_eq!(ask(&world(all), true, "169.254.1.1", 80), Connect::Exclude);
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
            source_port: 1234,
            destination: address(destination),
            port,
        };
        assert_eq!(lookup(&arrival, &world(flags)), want, "{arrival:?}");
    }
    let arrival = Arrival {
        tcp: true,
        via: Loopback,
        source: address("::1"),
        source_port: 1234,
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
fn options() {
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
}

#[test]
fn probes_go_to_the_application() {
    let arrival = |source_port, port| Arrival {
        tcp: true,
        via: Via::Elsewhere,
        source: address("10.7.7.7"),
        source_port,
        destination: address("10.0.0.2"),
        port,
    };
    let ask = |source_port, port| lookup(&arrival(source_port, port), &world(Pod::CAPTURE));
    assert_eq!(ask(40_000, 80), Lookup::Pass);
    assert_eq!(ask(40_001, 80), Lookup::Assign(Kind::Plaintext));
    assert_eq!(ask(40_000, HBONE_PORT), Lookup::Assign(Kind::Hbone));
    assert!(is_fresh(5, 5) && is_fresh(5, 4 + PROBE_NS_MAX));
    assert!(!is_fresh(5, 5 + PROBE_NS_MAX) && !is_fresh(5, 4));
}

#[test]
fn uncaptured_namespaces_are_judged_by_cgroup() {
    let cases = [
        (Standing::Free, Connect::Foreign),
        (Standing::Held, Connect::Hold(Wait::Enrolment)),
        (Standing::Denied, Connect::Deny),
        (Standing::Enrolled(COOKIE), Connect::Hold(Wait::Enrolment)),
        (
            Standing::Enrolled(COOKIE + 1),
            Connect::Hold(Wait::Namespace),
        ),
    ];
    for (standing, want) in cases {
        // An entry without the switch is a pod on its way in or out.
        for flags in [None, Some(Pod::DNS)] {
            let here = World {
                flags,
                standing,
                ..world(0)
            };
            let ask = |world: &World, tcp, destination| {
                let attempt = Attempt {
                    tcp,
                    destination: address(destination),
                    port: 80,
                };
                connect(&attempt, world)
            };
            assert_eq!(ask(&here, true, "10.1.1.1"), want, "{standing:?}");
            assert_eq!(ask(&here, false, "10.1.1.1"), Connect::Foreign);
            assert_eq!(ask(&here, true, "127.0.0.1"), Connect::Foreign);
            assert_eq!(ask(&here, true, "fe80::1"), Connect::Foreign);
            let daemon = World {
                daemon: true,
                ..here
            };
            assert_eq!(ask(&daemon, true, "10.1.1.1"), Connect::Foreign);
        }
        let captured = World {
            standing,
            ..world(Pod::CAPTURE)
        };
        let attempt = Attempt {
            tcp: true,
            destination: address("10.1.1.1"),
            port: 80,
        };
        assert_eq!(connect(&attempt, &captured), Connect::Capture);
    }
}

#[test]
fn open_ports_lead_to_who_listens() {
    let ask = |flags, port, source: &str, via| {
        let arrival = Arrival {
            tcp: true,
            via,
            source: address(source),
            source_port: 9,
            destination: address("10.0.0.2"),
            port,
        };
        lookup(&arrival, &world(flags))
    };
    let (open, shut) = (Pod::CAPTURE | Pod::OPEN_PORTS, Pod::CAPTURE);
    for (flags, port, want) in [
        (open, 15020, Lookup::Pass),
        (open, 80, Lookup::Assign(Kind::Plaintext)),
        (open, HBONE_PORT, Lookup::Assign(Kind::Hbone)),
        (shut, 15020, Lookup::Assign(Kind::Plaintext)),
    ] {
        assert_eq!(ask(flags, port, "10.7.7.7", Via::Elsewhere), want, "{port}");
    }
}
