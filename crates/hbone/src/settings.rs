//! The HTTP/2 parameters of both ends. What they do on the wire is in `client.rs` and `server.rs`.

use std::time::Duration;

/// Smallest and largest value SETTINGS_MAX_FRAME_SIZE may have (RFC 9113, section 6.5.2).
const FRAME_SIZE_RANGE: std::ops::RangeInclusive<u32> = 16_384..=16_777_215;
/// Streams reset by this side that are remembered for a moment, so that frames still on their way to them are ignored
/// rather than counted as the peer's fault. As many as a peer may have open by default.
pub(crate) const RESETS_KEPT: usize = 200;

/// Largest flow-control window (RFC 9113, section 6.9.1).
const WINDOW_MAX: u32 = (1 << 31) - 1;

/// HTTP/2 parameters of a connection. The default is the HBONE contract; one value serves both ends.
///
/// Values beyond what HTTP/2 can express are brought to the nearest it can.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Receive window of one stream, bytes (SETTINGS_INITIAL_WINDOW_SIZE).
    pub stream_window: u32,
    /// Receive window of the whole connection, bytes.
    pub connection_window: u32,
    /// Largest frame accepted, bytes (SETTINGS_MAX_FRAME_SIZE).
    pub frame_size: u32,
    /// Client: streams opened on one connection at most; the peer's limit counts too.
    pub client_streams: usize,
    /// Server: streams a peer may have open (SETTINGS_MAX_CONCURRENT_STREAMS).
    pub server_streams: u32,
    /// Client: bytes of response headers accepted (SETTINGS_MAX_HEADER_LIST_SIZE).
    pub client_header_list: u32,
    /// Server: bytes of request headers accepted (SETTINGS_MAX_HEADER_LIST_SIZE).
    pub server_header_list: u32,
    /// Client: bytes one stream may hold that the connection has not written yet.
    pub client_send_buffer: usize,
    /// Server: the same.
    pub server_send_buffer: usize,
    /// Wait before the first PING, and between an answer and the next PING.
    pub ping_interval: Duration,
    /// How long a PING may stay unanswered before the connection is given up.
    pub ping_timeout: Duration,
    /// Longest wait for the connection preface to be written, or at the server to be read.
    pub handshake_timeout: Duration,
    /// Pool: a connection not asked for during this time is released.
    pub pool_idle: Duration,
    /// Pool: connections kept at most.
    pub pool_size: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            stream_window: 4 << 20,
            connection_window: 16 << 20,
            frame_size: 1 << 20,
            client_streams: 100,
            server_streams: 200,
            client_header_list: 16 << 10,
            server_header_list: 64 << 10,
            client_send_buffer: 4 << 20,
            server_send_buffer: 400 << 10,
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(20),
            handshake_timeout: Duration::from_secs(10),
            pool_idle: Duration::from_secs(5 * 60),
            pool_size: 500,
        }
    }
}

impl Settings {
    /// `stream_window` as HTTP/2 can carry it.
    pub(crate) fn stream_window_sent(&self) -> u32 {
        self.stream_window.min(WINDOW_MAX)
    }

    /// `connection_window` as HTTP/2 can carry it.
    pub(crate) fn connection_window_sent(&self) -> u32 {
        self.connection_window.min(WINDOW_MAX)
    }

    /// `frame_size` as HTTP/2 can carry it.
    pub(crate) fn frame_size_sent(&self) -> u32 {
        self.frame_size
            .clamp(*FRAME_SIZE_RANGE.start(), *FRAME_SIZE_RANGE.end())
    }

    /// How much bookkeeping received small DATA frames may cost before the connection is closed as abused, bytes: h2
    /// charges 256 less the length for each that nobody has taken from it. That is about what it keeps beside the
    /// payload, so this at most doubles what the window lets a peer store here.
    ///
    /// At 65,000 frames that is too little for a stream that nobody asks, and the end takes all streams along: a copier
    /// has to go on taking while its other side blocks ([`RecvHalf::poll_keep`](crate::RecvHalf::poll_keep)). What
    /// comes on a stream after this side has reset it stays charged until larger frames come.
    pub(crate) fn data_frame_budget(&self) -> usize {
        self.connection_window_sent() as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_brought_into_the_range_of_http2() {
        let wild = Settings {
            stream_window: u32::MAX,
            connection_window: u32::MAX,
            frame_size: 1,
            ..Settings::default()
        };
        assert_eq!(wild.stream_window_sent(), (1 << 31) - 1);
        assert_eq!(wild.connection_window_sent(), (1 << 31) - 1);
        assert_eq!(wild.frame_size_sent(), 16_384);
        let large = Settings {
            frame_size: u32::MAX,
            ..Settings::default()
        };
        assert_eq!(large.frame_size_sent(), 16_777_215);
    }
}
