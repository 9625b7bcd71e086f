//! Reads from a certificate what the mesh needs: URI names, validity, serial number.
//!
//! Leaves to others: whether the certificate is to be trusted (`verify`).

use std::time::{Duration, SystemTime};

use mesh::SpiffeId;
use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

/// A certificate that cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an X.509 certificate: {0}")]
pub struct LeafError(String);

/// From when until when a certificate holds, wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// First moment.
    pub not_before: SystemTime,
    /// Last moment.
    pub not_after: SystemTime,
}

impl Validity {
    /// That of one DER certificate.
    ///
    /// Errors: the bytes are no certificate.
    pub fn of(der: &CertificateDer<'_>) -> Result<Self, LeafError> {
        Facts::parse(der).map(|facts| facts.validity)
    }
}

/// The facts of one certificate.
#[derive(Debug)]
pub(crate) struct Facts {
    /// URI names in the order of the certificate.
    pub uris: Vec<String>,
    /// Serial number as decimal digits.
    pub serial: String,
    /// Validity as clock times.
    pub validity: Validity,
    /// Validity as RFC 3339 texts with whole seconds: from, until.
    pub texts: (String, String),
}

impl Facts {
    /// Parses one DER certificate. Bytes after it are an error.
    pub fn parse(der: &CertificateDer<'_>) -> Result<Self, LeafError> {
        let cert = parse(der)?;
        let (from, until) = (cert.validity().not_before, cert.validity().not_after);
        Ok(Self {
            uris: uris(&cert),
            serial: cert.serial.to_string(),
            validity: Validity {
                not_before: clock(from),
                not_after: clock(until),
            },
            texts: (rfc3339(from), rfc3339(until)),
        })
    }
}

/// The SPIFFE identities among the URI names of a certificate, in order, and how many URI names were none.
pub(crate) fn identities(der: &CertificateDer<'_>) -> Result<(Vec<SpiffeId>, usize), LeafError> {
    let uris = uris(&parse(der)?);
    let found: Vec<SpiffeId> = uris.iter().filter_map(|uri| uri.parse().ok()).collect();
    let skipped = uris.len() - found.len();
    Ok((found, skipped))
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, LeafError> {
    let (rest, cert) =
        X509Certificate::from_der(der).map_err(|cause| LeafError(cause.to_string()))?;
    if rest.is_empty() {
        Ok(cert)
    } else {
        Err(LeafError("bytes after the certificate".into()))
    }
}

/// No name extension, or one that is there twice, means no names.
fn uris(cert: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(names)) = cert.subject_alternative_name() else {
        return Vec::new();
    };
    names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        })
        .collect()
}

/// Before 1970 counts as 1970: nothing in the mesh is that old.
fn clock(time: ASN1Time) -> SystemTime {
    let secs = u64::try_from(time.timestamp()).unwrap_or(0);
    SystemTime::UNIX_EPOCH + Duration::from_secs(secs)
}

fn rfc3339(time: ASN1Time) -> String {
    let at = time.to_datetime();
    let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
    let (hour, minute, second) = (at.hour(), at.minute(), at.second());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_whole_seconds_and_a_z() {
        let time = ASN1Time::from_timestamp(1_772_445_480).unwrap();
        assert_eq!(rfc3339(time), "2026-03-02T09:58:00Z");
        assert_eq!(
            clock(time),
            SystemTime::UNIX_EPOCH + Duration::from_secs(1_772_445_480)
        );
    }

    #[test]
    fn rubbish_is_an_error() {
        for bytes in [
            &b""[..],
            b"\x30",
            b"\x30\x82\xff\xff",
            b"-----BEGIN CERTIFICATE-----",
        ] {
            assert!(Facts::parse(&CertificateDer::from(bytes)).is_err());
            assert!(identities(&CertificateDer::from(bytes)).is_err());
        }
    }
}
