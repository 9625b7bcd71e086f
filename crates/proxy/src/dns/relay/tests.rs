//! Answers of resolvers: which are taken, how long they are kept, what becomes of them.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Ask, ResponseCode};
use hickory_proto::rr::rdata::{CNAME, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::*;
use crate::dns::message::{Parsed, parse};

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn ask(text: &str, payload: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.add_query(Ask::query(name(text), RecordType::A));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

fn query(bytes: &[u8]) -> Query<'_> {
    match parse(bytes) {
        Parsed::Query(query) => query,
        other => panic!("{other:?}"),
    }
}

/// An answer to the question for `text`, as `fill` makes it.
fn answer(text: &str, fill: impl FnOnce(&mut Message)) -> Vec<u8> {
    let mut message = Message::new(7, MessageType::Response, OpCode::Query);
    message.add_query(Ask::query(name(text), RecordType::A));
    fill(&mut message);
    message.to_vec().unwrap()
}

fn a(owner: &str, ttl: u32) -> Record {
    let ip = std::net::Ipv4Addr::new(10, 0, 0, 1);
    Record::from_rdata(name(owner), ttl, RData::A(ip.into()))
}

fn soa(ttl: u32, minimum: u32) -> Record {
    let soa = SOA::new(name("ns.test."), name("me.test."), 1, 2, 3, 4, minimum);
    Record::from_rdata(name("test."), ttl, RData::SOA(soa))
}

#[test]
fn only_the_answer_is_taken() {
    let asked = ask("Web.test.", None);
    let good = answer("web.test.", |m| {
        m.add_answer(a("web.test.", 5));
    });
    let changed = |at: usize, to: u8| {
        let mut bytes = good.clone();
        bytes[at] = to;
        bytes
    };
    let cases = [
        ("as it should be", good.clone(), Reception::Whole),
        ("cut", changed(2, good[2] | 2), Reception::Cut),
        ("another id", changed(0, 9), Reception::Foreign),
        ("a question", changed(2, 0), Reception::Foreign),
        ("another opcode", changed(2, 0xa8), Reception::Foreign),
        ("another name", changed(13, b'x'), Reception::Foreign),
        ("another type", changed(23, 28), Reception::Foreign),
        ("more records", changed(7, 2), Reception::Foreign),
        (
            "cut records",
            good[..good.len() - 1].to_vec(),
            Reception::Foreign,
        ),
        ("no bytes", Vec::new(), Reception::Foreign),
        (
            "no question",
            b"\0\x07\x80\0\0\0\0\0\0\0\0\0".to_vec(),
            Reception::Foreign,
        ),
        (
            "an error only",
            b"\0\x07\x80\x01\0\0\0\0\0\0\0\0".to_vec(),
            Reception::Whole,
        ),
    ];
    for (what, bytes, wanted) in cases {
        assert_eq!(receive(&asked, &bytes), wanted, "{what}");
    }
}

/// What it is, how long it is kept in seconds, what is in it.
type Kept<'a> = (&'a str, Option<u64>, Box<dyn Fn(&mut Message)>);

#[test]
fn how_long_an_answer_is_kept() {
    let test = "web.test.";
    let cname = |ttl| Record::from_rdata(name(test), ttl, RData::CNAME(CNAME(name("x.test."))));
    let kept = |fill: &dyn Fn(&mut Message)| {
        let bytes = answer(test, |m| fill(m));
        summary(&bytes).keep.map(|keep| keep.as_secs())
    };
    let nothing = |code: ResponseCode| move |m: &mut Message| m.metadata.response_code = code;
    let cases: [Kept<'_>; 13] = [
        (
            "the least counts",
            Some(20),
            Box::new(move |m| {
                m.add_answer(cname(40)).add_answer(a("x.test.", 20));
                m.add_additional(a("ns.test.", 30));
            }),
        ),
        (
            "not more than a day",
            Some(86_400),
            Box::new(|m| {
                m.add_answer(a("web.test.", 100_000));
            }),
        ),
        (
            "nothing at all",
            None,
            Box::new(|m| {
                m.add_answer(a("web.test.", 0));
            }),
        ),
        (
            "a lifetime that is none",
            None,
            Box::new(|m| {
                m.add_answer(a("web.test.", 0x8000_0000));
            }),
        ),
        (
            "its opt record does not count",
            Some(9),
            Box::new(|m| {
                m.add_answer(a("web.test.", 9));
                m.set_edns(Edns::new());
            }),
        ),
        (
            "there is none, says the zone",
            Some(60),
            Box::new(move |m| {
                nothing(ResponseCode::NXDomain)(m);
                m.add_authority(soa(90, 60));
            }),
        ),
        (
            "and its own lifetime",
            Some(50),
            Box::new(move |m| {
                nothing(ResponseCode::NXDomain)(m);
                m.add_authority(soa(50, 60));
            }),
        ),
        (
            "but not for long",
            Some(300),
            Box::new(move |m| {
                nothing(ResponseCode::NXDomain)(m);
                m.add_authority(soa(9000, 9000));
            }),
        ),
        (
            "nobody says how long",
            None,
            Box::new(nothing(ResponseCode::NXDomain)),
        ),
        (
            "an alias of nothing",
            Some(40),
            Box::new(move |m| {
                m.add_answer(cname(40)).add_authority(soa(90, 60));
            }),
        ),
        (
            "an alias of who knows what",
            None,
            Box::new(move |m| {
                m.add_answer(cname(40));
            }),
        ),
        (
            "no such type",
            Some(60),
            Box::new(|m| {
                m.add_authority(soa(90, 60));
            }),
        ),
        (
            "a failure",
            None,
            Box::new(move |m| {
                nothing(ResponseCode::ServFail)(m);
                m.add_answer(a("web.test.", 9)).add_authority(soa(90, 60));
            }),
        ),
    ];
    for (what, wanted, fill) in cases {
        assert_eq!(kept(&*fill), wanted, "{what}");
    }
}

#[test]
fn what_a_resolver_said_goes_on() {
    let strange = Record::from_rdata(
        name("web.test."),
        90,
        RData::Unknown {
            code: RecordType::Unknown(4711),
            rdata: hickory_proto::rr::rdata::NULL::with(vec![0xc0, 0xff, 0, 1]),
        },
    );
    let bytes = answer("web.test.", |m| {
        m.metadata.authentic_data = true;
        m.metadata.response_code = ResponseCode::NXDomain;
        m.add_answer(a("web.test.", 30)).add_answer(strange.clone());
        m.add_authority(soa(90, 60));
        m.add_additional(a("ns.test.", 3));
    });
    let asked = ask("WEB.test.", None);
    let passed = pass_on(&query(&asked), &bytes, Duration::from_secs(12), 512);
    let message = Message::from_vec(&passed).unwrap();
    assert_eq!(message.metadata.id, 7);
    assert!(message.metadata.authentic_data);
    assert_eq!(message.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(message.queries[0].name().to_ascii(), "WEB.test.");
    let ttls = |records: &[Record]| records.iter().map(|r| r.ttl).collect::<Vec<_>>();
    assert_eq!(ttls(&message.answers), [18, 78]);
    assert_eq!(message.answers[1].data, strange.data);
    assert_eq!(ttls(&message.authorities), [78]);
    assert_eq!(ttls(&message.additionals), [0]);
    let fresh = pass_on(&query(&asked), &bytes, Duration::ZERO, 512);
    assert_eq!(fresh.len(), bytes.len());
    assert_eq!(fresh[25..], bytes[25..]);
}

#[test]
fn what_does_not_fit_is_cut_at_a_record() {
    let bytes = answer("web.test.", |m| {
        for _ in 0..40 {
            m.add_answer(a("web.test.", 30));
        }
        m.add_authority(soa(90, 60));
        m.add_additional(a("ns.test.", 30));
    });
    let read = |asked: &[u8], limit| {
        let passed = pass_on(&query(asked), &bytes, Duration::ZERO, limit);
        assert!(passed.len() <= limit);
        Message::from_vec(&passed).unwrap()
    };
    let cut = read(&ask("web.test.", None), 512);
    assert!(cut.metadata.truncation && cut.edns.is_none());
    assert_eq!(cut.answers.len(), (512 - 26) / 16);
    let cut = read(&ask("web.test.", Some(600)), 600);
    assert!(cut.metadata.truncation && cut.edns.is_some());
    assert_eq!(cut.answers.len(), (600 - 26 - 11) / 16);
    // without what is only additional it is still the answer
    let all_but_one = bytes.len() - 1;
    let short = read(&ask("web.test.", None), all_but_one);
    assert!(!short.metadata.truncation && short.additionals.is_empty());
    assert_eq!((short.answers.len(), short.authorities.len()), (40, 1));
}

#[test]
fn what_a_resolver_cut_is_told_to_be_cut() {
    let mut bytes = answer("web.test.", |m| {
        m.metadata.truncation = true;
        m.add_answer(a("web.test.", 30));
    });
    bytes.truncate(bytes.len() - 3);
    let asked = ask("web.test.", Some(1232));
    let passed = pass_on(&query(&asked), &bytes, Duration::ZERO, 1232);
    let message = Message::from_vec(&passed).unwrap();
    assert!(message.metadata.truncation && message.answers.is_empty() && message.edns.is_some());
    assert_eq!(message.queries.len(), 1);
}

#[test]
fn an_error_without_its_question_gets_it_back() {
    let asked = ask("web.test.", None);
    let bytes = b"\0\x09\x80\x85\0\0\0\0\0\0\0\0";
    let passed = pass_on(&query(&asked), bytes, Duration::ZERO, 512);
    let message = Message::from_vec(&passed).unwrap();
    assert_eq!((message.metadata.id, message.queries.len()), (7, 1));
    assert_eq!(message.metadata.response_code, ResponseCode::Refused);
}
