//! Who gets through the TLS handshake of a tunnel, who does not, and what the error says.

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use identity::{ALPN_H2, Credential, Key, PeerError, Tls, peer_id};
use mesh::SpiffeId;
use rcgen::ExtendedKeyUsagePurpose;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, HandshakeKind, NamedGroup, ProtocolVersion, ServerConfig, ServerConnection,
    SignatureScheme, version,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::pki::{BOTH_ENDS, DAY, Pki, credential, embedded, id, td};

pub type Ends = (
    io::Result<client::TlsStream<DuplexStream>>,
    io::Result<server::TlsStream<DuplexStream>>,
);

/// Runs one handshake and one byte each way. A client learns only from that byte that the server refused it (RFC 8446, 4.4.2).
pub async fn connect(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Ends {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let connecting = async {
        let name = ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
        let mut stream = TlsConnector::from(client).connect(name, near).await?;
        stream.write_all(b"?").await?;
        let _ = stream.read_u8().await?;
        io::Result::Ok(stream)
    };
    let accepting = async {
        let mut stream = TlsAcceptor::from(server).accept(far).await?;
        let _ = stream.read_u8().await?;
        stream.write_all(b"!").await?;
        stream.flush().await?;
        io::Result::Ok(stream)
    };
    tokio::join!(connecting, accepting)
}

async fn between(client: &Credential, server: &Credential) -> Ends {
    connect(
        client.client_config(std::slice::from_ref(server.identity())),
        server.server_config(),
    )
    .await
}

fn server_side(ends: &Ends) -> &ServerConnection {
    ends.1.as_ref().expect("accepted").get_ref().1
}

fn client_error(ends: &Ends) -> String {
    ends.0.as_ref().expect_err("refused").to_string()
}

fn server_error(ends: &Ends) -> String {
    ends.1.as_ref().expect_err("refused").to_string()
}

#[tokio::test]
async fn good_peers_know_each_other() {
    let (ca, _dir) = embedded();
    let (web, cart) = (credential(&ca, &td("web")), credential(&ca, &td("cart")));
    let ends = between(&web, &cart).await;
    let (near, far) = (ends.0.as_ref().unwrap().get_ref().1, server_side(&ends));
    assert_eq!(peer_id(near.peer_certificates().unwrap()), Some(td("cart")));
    assert_eq!(peer_id(far.peer_certificates().unwrap()), Some(td("web")));
    assert_eq!(
        (near.alpn_protocol(), far.alpn_protocol()),
        (Some(ALPN_H2), Some(ALPN_H2))
    );
    assert_eq!(far.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(
        far.negotiated_key_exchange_group().unwrap().name(),
        NamedGroup::X25519MLKEM768
    );
    assert_eq!(far.server_name(), None, "no SNI");
}

#[tokio::test]
async fn nothing_is_resumed() {
    let (ca, _dir) = embedded();
    let (web, cart) = (credential(&ca, &td("web")), credential(&ca, &td("cart")));
    for _ in 0..2 {
        let ends = between(&web, &cart).await;
        assert_eq!(
            ends.0
                .as_ref()
                .unwrap()
                .get_ref()
                .1
                .tls13_tickets_received(),
            0
        );
        assert_ne!(
            server_side(&ends).handshake_kind(),
            Some(HandshakeKind::Resumed)
        );
    }
}

#[tokio::test]
async fn configurations_are_shared() {
    let (ca, _dir) = embedded();
    let web = credential(&ca, &td("web"));
    assert!(Arc::ptr_eq(&web.server_config(), &web.server_config()));
    assert!(Arc::ptr_eq(
        &web.client_config(&[td("a")]),
        &web.client_config(&[td("a")])
    ));
    assert!(!Arc::ptr_eq(
        &web.client_config(&[td("a")]),
        &web.client_config(&[td("b")])
    ));
    let first = Arc::downgrade(&web.client_config(&[td("a")]));
    for n in 0..1000 {
        web.client_config(&[td(&n.to_string())]);
    }
    assert!(first.upgrade().is_none(), "the cache is bounded");
}

#[tokio::test]
async fn another_root_is_refused_on_both_ends() {
    let ((ours, _a), (theirs, _b)) = (embedded(), embedded());
    let (web, cart) = (
        credential(&ours, &td("web")),
        credential(&theirs, &td("cart")),
    );
    let ends = between(&web, &cart).await;
    assert!(
        client_error(&ends).contains("invalid peer certificate"),
        "{}",
        client_error(&ends)
    );

    // A client that trusts the server, with a certificate of another root.
    let mut issued = theirs.issue_at(&td("web"), SystemTime::now()).unwrap();
    issued.roots = vec![ours.root().clone()];
    let stranger = Credential::new(&td("web"), issued, true, &Tls::default()).unwrap();
    let ends = between(&stranger, &credential(&ours, &td("cart"))).await;
    assert!(
        server_error(&ends).contains("invalid peer certificate"),
        "{}",
        server_error(&ends)
    );
    assert!(ends.0.is_err());
}

#[tokio::test]
async fn a_client_of_another_trust_domain_is_refused() {
    let (ca, _dir) = embedded();
    let (web, cart) = (
        credential(&ca, &id("spiffe://other/ns/ns/sa/web")),
        credential(&ca, &td("cart")),
    );
    let ends = between(&web, &cart).await;
    assert!(
        server_error(&ends).contains("peer did not present the expected trustdomain"),
        "{}",
        server_error(&ends)
    );
    assert_eq!(
        PeerError::within(ends.1.as_ref().unwrap_err()),
        Some(&PeerError::ForeignTrustDomain)
    );
    assert!(ends.0.is_err());
}

#[tokio::test]
async fn a_server_of_another_trust_domain_is_refused_by_what_is_expected_only() {
    let pki = Pki::new();
    let server = pki.credential(
        &["spiffe://td/ns/ns/sa/x", "spiffe://other/ns/ns/sa/x"],
        &BOTH_ENDS,
    );
    let web = pki.credential(&["spiffe://td/ns/ns/sa/web"], &BOTH_ENDS);
    let ends = connect(
        web.client_config(&[id("spiffe://other/ns/ns/sa/x")]),
        server.server_config(),
    )
    .await;
    assert!(ends.0.is_ok() && ends.1.is_ok());
    let ends = connect(
        web.client_config(&[id("spiffe://third/ns/ns/sa/x")]),
        server.server_config(),
    )
    .await;
    assert!(ends.0.is_err());
}

#[derive(Debug)]
struct NoCertificate;

impl ResolvesClientCert for NoCertificate {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn a_client_without_certificate_is_refused() {
    let (ca, _dir) = embedded();
    let (web, cart) = (credential(&ca, &td("web")), credential(&ca, &td("cart")));
    let mut config = (*web.client_config(&[td("cart")])).clone();
    config.client_auth_cert_resolver = Arc::new(NoCertificate);
    let ends = connect(Arc::new(config), cart.server_config()).await;
    assert!(
        server_error(&ends).contains("peer sent no certificates"),
        "{}",
        server_error(&ends)
    );
    assert!(ends.0.is_err());
}

/// A client that speaks nothing newer than TLS 1.2, otherwise as ours.
fn old_client(like: &ClientConfig) -> ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(embedded().0.root().clone()).unwrap();
    let mut config =
        ClientConfig::builder_with_provider(Arc::clone(Tls::new(true, false).provider()))
            .with_protocol_versions(&[&version::TLS12])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
    config.client_auth_cert_resolver = Arc::clone(&like.client_auth_cert_resolver);
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.enable_sni = false;
    config
}

#[tokio::test]
async fn tls12_only_on_demand() {
    let (ca, _dir) = embedded();
    let (web, cart) = (credential(&ca, &td("web")), credential(&ca, &td("cart")));
    let old = Arc::new(old_client(&web.client_config(&[td("cart")])));
    let ends = connect(Arc::clone(&old), cart.server_config()).await;
    assert!(
        server_error(&ends).contains("incompatible"),
        "{}",
        server_error(&ends)
    );

    let both = Tls::new(true, false);
    let issue = |id: &SpiffeId| {
        Credential::new(id, ca.issue_at(id, SystemTime::now()).unwrap(), true, &both).unwrap()
    };
    let (web, cart) = (issue(&td("web")), issue(&td("cart")));
    // The old client knows another root: that it says so shows that TLS 1.2 was agreed upon.
    let ends = connect(old, cart.server_config()).await;
    assert!(
        client_error(&ends).contains("invalid peer certificate"),
        "{}",
        client_error(&ends)
    );
    let ends = between(&web, &cart).await;
    assert_eq!(
        server_side(&ends).protocol_version(),
        Some(ProtocolVersion::TLSv1_3)
    );
    // A new client with a server that has only TLS 1.2 left.
    let mut only12 = ServerConfig::builder_with_provider(Arc::clone(both.provider()))
        .with_protocol_versions(&[&version::TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::clone(&cart.server_config().cert_resolver));
    only12.alpn_protocols = vec![ALPN_H2.to_vec()];
    let ends = connect(web.client_config(&[td("cart")]), Arc::new(only12)).await;
    assert_eq!(
        server_side(&ends).protocol_version(),
        Some(ProtocolVersion::TLSv1_2)
    );
}

#[tokio::test]
async fn application_protocols() {
    let (ca, _dir) = embedded();
    let (web, cart) = (credential(&ca, &td("web")), credential(&ca, &td("cart")));
    for (offered, agreed) in [
        (&[][..], Some(None)),
        (&["h2"][..], Some(Some(ALPN_H2))),
        (&["http/1.1", "h2"][..], Some(Some(ALPN_H2))),
        (&["http/1.1"][..], None),
        (&["h2c", "h3"][..], None),
    ] {
        let mut config = (*web.client_config(&[td("cart")])).clone();
        config.alpn_protocols = offered
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        let ends = connect(Arc::new(config), cart.server_config()).await;
        match agreed {
            Some(protocol) => {
                assert_eq!(server_side(&ends).alpn_protocol(), protocol, "{offered:?}")
            }
            None => assert!(ends.0.is_err() && ends.1.is_err(), "{offered:?} is refused"),
        }
    }
}

#[tokio::test]
async fn an_unexpected_server_is_refused_with_both_sets() {
    let (ca, _dir) = embedded();
    let (web, cart) = (credential(&ca, &td("web")), credential(&ca, &td("cart")));
    let ends = connect(web.client_config(&[td("a"), td("b")]), cart.server_config()).await;
    let expected = "identity verification error: peer did not present the expected SAN \
                    (spiffe://td/ns/ns/sa/a, spiffe://td/ns/ns/sa/b), got spiffe://td/ns/ns/sa/cart";
    assert!(
        client_error(&ends).ends_with(expected),
        "{}",
        client_error(&ends)
    );
    assert!(matches!(
        PeerError::within(ends.0.as_ref().unwrap_err()),
        Some(PeerError::UnexpectedServer { .. })
    ));
    assert!(ends.1.is_err());
    // Full equality, trust domain included; any one of the set will do.
    let ends = connect(
        web.client_config(&[id("spiffe://other/ns/ns/sa/cart")]),
        cart.server_config(),
    )
    .await;
    assert!(ends.0.is_err());
    let ends = connect(
        web.client_config(&[td("a"), td("cart")]),
        cart.server_config(),
    )
    .await;
    assert!(ends.0.is_ok());
}

#[tokio::test]
async fn nobody_expected_means_nobody_passes() {
    let (ca, _dir) = embedded();
    let (web, cart) = (credential(&ca, &td("web")), credential(&ca, &td("cart")));
    let ends = connect(web.client_config(&[]), cart.server_config()).await;
    let expected = "peer did not present the expected SAN (none), got spiffe://td/ns/ns/sa/cart";
    assert!(
        client_error(&ends).ends_with(expected),
        "{}",
        client_error(&ends)
    );
}

#[tokio::test]
async fn expired_peers_are_refused() {
    let (ca, _dir) = embedded();
    let old = ca
        .issue_at(&td("old"), SystemTime::now() - 3 * DAY)
        .unwrap();
    let old = Credential::new(&td("old"), old, true, &Tls::default()).unwrap();
    let web = credential(&ca, &td("web"));
    let ends = between(&web, &old).await;
    assert!(
        client_error(&ends).contains("certificate expired"),
        "{}",
        client_error(&ends)
    );
    let ends = between(&old, &web).await;
    assert!(
        server_error(&ends).contains("certificate expired"),
        "{}",
        server_error(&ends)
    );
    assert!(ends.0.is_err());
}

#[tokio::test]
async fn of_several_names_the_first_identity_counts() {
    let pki = Pki::new();
    let odd = pki.credential(
        &[
            "https://example.com/",
            "spiffe://td/ns/a/sa/first",
            "spiffe://td/ns/b/sa/second",
        ],
        &BOTH_ENDS,
    );
    let plain = pki.credential(&["spiffe://td/ns/c/sa/plain"], &BOTH_ENDS);
    let ends = between(&odd, &plain).await;
    let presented = server_side(&ends).peer_certificates().unwrap();
    assert_eq!(peer_id(presented), Some(id("spiffe://td/ns/a/sa/first")));
    assert_eq!(presented.len(), 2, "leaf and intermediate, root left out");
    // As a server, any of its names will do.
    let ends = connect(
        plain.client_config(&[id("spiffe://td/ns/b/sa/second")]),
        odd.server_config(),
    )
    .await;
    assert!(ends.0.is_ok());
    // One name of our trust domain is enough to get in, and the first identity still counts.
    let foreign = pki.credential(
        &["spiffe://other/ns/a/sa/x", "spiffe://td/ns/a/sa/y"],
        &BOTH_ENDS,
    );
    let ends = between(&foreign, &plain).await;
    assert_eq!(
        peer_id(server_side(&ends).peer_certificates().unwrap()),
        Some(id("spiffe://other/ns/a/sa/x"))
    );
    // Without any there is no way in.
    let nameless = pki.credential(&["https://example.com/"], &BOTH_ENDS);
    let ends = between(&nameless, &plain).await;
    assert!(server_error(&ends).contains("peer did not present the expected trustdomain"));
}

#[tokio::test]
async fn purposes_are_checked() {
    let pki = Pki::new();
    let uri = ["spiffe://td/ns/a/sa/b"];
    let client_only = pki.credential(&uri, &[ExtendedKeyUsagePurpose::ClientAuth]);
    let server_only = pki.credential(&uri, &[ExtendedKeyUsagePurpose::ServerAuth]);
    assert!(between(&client_only, &server_only).await.1.is_ok());
    assert!(
        client_error(&between(&client_only, &client_only).await)
            .contains("invalid peer certificate")
    );
    assert!(
        server_error(&between(&server_only, &server_only).await)
            .contains("invalid peer certificate")
    );
}

#[test]
fn useless_answers_of_an_issuer_are_refused() {
    let (ca, _dir) = embedded();
    let issue = || ca.issue_at(&td("a"), SystemTime::now()).unwrap();
    let refuse = |issued, strict| {
        Credential::new(&td("a"), issued, strict, &Tls::default())
            .expect_err("refused")
            .to_string()
    };
    let mut issued = issue();
    issued.chain.clear();
    assert_eq!(
        refuse(issued, true),
        "chain returned from CA is empty for: spiffe://td/ns/ns/sa/a"
    );
    let mut issued = issue();
    issued.roots = vec![b"rubbish".to_vec().into()];
    assert_eq!(
        refuse(issued, true),
        "no usable root came with the certificate for: spiffe://td/ns/ns/sa/a"
    );
    let mut issued = issue();
    issued.key = ca.issue_at(&td("a"), SystemTime::now()).unwrap().key;
    assert!(refuse(issued, true).contains("certificate or key refused"));
    let mut issued = issue();
    issued.key = Key::new(PrivatePkcs8KeyDer::from(vec![1, 2, 3]).into());
    assert!(refuse(issued, false).contains("certificate or key refused"));
    let other = ca.issue_at(&td("b"), SystemTime::now()).unwrap();
    assert_eq!(
        refuse(other, true),
        "did not find expected SAN: spiffe://td/ns/ns/sa/a"
    );
    // The first URI name counts, not any.
    let second = Pki::new().issue(
        &["https://example.com/", "spiffe://td/ns/ns/sa/a"],
        &BOTH_ENDS,
    );
    assert_eq!(
        refuse(second, true),
        "did not find expected SAN: spiffe://td/ns/ns/sa/a"
    );
    // Unparsable roots beside a good one are skipped.
    let mut issued = issue();
    issued.roots.insert(0, b"rubbish".to_vec().into());
    assert_eq!(
        Credential::new(&td("a"), issued, true, &Tls::default())
            .unwrap()
            .roots()
            .len(),
        1
    );
}

#[test]
fn nothing_secret_prints() {
    let (ca, _dir) = embedded();
    assert!(format!("{:?}", credential(&ca, &td("a"))).contains("[redacted]"));
    assert!(format!("{ca:?}").contains("[redacted]"));
}
