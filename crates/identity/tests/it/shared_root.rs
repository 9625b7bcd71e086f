//! Several daemons on one machine share the root of the embedded authority.

use std::sync::Barrier;
use std::time::SystemTime;

use identity::{EmbeddedCa, IssueError};
use mesh::SpiffeId;

use crate::pki::{DAY, embedded, td};

const DAEMONS: usize = 8;

#[test]
fn who_starts_together_gets_one_root() {
    for _ in 0..10 {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("ca");
        let start = Barrier::new(DAEMONS);
        let open = || {
            start.wait();
            EmbeddedCa::open(&dir, DAY).unwrap().root().clone()
        };
        let roots: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..DAEMONS).map(|_| scope.spawn(open)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        assert!(roots.iter().all(|root| *root == roots[0]));
        assert_eq!(
            std::fs::read_dir(&dir).unwrap().count(),
            1,
            "no drafts are left"
        );
    }
}

#[test]
fn leaves_have_one_critical_name_and_both_purposes() {
    use x509_parser::extensions::GeneralName;
    use x509_parser::prelude::{FromDer, X509Certificate};
    let (ca, _dir) = embedded();
    let issued = ca.issue_at(&td("a"), SystemTime::now()).unwrap();
    let (_, leaf) = X509Certificate::from_der(&issued.chain[0]).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical);
    assert_eq!(
        names.value.general_names,
        [GeneralName::URI("spiffe://td/ns/ns/sa/a")]
    );
    assert_eq!(leaf.subject().iter().count(), 0, "no subject");
    let purposes = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(purposes.server_auth && purposes.client_auth && !purposes.any);
    assert!(!leaf.is_ca());
    let life = leaf.validity().not_after.timestamp() - leaf.validity().not_before.timestamp();
    assert!(
        (86_400 + 119..=86_400 + 121).contains(&life),
        "a day and the backdating: {life}"
    );
    assert_eq!(leaf.public_key().parsed().unwrap().key_size(), 256, "P-256");

    let again = ca.issue_at(&td("a"), SystemTime::now()).unwrap();
    let (_, other) = X509Certificate::from_der(&again.chain[0]).unwrap();
    assert_ne!(
        leaf.public_key().raw,
        other.public_key().raw,
        "a fresh key each time"
    );
    assert_ne!(leaf.raw_serial(), other.raw_serial());
}

#[test]
fn identities_that_would_read_otherwise_are_not_issued() {
    let (ca, _dir) = embedded();
    for bad in [
        SpiffeId::new("td", "ns", "a/b"),
        SpiffeId::new("td", "ns", "ä"),
        SpiffeId::new("td", "n s", "a"),
    ] {
        assert!(
            matches!(
                ca.issue_at(&bad, SystemTime::now()),
                Err(IssueError::Unwritable(_))
            ),
            "{bad}"
        );
    }
}

#[test]
fn leaves_end_with_their_root_at_the_latest() {
    let (ca, _dir) = embedded();
    let late = SystemTime::now() + 3650 * DAY - DAY / 2;
    let (_, root) = x509_parser::parse_x509_certificate(ca.root()).unwrap();
    let issued = ca.issue_at(&td("a"), late).unwrap();
    let (_, leaf) = x509_parser::parse_x509_certificate(&issued.chain[0]).unwrap();
    assert_eq!(
        leaf.validity().not_after.timestamp(),
        root.validity().not_after.timestamp()
    );
    assert!(matches!(
        ca.issue_at(&td("a"), late + DAY),
        Err(IssueError::RootExpired)
    ));
}
