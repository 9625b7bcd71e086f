//! Peers that lie, babble or fall silent at the HBONE port: a reason each, no panic, no socket kept.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};

use http::{Method, Request, StatusCode};
use integration::{AccessLine, App, Daemon, Layout, Pod, until};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::peer::{Papers, Root, client, play, push, rest, tls};
use crate::support::{Mesh, SOON, connect, echo};

const HOUR: Duration = Duration::from_secs(3600);
const GOOD: &str = "spiffe://cluster.local/ns/other/sa/outsider";
/// Time after which a silent HTTP/2 peer is given up: a ping after 10 s, 20 s for its answer, and some.
const SILENCE_MAX: Duration = Duration::from_secs(45);

/// The mesh, and a place outside of it to attack from.
struct Scene {
    mesh: Mesh,
    _echo: App,
    from: PathBuf,
    server: Pod,
    fds: usize,
}

impl Scene {
    fn set() -> Result<Self> {
        let mesh = Mesh::up(&Layout::standard())?;
        let (server, from) = (
            mesh.pod("server-0").clone(),
            mesh.pod("outsider-0").netns.clone(),
        );
        let _echo = server.serve(&["echo"])?;
        // the first honest tunnel stays in the pool; after it the number of descriptors is steady
        echo(mesh.pod("client-0"), server.at(9000), &[])?;
        let fds = steady_fds(&mesh.daemons[1])?;
        Ok(Self {
            mesh,
            _echo,
            from,
            server,
            fds,
        })
    }

    fn daemon(&self) -> &Daemon {
        &self.mesh.daemons[1]
    }

    fn hbone(&self) -> SocketAddr {
        self.server.at(15008)
    }

    fn papers(&self) -> Result<Papers> {
        Root::of_world(&self.mesh.world.node(0).ca)?.papers(GOOD, HOUR, 2 * HOUR)
    }

    fn failed(&self, after: usize, fits: impl Fn(&AccessLine) -> bool) -> Result<AccessLine> {
        until(SOON, "an access-log line with the reason", || {
            let lines = self.daemon().access().split_off(after);
            Ok(lines
                .into_iter()
                .find(|line| !line.field("error").is_empty() && fits(line)))
        })
        .with_context(|| self.daemon().tail())
    }

    /// No panic, no descriptor more than before, and honest traffic goes on.
    fn check(&self) -> Result<()> {
        until(SOON, "descriptors given back", || {
            Ok((self.daemon().fds() <= self.fds).then_some(()))
        })
        .with_context(|| format!("{} now, {} before", self.daemon().fds(), self.fds))?;
        ensure!(
            !self.daemon().log().contains("panicked"),
            "{}",
            self.daemon().log()
        );
        echo(self.mesh.pod("client-0"), self.server.at(9000), &[])?;
        Ok(())
    }
}

/// The number of descriptors once it has not changed for a moment.
fn steady_fds(daemon: &Daemon) -> Result<usize> {
    let mut last = (0, 0);
    until(SOON, "a steady number of descriptors", || {
        let now = daemon.fds();
        last = if last.0 == now {
            (now, last.1 + 1)
        } else {
            (now, 0)
        };
        Ok((last.1 > 20).then_some(now))
    })
}

#[test]
fn strangers_and_babble_are_closed_with_a_reason() -> Result<()> {
    let scene = Scene::set()?;
    let to = scene.hbone();
    let raw: [(&str, Vec<u8>); 5] = [
        ("garbage", (0..=255u8).cycle().take(9000).collect()),
        ("HTTP/1.1", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        (
            "HTTP/2 without TLS",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        ),
        (
            "an oversized TLS record",
            [&[22, 3, 1, 0xff, 0xff][..], &[0; 70_000]].concat(),
        ),
        ("nothing at all", Vec::new()),
    ];
    for (what, bytes) in raw {
        let after = scene.daemon().access().len();
        let said = play(&scene.from, async || {
            let mut stream = TcpStream::connect(to).await?;
            push(&mut stream, &bytes).await;
            tokio::io::AsyncWriteExt::shutdown(&mut stream).await.ok();
            Ok(rest(stream).await.0)
        })
        .with_context(|| what.to_owned())?;
        assert!(
            said.len() < 100,
            "{what} was answered with {} bytes",
            said.len()
        );
        if !bytes.is_empty() {
            let line = scene
                .failed(after, |line| line.is("inbound"))
                .with_context(|| what.to_owned())?;
            assert_eq!(
                (line.level.as_str(), line.message.as_str()),
                ("warn", "connection failed"),
                "{}",
                line.text
            );
            assert!(
                line.field("src.addr")
                    .starts_with(&scene.mesh.pod("outsider-0").v4.to_string()),
                "{}",
                line.text
            );
        }
        scene.check().with_context(|| what.to_owned())?;
    }
    Ok(())
}

#[test]
fn wrong_papers_are_refused_with_a_reason() -> Result<()> {
    let scene = Scene::set()?;
    let to = scene.hbone();
    let root = Root::of_world(&scene.mesh.world.node(0).ca)?;
    let life = 2 * HOUR;
    let cases: [(&str, Option<Papers>, &str); 6] = [
        ("no certificate", None, ""),
        (
            "unknown root",
            Some(Root::unknown()?.papers(GOOD, HOUR, life)?),
            "",
        ),
        (
            "other trust domain",
            Some(root.papers("spiffe://elsewhere/ns/other/sa/outsider", HOUR, life)?),
            "trustdomain",
        ),
        ("expired", Some(root.papers(GOOD, life, HOUR)?), ""),
        (
            "not yet valid",
            Some(root.papers_from(GOOD, SystemTime::now() + HOUR, HOUR)?),
            "",
        ),
        (
            "no SPIFFE id",
            Some(root.papers("https://cluster.local/ns/other/sa/outsider", HOUR, life)?),
            "",
        ),
    ];
    for (what, papers, part) in cases {
        let after = scene.daemon().access().len();
        let config = client(papers, &["h2"])?;
        let (said, error) = play(&scene.from, async || {
            let mut stream = match tls(to, config).await {
                Ok(stream) => stream,
                Err(error) => return Ok((Vec::new(), Some(std::io::Error::other(error)))),
            };
            push(
                &mut stream,
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
            )
            .await;
            Ok(rest(stream).await)
        })
        .with_context(|| what.to_owned())?;
        assert!(
            said.is_empty() && error.is_some(),
            "{what}: answered with {said:?}, {error:?}"
        );
        let line = scene
            .failed(after, |line| line.is("inbound"))
            .with_context(|| what.to_owned())?;
        assert_eq!(line.message, "connection failed", "{what}: {}", line.text);
        assert!(line.field("error").contains(part), "{what}: {}", line.text);
        scene.check().with_context(|| what.to_owned())?;
    }
    Ok(())
}

#[test]
fn other_protocols_inside_of_tls_are_refused() -> Result<()> {
    let scene = Scene::set()?;
    let to = scene.hbone();
    let config = client(Some(scene.papers()?), &["http/1.1"])?;
    let refused = play(&scene.from, async || Ok(tls(to, config).await.map(drop)))?;
    assert!(refused.is_err(), "HTTP/1.1 by ALPN was accepted");
    let after = scene.daemon().access().len();
    for bytes in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[7; 40_000][..]] {
        let config = client(Some(scene.papers()?), &[])?;
        let said = play(&scene.from, async || {
            let mut stream = tls(to, config).await?;
            push(&mut stream, bytes).await;
            Ok(rest(stream).await.0)
        })?;
        assert!(!said.starts_with(b"HTTP/1"), "answered: {said:?}");
    }
    scene.failed(after, |line| line.is("inbound"))?;
    scene.check()
}

/// One request on a connection of its own; the status, or the error of the stream.
async fn ask(
    to: SocketAddr,
    config: Arc<rustls::ClientConfig>,
    request: Request<()>,
) -> Result<StatusCode> {
    let (sender, connection) = h2::client::handshake(tls(to, config).await?).await?;
    let driver = tokio::spawn(connection);
    let (answer, _body) = sender.ready().await?.send_request(request, false)?;
    let status = answer.await.map(|answer| answer.status());
    driver.abort();
    Ok(status?)
}

fn connect_to(authority: &str) -> Result<Request<()>> {
    Ok(Request::builder()
        .method(Method::CONNECT)
        .uri(authority)
        .body(())?)
}

#[test]
fn requests_for_what_is_not_ours_get_the_status_that_names_the_step() -> Result<()> {
    let scene = Scene::set()?;
    let to = scene.hbone();
    let (server, outsider) = (&scene.server, scene.mesh.pod("outsider-0"));
    let get = Request::builder()
        .method(Method::GET)
        .uri("https://x/")
        .body(())?;
    let cases: [(&str, Request<()>, u16); 11] = [
        (
            "the pod itself",
            connect_to(&server.at(9000).to_string())?,
            200,
        ),
        (
            "another pod",
            connect_to(&outsider.at(9000).to_string())?,
            400,
        ),
        (
            "another pod, v6",
            connect_to(&outsider.at6(9000).to_string())?,
            400,
        ),
        (
            "the pod's other family",
            connect_to(&server.at6(9000).to_string())?,
            400,
        ),
        ("loopback", connect_to("127.0.0.1:9000")?, 400),
        (
            "the outbound listener",
            connect_to(&server.at(15001).to_string())?,
            503,
        ),
        (
            "the HBONE listener",
            connect_to(&server.at(15008).to_string())?,
            503,
        ),
        (
            "no listener",
            connect_to(&server.at(9999).to_string())?,
            503,
        ),
        ("unknown service", connect_to("nowhere.example:80")?, 503),
        (
            "its service by name",
            connect_to("server.shop.svc.cluster.local:9000")?,
            200,
        ),
        ("another method", get, 400),
    ];
    for (what, request, wanted) in cases {
        let after = scene.daemon().access().len();
        let config = client(Some(scene.papers()?), &["h2"])?;
        let status = play(&scene.from, async || ask(to, config, request).await)
            .with_context(|| what.to_owned())?;
        assert_eq!(status.as_u16(), wanted, "{what}");
        if wanted != 200 {
            scene
                .failed(after, |line| line.is("inbound"))
                .with_context(|| what.to_owned())?;
        }
        scene.check().with_context(|| what.to_owned())?;
    }
    Ok(())
}

#[test]
fn oversized_headers_hurt_only_the_one_who_sends_them() -> Result<()> {
    let scene = Scene::set()?;
    let to = scene.hbone();
    for size in [100_000, 2_000_000] {
        let config = client(Some(scene.papers()?), &["h2"])?;
        let mut request = connect_to(&scene.server.at(9000).to_string())?;
        for n in 0..size / 8000 {
            let name = http::HeaderName::try_from(format!("x-filling-{n}"))?;
            request
                .headers_mut()
                .insert(name, http::HeaderValue::try_from("f".repeat(8000))?);
        }
        let answered = play(&scene.from, async || Ok(ask(to, config, request).await))?;
        assert!(
            !matches!(answered, Ok(StatusCode::OK)),
            "{size} bytes of headers were accepted"
        );
        scene.check()?;
    }
    Ok(())
}

#[test]
fn half_open_peers_are_given_back() -> Result<()> {
    const PEERS: usize = 300;
    let scene = Scene::set()?;
    let to = scene.hbone();
    let half_hello = [&[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[9; 100]].concat();
    play(&scene.from, async || {
        let mut peers = Vec::new();
        for n in 0..PEERS {
            let mut stream = TcpStream::connect(to).await?;
            if n % 2 == 0 {
                push(&mut stream, &half_hello).await;
            }
            peers.push(stream);
        }
        Ok(())
    })?;
    scene.check()?;
    // the same, but through TLS and without a word of HTTP/2
    let configs = (0..20)
        .map(|_| client(Some(scene.papers()?), &["h2"]))
        .collect::<Result<Vec<_>>>()?;
    play(&scene.from, async || {
        let mut peers = Vec::new();
        for config in configs {
            peers.push(tls(to, config).await?);
        }
        Ok(())
    })?;
    scene.check()
}

#[test]
fn a_peer_that_vanished_without_a_word_is_given_up() -> Result<()> {
    let scene = Scene::set()?;
    let to = scene.hbone();
    let outsider = scene.mesh.pod("outsider-0").clone();
    let config = client(Some(scene.papers()?), &["h2"])?;
    let request = connect_to(&scene.server.at(9000).to_string())?;
    play(&scene.from, async || {
        let (sender, connection) = h2::client::handshake(tls(to, config).await?).await?;
        let driver = tokio::spawn(connection);
        let (answer, _body) = sender.ready().await?.send_request(request, false)?;
        ensure!(answer.await?.status() == 200, "not accepted");
        // nothing, not even a FIN, gets out from here on
        integration::netns::ip(
            Some(&outsider.netns_name),
            &["link set eth0 down".to_owned()],
        )?;
        driver.abort();
        Ok(())
    })?;
    assert!(scene.daemon().fds() > scene.fds);
    until(SILENCE_MAX, "descriptors given back", || {
        Ok((scene.daemon().fds() <= scene.fds).then_some(()))
    })?;
    scene.check()
}

#[test]
fn a_server_with_the_wrong_identity_gets_nothing() -> Result<()> {
    let scene = Scene::set()?;
    let (world, outsider) = (&scene.mesh.world, scene.mesh.pod("outsider-0").clone());
    let papers = Root::of_world(&world.node(0).ca)?.papers(
        "spiffe://cluster.local/ns/other/sa/impostor",
        HOUR,
        2 * HOUR,
    )?;
    // the outsider is announced as one that speaks HBONE, but somebody else answers there
    let names = ["client-0", "server-0", "outsider-0"].map(str::to_owned);
    integration::model::replace(&world.dir().join("mesh.yaml"), &world.model().state(&names))?;
    scene.mesh.daemons[0].wait_dump(SOON, "the outsider announced", |dump| {
        let rows = dump["workloads"].as_array().cloned().unwrap_or_default();
        rows.iter()
            .any(|w| w["name"] == "outsider-0" && w["protocol"] == "HBONE")
    })?;
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(
        rustls::crypto::aws_lc_rs::default_provider(),
    ))
    .with_protocol_versions(&[&rustls::version::TLS13])?
    .with_no_client_auth()
    .with_single_cert(papers.chain, papers.key)?;
    let address = outsider.at(15008);
    let listener =
        integration::netns::inside(&outsider.netns, || std::net::TcpListener::bind(address))??;
    listener.set_nonblocking(true)?;
    let attempt = std::thread::spawn({
        let client = scene.mesh.pod("client-0").clone();
        let to = outsider.at(9000);
        move || connect(&client, to, &["--send", "secret"])
    });
    play(&outsider.netns, async || {
        let (stream, _) = tokio::net::TcpListener::from_std(listener)?
            .accept()
            .await?;
        if let Ok(stream) = TlsAcceptor::from(Arc::new(config)).accept(stream).await {
            let (said, _) = rest(stream).await;
            ensure!(
                !String::from_utf8_lossy(&said).contains("secret"),
                "the impostor got the secret"
            );
        }
        Ok(())
    })?;
    let Ok(seen) = attempt.join() else {
        bail!("the attempt panicked")
    };
    assert_ne!(seen?["received"], "secret");
    scene.mesh.daemons[0].wait_access("the reason", |line| {
        line.is("outbound")
            && line
                .field("error")
                .contains("peer did not present the expected SAN")
    })?;
    Ok(())
}
