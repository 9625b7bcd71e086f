//! A pod that leaves says so to its peers, at both ends of its tunnels: nobody goes on to use one whose address may be
//! another pod's tomorrow. The frames are read off the wire, after TLS.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use integration::{Daemon, Layout, World, netns, place};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use crate::peer::{Papers, Root, client, play, tls};
use crate::support::{Mesh, world};

const HOUR: Duration = Duration::from_secs(3600);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Frame types (RFC 9113, section 6).
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
/// SETTINGS without a setting.
const NO_SETTINGS: &[u8] = &[0, 0, 0, SETTINGS, 0, 0, 0, 0, 0];
/// The answer 200 on stream 1: HEADERS with END_HEADERS, and entry 8 of HPACK's static table.
const OK: &[u8] = &[0, 0, 1, HEADERS, 4, 0, 0, 0, 1, 0x88];

/// The next frame: type and payload; none at the end.
async fn frame(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<(u8, Vec<u8>)>> {
    let mut head = [0; 9];
    if stream.read_exact(&mut head).await.is_err() {
        return Ok(None);
    }
    let len = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; len as usize];
    stream.read_exact(&mut payload).await?;
    Ok(Some((head[3], payload)))
}

/// Reads on to a frame of this type.
async fn until(kind: u8, stream: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>> {
    let mut seen = Vec::new();
    while let Some((next, payload)) = frame(stream).await? {
        if next == kind {
            return Ok(payload);
        }
        seen.push(next);
    }
    bail!("closed after frames {seen:?}, without one of type {kind}")
}

/// GOAWAY without an error, then nothing but the end.
async fn goodbye(stream: &mut (impl AsyncRead + Unpin)) -> Result<()> {
    let goaway = until(GOAWAY, stream).await?;
    ensure!(goaway[4..8] == [0; 4], "GOAWAY {goaway:?}");
    while let Some((kind, _)) = frame(stream).await? {
        ensure!(kind != HEADERS, "a new stream after GOAWAY");
    }
    Ok(())
}

/// Takes a pod off its node, as if it were deleted.
fn delete(world: &World, name: &str) -> Result<()> {
    world.model().pods.retain(|pod| pod.name != name);
    world.publish_enrolment()
}

fn papers(world: &World, identity: &str) -> Result<Papers> {
    Root::of_world(&world.node(0).ca)?.papers(identity, HOUR, 2 * HOUR)
}

#[test]
fn a_pod_that_leaves_says_goodbye_to_its_clients() -> Result<()> {
    let mesh = Mesh::up(&Layout::standard())?;
    let (server, outsider) = (mesh.pod("server-0"), mesh.pod("outsider-0"));
    let papers = papers(&mesh.world, &outsider.identity())?;
    let (to, config) = (server.at(15008), client(Some(papers), &["h2"])?);
    play(&outsider.netns, async || {
        let mut stream = tls(to, config).await?;
        stream.write_all(&[PREFACE, NO_SETTINGS].concat()).await?;
        until(SETTINGS, &mut stream).await?;
        delete(&mesh.world, "server-0")?;
        goodbye(&mut stream).await
    })
    .with_context(|| mesh.daemons[1].tail())
}

#[test]
fn a_pod_that_leaves_says_goodbye_to_its_servers() -> Result<()> {
    let world = world(&Layout::standard())?;
    let daemon = world.daemon(0)?;
    world.label("shop", true, &[&daemon])?;
    let (client, server) = (world.pod("client-0"), world.pod("server-0"));
    let listener = netns::inside(&server.netns, || {
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, 15008))
    })??;
    listener.set_nonblocking(true)?;
    let papers = papers(&world, &server.identity())?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(papers.chain, papers.key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let binary = place::binary("podapp")?;
    let to = server.at(9000).to_string();
    let _app = client.spawn(&[&binary.to_string_lossy(), "hold", "--to", &to])?;
    play(&server.netns, async || {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let (tcp, _) = listener.accept().await?;
        let mut stream = TlsAcceptor::from(Arc::new(config)).accept(tcp).await?;
        let mut preface = [0; PREFACE.len()];
        stream.read_exact(&mut preface).await?;
        ensure!(preface == PREFACE);
        stream.write_all(NO_SETTINGS).await?;
        until(HEADERS, &mut stream).await?;
        stream.write_all(OK).await?;
        delete(&world, "client-0")?;
        goodbye(&mut stream).await
    })
    .with_context(|| Daemon::tail(&daemon))
}
