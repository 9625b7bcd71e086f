//! The loaded `sk_lookup` program and `redirect_common::lookup` agree on the same inputs (`BPF_PROG_TEST_RUN`).

use std::net::IpAddr;

use redirect_common::{Address, Arrival, Door, Kind, LAYOUT, Lookup, Pod, Via, lookup};

use crate::world::{FAR4, FAR6, OUTSIDE4, POD4, POD6, World};

/// Port that all arrivals come from.
const SOURCE_PORT: u16 = 1234;

/// The pod's open port.
const OPEN_PORT: u16 = 15020;

/// What the program is told by its maps.
struct Facts {
    flags: u32,
}

impl Door for Facts {
    fn pod(&self) -> Option<Pod> {
        Some(Pod { flags: self.flags })
    }
    fn is_local(&self, address: &Address) -> bool {
        [POD4, POD6]
            .iter()
            .any(|ip| Address::from(ip.parse::<IpAddr>().unwrap()) == *address)
    }
    fn is_exempt(&self, source: &Address) -> bool {
        Address::from(OUTSIDE4.parse::<IpAddr>().unwrap()) == *source
    }
    fn is_open(&self, port: u16) -> bool {
        port == OPEN_PORT
    }
    fn is_probe(&self, _: &Arrival) -> bool {
        false
    }
}

/// `struct bpf_sk_lookup` of `linux/bpf.h`.
fn context(arrival: &Arrival) -> [u8; 72] {
    let (source, destination) = (
        IpAddr::from(arrival.source),
        IpAddr::from(arrival.destination),
    );
    let mut bytes = [0; 72];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(8, &if source.is_ipv4() { 2u32 } else { 10 }.to_ne_bytes());
    put(12, &if arrival.tcp { 6u32 } else { 17 }.to_ne_bytes());
    for (ip, v4, v6) in [(source, 16, 20), (destination, 40, 44)] {
        match ip {
            IpAddr::V4(ip) => put(v4, &ip.octets()),
            IpAddr::V6(ip) => put(v6, &ip.octets()),
        }
    }
    put(36, &SOURCE_PORT.to_be_bytes());
    put(60, &u32::from(arrival.port).to_ne_bytes());
    bytes
}

#[test]
fn the_loaded_program_decides_as_the_pure_function() {
    let world = World::new();
    let mut config = world.config();
    config.exempt_sources = vec![format!("{OUTSIDE4}/32").parse().unwrap()];
    let mut capture = capture::Capture::start(config).unwrap();
    let sockets = world.sockets();
    let mut wanted = world.wanted();
    wanted.open_ports = vec![OPEN_PORT];
    capture.enroll(&wanted, &sockets).unwrap();
    let link = sys::bpf::pinned(
        &world
            .pins
            .join(format!("v{LAYOUT}/lookup-{:x}", world.pod.cookie())),
    )
    .unwrap();
    let program = sys::bpf::program_by_id(sys::bpf::link_info(&link).unwrap().program).unwrap();
    let facts = Facts {
        flags: Pod::CAPTURE | Pod::DNS | Pod::OPEN_PORTS,
    };
    let cookie = |kind| {
        let dns = sockets.dns.as_ref().unwrap();
        match kind {
            Kind::Outbound => sys::socket::cookie(&sockets.outbound),
            Kind::Hbone => sys::socket::cookie(&sockets.hbone),
            Kind::Plaintext => sys::socket::cookie(&sockets.plaintext),
            Kind::Dns => sys::socket::cookie(&dns.questions),
        }
        .unwrap()
    };
    let mut cases = 0;
    // The kernel takes no device in a test run: arrivals through loopback are shown by the tests with real packets.
    let via = Via::Elsewhere;
    for tcp in [true, false] {
        for port in [53, 80, 15001, 15008, OPEN_PORT] {
            let v4 = [POD4, FAR4, OUTSIDE4, "127.0.0.1", "127.0.0.2"];
            let v6 = [POD6, FAR6, "::1"];
            for family in [&v4[..], &v6[..]] {
                for source in family {
                    for destination in family {
                        let ip = |text: &str| text.parse::<IpAddr>().unwrap().into();
                        let arrival = Arrival {
                            tcp,
                            via,
                            source: ip(source),
                            source_port: SOURCE_PORT,
                            destination: ip(destination),
                            port,
                        };
                        let mut bytes = context(&arrival);
                        let result = world
                            .pod
                            .run(|| sys::bpf::test_run(&program, &mut bytes))
                            .unwrap()
                            .unwrap();
                        let socket = u64::from_ne_bytes(bytes[..8].try_into().unwrap());
                        let want = match lookup(&arrival, &facts) {
                            Lookup::Pass => (1, 0),
                            Lookup::Drop(_) => (0, 0),
                            Lookup::Assign(kind) => (1, cookie(kind)),
                        };
                        assert_eq!((result, socket), want, "{arrival:?} {source} {destination}");
                        cases += 1;
                    }
                }
            }
        }
    }
    assert!(cases == 340, "{cases}");
}
