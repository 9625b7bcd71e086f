//! Certificates from istiod.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use control::ca::IstioCa;
use control::channel::{Config, Roots, Timing};
use identity::{Credential, IssueError, Issuer, Tls};
use mesh::SpiffeId;
use proto::wellknown::value::Kind;
use tonic::Code;

use crate::pki::Pki;
use crate::server::{Answer, Istiod};
use crate::soon;

const HOUR: Duration = Duration::from_secs(3600);

fn id() -> SpiffeId {
    SpiffeId::new("td", "ns", "sa")
}

fn config(istiod: &Istiod, roots: Roots) -> Config {
    Config::new(istiod.url("localhost"), roots)
}

/// A CA that signs, and one root for all purposes.
async fn signing() -> (Istiod, String) {
    let (web, workloads) = (Pki::new(), Pki::new());
    let istiod = Istiod::start(web.server(&["localhost"])).await;
    let bundle = workloads.pem();
    istiod.answer(Answer::Sign(Box::new(workloads), vec![bundle]));
    (istiod, web.pem())
}

#[tokio::test]
async fn a_certificate_on_behalf_of_a_workload() {
    let (mut istiod, roots) = signing().await;
    let ca = IstioCa::new(config(&istiod, Roots::Inline(roots)), 2 * HOUR).unwrap();
    let issued = soon(ca.issue(&id())).await.unwrap();
    assert_eq!((issued.chain.len(), issued.roots.len()), (1, 1));
    Credential::new(&id(), issued, true, &Tls::default())
        .expect("usable, and for whom it was asked");

    let asked = istiod.signing().await.message;
    assert_eq!(asked.validity_duration, 7200);
    let metadata = asked.metadata.unwrap().fields;
    let told: Vec<_> = metadata
        .into_iter()
        .map(|(key, value)| (key, value.kind.unwrap()))
        .collect();
    let text = Kind::StringValue("spiffe://td/ns/ns/sa/sa".into());
    assert_eq!(told, [("ImpersonatedIdentity".to_owned(), text)]);
    assert!(asked.csr.starts_with("-----BEGIN CERTIFICATE REQUEST-----"));
}

#[tokio::test]
async fn a_workload_that_asks_for_itself_names_nobody() {
    let (mut istiod, roots) = signing().await;
    let ca = IstioCa::new(config(&istiod, Roots::Inline(roots)), HOUR).unwrap();
    soon(ca.as_workload().issue(&id())).await.unwrap();
    assert_eq!(istiod.signing().await.message.metadata, None);
}

#[tokio::test]
async fn one_connection_for_many_certificates() {
    let (mut istiod, roots) = signing().await;
    let ca = IstioCa::new(config(&istiod, Roots::Inline(roots)), HOUR).unwrap();
    let ids: Vec<SpiffeId> = ["a", "b", "c"]
        .map(|sa| SpiffeId::new("td", "ns", sa))
        .into();
    let mut keys = Vec::new();
    for id in &ids {
        soon(ca.issue(id)).await.unwrap();
        keys.push(istiod.signing().await.message.csr);
    }
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), ids.len(), "a new key for each");
    istiod.hello().await;
    assert_eq!(istiod.unseen().0, 0, "one connection");
}

#[tokio::test]
async fn what_the_ca_says_is_told() {
    let (web, other) = (Pki::new(), Pki::new());
    let istiod = Istiod::start(web.server(&["localhost"])).await;
    let ca = IstioCa::new(config(&istiod, Roots::Inline(web.pem())), HOUR).unwrap();
    let large = vec!["x".repeat(5 * 1024 * 1024), other.pem()];
    let cases = [
        (
            Answer::Refuse(Code::Unauthenticated, "no such pod on this node"),
            "signing gRPC error (Unauthenticated): no such pod on this node",
        ),
        (
            Answer::Refuse(Code::Unavailable, ""),
            "signing gRPC error (Unavailable): ",
        ),
        (
            Answer::Chain(vec![]),
            "chain returned from CA is empty for: spiffe://td/ns/ns/sa/sa",
        ),
        (
            Answer::Chain(vec![other.pem()]),
            "no usable root came with the certificate for: spiffe://td/ns/ns/sa/sa",
        ),
        (Answer::Chain(large), "signing gRPC error (OutOfRange): "),
    ];
    for (answer, expected) in cases {
        istiod.answer(answer);
        let error = soon(ca.issue(&id())).await.unwrap_err().to_string();
        assert!(error.starts_with(expected), "{expected}: {error}");
    }
}

#[tokio::test]
async fn a_long_complaint_is_cut() {
    let web = Pki::new();
    let istiod = Istiod::start(web.server(&["localhost"])).await;
    let ca = IstioCa::new(config(&istiod, Roots::Inline(web.pem())), HOUR).unwrap();
    istiod.answer(Answer::Refuse(Code::Internal, "é".repeat(4000).leak()));
    match soon(ca.issue(&id())).await.unwrap_err() {
        IssueError::Signing { code, message } => {
            assert_eq!((code.as_str(), message.len()), ("Internal", 1024));
        }
        error => panic!("{error}"),
    }
}

#[tokio::test]
async fn an_outage_is_told_and_heals() {
    let (mut istiod, roots) = signing().await;
    let ca = IstioCa::new(config(&istiod, Roots::Inline(roots)), HOUR).unwrap();
    soon(ca.issue(&id())).await.unwrap();
    istiod.down().await;
    // the first call may still find the old connection, on its way out
    for _ in 0..2 {
        let error = soon(ca.issue(&id())).await.unwrap_err();
        assert!(matches!(error, IssueError::Signing { .. }), "{error}");
    }
    let error = soon(ca.issue(&id())).await.unwrap_err().to_string();
    assert!(error.contains("Connection refused"), "{error}");
    istiod.up().await;
    soon(ca.issue(&id())).await.unwrap();
}

#[tokio::test]
async fn a_call_that_hangs_can_be_given_up() {
    let (web, workloads) = (Pki::new(), Pki::new());
    let mut istiod = Istiod::start(web.server(&["localhost"])).await;
    istiod.answer(Answer::Hang);
    let ca = IstioCa::new(config(&istiod, Roots::Inline(web.pem())), HOUR).unwrap();
    let who = id();
    tokio::select! {
        outcome = ca.issue(&who) => panic!("{outcome:?}"),
        _ = istiod.signing() => {} // the call is there, and given up
    }
    let bundle = workloads.pem();
    istiod.answer(Answer::Sign(Box::new(workloads), vec![bundle]));
    soon(ca.issue(&who)).await.unwrap();
}

#[tokio::test]
async fn a_ca_that_falls_silent_is_noticed_by_ping() {
    let web = Pki::new();
    let mut istiod = Istiod::start(web.server(&["localhost"])).await;
    istiod.answer(Answer::Hang);
    let timing = Timing {
        ping_interval: Duration::from_millis(50),
        ping_timeout: Duration::from_millis(50),
        ..Timing::default()
    };
    let config = Config {
        timing,
        ..config(&istiod, Roots::Inline(web.pem()))
    };
    let ca = IstioCa::new(config, HOUR).unwrap();
    let who = id();
    let call = async {
        let error = soon(ca.issue(&who)).await.unwrap_err().to_string();
        assert!(
            error.starts_with("signing gRPC error (Unavailable): "),
            "{error}"
        );
        assert!(error.contains("keep-alive timed out"), "{error}");
    };
    let stall = async {
        istiod.signing().await;
        istiod.stall();
    };
    tokio::join!(call, stall);
}

/// Replaces a symlink at once, as Kubernetes does with its volumes.
fn swap(link: &Path, target: &Path) {
    let new = link.with_extension("new");
    symlink(target, &new).unwrap();
    std::fs::rename(&new, link).unwrap();
}

#[tokio::test]
async fn roots_are_followed_and_kept_when_unusable() {
    let (old, new, workloads) = (Pki::new(), Pki::new(), Pki::new());
    let mut istiod = Istiod::start(old.server(&["localhost"])).await;
    let bundle = workloads.pem();
    istiod.answer(Answer::Sign(Box::new(workloads), vec![bundle]));
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (name, pki) in [("1", &old), ("2", &new)] {
        std::fs::create_dir(at(name)).unwrap();
        pki.write(&at(name).join("root.pem"));
    }
    symlink(at("1"), at("data")).unwrap();
    let file = at("data").join("root.pem");
    let ca = IstioCa::new(config(&istiod, Roots::File(file.clone())), HOUR).unwrap();
    soon(ca.issue(&id())).await.unwrap();
    istiod.hello().await;

    // the connection that stands is used on, whatever the server would show now
    istiod.show(new.server(&["localhost"]));
    soon(ca.issue(&id())).await.unwrap();
    assert_eq!(istiod.unseen().0, 0);

    swap(&at("data"), &at("2"));
    soon(ca.issue(&id())).await.unwrap();
    istiod.hello().await;

    for broken in ["", "-----BEGIN CERTIFICATE-----\nA"] {
        std::fs::write(&file, broken).unwrap();
        soon(ca.issue(&id())).await.unwrap();
    }
    std::fs::remove_file(&file).unwrap();
    soon(ca.issue(&id())).await.unwrap();
    assert_eq!(istiod.unseen().0, 0, "on the old connection");

    istiod.show(old.server(&["localhost"]));
    old.write(&file);
    soon(ca.issue(&id())).await.unwrap();
    istiod.hello().await;
}

#[tokio::test]
async fn roots_that_come_late_are_taken() {
    let (istiod, roots) = signing().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("root-cert.pem");
    let ca = IstioCa::new(config(&istiod, Roots::File(file.clone())), HOUR).unwrap();
    for broken in [None, Some(""), Some("-----BEGIN CERTIFICATE-----\nA")] {
        if let Some(text) = broken {
            std::fs::write(&file, text).unwrap();
        }
        let error = soon(ca.issue(&id())).await.unwrap_err().to_string();
        assert!(
            error.starts_with("signing gRPC error (Unavailable): ")
                && error.contains("root-cert.pem"),
            "{error}"
        );
    }
    std::fs::write(&file, roots).unwrap();
    soon(ca.issue(&id())).await.unwrap();
}
