//! Who the other end of a TLS connection is, and whether it may be: chain, purpose, time, SPIFFE names.
//!
//! Leaves to others: what the peer may do once it is known (`mesh::authorize`).

use std::fmt;
use std::io;
use std::sync::Arc;

use mesh::SpiffeId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};
use tracing::warn;

use crate::crl::path::{self, Asked};
use crate::crl::{Crl, Side};
use crate::leaf;

/// How many identities one error text names; a certificate can hold thousands.
const NAMED_MAX: usize = 8;

/// A peer with a valid chain that is nevertheless not the one expected.
///
/// It travels inside the `io::Error` of a failed handshake: [`PeerError::within`] finds it there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// Connecting side: none of the server's identities is expected.
    #[error(
        "identity verification error: peer did not present the expected SAN ({}), got {}",
        Names(expected),
        Names(presented)
    )]
    UnexpectedServer {
        /// Identities that would do.
        expected: Arc<[SpiffeId]>,
        /// Identities the server's certificate holds.
        presented: Vec<SpiffeId>,
    },
    /// Accepting side: no identity of our trust domain.
    #[error("peer did not present the expected trustdomain")]
    ForeignTrustDomain,
}

impl PeerError {
    /// The reason inside the error of a handshake, if it is one of these.
    pub fn within(error: &io::Error) -> Option<&Self> {
        match error.get_ref()?.downcast_ref()? {
            Error::Other(OtherError(why)) => why.downcast_ref(),
            _ => None,
        }
    }
}

impl From<PeerError> for Error {
    fn from(why: PeerError) -> Self {
        Self::Other(OtherError(Arc::new(why)))
    }
}

/// Identities as one text: `a, b`; `none` when empty; cut after [`NAMED_MAX`].
struct Names<'a>(&'a [SpiffeId]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (at, id) in self.0.iter().take(NAMED_MAX).enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{}", id.to_string().escape_debug())?;
        }
        match self.0.len().saturating_sub(NAMED_MAX) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// The identity of a verified peer: the first URI name of its leaf that is a SPIFFE identity of a workload.
///
/// - `chain`: as the TLS library gives it, leaf first; what it holds must already be verified
///
/// `None` without a certificate or without such a name. Names before it that are none are skipped with a warning.
pub fn peer_id(chain: &[CertificateDer<'_>]) -> Option<SpiffeId> {
    let (mut found, skipped) = leaf::identities(chain.first()?).ok()?;
    if skipped > 0 {
        warn!(
            skipped,
            "peer certificate has URI names that are no workload identity"
        );
    }
    if found.is_empty() {
        None
    } else {
        Some(found.swap_remove(0))
    }
}

/// Whether a peer's chain holds, revocation included if there are lists.
///
/// - `plainly`: the same question without revocation; not asked when the answer with it is yes already
fn holds(
    crl: Option<&Crl>,
    asked: &Asked<'_>,
    plainly: impl FnOnce() -> Result<(), Error>,
) -> Result<(), Error> {
    let Some((crl, lists)) = crl.and_then(|crl| Some((crl, crl.current()?))) else {
        return plainly();
    };
    if path::check(asked, &lists).is_ok() {
        return Ok(());
    }
    plainly()?;
    crl.reject(asked.side);
    Err(CertificateError::Revoked.into())
}

/// Checks a server: chain to the given roots, and one of its identities is expected. No host name is checked.
#[derive(Debug, Clone)]
pub(crate) struct ServerCheck {
    pub roots: Arc<RootCertStore>,
    pub provider: Arc<CryptoProvider>,
    /// Empty: nobody passes.
    pub expected: Arc<[SpiffeId]>,
    pub crl: Option<Crl>,
}

impl ServerCheck {
    /// The same check for other identities.
    pub fn expecting(&self, expected: Arc<[SpiffeId]>) -> Self {
        Self {
            expected,
            ..self.clone()
        }
    }
}

impl ServerCertVerifier for ServerCheck {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let asked = Asked {
            leaf: end_entity,
            intermediates,
            roots: &self.roots,
            now,
            side: Side::Connecting,
        };
        holds(self.crl.as_ref(), &asked, || {
            let cert = ParsedCertificate::try_from(end_entity)?;
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(
                &cert,
                &self.roots,
                intermediates,
                now,
                algorithms,
            )
        })?;
        let presented = leaf::identities(end_entity)
            .map(|(found, _)| found)
            .unwrap_or_default();
        if presented.iter().any(|id| self.expected.contains(id)) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(PeerError::UnexpectedServer {
            expected: Arc::clone(&self.expected),
            presented,
        }
        .into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Checks a client: a certificate is required, its chain leads to the given roots, and one of its
/// identities is of our trust domain.
#[derive(Debug)]
pub(crate) struct ClientCheck {
    chain: Arc<dyn ClientCertVerifier>,
    roots: Arc<RootCertStore>,
    crl: Option<Crl>,
    /// Byte-wise; aliases are not known here.
    trust_domain: Box<str>,
}

impl ClientCheck {
    /// Errors when there is no root at all.
    pub fn new(
        roots: Arc<RootCertStore>,
        provider: Arc<CryptoProvider>,
        trust_domain: &str,
        crl: Option<Crl>,
    ) -> Result<Self, Error> {
        // Root names as hints would only make the handshake longer: every client has just one certificate.
        let chain = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider)
            .clear_root_hint_subjects()
            .build()
            .map_err(|why| Error::General(why.to_string()))?;
        Ok(Self {
            chain,
            roots,
            crl,
            trust_domain: trust_domain.into(),
        })
    }
}

impl ClientCertVerifier for ClientCheck {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let asked = Asked {
            leaf: end_entity,
            intermediates,
            roots: &self.roots,
            now,
            side: Side::Accepting,
        };
        holds(self.crl.as_ref(), &asked, || {
            self.chain
                .verify_client_cert(end_entity, intermediates, now)
                .map(|_| ())
        })?;
        let presented = leaf::identities(end_entity)
            .map(|(found, _)| found)
            .unwrap_or_default();
        if presented
            .iter()
            .any(|id| *id.trust_domain() == *self.trust_domain)
        {
            return Ok(ClientCertVerified::assertion());
        }
        Err(PeerError::ForeignTrustDomain.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(count: usize) -> Vec<SpiffeId> {
        (0..count)
            .map(|n| SpiffeId::new("td", "ns", format!("s{n}")))
            .collect()
    }

    #[test]
    fn mismatch_text() {
        let why = PeerError::UnexpectedServer {
            expected: ids(1).into(),
            presented: ids(2),
        };
        assert_eq!(
            why.to_string(),
            "identity verification error: peer did not present the expected SAN (spiffe://td/ns/ns/sa/s0), \
             got spiffe://td/ns/ns/sa/s0, spiffe://td/ns/ns/sa/s1"
        );
        let why = PeerError::UnexpectedServer {
            expected: ids(0).into(),
            presented: ids(0),
        };
        assert!(why.to_string().ends_with("expected SAN (none), got none"));
    }

    #[test]
    fn texts_stay_short_and_on_one_line() {
        assert!(
            Names(&ids(5000))
                .to_string()
                .ends_with("sa/s7 and 4992 more")
        );
        let odd = SpiffeId::new("td", "ns", "a\nb");
        assert_eq!(Names(&[odd]).to_string(), "spiffe://td/ns/ns/sa/a\\nb");
    }
}
