//! dns.md, sections 2 to 5 and 9, over the wire: names, aliases, families, limits, with a real client.

use std::net::IpAddr;

use anyhow::Result;
use integration::until;

use super::{MANY, Reply, SOON, Scene, dig, wait_counter};

/// What is asked, the records of the answer without their lives (`forwarded`: those of the resolver).
type Row = (&'static str, &'static [&'static str]);

const FORWARDED: &[&str] = &["forwarded"];
const EMPTY: &[&str] = &[];

/// Section 9, then 3 to 5.
#[rustfmt::skip]
const ROWS: &[Row] = &[
    ("A web", &["web. A 10.96.0.4"]),
    ("A WEB.Shop", &["web.shop. A 10.96.0.4"]),
    ("A web.shop.svc.cluster.local", &["web.shop.svc.cluster.local. A 10.96.0.4"]),
    ("A web.shop.svc.cluster.local.shop.svc.cluster.local", &[
        "web.shop.svc.cluster.local. A 10.96.0.4",
        "web.shop.svc.cluster.local.shop.svc.cluster.local. CNAME web.shop.svc.cluster.local.",
    ]),
    ("A web.shop.shop.svc.cluster.local", &["web.shop. A 10.96.0.4", "web.shop.shop.svc.cluster.local. CNAME web.shop."]),
    ("AAAA web.shop", &["web.shop. AAAA fd96::4"]),
    ("AAAA db.shop", &["db.shop. AAAA fd44:0:0:1::d", "db.shop. AAAA fd44:0:0:1::e"]),
    ("A api.ext", EMPTY),
    ("A db.shop", &["db.shop. A 10.244.1.13", "db.shop. A 10.244.1.14"]),
    ("A pay.example.com.cluster.local", &["pay.example.com. A 10.96.0.10", "pay.example.com.cluster.local. CNAME pay.example.com."]),
    ("A x.y.corp.example", &["x.y.corp.example. A 10.96.0.9"]),
    ("A x.corp.example.svc.cluster.local", &["x.corp.example.svc.cluster.local. A 10.96.0.9"]),
    ("A corp.example", FORWARDED),
    ("A db-0.db.shop.svc.cluster.local", FORWARDED),
    ("MX web.shop", FORWARDED),
    ("AAAA pay.example.com", EMPTY),
    ("AAAA only4", EMPTY),
    ("A only4", &["only4. A 10.96.0.6"]),
    ("A hidden.ext", FORWARDED),
    ("A 10-244-1-13.shop.pod.cluster.local", FORWARDED),
    ("PTR 4.0.96.10.in-addr.arpa", FORWARDED),
    ("CNAME web.shop", FORWARDED),
    ("A example.com", FORWARDED),
    ("AAAA example.com", FORWARDED),
    ("A corp.example.", FORWARDED),
];

/// The records without their lives, sorted; or that they are the resolver's.
fn shown(reply: &Reply) -> Vec<String> {
    if !reply.has_flag("aa") {
        return vec!["forwarded".to_owned()];
    }
    let strip = |record: &String| {
        let parts: Vec<_> = record.splitn(3, ' ').collect();
        format!("{} {}", parts[0], parts.get(2).unwrap_or(&""))
    };
    let mut all: Vec<_> = reply.answers.iter().map(strip).collect();
    all.sort();
    all
}

fn wrong(scene: &Scene, more: &[&str], server: IpAddr) -> Vec<String> {
    let mut wrong = Vec::new();
    for (question, expected) in ROWS {
        let (kind, name) = question.split_once(' ').unwrap_or_default();
        let mut args = vec![name, kind];
        args.extend(more);
        match dig(scene.pod("client-0"), server, &args) {
            Ok(reply) => {
                let said = shown(&reply);
                let is_right =
                    said == *expected && reply.status == "NOERROR" && reply.has_flag("ra");
                let is_forwarded = said == FORWARDED;
                if !is_right || (is_forwarded && reply.answers.is_empty()) {
                    wrong.push(format!(
                        "{question} {more:?} @{server}: {said:?} of {}",
                        reply.text
                    ));
                }
                for record in reply.answers.iter().filter(|_| !is_forwarded) {
                    if record.split(' ').nth(1) != Some("30") {
                        wrong.push(format!("{question}: lives not 30 s: {record}"));
                    }
                }
            }
            Err(error) => wrong.push(format!("{question} {more:?} @{server}: {error:#}")),
        }
    }
    wrong
}

#[test]
fn the_table_of_names_holds_over_udp_and_tcp_and_both_families() -> Result<()> {
    let scene = Scene::set()?;
    let (v4, v6) = (scene.resolver(), IpAddr::V6(scene.pod("resolver-0").v6));
    let ways: [(&[&str], IpAddr); 4] = [
        (&[], v4),
        (&["+tcp"], v4),
        (&["+noedns"], v6),
        (&["+tcp"], v6),
    ];
    let mut all = Vec::new();
    for (more, server) in ways {
        all.extend(wrong(&scene, more, server));
    }
    assert!(
        all.is_empty(),
        "{}\nlog:\n{}",
        all.join("\n"),
        scene.daemon().tail()
    );
    // what the mesh answers never leaves
    scene.asked("")?;
    let lines = scene.upstream.lines();
    for name in [
        "web",
        "web.shop",
        "db.shop",
        "api.ext",
        "only4",
        "x.y.corp.example",
    ] {
        let leaked = ["1", "28"].map(|kind| format!("asked {name} {kind}"));
        assert!(lines.iter().all(|line| !leaked.contains(line)), "{name}");
    }
    Ok(())
}

#[test]
fn an_answer_is_what_the_question_makes_it() -> Result<()> {
    let scene = Scene::set()?;
    // the question with the client's case, the answer in lower case, and the flags
    let reply = scene.dig(&["WeB.sHoP", "+question"])?;
    assert!(reply.text.contains(";WeB.sHoP."), "{}", reply.text);
    assert_eq!(
        reply.answers,
        ["web.shop. 30 A 10.96.0.4"],
        "{}",
        reply.text
    );
    assert_eq!(reply.flags, "qr aa rd ra", "{}", reply.text);
    let reply = scene.dig(&["web.shop", "+norec"])?;
    assert_eq!(reply.flags, "qr aa ra", "{}", reply.text);
    // EDNS only for those who speak it, with their own limit
    assert!(
        reply.edns.contains("version: 0") && reply.edns.contains("udp: 1232"),
        "{}",
        reply.text
    );
    let reply = scene.dig(&["web.shop", "+bufsize=100", "+dnssec"])?;
    assert!(
        reply.edns.contains("flags: do") && reply.edns.contains("udp: 512"),
        "{}",
        reply.text
    );
    assert_eq!(scene.dig(&["web.shop", "+noedns"])?.edns, "");
    // what is no question for addresses is refused, not forwarded
    let reply = scene.dig(&["web.shop", "+opcode=notify"])?;
    assert_eq!(reply.status, "NOTIMP", "{}", reply.text);
    Ok(())
}

#[test]
fn many_addresses_are_cut_over_udp_and_whole_over_tcp() -> Result<()> {
    let scene = Scene::set()?;
    let many = usize::try_from(MANY)?;
    let cut = scene.dig(&["many.shop", "+ignore", "+bufsize=1232"])?;
    assert!(cut.has_flag("tc") && cut.size <= 1232, "{}", cut.text);
    assert_eq!(cut.answers.len(), 74, "as many as fit: {}", cut.text);
    let small = scene.dig(&["many.shop", "+ignore", "+noedns"])?;
    assert!(small.has_flag("tc") && small.size <= 4096, "{}", small.text);
    let whole = scene.dig(&["many.shop", "+tcp"])?;
    assert!(!whole.has_flag("tc"), "{}", whole.text);
    let mut addresses = whole.data("A");
    addresses.dedup();
    assert_eq!(addresses.len(), many);
    // a client that is told so asks again over TCP by itself
    let again = scene.dig(&["many.shop"])?;
    assert!(
        again.over_tcp && again.answers.len() == many,
        "{}",
        again.text
    );
    // the order is drawn
    let orders = (0..10).map(|_| Ok(scene.dig(&["db.shop"])?.answers));
    let mut orders = orders.collect::<Result<Vec<_>>>()?;
    orders.sort();
    orders.dedup();
    assert_eq!(orders.len(), 2, "{orders:?}");
    Ok(())
}

#[test]
fn a_name_that_comes_or_goes_is_known_at_once() -> Result<()> {
    let scene = Scene::set()?;
    assert!(!scene.dig(&["new.shop"])?.has_flag("aa"));
    let mut new = super::services().remove(0);
    new.name = "new".to_owned();
    new.vips = vec!["10.96.0.77".parse()?];
    scene.mesh.edit(|model| model.services.push(new))?;
    until(SOON, "the new name", || {
        let reply = scene.dig(&["new.shop"])?;
        Ok((reply.data("A") == ["10.96.0.77"]).then_some(()))
    })?;
    scene.mesh.edit(|model| drop(model.services.pop()))?;
    until(SOON, "the name gone", || {
        let reply = scene.dig(&["new.shop"])?;
        Ok((!reply.has_flag("aa")).then_some(()))
    })
}

#[test]
fn questions_are_counted_and_told() -> Result<()> {
    let scene = Scene::set()?;
    let from = scene.daemon().log_len();
    scene.dig(&["web.shop"])?;
    scene.dig(&["web.shop", "AAAA", "+tcp"])?;
    scene.dig(&["only4", "AAAA"])?;
    scene.dig(&["api.ext"])?;
    scene.dig(&["example.com", "MX"])?;
    scene.dig(&["nx.test"])?;
    let all = "istio_dns_requests_total";
    let client = [
        ("source_canonical_service", "client"),
        ("source_canonical_revision", "v1"),
    ];
    let of = |kind, protocol| {
        [
            ("request_query_type", kind),
            ("request_protocol", protocol),
            client[0],
            client[1],
        ]
    };
    for (labels, wanted) in [
        (of("a", "udp"), 3.0),
        (of("aaaa", "tcp"), 1.0),
        (of("aaaa", "udp"), 1.0),
        (of("mx", "udp"), 1.0),
    ] {
        wait_counter(scene.daemon(), all, &labels, wanted)?;
    }
    let upstream = "istio_dns_upstream";
    wait_counter(
        scene.daemon(),
        &format!("{upstream}_requests_total"),
        &client,
        2.0,
    )?;
    wait_counter(
        scene.daemon(),
        &format!("{upstream}_failures_total"),
        &client,
        1.0,
    )?;
    wait_counter(
        scene.daemon(),
        &format!("{upstream}_request_duration_seconds_count"),
        &client,
        2.0,
    )?;
    for (query, domain, result) in [
        ("A", "web.shop.", "success"),
        ("AAAA", "web.shop.", "success"),
        (
            "AAAA",
            "only4.",
            "service does not support this record type",
        ),
        ("A", "api.ext.", "no records"),
        ("MX", "example.com.", "forwarded"),
        ("A", "nx.test.", "forwarding failed"),
    ] {
        let parts = [
            "\tdns\t",
            "src.workload=\"client-0\" src.namespace=\"shop\"",
            &format!("query=\"{query}\" domain=\"{domain}\" result=\"{result}"),
            "endpoints=",
        ];
        scene.daemon().wait_log(from, &parts)?;
    }
    Ok(())
}

#[test]
fn settings_of_the_daemon_are_those_of_its_answers() -> Result<()> {
    let off = Scene::with(&[("ISTIO_META_DNS_CAPTURE", "false")])?;
    let reply = off.dig(&["web.shop"])?;
    assert_eq!(reply.data("A"), ["192.0.2.1"], "{}", reply.text);
    assert!(!reply.has_flag("aa"), "{}", reply.text);
    drop(off);
    let other = Scene::with(&[
        ("CLUSTER_DOMAIN", "other.domain"),
        ("IPV6_ENABLED", "false"),
    ])?;
    for (name, expected) in [
        ("web.shop.svc.cluster.local", "10.96.0.4"),
        ("web.shop", "192.0.2.1"),
        ("pay.example.com.other.domain", "10.96.0.10"),
    ] {
        let reply = other.dig(&[name])?;
        assert_eq!(reply.data("A"), [expected], "{}", reply.text);
    }
    let reply = other.dig(&["web.shop.svc.cluster.local", "AAAA"])?;
    assert!(
        reply.answers.is_empty() && reply.has_flag("aa"),
        "{}",
        reply.text
    );
    Ok(())
}
