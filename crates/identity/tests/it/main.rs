//! Real TLS handshakes over in-memory pipes, and the life of certificates on a paused clock.

mod certs;
mod handshake;
mod pki;
mod revocation;
mod rotation;
mod shared_root;
