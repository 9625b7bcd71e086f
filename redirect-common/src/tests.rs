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
    standing: Standing,
    ranges: Vec<Address>,
    ports: Vec<u16>,
    locals: Vec<Address>,
    exempt: Vec<Address>,
    probes: Vec<u16>,
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

struct Tree {
    lineage: Vec<u64>,
    entries: Vec<(u64, CgroupState)>,
    settings: Settings,
    learned: core::cell::Cell<Option<u32>>,
}

impl Lineage for Tree {
    fn ancestor(&self, level: u32) -> u64 {
        self.lineage.get(level as usize).copied().unwrap_or(0)
    }
    fn entry(&self, id: u64) -> Option<CgroupEntry> {
        let entry = self.entries.iter().find(|(of, _)| *of == id);
        entry.map(|(_, state)| CgroupEntry::new(*state))
    }
    fn settings(&self) -> Option<Settings> {
        Some(self.settings)
    }
    fn now(&self) -> u64 {
        100
    }
    fn learned(&self, level: u32) {
        self.learned.set(Some(level));
    }
}

#[test]
fn the_walk_finds_the_first_that_decides() {
    use CgroupState::{Denied, Enrolled, Free, Group, Held};
    // Root 1, capture cgroup 3 at level 2, then groups and pods.
    let ask = |below: &[u64], entries: &[(u64, CgroupState)], hold_until| {
        let mut lineage: Vec<u64> = [1, 2, 3].into();
        lineage.extend(below);
        let tree = Tree {
            lineage,
            entries: entries.to_vec(),
            settings: Settings {
                capture: 3,
                hold_until,
                level: 2,
                padding: 0,
            },
            learned: None.into(),
        };
        standing(&tree)
    };
    for (below, entries, hold_until, want) in [
        (&[][..], &[][..], 200, Standing::Free),
        (&[4], &[], 0, Standing::Free),
        (&[4], &[], 100, Standing::Free),
        (&[4], &[], 101, Standing::Held),
        (&[4, 5], &[(4, Group)], 101, Standing::Held),
        (&[4], &[(4, Group)], 101, Standing::Free),
        (&[4, 5], &[(4, Group), (5, Group)], 101, Standing::Free),
        (&[4, 5], &[(5, Free)], 101, Standing::Free),
        (&[4, 5, 6], &[(4, Group), (5, Held)], 0, Standing::Held),
        (&[4, 5], &[(4, Denied)], 0, Standing::Denied),
        (
            &[4, 5],
            &[(4, Enrolled(9)), (5, Free)],
            0,
            Standing::Enrolled(9),
        ),
        (
            &[4, 5, 6, 7, 8, 9, 10, 11],
            &[(11, Held)],
            0,
            Standing::Held,
        ),
        (
            &[4, 5, 6, 7, 8, 9, 10, 11, 12],
            &[(12, Held)],
            0,
            Standing::Free,
        ),
    ] {
        assert_eq!(
            ask(below, entries, hold_until),
            want,
            "{below:?} {entries:?}"
        );
    }
}

#[test]
fn the_level_is_found_when_guessed_wrong() {
    for (level, want) in [(2, None), (0, Some(2)), (7, Some(2)), (99, Some(2))] {
        let tree = Tree {
            lineage: [1, 2, 3, 4].into(),
            entries: [(4, CgroupState::Held)].into(),
            settings: Settings {
                capture: 3,
                hold_until: 0,
                level,
                padding: 0,
            },
            learned: None.into(),
        };
        assert_eq!(standing(&tree), Standing::Held);
        assert_eq!(tree.learned.get(), want, "{level}");
        let elsewhere = Tree {
            lineage: [1, 2, 9, 4].into(),
            ..tree
        };
        assert_eq!(standing(&elsewhere), Standing::Free);
    }
    let nonsense = CgroupEntry {
        state: 77,
        padding: 0,
        cookie: 0,
    };
    assert_eq!(nonsense.state(), CgroupState::Held);
}

struct Out {
    flag: u32,
    connecting: bool,
    world: World,
    destination: &'static str,
}

impl Sender for Out {
    fn flag(&self) -> u32 {
        self.flag
    }
    fn is_connecting(&self) -> bool {
        self.connecting
    }
    fn is_daemon(&self) -> bool {
        self.world.daemon
    }
    fn standing(&self) -> Standing {
        self.world.standing
    }
    fn destination(&self) -> (Address, u16) {
        (address(self.destination), 80)
    }
    fn pod(&self, cookie: u64) -> Option<Pod> {
        (cookie == COOKIE)
            .then(|| Caller::pod(&self.world))
            .flatten()
    }
    fn excludes_range(&self, _: u64, destination: &Address) -> bool {
        self.world.ranges.contains(destination)
    }
    fn excludes_port(&self, _: u64, port: u16) -> bool {
        self.world.ports.contains(&port)
    }
}

#[test]
fn nothing_leaves_that_should_have_been_redirected() {
    use Standing::{Denied, Enrolled, Free, Held};
    let (none, captured, held, passed) = (0, Former::CAPTURED, Former::HELD, Former::PASSED);
    let ours = Enrolled(COOKIE);
    let cases = [
        // Established: only flag and mark count.
        (none, 0, false, ours, "10.1.1.1", Egress::Pass),
        (none, DAEMON_MARK, false, Held, "10.1.1.1", Egress::Pass),
        (
            none,
            REDIRECT_MARK,
            false,
            Free,
            "10.1.1.1",
            Egress::Captured,
        ),
        (captured, 0, false, Free, "10.1.1.1", Egress::Captured),
        (held, REDIRECT_MARK, false, Free, "10.1.1.1", Egress::Pass),
        (held, 0, false, ours, "10.1.1.1", Egress::Captured),
        (
            held,
            REDIRECT_MARK,
            false,
            Held,
            "10.1.1.1",
            Egress::Captured,
        ),
        (passed, 0, false, ours, "10.1.1.1", Egress::Pass),
        // Requests.
        (
            captured,
            REDIRECT_MARK,
            true,
            ours,
            "10.1.1.1",
            Egress::Captured,
        ),
        (captured, 0, true, Free, "10.1.1.1", Egress::Captured),
        (none, 0, true, Free, "10.1.1.1", Egress::Pass),
        (none, REDIRECT_MARK, true, Free, "10.1.1.1", Egress::Pass),
        (held, REDIRECT_MARK, true, Free, "10.1.1.1", Egress::Pass),
        (held, REDIRECT_MARK, true, Held, "10.1.1.1", Egress::Held),
        (held, REDIRECT_MARK, true, Denied, "10.1.1.1", Egress::Held),
        (
            held,
            REDIRECT_MARK,
            true,
            ours,
            "10.1.1.1",
            Egress::Captured,
        ),
        (held, 0, true, ours, "10.1.1.1", Egress::Captured),
        (none, 0, true, Held, "10.1.1.1", Egress::Held),
        (none, 0, true, Held, "169.254.1.1", Egress::Pass),
        (none, 0, true, ours, "10.1.1.1", Egress::Uncaptured),
        (
            none,
            DAEMON_MARK,
            true,
            ours,
            "10.1.1.1",
            Egress::Uncaptured,
        ),
        (
            none,
            REDIRECT_MARK,
            true,
            ours,
            "10.9.9.9",
            Egress::Captured,
        ),
        (none, 0, true, ours, "10.9.9.9", Egress::Pass),
        (none, 0, true, ours, "fe80::1", Egress::Pass),
        (none, 0, true, Enrolled(99), "10.9.9.9", Egress::Uncaptured),
        (passed, 0, true, ours, "10.1.1.1", Egress::Pass),
        (
            passed,
            REDIRECT_MARK,
            true,
            ours,
            "10.1.1.1",
            Egress::Captured,
        ),
    ];
    for (flag, mark, connecting, standing, destination, want) in cases {
        let flags = Pod::CAPTURE | Pod::EXCLUDED_PORTS | Pod::EXCLUDED_RANGES;
        let mut sender = Out {
            flag,
            connecting,
            world: World {
                standing,
                ..world(flags)
            },
            destination,
        };
        let ask = |device, sender: &Out| egress(&Departure { device, mark }, sender);
        let case = std::format!("{flag} {mark:x} {connecting} {standing:?} {destination}");
        assert_eq!(ask(2, &sender), want, "{case}");
        assert_eq!(ask(LOOPBACK_IFINDEX, &sender), Egress::Pass, "{case}");
        sender.world.daemon = true;
        if connecting && mark != REDIRECT_MARK && flag != captured {
            assert_eq!(ask(2, &sender), Egress::Pass, "{case}");
        }
    }
}

struct In {
    listening: bool,
    request: Request,
    world: World,
}

impl Receiver for In {
    fn is_listening(&self) -> bool {
        self.listening
    }
    fn is_daemon(&self) -> bool {
        self.world.daemon
    }
    fn standing(&self) -> Standing {
        self.world.standing
    }
    fn request(&self) -> Request {
        self.request
    }
    fn lookup(&self, cookie: u64, arrival: &Arrival) -> Lookup {
        let flags = self.world.flags.filter(|_| cookie == COOKIE);
        lookup(arrival, &World { flags, ..world(0) })
    }
}

#[test]
fn nothing_enters_past_the_daemon() {
    use Standing::{Denied, Enrolled, Free, Held};
    let from = |source, source_port| {
        Request::Yes(Arrival {
            tcp: true,
            via: Via::Elsewhere,
            source: address(source),
            source_port,
            destination: address("10.0.0.2"),
            port: 80,
        })
    };
    let stranger = from("10.7.7.7", 1234);
    let ours = Enrolled(COOKIE);
    let cases = [
        (stranger, Free, Pod::CAPTURE, Ingress::Pass),
        (stranger, Held, Pod::CAPTURE, Ingress::Held),
        (stranger, Denied, Pod::CAPTURE, Ingress::Held),
        (stranger, ours, Pod::CAPTURE, Ingress::Uncaptured),
        (stranger, ours, Pod::BYPASS_INBOUND, Ingress::Pass),
        (
            stranger,
            Enrolled(99),
            Pod::BYPASS_INBOUND,
            Ingress::Uncaptured,
        ),
        (from("10.0.0.2", 1), ours, Pod::CAPTURE, Ingress::Pass),
        (from("10.0.0.1", 1), ours, Pod::CAPTURE, Ingress::Pass),
        (from("10.7.7.7", 40_000), ours, Pod::CAPTURE, Ingress::Pass),
        (from("10.7.7.7", 40_000), Held, Pod::CAPTURE, Ingress::Held),
        (
            Request::Opaque,
            ours,
            Pod::BYPASS_INBOUND,
            Ingress::Uncaptured,
        ),
        (Request::Opaque, Held, Pod::CAPTURE, Ingress::Held),
        (Request::No, Held, Pod::CAPTURE, Ingress::Pass),
        (Request::No, ours, Pod::CAPTURE, Ingress::Pass),
    ];
    for (request, standing, flags, want) in cases {
        let mut receiver = In {
            listening: true,
            request,
            world: World {
                standing,
                ..world(flags)
            },
        };
        assert_eq!(ingress(2, &receiver), want, "{request:?} {standing:?}");
        assert_eq!(ingress(LOOPBACK_IFINDEX, &receiver), Ingress::Pass);
        receiver.world.daemon = true;
        assert_eq!(ingress(2, &receiver), Ingress::Pass);
        receiver.world.daemon = false;
        receiver.listening = false;
        assert_eq!(ingress(2, &receiver), Ingress::Pass);
    }
}

#[test]
fn what_was_held_is_settled_once() {
    let ask = |flag, mark, bound, captured| settle(flag, mark, bound, || captured);
    assert_eq!(ask(Former::HELD, 0, false, true), Settled::Captured);
    assert_eq!(
        ask(Former::HELD, REDIRECT_MARK, false, false),
        Settled::Free
    );
    // A flow of a multipath connection, and the daemon's own connection to an application.
    assert_eq!(ask(0, REDIRECT_MARK, false, false), Settled::Free);
    assert_eq!(ask(0, REDIRECT_MARK, true, false), Settled::Unchanged);
    assert_eq!(ask(0, 0, false, false), Settled::Unchanged);
    assert_eq!(
        ask(Former::CAPTURED, REDIRECT_MARK, false, false),
        Settled::Unchanged
    );
    assert_eq!(ask(Former::PASSED, 0, false, false), Settled::Unchanged);
}
