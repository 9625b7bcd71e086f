//! DNS messages byte by byte: header fields, names, and a walk over records that trusts no length.
//!
//! Only what a forwarder needs: answers of resolvers go on as they are, so nothing here knows what is in a record, and types
//! that do not exist yet pass. What a message means is left to `message` and `relay`.
//!
//! Source: RFC 1035, section 4 (messages); RFC 6891, section 6.1 (the OPT record).

use std::ops::Range;

/// A header; anything shorter is no message.
pub(super) const HEADER_BYTES: usize = 12;
/// Longest name, with the length of each label and of the root.
pub(super) const NAME_BYTES_MAX: usize = 255;
/// Longest label.
pub(super) const LABEL_BYTES_MAX: usize = 63;
/// An OPT record without options.
pub(super) const OPT_BYTES: usize = 11;
/// What follows the name of a record, before its data.
const FIXED_BYTES: usize = 10;

/// Types that this server looks at.
pub(super) mod kind {
    pub(crate) const A: u16 = 1;
    pub(crate) const CNAME: u16 = 5;
    pub(crate) const SOA: u16 = 6;
    pub(crate) const AAAA: u16 = 28;
    pub(crate) const OPT: u16 = 41;
    pub(crate) const IXFR: u16 = 251;
    pub(crate) const AXFR: u16 = 252;
}

/// Class IN.
pub(super) const INTERNET: u16 = 1;

/// Bits of the third byte.
pub(super) const RESPONSE: u8 = 0x80;
pub(super) const AUTHORITATIVE: u8 = 0x04;
pub(super) const TRUNCATED: u8 = 0x02;
pub(super) const RECURSION_DESIRED: u8 = 0x01;
const OPCODE: u8 = 0x78;
/// Bits of the fourth.
pub(super) const RECURSION_AVAILABLE: u8 = 0x80;
pub(super) const AUTHENTIC: u8 = 0x20;
pub(super) const CHECKING_DISABLED: u8 = 0x10;
const RCODE: u8 = 0x0f;

/// Response codes of this server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    FormatError = 1,
    ServerFailure = 2,
    NotImplemented = 4,
    Refused = 5,
}

/// The text of a response code.
pub(super) fn code_text(code: u8) -> &'static str {
    match code {
        0 => "NOERROR",
        1 => "FORMERR",
        2 => "SERVFAIL",
        3 => "NXDOMAIN",
        4 => "NOTIMP",
        5 => "REFUSED",
        _ => "another response code",
    }
}

/// A header, read from a message that holds one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) id: [u8; 2],
    /// QR, opcode, AA, TC, RD
    pub(super) first: u8,
    /// RA, AD, CD, response code
    pub(super) second: u8,
    /// of questions, answers, authorities, additionals
    pub(super) counts: [u16; 4],
}

impl Header {
    /// None: shorter than a header.
    pub(super) fn read(message: &[u8]) -> Option<Self> {
        let bytes: &[u8; HEADER_BYTES] = message.first_chunk()?;
        let count = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        Some(Self {
            id: [bytes[0], bytes[1]],
            first: bytes[2],
            second: bytes[3],
            counts: [count(4), count(6), count(8), count(10)],
        })
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.id[0], self.id[1], self.first, self.second]);
        for count in self.counts {
            out.extend_from_slice(&count.to_be_bytes());
        }
    }

    /// Over what [`Header::put`] or the sender wrote.
    pub(super) fn overwrite(&self, message: &mut [u8]) {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        self.put(&mut bytes);
        if let Some(place) = message.get_mut(..HEADER_BYTES) {
            place.copy_from_slice(&bytes);
        }
    }

    pub(super) fn is_response(&self) -> bool {
        self.first & RESPONSE != 0
    }

    pub(super) fn is_truncated(&self) -> bool {
        self.first & TRUNCATED != 0
    }

    /// 0 = a query.
    pub(super) fn opcode(&self) -> u8 {
        (self.first & OPCODE) >> 3
    }

    pub(super) fn code(&self) -> u8 {
        self.second & RCODE
    }
}

fn u16_at(message: &[u8], at: usize) -> Option<u16> {
    let bytes = message.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// End of the name at `at` that is written out in full; none = it is cut off, too long, or points elsewhere.
pub(super) fn plain_name_end(message: &[u8], at: usize) -> Option<usize> {
    let mut end = at;
    loop {
        let len = usize::from(*message.get(end)?);
        end += 1 + len;
        if len > LABEL_BYTES_MAX || end - at > NAME_BYTES_MAX {
            return None;
        }
        if len == 0 {
            return Some(end);
        }
    }
}

/// End of the name at `at`, which may end in a pointer: a jump is the end, and where it leads does not matter here.
fn name_end(message: &[u8], at: usize) -> Option<usize> {
    let mut end = at;
    loop {
        let len = *message.get(end)?;
        match len {
            0 => return Some(end + 1),
            0xc0.. => return message.get(end + 1).map(|_| end + 2),
            _ if usize::from(len) > LABEL_BYTES_MAX => return None,
            _ => end += 1 + usize::from(len),
        }
        if end - at > NAME_BYTES_MAX {
            return None;
        }
    }
}

/// End of the one question of a message whose name is written out in full, as the first name of a message must be.
pub(super) fn question_end(message: &[u8]) -> Option<usize> {
    let end = plain_name_end(message, HEADER_BYTES)? + 4;
    (end <= message.len()).then_some(end)
}

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    /// where its name begins
    pub(super) start: usize,
    /// 1 = answers, 2 = authorities, 3 = additionals
    pub(super) section: usize,
    pub(super) kind: u16,
    pub(super) class: u16,
    pub(super) ttl_s: u32,
    /// where its data begins; the time to live stands 6 bytes before
    pub(super) data: usize,
    /// where its data ends
    pub(super) end: usize,
}

impl Record {
    fn read(message: &[u8], start: usize, section: usize) -> Option<Self> {
        let fixed = name_end(message, start)?;
        let data = fixed + FIXED_BYTES;
        let ttl: &[u8; 4] = message.get(fixed + 4..)?.first_chunk()?;
        let end = data + usize::from(u16_at(message, fixed + 8)?);
        (end <= message.len()).then_some(Self {
            start,
            section,
            kind: u16_at(message, fixed)?,
            class: u16_at(message, fixed + 2)?,
            ttl_s: u32::from_be_bytes(*ttl),
            data,
            end,
        })
    }

    /// Where its time to live stands.
    pub(super) fn ttl_at(&self) -> Range<usize> {
        self.data - 6..self.data - 2
    }

    /// Whether it is the OPT record, whose fields mean something else.
    pub(super) fn is_opt(&self) -> bool {
        self.kind == kind::OPT
    }
}

/// The records of a message one after another, from where the questions end. An error is the last thing given.
pub(super) struct Records<'a> {
    message: &'a [u8],
    at: usize,
    section: usize,
    left: [u16; 4],
}

/// A message whose records are not what its header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

impl<'a> Records<'a> {
    /// - `from`: end of the questions
    pub(super) fn new(message: &'a [u8], header: &Header, from: usize) -> Self {
        Self {
            message,
            at: from,
            section: 1,
            left: header.counts,
        }
    }
}

impl Iterator for Records<'_> {
    type Item = Result<Record, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        while *self.left.get(self.section)? == 0 {
            self.section += 1;
        }
        match Record::read(self.message, self.at, self.section) {
            Some(record) => {
                self.left[self.section] -= 1;
                self.at = record.end;
                Some(Ok(record))
            }
            None => {
                self.left = [0; 4];
                Some(Err(Malformed))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_end_where_they_say_or_nowhere() {
        let long = |label: usize| {
            let mut name = Vec::new();
            while name.len() < 254 {
                name.push(label as u8);
                name.extend(std::iter::repeat_n(b'a', label));
            }
            name.push(0);
            name
        };
        for (name, plain, any) in [
            (&b"\0"[..], Some(1), Some(1)),
            (b"\x03web\0", Some(5), Some(5)),
            (b"\x03web", None, None),
            (b"\x03we", None, None),
            (b"", None, None),
            (b"\x03web\xc0\x0c", None, Some(6)),
            (b"\xc0\x0c", None, Some(2)),
            (b"\xc0", None, None),
            (b"\x40a\0", None, None),
            (b"\x80a\0", None, None),
            (&long(1), Some(255), Some(255)),
            (&long(63), None, None),
            (&long(0x3f)[..], None, None),
        ] {
            assert_eq!(plain_name_end(name, 0), plain, "{name:?}");
            assert_eq!(name_end(name, 0), any, "{name:?}");
        }
    }

    #[test]
    fn a_walk_ends_with_the_first_lie() {
        let record = b"\xc0\x0c\0\x01\0\x01\0\0\0\x1e\0\x04\x0a\0\0\x01";
        let mut message = b"\0\x07\x81\x80\0\0\0\x01\0\x01\0\0".to_vec();
        message.extend_from_slice(record);
        let walk = |message: &[u8]| {
            let header = Header::read(message).unwrap();
            Records::new(message, &header, HEADER_BYTES).collect::<Vec<_>>()
        };
        let first = Record {
            start: 12,
            section: 1,
            kind: kind::A,
            class: INTERNET,
            ttl_s: 30,
            data: 24,
            end: 28,
        };
        assert_eq!(walk(&message), [Ok(first), Err(Malformed)]);
        for len in HEADER_BYTES..message.len() {
            assert_eq!(walk(&message[..len]), [Err(Malformed)], "{len}");
        }
        message.extend_from_slice(record);
        let second = Record {
            start: 28,
            section: 2,
            data: 40,
            end: 44,
            ..first
        };
        assert_eq!(walk(&message), [Ok(first), Ok(second)]);
    }
}
