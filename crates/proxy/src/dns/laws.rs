//! Laws of DNS messages, driven by `cargo test` with fixed seeds and by `fuzz/`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::message::{Parsed, Query, Transport, parse, read_addresses};
use super::relay::{Reception, pass_on, receive, summary};
use super::wire::{Code, HEADER_BYTES, Header, Records, TRUNCATED, question_end};

/// Law: whatever a pod sends, it gets nothing, or a well-formed answer to just that, within its limits.
///
/// Panics: the law does not hold.
pub fn answers_any_question(message: &[u8]) {
    let query = match parse(message) {
        Parsed::Noise => return assert!(message.len() < HEADER_BYTES),
        Parsed::Refused(answer) => return well_formed(message, &answer, usize::MAX),
        Parsed::Query(query) => query,
    };
    for transport in [Transport::Udp, Transport::Tcp] {
        let limit = query.limit(transport);
        let many: Vec<IpAddr> = (0..300)
            .map(|n| match n % 2 {
                0 => Ipv4Addr::from_bits(n).into(),
                _ => Ipv6Addr::from_bits(n.into()).into(),
            })
            .collect();
        for count in [0, 1, query.room(limit).min(many.len()), many.len()] {
            for cname in [None, Some("some.name"), Some("..")] {
                let answer = query.addresses(cname, &many[..count], limit);
                well_formed(message, &answer, limit);
                let told = read_addresses(&answer).expect("it is an answer");
                assert!(many.starts_with(&told));
                let is_cut = answer[2] & TRUNCATED != 0;
                assert!(is_cut || told.len() == count);
            }
        }
        well_formed(message, &query.empty(limit), limit);
        well_formed(message, &query.error(Code::ServerFailure), limit);
    }
    if query.is_plain() {
        same_question(&query);
    }
}

/// What a resolver is asked in a pod's place is what the pod asked.
fn same_question(query: &Query<'_>) {
    let canonical = query.canonical();
    let Parsed::Query(again) = parse(&canonical) else {
        panic!("our own question is none");
    };
    assert!(again.is_plain());
    assert_eq!(again.essence(), query.essence());
    assert_eq!(again.question, query.question);
}

/// Law: whatever a resolver sends, it is no answer, or one that the client can read: the same records, with lifetimes that are
/// not longer, within its limit.
///
/// - `bytes`: length of the question (two bytes), the question, the resolver's message
///
/// Panics: the law does not hold.
pub fn passes_any_answer_on(bytes: &[u8]) {
    let Some((len, rest)) = bytes.split_first_chunk() else {
        return;
    };
    let Some((question, message)) = rest.split_at_checked(u16::from_be_bytes(*len).into()) else {
        return;
    };
    let Parsed::Query(query) = parse(question) else {
        return;
    };
    let reception = receive(question, message);
    if reception == Reception::Foreign {
        return;
    }
    let (age, said) = (Duration::from_secs(7), summary(message));
    for limit in [query.limit(Transport::Udp), query.limit(Transport::Tcp)] {
        let passed = pass_on(&query, message, age, limit);
        well_formed(question, &passed, limit.max(message.len()));
        let whole = message.len() <= limit && reception == Reception::Whole;
        // an error without its question gets that back, and nothing that stood behind it
        let has_question = Header::read(message).is_some_and(|header| header.counts[0] == 1);
        if whole && has_question {
            let (before, after) = (summary(message), summary(&passed));
            assert_eq!((before.code, before.answers), (after.code, after.answers));
            assert_eq!(passed.len(), message.len());
            assert!(after.keep <= said.keep);
        }
    }
}

/// An answer with the question's id and at most `limit` bytes, all of which are what its header says.
fn well_formed(question: &[u8], answer: &[u8], limit: usize) {
    assert!(answer.len() <= limit);
    assert_eq!(question[..2], answer[..2]);
    let header = Header::read(answer).expect("a header");
    assert!(header.is_response());
    let end = match header.counts[0] {
        0 => HEADER_BYTES,
        _ => question_end(answer).expect("the question"),
    };
    let mut last = end;
    for record in Records::new(answer, &header, end) {
        last = record.expect("a record").end;
    }
    assert!(last <= answer.len());
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    const QUESTION: &[u8] =
        b"\0\x07\x01\x20\0\x01\0\0\0\0\0\x01\x03Web\x04Shop\0\0\x01\0\x01\0\0\x29\x04\xd0\0\0\x80\0\0\x04\0\x0a\0\0";
    const ANSWER: &[u8] = b"\0\x07\x81\x80\0\x01\0\x02\0\x01\0\x01\x03web\x04shop\0\0\x01\0\x01\
        \xc0\x0c\0\x05\0\x01\0\0\0\x3c\0\x06\x03www\xc0\x0c\
        \xc0\x27\0\x01\0\x01\0\0\0\x1e\0\x04\x0a\0\0\x01\
        \xc0\x10\0\x02\0\x01\0\0\x0e\x10\0\x05\x02ns\xc0\x10\
        \0\0\x29\x04\xd0\0\0\0\0\0\0";

    /// `message` with a few bytes changed, cut or added.
    fn changed(message: &[u8], rng: &mut SmallRng) -> Vec<u8> {
        let mut message = message.to_vec();
        for _ in 0..rng.random_range(0..4) {
            let at = rng.random_range(0..message.len());
            message[at] = match rng.random_range(0..3) {
                0 => rng.random(),
                1 => 0xc0,
                _ => message[at].wrapping_add(1),
            };
        }
        match rng.random_range(0..6) {
            0 => message.truncate(rng.random_range(0..message.len())),
            1 => message.extend_from_within(rng.random_range(0..20)..),
            _ => {}
        }
        message
    }

    #[test]
    fn questions_of_all_kinds() {
        let mut rng = SmallRng::seed_from_u64(53);
        answers_any_question(QUESTION);
        for len in 0..QUESTION.len() {
            answers_any_question(&QUESTION[..len]);
        }
        for _ in 0..3000 {
            answers_any_question(&changed(QUESTION, &mut rng));
        }
    }

    #[test]
    fn answers_of_all_kinds() {
        let mut rng = SmallRng::seed_from_u64(54);
        let check = |question: &[u8], answer: &[u8]| {
            let len = (question.len() as u16).to_be_bytes();
            passes_any_answer_on(&[&len[..], question, answer].concat());
        };
        assert_eq!(receive(QUESTION, ANSWER), Reception::Whole);
        check(QUESTION, ANSWER);
        for _ in 0..20_000 {
            check(QUESTION, &changed(ANSWER, &mut rng));
        }
    }
}
