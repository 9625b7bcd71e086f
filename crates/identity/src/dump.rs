//! Certificates as the admin endpoint shows them: key names, order and text forms are a contract with istioctl.
//!
//! Leaves to others: serving them (`ztunnel`).

use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use serde::Serialize;

use crate::credential::Credential;
use crate::leaf::Facts;

/// Characters per line of a PEM body (RFC 7468, section 2).
const PEM_LINE: usize = 64;

/// One element of `certificates` in `/config_dump`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertDump {
    /// Leaf, then intermediates; empty unless available.
    pub cert_chain: Vec<CertificateView>,
    /// End of the leaf's validity, for metrics; not part of the dump. None unless available.
    #[serde(skip)]
    pub expires_at: Option<SystemTime>,
    /// SPIFFE URI.
    pub identity: String,
    /// Trust roots; empty unless available.
    pub root_certs: Vec<CertificateView>,
    /// `Available`, `Initializing` or `Unavailable: <error>`.
    pub state: String,
}

/// One certificate of a [`CertDump`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateView {
    /// End of validity: RFC 3339, whole seconds, `Z`.
    pub expiration_time: String,
    /// Base64 of the PEM text.
    pub pem: String,
    /// Decimal.
    pub serial_number: String,
    /// Begin of validity, same form.
    pub valid_from: String,
}

impl CertDump {
    /// An identity without certificate.
    pub(crate) fn bare(identity: String, state: String) -> Self {
        Self {
            cert_chain: Vec::new(),
            expires_at: None,
            identity,
            root_certs: Vec::new(),
            state,
        }
    }

    /// An identity with its certificate.
    pub(crate) fn available(identity: String, credential: &Credential) -> Self {
        let views = |certs: &[CertificateDer<'_>]| certs.iter().filter_map(view).collect();
        Self {
            cert_chain: views(credential.chain()),
            expires_at: Some(credential.validity().not_after),
            identity,
            root_certs: views(credential.roots()),
            state: "Available".into(),
        }
    }
}

/// `None` for a certificate that cannot be read; what a credential holds can be.
fn view(der: &CertificateDer<'_>) -> Option<CertificateView> {
    let facts = Facts::parse(der).ok()?;
    let (valid_from, expiration_time) = facts.texts;
    Some(CertificateView {
        expiration_time,
        pem: STANDARD.encode(pem(der)),
        serial_number: facts.serial,
        valid_from,
    })
}

/// A certificate in PEM (RFC 7468).
pub(crate) fn pem(der: &CertificateDer<'_>) -> String {
    let body = STANDARD.encode(der);
    let mut text = String::with_capacity(body.len() + body.len() / PEM_LINE + 64);
    text.push_str("-----BEGIN CERTIFICATE-----\n");
    for line in body.as_bytes().chunks(PEM_LINE) {
        text.extend(line.iter().map(|byte| char::from(*byte)));
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pem_lines_are_64_wide() {
        let text = pem(&CertificateDer::from(vec![0u8; 100]));
        let lines: Vec<_> = text.lines().map(str::len).collect();
        assert_eq!(lines, [27, 64, 64, 8, 25]);
        assert!(text.ends_with("-----\n"));
    }

    #[test]
    fn keys_are_sorted() {
        let view = CertificateView {
            expiration_time: "e".into(),
            pem: "p".into(),
            serial_number: "1".into(),
            valid_from: "v".into(),
        };
        let mut dump = CertDump::bare("spiffe://td/ns/a/sa/b".into(), "Unavailable: why".into());
        dump.cert_chain.push(view);
        assert_eq!(
            serde_json::to_string(&dump).unwrap(),
            r#"{"certChain":[{"expirationTime":"e","pem":"p","serialNumber":"1","validFrom":"v"}],"identity":"spiffe://td/ns/a/sa/b","rootCerts":[],"state":"Unavailable: why"}"#
        );
    }
}
