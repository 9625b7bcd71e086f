//! HBONE: HTTP/2 CONNECT tunnels over any byte stream, and the pool that shares them.
//!
//! Here: the HTTP/2 parameters, the CONNECT request and its headers, both ends of a connection, PING keepalive, the
//! tunnel as a byte stream with back-pressure, and the client's pool. Left to others: TCP and TLS (a finished stream
//! comes in), which destination gets which tunnel, and policy; the pool's key is opaque to it.
//!
//! ```text
//! client   handshake(io) -> (Sender, Driver)    Driver is polled by a task of its own
//!          Sender::connect(&Connect) -> Tunnel  or, shared: Pool::get(&key, dial) -> Slot, Slot::connect(&Connect)
//! server   Server::handshake(io), accept() -> Request { head, reply }, Reply::accept | Reply::refuse
//! both     Tunnel::split() -> (SendHalf, RecvHalf), or Tunnel::into_io() for AsyncRead + AsyncWrite
//! ```
//!
//! Everything needs a tokio runtime with a timer; [`Pool`] also needs `spawn_local`.
#![forbid(unsafe_code)]

mod authority;
mod baggage;
mod client;
mod error;
mod forwarded;
mod head;
mod io;
mod keepalive;
mod paced;
mod pool;
mod server;
mod settings;
mod traceparent;
mod tunnel;

pub use authority::{Authority, AuthorityError, Host};
pub use baggage::{Baggage, WorkloadKind};
pub use client::{Driver, Sender, Slot, handshake};
pub use error::{ConnectError, ConnectionError, HandshakeError, TunnelError};
pub use forwarded::Forwarded;
pub use head::{BadRequest, Connect, Head};
pub use http::{HeaderValue, StatusCode};
pub use io::TunnelIo;
pub use pool::{GetError, Pool, WAIT_MAX};
pub use server::{Reply, Request, Server};
pub use settings::Settings;
pub use traceparent::{Traceparent, TraceparentError};
pub use tunnel::{RecvHalf, SendHalf, Tunnel};

/// TCP port on which pods and waypoints take tunnels.
pub const PORT: u16 = 15008;

/// The only TLS application protocol of a tunnel's connection (ALPN).
pub const ALPN: &[u8] = b"h2";
