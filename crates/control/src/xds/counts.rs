//! What happened on the subscription, for metrics and the dump.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::retry::Reason;
use super::subscriber::Kind;

/// Types of responses that are told apart: those subscribed to, and the rest.
const TYPES: usize = Kind::ALL.len() + 1;
/// The name of the rest; a server may send any number of others.
const URL_OTHER: &str = "other";
/// Longest text that is kept, in bytes.
const TEXT_BYTES_MAX: usize = 4096;

/// A copy of all counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    /// Ends of streams and of attempts, by reason (`istio_xds_connection_terminations_total`).
    pub terminations: [(&'static str, u64); Reason::ALL.len()],
    /// What came, by type.
    pub types: [TypeCounts; TYPES],
    /// Whether a stream is open.
    pub connected: bool,
    /// Why the last stream or attempt ended, with its causes.
    pub last_error: Option<String>,
    /// What the last refusal of a response said.
    pub last_nack: Option<String>,
}

/// Counters of one type of responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TypeCounts {
    /// Type URL, or `other`.
    pub url: &'static str,
    /// Responses (`istio_xds_message_total`).
    pub messages: u64,
    /// Bytes of their resources (`istio_xds_message_bytes_total`).
    pub bytes: u64,
    /// Resources that were refused.
    pub rejected: u64,
}

/// The counters.
#[derive(Debug, Default)]
pub(super) struct Book(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    terminations: [u64; Reason::ALL.len()],
    types: [(u64, u64, u64); TYPES],
    connected: bool,
    last_error: Option<String>,
    last_nack: Option<String>,
}

impl Book {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn read(&self) -> Counts {
        let inner = self.lock();
        Counts {
            terminations: Reason::ALL
                .map(|reason| (reason.name(), inner.terminations[reason as usize])),
            types: std::array::from_fn(|at| {
                let (messages, bytes, rejected) = inner.types[at];
                TypeCounts {
                    url: Kind::ALL.get(at).map_or(URL_OTHER, |kind| kind.url()),
                    messages,
                    bytes,
                    rejected,
                }
            }),
            connected: inner.connected,
            last_error: inner.last_error.clone(),
            last_nack: inner.last_nack.clone(),
        }
    }

    pub(super) fn opened(&self) {
        self.lock().connected = true;
    }

    pub(super) fn ended(&self, reason: Reason, error: Option<&str>) {
        let mut inner = self.lock();
        inner.connected = false;
        inner.terminations[reason as usize] += 1;
        if let Some(error) = error {
            inner.last_error = Some(cut(error));
        }
    }

    pub(super) fn took(&self, kind: Option<Kind>, bytes: u64, rejected: usize) {
        let at = Kind::ALL
            .iter()
            .position(|of| Some(*of) == kind)
            .unwrap_or(Kind::ALL.len());
        let counts = &mut self.lock().types[at];
        counts.0 += 1;
        counts.1 += bytes;
        counts.2 += rejected as u64;
    }

    pub(super) fn refused(&self, text: &str) {
        self.lock().last_nack = Some(cut(text));
    }
}

fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_counted_under_its_name() {
        let book = Book::default();
        book.opened();
        assert!(book.read().connected);
        book.took(Some(Kind::Authorization), 7, 1);
        book.took(None, 5, 0);
        book.took(None, 5, 0);
        book.refused(&"ä".repeat(TEXT_BYTES_MAX));
        book.ended(Reason::Reconnect, Some("gone"));
        book.ended(Reason::Complete, None);
        let counts = book.read();
        assert!(!counts.connected);
        assert_eq!(
            counts.terminations,
            [
                ("ConnectionError", 0),
                ("Reconnect", 1),
                ("Error", 0),
                ("Complete", 1)
            ]
        );
        let told: Vec<_> = counts
            .types
            .iter()
            .map(|t| {
                (
                    t.url.rsplit('/').next().unwrap(),
                    t.messages,
                    t.bytes,
                    t.rejected,
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                ("istio.workload.Address", 0, 0, 0),
                ("istio.security.Authorization", 1, 7, 1),
                ("other", 2, 10, 0),
            ]
        );
        assert_eq!(counts.last_error.as_deref(), Some("gone"));
        assert_eq!(counts.last_nack.unwrap().len(), TEXT_BYTES_MAX);
    }
}
