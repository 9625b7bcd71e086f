//! Both ends of an inner tunnel and a gateway between them, over in-memory pipes, with real certificates.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use hbone::{Baggage, Server, Settings, StatusCode};
use identity::{EmbeddedCa, Tls};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio_rustls::TlsAcceptor;

use super::*;

const PIPE: usize = 64 << 10;
const MIB: usize = 1 << 20;

fn id(account: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", "shop", account)
}

struct Authority {
    ca: EmbeddedCa,
    _dir: TempDir,
}

impl Authority {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = EmbeddedCa::open(&dir.path().join("ca"), Duration::from_secs(3600)).unwrap();
        Self { ca, _dir: dir }
    }

    fn credential(&self, account: &str) -> Arc<Credential> {
        let issued = self.ca.issue_at(&id(account), SystemTime::now()).unwrap();
        Arc::new(Credential::new(&id(account), issued, true, &Tls::default()).unwrap())
    }
}

fn connect() -> hbone::Connect<'static> {
    hbone::Connect {
        authority: "cart.shop:80",
        baggage: hbone::HeaderValue::from_static(""),
        forwarded: hbone::Forwarded {
            client: "10.0.0.1:40000".parse().unwrap(),
            host: Some("cart.shop"),
        },
        traceparent: hbone::Traceparent::random(&mut rand::rng()),
        forwarded_network: Some("east"),
    }
}

/// What the far end does with a tunnel.
#[derive(Clone, Copy)]
enum Far {
    /// sends all back, then ends
    Echo,
    /// writes without end, and counts what it could hand over
    Flood,
    Refuse,
    /// takes the bytes of the TLS handshake and says nothing
    Silent,
}

/// One way through a gateway.
struct World {
    authority: Authority,
    outer: hbone::Tunnel,
    /// cuts the outer tunnel
    cut: oneshot::Sender<()>,
    /// how the outer stream ended at the gateway: true when nobody reset it
    ended: JoinHandle<bool>,
    /// bytes that a flood handed over
    flooded: Rc<Cell<usize>>,
}

async fn world(far: Far) -> World {
    let authority = Authority::new();
    let (near, gateway) = tokio::io::duplex(PIPE);
    let (into, behind) = tokio::io::duplex(PIPE);
    let (give, ended) = oneshot::channel();
    spawn_local(async move {
        let mut server = Server::handshake(gateway, &Settings::default())
            .await
            .unwrap();
        let request = server.accept().await.unwrap().unwrap();
        assert_eq!(request.head.unwrap().forwarded_network, None);
        let tunnel = request.reply.accept(None).unwrap();
        let passing = spawn_local(pass(tunnel, into));
        server.accept().await;
        let _ = give.send(passing.await.unwrap());
    });
    let flooded = Rc::<Cell<usize>>::default();
    let server = authority.credential("cart");
    spawn_local(answer(behind, server, far, flooded.clone()));
    let (cut, cutting) = oneshot::channel();
    let (sender, driver) = hbone::handshake(near, &Settings::default()).await.unwrap();
    let cutting = async move {
        if cutting.await.is_err() {
            std::future::pending().await
        }
    };
    spawn_local(driver.cut_when(cutting));
    let asked = hbone::Connect {
        forwarded_network: None,
        ..connect()
    };
    let outer = sender.connect(&asked).await.unwrap();
    World {
        authority,
        outer,
        cut,
        ended: spawn_local(async { ended.await.unwrap() }),
        flooded,
    }
}

/// A gateway: bytes both ways, half-closes as well; whether the stream was reset is the result.
async fn pass(tunnel: hbone::Tunnel, into: DuplexStream) -> bool {
    let (mut send, mut recv) = tunnel.split();
    let (mut read, mut write) = tokio::io::split(into);
    let up = async {
        while let Some(Ok(data)) = recv.data().await {
            write.write_all(&data).await.unwrap();
        }
        let _ = write.shutdown().await;
    };
    let down = async {
        let mut chunk = vec![0; PIPE];
        loop {
            let len = read.read(&mut chunk).await.unwrap_or(0);
            if len == 0 {
                break;
            }
            let mut data = bytes::Bytes::copy_from_slice(&chunk[..len]);
            while !data.is_empty() {
                let Ok(room) = send.ready(data.len()).await else {
                    return false;
                };
                send.write(data.split_to(room)).unwrap();
            }
        }
        // whoever resets does it before it is told the end
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        send.finish().is_ok()
    };
    tokio::join!(up, down).1
}

/// The proxy behind the gateway.
async fn answer(
    stream: DuplexStream,
    credential: Arc<Credential>,
    far: Far,
    flooded: Rc<Cell<usize>>,
) {
    if let Far::Silent = far {
        let mut stream = stream;
        let mut taken = [0; 1024];
        while stream.read(&mut taken).await.is_ok_and(|len| len > 0) {}
        return;
    }
    let Ok(stream) = TlsAcceptor::from(credential.server_config())
        .accept(stream)
        .await
    else {
        return;
    };
    let mut server = Server::handshake(stream, &Settings::default())
        .await
        .unwrap();
    while let Some(Ok(request)) = server.accept().await {
        let head = request.head.unwrap();
        assert_eq!(head.authority.to_string(), "cart.shop:80");
        assert_eq!(head.forwarded_network.as_deref(), Some("east"));
        if let Far::Refuse = far {
            request.reply.refuse(StatusCode::UNAUTHORIZED);
            continue;
        }
        let own = Baggage {
            namespace: Some("shop".into()),
            ..Baggage::default()
        };
        let tunnel = request.reply.accept(Some(&own.header())).unwrap();
        let (mut send, mut recv) = tunnel.split();
        let flooded = flooded.clone();
        spawn_local(async move {
            if let Far::Flood = far {
                let chunk = bytes::Bytes::from(vec![1; PIPE]);
                while let Ok(room) = send.ready(PIPE).await {
                    send.write(chunk.slice(..room)).unwrap();
                    flooded.set(flooded.get() + room);
                }
                return;
            }
            while let Some(Ok(mut data)) = recv.data().await {
                while !data.is_empty() {
                    let Ok(room) = send.ready(data.len()).await else {
                        return;
                    };
                    send.write(data.split_to(room)).unwrap();
                }
            }
            let _ = send.finish();
        });
    }
}

async fn open(
    authority: &Authority,
    outer: hbone::Tunnel,
    expected: &str,
) -> Result<Crossing, Failure> {
    let inner = Inner {
        credential: authority.credential("web"),
        expected: &[id(expected)],
        connect: connect(),
        settings: &Settings::default(),
        pod: &"uid".into(),
        gateway: "10.0.0.9:15008".parse().unwrap(),
    };
    inner.open(outer).await
}

struct Nothing;

impl Count for Nothing {
    fn up(&self, _: usize) {}
    fn down(&self, _: usize) {}
}

/// An application's connection: its end and ours.
async fn application() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = TcpStream::connect(listener.local_addr().unwrap());
    let (app, accepted) = tokio::join!(app, listener.accept());
    (app.unwrap(), accepted.unwrap().0)
}

fn run<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, test)
}

#[test]
fn much_goes_both_ways_and_the_outer_stream_ends_in_good_order() {
    run(async {
        let world = world(Far::Echo).await;
        let crossing = open(&world.authority, world.outer, "cart").await.unwrap();
        assert_eq!(crossing.peer, Some(id("cart")));
        assert_eq!(crossing.baggage().namespace.as_deref(), Some("shop"));
        let (app, mut ours) = application().await;
        let copying = spawn_local(async move { crossing.copy(&mut ours, &Nothing).await });
        let (mut read, mut write) = app.into_split();
        let writing = spawn_local(async move {
            let chunk: Vec<u8> = (0..MIB).map(|n| n as u8).collect();
            for _ in 0..32 {
                write.write_all(&chunk).await.unwrap();
            }
            // half-closed: what comes back still comes
            write.shutdown().await.unwrap();
            write
        });
        let mut back = Vec::new();
        read.read_to_end(&mut back).await.unwrap();
        assert_eq!(back.len(), 32 * MIB);
        assert!(back.iter().enumerate().all(|(at, byte)| *byte == at as u8));
        drop(writing.await.unwrap());
        copying.await.unwrap().unwrap();
        assert!(world.ended.await.unwrap(), "the outer stream was reset");
    });
}

#[test]
fn nobody_holds_what_the_application_does_not_take() {
    run(async {
        let world = world(Far::Flood).await;
        let crossing = open(&world.authority, world.outer, "cart").await.unwrap();
        let (mut app, mut ours) = application().await;
        spawn_local(async move { crossing.copy(&mut ours, &Nothing).await });
        app.write_all(b"x").await.unwrap();
        // until nothing moves any more
        let (mut before, mut still) = (0, 0);
        while still < 1000 {
            tokio::task::yield_now().await;
            let now = world.flooded.get();
            still = if now == before && now > 0 {
                still + 1
            } else {
                0
            };
            before = now;
        }
        // the far end's send buffer, one window here, the pipes, and what the kernel takes for the application
        let bound = 16 * MIB;
        assert!(before < bound, "{before} bytes are held");
        drop(app);
    });
}

#[test]
fn whoever_is_not_expected_behind_the_gateway_gets_nothing() {
    run(async {
        let world = world(Far::Echo).await;
        let refused = open(&world.authority, world.outer, "other").await;
        let Err(Failure::Tls(cause)) = refused.map(drop) else {
            panic!("it is not who was expected");
        };
        let text = cause.to_string();
        assert!(
            text.starts_with("behind the gateway 10.0.0.9:15008: "),
            "{text}"
        );
    });
}

#[test]
fn a_refusal_of_the_far_end_is_its_status() {
    run(async {
        let world = world(Far::Refuse).await;
        let refused = open(&world.authority, world.outer, "cart").await.map(drop);
        let refused = refused.unwrap_err();
        assert_eq!(refused.to_string(), "http status: 401 Unauthorized");
        assert!(world.ended.await.unwrap(), "the outer stream was reset");
    });
}

#[test]
fn a_far_end_that_says_nothing_is_not_waited_for_for_ever() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        let world = world(Far::Silent).await;
        let started = tokio::time::Instant::now();
        let refused = open(&world.authority, world.outer, "cart").await.map(drop);
        let Err(Failure::Tls(cause)) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(cause.kind(), io::ErrorKind::TimedOut);
        assert!(started.elapsed() >= TLS_TIMEOUT);
    });
}

#[test]
fn a_gateway_that_is_revoked_ends_what_goes_through_it() {
    run(async {
        let world = world(Far::Echo).await;
        let crossing = open(&world.authority, world.outer, "cart").await.unwrap();
        let (_app, mut ours) = application().await;
        world.cut.send(()).unwrap();
        let ended = crossing.copy(&mut ours, &Nothing).await;
        assert!(matches!(ended, Err(Failure::CertRevoked)), "{ended:?}");
    });
}
