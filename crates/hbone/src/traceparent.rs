//! The `traceparent` header: one id that ties the log lines of a connection's two ends together. It is not tracing;
//! version and flags are carried, not interpreted.

use std::fmt;
use std::str::FromStr;

use rand::RngCore;

/// Length of the only form taken, bytes.
const LEN: usize = 55;

/// A trace id and a span id (W3C Trace Context, section 3.2). Prints in lower-case hex.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Traceparent {
    version: u8,
    trace: u128,
    span: u64,
    flags: u8,
}

/// The text is not 55 characters of `2-32-16-2` hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent")]
pub struct TraceparentError;

impl Traceparent {
    /// A fresh one: version and flags 0, ids random and never zero.
    pub fn random(rng: &mut impl RngCore) -> Self {
        let mut id = [0; 16];
        rng.fill_bytes(&mut id);
        Traceparent {
            version: 0,
            trace: u128::from_be_bytes(id).max(1),
            span: rng.next_u64().max(1),
            flags: 0,
        }
    }

    /// The trace id: the same at both ends of a tunnel.
    pub fn trace(&self) -> u128 {
        self.trace
    }

    /// The span id.
    pub fn span(&self) -> u64 {
        self.span
    }
}

impl FromStr for Traceparent {
    type Err = TraceparentError;

    fn from_str(text: &str) -> Result<Self, TraceparentError> {
        let bytes = text.as_bytes();
        if bytes.len() != LEN || [2, 35, 52].iter().any(|&at| bytes[at] != b'-') {
            return Err(TraceparentError);
        }
        Ok(Traceparent {
            version: hex(&bytes[0..2])? as u8,
            trace: hex(&bytes[3..35])?,
            span: hex(&bytes[36..52])? as u64,
            flags: hex(&bytes[53..55])? as u8,
        })
    }
}

/// Reads up to 32 hex digits and nothing else.
fn hex(digits: &[u8]) -> Result<u128, TraceparentError> {
    digits.iter().try_fold(0, |value: u128, &digit| {
        let digit = char::from(digit).to_digit(16).ok_or(TraceparentError)?;
        Ok(value << 4 | u128::from(digit))
    })
}

impl fmt::Display for Traceparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:02x}-{:032x}-{:016x}-{:02x}",
            self.version, self.trace, self.span, self.flags
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    #[test]
    fn random_ones_have_the_form_of_the_contract() {
        let mut rng = SmallRng::seed_from_u64(1);
        let first = Traceparent::random(&mut rng);
        let text = first.to_string();
        assert_eq!(text.len(), LEN);
        assert!(text.starts_with("00-") && text.ends_with("-00"), "{text}");
        assert_eq!(text.parse(), Ok(first));
        assert_ne!(Traceparent::random(&mut rng), first);
    }

    #[test]
    fn takes_any_version_flags_and_case() {
        let text = "ff-0123456789ABCDEF0123456789abcdef-0123456789abcdef-01";
        let parsed: Traceparent = text.parse().unwrap();
        assert_eq!(parsed.to_string(), text.to_ascii_lowercase());
        assert_eq!(parsed.trace(), 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        assert_eq!(parsed.span(), 0x0123_4567_89ab_cdef);
    }

    #[test]
    fn refuses_everything_else_without_panic() {
        let good = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-00";
        let mut bad: Vec<String> = (0..LEN)
            .flat_map(|at| ["g", "+", " ", "-"].map(|odd| (at, odd)))
            .filter(|&(at, odd)| !(odd == "-" && [2, 35, 52].contains(&at)))
            .map(|(at, odd)| format!("{}{odd}{}", &good[..at], &good[at + 1..]))
            .collect();
        bad.push(String::new());
        bad.push(good[1..].to_owned());
        bad.push(format!("{good}0"));
        bad.push("-".repeat(LEN));
        // 55 bytes that are not 55 characters, with a character across each cut.
        bad.push("\u{e9}".repeat(27) + "0");
        bad.push("0".to_owned() + &"\u{e9}".repeat(27));
        for text in bad {
            assert_eq!(
                text.parse::<Traceparent>(),
                Err(TraceparentError),
                "{text:?}"
            );
        }
    }
}
