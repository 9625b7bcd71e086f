//! routing.md §6: endpoints and waypoints on another network.

use super::*;

#[rustfmt::skip]
const CASES: &[Case] = &[
    ("gateway by hostname: its Service's target port and names", "shop/c", "10.1.0.60:80", "gateway 192.0.2.10:15018 as gw+gw-extra, in it far-host.example:80 as inner+inner-2 far-host"),
    ("gateway by hostname: the client's family", "shop/c", "[2001:db8:1::60]:80", "gateway [2001:db8:2::10]:15018 as gw+gw-extra, in it far-host.example:80 as inner+inner-2 far-host"),
    ("gateway by hostname: a workload, known by host name only", "shop/c", "10.1.0.64:80", "resolve gw.example"),
    ("gateway by IP: a workload, the stated port", "shop/c", "10.1.0.62:80", "gateway 192.0.2.20:15009 as gw2, in it far-ip:80 as inner far-ip"),
    ("gateway by IP: the literal's family", "shop/c", "[2001:db8:1::62]:80", "gateway 192.0.2.20:15009 as gw2, in it far-ip:80 as inner far-ip"),
    ("gateway by IP: a Service", "shop/c", "10.1.0.63:80", "gateway 192.0.2.10:15018 as gw+gw-extra, in it far-vip:80 as inner far-vip"),
    ("gateway unknown, by hostname", "shop/c", "10.1.0.65:80", "refused: unknown network gateway: istio/nobody"),
    ("gateway unknown, by IP", "shop/c", "10.1.0.66:80", "refused: unknown network gateway: far/192.0.2.77"),
    ("mode Standard: an application tunnel does not stand in for a port", "shop/c", "10.1.0.67:80", "refused: unknown network gateway: istio/gw has no usable endpoint"),
    ("no gateway", "shop/c", "10.1.0.12:80", "refused: no valid routing destination for workload k//Pod/shop/far"),
    ("no address and the gateway on the same network: no candidate", "shop/c", "10.1.0.13:80", "refused: no healthy upstream: 10.1.0.13:80"),
    ("inner names: none", "shop/c", "10.1.0.68:80", "refused: no identity to expect behind a network gateway: far-nameless has no subject alternative names"),
    ("inner names: none that is a SPIFFE id", "shop/c", "10.1.0.69:80", "refused: no identity to expect behind a network gateway: far-odd-name has no subject alternative names"),
    ("a waypoint in front: its Service's names, authority as without it", "shop/c", "10.1.0.24:80", "gateway 192.0.2.10:15018 as gw+gw-extra, in it wp-far:80 as wp-inner wp-far"),
    ("a waypoint in front, any port", "shop/c", "10.1.0.24:999", "gateway 192.0.2.10:15018 as gw+gw-extra, in it wp-far:999 as wp-inner wp-far"),
    ("a waypoint in front, not through a Service", "shop/c", "10.1.0.41:80", "refused: no identity to expect behind a network gateway: k//Pod/shop/w4 has no subject alternative names"),
    ("a near endpoint outranks a remote one", "shop/c", "10.1.0.70:80", "hbone 10.0.0.11:15008 for 10.0.0.11:80 as e1+inner two-networks"),
    ("workload-addressed: never crosses", "shop/c", "10.9.0.11:80", "pass 10.9.0.11:80 -"),
    ("workload-addressed: its waypoint is on another network", "shop/c", "10.0.0.34:80", "refused: no valid routing destination for workload k//Pod/shop/w4"),
    ("workload-addressed: its waypoint is on another network, by IP", "shop/c", "10.0.0.38:80", "refused: no valid routing destination for workload k//Pod/shop/w4"),
    ("on the same network the gateway is ignored", "shop/c-far", "10.9.0.12:80", "tcp 10.9.0.12:80 -"),
    ("on the same network HBONE as anywhere", "shop/c-far", "10.9.0.11:80", "hbone 10.9.0.11:15008 for 10.9.0.11:80 as  -"),
];

#[test]
fn across_networks() {
    check(CASES);
}

#[test]
fn the_next_hop_is_the_gateway() {
    let index = mesh();
    let asked = flow(&index, "shop/c", "10.1.0.60:80");
    let Decision::Go(plan) = route(&index, &asked, &mut SmallRng::seed_from_u64(1)) else {
        panic!("a gateway");
    };
    let next = plan.destination.expect("known");
    assert_eq!((&*next.uid, &*next.network), ("gw1", "far"));
}
