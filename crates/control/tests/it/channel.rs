//! Who the server must be and what it hears from us, seen on calls for a certificate.

use std::time::{Duration, SystemTime};

use control::ca::IstioCa;
use control::channel::{Config, ConfigError, Roots, Token};
use identity::{IssueError, Issuer};
use mesh::SpiffeId;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tonic::Code;

use crate::pki::Pki;
use crate::server::{Answer, Hello, Istiod};

const HOUR: Duration = Duration::from_secs(3600);

/// The error that the server gives once a call has come through.
const THROUGH: &str = "signing gRPC error (Internal): came through";

async fn istiod(tls: std::sync::Arc<rustls::ServerConfig>) -> Istiod {
    let istiod = Istiod::start(tls).await;
    istiod.answer(Answer::Refuse(Code::Internal, "came through"));
    istiod
}

async fn call(ca: &IstioCa) -> String {
    crate::soon(ca.issue(&SpiffeId::new("td", "ns", "sa")))
        .await
        .unwrap_err()
        .to_string()
}

fn ca(config: Config) -> IstioCa {
    IstioCa::new(config, HOUR).unwrap()
}

fn config(istiod: &Istiod, host: &str, pki: &Pki) -> Config {
    Config::new(istiod.url(host), Roots::Inline(pki.pem()))
}

#[tokio::test]
async fn name_is_sent_address_is_not_and_only_h2_is_offered() {
    let pki = Pki::new();
    let mut istiod = istiod(pki.server(&["localhost", "127.0.0.1"])).await;
    for (host, sni) in [("localhost", Some("localhost")), ("127.0.0.1", None)] {
        assert_eq!(call(&ca(config(&istiod, host, &pki))).await, THROUGH);
        let expected = Hello {
            sni: sni.map(str::to_owned),
            alpn: Some(b"h2".to_vec()),
        };
        assert_eq!(istiod.hello().await, expected);
    }
}

#[tokio::test]
async fn either_name_suffices() {
    let pki = Pki::new();
    let cases: [(&[&str], &str, Option<&str>, bool); 9] = [
        (&["localhost"], "localhost", None, true),
        (&["localhost"], "localhost", Some("other.test"), true),
        (&["other.test"], "localhost", Some("other.test"), true),
        (&["other.test"], "127.0.0.1", Some("other.test"), true),
        (&["10.9.8.7"], "localhost", Some("10.9.8.7"), true),
        (&["other.test"], "localhost", None, false),
        (&["third.test"], "localhost", Some("other.test"), false),
        (&["localhost"], "127.0.0.1", None, false),
        (&["127.0.0.1"], "localhost", None, false),
    ];
    for (names, host, alternative, good) in cases {
        let istiod = istiod(pki.server(names)).await;
        let error = call(&ca(Config {
            alternative_name: alternative.map(str::to_owned),
            ..config(&istiod, host, &pki)
        }))
        .await;
        if good {
            assert_eq!(error, THROUGH, "{names:?} {host} {alternative:?}");
        } else {
            let start = format!(
                "signing gRPC error (Unavailable): TLS handshake with {host} at 127.0.0.1:"
            );
            assert!(error.starts_with(&start), "{error}");
            assert!(error.contains("not valid for name"), "{error}");
        }
    }
}

#[tokio::test]
async fn chain_and_expiry_count_with_either_name() {
    let (pki, stranger) = (Pki::new(), Pki::new());
    let now = SystemTime::now();
    let expired = |names: &[&str]| pki.server_at(names, now - 3 * HOUR, now - HOUR);
    let early = |names: &[&str]| pki.server_at(names, now + HOUR, now + 3 * HOUR);
    let cases = [
        (stranger.server(&["localhost"]), "UnknownIssuer"),
        (stranger.server(&["other.test"]), "UnknownIssuer"),
        (expired(&["localhost"]), "expired"),
        (expired(&["other.test"]), "expired"),
        (early(&["localhost"]), "not valid yet"),
        (early(&["other.test"]), "not valid yet"),
    ];
    for (tls, expected) in cases {
        let istiod = istiod(tls).await;
        let error = call(&ca(Config {
            alternative_name: Some("other.test".into()),
            ..config(&istiod, "localhost", &pki)
        }))
        .await;
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[tokio::test]
async fn headers_say_who_we_are() {
    let pki = Pki::new();
    let mut istiod = istiod(pki.server(&["localhost"])).await;
    let headers = vec![
        ("X_Tenant".to_owned(), "blue".to_owned()),
        ("x-secret-bin".to_owned(), "any".to_owned()),
    ];
    let anonymous = ca(Config {
        headers: headers.clone(),
        ..config(&istiod, "localhost", &pki)
    });
    assert_eq!(call(&anonymous).await, THROUGH);
    let sent = istiod.signing().await.headers;
    assert_eq!(sent["x_tenant"], "blue");
    assert_eq!(sent["x-secret-bin"], "any");
    assert!(!sent.contains_key("authorization") && !sent.contains_key("clusterid"));

    let known = ca(Config {
        headers,
        token: Some(Token::Inline("t0ken".into())),
        cluster_id: "c1".into(),
        ..config(&istiod, "localhost", &pki)
    });
    assert_eq!(call(&known).await, THROUGH);
    let sent = istiod.signing().await.headers;
    assert_eq!(sent["authorization"], "Bearer t0ken");
    assert_eq!(sent["clusterid"], "c1");
    assert_eq!(sent["x_tenant"], "blue");
}

#[tokio::test]
async fn token_file_is_read_for_every_call() {
    let pki = Pki::new();
    let mut istiod = istiod(pki.server(&["localhost"])).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    let ca = ca(Config {
        token: Some(Token::File(path.clone())),
        ..config(&istiod, "localhost", &pki)
    });
    let error = call(&ca).await;
    assert!(
        error.starts_with("signing gRPC error (Unauthenticated): read token from")
            && error.contains("No such file"),
        "{error}"
    );
    for token in ["one", "two"] {
        std::fs::write(&path, token).unwrap();
        assert_eq!(call(&ca).await, THROUGH);
        let sent = istiod.signing().await.headers;
        assert_eq!(sent["authorization"], format!("Bearer {token}"));
    }
    std::fs::write(&path, "").unwrap();
    assert!(
        call(&ca).await.ends_with("token is empty"),
        "an empty token"
    );
    assert_eq!(istiod.unseen().1, 0, "nothing is asked for without a token");
}

#[tokio::test]
async fn settings_are_checked_before_anything_is_sent() {
    let plain = Config::new("http://localhost:1", Roots::System);
    let error = IstioCa::new(plain, HOUR).unwrap_err();
    assert!(matches!(error, ConfigError::Address { .. }), "{error}");
}

#[tokio::test]
async fn a_name_that_leads_nowhere_is_told() {
    let pki = Pki::new();
    let gone = istiod(pki.server(&["localhost"])).await;
    let ca_gone = ca(config(&gone, "127.0.0.1", &pki));
    let address = gone.address;
    drop(gone);
    // the listener closes with the task that holds it
    let error = loop {
        let error = call(&ca_gone).await;
        if error != THROUGH {
            break error;
        }
    };
    assert!(
        error.contains(&format!(
            "connect to 127.0.0.1: {address}: Connection refused"
        )),
        "{error}"
    );
    let unknown = ca(Config::new(
        "https://no-such-host.invalid:1",
        Roots::Inline(pki.pem()),
    ));
    let error = unknown
        .issue(&SpiffeId::new("td", "ns", "sa"))
        .await
        .unwrap_err();
    assert!(matches!(&error, IssueError::Signing { code, .. } if code == "Unavailable"));
    assert!(
        error.to_string().contains("resolve no-such-host.invalid"),
        "{error}"
    );
}

/// The child's settings: where the server is, and where to write what came of the call.
const CHILD: [&str; 2] = ["SYSTEM_ROOTS_OF", "SYSTEM_ROOTS_SAID"];

/// The system's store is what `SSL_CERT_FILE` names. A process's environment is its own, so the call is made by another one: this very
/// test, which then finds [`CHILD`] set.
#[tokio::test]
async fn the_systems_store_is_trusted_and_nobody_else() {
    if let [Ok(url), Ok(said)] = CHILD.map(std::env::var) {
        let error = call(&ca(Config::new(url, Roots::System))).await;
        std::fs::write(said, error).unwrap();
        return;
    }
    let (pki, stranger) = (Pki::new(), Pki::new());
    let istiod = istiod(pki.server(&["localhost"])).await;
    let dir = tempfile::tempdir().unwrap();
    let (store, said) = (dir.path().join("store.pem"), dir.path().join("said"));
    for (root, expected) in [(&pki, THROUGH), (&stranger, "UnknownIssuer")] {
        root.write(&store);
        let name = "channel::the_systems_store_is_trusted_and_nobody_else";
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child
            .args(["--exact", name])
            .env(CHILD[0], istiod.url("localhost"))
            .env(CHILD[1], &said)
            .env("SSL_CERT_FILE", &store)
            .env_remove("SSL_CERT_DIR");
        let output = tokio::task::spawn_blocking(move || child.output());
        let output = crate::soon(output).await.unwrap().unwrap();
        assert!(output.status.success(), "{output:?}");
        let error = std::fs::read_to_string(&said).unwrap();
        assert!(error.ends_with(expected), "{expected}: {error}");
    }
}

/// The payload of the next HTTP/2 frame of this type (RFC 9113, section 4.1) on the connection as a whole.
async fn frame(stream: &mut (impl AsyncRead + Unpin), wanted: u8) -> Vec<u8> {
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload).await.unwrap();
        if head[3] == wanted && head[5..] == [0; 4] {
            return payload;
        }
    }
}

/// Windows, lists of headers and pushes are limited from the first bytes on.
#[tokio::test]
async fn limits_of_http2_are_told_at_once() {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const SETTINGS: u8 = 4;
    const WINDOW_UPDATE: u8 = 8;
    const ENABLE_PUSH: u16 = 2;
    const INITIAL_WINDOW_SIZE: u16 = 4;
    const MAX_HEADER_LIST_SIZE: u16 = 6;
    let pki = Pki::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!(
        "https://localhost:{}",
        listener.local_addr().unwrap().port()
    );
    let ca = ca(Config::new(url, Roots::Inline(pki.pem())));
    let seen = async {
        let (tcp, _) = listener.accept().await.unwrap();
        let acceptor = TlsAcceptor::from(pki.server(&["localhost"]));
        let mut tls = acceptor.accept(tcp).await.unwrap();
        let mut preface = [0; PREFACE.len()];
        tls.read_exact(&mut preface).await.unwrap();
        assert_eq!(preface, PREFACE);
        let settings = frame(&mut tls, SETTINGS).await;
        (settings, frame(&mut tls, WINDOW_UPDATE).await)
    };
    let id = SpiffeId::new("td", "ns", "sa");
    let (settings, update) = tokio::select! {
        seen = crate::soon(seen) => seen,
        ended = ca.issue(&id) => panic!("{:?}", ended.err()),
    };
    let setting = |id: u16| {
        let mut all = settings.chunks_exact(6);
        let found = all.find(|one| one[..2] == id.to_be_bytes())?;
        Some(u32::from_be_bytes(found[2..].try_into().unwrap()))
    };
    assert_eq!(setting(ENABLE_PUSH), Some(0));
    assert_eq!(setting(INITIAL_WINDOW_SIZE), Some(4 << 20));
    assert_eq!(setting(MAX_HEADER_LIST_SIZE), Some(64 << 10));
    // on top of what a connection has from the start
    let more = u32::from_be_bytes(update.try_into().unwrap());
    assert_eq!(more, (4 << 20) - 65_535);
}
