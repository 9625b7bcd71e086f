//! TLS parameters that are the same on both ends: versions, cipher suites, key exchange, ALPN.
//!
//! Leaves to others: certificates and whom to trust (`credential`, `verify`).

use std::fmt;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::{self, cipher_suite as suite, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::{SupportedCipherSuite, SupportedProtocolVersion, version};

/// The one application protocol of a tunnel (RFC 9113, section 3.1).
pub const ALPN_H2: &[u8] = b"h2";

/// ChaCha20 is never offered: both ends have AES instructions.
const SUITES_TLS13: [SupportedCipherSuite; 2] = [
    suite::TLS13_AES_256_GCM_SHA384,
    suite::TLS13_AES_128_GCM_SHA256,
];
const SUITES_TLS12: [SupportedCipherSuite; 4] = [
    suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
];
/// Post-quantum hybrid first: recorded traffic stays closed to tomorrow's computers.
static GROUPS: [&dyn SupportedKxGroup; 4] = [
    kx_group::X25519MLKEM768,
    kx_group::X25519,
    kx_group::SECP256R1,
    kx_group::SECP384R1,
];

/// Newest first; the second only on demand.
static VERSIONS: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];

/// TLS parameters. Default: TLS 1.3 only, four key exchange groups with X25519MLKEM768 first.
#[derive(Clone)]
pub struct Tls {
    provider: Arc<CryptoProvider>,
    versions: &'static [&'static SupportedProtocolVersion],
}

impl Tls {
    /// Chooses the parameters.
    ///
    /// - `tls12`: also TLS 1.2 with its ECDHE AES-GCM suites (`TLS12_ENABLED`)
    /// - `post_quantum_only`: no key exchange but X25519MLKEM768 (`COMPLIANCE_POLICY=pqc`)
    pub fn new(tls12: bool, post_quantum_only: bool) -> Self {
        let mut suites = SUITES_TLS13.to_vec();
        if tls12 {
            suites.extend(SUITES_TLS12);
        }
        let groups = if post_quantum_only {
            &GROUPS[..1]
        } else {
            &GROUPS[..]
        };
        let provider = CryptoProvider {
            cipher_suites: suites,
            kx_groups: groups.to_vec(),
            ..aws_lc_rs::default_provider()
        };
        let versions = if tls12 { &VERSIONS[..] } else { &VERSIONS[..1] };
        Self {
            provider: Arc::new(provider),
            versions,
        }
    }

    /// The cryptography behind these parameters.
    pub fn provider(&self) -> &Arc<CryptoProvider> {
        &self.provider
    }

    /// The protocol versions, newest first.
    pub fn versions(&self) -> &'static [&'static SupportedProtocolVersion] {
        self.versions
    }
}

impl Default for Tls {
    fn default() -> Self {
        Self::new(false, false)
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups: Vec<_> = self
            .provider
            .kx_groups
            .iter()
            .map(|group| group.name())
            .collect();
        f.debug_struct("Tls")
            .field("versions", &self.versions)
            .field("groups", &groups)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{NamedGroup, ProtocolVersion};

    fn groups(tls: &Tls) -> Vec<NamedGroup> {
        tls.provider()
            .kx_groups
            .iter()
            .map(|group| group.name())
            .collect()
    }

    #[test]
    fn default_is_tls13_with_post_quantum_first() {
        let tls = Tls::default();
        assert_eq!(
            tls.versions().iter().map(|v| v.version).collect::<Vec<_>>(),
            [ProtocolVersion::TLSv1_3]
        );
        let expected = [
            NamedGroup::X25519MLKEM768,
            NamedGroup::X25519,
            NamedGroup::secp256r1,
            NamedGroup::secp384r1,
        ];
        assert_eq!(groups(&tls), expected);
        assert_eq!(tls.provider().cipher_suites, SUITES_TLS13);
    }

    #[test]
    fn options_add_or_narrow() {
        let tls = Tls::new(true, true);
        assert_eq!(tls.versions().len(), 2);
        assert_eq!(tls.provider().cipher_suites.len(), 6);
        assert_eq!(groups(&tls), [NamedGroup::X25519MLKEM768]);
    }
}
