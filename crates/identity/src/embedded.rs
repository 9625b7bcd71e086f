//! A certificate authority inside the process: for one machine, the demo and tests. Never the default in Kubernetes.
//!
//! All daemons of one machine share the root through a directory only they can read (`embedded/root.rs`).
//! Leaves to others: that a pod gets only its own identity (`proxy`).

mod root;

use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use mesh::SpiffeId;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use zeroize::Zeroize;

pub use self::root::OpenError;
use self::root::Root;
use crate::csr;
use crate::issue::{IssueError, Issued, Issuer, Issuing, Key};

/// A leaf begins so long before it is issued, for peers whose clock is behind; a quarter of its life at most.
const BACKDATE_MAX: Duration = Duration::from_secs(120);
/// Longest life of a leaf.
const TTL_MAX: Duration = Duration::from_secs(90 * 24 * 3600);
/// Shortest life of a leaf: validity is counted in whole seconds.
const TTL_MIN: Duration = Duration::from_secs(2);

/// An issuer with its own root: an ECDSA P-256 key in a directory of mode 0700.
pub struct EmbeddedCa {
    root: Root,
    ttl: Duration,
}

impl EmbeddedCa {
    /// Opens the authority in `dir`, or makes directory and root. Several processes may do so at the same time: all get one root.
    ///
    /// - `ttl`: life of the leaves from their issue on, between 2 seconds and 90 days (nearest bound otherwise); never beyond the root's
    ///
    /// Errors: a directory or file that others may read or that is not ours, a file that cannot be read, an expired root.
    pub fn open(dir: &Path, ttl: Duration) -> Result<Self, OpenError> {
        let root = Root::open(dir, SystemTime::now())?;
        Ok(Self {
            root,
            ttl: ttl.clamp(TTL_MIN, TTL_MAX),
        })
    }

    /// The root certificate; DER.
    pub fn root(&self) -> &CertificateDer<'static> {
        self.root.cert()
    }

    /// Issues a leaf as if it were `now`: a fresh P-256 key, one critical URI name, for both ends of a connection.
    pub fn issue_at(&self, id: &SpiffeId, now: SystemTime) -> Result<Issued, IssueError> {
        let mut params = leaf_params(id)?;
        let until = (now + self.ttl).min(self.root.not_after());
        if until <= now {
            return Err(IssueError::RootExpired);
        }
        params.not_before =
            date_time_ymd(1970, 1, 1) + since_epoch(now - BACKDATE_MAX.min(self.ttl / 4));
        params.not_after = date_time_ymd(1970, 1, 1) + since_epoch(until);
        let mut pair = KeyPair::generate().map_err(IssueError::Make)?;
        let cert = self.root.sign(&params, &pair).map_err(IssueError::Make)?;
        let key = Key::new(PrivatePkcs8KeyDer::from(pair.serialize_der()).into());
        pair.zeroize();
        Ok(Issued {
            chain: vec![cert],
            roots: vec![self.root.cert().clone()],
            key,
        })
    }
}

impl Issuer for EmbeddedCa {
    fn issue<'a>(&'a self, id: &'a SpiffeId) -> Issuing<'a> {
        Box::pin(async move { self.issue_at(id, SystemTime::now()) })
    }
}

impl fmt::Debug for EmbeddedCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedCa")
            .field("ttl", &self.ttl)
            .field("key", &"[redacted]")
            .finish_non_exhaustive()
    }
}

/// Source: SPIFFE X.509-SVID, sections 2 and 4; with an empty subject the name extension is critical (RFC 5280, 4.2.1.6).
fn leaf_params(id: &SpiffeId) -> Result<CertificateParams, IssueError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![csr::name(id)?];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// Since 1970, in whole seconds, for the certificate library's own time type: `date_time_ymd(1970, 1, 1) + since_epoch(at)`.
/// Before 1970 counts as 1970; far futures as 2900, where that type still counts.
fn since_epoch(at: SystemTime) -> Duration {
    const SECS_MAX: u64 = 930 * 365 * 24 * 3600;
    Duration::from_secs(
        at.duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs().min(SECS_MAX)),
    )
}
