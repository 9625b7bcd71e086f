//! A pod's question, and the answers that are made here: addresses of the mesh, nothing, an error.
//!
//! Pure. What the mesh answers is decided in `mesh::dns`; answers of resolvers are left to `relay`.

use std::fmt;
use std::net::IpAddr;

use mesh::dns::TTL_S;

use super::wire::{
    AUTHENTIC, AUTHORITATIVE, CHECKING_DISABLED, Code, HEADER_BYTES, Header, INTERNET,
    LABEL_BYTES_MAX, NAME_BYTES_MAX, OPT_BYTES, RECURSION_AVAILABLE, RECURSION_DESIRED, RESPONSE,
    Records, TRUNCATED, code_text, kind, question_end,
};

/// Largest answer over TCP.
const TCP_BYTES_MAX: usize = 65_535;
/// Largest UDP payload over IPv4.
const UDP_BYTES_MAX: usize = 65_507;
/// Largest answer over UDP for those who do not say more (RFC 1035, section 4.2.1), and the least that anyone takes.
const UDP_BYTES_MIN: usize = 512;
/// Options of EDNS that are between one client and one server, and so not passed on: cookies, TCP keepalive, padding.
const HOP_OPTIONS: [u16; 3] = [10, 11, 12];
/// DO: the client wants DNSSEC's records.
const DNSSEC_OK: u16 = 0x8000;

/// How a question came, which bounds its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// What a message of a pod is.
#[derive(Debug)]
pub(super) enum Parsed<'a> {
    /// One question.
    Query(Query<'a>),
    /// Something else, which gets this answer.
    Refused(Vec<u8>),
    /// Not even a header: no answer.
    Noise,
}

/// What the client says about itself in its OPT record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Edns {
    /// largest UDP answer it takes
    pub(super) payload: u16,
    /// extended response code, version, flags
    ttl: u32,
    /// it has options that mean something to the resolver, such as a client subnet
    has_options: bool,
}

impl Edns {
    pub(super) fn dnssec_ok(&self) -> bool {
        self.ttl as u16 & DNSSEC_OK != 0
    }

    fn version(&self) -> u8 {
        self.ttl.to_be_bytes()[1]
    }
}

/// One question of a pod.
#[derive(Debug, Clone, Copy)]
pub(super) struct Query<'a> {
    /// the whole message
    pub(super) message: &'a [u8],
    pub(super) header: Header,
    /// name, type and class, as they came
    pub(super) question: &'a [u8],
    pub(super) edns: Option<Edns>,
    /// records beside the OPT record, such as a signature
    has_records: bool,
}

/// Reads a message of a pod.
pub(super) fn parse(message: &[u8]) -> Parsed<'_> {
    let Some(header) = Header::read(message) else {
        return Parsed::Noise;
    };
    let end = question_end(message).filter(|_| header.counts[0] == 1);
    let question = end.map(|end| &message[HEADER_BYTES..end]);
    let refused = |code| Parsed::Refused(error(&header, question.unwrap_or_default(), code));
    if header.is_response() {
        return refused(Code::FormatError);
    }
    if header.opcode() != 0 {
        return refused(Code::NotImplemented);
    }
    let (Some(end), Some(question)) = (end, question) else {
        return refused(Code::FormatError);
    };
    let (mut edns, mut has_records) = (None, false);
    for record in Records::new(message, &header, end) {
        match record {
            Ok(record) if record.is_opt() => {
                let is_good = record.section == 3 && message[record.start] == 0 && edns.is_none();
                let options = options(&message[record.data..record.end]).filter(|_| is_good);
                let Some(has_options) = options else {
                    return refused(Code::FormatError);
                };
                edns = Some(Edns {
                    payload: record.class,
                    ttl: record.ttl_s,
                    has_options,
                });
            }
            Ok(_) => has_records = true,
            Err(_) => return refused(Code::FormatError),
        }
    }
    Parsed::Query(Query {
        message,
        header,
        question,
        edns,
        has_records,
    })
}

/// Whether there is an option that is not of one hop only; none = they are not well-formed.
fn options(mut data: &[u8]) -> Option<bool> {
    let mut any = false;
    while !data.is_empty() {
        let (head, rest) = data.split_first_chunk::<4>()?;
        let (code, len) = (
            u16::from_be_bytes([head[0], head[1]]),
            u16::from_be_bytes([head[2], head[3]]),
        );
        any |= !HOP_OPTIONS.contains(&code);
        data = rest.get(usize::from(len)..)?;
    }
    Some(any)
}

impl Query<'_> {
    /// Type.
    pub(super) fn kind(&self) -> u16 {
        let at = self.question.len() - 4;
        u16::from_be_bytes([self.question[at], self.question[at + 1]])
    }

    /// Class.
    fn class(&self) -> u16 {
        let at = self.question.len() - 2;
        u16::from_be_bytes([self.question[at], self.question[at + 1]])
    }

    /// The name as it came, in labels.
    pub(super) fn name(&self) -> &[u8] {
        &self.question[..self.question.len() - 4]
    }

    /// The name as text in lower case without the last dot, when it asks for addresses; none = not for us to answer: another
    /// type or class, or a name that no host can have.
    pub(super) fn host(&self) -> Option<String> {
        let is_address = matches!(self.kind(), kind::A | kind::AAAA);
        if !is_address || self.class() != INTERNET {
            return None;
        }
        let mut host = String::with_capacity(self.name().len());
        for label in labels(self.name()) {
            if !host.is_empty() {
                host.push('.');
            }
            for byte in label {
                if !byte.is_ascii_graphic() || *byte == b'.' {
                    return None;
                }
                host.push(char::from(byte.to_ascii_lowercase()));
            }
        }
        Some(host)
    }

    /// Whether all that it says is in what [`Query::canonical`] makes of it; any other one is passed on as it is, by itself.
    pub(super) fn is_plain(&self) -> bool {
        let edns_is_plain = |e: Edns| !e.has_options && e.version() == 0;
        !self.has_records && self.edns.is_none_or(edns_is_plain)
    }

    /// What is asked, apart from who asks and how it is written: equal for questions that have the same answer.
    pub(super) fn essence(&self) -> Vec<u8> {
        let mut essence = Vec::with_capacity(self.question.len() + 2);
        essence.extend_from_slice(self.question);
        let name = self.name().len();
        // length bytes are below the letters
        essence[..name].make_ascii_lowercase();
        let bits = self.header.second & (AUTHENTIC | CHECKING_DISABLED);
        let dnssec_ok = self.edns.is_some_and(|e| e.dnssec_ok());
        essence.push(bits | self.header.first & RECURSION_DESIRED);
        essence.push(u8::from(self.edns.is_some()) << 1 | u8::from(dnssec_ok));
        essence
    }

    /// The question for a resolver, without what is between the client and us. Its id is 0.
    pub(super) fn canonical(&self) -> Vec<u8> {
        let header = Header {
            id: [0; 2],
            first: self.header.first & RECURSION_DESIRED,
            second: self.header.second & (AUTHENTIC | CHECKING_DISABLED),
            counts: [1, 0, 0, u16::from(self.edns.is_some())],
        };
        let mut out = Vec::with_capacity(HEADER_BYTES + self.question.len() + OPT_BYTES);
        header.put(&mut out);
        out.extend_from_slice(self.question);
        if let Some(edns) = self.edns {
            put_opt(&mut out, edns);
        }
        out
    }

    /// Most bytes of an answer.
    pub(super) fn limit(&self, transport: Transport) -> usize {
        match (transport, self.edns) {
            (Transport::Tcp, _) => TCP_BYTES_MAX,
            (Transport::Udp, Some(edns)) => {
                usize::from(edns.payload).clamp(UDP_BYTES_MIN, UDP_BYTES_MAX)
            }
            (Transport::Udp, None) => UDP_BYTES_MIN,
        }
    }

    /// Most addresses that an answer of `limit` bytes can hold.
    pub(super) fn room(&self, limit: usize) -> usize {
        let record = HEADER_BYTES + if self.kind() == kind::A { 4 } else { 16 };
        limit.saturating_sub(HEADER_BYTES + self.question.len()) / record
    }

    /// The mesh has addresses: the asked name's, or those of the name that it is an alias of. As many as fit.
    pub(super) fn addresses(
        &self,
        cname: Option<&str>,
        addresses: &[IpAddr],
        limit: usize,
    ) -> Vec<u8> {
        let mut answer = Answer::new(self, limit);
        let mut owner = self.own_name();
        if let Some(target) = cname.and_then(wire_name) {
            let fits = answer.record(&owner, kind::CNAME, &target);
            if !fits {
                return answer.finish(self, true);
            }
            owner = pointer(answer.out.len() - target.len());
        }
        for ip in addresses {
            let start = answer.out.len();
            let fits = match ip {
                IpAddr::V4(ip) => answer.record(&owner, kind::A, &ip.octets()),
                IpAddr::V6(ip) => answer.record(&owner, kind::AAAA, &ip.octets()),
            };
            if !fits {
                return answer.finish(self, true);
            }
            if owner.len() > 2 {
                owner = pointer(start);
            }
        }
        answer.finish(self, false)
    }

    /// The name is the mesh's and has no such address.
    pub(super) fn empty(&self, limit: usize) -> Vec<u8> {
        Answer::new(self, limit).finish(self, false)
    }

    /// No answer, but why.
    pub(super) fn error(&self, code: Code) -> Vec<u8> {
        error(&self.header, self.question, code)
    }

    /// The asked name in lower case: where it stands in the question, if it is written so there.
    fn own_name(&self) -> Vec<u8> {
        if self.name().iter().any(u8::is_ascii_uppercase) {
            self.name().to_ascii_lowercase()
        } else {
            pointer(HEADER_BYTES)
        }
    }
}

/// The name that stands at `at`, which is within the first 16 KiB: what it is used for follows questions and one alias.
fn pointer(at: usize) -> Vec<u8> {
    (0xc000 | at as u16).to_be_bytes().to_vec()
}

/// An answer of ours under way.
struct Answer {
    out: Vec<u8>,
    /// what records may fill
    room: usize,
    count: u16,
}

impl Answer {
    fn new(query: &Query<'_>, limit: usize) -> Self {
        let mut out = Vec::with_capacity(UDP_BYTES_MIN);
        out.resize(HEADER_BYTES, 0);
        out.extend_from_slice(query.question);
        let opt = query.edns.map_or(0, |_| OPT_BYTES);
        Self {
            out,
            room: limit.saturating_sub(opt),
            count: 0,
        }
    }

    /// Adds a record if it fits.
    fn record(&mut self, owner: &[u8], kind: u16, data: &[u8]) -> bool {
        if self.out.len() + owner.len() + 10 + data.len() > self.room {
            return false;
        }
        self.out.extend_from_slice(owner);
        self.out.extend_from_slice(&kind.to_be_bytes());
        self.out.extend_from_slice(&INTERNET.to_be_bytes());
        self.out.extend_from_slice(&TTL_S.to_be_bytes());
        // an address or a name: at most 255 bytes
        self.out
            .extend_from_slice(&(data.len() as u16).to_be_bytes());
        self.out.extend_from_slice(data);
        self.count += 1;
        true
    }

    fn finish(mut self, query: &Query<'_>, is_cut: bool) -> Vec<u8> {
        let asked = &query.header;
        let truncated = if is_cut { TRUNCATED } else { 0 };
        if let Some(edns) = query.edns {
            put_opt(&mut self.out, edns);
        }
        let header = Header {
            id: asked.id,
            first: RESPONSE | AUTHORITATIVE | truncated | asked.first & RECURSION_DESIRED,
            second: RECURSION_AVAILABLE | asked.second & CHECKING_DISABLED,
            counts: [1, self.count, 0, u16::from(query.edns.is_some())],
        };
        header.overwrite(&mut self.out);
        self.out
    }
}

/// An OPT record as the client's: its payload, but at least 512, its version and DO bit, no options.
pub(super) fn put_opt(out: &mut Vec<u8>, edns: Edns) {
    let payload = usize::from(edns.payload).max(UDP_BYTES_MIN) as u16;
    let ttl = edns.ttl & (0x00ff_0000 | u32::from(DNSSEC_OK));
    out.push(0);
    out.extend_from_slice(&kind::OPT.to_be_bytes());
    out.extend_from_slice(&payload.to_be_bytes());
    out.extend_from_slice(&ttl.to_be_bytes());
    out.extend_from_slice(&[0, 0]);
}

fn error(asked: &Header, question: &[u8], code: Code) -> Vec<u8> {
    let header = Header {
        id: asked.id,
        first: RESPONSE | asked.opcode() << 3 | asked.first & RECURSION_DESIRED,
        second: asked.second & CHECKING_DISABLED | code as u8,
        counts: [u16::from(!question.is_empty()), 0, 0, 0],
    };
    let mut out = Vec::with_capacity(HEADER_BYTES + question.len());
    header.put(&mut out);
    out.extend_from_slice(question);
    out
}

/// The labels of a name that is written out in full.
fn labels(mut name: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (len, rest) = name.split_first()?;
        let (label, rest) = rest.split_at_checked(usize::from(*len))?;
        name = rest;
        (!label.is_empty()).then_some(label)
    })
}

/// A name as messages write it, from labels separated by dots; none = no name can be like that.
fn wire_name(text: &str) -> Option<Vec<u8>> {
    let mut name = Vec::with_capacity(text.len() + 2);
    for label in text.trim_end_matches('.').split('.') {
        let len = u8::try_from(label.len()).ok()?;
        if label.is_empty() || label.len() > LABEL_BYTES_MAX {
            return None;
        }
        name.push(len);
        name.extend_from_slice(label.as_bytes());
    }
    name.push(0);
    (name.len() <= NAME_BYTES_MAX).then_some(name)
}

/// A question for the addresses of `host` that nobody sent; none = no name can be like that.
pub(super) fn ask_addresses(host: &str, v6: bool) -> Option<Vec<u8>> {
    let name = wire_name(host)?;
    let header = Header {
        id: [0; 2],
        first: RECURSION_DESIRED,
        second: 0,
        counts: [1, 0, 0, 0],
    };
    let kind = if v6 { kind::AAAA } else { kind::A };
    let mut out = Vec::with_capacity(HEADER_BYTES + name.len() + 4);
    header.put(&mut out);
    out.extend_from_slice(&name);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&INTERNET.to_be_bytes());
    Some(out)
}

/// The addresses in an answer, whatever aliases lead to them.
///
/// Errors: the response code when it is not `NOERROR`, or that it is no answer.
pub(super) fn read_addresses(answer: &[u8]) -> Result<Vec<IpAddr>, &'static str> {
    let malformed = "the answer is malformed";
    let header = Header::read(answer).ok_or(malformed)?;
    if header.code() != 0 {
        return Err(code_text(header.code()));
    }
    let end = question_end(answer).ok_or(malformed)?;
    let mut found = Vec::new();
    for record in Records::new(answer, &header, end) {
        let record = record.map_err(|_| malformed)?;
        if record.section != 1 || record.class != INTERNET {
            continue;
        }
        let data = &answer[record.data..record.end];
        let v4 = || <[u8; 4]>::try_from(data).map(IpAddr::from);
        let v6 = || <[u8; 16]>::try_from(data).map(IpAddr::from);
        let ip = match record.kind {
            kind::A => v4().map_err(|_| malformed)?,
            kind::AAAA => v6().map_err(|_| malformed)?,
            _ => continue,
        };
        found.push(ip);
    }
    Ok(found)
}

/// A name for people: labels separated by dots, with the last one; what is no letter, digit, hyphen or the like as `\DDD`.
///
/// Source: RFC 1035, section 5.1.
pub(super) struct Domain<'a>(pub(super) &'a [u8]);

impl fmt::Display for Domain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut any = false;
        for label in labels(self.0) {
            any = true;
            for byte in label {
                match byte {
                    b'.' | b'\\' => write!(f, "\\{}", char::from(*byte))?,
                    byte if byte.is_ascii_graphic() => write!(f, "{}", char::from(*byte))?,
                    byte => write!(f, "\\{byte:03}")?,
                }
            }
            f.write_str(".")?;
        }
        if any { Ok(()) } else { f.write_str(".") }
    }
}

#[cfg(test)]
mod tests;
