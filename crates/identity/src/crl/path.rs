//! The path from a peer's leaf to a trusted root on which no certificate is revoked.
//!
//! Leaves to others: what the lists say (`list`), and what the path means for a handshake (`verify`).

use std::borrow::Cow;

use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer, UnixTime};
use webpki::{Cert, EndEntityCert, KeyUsage, VerifiedPath};

use super::Side;
use super::list::{Lists, algorithms};

/// What to find a path for.
pub(crate) struct Asked<'a> {
    pub leaf: &'a CertificateDer<'a>,
    /// In the order the peer chose.
    pub intermediates: &'a [CertificateDer<'a>],
    pub roots: &'a RootCertStore,
    pub now: UnixTime,
    /// Ours; the peer's purpose is the other one.
    pub side: Side,
}

/// Checks chain, time and purpose, and that no certificate below the root is revoked. A revoked one makes way for another
/// path if there is one.
pub(crate) fn check(asked: &Asked<'_>, lists: &Lists) -> Result<(), webpki::Error> {
    with(asked, lists, |_| ())
}

/// The certificates of a path that [`check`] would accept, leaf first, without the root; `None` when all are revoked.
///
/// Errors: there would be no path even if nothing were revoked.
pub(super) fn find(asked: &Asked<'_>, lists: &Lists) -> Result<Option<Box<[Link]>>, webpki::Error> {
    let take = |path: &VerifiedPath<'_>| {
        links(path)
            .iter()
            .map(LinkRef::to_owned)
            .collect::<Box<_>>()
    };
    if let Ok(found) = with(asked, lists, take) {
        return Ok(Some(found));
    }
    check(asked, &Lists::default()).map(|()| None)
}

fn with<R>(
    asked: &Asked<'_>,
    lists: &Lists,
    take: impl FnOnce(&VerifiedPath<'_>) -> R,
) -> Result<R, webpki::Error> {
    let leaf = EndEntityCert::try_from(asked.leaf)?;
    let usage = match asked.side {
        Side::Connecting => KeyUsage::server_auth(),
        Side::Accepting => KeyUsage::client_auth(),
    };
    let holds = |path: &VerifiedPath<'_>| {
        if links(path).iter().any(|link| lists.revokes(link)) {
            return Err(webpki::Error::CertRevoked);
        }
        Ok(())
    };
    let path = leaf.verify_for_usage(
        algorithms(),
        &asked.roots.roots,
        asked.intermediates,
        asked.now,
        usage,
        None,
        Some(&holds),
    )?;
    Ok(take(&path))
}

/// Each certificate with the key that signed it.
fn links<'p>(path: &'p VerifiedPath<'p>) -> Vec<LinkRef<'p>> {
    let leaf: &Cert<'p> = path.end_entity();
    let certs: Vec<&Cert<'p>> = std::iter::once(leaf)
        .chain(path.intermediate_certificates())
        .collect();
    let link = |(at, cert): (usize, &&'p Cert<'p>)| LinkRef {
        issuer: cert.issuer(),
        serial: cert.serial(),
        signer: match certs.get(at + 1) {
            Some(above) => Signer::Cert(above),
            None => Signer::Anchor(&path.anchor().subject_public_key_info),
        },
    };
    certs.iter().enumerate().map(link).collect()
}

/// One certificate of a verified path, as revocation lists know it.
pub(crate) struct LinkRef<'a> {
    /// Name of its issuer; DER without the outer tag.
    pub issuer: &'a [u8],
    /// Serial number; the content of its DER.
    pub serial: &'a [u8],
    signer: Signer<'a>,
}

/// Who signed it.
enum Signer<'a> {
    /// The certificate above.
    Cert(&'a Cert<'a>),
    /// The root: its key without the outer tag.
    Anchor(&'a [u8]),
    /// A whole key.
    Key(&'a SubjectPublicKeyInfoDer<'static>),
}

impl LinkRef<'_> {
    /// The key that signed it.
    pub fn issuer_key(&self) -> Cow<'_, SubjectPublicKeyInfoDer<'static>> {
        match self.signer {
            Signer::Cert(cert) => Cow::Owned(cert.subject_public_key_info()),
            Signer::Anchor(content) => Cow::Owned(sequence(content).into()),
            Signer::Key(key) => Cow::Borrowed(key),
        }
    }

    fn to_owned(&self) -> Link {
        Link {
            issuer: self.issuer.into(),
            serial: self.serial.into(),
            key: self.issuer_key().into_owned(),
        }
    }
}

/// A [`LinkRef`] that outlives its certificates.
pub(super) struct Link {
    issuer: Box<[u8]>,
    serial: Box<[u8]>,
    key: SubjectPublicKeyInfoDer<'static>,
}

impl Link {
    pub fn borrow(&self) -> LinkRef<'_> {
        LinkRef {
            issuer: &self.issuer,
            serial: &self.serial,
            signer: Signer::Key(&self.key),
        }
    }
}

/// Wraps DER content as a SEQUENCE (X.690, sections 8.1.3 and 8.9).
fn sequence(content: &[u8]) -> Vec<u8> {
    const SEQUENCE: u8 = 0x30;
    let len = content.len().to_be_bytes();
    let skip = len.iter().take_while(|byte| **byte == 0).count();
    let mut der = Vec::with_capacity(content.len() + 10);
    der.push(SEQUENCE);
    if content.len() >= 0x80 {
        let bytes = len.len() - skip;
        der.push(0x80 | u8::try_from(bytes).expect("a length has at most eight bytes"));
        der.extend_from_slice(&len[skip..]);
    } else {
        der.push(len[len.len() - 1]);
    }
    der.extend_from_slice(content);
    der
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_in_both_forms() {
        for (len, head) in [
            (0, &[0x30, 0x00][..]),
            (127, &[0x30, 0x7f]),
            (128, &[0x30, 0x81, 0x80]),
            (300, &[0x30, 0x82, 0x01, 0x2c]),
        ] {
            let der = sequence(&vec![7; len]);
            assert_eq!(&der[..head.len()], head);
            assert_eq!(der.len(), head.len() + len);
        }
    }
}
