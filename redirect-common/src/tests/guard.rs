//! Tables of cases for the second line of defence.

use super::*;

struct Out {
    flag: u32,
    connecting: bool,
    foreign: bool,
    world: World,
    destination: &'static str,
}

impl Sender for Out {
    fn flag(&self) -> u32 {
        self.flag
    }
    fn is_foreign(&self) -> bool {
        self.foreign
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
            foreign: false,
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

#[test]
fn what_is_known_to_be_of_others_leaves_as_it_likes() {
    let departure = |mark| Departure { device: 2, mark };
    for (flag, mark, connecting, want) in [
        // another daemon's captured connection, or whoever uses that mark for something else
        (0, REDIRECT_MARK, false, Egress::Pass),
        (0, REDIRECT_MARK, true, Egress::Pass),
        (0, 0, true, Egress::Pass),
        // one of ours, whatever became of its namespace
        (Former::CAPTURED, 0, false, Egress::Captured),
    ] {
        let sender = Out {
            flag,
            connecting,
            foreign: true,
            world: world(0),
            destination: "10.1.1.1",
        };
        assert_eq!(egress(&departure(mark), &sender), want, "{flag} {mark:x}");
    }
}
