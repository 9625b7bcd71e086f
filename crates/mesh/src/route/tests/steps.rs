//! routing.md §2, the steps and the notes; §2.1, the kinds of destination; §15, loops.

use super::*;

#[rustfmt::skip]
const STEPS: &[Case] = &[
    // 1: loopback with a port of ours
    ("15001", "shop/c", "127.0.0.1:15001", "refused: attempted recursive call to ourselves"),
    ("15006, mapped", "shop/c", "[::ffff:127.0.0.1]:15006", "refused: attempted recursive call to ourselves"),
    ("15008, IPv6", "shop/c", "[::1]:15008", "refused: attempted recursive call to ourselves"),
    ("any address of the loopback range", "shop/c", "127.9.9.9:15008", "refused: attempted recursive call to ourselves"),
    ("SOCKS port while it is closed", "shop/c", "127.0.0.1:15080", "pass 127.0.0.1:15080 -"),
    ("another port", "shop/c", "127.0.0.1:80", "pass 127.0.0.1:80 -"),
    // 2: service detection
    ("Service of the own namespace", "shop/c", "10.1.0.19:80", "hbone 10.0.0.11:15008 for 10.0.0.11:80 as e1 private"),
    ("mapped address", "shop/c", "[::ffff:10.1.0.1]:80", "hbone 10.0.0.11:15008 for 10.0.0.11:8080 as e1 hbone"),
    ("of another network", "shop/c", "10.1.0.90:80", "pass 10.1.0.90:80 -"),
    ("on the source's network", "shop/c-far", "10.1.0.90:80", "refused: no healthy upstream: 10.1.0.90:80"),
    // 3: the Service has a waypoint
    ("waypoint endpoint, authority as dialled", "shop/c", "10.1.0.14:80", "hbone 10.0.0.21:15018 for 10.1.0.14:80 as w1+extra wp-svc"),
    ("a port that the Service lacks: the waypoint's business", "shop/c", "10.1.0.14:999", "hbone 10.0.0.21:15018 for 10.1.0.14:999 as w1+extra wp-svc"),
    ("unresolvable: never around it", "shop/c", "10.1.0.16:80", "refused: unknown waypoint: shop/nobody"),
    ("PASSTHROUGH with waypoint", "shop/c", "10.7.7.9:80", "hbone 10.0.0.21:15018 for 10.7.7.9:80 as w1+extra pass-wp"),
    // 4: upstream
    ("Service, mode PASSTHROUGH", "shop/c", "10.1.0.20:80", "pass 10.1.0.20:80 -"),
    ("Service, balanced, endpoint's own port", "shop/c", "10.1.0.1:80", "hbone 10.0.0.11:15008 for 10.0.0.11:8080 as e1 hbone"),
    ("Service, balanced, its target port", "shop/c", "10.1.0.1:81", "hbone 10.0.0.11:15008 for 10.0.0.11:8181 as e1 hbone"),
    ("workload, port unchanged", "shop/c", "10.0.0.12:81", "tcp 10.0.0.12:81 -"),
    ("nothing", "shop/c", "203.0.113.1:443", "pass 203.0.113.1:443 -"),
    // 5: no upstream
    ("Service without usable endpoint", "shop/c", "10.1.0.4:80", "refused: no healthy upstream: 10.1.0.4:80"),
    // 6: see `networks`. 7: workload waypoint
    ("not service-addressed: through it, HBONE whatever the pod speaks", "shop/c", "10.0.0.31:80", "hbone 10.0.0.21:15018 for 10.0.0.31:80 as w1+extra -"),
    ("asked by the waypoint itself", "shop/w1", "10.0.0.31:80", "tcp 10.0.0.31:80 -"),
    ("service-addressed: skipped", "shop/c", "10.1.0.25:80", "tcp 10.0.0.33:80 skip"),
    ("unresolvable", "shop/c", "10.0.0.32:80", "refused: unknown waypoint: shop/none"),
    // 8: direct
    ("HBONE, identity and the Service's names, each once", "shop/c", "10.1.0.6:80", "hbone 10.0.0.11:15008 for 10.0.0.11:80 as e1+y sans"),
    ("HBONE, by address", "shop/c", "10.0.0.11:81", "hbone 10.0.0.11:15008 for 10.0.0.11:81 as e1 -"),
    ("plain", "shop/c", "10.1.0.2:80", "tcp 10.0.0.12:8080 plain"),
];

#[rustfmt::skip]
const NOTES: &[Case] = &[
    ("an address of both: the Service, and so its waypoint", "shop/c", "10.1.0.14:81", "hbone 10.0.0.21:15018 for 10.1.0.14:81 as w1+extra wp-svc"),
    ("an address of both: balanced over the Service", "shop/c", "10.1.0.1:81", "hbone 10.0.0.11:15008 for 10.0.0.11:8181 as e1 hbone"),
    ("an address of both, the Service invisible: the workload", "other/c", "10.0.0.47:80", "tcp 10.0.0.47:80 -"),
    ("a range with waypoint that holds a pod: the pod", "shop/c", "10.7.7.7:80", "hbone 10.7.7.7:15008 for 10.7.7.7:80 as ranged -"),
    ("a range with waypoint that holds a pod: its own waypoint", "shop/c", "10.7.7.8:80", "hbone 10.0.0.22:15008 for 10.7.7.8:80 as w2 -"),
    ("a range that holds a pod: the pod, no balancing", "shop/c", "10.8.0.8:80", "tcp 10.8.0.8:80 -"),
    ("a range that holds a pod and nothing at the address: the range", "shop/c", "10.8.0.9:80", "refused: no healthy upstream: 10.8.0.9:80"),
    ("a PASSTHROUGH range that holds a pod: the pod, not in the clear", "shop/c", "10.7.0.7:80", "hbone 10.7.0.7:15008 for 10.7.0.7:80 as ranged -"),
    ("a PASSTHROUGH range that holds a pod: its waypoint", "shop/c", "10.7.0.8:80", "hbone 10.0.0.21:15018 for 10.7.0.8:80 as w1+extra -"),
    ("an invisible Service is absent", "other/c", "10.1.0.19:80", "pass 10.1.0.19:80 -"),
    ("an invisible Service is absent, and its waypoint", "other/c", "10.1.0.33:80", "pass 10.1.0.33:80 -"),
    ("an undefined port fails", "shop/c", "10.1.0.1:82", "refused: no healthy upstream: 10.1.0.1:82"),
    ("headless: no service waypoint", "shop/c", "10.0.0.12:80", "tcp 10.0.0.12:80 -"),
    ("HOST_NETWORK by address", "shop/c", "10.0.0.15:80", "pass 10.0.0.15:80 -"),
    ("HOST_NETWORK by address, HBONE", "shop/c", "10.0.0.16:80", "pass 10.0.0.16:80 -"),
    ("HOST_NETWORK through a Service", "shop/c", "10.1.0.8:80", "tcp 10.0.0.15:80 host"),
    ("HOST_NETWORK through a Service, HBONE", "shop/c", "10.1.0.30:80", "hbone 10.0.0.16:15008 for 10.0.0.16:80 as host host-hbone"),
    ("native_tunnel does not matter", "shop/c", "10.0.0.17:80", "tcp 10.0.0.17:80 -"),
    ("the source's own waypoint does not matter", "shop/b1", "10.0.0.12:80", "tcp 10.0.0.12:80 -"),
    ("a pod calls itself", "shop/e1", "10.0.0.11:81", "hbone 10.0.0.11:15008 for 10.0.0.11:81 as e1 -"),
    ("a pod calls itself through its Service", "shop/e1", "10.1.0.1:80", "hbone 10.0.0.11:15008 for 10.0.0.11:8080 as e1 hbone"),
    ("an unhealthy pod by address", "shop/c", "10.0.0.13:81", "tcp 10.0.0.13:81 -"),
    ("capacity 0 by address", "shop/c", "10.0.0.14:81", "tcp 10.0.0.14:81 -"),
];

#[rustfmt::skip]
const KINDS: &[Case] = &[
    ("Service with VIP, no waypoint", "shop/c", "10.1.0.1:80", "hbone 10.0.0.11:15008 for 10.0.0.11:8080 as e1 hbone"),
    ("Service with waypoint", "shop/c", "10.1.0.14:80", "hbone 10.0.0.21:15018 for 10.1.0.14:80 as w1+extra wp-svc"),
    ("Pod, no waypoint", "shop/c", "10.0.0.11:80", "hbone 10.0.0.11:15008 for 10.0.0.11:80 as e1 -"),
    ("WorkloadEntry, no waypoint", "shop/c", "10.0.0.43:80", "tcp 10.0.0.43:80 -"),
    ("Pod with workload waypoint", "shop/c", "10.0.0.31:80", "hbone 10.0.0.21:15018 for 10.0.0.31:80 as w1+extra -"),
    ("Pod whose Service (only) has a waypoint", "shop/c", "10.0.0.11:81", "hbone 10.0.0.11:15008 for 10.0.0.11:81 as e1 -"),
    ("Headless Service", "shop/c", "10.0.0.12:80", "tcp 10.0.0.12:80 -"),
    ("ServiceEntry, resolution NONE, an address in range", "shop/c", "10.7.0.9:999", "pass 10.7.0.9:999 -"),
    ("ServiceEntry, resolution NONE, with waypoint", "shop/c", "10.7.7.9:80", "hbone 10.0.0.21:15018 for 10.7.7.9:80 as w1+extra pass-wp"),
    ("ServiceEntry, resolution NONE, no addresses", "shop/c", "198.51.100.7:443", "pass 198.51.100.7:443 -"),
    ("ServiceEntry STATIC", "shop/c", "240.240.0.1:80", "tcp 10.0.0.43:8080 static"),
    ("ServiceEntry DNS", "shop/c", "10.1.0.9:80", "resolve db.example"),
    ("Service on another network only", "shop/c", "10.1.0.60:80", "gateway 192.0.2.10:15018 as gw+gw-extra, in it far-host.example:80 as inner+inner-2 far-host"),
    ("Service in mode STRICT with no match, by locality", "shop/c", "10.1.0.71:80", "refused: no healthy upstream: 10.1.0.71:80"),
    ("Service in mode STRICT with half a match", "shop/c-eu-2", "10.1.0.71:80", "refused: no healthy upstream: 10.1.0.71:80"),
    ("Service in mode STRICT with a match, by locality", "shop/c-eu", "10.1.0.71:80", "tcp 10.0.0.46:80 strict-eu"),
    ("Service in mode STRICT with a match, by network", "shop/c-far", "10.1.0.35:80", "hbone 10.9.0.11:15008 for 10.9.0.11:80 as  strict-far"),
    ("Service in mode STRICT, an empty region equals an empty one", "shop/c", "10.1.0.34:80", "tcp 10.0.0.43:80 strict"),
    ("Service in mode STRICT, other network", "shop/c", "10.1.0.35:80", "refused: no healthy upstream: 10.1.0.35:80"),
    ("all endpoints unhealthy", "shop/c", "10.1.0.4:80", "refused: no healthy upstream: 10.1.0.4:80"),
    ("Service with publishNotReadyAddresses", "shop/c", "10.1.0.5:80", "tcp 10.0.0.13:8080 sick-ok"),
    ("ExternalName Service: by resulting IP", "shop/c", "192.0.2.200:443", "pass 192.0.2.200:443 -"),
    ("anything unknown", "shop/c", "203.0.113.1:443", "pass 203.0.113.1:443 -"),
];

#[rustfmt::skip]
const LOOPS: &[Case] = &[
    ("app → loopback on an internal port", "shop/e1", "127.0.0.1:15001", "refused: attempted recursive call to ourselves"),
    ("app → own pod IP on an internal port: over HBONE, refused there", "shop/e1", "10.0.0.11:15001", "hbone 10.0.0.11:15008 for 10.0.0.11:15001 as e1 -"),
    ("app → own Service that leads to an internal port: over HBONE, refused there", "shop/e1", "10.1.0.40:15", "hbone 10.0.0.11:15008 for 10.0.0.11:15001 as e1 own-port"),
    ("waypoint pod → its own client workload", "shop/w1", "10.0.0.31:80", "tcp 10.0.0.31:80 -"),
    ("waypoint pod → a workload of another waypoint", "shop/w1", "10.0.0.33:80", "hbone 10.0.0.22:15008 for 10.0.0.33:80 as w2 -"),
    ("waypoint that is a workload → its own client workload", "shop/w2", "10.0.0.33:80", "tcp 10.0.0.33:80 -"),
    ("waypoint pod that is not ready → its own client workload", "shop/w6", "10.0.0.37:80", "tcp 10.0.0.37:80 -"),
];

#[test]
fn steps() {
    check(STEPS);
}

#[test]
fn notes() {
    check(NOTES);
}

#[test]
fn kinds_of_destination() {
    check(KINDS);
}

#[test]
fn loops() {
    check(LOOPS);
}

#[test]
fn socks_port_is_ours_while_it_is_open() {
    let index = mesh();
    let asked = Flow {
        socks: true,
        ..flow(&index, "shop/c", "127.0.0.1:15080")
    };
    let decision = route(&index, &asked, &mut SmallRng::seed_from_u64(1));
    assert_eq!(decision, Decision::Refuse(Refusal::SelfCall));
}

#[test]
fn a_waypoint_is_recognised_by_identity_and_address() {
    let index = mesh();
    let asked = |account: &str, client: &str| {
        let waypoint = index.workload("k//Pod/shop/w1").expect("in the mesh");
        let source = Workload::clone(waypoint).with(|w| w.service_account = account.into());
        let asked = Flow {
            source: Arc::new(source),
            client: SocketAddr::new(client.parse().expect("an address"), 40000),
            ..flow(&index, "shop/c", "10.0.0.31:80")
        };
        shown(&route(&index, &asked, &mut SmallRng::seed_from_u64(1)))
    };
    let through = "hbone 10.0.0.21:15018 for 10.0.0.31:80 as w1+extra -";
    assert_eq!(asked("w1", "10.0.0.21"), "tcp 10.0.0.31:80 -");
    assert_eq!(asked("w1", "::ffff:10.0.0.21"), "tcp 10.0.0.31:80 -");
    assert_eq!(asked("w1", "10.0.0.99"), through);
    assert_eq!(asked("x", "10.0.0.21"), through);
}
