//! Messages of ours as others read them, and others' as we do. The judge is `hickory-proto`.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Ask, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{DNSClass, Name, RecordType};

use super::*;

fn ask(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let name = Name::from_ascii(name).unwrap();
    message.add_query(Ask::query(name, kind));
    message
}

/// A question for a name of these labels, whatever is in them.
fn ask_labels(labels: &[&[u8]]) -> Vec<u8> {
    let mut message = ask(".", RecordType::A);
    let mut name = Name::from_labels(labels.iter().copied()).unwrap();
    name.set_fqdn(true);
    message.queries[0].set_name(name);
    message.to_vec().unwrap()
}

fn with_edns(mut message: Message, payload: u16, dnssec_ok: bool) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload).set_dnssec_ok(dnssec_ok);
    message.set_edns(edns);
    message
}

fn query(bytes: &[u8]) -> Query<'_> {
    match parse(bytes) {
        Parsed::Query(query) => query,
        other => panic!("{other:?}"),
    }
}

fn read(bytes: &[u8]) -> Message {
    Message::from_vec(bytes).expect("a message")
}

/// Owner, type, lifetime and data of each answer.
fn answers(message: &Message) -> Vec<String> {
    message.answers.iter().map(ToString::to_string).collect()
}

fn ips(count: u8) -> Vec<IpAddr> {
    (0..count).map(|n| IpAddr::from([240, 0, 0, n])).collect()
}

#[test]
fn addresses_of_the_asked_name() {
    let bytes = ask("WEB.Shop.", RecordType::A).to_vec().unwrap();
    let answer = query(&bytes).addresses(None, &ips(2), 512);
    let message = read(&answer);
    assert_eq!(message.metadata.id, 0x1234);
    assert_eq!(message.metadata.message_type, MessageType::Response);
    let flags = &message.metadata;
    assert!(flags.authoritative && flags.recursion_available && flags.recursion_desired);
    assert!(!flags.truncation && message.edns.is_none());
    assert_eq!(message.queries[0].name().to_ascii(), "WEB.Shop.");
    assert_eq!(
        answers(&message),
        ["web.shop. 30 IN A 240.0.0.0", "web.shop. 30 IN A 240.0.0.1"]
    );
    // written once
    assert_eq!(answer.len(), bytes.len() + (10 + 10 + 4) + (2 + 10 + 4));
    let lower = ask("web.shop.", RecordType::A).to_vec().unwrap();
    let answer = query(&lower).addresses(None, &ips(2), 512);
    assert_eq!(answer.len(), lower.len() + 2 * (2 + 10 + 4));
}

#[test]
fn addresses_of_an_alias() {
    let bytes = ask("web.shop.shop.svc.cluster.local.", RecordType::AAAA);
    let bytes = bytes.to_vec().unwrap();
    let ip: IpAddr = "fd00::1".parse().unwrap();
    let message = read(&query(&bytes).addresses(Some("web.shop"), &[ip], 512));
    assert_eq!(
        answers(&message),
        [
            "web.shop.shop.svc.cluster.local. 30 IN CNAME web.shop.",
            "web.shop. 30 IN AAAA fd00::1"
        ]
    );
}

#[test]
fn as_many_as_fit() {
    let large = with_edns(ask("large.namespace.", RecordType::A), 1232, true);
    let bytes = large.to_vec().unwrap();
    let query = query(&bytes);
    let all = ips(255);
    let limit = query.limit(Transport::Udp);
    let answer = query.addresses(None, &all, limit);
    let message = read(&answer);
    assert!(answer.len() <= 1232);
    assert_eq!(message.answers.len(), 74);
    assert!(message.metadata.truncation);
    let edns = message.edns.as_ref().unwrap();
    assert_eq!((edns.max_payload(), edns.version()), (1232, 0));
    assert!(edns.flags().dnssec_ok);
    assert!(query.room(limit) >= 74);
    let message = read(&query.addresses(None, &all, query.limit(Transport::Tcp)));
    assert_eq!(message.answers.len(), 255);
    assert!(!message.metadata.truncation);
}

#[test]
fn nothing_is_an_answer_too() {
    let bytes = with_edns(ask("web.", RecordType::AAAA), 100, false)
        .to_vec()
        .unwrap();
    let message = read(&query(&bytes).empty(512));
    assert_eq!(message.metadata.response_code, ResponseCode::NoError);
    assert!(message.metadata.authoritative && message.answers.is_empty());
    assert_eq!(message.edns.unwrap().max_payload(), 512);
}

#[test]
fn what_is_no_question_is_told_so() {
    let good = with_edns(ask("web.shop.", RecordType::A), 1232, false)
        .to_vec()
        .unwrap();
    let changed = |at: usize, to: u8| {
        let mut bytes = good.clone();
        bytes[at] = to;
        bytes
    };
    let two_opts = {
        let mut bytes = changed(11, 2);
        bytes.extend_from_slice(&good[good.len() - OPT_BYTES..]);
        bytes
    };
    let cases: [(&str, Vec<u8>, u8, u16); 9] = [
        ("a response", changed(2, 0x81), 1, 1),
        ("an update", changed(2, 0x28), 4, 1),
        ("no question", changed(5, 0), 1, 0),
        ("two questions", changed(5, 2), 1, 0),
        ("a pointer", changed(12, 0xc0), 1, 0),
        ("a long label", changed(12, 64), 1, 0),
        ("a cut record", good[..good.len() - 1].to_vec(), 1, 1),
        ("a cut question", good[..15].to_vec(), 1, 0),
        ("two opt records", two_opts, 1, 1),
    ];
    for (what, bytes, code, questions) in cases {
        let Parsed::Refused(answer) = parse(&bytes) else {
            panic!("{what}");
        };
        let header = Header::read(&answer).unwrap();
        assert_eq!(header.code(), code, "{what}");
        assert_eq!(header.counts, [questions, 0, 0, 0], "{what}");
        assert_eq!(header.id, [0x12, 0x34], "{what}");
        assert!(header.is_response(), "{what}");
        assert_eq!(header.opcode(), bytes[2] >> 3 & 15, "{what}");
        assert_eq!(header.second & RECURSION_AVAILABLE, 0, "{what}");
    }
    assert!(matches!(parse(&good[..11]), Parsed::Noise));
}

#[test]
fn only_names_of_hosts_are_ours() {
    let host = |name: &str, kind| query(&ask(name, kind).to_vec().unwrap()).host();
    assert_eq!(host("WEB.shop.", RecordType::A).unwrap(), "web.shop");
    assert_eq!(host("web.", RecordType::AAAA).unwrap(), "web");
    assert_eq!(host("_x.web.", RecordType::A).unwrap(), "_x.web");
    assert_eq!(host(".", RecordType::A).unwrap(), "");
    assert_eq!(host("web.", RecordType::MX), None);
    for labels in [
        [&b"web.shop"[..], b"x"],
        [b"w b", b"x"],
        [b"w\xc3\xa9b", b"x"],
    ] {
        assert_eq!(query(&ask_labels(&labels)).host(), None);
    }
    let mut chaos = ask("web.", RecordType::A);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(query(&chaos.to_vec().unwrap()).host(), None);
}

#[test]
fn questions_of_one_essence() {
    let essence = |message: &Message| query(&message.to_vec().unwrap()).essence();
    let plain = ask("web.shop.", RecordType::A);
    let edns = with_edns(plain.clone(), 1232, false);
    let mut other_id = ask("WEB.shop.", RecordType::A);
    other_id.metadata.id = 7;
    assert_eq!(essence(&plain), essence(&other_id));
    assert_eq!(
        essence(&edns),
        essence(&with_edns(plain.clone(), 4096, false))
    );
    let flagged = |set: fn(&mut Message)| {
        let mut message = plain.clone();
        set(&mut message);
        message
    };
    let all = [
        plain.clone(),
        edns,
        with_edns(plain.clone(), 1232, true),
        flagged(|m| m.metadata.recursion_desired = false),
        flagged(|m| m.metadata.checking_disabled = true),
        flagged(|m| m.metadata.authentic_data = true),
        ask("web.shop.", RecordType::AAAA),
        // types whose numbers look like letters, in upper and in lower case
        ask("web.shop.", RecordType::HTTPS),
        ask("web.shop.", RecordType::Unknown(97)),
        ask("web.shop2.", RecordType::A),
    ];
    let different: std::collections::BTreeSet<_> = all.iter().map(essence).collect();
    assert_eq!(different.len(), all.len());
    for message in all {
        let bytes = message.to_vec().unwrap();
        let canonical = query(&bytes).canonical();
        assert_eq!(query(&canonical).essence(), query(&bytes).essence());
        assert_eq!(read(&canonical).queries, message.queries);
    }
}

#[test]
fn what_is_of_one_hop_stays_there() {
    let option = |code: u16, data: &[u8]| {
        let mut message = with_edns(ask("web.", RecordType::A), 1232, false);
        let edns = message.edns.as_mut().unwrap();
        let option = EdnsOption::Unknown(code, data.to_vec());
        edns.options_mut().insert(option);
        message.to_vec().unwrap()
    };
    let cookie = option(10, b"12345678");
    assert!(query(&cookie).is_plain());
    let canonical = read(&query(&cookie).canonical());
    assert!(canonical.edns.unwrap().options().as_ref().is_empty());
    // a client subnet changes the answer
    assert!(!query(&option(8, &[0, 1, 8, 0, 10])).is_plain());
    let mut later = with_edns(ask("web.", RecordType::A), 1232, false);
    later.edns.as_mut().unwrap().set_version(1);
    assert!(!query(&later.to_vec().unwrap()).is_plain());
}

#[test]
fn limits_are_the_clients() {
    let limit = |payload: Option<u16>, transport| {
        let message = ask("web.", RecordType::A);
        let message = match payload {
            Some(payload) => with_edns(message, payload, false),
            None => message,
        };
        query(&message.to_vec().unwrap()).limit(transport)
    };
    assert_eq!(limit(None, Transport::Udp), 512);
    assert_eq!(limit(Some(0), Transport::Udp), 512);
    assert_eq!(limit(Some(1232), Transport::Udp), 1232);
    assert_eq!(limit(Some(65_535), Transport::Udp), 65_507);
    assert_eq!(limit(Some(512), Transport::Tcp), 65_535);
}

#[test]
fn names_for_people() {
    let bytes = ask_labels(&[b"a.b", b"W\0\\"]);
    let name = Domain(query(&bytes).name()).to_string();
    assert_eq!(name, "a\\.b.W\\000\\\\.");
    assert_eq!(Domain(b"\0").to_string(), ".");
}

#[test]
fn a_question_that_nobody_sent() {
    let bytes = ask_addresses("Web.shop.", true).unwrap();
    let message = read(&bytes);
    assert_eq!(message.queries[0].query_type(), RecordType::AAAA);
    assert_eq!(message.queries[0].name().to_ascii(), "Web.shop.");
    let ip: IpAddr = "fd00::1".parse().unwrap();
    let answer = query(&bytes).addresses(Some("web"), &[ip], 512);
    assert_eq!(read_addresses(&answer), Ok(vec![ip]));
    let refused = query(&bytes).error(Code::ServerFailure);
    assert_eq!(read_addresses(&refused), Err("SERVFAIL"));
    assert!(read_addresses(&answer[..answer.len() - 1]).is_err());
    let long = "a".repeat(64);
    for host in ["", "a..b", ".a", &long, &"a.".repeat(128)] {
        assert_eq!(ask_addresses(host, false), None, "{host:?}");
    }
}
