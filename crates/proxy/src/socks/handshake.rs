//! The SOCKS5 handshake as a state machine: bytes in, answers and a decision out. Pure; reading and writing are left to the
//! caller.
//!
//! Only what is needed is taken: no authentication, CONNECT, and all three kinds of address.
//! Source: RFC 1928, sections 3 to 6.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The protocol's version, first byte of each message.
const VERSION: u8 = 5;
/// Method "no authentication required".
const NO_AUTHENTICATION: u8 = 0;
/// Command CONNECT.
const CONNECT: u8 = 1;
/// Kinds of address.
const V4: u8 = 1;
const NAME: u8 = 3;
const V6: u8 = 4;
/// Version, command, a reserved byte, kind of address, and the first byte of the address: it tells how long a name is.
const REQUEST_HEAD_BYTES: usize = 5;
/// The longest message: a request with a name of 255 bytes. A greeting has at most 257.
pub(super) const MESSAGE_BYTES_MAX: usize = REQUEST_HEAD_BYTES + 255 + 2;

/// Choice of "no authentication required".
const ACCEPTED: &[u8] = &[VERSION, NO_AUTHENTICATION];
/// None of the client's methods will do.
const NO_METHOD: &[u8] = &[VERSION, 0xff];

/// What a request is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// The connection will be made.
    Success,
    /// It cannot be, for a reason of the daemon's.
    General,
    /// The name was not resolved.
    Unresolved,
    /// The client asked for what is not there, or broke the protocol.
    Unsupported,
}

impl Reply {
    /// The answer's bytes; the bound address that they tell is 0.0.0.0:0.
    pub fn bytes(self) -> &'static [u8] {
        match self {
            Reply::Success => &[VERSION, 0, 0, V4, 0, 0, 0, 0, 0, 0],
            Reply::General => &[VERSION, 1, 0, V4, 0, 0, 0, 0, 0, 0],
            Reply::Unresolved => &[VERSION, 4, 0, V4, 0, 0, 0, 0, 0, 0],
            Reply::Unsupported => &[VERSION, 7, 0, V4, 0, 0, 0, 0, 0, 0],
        }
    }
}

/// Where a client wants to be connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// an address; IPv4 in IPv6 is told as IPv4
    Address(IpAddr, u16),
    /// a host name of printable ASCII, 1 to 255 bytes
    Name(String, u16),
}

/// Why a handshake is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Not SOCKS5 at all.
    #[error("version {0} instead of 5")]
    Version(u8),
    /// The client insists on authentication.
    #[error("the client offers no method without authentication")]
    Method,
    /// BIND, UDP ASSOCIATE, or nonsense.
    #[error("command {0} instead of CONNECT")]
    Command(u8),
    /// Neither IPv4, nor IPv6, nor a name.
    #[error("unknown kind of address {0}")]
    Kind(u8),
    /// The name is empty or holds what no name can.
    #[error("not a host name")]
    Name,
}

impl Violation {
    /// What the client is told before the connection is closed.
    pub fn answer(self) -> &'static [u8] {
        match self {
            Violation::Version(_) => &[],
            Violation::Method => NO_METHOD,
            Violation::Command(_) | Violation::Kind(_) | Violation::Name => {
                Reply::Unsupported.bytes()
            }
        }
    }
}

/// What is to be done after some bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Read more.
    Read,
    /// Send this, then read more.
    Answer(&'static [u8]),
    /// The client has said what it wants; it waits for a [`Reply`].
    Connect(Target),
    /// Send [`Violation::answer`] and close.
    Refuse(Violation),
}

/// Which message is awaited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Greeting,
    Request,
    Over,
}

/// One client's handshake.
#[derive(Debug)]
pub struct Handshake {
    stage: Stage,
    message: [u8; MESSAGE_BYTES_MAX],
    filled: usize,
}

impl Default for Handshake {
    fn default() -> Self {
        Self {
            stage: Stage::Greeting,
            message: [0; MESSAGE_BYTES_MAX],
            filled: 0,
        }
    }
}

impl Handshake {
    /// How many bytes to read at most: never one that is not the handshake's, so that what follows it stays unread.
    /// Zero once it is over.
    pub fn wants(&self) -> usize {
        self.length().saturating_sub(self.filled)
    }

    /// Takes bytes, and tells how many of them: those after a message are left.
    pub fn feed(&mut self, bytes: &[u8]) -> (usize, Next) {
        let mut taken = 0;
        loop {
            let some = self.wants().min(bytes.len() - taken);
            self.message[self.filled..][..some].copy_from_slice(&bytes[taken..][..some]);
            self.filled += some;
            taken += some;
            let next = self.look();
            // a longer message may have shown itself, which the bytes at hand may hold
            if next == Next::Read && taken < bytes.len() && self.wants() > 0 {
                continue;
            }
            return (taken, next);
        }
    }

    /// Length of the awaited message as far as it is known.
    fn length(&self) -> usize {
        match self.stage {
            Stage::Greeting if self.filled < 2 => 2,
            Stage::Greeting => 2 + usize::from(self.message[1]),
            Stage::Request if self.filled < REQUEST_HEAD_BYTES => REQUEST_HEAD_BYTES,
            Stage::Request => match self.message[3] {
                V4 => 4 + 4 + 2,
                V6 => 4 + 16 + 2,
                // other kinds are refused before their length matters
                _ => REQUEST_HEAD_BYTES + usize::from(self.message[4]) + 2,
            },
            Stage::Over => 0,
        }
    }

    /// What the bytes so far come to.
    fn look(&mut self) -> Next {
        let done = match self.stage {
            Stage::Greeting => self.greeting(),
            Stage::Request => self.request(),
            Stage::Over => return Next::Read,
        };
        match done {
            Ok(Next::Answer(answer)) => {
                (self.stage, self.filled) = (Stage::Request, 0);
                Next::Answer(answer)
            }
            Ok(Next::Read) => Next::Read,
            Ok(next) => self.end(next),
            Err(why) => self.end(Next::Refuse(why)),
        }
    }

    fn end(&mut self, next: Next) -> Next {
        (self.stage, self.filled) = (Stage::Over, 0);
        next
    }

    fn greeting(&self) -> Result<Next, Violation> {
        let message = &self.message[..self.filled];
        version(message)?;
        if message.len() < 2 || self.wants() > 0 {
            return Ok(Next::Read);
        }
        if message[2..].contains(&NO_AUTHENTICATION) {
            Ok(Next::Answer(ACCEPTED))
        } else {
            Err(Violation::Method)
        }
    }

    fn request(&self) -> Result<Next, Violation> {
        let message = &self.message[..self.filled];
        version(message)?;
        if let Some(&command) = message.get(1).filter(|c| **c != CONNECT) {
            return Err(Violation::Command(command));
        }
        if let Some(&kind) = message.get(3).filter(|k| ![V4, NAME, V6].contains(k)) {
            return Err(Violation::Kind(kind));
        }
        if message.len() < REQUEST_HEAD_BYTES || self.wants() > 0 {
            return Ok(Next::Read);
        }
        target(message).map(Next::Connect)
    }
}

fn version(message: &[u8]) -> Result<(), Violation> {
    match message.first() {
        Some(&other) if other != VERSION => Err(Violation::Version(other)),
        _ => Ok(()),
    }
}

/// The target of a whole request.
fn target(message: &[u8]) -> Result<Target, Violation> {
    let (address, port) = message[4..].split_at(message.len() - 4 - 2);
    let port = u16::from_be_bytes([port[0], port[1]]);
    if let Ok(v4) = <[u8; 4]>::try_from(address)
        && message[3] == V4
    {
        return Ok(Target::Address(Ipv4Addr::from(v4).into(), port));
    }
    if let Ok(v6) = <[u8; 16]>::try_from(address)
        && message[3] == V6
    {
        let address = IpAddr::from(Ipv6Addr::from(v6)).to_canonical();
        return Ok(Target::Address(address, port));
    }
    // the first byte is the length, which the whole message agrees with
    named(&address[1..], port)
}

fn named(name: &[u8], port: u16) -> Result<Target, Violation> {
    let name = std::str::from_utf8(name).map_err(|_| Violation::Name)?;
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Violation::Name);
    }
    Ok(match name.parse::<IpAddr>() {
        Ok(address) => Target::Address(address.to_canonical(), port),
        Err(_) => Target::Name(name.to_owned(), port),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREETING: &[u8] = &[5, 1, 0];

    /// All that comes of `bytes`, given in pieces of `size`, and how many of them were taken.
    fn all(bytes: &[u8], size: usize) -> (usize, Vec<Next>) {
        let (mut handshake, mut seen, mut taken) = (Handshake::default(), Vec::new(), 0);
        while taken < bytes.len() && handshake.wants() > 0 {
            let piece = &bytes[taken..bytes.len().min(taken + size)];
            let (some, next) = handshake.feed(piece);
            taken += some;
            if next != Next::Read {
                seen.push(next);
            }
        }
        (taken, seen)
    }

    fn asked(request: &[u8]) -> Option<Next> {
        let bytes = [GREETING, request].concat();
        let (_, mut whole) = all(&bytes, bytes.len());
        for size in 1..bytes.len() {
            assert_eq!(all(&bytes, size).1, whole, "in pieces of {size}");
        }
        assert_eq!(whole[0], Next::Answer(&[5, 0]));
        assert!(whole.len() <= 2);
        whole.drain(1..).next()
    }

    fn name(name: &[u8]) -> Vec<u8> {
        let len = u8::try_from(name.len()).unwrap();
        [&[5, 1, 0, 3, len], name, &[0x1f, 0x90]].concat()
    }

    #[test]
    fn all_kinds_of_address_are_understood() {
        let v4 = [5, 1, 0, 1, 10, 0, 0, 9, 0, 80];
        let to = |ip: &str, port| Some(Next::Connect(Target::Address(ip.parse().unwrap(), port)));
        assert_eq!(asked(&v4), to("10.0.0.9", 80));
        let v6 = |ip: &str| {
            let ip: Ipv6Addr = ip.parse().unwrap();
            [&[5, 1, 0, 4], &ip.octets()[..], &[1, 187]].concat()
        };
        assert_eq!(asked(&v6("fd00::9")), to("fd00::9", 443));
        assert_eq!(asked(&v6("::ffff:10.0.0.9")), to("10.0.0.9", 443));
        let named = |n: &str| Some(Next::Connect(Target::Name(n.to_owned(), 8080)));
        assert_eq!(asked(&name(b"web.shop")), named("web.shop"));
        let long = "a".repeat(255);
        assert_eq!(asked(&name(long.as_bytes())), named(&long));
        assert_eq!(asked(&name(b"10.0.0.9")), to("10.0.0.9", 8080));
        assert_eq!(asked(&name(b"fd00::9")), to("fd00::9", 8080));
    }

    #[test]
    fn what_is_not_offered_is_refused_with_its_answer() {
        let refused = |request: &[u8]| match asked(request) {
            Some(Next::Refuse(why)) => why,
            other => panic!("{other:?}"),
        };
        for (request, why) in [
            (&[4, 1, 0, 1][..], Violation::Version(4)),
            (&[5, 2, 0, 1], Violation::Command(2)),
            (&[5, 3, 0, 1], Violation::Command(3)),
            (&[5, 1, 0, 2], Violation::Kind(2)),
            (&[5, 1, 0, 0], Violation::Kind(0)),
            (&name(b""), Violation::Name),
            (&name(b"a b"), Violation::Name),
            (&name(b"a\0b"), Violation::Name),
            (&name(&[0xc3, 0xa4]), Violation::Name),
            (&name(&[0xff]), Violation::Name),
        ] {
            assert_eq!(refused(request), why, "{request:?}");
            let code = why.answer().get(1).copied();
            let wanted = (why != Violation::Version(4)).then_some(7);
            assert_eq!(code, wanted, "{why}");
        }
    }

    #[test]
    fn only_a_greeting_without_authentication_goes_on() {
        let first = |bytes: &[u8]| all(bytes, 1).1.first().cloned();
        assert_eq!(
            first(b"GET / HTTP/1.1"),
            Some(Next::Refuse(Violation::Version(b'G')))
        );
        assert_eq!(first(&[4, 1]), Some(Next::Refuse(Violation::Version(4))));
        assert_eq!(first(&[5, 0]), Some(Next::Refuse(Violation::Method)));
        assert_eq!(first(&[5, 2, 1, 2]), Some(Next::Refuse(Violation::Method)));
        assert_eq!(Violation::Method.answer(), [5, 0xff]);
        assert_eq!(first(&[5, 3, 2, 1, 0]), Some(Next::Answer(&[5, 0])));
        let many = [&[5, 255][..], &[0; 255]].concat();
        assert_eq!(first(&many), Some(Next::Answer(&[5, 0])));
        for part in [&[][..], &[5], &[5, 2, 0]] {
            assert_eq!(first(part), None, "{part:?}");
        }
    }

    #[test]
    fn what_follows_the_handshake_is_left_to_the_connection() {
        let request = [5, 1, 0, 1, 10, 0, 0, 9, 0, 80];
        let bytes = [GREETING, &request, b"GET /"].concat();
        for size in 1..=bytes.len() {
            let (taken, seen) = all(&bytes, size);
            assert_eq!(taken, GREETING.len() + request.len(), "in pieces of {size}");
            assert_eq!(seen.len(), 2);
        }
        let mut over = Handshake::default();
        over.feed(&[9]);
        assert_eq!(over.wants(), 0);
        assert_eq!(over.feed(&bytes), (0, Next::Read));
    }

    #[test]
    fn replies_are_those_of_the_contract() {
        let code = |reply: Reply| reply.bytes()[1];
        assert_eq!(Reply::Success.bytes(), [5, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(code(Reply::General), 1);
        assert_eq!(code(Reply::Unresolved), 4);
        assert_eq!(code(Reply::Unsupported), 7);
    }
}
