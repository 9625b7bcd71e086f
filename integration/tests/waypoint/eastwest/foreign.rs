//! A client that is no daemon of ours, and says less about itself: both tunnels made by hand, from the transit.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::{Method, Request};
use integration::AccessLine;
use integration::world::networks::Named;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio_rustls::TlsConnector;

use super::scene::{EAST, ECHO, Scene, WEST};
use integration::peer::{Papers, Root, client, play, tls};

const HOUR: Duration = Duration::from_secs(3600);
/// Who the client says it is.
const FOREIGNER: &str = "spiffe://cluster.local/ns/abroad/sa/foreigner";
/// Bytes between the two tunnels.
const BETWEEN: usize = 64 << 10;

/// A CONNECT stream over a connection that is there.
///
/// Errors: any answer but 200 is one, with the status.
async fn tunnel(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    authority: &str,
    headers: &[(&str, &str)],
) -> Result<DuplexStream> {
    let (sender, connection) = h2::client::handshake(stream).await?;
    tokio::spawn(connection);
    let mut request = Request::builder().method(Method::CONNECT).uri(authority);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (answer, up) = sender
        .ready()
        .await?
        .send_request(request.body(())?, false)?;
    let answer = answer.await?;
    anyhow::ensure!(
        answer.status() == 200,
        "status {}",
        answer.status().as_u16()
    );
    let (mine, theirs) = tokio::io::duplex(BETWEEN);
    let (from, to) = tokio::io::split(theirs);
    tokio::spawn(send(from, up));
    tokio::spawn(receive(answer.into_body(), to));
    Ok(mine)
}

/// Everything read, into the stream.
async fn send(mut from: impl AsyncRead + Unpin, mut up: SendStream<Bytes>) -> Result<()> {
    let mut buf = vec![0; BETWEEN];
    loop {
        let n = from.read(&mut buf).await?;
        up.send_data(Bytes::copy_from_slice(&buf[..n]), n == 0)?;
        if n == 0 {
            return Ok(());
        }
    }
}

/// Everything of the stream, written.
async fn receive(mut down: RecvStream, mut to: impl AsyncWrite + Unpin) -> Result<()> {
    while let Some(data) = down.data().await {
        let data = data?;
        to.write_all(&data).await?;
        down.flow_control().release_capacity(data.len())?;
    }
    to.shutdown().await?;
    Ok(())
}

/// Through the east's gateway to its service, with these headers inside: what is echoed, and the server's line.
fn exchange(scene: &Scene, inner: &[(&str, &str)]) -> Result<(String, AccessLine)> {
    let root = Root::of_world(&scene.net.sides[WEST].world.node(0).ca)?;
    let papers = || -> Result<Papers> { root.papers(FOREIGNER, HOUR, 2 * HOUR) };
    let (outer_tls, inner_tls) = (
        client(Some(papers()?), &["h2"])?,
        client(Some(papers()?), &["h2"])?,
    );
    let gateway = SocketAddr::new(scene.net.sides[EAST].outside4.into(), 15008);
    let authority = format!("server-east.shop.svc.cluster.local:{ECHO}");
    let after = scene.lines(EAST);
    let said = play(&scene.net.sides[WEST].world.node(0).netns, async || {
        let outer = tunnel(tls(gateway, outer_tls).await?, &authority, &[]).await?;
        let name = ServerName::IpAddress(gateway.ip().into());
        let stream = TlsConnector::from(inner_tls).connect(name, outer).await?;
        let mut inside = tunnel(stream, &authority, inner).await.context("inside")?;
        inside.write_all(b"from abroad").await?;
        inside.shutdown().await?;
        let mut said = String::new();
        inside.read_to_string(&mut said).await?;
        Ok(said)
    })?;
    Ok((said, scene.inbound(EAST, after)?))
}

#[test]
fn a_client_that_names_no_network_is_served_and_known_by_its_certificate() -> Result<()> {
    let scene = Scene::set(Named::Address)?;
    let between = "eastwest-east-0";
    let baggage = "k8s.namespace.name=abroad,k8s.deployment.name=wanderer,service.name=wanderer";
    let cases: [(&[(&str, &str)], &str); 5] = [
        // whoever comes from the network itself is looked up by address, and that is the gateway's
        (&[], between),
        (&[("baggage", baggage)], between),
        (
            &[("x-forwarded-network", "EAST"), ("baggage", baggage)],
            between,
        ),
        // whoever says that it comes from another is not
        (
            &[("x-forwarded-network", "west"), ("baggage", baggage)],
            "wanderer",
        ),
        (
            &[("x-forwarded-network", ""), ("baggage", baggage)],
            "wanderer",
        ),
    ];
    for (headers, name) in cases {
        let (said, line) = exchange(&scene, headers).with_context(|| format!("{headers:?}"))?;
        assert_eq!(said, "from abroad", "{headers:?}");
        assert_eq!(
            line.field("src.identity"),
            FOREIGNER,
            "{headers:?}: {}",
            line.text
        );
        assert_eq!(
            line.field("src.workload"),
            name,
            "{headers:?}: {}",
            line.text
        );
        assert_eq!(line.field("error"), "", "{headers:?}: {}", line.text);
    }
    Ok(())
}
