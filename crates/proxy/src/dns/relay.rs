//! What a resolver said, for the client: whether it is the answer at all, how long it may be kept, and the bytes that go on,
//! with the client's id and spelling, lifetimes counted down, cut to what the client takes.
//!
//! Pure. Records of every section and type go on as they came. Asking is left to `forward`, keeping to `cache`.

use std::time::Duration;

use super::message::{Query, put_opt};
use super::wire::{
    HEADER_BYTES, Header, NAME_BYTES_MAX, OPT_BYTES, Records, TRUNCATED, kind, question_end,
};

/// Longest time that an answer is kept, whatever it says.
const KEPT_MAX: Duration = Duration::from_secs(24 * 3600);
/// The same for the answer that there is nothing (RFC 2308, section 5, names one to three hours as sensible; who waits for a
/// name to appear cannot make us forget).
const NOTHING_KEPT_MAX: Duration = Duration::from_secs(5 * 60);

/// What came from a resolver, in response to `asked`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reception {
    /// The answer.
    Whole,
    /// The answer, too long for UDP.
    Cut,
    /// Not an answer to this question.
    Foreign,
}

/// Whether `message` answers `asked`: same id, same question in whatever case, records as its header says. A resolver that
/// understood nothing may leave the question out, with an error and nothing else.
pub(super) fn receive(asked: &[u8], message: &[u8]) -> Reception {
    let (Some(question), Some(answer)) = (Header::read(asked), Header::read(message)) else {
        return Reception::Foreign;
    };
    if answer.id != question.id || !answer.is_response() || answer.opcode() != 0 {
        return Reception::Foreign;
    }
    let is_bare_error = answer.counts[..3] == [0; 3] && answer.code() != 0;
    let from = match (answer.counts[0], question_of(asked), question_of(message)) {
        (1, Some(question), Some(same)) if is_same(question, same) => HEADER_BYTES + same.len(),
        (0, _, _) if is_bare_error => HEADER_BYTES,
        _ => return Reception::Foreign,
    };
    if answer.is_truncated() {
        return Reception::Cut;
    }
    if Records::new(message, &answer, from).all(|record| record.is_ok()) {
        Reception::Whole
    } else {
        Reception::Foreign
    }
}

fn question_of(message: &[u8]) -> Option<&[u8]> {
    question_end(message).map(|end| &message[HEADER_BYTES..end])
}

/// The same name in whatever case, type and class.
fn is_same(one: &[u8], other: &[u8]) -> bool {
    let name = |question: &[u8]| question.len() - 4;
    one.len() == other.len()
        && one[name(one)..] == other[name(other)..]
        && one[..name(one)].eq_ignore_ascii_case(&other[..name(other)])
}

/// What an answer of a resolver amounts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Summary {
    /// response code
    pub(super) code: u8,
    /// records in its answer section
    pub(super) answers: u16,
    /// how long it may be kept; none = not at all
    pub(super) keep: Option<Duration>,
}

/// Reads an answer that [`receive`] took.
pub(super) fn summary(answer: &[u8]) -> Summary {
    let nothing = Header {
        id: [0; 2],
        first: TRUNCATED,
        second: 0,
        counts: [0; 4],
    };
    let header = Header::read(answer).unwrap_or(nothing);
    Summary {
        code: header.code(),
        answers: header.counts[1],
        keep: lifetime(answer, &header).filter(|keep| !keep.is_zero()),
    }
}

/// Least lifetime of its records. That there is nothing is kept as long as the zone says (RFC 2308, section 5), and not at all
/// when it says nothing.
fn lifetime(answer: &[u8], header: &Header) -> Option<Duration> {
    const NAME_ERROR: u8 = 3;
    let is_settled = matches!(header.code(), 0 | NAME_ERROR) && !header.is_truncated();
    let question = question_of(answer).filter(|_| is_settled)?;
    let wanted = &question[question.len() - 4..question.len() - 2];
    let (mut least, mut has_wanted, mut minimum) = (u32::MAX, false, None);
    let from = HEADER_BYTES + question.len();
    for record in Records::new(answer, header, from) {
        let record = record.ok()?;
        if record.is_opt() {
            // the upper bits of the response code: an error of EDNS
            if record.ttl_s >> 24 != 0 {
                return None;
            }
            continue;
        }
        least = least.min(ttl(record.ttl_s));
        has_wanted |= record.section == 1 && record.kind.to_be_bytes() == wanted;
        if record.section == 2 && record.kind == kind::SOA {
            let data = &answer[record.data..record.end];
            minimum = data.last_chunk::<4>().map(|m| u32::from_be_bytes(*m));
        }
    }
    let is_any = wanted == [0, 255];
    if header.code() == 0 && (has_wanted || is_any && header.counts[1] > 0) {
        return Some(Duration::from_secs(least.into()).min(KEPT_MAX));
    }
    let least = Duration::from_secs(least.min(ttl(minimum?)).into());
    Some(least.min(NOTHING_KEPT_MAX))
}

/// A lifetime with the highest bit set is none (RFC 2181, section 8).
fn ttl(seconds: u32) -> u32 {
    if seconds > i32::MAX.unsigned_abs() {
        0
    } else {
        seconds
    }
}

/// The answer for a client that asked `query`.
///
/// - `answer`: a resolver's, that [`receive`] took for this question or for one of the same essence
/// - `age`: since then
/// - `limit`: most bytes; what is beyond is cut at a record
pub(super) fn pass_on(query: &Query<'_>, answer: &[u8], age: Duration, limit: usize) -> Vec<u8> {
    let mut out = answer.to_vec();
    let Some(mut header) = Header::read(answer) else {
        return out;
    };
    header.id = query.header.id;
    header.overwrite(&mut out);
    let Some(end) = question_end(answer).filter(|_| header.counts[0] == 1) else {
        return bare(query, header);
    };
    if end == HEADER_BYTES + query.question.len() {
        out[HEADER_BYTES..end].copy_from_slice(query.question);
    }
    if header.is_truncated() {
        // what a resolver cut may end anywhere
        return cut(query, out, header, [1, 0, 0, 0], end);
    }
    let age_s = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
    let room = limit.saturating_sub(query.edns.map_or(0, |_| OPT_BYTES));
    let (mut kept, mut fitting) = ([1, 0, 0, 0], end);
    for record in Records::new(answer, &header, end) {
        let Ok(record) = record else { break };
        if !record.is_opt() {
            let left = ttl(record.ttl_s).saturating_sub(age_s);
            out[record.ttl_at()].copy_from_slice(&left.to_be_bytes());
        }
        if record.section < 3 && record.end <= room {
            kept[record.section] += 1;
            fitting = record.end;
        }
    }
    if out.len() <= limit {
        return out;
    }
    cut(query, out, header, kept, fitting)
}

/// The first `fitting` bytes, which hold the question and the records `kept`, and an OPT record if the client had one. Additional
/// records may be missing (RFC 2181, section 9); without others the client is told to ask over TCP.
fn cut(
    query: &Query<'_>,
    mut out: Vec<u8>,
    mut header: Header,
    kept: [u16; 4],
    fitting: usize,
) -> Vec<u8> {
    out.truncate(fitting);
    if header.counts[1..3] != kept[1..3] {
        header.first |= TRUNCATED;
    }
    header.counts = kept;
    if let Some(edns) = query.edns {
        put_opt(&mut out, edns);
        header.counts[3] = 1;
    }
    header.overwrite(&mut out);
    out
}

/// An error that came without its question.
fn bare(query: &Query<'_>, header: Header) -> Vec<u8> {
    let header = Header {
        counts: [1, 0, 0, 0],
        ..header
    };
    let mut out = Vec::with_capacity(HEADER_BYTES + NAME_BYTES_MAX + 4);
    header.put(&mut out);
    out.extend_from_slice(query.question);
    out
}

#[cfg(test)]
mod tests;
