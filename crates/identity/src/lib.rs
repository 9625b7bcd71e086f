//! Keys, certificates and the TLS that is made of them: who a workload is, and how a peer proves who it is.
//!
//! - [`Issuer`] gives out certificates; [`EmbeddedCa`] is the one for a single machine; [`csr::Request`] asks any other.
//! - [`Certs`] keeps one current [`Credential`] per identity: fetches, renews before expiry, retries.
//! - [`Credential`] is a certificate with its key as TLS configurations for both ends of an HBONE tunnel.
//! - [`Crl`] holds what was taken back, and [`Watch`] an open tunnel's path against it.
//!
//! Left to others: who connects where and who is expected there (`mesh`), the sockets (`proxy`), and
//! issuers that need a network (`control`). Private keys never leave this crate's types and never print.
#![forbid(unsafe_code)]

mod book;
mod certs;
mod credential;
mod crl;
pub mod csr;
mod dump;
mod embedded;
mod issue;
mod leaf;
mod schedule;
mod tls;
mod verify;

pub use certs::{Certs, Config, IdentityError, Worker};
pub use credential::Credential;
pub use crl::{CRL_BYTES_MAX, Crl, CrlError, Side, Watch};
pub use dump::{CertDump, CertificateView};
pub use embedded::{EmbeddedCa, OpenError};
pub use issue::{IssueError, Issued, Issuer, Issuing, Key};
pub use leaf::{LeafError, Validity};
pub use schedule::{EmptyValidity, renew_at, retry_delay};
pub use tls::{ALPN_H2, Tls};
pub use verify::{PeerError, peer_id};
