//! routing.md §5: what a reference to a waypoint means.

use std::collections::BTreeMap;

use super::*;

#[rustfmt::skip]
const CASES: &[Case] = &[
    ("weights add up to nothing: the single one", "shop/c", "10.1.0.18:80", "hbone 10.0.0.22:15008 for 10.1.0.18:80 as w2 wp-zero"),
    ("weights add up to something: never the single one", "shop/c", "10.1.0.32:80", "refused: unknown waypoint: shop/nobody"),
    ("by hostname, a Service", "shop/c", "10.1.0.14:80", "hbone 10.0.0.21:15018 for 10.1.0.14:80 as w1+extra wp-svc"),
    ("by hostname, a workload", "shop/c", "10.0.0.33:80", "hbone 10.0.0.22:15008 for 10.0.0.33:80 as w2 -"),
    ("by hostname, missing", "shop/c", "10.1.0.16:80", "refused: unknown waypoint: shop/nobody"),
    ("by hostname, whoever may see it", "other/c", "10.0.0.40:80", "hbone 10.0.0.27:15008 for 10.0.0.40:80 as wprivate -"),
    ("by IP, a VIP", "shop/c", "[2001:db8:1::15]:80", "hbone 10.0.0.21:15018 for [2001:db8:1::15]:80 as w1+extra wp-ip-svc"),
    ("by IP, a VIP that the source may not see", "other/c", "10.0.0.39:80", "refused: unknown waypoint: /10.1.0.54"),
    ("by IP, a VIP that the source may see", "shop/c", "10.0.0.39:80", "hbone 10.0.0.27:15008 for 10.0.0.39:80 as wprivate -"),
    ("by IP, a workload", "shop/c", "[2001:db8::35]:80", "hbone 10.0.0.22:15009 for [2001:db8::35]:80 as w2 -"),
    ("by IP, a workload in a range", "shop/c", "10.0.0.45:80", "hbone 10.8.0.8:15009 for 10.0.0.45:80 as  -"),
    ("by IP, missing", "shop/c", "10.0.0.36:80", "refused: unknown waypoint: /10.0.0.99"),
    ("family, hostname form: the client's", "shop/c", "[2001:db8:1::14]:80", "hbone [2001:db8::21]:15018 for [2001:db8:1::14]:80 as w1+extra wp-svc"),
    ("family, hostname form, workload waypoint", "shop/c", "[2001:db8::31]:80", "hbone [2001:db8::21]:15018 for [2001:db8::31]:80 as w1+extra -"),
    ("port by §3.3: an application tunnel stands in for the Service's port", "shop/c", "10.1.0.23:80", "hbone 10.0.0.23:15008 for 10.1.0.23:80 as w3 wp-tunnel"),
    ("port by §3.3: none", "shop/c", "10.1.0.39:80", "refused: unknown waypoint: shop/waypoint has no usable endpoint"),
    ("no endpoint", "shop/c", "10.1.0.38:80", "refused: unknown waypoint: shop/waypoint-sick has no usable endpoint"),
    ("an endpoint by host name", "shop/c", "10.1.0.37:80", "resolve wp-dns.example"),
];

#[test]
fn references() {
    check(CASES);
}

#[test]
fn drawn_by_weight_for_each_connection() {
    let index = mesh();
    let mut drawn = BTreeMap::<String, u32>::new();
    for seed in 0..400 {
        *drawn
            .entry(decide(&index, "shop/c", "10.1.0.17:80", seed))
            .or_default() += 1;
    }
    let first = "hbone 10.0.0.21:15018 for 10.1.0.17:80 as w1+extra wp-weighted";
    let second = "hbone 10.0.0.22:15009 for 10.1.0.17:80 as w2 wp-weighted";
    assert_eq!(drawn.keys().collect::<Vec<_>>(), [first, second]);
    assert!((70..130).contains(&drawn[first]), "{drawn:?}");
}
