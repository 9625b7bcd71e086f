//! How tunnels and connections end when a peer goes its own way: an Envoy that refuses, drains, restarts or closes.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hbone::{Pool, Server, Settings, TunnelError};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::task::spawn_local;

use crate::support::*;

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// A pipe whose end shows as an error, as TLS shows a close without close_notify.
struct Torn(DuplexStream, Option<io::ErrorKind>);

impl AsyncRead for Torn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.0).poll_read(cx, buf))?;
        match self.1 {
            Some(kind) if buf.filled().len() == before => Poll::Ready(Err(kind.into())),
            _ => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for Torn {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// How the transport ends, and whether that is an end of data.
const ENDS: [(Option<io::ErrorKind>, bool); 3] = [
    (None, true),
    (Some(io::ErrorKind::UnexpectedEof), true),
    (Some(io::ErrorKind::ConnectionReset), false),
];

/// Both halves of a tunnel after `data` and the end of the connection under it.
async fn check(tunnel: hbone::Tunnel, is_end: bool, what: &str) {
    let (mut send, mut recv) = tunnel.split();
    let read = read_all(&mut recv).await;
    let gone = send.ready(1).await.unwrap_err();
    assert_eq!(gone.is_gone(), is_end, "{what}: {gone}");
    match read {
        Ok(data) => assert!(is_end && data == b"data", "{what}: {data:?}"),
        Err(error) => assert!(
            !is_end && matches!(error, TunnelError::H2(_)),
            "{what}: {error}"
        ),
    }
}

#[test]
fn a_connection_that_the_peer_closes_ends_the_data_and_one_that_breaks_does_not() {
    run(async {
        for (end, is_end) in ENDS {
            let (near, far) = tokio::io::duplex(PIPE);
            let settings = Settings::default();
            let shake = hbone::handshake(Torn(near, end), &settings);
            let (sender, driver) = shake.await.unwrap();
            let driving = spawn_local(driver);
            let mut raw = Raw(far);
            raw.read_preface().await;
            raw.write(&frame(SETTINGS, 0, 0, &[])).await;
            let asking = spawn_local(async move { sender.connect(&connect()).await.unwrap() });
            let stream = raw.accept().await;
            let tunnel = asking.await.unwrap();
            raw.write(&frame(DATA, 0, stream, b"data")).await;
            drop(raw);
            let _ = driving.await.unwrap();
            check(tunnel, is_end, &format!("client, {end:?}")).await;
        }
    });
}

#[test]
fn the_same_at_the_server() {
    run(async {
        for (end, is_end) in ENDS {
            let (near, far) = tokio::io::duplex(PIPE);
            let mut raw = Raw::client(near).await;
            let block = connect_block(b"10.0.0.2:80");
            raw.write(&frame(HEADERS, END_HEADERS, 1, &block)).await;
            raw.write(&frame(DATA, 0, 1, b"data")).await;
            let settings = Settings::default();
            let shake = Server::handshake(Torn(far, end), &settings);
            let mut server = shake.await.unwrap();
            let request = server.accept().await.unwrap().unwrap();
            let tunnel = request.reply.accept(None).unwrap();
            drop(raw);
            let _ = server.accept().await;
            check(tunnel, is_end, &format!("server, {end:?}")).await;
        }
    });
}

#[test]
fn a_connection_given_up_here_is_no_end_of_data() {
    run_paused(async {
        // the peer answers no PING
        let (mut raw, sender, driving) = Raw::server().await;
        let asking = spawn_local(async move { sender.connect(&connect()).await.unwrap() });
        let stream = raw.accept().await;
        let tunnel = asking.await.unwrap();
        raw.write(&frame(DATA, 0, stream, b"data")).await;
        assert!(driving.await.unwrap().is_err());
        check(tunnel, false, "silent peer").await;
        // dropped, as with the pool of a pod that leaves
        let (mut raw, sender, driving) = Raw::server().await;
        let asking = spawn_local(async move { sender.connect(&connect()).await.unwrap() });
        raw.accept().await;
        let tunnel = asking.await.unwrap();
        driving.abort();
        let _ = driving.await;
        check(tunnel, false, "dropped").await;
    });
}

/// `:status: 503` in HPACK.
fn status_503() -> Vec<u8> {
    literal(8, b"503")
}

/// `:status: 404`, the same.
const STATUS_404: &[u8] = &[0x8d];

#[test]
fn a_refusal_with_a_body_and_a_reset_is_its_status() {
    run(async {
        const CONNECT_ERROR: [u8; 4] = [0, 0, 0, 10];
        for (block, text) in [
            (status_503(), "http status: 503 Service Unavailable"),
            (STATUS_404.to_vec(), "http status: 404 Not Found"),
        ] {
            let (mut raw, sender, _driving) = Raw::server().await;
            let asking = spawn_local({
                let sender = sender.clone();
                async move { sender.connect(&connect()).await.map(drop) }
            });
            let stream = raw.read_event().await.stream;
            // all of it is there before the answer is looked at
            raw.write(&frame(HEADERS, END_HEADERS, stream, &block))
                .await;
            raw.write(&frame(DATA, 0, stream, &[b'x'; 98])).await;
            raw.write(&frame(RST_STREAM, 0, stream, &CONNECT_ERROR))
                .await;
            let refused = asking.await.unwrap().unwrap_err();
            assert_eq!(refused.to_string(), text);
            assert!(!refused.peer_left());
            // and the connection goes on
            assert!(sender.is_usable());
            let asking = spawn_local(async move { sender.connect(&connect()).await.map(drop) });
            raw.accept().await;
            asking.await.unwrap().unwrap();
        }
    });
}

#[test]
fn goaway_beside_an_answer_spares_the_tunnel_and_the_next_one_is_dialled() {
    run(async {
        let pool = Pool::<&str>::new(&Settings::default());
        let peers = Rc::<RefCell<Vec<Raw>>>::default();
        let dial = async || {
            let (raw, sender_io) = {
                let (near, far) = tokio::io::duplex(PIPE);
                (Raw(far), near)
            };
            peers.borrow_mut().push(raw);
            hbone::handshake(sender_io, &Settings::default()).await
        };
        let slot = pool.get(&"waypoint", dial).await.unwrap();
        let mut raw = peers.borrow_mut().pop().unwrap();
        raw.read_preface().await;
        raw.write(&frame(SETTINGS, 0, 0, &[])).await;
        let asking = spawn_local(async move { slot.connect(&connect()).await.unwrap() });
        let stream = raw.read_event().await.stream;
        raw.write(&frame(GOAWAY, 0, 0, &[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]))
            .await;
        raw.write(&frame(HEADERS, END_HEADERS, stream, &[STATUS_200]))
            .await;
        let (mut send, mut recv) = asking.await.unwrap().split();
        let _next = pool.get(&"waypoint", dial).await.unwrap();
        assert_eq!(peers.borrow().len(), 1, "a new connection");
        write_all(&mut send, "still".into()).await.unwrap();
        assert_eq!(raw.read_event().await, frame(DATA, 0, stream, b"still"));
        raw.write(&frame(DATA, END_STREAM, stream, b"here")).await;
        assert_eq!(read_all(&mut recv).await.unwrap(), b"here");
    });
}

#[test]
fn a_restarted_peer_fails_who_asks_too_early_and_nobody_else() {
    run(async {
        let pool = Pool::<&str>::new(&Settings::default());
        let peers = Rc::<RefCell<Vec<DuplexStream>>>::default();
        let listens = Cell::new(true);
        let dial = async || {
            if !listens.get() {
                return Err(io::ErrorKind::ConnectionRefused);
            }
            let (near, far) = tokio::io::duplex(PIPE);
            peers.borrow_mut().push(far);
            let shake = hbone::handshake(near, &Settings::default()).await;
            shake.map_err(|_| io::ErrorKind::Other)
        };
        let asked = connect();
        let waiting = pool.get(&"waypoint", dial).await.unwrap();
        // killed: nothing is said, the connection is gone
        drop(peers.borrow_mut().pop());
        listens.set(false);
        let lost = waiting.connect(&asked).await.unwrap_err();
        assert!(lost.peer_left(), "{lost}");
        assert!(lost.to_string().starts_with("io error: "), "{lost}");
        let refused = pool.get(&"waypoint", dial).await.unwrap_err();
        assert_eq!(refused.to_string(), "connection refused");
        listens.set(true);
        let slot = pool.get(&"waypoint", dial).await.unwrap();
        let far = peers.borrow_mut().pop().unwrap();
        let _serving = serve(far, Settings::default(), echo);
        slot.connect(&asked).await.unwrap();
    });
}

#[test]
fn a_limit_that_is_told_late_is_kept_from_the_second_tunnel_on() {
    run(async {
        const LIMIT: usize = 10;
        let server = Settings {
            server_streams: u32::try_from(LIMIT).unwrap(),
            ..Settings::default()
        };
        let pool = Pool::<&str>::new(&Settings::default());
        // tunnels asked for on each connection
        let asked = Rc::<RefCell<Vec<Rc<Cell<usize>>>>>::default();
        let tasks: Vec<_> = (0..25)
            .map(|_| {
                let (pool, asked, server) = (pool.clone(), asked.clone(), server.clone());
                spawn_local(async move {
                    let dial = async || {
                        let (near, far) = tokio::io::duplex(PIPE);
                        let count = Rc::<Cell<usize>>::default();
                        asked.borrow_mut().push(count.clone());
                        serve(far, server, move |request| {
                            count.set(count.get() + 1);
                            echo(request)
                        });
                        hbone::handshake(near, &Settings::default()).await
                    };
                    let slot = pool.get(&"peer", dial).await.unwrap();
                    slot.connect(&connect()).await.unwrap()
                })
            })
            .collect();
        let mut tunnels = Vec::new();
        for task in tasks {
            let opened = tokio::time::timeout(PATIENCE, task).await;
            tunnels.push(opened.expect("waits for a limit").unwrap());
        }
        let counts: Vec<_> = asked.borrow().iter().map(|count| count.get()).collect();
        assert_eq!(counts, [LIMIT, LIMIT, 5], "none refused, none waited for");
    });
}

/// Reasons of a GOAWAY that a close follows, and whether that is an end of data: NO_ERROR, PROTOCOL_ERROR,
/// ENHANCE_YOUR_CALM.
const FAREWELLS: [(u8, bool); 3] = [(0, true), (1, false), (11, false)];

#[test]
fn a_connection_that_the_peer_ends_for_an_error_is_no_end_of_data() {
    run(async {
        for (code, is_end) in FAREWELLS {
            let (mut raw, sender, driving) = Raw::server().await;
            let asking = spawn_local(async move { sender.connect(&connect()).await.unwrap() });
            let stream = raw.accept().await;
            let tunnel = asking.await.unwrap();
            raw.write(&frame(DATA, 0, stream, b"data")).await;
            let last = u8::try_from(stream).unwrap();
            raw.write(&frame(GOAWAY, 0, 0, &[0, 0, 0, last, 0, 0, 0, code]))
                .await;
            drop(raw);
            assert_eq!(driving.await.unwrap().is_ok(), is_end, "client, {code}");
            check(tunnel, is_end, &format!("client, GOAWAY {code}")).await;
        }
        for (code, is_end) in FAREWELLS {
            let (near, far) = tokio::io::duplex(PIPE);
            let mut raw = Raw::client(near).await;
            let block = connect_block(b"10.0.0.2:80");
            raw.write(&frame(HEADERS, END_HEADERS, 1, &block)).await;
            raw.write(&frame(DATA, 0, 1, b"data")).await;
            let mut server = Server::handshake(far, &Settings::default()).await.unwrap();
            let request = server.accept().await.unwrap().unwrap();
            let tunnel = request.reply.accept(None).unwrap();
            raw.write(&frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, code]))
                .await;
            drop(raw);
            assert_eq!(server.accept().await.is_none(), is_end, "server, {code}");
            check(tunnel, is_end, &format!("server, GOAWAY {code}")).await;
        }
    });
}
