//! What a request holds, and every kind of answer to it.

use rcgen::CertificateSigningRequestParams;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use super::*;
use crate::dump::pem;

fn id() -> SpiffeId {
    SpiffeId::new("cluster.local", "shop", "cart")
}

fn request() -> Request {
    Request::new(&id()).unwrap()
}

/// A PEM certificate block that holds just this byte; nothing here reads certificates.
fn block(byte: u8) -> String {
    pem(&CertificateDer::from(vec![byte]))
}

fn refused(cert_chain: &[String]) -> String {
    request()
        .finish(cert_chain.to_vec())
        .expect_err("refused")
        .to_string()
}

#[test]
fn a_request_holds_the_name_and_nothing_else() {
    let request = request();
    assert!(
        request
            .pem()
            .starts_with("-----BEGIN CERTIFICATE REQUEST-----")
    );
    // this also verifies its signature
    CertificateSigningRequestParams::from_pem(request.pem()).unwrap();
    let (kind, der) = <(SectionKind, Vec<u8>)>::from_pem_slice(request.pem().as_bytes()).unwrap();
    assert_eq!(kind, SectionKind::Csr);
    let (_, parsed) = X509CertificationRequest::from_der(&der).unwrap();
    let info = &parsed.certification_request_info;
    assert_eq!(info.subject.iter().count(), 0);
    assert_eq!(info.subject_pki.parsed().unwrap().key_size(), 256, "P-256");
    assert_eq!(
        parsed.signature_algorithm.algorithm.to_id_string(),
        "1.2.840.10045.4.3.2",
        "ECDSA with SHA-256"
    );
    assert_eq!(info.iter_attributes().count(), 1);
    let extensions: Vec<_> = parsed.requested_extensions().unwrap().collect();
    let [ParsedExtension::SubjectAlternativeName(names)] = &extensions[..] else {
        panic!("one extension, the name: {extensions:?}")
    };
    assert_eq!(
        names.general_names,
        [GeneralName::URI("spiffe://cluster.local/ns/shop/sa/cart")]
    );
    // id-ce-subjectAltName, then BOOLEAN TRUE: critical
    let critical = [0x06, 0x03, 0x55, 0x1d, 0x11, 0x01, 0x01, 0xff];
    assert!(der.windows(critical.len()).any(|bytes| bytes == critical));
}

#[test]
fn every_request_has_a_key_of_its_own_and_shows_none() {
    let (one, two) = (request(), request());
    assert_ne!(one.key.der().secret_der(), two.key.der().secret_der());
    assert!(format!("{one:?}").contains("[redacted]"));
}

#[test]
fn unwritable_identities_are_not_asked_for() {
    for bad in [
        SpiffeId::new("td", "ns", "a/b"),
        SpiffeId::new("td", "n s", "a"),
        SpiffeId::new("td", "ns", "ä"),
    ] {
        assert!(
            matches!(Request::new(&bad), Err(IssueError::Unwritable(_))),
            "{bad}"
        );
    }
}

#[test]
fn leaf_intermediates_and_bundle_are_told_apart() {
    let bundle = block(8) + "comment\n" + &block(9);
    let answer = vec![block(1), block(2) + &block(3), bundle];
    let issued = request().finish(answer).unwrap();
    let bytes = |certs: &[CertificateDer<'_>]| certs.iter().map(|c| c[0]).collect::<Vec<_>>();
    assert_eq!(
        bytes(&issued.chain),
        [1, 2],
        "of an element only the first block"
    );
    assert_eq!(bytes(&issued.roots), [8, 9]);
}

#[test]
fn answers_without_what_is_needed() {
    assert_eq!(
        refused(&[]),
        "chain returned from CA is empty for: spiffe://cluster.local/ns/shop/sa/cart"
    );
    let no_roots =
        "no usable root came with the certificate for: spiffe://cluster.local/ns/shop/sa/cart";
    assert_eq!(refused(&[block(1)]), no_roots);
    assert_eq!(refused(&[block(1), String::new()]), no_roots);
    assert_eq!(refused(&[block(1), "no PEM at all".into()]), no_roots);
}

#[test]
fn answers_that_cannot_be_read() {
    let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n".to_owned();
    let odd = "-----BEGIN SOMETHING-----\nAAAA\n-----END SOMETHING-----\n".to_owned();
    let broken = "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n".to_owned();
    for (answer, expected) in [
        (
            vec![String::new(), block(9)],
            "element 0 does not begin with a certificate in PEM",
        ),
        (
            vec![block(1), "text".into(), block(9)],
            "element 1 does not begin with a certificate in PEM",
        ),
        (
            vec![key.clone() + &block(1), block(9)],
            "element 0 does not begin",
        ),
        (
            vec![odd.clone() + &block(1), block(9)],
            "element 0 does not begin",
        ),
        (vec![broken.clone(), block(9)], "element 0 does not begin"),
        (
            vec![block(1), block(9) + &key],
            "the root bundle holds something that is no certificate",
        ),
        (vec![block(1), block(9) + &odd], "the root bundle holds"),
        (
            vec![block(1); ELEMENTS_MAX + 1],
            "17 elements, more than 16",
        ),
        (
            vec![block(1) + &" ".repeat(ELEMENT_BYTES_MAX), block(9)],
            "more than 65536",
        ),
        (
            vec![block(1), block(9) + &" ".repeat(BUNDLE_BYTES_MAX)],
            "element 1 has",
        ),
        (
            vec![block(1), block(9).repeat(ROOTS_MAX + 1)],
            "more than 256 roots",
        ),
    ] {
        let error = refused(&answer);
        assert!(error.contains(expected), "{error}");
        assert!(
            error.starts_with("the CA's answer cannot be read: "),
            "{error}"
        );
    }
    // a root whose text is broken is skipped, the good one stays
    let issued = request()
        .finish(vec![block(1), broken + &block(9)])
        .unwrap();
    assert_eq!(issued.roots.len(), 1);
}
