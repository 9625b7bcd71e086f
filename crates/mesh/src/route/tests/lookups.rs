//! xds.md §5: what must be asked for before a decision, by a daemon that holds only part of the mesh.

use super::*;

#[test]
fn what_the_index_does_not_answer() {
    let index = mesh();
    let cases = [
        ("a workload", "shop/c", "10.0.0.11:80", None),
        (
            "a workload, mapped",
            "shop/c",
            "[::ffff:10.0.0.11]:80",
            None,
        ),
        ("a VIP", "shop/c", "10.1.0.1:80", None),
        ("a VIP, any port", "shop/c", "10.1.0.1:999", None),
        (
            "a private VIP of the own namespace",
            "shop/c",
            "10.1.0.19:80",
            None,
        ),
        (
            "a VIP that the source may not see",
            "other/c",
            "10.1.0.19:80",
            Some("/10.1.0.19"),
        ),
        (
            "a VIP of another network",
            "shop/c",
            "10.1.0.90:80",
            Some("/10.1.0.90"),
        ),
        (
            "a workload of another network",
            "shop/c",
            "10.9.0.1:80",
            Some("/10.9.0.1"),
        ),
        (
            "on the source's own network",
            "shop/c-far",
            "10.9.0.1:80",
            None,
        ),
        (
            "its name is asked",
            "shop/c-far",
            "10.0.0.11:80",
            Some("far/10.0.0.11"),
        ),
        ("only a range", "shop/c", "10.7.0.9:80", Some("/10.7.0.9")),
        ("a workload in a range", "shop/c", "10.7.7.7:80", None),
        (
            "a workload at an invisible Service's address",
            "other/c",
            "10.0.0.47:80",
            None,
        ),
        ("HOST_NETWORK", "shop/c", "10.0.0.15:80", Some("/10.0.0.15")),
        ("unknown", "shop/c", "203.0.113.1:443", Some("/203.0.113.1")),
        (
            "unknown, IPv6",
            "shop/c",
            "[2001:db8:f::1]:443",
            Some("/2001:db8:f::1"),
        ),
        ("loopback is nobody else's", "shop/c", "127.0.0.1:80", None),
        ("loopback, IPv6", "shop/c", "[::1]:15001", None),
    ];
    for (what, source, target, expected) in cases {
        let asked = lookup(&index, &flow(&index, source, target)).map(|a| a.to_string());
        assert_eq!(asked.as_deref(), expected, "{what}");
    }
}

#[test]
fn an_answer_ends_the_asking() {
    let asked = flow(&mesh(), "shop/c", "10.1.0.1:80");
    assert!(lookup(&Index::default(), &asked).is_some());
    assert!(lookup(&mesh(), &asked).is_none());
}
