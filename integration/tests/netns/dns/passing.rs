//! What is not the mesh's: passed on to the resolver and back as it is, and remembered as long as it lives.

use std::net::IpAddr;

use anyhow::{Context, Result};
use integration::until;

use super::{SOON, Scene, dig};

/// Record types that the mesh knows nothing of, and what the resolver says.
const TYPES: [(&str, &str); 10] = [
    ("MX", "10 host.web.shop."),
    ("TXT", "\"v=spf1\" \"-all\""),
    ("SRV", "1 5 443 host.web.shop."),
    ("HTTPS", "1 . alpn=\"h2\""),
    ("PTR", "host.web.shop."),
    ("NS", "host.web.shop."),
    ("CNAME", "host.web.shop."),
    ("CAA", "0 issue \"ca.test\""),
    ("TYPE65280", "\\# 4 DEADBEEF"),
    ("SOA", "ns.test. admin.test. 1 3600 600 86400 20"),
];

#[test]
fn other_types_pass_unchanged() -> Result<()> {
    let scene = Scene::set()?;
    for (kind, expected) in TYPES {
        for more in ["+notcp", "+tcp"] {
            // also of a name that the mesh has addresses for
            let reply = scene.dig(&["web.shop", kind, more])?;
            assert_eq!(
                reply.data(kind),
                [expected],
                "{kind} {more}: {}",
                reply.text
            );
            assert_eq!(reply.status, "NOERROR", "{}", reply.text);
            assert!(!reply.has_flag("aa"), "{}", reply.text);
        }
    }
    let reply = scene.dig(&["any.test", "ANY"])?;
    assert_eq!(reply.data("A"), ["192.0.2.1"], "{}", reply.text);
    assert_eq!(reply.data("AAAA"), ["2001:db8::1"], "{}", reply.text);
    assert_eq!(reply.data("TXT"), ["\"any\""], "{}", reply.text);
    Ok(())
}

#[test]
fn codes_aliases_and_additional_records_pass() -> Result<()> {
    let scene = Scene::set()?;
    for (name, status) in [
        ("nx.test", "NXDOMAIN"),
        ("servfail.test", "SERVFAIL"),
        ("refused.test", "REFUSED"),
        ("empty.test", "NOERROR"),
    ] {
        for more in ["+notcp", "+tcp", "+noedns"] {
            let reply = scene.dig(&[name, more])?;
            assert_eq!(reply.status, status, "{name} {more}: {}", reply.text);
            assert!(
                reply.answers.is_empty() && !reply.has_flag("aa"),
                "{}",
                reply.text
            );
        }
    }
    let reply = scene.dig(&["alias.test"])?;
    let names: Vec<_> = reply
        .answers
        .iter()
        .filter_map(|r| r.split(' ').next())
        .collect();
    assert_eq!(
        names,
        ["alias.test.", "one.example.net.", "two.example.net."],
        "{}",
        reply.text
    );
    assert_eq!(reply.data("A"), ["192.0.2.1"], "{}", reply.text);
    let reply = scene.dig(&["extra.test"])?;
    assert_eq!(reply.additionals.len(), 1, "{}", reply.text);
    assert!(
        reply.additionals[0].ends_with("AAAA 2001:db8::1"),
        "{}",
        reply.text
    );
    Ok(())
}

#[test]
fn big_answers_pass_within_the_clients_limits() -> Result<()> {
    let scene = Scene::set()?;
    let cut = scene.dig(&["big200.test", "+ignore", "+bufsize=1232"])?;
    assert!(cut.has_flag("tc") && cut.size <= 1232, "{}", cut.text);
    for (name, count) in [("big200.test", 200), ("big4000.test", 4000)] {
        let whole = scene.dig(&[name])?;
        assert!(
            whole.over_tcp && !whole.has_flag("tc"),
            "{name}: {} bytes",
            whole.size
        );
        assert_eq!(whole.answers.len(), count, "{name}");
    }
    let fits = scene.dig(&["big60.test", "+ignore", "+bufsize=1232"])?;
    assert!(!fits.has_flag("tc"), "{}", fits.text);
    assert_eq!(fits.answers.len(), 60, "{}", fits.text);
    Ok(())
}

/// Life that is left of the first answer.
fn life(reply: &super::Reply) -> Result<u32> {
    let first = reply.answers.first().with_context(|| reply.text.clone())?;
    let life = first.split(' ').nth(1).unwrap_or_default();
    life.parse().with_context(|| first.clone())
}

#[test]
fn an_answer_is_remembered_while_it_lives() -> Result<()> {
    let scene = Scene::set()?;
    let first = scene.dig(&["ttl100.test"])?;
    assert_eq!(life(&first)?, 100, "{}", first.text);
    // its life goes on
    until(SOON, "a second less", || {
        let next = scene.dig(&["TTL100.test"])?;
        assert_eq!(next.data("A"), ["192.0.2.1"], "{}", next.text);
        Ok((life(&next)? < 100).then_some(()))
    })?;
    assert_eq!(scene.asked("ttl100.test")?, 1);
    // another type is another question
    scene.dig(&["ttl100.test", "AAAA"])?;
    assert_eq!(scene.asked("ttl100.test")?, 2);
    // also that there is nothing, as long as the zone says
    for _ in 0..3 {
        assert_eq!(scene.dig(&["nx.test"])?.status, "NXDOMAIN");
    }
    assert_eq!(scene.asked("nx.test")?, 1);
    // what does not live or was a failure is not
    for name in ["ttl0.test", "servfail.test"] {
        for _ in 0..2 {
            scene.dig(&[name])?;
        }
        assert_eq!(scene.asked(name)?, 2, "{name}");
    }
    // a short life ends
    scene.dig(&["ttl1.test"])?;
    until(SOON, "asked again", || {
        scene.dig(&["ttl1.test"])?;
        Ok((scene.asked("ttl1.test")? > 1).then_some(()))
    })?;
    // and what one pod was told is not told to another
    dig(scene.pod("other-0"), scene.resolver(), &["ttl100.test"])?;
    assert_eq!(scene.asked("ttl100.test")?, 3);
    Ok(())
}

#[test]
fn the_resolver_sees_the_pod_and_no_port_of_its_application() -> Result<()> {
    let scene = Scene::set()?;
    let client = scene.pod("client-0");
    for server in [scene.resolver(), IpAddr::V6(scene.pod("resolver-0").v6)] {
        dig(
            client,
            server,
            &[&format!("seen{}.test", u8::from(server.is_ipv6()))],
        )?;
    }
    for ip in [client.v4.to_string(), format!("[{}]", client.v6)] {
        let from = format!("udp from {ip}:");
        scene
            .upstream
            .wait_line(SOON, &from, |line| line.starts_with(&from))?;
    }
    Ok(())
}
