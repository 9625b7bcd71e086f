//! Laws of the SOCKS5 handshake, driven by `cargo test` with fixed seeds and by `fuzz/`.

use std::net::IpAddr;

use super::handshake::{Handshake, MESSAGE_BYTES_MAX, Next, Target};

/// Longest handshake: a greeting of 257 bytes, then a request.
const HANDSHAKE_BYTES_MAX: usize = 257 + MESSAGE_BYTES_MAX;

/// Law: whatever a client sends, in whatever pieces, the handshake ends or waits for more; it comes to the same as with all
/// bytes at once, takes no byte of what follows it, and a target that it tells is the one that was asked for.
///
/// - `bytes`: sizes of the pieces in the first one (0 = all at once), then what the client sends
///
/// Panics: the law does not hold.
pub fn takes_any_handshake(bytes: &[u8]) {
    let Some((&size, sent)) = bytes.split_first() else {
        return;
    };
    let whole = outcome(sent, sent.len());
    let pieces = outcome(sent, usize::from(size));
    assert_eq!(pieces.said, whole.said);
    assert!(whole.taken.max(pieces.taken) <= HANDSHAKE_BYTES_MAX);
    if let Some(Next::Connect(target)) = whole.said.last() {
        assert_eq!(pieces.taken, whole.taken);
        let again = [&[5, 1, 0], &*request(target)].concat();
        let found = outcome(&again, again.len());
        assert_eq!(found.taken, again.len());
        assert_eq!(found.said.last(), whole.said.last());
    }
}

/// What came of it: how many bytes were taken, and all that was to be done but read.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    taken: usize,
    said: Vec<Next>,
}

fn outcome(sent: &[u8], size: usize) -> Outcome {
    let (mut handshake, mut taken, mut said) = (Handshake::default(), 0, Vec::new());
    while taken < sent.len() && handshake.wants() > 0 {
        let end = sent.len().min(taken + size.max(1));
        let (some, next) = handshake.feed(&sent[taken..end]);
        assert!(some > 0 && some <= end - taken);
        taken += some;
        let over = matches!(next, Next::Connect(_) | Next::Refuse(_));
        assert_eq!(over, handshake.wants() == 0);
        if next != Next::Read {
            said.push(next);
        }
    }
    if handshake.wants() == 0 {
        assert_eq!(handshake.feed(&sent[taken..]), (0, Next::Read));
    }
    assert!(said.len() <= 2);
    Outcome { taken, said }
}

/// A request for `target`.
fn request(target: &Target) -> Vec<u8> {
    let (kind, address, port) = match target {
        Target::Address(IpAddr::V4(ip), port) => (1, ip.octets().to_vec(), port),
        Target::Address(IpAddr::V6(ip), port) => (4, ip.octets().to_vec(), port),
        Target::Name(name, port) => {
            let len = u8::try_from(name.len()).expect("one byte told how long it is");
            (3, [&[len], name.as_bytes()].concat(), port)
        }
    };
    [&[5, 1, 0, kind], &*address, &port.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// Bytes that are a handshake for the most part.
    fn likely(rng: &mut SmallRng) -> Vec<u8> {
        let mut bytes = vec![rng.random(), 5, 1, 0, 5, 1, 0];
        bytes.push([1, 3, 4, rng.random()][rng.random_range(0..4)]);
        bytes.push(rng.random_range(0..20));
        let len = rng.random_range(0..300);
        bytes.extend((0..len).map(|_| rng.random_range(b' '..=b'z')));
        if rng.random_ratio(1, 2) {
            let at = rng.random_range(0..bytes.len());
            bytes[at] = rng.random();
        }
        bytes
    }

    #[test]
    fn the_law_holds_for_many() {
        let mut rng = SmallRng::seed_from_u64(5);
        let mut connected = 0;
        for _ in 0..20_000 {
            let bytes = likely(&mut rng);
            takes_any_handshake(&bytes);
            let said = outcome(&bytes[1..], bytes.len()).said;
            connected += usize::from(matches!(said.last(), Some(Next::Connect(_))));
        }
        assert!(connected > 2_000, "{connected} with a target");
        for _ in 0..20_000 {
            let len = rng.random_range(0..600);
            let bytes: Vec<u8> = (0..len).map(|_| rng.random()).collect();
            takes_any_handshake(&bytes);
        }
    }
}
