//! What can end a handshake, a connection, a CONNECT and a tunnel. One enum per question; texts as the access log
//! prints them.

use std::time::Duration;

use h2::Reason;
use http::StatusCode;

/// Why no HTTP/2 connection came about.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The client did not open with the HTTP/2 connection preface: HTTP/1.1, or no HTTP at all.
    #[error("http2 handshake failed: peer does not speak HTTP/2")]
    Preface,
    /// The peer neither sent nor took the preface in time.
    #[error("http2 handshake failed: no progress within {0:?}")]
    Timeout(Duration),
    /// The connection broke during the handshake.
    #[error("http2 handshake failed: {0}")]
    H2(#[source] h2::Error),
}

/// Why a connection ended other than by agreement.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// A PING stayed unanswered for this long.
    #[error("h2 failed: PING unanswered for {0:?}")]
    PingTimeout(Duration),
    /// This side cut it, see [`Driver::cut_when`](crate::Driver::cut_when).
    #[error("connection cut")]
    Cut,
    /// The transport broke, or one side broke the protocol.
    #[error("h2 failed: {0}")]
    H2(#[from] h2::Error),
}

/// Why a CONNECT gave no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The peer answered with something other than 200.
    #[error("http status: {0}")]
    Status(StatusCode),
    /// The request cannot be written as HTTP/2; the name of the part that is wrong.
    #[error("h2 failed: {0} cannot be sent as a header")]
    Unsendable(&'static str),
    /// The connection broke before an answer came: the peer closed it, reset it, or sent a TLS alert.
    #[error("io error: {0}")]
    Io(#[source] h2::Error),
    /// HTTP/2 failed before an answer came: the stream was reset, or the connection was closed by GOAWAY.
    #[error("h2 failed: {0}")]
    H2(#[source] h2::Error),
}

impl From<h2::Error> for ConnectError {
    fn from(error: h2::Error) -> Self {
        if error.is_io() {
            ConnectError::Io(error)
        } else {
            ConnectError::H2(error)
        }
    }
}

impl ConnectError {
    /// Whether the connection went away under an unanswered CONNECT, without a word of whether the peer acted on it:
    /// most likely it had gone before. Not where the peer sent what makes no sense, such as a TLS alert: it would do so
    /// again.
    pub fn peer_left(&self) -> bool {
        match self {
            ConnectError::Io(error) => error
                .get_io()
                .is_some_and(|io| io.kind() != std::io::ErrorKind::InvalidData),
            _ => false,
        }
    }

    /// Whether the peer tells that it did not act on the CONNECT: it may be asked again on another connection.
    ///
    /// Source: RFC 9113, sections 6.8 and 8.7.
    pub fn is_unserved(&self) -> bool {
        match self {
            ConnectError::H2(error) => {
                error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM)
            }
            _ => false,
        }
    }
}

/// Why bytes no longer move in one direction of a tunnel. A connection that the peer closes under its tunnels, in TLS's way
/// or without a word, is [`TunnelError::Gone`]; one that breaks is not.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The peer no longer reads, without calling it an error: a broken pipe, which a copier ignores.
    #[error("broken pipe")]
    Gone,
    /// The peer reset the stream with an error code.
    #[error("h2 failed: stream reset: {0}")]
    Reset(Reason),
    /// The connection under the tunnel failed.
    #[error("h2 failed: {0}")]
    H2(#[source] h2::Error),
}

impl TunnelError {
    /// True for an end that is no error: the peer closed its side early.
    pub fn is_gone(&self) -> bool {
        matches!(self, TunnelError::Gone)
    }

    /// True for a reset with INTERNAL_ERROR: how Envoy lets go of a tunnel that its pool no longer needs, whether or not
    /// anything was lost. What it means depends on who is told: see the copier.
    pub fn is_let_go(&self) -> bool {
        matches!(self, TunnelError::Reset(Reason::INTERNAL_ERROR))
    }

    /// What a received RST_STREAM with `reason` means to the sending side.
    pub(crate) fn from_reason(reason: Reason) -> Self {
        match reason {
            Reason::NO_ERROR | Reason::CANCEL | Reason::STREAM_CLOSED => TunnelError::Gone,
            other => TunnelError::Reset(other),
        }
    }

    /// Sorts an error of h2 on a stream.
    pub(crate) fn from_h2(error: h2::Error) -> Self {
        match error.reason() {
            Some(reason) if error.is_reset() => TunnelError::from_reason(reason),
            _ if is_end(&error) => TunnelError::Gone,
            _ => TunnelError::H2(error),
        }
    }

    /// The same on a connection that may not have ended in good order; its end is an error then.
    ///
    /// - `lost`: it has
    pub(crate) fn from_h2_on(error: h2::Error, lost: bool) -> Self {
        if lost && is_end(&error) {
            return TunnelError::H2(error);
        }
        TunnelError::from_h2(error)
    }
}

/// Whether the peer closed the connection: with close_notify (h2 tells of a broken pipe), or without.
fn is_end(error: &h2::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, UnexpectedEof};
    error
        .get_io()
        .is_some_and(|io| matches!(io.kind(), BrokenPipe | UnexpectedEof))
}

impl From<TunnelError> for std::io::Error {
    fn from(error: TunnelError) -> Self {
        let kind = match &error {
            TunnelError::Gone => std::io::ErrorKind::BrokenPipe,
            TunnelError::Reset(_) => std::io::ErrorKind::ConnectionReset,
            TunnelError::H2(cause) => cause
                .get_io()
                .map_or(std::io::ErrorKind::ConnectionAborted, std::io::Error::kind),
        };
        std::io::Error::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reset_codes_are_sorted_as_the_contract_says() {
        for reason in [Reason::NO_ERROR, Reason::CANCEL, Reason::STREAM_CLOSED] {
            assert!(TunnelError::from_reason(reason).is_gone(), "{reason:?}");
        }
        for reason in [
            Reason::PROTOCOL_ERROR,
            Reason::INTERNAL_ERROR,
            Reason::REFUSED_STREAM,
            Reason::ENHANCE_YOUR_CALM,
        ] {
            assert!(!TunnelError::from_reason(reason).is_gone(), "{reason:?}");
        }
    }

    #[test]
    fn texts_are_those_of_the_access_log() {
        let refused = ConnectError::Status(StatusCode::UNAUTHORIZED);
        assert_eq!(refused.to_string(), "http status: 401 Unauthorized");
        let odd = ConnectError::Status(StatusCode::from_u16(503).unwrap());
        assert_eq!(odd.to_string(), "http status: 503 Service Unavailable");
        let handshake = HandshakeError::Preface.to_string();
        assert!(
            handshake.starts_with("http2 handshake failed: "),
            "{handshake}"
        );
        let ping = ConnectionError::PingTimeout(Duration::from_secs(20)).to_string();
        assert_eq!(ping, "h2 failed: PING unanswered for 20s");
    }
}
