//! Revocation lists as read from a file: who signed them, which serial numbers they name.
//!
//! Leaves to others: which certificates of a chain to ask for (`path`).

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{
    CertificateRevocationListDer, SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer, pem,
};
use webpki::{BorrowedCertRevocationList, CertRevocationList, RawPublicKeyEntity};
use x509_parser::asn1_rs::{Any, FromDer};

use super::path::LinkRef;

/// Size of a file of revocation lists, in bytes. A ConfigMap, where it usually comes from, holds an eighth.
pub const CRL_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Lists in one file.
const LISTS_MAX: usize = 256;
/// Keys per list whose verdict on its signature is kept: certificates of one issuer name, so mostly one.
const KEYS_MAX: usize = 64;

/// A file of revocation lists that cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum CrlError {
    /// More than [`CRL_BYTES_MAX`].
    #[error("{0} bytes, more than {CRL_BYTES_MAX}")]
    TooLarge(usize),
    /// Too many lists.
    #[error("more than {LISTS_MAX} revocation lists")]
    TooMany,
    /// Broken PEM.
    #[error("not PEM: {0}")]
    Pem(pem::Error),
    /// A list that is none, or of a kind that is not supported (indirect, delta, without end).
    #[error("revocation list {at} cannot be used: {cause}")]
    List {
        /// Its place in the file, from 1.
        at: usize,
        /// What is wrong with it.
        cause: webpki::Error,
    },
}

/// All lists of one file.
#[derive(Default)]
pub(crate) struct Lists(Vec<List>);

impl Lists {
    /// Reads a file, PEM or DER.
    pub fn parse(file: &[u8]) -> Result<Self, CrlError> {
        if file.len() > CRL_BYTES_MAX {
            return Err(CrlError::TooLarge(file.len()));
        }
        if file.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self::default());
        }
        let ders = if file.starts_with(b"-----BEGIN") {
            blocks(file)?
        } else {
            vec![file.into()]
        };
        let read = |(at, der): (usize, CertificateRevocationListDer<'_>)| {
            List::parse(&der).map_err(|cause| CrlError::List { at: at + 1, cause })
        };
        let lists = ders
            .into_iter()
            .enumerate()
            .map(read)
            .collect::<Result<_, _>>()?;
        Ok(Self(lists))
    }

    /// Number of lists.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether a list that the certificate's issuer has signed names it.
    pub fn revokes(&self, link: &LinkRef<'_>) -> bool {
        self.0.iter().any(|list| list.revokes(link))
    }
}

fn blocks(file: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, CrlError> {
    let mut found = Vec::new();
    for block in CertificateRevocationListDer::pem_slice_iter(file) {
        if found.len() == LISTS_MAX {
            return Err(CrlError::TooMany);
        }
        found.push(block.map_err(CrlError::Pem)?);
    }
    Ok(found)
}

/// One list. Which certificates it is meant to cover does not matter: a serial number that its issuer has listed is revoked.
struct List {
    issuer: Box<[u8]>,
    serials: HashSet<Box<[u8]>>,
    signed: Signed,
    /// What is known of its signature, by key.
    verdicts: Mutex<HashMap<Box<[u8]>, bool>>,
}

impl List {
    fn parse(der: &[u8]) -> Result<Self, webpki::Error> {
        let borrowed = BorrowedCertRevocationList::from_der(der)?;
        let serials = borrowed
            .into_iter()
            .map(|entry| Ok(entry?.serial_number.into()))
            .collect::<Result<_, webpki::Error>>()?;
        Ok(Self {
            issuer: CertRevocationList::from(borrowed).issuer().into(),
            serials,
            signed: Signed::split(der).ok_or(webpki::Error::BadDer)?,
            verdicts: Mutex::default(),
        })
    }

    /// The signature comes last: it is only asked for when it decides.
    fn revokes(&self, link: &LinkRef<'_>) -> bool {
        *self.issuer == *link.issuer
            && self.serials.contains(link.serial)
            && self.is_signed_by(link)
    }

    fn is_signed_by(&self, link: &LinkRef<'_>) -> bool {
        let key = link.issuer_key();
        let key: &SubjectPublicKeyInfoDer<'_> = &key;
        let known = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(verdict) = known.get::<[u8]>(key.as_ref()) {
            return *verdict;
        }
        drop(known);
        let verdict = self.signed.verify(key);
        let mut known = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KEYS_MAX {
            known.clear();
        }
        known.insert(<[u8]>::to_vec(key.as_ref()).into(), verdict);
        verdict
    }
}

/// A signed structure, taken apart (RFC 5280, section 5.1).
struct Signed {
    data: Box<[u8]>,
    algorithm: Box<[u8]>,
    signature: Box<[u8]>,
}

impl Signed {
    fn split(der: &[u8]) -> Option<Self> {
        let (_, outer) = Any::from_der(der).ok()?;
        let (after, _) = Any::from_der(outer.data).ok()?;
        let data = &outer.data[..outer.data.len() - after.len()];
        let (after, algorithm) = Any::from_der(after).ok()?;
        let (_, bits) = Any::from_der(after).ok()?;
        // a signature is a whole number of bytes: the first of the bit string says that none of its bits is unused
        let signature = bits.data.strip_prefix(&[0])?;
        Some(Self {
            data: data.into(),
            algorithm: algorithm.data.into(),
            signature: signature.into(),
        })
    }

    fn verify(&self, key: &SubjectPublicKeyInfoDer<'_>) -> bool {
        let Ok(entity) = RawPublicKeyEntity::try_from(key) else {
            return false;
        };
        algorithms()
            .iter()
            .filter(|algorithm| *algorithm.signature_alg_id() == *self.algorithm)
            .any(|algorithm| {
                entity
                    .verify_signature(*algorithm, &self.data, &self.signature)
                    .is_ok()
            })
    }
}

/// The signatures that certificates and lists may have.
pub(super) fn algorithms() -> &'static [&'static dyn SignatureVerificationAlgorithm] {
    aws_lc_rs::default_provider()
        .signature_verification_algorithms
        .all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by OpenSSL: revokes nothing.
    const LIST: &[u8] = include_bytes!("list/openssl.pem");

    #[test]
    fn broken_files_are_errors_and_never_panic() {
        let [ref list] = blocks(LIST).expect("one list")[..] else {
            panic!("one list")
        };
        assert_eq!(Lists::parse(LIST).expect("good").len(), 1);
        for at in 0..list.len() {
            let mut der = list.to_vec();
            for bit in [0x01, 0x80] {
                der[at] ^= bit;
                let _ = Lists::parse(&der);
            }
            assert!(Lists::parse(&list[..at]).is_err() || at == 0);
        }
        for at in 0..LIST.len() {
            let mut pem = LIST.to_vec();
            pem[at] = pem[at].wrapping_add(1);
            let _ = Lists::parse(&pem);
            let _ = Lists::parse(&LIST[..at]);
        }
    }
}
