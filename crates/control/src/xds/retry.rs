//! When to try again after a stream has ended: a pure decision.

use std::time::Duration;

use tonic::{Code, Status};

/// First pause, and the one after an end that is part of ordinary life.
pub(super) const BACKOFF_MIN: Duration = Duration::from_millis(10);
/// Longest pause.
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(15);

/// How gRPC libraries say that the connection went away in good order.
const ORDERLY: [&str; 2] = ["transport is closing", "received prior goaway"];

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It never began: no connection, or the call was refused.
    NotOpened,
    /// With a status, or cut off. `orderly`: part of ordinary life.
    Failed { orderly: bool },
    /// Something is wrong on this side: no usable roots, the server takes no requests any more.
    Local,
    /// The server ended it without complaint.
    Complete,
}

impl End {
    /// What `status` means for a stream that was up.
    pub(super) fn of(status: &Status) -> Self {
        let text = status.message();
        let orderly = match status.code() {
            _ if goes_away(status) => true,
            Code::Unknown | Code::Cancelled | Code::DeadlineExceeded => true,
            Code::Unavailable => ORDERLY.iter().any(|phrase| text.contains(phrase)),
            _ => false,
        };
        Self::Failed { orderly }
    }
}

/// Whether the HTTP/2 connection went away, in good order or by being cut. tonic makes other codes of these, depending on how it is
/// built; to gRPC both are "unavailable, the transport is closing".
fn goes_away(status: &Status) -> bool {
    let mut next = std::error::Error::source(status);
    while let Some(cause) = next {
        if let Some(error) = cause.downcast_ref::<h2::Error>() {
            let done = error.reason() == Some(h2::Reason::NO_ERROR);
            return error.is_io() || (error.is_go_away() && done);
        }
        next = cause.source();
    }
    false
}

/// Why a stream ended, as the metric says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    ConnectionError,
    Reconnect,
    Error,
    Complete,
}

impl Reason {
    pub(super) const ALL: [Self; 4] = [
        Self::ConnectionError,
        Self::Reconnect,
        Self::Error,
        Self::Complete,
    ];

    /// Label value of `istio_xds_connection_terminations_total`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::ConnectionError => "ConnectionError",
            Self::Reconnect => "Reconnect",
            Self::Error => "Error",
            Self::Complete => "Complete",
        }
    }
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Next {
    /// Before the next attempt.
    pub pause: Duration,
    /// To be handed in the next time.
    pub backoff: Duration,
    pub reason: Reason,
}

/// Decides on the next attempt.
///
/// - `backoff`: [`BACKOFF_MIN`] at first, then what the last decision said
pub(super) fn after(end: End, backoff: Duration) -> Next {
    let longer = (backoff * 2).min(BACKOFF_MAX);
    let (pause, backoff, reason) = match end {
        End::NotOpened => (longer, longer, Reason::ConnectionError),
        End::Failed { orderly: true } => (BACKOFF_MIN, BACKOFF_MIN, Reason::Reconnect),
        End::Failed { orderly: false } => (longer, longer, Reason::Error),
        // a fault of our own does not heal by asking at full speed
        End::Local => (longer, longer, Reason::Error),
        // a moment, for the sake of both sides, should the server do that for ever
        End::Complete => (BACKOFF_MIN, BACKOFF_MIN, Reason::Complete),
    };
    Next {
        pause,
        backoff,
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn each_end_has_its_pause() {
        let ms = Duration::from_millis;
        let cases = [
            (End::NotOpened, 10, 20, 20, Reason::ConnectionError),
            (
                End::NotOpened,
                5_000,
                10_000,
                10_000,
                Reason::ConnectionError,
            ),
            (
                End::NotOpened,
                10_000,
                15_000,
                15_000,
                Reason::ConnectionError,
            ),
            (
                End::NotOpened,
                15_000,
                15_000,
                15_000,
                Reason::ConnectionError,
            ),
            (
                End::Failed { orderly: true },
                5_000,
                10,
                10,
                Reason::Reconnect,
            ),
            (End::Failed { orderly: false }, 10, 20, 20, Reason::Error),
            (
                End::Failed { orderly: false },
                9_000,
                15_000,
                15_000,
                Reason::Error,
            ),
            (End::Local, 10, 20, 20, Reason::Error),
            (End::Complete, 5_000, 10, 10, Reason::Complete),
        ];
        for (end, backoff, pause, then, reason) in cases {
            let expected = Next {
                pause: ms(pause),
                backoff: ms(then),
                reason,
            };
            assert_eq!(
                after(end, ms(backoff)),
                expected,
                "{end:?} after {backoff} ms"
            );
        }
    }

    #[test]
    fn what_a_status_means() {
        let orderly = |status: &Status| End::of(status) == End::Failed { orderly: true };
        for code in 1..=16 {
            let code = Code::from_i32(code);
            let expected = matches!(
                code,
                Code::Unknown | Code::Cancelled | Code::DeadlineExceeded
            );
            assert_eq!(orderly(&Status::new(code, "x")), expected, "{code:?}");
        }
        for (text, expected) in [
            ("error reading: transport is closing", true),
            ("closing transport: received prior goaway", true),
            ("no healthy upstream", false),
        ] {
            assert_eq!(orderly(&Status::unavailable(text)), expected, "{text}");
            assert!(!orderly(&Status::internal(text)), "{text}");
        }
    }

    #[test]
    fn a_connection_that_goes_away_in_good_order_is_told_from_a_broken_one() {
        let mut status = Status::internal("h2 protocol error");
        status.set_source(Arc::new(h2::Error::from(h2::Reason::PROTOCOL_ERROR)));
        assert_eq!(End::of(&status), End::Failed { orderly: false });
    }
}
