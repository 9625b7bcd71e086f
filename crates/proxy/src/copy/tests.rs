//! How tunnels end, as peers that are no proxies of ours end them.

use std::cell::Cell;

use bytes::Bytes;
use h2::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::{LocalSet, spawn_local};

use super::*;

const PIPE: usize = 64 << 10;
/// Turns in which everything that can go on has gone on.
const YIELDS: usize = 50;
/// What h2 lets a peer send before it says more.
const WINDOW: usize = 65_535;

#[test]
fn reads_grow_with_the_flow() {
    for (moved, size) in [
        (0, 1024),
        (131_071, 1024),
        (131_072, 16_320),
        (10_485_759, 16_320),
        (10_485_760, 262_080),
    ] {
        assert_eq!(read_size(moved), size, "{moved}");
    }
}

#[derive(Default)]
struct Counted {
    up: Cell<usize>,
    down: Cell<usize>,
}

impl Count for Counted {
    fn up(&self, bytes: usize) {
        self.up.set(self.up.get() + bytes);
    }

    fn down(&self, bytes: usize) {
        self.down.set(self.down.get() + bytes);
    }
}

fn run<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, test)
}

/// A TCP connection: the application's end and ours.
async fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = TcpStream::connect(listener.local_addr().unwrap());
    let (app, accepted) = tokio::join!(app, listener.accept());
    (app.unwrap(), accepted.unwrap().0)
}

/// What a waypoint has of a tunnel to a server.
struct Waypoint {
    send: h2::SendStream<Bytes>,
    recv: h2::RecvStream,
}

/// A tunnel from a waypoint; ours is the server's end.
async fn from_waypoint() -> (Waypoint, hbone::Tunnel) {
    let (near, far): (DuplexStream, _) = tokio::io::duplex(PIPE);
    let (give, tunnel) = tokio::sync::oneshot::channel();
    spawn_local(async move {
        let settings = hbone::Settings::default();
        let mut server = hbone::Server::handshake(far, &settings).await.unwrap();
        let request = server.accept().await.unwrap().unwrap();
        assert!(give.send(request.reply.accept(None).unwrap()).is_ok());
        server.accept().await;
    });
    let (h2, connection) = h2::client::handshake(near).await.unwrap();
    spawn_local(connection);
    let request = http_connect();
    let (response, send) = h2
        .ready()
        .await
        .unwrap()
        .send_request(request, false)
        .unwrap();
    let recv = response.await.unwrap().into_body();
    (Waypoint { send, recv }, tunnel.await.unwrap())
}

fn http_connect() -> http::Request<()> {
    let request = http::Request::connect("10.0.0.2:80").version(http::Version::HTTP_2);
    request.body(()).unwrap()
}

#[test]
fn a_waypoint_that_lets_go_of_an_idle_tunnel_is_no_error() {
    for (code, is_error) in [
        (Reason::INTERNAL_ERROR, false),
        (Reason::NO_ERROR, false),
        (Reason::CANCEL, false),
        (Reason::PROTOCOL_ERROR, true),
        (Reason::CONNECT_ERROR, true),
    ] {
        run(async {
            let (mut waypoint, tunnel) = from_waypoint().await;
            let (mut app, mut ours) = tcp().await;
            let copying = spawn_local(async move {
                let counted = Counted::default();
                let ended = from_tunnel(tunnel, &mut ours, &counted).await;
                (ended, counted)
            });
            waypoint.send.send_data("question".into(), false).unwrap();
            let mut question = [0; 8];
            app.read_exact(&mut question).await.unwrap();
            app.write_all(b"answer").await.unwrap();
            let answer = waypoint.recv.data().await.unwrap().unwrap();
            assert_eq!(
                (&question[..], &answer[..]),
                (&b"question"[..], &b"answer"[..])
            );
            waypoint.send.send_reset(code);
            let (ended, counted) = copying.await.unwrap();
            assert_eq!(ended.is_err(), is_error, "{code:?}: {ended:?}");
            assert_eq!((counted.up.get(), counted.down.get()), (8, 6));
            // the application learns that nothing more comes
            assert_eq!(app.read(&mut question).await.unwrap(), 0);
        });
    }
}

#[test]
fn what_the_waypoint_had_sent_before_it_let_go_arrives() {
    run(async {
        let (mut waypoint, tunnel) = from_waypoint().await;
        let (mut app, mut ours) = tcp().await;
        waypoint
            .send
            .send_data(vec![7; WINDOW].into(), false)
            .unwrap();
        let copying =
            spawn_local(async move { from_tunnel(tunnel, &mut ours, &Counted::default()).await });
        let mut first = [0];
        app.read_exact(&mut first).await.unwrap();
        waypoint.send.send_reset(Reason::INTERNAL_ERROR);
        let mut rest = Vec::new();
        app.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest.len(), WINDOW - 1);
        copying.await.unwrap().unwrap();
    });
}

#[test]
fn a_waypoint_that_lets_go_while_the_application_speaks_is_an_error() {
    run(async {
        let (mut waypoint, tunnel) = from_waypoint().await;
        let (mut app, mut ours) = tcp().await;
        let copying =
            spawn_local(async move { from_tunnel(tunnel, &mut ours, &Counted::default()).await });
        app.write_all(&[1; 2 * WINDOW]).await.unwrap();
        let mut received = 0;
        // the window is not given back: the rest waits
        while received < WINDOW {
            received += waypoint.recv.data().await.unwrap().unwrap().len();
        }
        waypoint.send.send_reset(Reason::INTERNAL_ERROR);
        let ended = copying.await.unwrap();
        assert!(
            matches!(&ended, Err(Failure::Data(cut)) if cut.is_let_go()),
            "{ended:?}"
        );
    });
}

fn ask() -> hbone::Connect<'static> {
    hbone::Connect {
        authority: "10.0.0.2:80",
        baggage: hbone::HeaderValue::from_static(""),
        forwarded: hbone::Forwarded {
            client: "10.0.0.1:40000".parse().unwrap(),
            host: None,
        },
        traceparent: hbone::Traceparent::random(&mut rand::rng()),
        forwarded_network: None,
    }
}

/// A tunnel to a server that has answered with `answer` and then reset it; ours is the client's end, all of it received.
async fn to_server(answer: Bytes, reset: Reason) -> hbone::Tunnel {
    let (near, far) = tokio::io::duplex(PIPE);
    let (done, is_reset) = tokio::sync::oneshot::channel();
    spawn_local(async move {
        let mut server = h2::server::handshake(far).await.unwrap();
        let (_, mut respond) = server.accept().await.unwrap().unwrap();
        let mut send = respond
            .send_response(http::Response::new(()), false)
            .unwrap();
        send.send_data(answer, false).unwrap();
        spawn_local(async move {
            // what was sent is on its way by then: a reset takes the place of what is not
            for _ in 0..YIELDS {
                tokio::task::yield_now().await;
            }
            send.send_reset(reset);
            done.send(()).unwrap();
        });
        server.accept().await;
    });
    let settings = hbone::Settings::default();
    let (sender, driver) = hbone::handshake(near, &settings).await.unwrap();
    spawn_local(driver);
    let tunnel = sender.connect(&ask()).await.unwrap();
    is_reset.await.unwrap();
    for _ in 0..YIELDS {
        tokio::task::yield_now().await;
    }
    tunnel
}

#[test]
fn a_server_that_lets_go_of_a_clients_tunnel_is_an_error() {
    run(async {
        let tunnel = to_server(Bytes::from_static(b"half an ans"), Reason::INTERNAL_ERROR).await;
        let (_app, mut ours) = tcp().await;
        let ended = into_tunnel(&mut ours, tunnel, &Counted::default()).await;
        assert!(
            matches!(&ended, Err(Failure::Data(cut)) if cut.is_let_go()),
            "{ended:?}"
        );
    });
}

#[test]
fn what_a_server_said_before_a_reset_arrives() {
    for (code, is_error) in [
        (Reason::CONNECT_ERROR, true),
        (Reason::NO_ERROR, false),
        (Reason::INTERNAL_ERROR, true),
        (Reason::PROTOCOL_ERROR, true),
    ] {
        // again and again, because which half is asked first is left to chance
        for _ in 0..10 {
            run(async {
                let tunnel = to_server(vec![7; WINDOW - 1].into(), code).await;
                let (mut app, mut ours) = tcp().await;
                let counted = Counted::default();
                let ended = into_tunnel(&mut ours, tunnel, &counted).await;
                assert_eq!(ended.is_err(), is_error, "{code:?}: {ended:?}");
                assert_eq!(counted.down.get(), WINDOW - 1, "{code:?}");
                drop(ours);
                let mut all = Vec::new();
                app.read_to_end(&mut all).await.unwrap();
                assert_eq!(all.len(), WINDOW - 1, "{code:?}");
            });
        }
    }
}

/// Bytes of a socket's buffers in `slow_tcp`: as few as the kernel allows.
const NARROW: u32 = 4096;
/// What fills them.
const FILL: usize = 256 << 10;
/// Frames of one byte, more than h2 keeps for one connection.
const TINY: usize = 100_000;

/// As `tcp`, with little room between the two.
async fn slow_tcp() -> (TcpStream, TcpStream) {
    let (listener, app) = (TcpSocket::new_v4().unwrap(), TcpSocket::new_v4().unwrap());
    listener.set_send_buffer_size(NARROW).unwrap();
    app.set_recv_buffer_size(NARROW).unwrap();
    listener.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = listener.listen(1).unwrap();
    let app = app.connect(listener.local_addr().unwrap());
    let (app, accepted) = tokio::join!(app, listener.accept());
    (app.unwrap(), accepted.unwrap().0)
}

/// A client's connection with two tunnels, and the server's ends of them.
async fn two_tunnels() -> [(hbone::Tunnel, hbone::Tunnel); 2] {
    let (near, far) = tokio::io::duplex(PIPE);
    let settings = hbone::Settings::default();
    let (give, mut taken) = tokio::sync::mpsc::unbounded_channel();
    let server = settings.clone();
    spawn_local(async move {
        let mut server = hbone::Server::handshake(far, &server).await.unwrap();
        while let Some(Ok(request)) = server.accept().await {
            let _ = give.send(request.reply.accept(None).unwrap());
        }
    });
    let (sender, driver) = hbone::handshake(near, &settings).await.unwrap();
    spawn_local(driver);
    let first = sender.connect(&ask()).await.unwrap();
    let first = (first, taken.recv().await.unwrap());
    let second = sender.connect(&ask()).await.unwrap();
    [first, (second, taken.recv().await.unwrap())]
}

async fn send(half: &mut hbone::SendHalf, mut data: Bytes) {
    while !data.is_empty() {
        let room = half.ready(data.len()).await.unwrap();
        half.write(data.split_to(room)).unwrap();
    }
}

/// `FILL` bytes, then `TINY` frames of one byte.
async fn fill_and_trickle(half: &mut hbone::SendHalf) {
    send(half, vec![1; FILL].into()).await;
    for n in 0..TINY {
        send(half, Bytes::copy_from_slice(&[n as u8])).await;
        if n % 1000 == 0 {
            tokio::task::yield_now().await;
        }
    }
}

#[test]
fn an_application_that_does_not_read_harms_nobody_on_its_tunnel() {
    run(async {
        let [(near, far), (other_near, other_far)] = two_tunnels().await;
        let (mut app, mut ours) = slow_tcp().await;
        let copying = spawn_local(async move {
            let counted = Counted::default();
            let ended = into_tunnel(&mut ours, near, &counted).await;
            (ended, counted.down.get())
        });
        let (mut far_send, _far_recv) = far.split();
        fill_and_trickle(&mut far_send).await;
        // behind all of that
        far_send.finish().unwrap();
        let ((mut ask, mut answer), (mut reply, mut question)) =
            (other_near.split(), other_far.split());
        for _ in 0..YIELDS {
            send(&mut ask, Bytes::from_static(b"still there?")).await;
            assert_eq!(question.data().await.unwrap().unwrap(), "still there?");
            send(&mut reply, Bytes::from_static(b"yes")).await;
            assert_eq!(answer.data().await.unwrap().unwrap(), "yes");
        }
        app.shutdown().await.unwrap();
        let mut all = Vec::new();
        app.read_to_end(&mut all).await.unwrap();
        assert_eq!(all.len(), FILL + TINY);
        let expected = (0..TINY).map(|n| n as u8);
        assert!(all[FILL..].iter().copied().eq(expected), "in order");
        let (ended, down) = copying.await.unwrap();
        ended.unwrap();
        assert_eq!(down, FILL + TINY);
    });
}

#[test]
fn what_waits_for_an_application_is_no_more_than_a_window() {
    run(async {
        let [(near, far), _other] = two_tunnels().await;
        let (mut app, mut ours) = slow_tcp().await;
        spawn_local(async move { into_tunnel(&mut ours, near, &Counted::default()).await });
        let (mut far_send, _far_recv) = far.split();
        let window = hbone::Settings::default().stream_window as usize;
        let sent = Cell::new(0);
        let sending = async {
            loop {
                send(&mut far_send, vec![1; 16 << 10].into()).await;
                sent.set(sent.get() + (16 << 10));
            }
        };
        let _ = tokio::time::timeout(std::time::Duration::from_millis(300), sending).await;
        // and what the two sockets and the peer's send buffer hold
        assert!(
            (window..window + (1 << 20)).contains(&sent.get()),
            "{}",
            sent.get()
        );
        let mut some = vec![0; 1 << 20];
        app.read_exact(&mut some).await.unwrap();
    });
}
