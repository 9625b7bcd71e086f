//! routing.md §4: the address of the chosen workload.

use super::*;

#[rustfmt::skip]
const CASES: &[Case] = &[
    ("1: the dialled address if it is one of its own", "shop/c", "10.0.0.41:81", "tcp 10.0.0.41:81 -"),
    ("1: also when it is another one of them", "shop/c", "10.0.0.42:81", "refused: no healthy upstream: 10.0.0.42:81"),
    ("1: also through a Service", "shop/c", "10.0.0.42:80", "tcp 10.0.0.42:80 two"),
    ("1: before 2, a family that ip_families forbids", "shop/c", "10.0.0.44:80", "tcp 10.0.0.44:80 two-v6"),
    ("2: the family that was dialled, IPv4", "shop/c", "10.1.0.36:80", "hbone 10.0.0.11:15008 for 10.0.0.11:80 as e1 dual"),
    ("2: the family that was dialled, IPv6", "shop/c", "[2001:db8:1::36]:80", "hbone [2001:db8::11]:15008 for [2001:db8::11]:80 as e1 dual"),
    ("2: the same without ip_families", "shop/c", "[2001:db8:1::1]:80", "hbone [2001:db8::11]:15008 for [2001:db8::11]:8080 as e1 hbone"),
    ("2: else the first allowed", "shop/c", "10.1.0.21:80", "hbone [2001:db8::11]:15008 for [2001:db8::11]:80 as e1 v6"),
    ("3: by host name", "shop/c", "10.1.0.9:80", "resolve db.example"),
    ("3: by host name, whatever ip_families says", "shop/c", "10.1.0.31:80", "resolve db.example"),
    ("4: without address, behind a gateway", "shop/c", "10.1.0.61:80", "gateway 192.0.2.10:15018 as gw+gw-extra, in it far-no-ip:80 as inner far-no-ip"),
    ("5: none that is allowed", "shop/c", "10.1.0.22:80", "refused: no valid routing destination for workload k//Pod/shop/e2"),
    ("5: none that is allowed, IPv6", "shop/c", "[2001:db8:1::22]:80", "refused: no valid routing destination for workload k//Pod/shop/e2"),
    ("PASSTHROUGH: none of this", "shop/c", "10.7.0.9:80", "pass 10.7.0.9:80 -"),
];

#[test]
fn addresses() {
    check(CASES);
}

/// Dialled, what the host name resolves to, the decision.
type Resolved = (&'static str, &'static [&'static str], &'static str);

#[rustfmt::skip]
const RESOLVED: &[Resolved] = &[
    ("10.1.0.9:80", &["192.0.2.1"], "tcp 192.0.2.1:81 dns"),
    ("10.1.0.9:80", &["2001:db8::9", "192.0.2.1"], "tcp 192.0.2.1:81 dns"),
    ("[2001:db8:1::9]:80", &["192.0.2.1", "2001:db8::9"], "tcp [2001:db8::9]:81 dns"),
    ("10.1.0.9:80", &["2001:db8::9"], "tcp [2001:db8::9]:81 dns"),
    ("10.1.0.9:80", &["2001:db8::9", "::ffff:192.0.2.1"], "tcp 192.0.2.1:81 dns"),
    ("10.1.0.31:80", &["192.0.2.1"], "tcp 192.0.2.1:81 dns-v6"),
    ("10.1.0.9:80", &[], "refused: no ip addresses were resolved for db.example"),
    ("10.1.0.10:80", &["192.0.2.1"], "hbone 192.0.2.1:15008 for 192.0.2.1:81 as dns dns-hbone"),
    ("10.1.0.37:80", &["192.0.2.2"], "hbone 192.0.2.2:15008 for 10.1.0.37:80 as w5 wp-dns"),
    ("10.1.0.64:80", &["192.0.2.3"], "gateway 192.0.2.3:15008 as gw3, in it far-dns:80 as inner far-dns"),
    ("10.1.0.64:80", &[], "refused: no ip addresses were resolved for gw.example"),
];

fn open(index: &Index, target: &str) -> Resolve {
    let asked = flow(index, "shop/c", target);
    match route(index, &asked, &mut SmallRng::seed_from_u64(1)) {
        Decision::Lacks(Lookup::Resolve(open)) => *open,
        other => panic!("{target}: {other:?}"),
    }
}

fn parsed(addresses: &[&str]) -> Vec<IpAddr> {
    let all = addresses.iter().map(|a| a.parse().expect("an address"));
    all.collect()
}

#[test]
fn host_names_go_on_when_resolved() {
    let index = mesh();
    let mut rng = SmallRng::seed_from_u64(1);
    for (target, addresses, expected) in RESOLVED {
        let answer = open(&index, target).answer(&parsed(addresses), &mut rng);
        assert_eq!(shown(&answer), *expected, "{target} {addresses:?}");
    }
}

#[test]
fn any_address_of_the_family_may_be_drawn() {
    let index = mesh();
    let addresses = parsed(&["192.0.2.1", "2001:db8::9", "192.0.2.2"]);
    let mut drawn = [0, 0];
    for seed in 0..200 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let answer = open(&index, "10.1.0.9:80").answer(&addresses, &mut rng);
        match shown(&answer).as_str() {
            "tcp 192.0.2.1:81 dns" => drawn[0] += 1,
            "tcp 192.0.2.2:81 dns" => drawn[1] += 1,
            other => panic!("{other}"),
        }
    }
    assert!(drawn.iter().all(|n| (70..130).contains(n)), "{drawn:?}");
}
