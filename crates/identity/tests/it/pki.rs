//! Certificates no issuer of ours would make: several names, other purposes, intermediates.

use std::time::Duration;

use identity::{Credential, EmbeddedCa, Issued, Key, Tls};
use mesh::SpiffeId;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use tempfile::TempDir;

pub const DAY: Duration = Duration::from_secs(24 * 3600);
pub const BOTH_ENDS: [ExtendedKeyUsagePurpose; 2] = [
    ExtendedKeyUsagePurpose::ServerAuth,
    ExtendedKeyUsagePurpose::ClientAuth,
];

/// An embedded authority in a directory of its own.
pub fn embedded() -> (EmbeddedCa, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (EmbeddedCa::open(&dir.path().join("ca"), DAY).unwrap(), dir)
}

pub fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

/// An identity in trust domain `td`.
pub fn td(account: &str) -> SpiffeId {
    SpiffeId::new("td", "ns", account)
}

/// A credential of the embedded authority.
pub fn credential(ca: &EmbeddedCa, id: &SpiffeId) -> Credential {
    let issued = ca.issue_at(id, std::time::SystemTime::now()).unwrap();
    Credential::new(id, issued, true, &Tls::default()).unwrap()
}

/// A root and an intermediate.
pub struct Pki {
    root: CertifiedIssuer<'static, KeyPair>,
    intermediate: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    pub fn new() -> Self {
        let root =
            CertifiedIssuer::self_signed(authority("root"), KeyPair::generate().unwrap()).unwrap();
        let intermediate = CertifiedIssuer::signed_by(
            authority("intermediate"),
            KeyPair::generate().unwrap(),
            &root,
        )
        .unwrap();
        Self { root, intermediate }
    }

    /// A leaf below the intermediate.
    pub fn issue(&self, uris: &[&str], purposes: &[ExtendedKeyUsagePurpose]) -> Issued {
        let mut params = CertificateParams::default();
        params.subject_alt_names = uris
            .iter()
            .map(|uri| SanType::URI(Ia5String::try_from(*uri).unwrap()))
            .collect();
        params.extended_key_usages = purposes.to_vec();
        let pair = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&pair, &self.intermediate).unwrap();
        Issued {
            chain: vec![leaf.der().clone(), self.intermediate.der().clone()],
            roots: vec![self.root.der().clone()],
            key: Key::new(PrivatePkcs8KeyDer::from(pair.serialize_der()).into()),
        }
    }

    /// The same as a credential that takes whatever identity it gets.
    pub fn credential(&self, uris: &[&str], purposes: &[ExtendedKeyUsagePurpose]) -> Credential {
        Credential::new(
            &td("any"),
            self.issue(uris, purposes),
            false,
            &Tls::default(),
        )
        .unwrap()
    }
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}
