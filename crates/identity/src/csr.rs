//! Asking an authority over a wire: a signing request with a fresh key, and what comes back read into [`Issued`].
//!
//! Leaves to others: the call itself (`control`), and whether the certificate is for whom it was asked for
//! ([`Credential::new`](crate::Credential::new)).

use std::fmt;

use mesh::SpiffeId;
use rcgen::string::Ia5String;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::SectionKind};
use tracing::warn;
use zeroize::Zeroize;

use crate::issue::{IssueError, Issued, Key};

/// Elements of a chain, root bundle included: a TLS peer refuses longer paths anyway.
const ELEMENTS_MAX: usize = 16;
/// Size of an element that holds one certificate, in bytes; a TLS message holds no more.
const ELEMENT_BYTES_MAX: usize = 64 * 1024;
/// Size of the root bundle, in bytes.
const BUNDLE_BYTES_MAX: usize = 1024 * 1024;
/// Certificates in the root bundle: each is tried when a peer is verified.
const ROOTS_MAX: usize = 256;

/// How every PEM block begins (RFC 7468, section 2).
const BEGIN: &str = "-----BEGIN ";
const BEGIN_CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----";

/// An answer of an authority that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// Too many elements.
    #[error("{0} elements, more than {ELEMENTS_MAX}")]
    Elements(usize),
    /// An element is too large.
    #[error("element {at} has {bytes} bytes, more than {max}")]
    Size {
        /// Its place, from 0.
        at: usize,
        /// Its size.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// An element's first PEM block is no certificate.
    #[error("element {0} does not begin with a certificate in PEM")]
    NoCertificate(usize),
    /// The root bundle holds a PEM block that is no certificate.
    #[error("the root bundle holds something that is no certificate")]
    Bundle,
    /// The root bundle holds too many certificates.
    #[error("more than {ROOTS_MAX} roots")]
    Roots,
}

/// A signing request with the key it is for. The key leaves only inside of [`Issued`].
pub struct Request {
    id: SpiffeId,
    pem: String,
    key: Key,
}

impl Request {
    /// Makes a request with a fresh ECDSA P-256 key, signed with SHA-256: empty subject, one critical URI name.
    ///
    /// Errors: [`IssueError::Unwritable`] for an identity that no certificate can hold.
    /// Source: RFC 2986; RFC 5280, 4.2.1.6.
    pub fn new(id: &SpiffeId) -> Result<Self, IssueError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![name(id)?];
        let mut pair = KeyPair::generate().map_err(IssueError::Make)?;
        let request = params.serialize_request(&pair).map_err(IssueError::Make);
        let key = Key::new(PrivatePkcs8KeyDer::from(pair.serialize_der()).into());
        pair.zeroize();
        let pem = request?.pem().map_err(IssueError::Make)?;
        Ok(Self {
            id: id.clone(),
            pem,
            key,
        })
    }

    /// The request as PEM `CERTIFICATE REQUEST`.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Reads the answer and joins it with the key.
    ///
    /// - `cert_chain`: PEM; the leaf, then intermediates, last the bundle of trust roots. Of all but the last only the
    ///   first block counts; roots that cannot be parsed are skipped with a warning.
    ///
    /// Errors: [`IssueError::EmptyChain`], [`IssueError::NoRoots`], [`IssueError::Chain`].
    /// Source: `cert_chain` of `istio.v1.auth.IstioCertificateResponse`.
    pub fn finish(self, cert_chain: Vec<String>) -> Result<Issued, IssueError> {
        let Some((bundle, certs)) = cert_chain.split_last() else {
            return Err(IssueError::EmptyChain(self.id));
        };
        if certs.is_empty() {
            warn!(identity = %self.id, "the CA sent a certificate without a root");
            return Err(IssueError::NoRoots(self.id));
        }
        let (chain, roots) = read(certs, bundle).map_err(IssueError::Chain)?;
        if roots.is_empty() {
            return Err(IssueError::NoRoots(self.id));
        }
        Ok(Issued {
            chain,
            roots,
            key: self.key,
        })
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("id", &self.id)
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

/// The only name of a workload's certificate.
///
/// Errors: an identity that would read otherwise from a certificate.
pub(crate) fn name(id: &SpiffeId) -> Result<SanType, IssueError> {
    let text = id.to_string();
    if text.parse::<SpiffeId>().as_ref() != Ok(id) || text.chars().any(|c| !c.is_ascii_graphic()) {
        return Err(IssueError::Unwritable(id.clone()));
    }
    let uri = Ia5String::try_from(text).map_err(IssueError::Make)?;
    Ok(SanType::URI(uri))
}

type Certs = Vec<CertificateDer<'static>>;

fn read(certs: &[String], bundle: &str) -> Result<(Certs, Certs), ChainError> {
    let elements = certs.len() + 1;
    if elements > ELEMENTS_MAX {
        return Err(ChainError::Elements(elements));
    }
    let chain = certs
        .iter()
        .enumerate()
        .map(|(at, pem)| {
            bounded(at, pem, ELEMENT_BYTES_MAX)?;
            first(pem).ok_or(ChainError::NoCertificate(at))
        })
        .collect::<Result<_, _>>()?;
    bounded(certs.len(), bundle, BUNDLE_BYTES_MAX)?;
    Ok((chain, roots(bundle)?))
}

fn bounded(at: usize, pem: &str, max: usize) -> Result<(), ChainError> {
    if pem.len() > max {
        let bytes = pem.len();
        return Err(ChainError::Size { at, bytes, max });
    }
    Ok(())
}

/// The first PEM block, if it is a certificate.
fn first(pem: &str) -> Option<CertificateDer<'static>> {
    let begin = pem.find(BEGIN)?;
    if !pem[begin..].starts_with(BEGIN_CERTIFICATE) {
        return None;
    }
    match <(SectionKind, Vec<u8>)>::from_pem_slice(pem.as_bytes()) {
        Ok((SectionKind::Certificate, der)) => Some(der.into()),
        _ => None,
    }
}

fn roots(bundle: &str) -> Result<Certs, ChainError> {
    let blocks = bundle.matches(BEGIN).count();
    if blocks != bundle.matches(BEGIN_CERTIFICATE).count() {
        return Err(ChainError::Bundle);
    }
    if blocks > ROOTS_MAX {
        return Err(ChainError::Roots);
    }
    let parsed = CertificateDer::pem_slice_iter(bundle.as_bytes());
    Ok(parsed
        .filter_map(|root| {
            root.inspect_err(|cause| warn!(%cause, "trust root skipped"))
                .ok()
        })
        .collect())
}

#[cfg(test)]
mod tests;
