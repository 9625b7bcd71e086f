//! DNS messages as far as a server and a client of the tests need them. Written down here once more, so that the daemon's own
//! reading and writing is not judged by itself.

use std::net::IpAddr;

/// Bytes of a message's head.
pub const HEAD: usize = 12;
/// Most bytes over UDP for a client that says nothing else.
const UDP_MAX: usize = 512;
/// Pointer to the name in the question.
const ASKED_NAME: [u8; 2] = [0xc0, HEAD as u8];
/// Class IN.
const INTERNET: u16 = 1;

/// Types by number.
pub mod kind {
    pub const A: u16 = 1;
    pub const NS: u16 = 2;
    pub const CNAME: u16 = 5;
    pub const SOA: u16 = 6;
    pub const PTR: u16 = 12;
    pub const MX: u16 = 15;
    pub const TXT: u16 = 16;
    pub const AAAA: u16 = 28;
    pub const SRV: u16 = 33;
    pub const OPT: u16 = 41;
    pub const HTTPS: u16 = 65;
    pub const ANY: u16 = 255;
    pub const CAA: u16 = 257;
}

/// One question.
#[derive(Clone)]
pub struct Asked {
    pub id: u16,
    /// lower case, without the last dot
    pub name: String,
    pub kind: u16,
    /// name, type and class as they came
    question: Vec<u8>,
    /// most bytes of the answer over UDP, and whether there was an OPT record
    payload: Option<u16>,
    is_recursive: bool,
}

impl Asked {
    /// Reads a question; none = not one.
    pub fn read(message: &[u8]) -> Option<Self> {
        let head = message.get(..HEAD)?;
        if head[2] & 0x80 != 0 || head[4..6] != [0, 1] {
            return None;
        }
        let (mut at, mut labels) = (HEAD, Vec::new());
        loop {
            let length = usize::from(*message.get(at)?);
            let label = message.get(at + 1..at + 1 + length)?;
            at += 1 + length;
            if length == 0 {
                break;
            }
            labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
        }
        let question = message.get(HEAD..at + 4)?.to_vec();
        // an OPT record is for the root, and the tests' clients send nothing before it
        let opt = message.get(at + 4..at + 9);
        let opt = opt.filter(|_| head[10..12] != [0, 0]);
        let is_opt = |opt: &&[u8]| opt[0] == 0 && opt[1..3] == kind::OPT.to_be_bytes();
        Some(Self {
            id: u16::from_be_bytes([head[0], head[1]]),
            name: labels.join("."),
            kind: u16::from_be_bytes([message[at], message[at + 1]]),
            question,
            payload: opt
                .filter(is_opt)
                .map(|opt| u16::from_be_bytes([opt[3], opt[4]])),
            is_recursive: head[2] & 1 != 0,
        })
    }

    /// Most bytes of an answer over UDP.
    pub fn udp_max(&self) -> usize {
        self.payload
            .map_or(UDP_MAX, |p| usize::from(p).max(UDP_MAX))
    }

    /// An answer: a code, the records of the three sections.
    pub fn reply(&self, code: u8, sections: &[Vec<Record>; 3]) -> Vec<u8> {
        let mut out = self.head(code, false, [0, 1, 2].map(|n| sections[n].len()));
        for record in sections.iter().flatten() {
            record.put(&mut out);
        }
        self.put_opt(&mut out);
        out
    }

    /// An answer that says that there is more.
    pub fn truncated(&self) -> Vec<u8> {
        let mut out = self.head(0, true, [0; 3]);
        self.put_opt(&mut out);
        out
    }

    fn head(&self, code: u8, is_cut: bool, counts: [usize; 3]) -> Vec<u8> {
        let mut out = self.id.to_be_bytes().to_vec();
        out.push(0x80 | u8::from(is_cut) << 1 | u8::from(self.is_recursive));
        out.push(0x80 | code);
        let opt = usize::from(self.payload.is_some());
        for count in [1, counts[0], counts[1], counts[2] + opt] {
            out.extend_from_slice(&u16::try_from(count).unwrap_or(u16::MAX).to_be_bytes());
        }
        out.extend_from_slice(&self.question);
        out
    }

    fn put_opt(&self, out: &mut Vec<u8>) {
        if self.payload.is_some() {
            out.extend_from_slice(&[0, 0, kind::OPT as u8, 4, 208, 0, 0, 0, 0, 0, 0]);
        }
    }
}

/// One record.
#[derive(Clone)]
pub struct Record {
    owner: Vec<u8>,
    kind: u16,
    ttl: u32,
    data: Vec<u8>,
}

impl Record {
    /// Of the asked name.
    pub fn new(kind: u16, ttl: u32, data: Vec<u8>) -> Self {
        Self {
            owner: ASKED_NAME.to_vec(),
            kind,
            ttl,
            data,
        }
    }

    /// An address of the asked name.
    pub fn address(ip: IpAddr, ttl: u32) -> Self {
        match ip {
            IpAddr::V4(ip) => Self::new(kind::A, ttl, ip.octets().to_vec()),
            IpAddr::V6(ip) => Self::new(kind::AAAA, ttl, ip.octets().to_vec()),
        }
    }

    /// The same for another name.
    pub fn of(mut self, owner: &str) -> Self {
        self.owner = name(owner);
        self
    }

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.owner);
        out.extend_from_slice(&self.kind.to_be_bytes());
        out.extend_from_slice(&INTERNET.to_be_bytes());
        out.extend_from_slice(&self.ttl.to_be_bytes());
        let length = u16::try_from(self.data.len()).unwrap_or(u16::MAX);
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&self.data);
    }
}

/// A name in labels.
pub fn name(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for label in text.split('.').filter(|label| !label.is_empty()) {
        out.push(u8::try_from(label.len()).unwrap_or(63));
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    out
}

/// A question for IPv4 addresses.
pub fn question(id: u16, asked: &str) -> Vec<u8> {
    let mut message = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    message[..2].copy_from_slice(&id.to_be_bytes());
    message.extend_from_slice(&name(asked));
    message.extend_from_slice(&[0, 1, 0, 1]);
    message
}

/// A message with its length before it, as over TCP.
pub fn framed(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes(), message].concat()
}
