//! What an issuer is: an identity goes in, a certificate with its key and its trust roots comes out.
//!
//! Leaves to others: when to ask and how often (`book`, `schedule`), and whether the answer is usable (`credential`).

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use mesh::SpiffeId;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroize;

use crate::csr::ChainError;
use crate::leaf::LeafError;

/// The answer of an [`Issuer`] under way.
pub type Issuing<'a> = Pin<Box<dyn Future<Output = Result<Issued, IssueError>> + Send + 'a>>;

/// A source of certificates: a CA on this machine, istiod, SPIRE.
pub trait Issuer: Send + Sync + 'static {
    /// Asks for a new certificate for `id`, with a new key. The caller bounds the wait and drops the future when it is over.
    fn issue<'a>(&'a self, id: &'a SpiffeId) -> Issuing<'a>;
}

/// One freshly issued certificate.
///
/// - `chain`: leaf first, then intermediates, without the root
/// - `roots`: whom to trust on connections made with this certificate; unparsable ones are skipped later
/// - `key`: the leaf's private key
#[derive(Debug)]
pub struct Issued {
    /// Leaf first, then intermediates; DER.
    pub chain: Vec<CertificateDer<'static>>,
    /// Trust roots delivered with this certificate; DER.
    pub roots: Vec<CertificateDer<'static>>,
    /// The leaf's private key.
    pub key: Key,
}

/// A private key in DER. Wiped when dropped, and never printed.
pub struct Key(PrivateKeyDer<'static>);

impl Key {
    /// Takes over a key in any of the three usual encodings.
    pub fn new(der: PrivateKeyDer<'static>) -> Self {
        Self(der)
    }

    /// The encoded key, for the TLS library only.
    pub(crate) fn der(&self) -> &PrivateKeyDer<'static> {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Why no certificate was issued. One text per error, cause included: it is shown as the state of an identity.
/// The texts of the first three are a contract.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The CA answered with an error, or not at all.
    #[error("signing gRPC error ({code}): {message}")]
    Signing {
        /// The gRPC code as text.
        code: String,
        /// What the CA said.
        message: String,
    },
    /// The certificate is for someone else.
    #[error("did not find expected SAN: {0}")]
    UnexpectedSan(SpiffeId),
    /// The CA answered without a certificate.
    #[error("chain returned from CA is empty for: {0}")]
    EmptyChain(SpiffeId),
    /// The CA sent no root that can be parsed, so no peer could be verified.
    #[error("no usable root came with the certificate for: {0}")]
    NoRoots(SpiffeId),
    /// The CA's answer is not what the protocol says.
    #[error("the CA's answer cannot be read: {0}")]
    Chain(ChainError),
    /// The leaf cannot be read.
    #[error("certificate cannot be read: {0}")]
    Leaf(LeafError),
    /// The TLS library refuses certificate or key.
    #[error("certificate or key refused by the TLS library: {0}")]
    Tls(rustls::Error),
    /// Making the certificate on this machine failed.
    #[error("making a certificate failed: {0}")]
    Make(rcgen::Error),
    /// The identity cannot be written into a certificate: not ASCII, or with a `/` inside one of its parts.
    #[error("identity cannot be written into a certificate: {0}")]
    Unwritable(SpiffeId),
    /// The CA's own certificate ends before the new one would begin.
    #[error("the CA's root certificate has expired")]
    RootExpired,
    /// The certificate was over before it came: the clock here or there is wrong.
    #[error("the certificate has expired already")]
    Expired,
    /// The issuer took too long.
    #[error("no answer from the issuer within {0:?}")]
    Deadline(Duration),
    /// The issuer panicked; the panic is already reported.
    #[error("the issuer failed unexpectedly")]
    Panicked,
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::PrivatePkcs8KeyDer;

    #[test]
    fn a_key_never_prints() {
        let key = Key::new(PrivatePkcs8KeyDer::from(vec![0x5a; 32]).into());
        let issued = Issued {
            chain: Vec::new(),
            roots: Vec::new(),
            key,
        };
        let text = format!("{issued:?}");
        assert!(text.contains("[redacted]"), "{text}");
        assert!(
            !text.contains("90") && !text.to_lowercase().contains("5a"),
            "{text}"
        );
    }

    #[test]
    fn texts_operators_read() {
        let id = SpiffeId::new("td", "ns", "sa");
        let signing = IssueError::Signing {
            code: "Unavailable".into(),
            message: "down".into(),
        };
        assert_eq!(
            signing.to_string(),
            "signing gRPC error (Unavailable): down"
        );
        assert_eq!(
            IssueError::UnexpectedSan(id.clone()).to_string(),
            "did not find expected SAN: spiffe://td/ns/ns/sa/sa"
        );
        assert_eq!(
            IssueError::EmptyChain(id).to_string(),
            "chain returned from CA is empty for: spiffe://td/ns/ns/sa/sa"
        );
    }
}
