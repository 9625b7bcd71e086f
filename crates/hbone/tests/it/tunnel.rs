//! The data phase: half-close, resets, back-pressure, protocols inside.

use bytes::Bytes;
use hbone::{Settings, TunnelError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::spawn_local;

use crate::support::*;

#[test]
fn each_direction_ends_on_its_own() {
    run(async {
        for client_first in [true, false] {
            let Pair {
                near, far, sender, ..
            } = pair().await;
            let (first, second) = if client_first {
                (near, far)
            } else {
                (far, near)
            };
            let (mut a_send, mut a_recv) = first.split();
            let (mut b_send, mut b_recv) = second.split();
            write_all(&mut a_send, "over".into()).await.unwrap();
            a_send.finish().unwrap();
            assert_eq!(read_all(&mut b_recv).await.unwrap(), b"over");
            assert!(b_recv.is_end() && !a_recv.is_end());
            write_all(&mut b_send, "and back".into()).await.unwrap();
            b_send.finish().unwrap();
            assert_eq!(read_all(&mut a_recv).await.unwrap(), b"and back");
            assert!(
                a_send.ready(1).await.unwrap_err().is_gone(),
                "finished is finished"
            );
            drop((a_send, a_recv, b_send, b_recv));
            assert_eq!(sender.open(), 0);
            assert!(sender.is_usable());
        }
    });
}

#[test]
fn a_connection_closes_with_its_last_tunnel_and_sender() {
    run(async {
        let Pair {
            near,
            far,
            sender,
            driving,
            ..
        } = pair().await;
        drop(sender);
        let (mut a_send, mut a_recv) = near.split();
        let (mut b_send, mut b_recv) = far.split();
        write_all(&mut a_send, "still here".into()).await.unwrap();
        a_send.finish().unwrap();
        b_send.finish().unwrap();
        assert_eq!(read_all(&mut b_recv).await.unwrap(), b"still here");
        assert_eq!(read_all(&mut a_recv).await.unwrap(), b"");
        assert!(!driving.is_finished());
        drop((a_send, a_recv));
        driving.await.unwrap().unwrap();
    });
}

/// What both halves of a client's tunnel see after the peer sent "data" and RST_STREAM with `code`.
async fn after_reset(code: u8) -> (Result<Vec<u8>, TunnelError>, TunnelError) {
    let (mut raw, sender, _driving) = Raw::server().await;
    let asking = spawn_local(async move { sender.connect(&connect()).await.unwrap() });
    let stream = raw.accept().await;
    let (mut send, mut recv) = asking.await.unwrap().split();
    send.ready(1).await.unwrap();
    raw.write(&frame(DATA, 0, stream, b"data")).await;
    raw.write(&frame(RST_STREAM, 0, stream, &[0, 0, 0, code]))
        .await;
    let closed = std::future::poll_fn(|cx| send.poll_closed(cx)).await;
    let written = send.write("x".into()).unwrap_err();
    let read = read_all(&mut recv).await;
    assert!(recv.data().await.is_none());
    let why = send.ready(1).await.unwrap_err();
    assert_eq!(
        (closed.is_gone(), written.is_gone()),
        (why.is_gone(), why.is_gone())
    );
    (read, why)
}

#[test]
fn resets_are_ends_or_errors_by_their_code() {
    run(async {
        // NO_ERROR, CANCEL, STREAM_CLOSED.
        for code in [0, 8, 5] {
            let (read, why) = after_reset(code).await;
            assert_eq!(read.unwrap(), b"data", "code {code}");
            assert!(why.is_gone(), "code {code}: {why}");
        }
        // PROTOCOL_ERROR, INTERNAL_ERROR, REFUSED_STREAM, ENHANCE_YOUR_CALM.
        for code in [1, 2, 7, 11] {
            let (read, why) = after_reset(code).await;
            assert!(
                matches!(read, Err(TunnelError::Reset(_))),
                "code {code}: {read:?}"
            );
            assert!(matches!(why, TunnelError::Reset(_)), "code {code}: {why}");
            assert!(why.to_string().starts_with("h2 failed: "), "{why}");
        }
    });
}

#[test]
fn goaway_spares_the_streams_it_names() {
    run(async {
        let (mut raw, sender, _driving) = Raw::server().await;
        let asking = spawn_local({
            let sender = sender.clone();
            async move { sender.connect(&connect()).await.unwrap() }
        });
        let stream = raw.accept().await;
        let (mut send, mut recv) = asking.await.unwrap().split();
        let unserved = spawn_local({
            let sender = sender.clone();
            async move { sender.connect(&connect()).await.map(drop) }
        });
        assert_eq!(raw.read_event().await.kind, HEADERS);
        raw.write(&frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]))
            .await;
        let refused = unserved.await.unwrap().unwrap_err();
        assert!(refused.to_string().starts_with("h2 failed: "), "{refused}");
        assert!(!sender.is_usable() && sender.reserve().is_none());
        write_all(&mut send, "going on".into()).await.unwrap();
        assert_eq!(raw.read_event().await, frame(DATA, 0, stream, b"going on"));
        raw.write(&frame(DATA, END_STREAM, stream, b"indeed")).await;
        assert_eq!(read_all(&mut recv).await.unwrap(), b"indeed");
    });
}

#[test]
fn a_slow_reader_stops_the_writer() {
    run(async {
        const TOTAL: usize = 64 << 20;
        const CHUNK: usize = 256 << 10;
        let Pair { near, far, .. } = pair().await;
        let (mut send, _recv) = near.split();
        let (_send, mut recv) = far.split();
        let sent = std::rc::Rc::new(std::cell::Cell::new(0));
        let writing = spawn_local({
            let sent = sent.clone();
            async move {
                let chunk = Bytes::from(vec![7; CHUNK]);
                while sent.get() < TOTAL {
                    let len = send.ready(CHUNK).await.unwrap();
                    send.write(chunk.slice(..len)).unwrap();
                    sent.set(sent.get() + len);
                }
                send.finish().unwrap();
                send
            }
        });
        // Window in the peer, send buffer here, and what the pipe and the frame buffers hold.
        let bound = (4 << 20) + (4 << 20) + (1 << 20);
        let mut read = 0;
        while let Some(data) = recv.data().await {
            read += data.unwrap().len();
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            assert!(
                sent.get() - read <= bound,
                "{} bytes are held",
                sent.get() - read
            );
        }
        assert_eq!(read, sent.get());
        writing.await.unwrap();
    });
}

#[test]
fn a_stalled_tunnel_does_not_stop_its_neighbours() {
    run(async {
        let (near, far) = tokio::io::duplex(PIPE);
        let stalled = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
        let keep = stalled.clone();
        serve(far, Settings::default(), move |request| {
            let keep = keep.clone();
            async move {
                let first = keep.borrow().is_empty();
                if !first {
                    return echo(request).await;
                }
                keep.borrow_mut().push(request.reply.accept(None).unwrap());
            }
        });
        let (sender, _driving) = client(near).await;
        let (mut full, _recv) = sender.connect(&connect()).await.unwrap().split();
        // One byte a frame, as a chatty application writes: until the window or the patience of a test is used up.
        for _ in 0..40_000 {
            full.ready(1).await.unwrap();
            full.write("x".into()).unwrap();
        }
        // And then as much as the window takes.
        let mut held = 40_000;
        let chunk = Bytes::from(vec![0; 64 << 10]);
        while held < (4 << 20) {
            let len = full.ready(chunk.len().min((4 << 20) - held)).await.unwrap();
            full.write(chunk.slice(..len)).unwrap();
            held += len;
        }
        let (mut send, mut recv) = sender.connect(&connect()).await.unwrap().split();
        write_all(&mut send, Bytes::from(vec![1; 1 << 20]))
            .await
            .unwrap();
        send.finish().unwrap();
        assert_eq!(read_all(&mut recv).await.unwrap().len(), 1 << 20);
        assert_eq!(stalled.borrow().len(), 1);
    });
}

#[test]
fn unused_capacity_goes_back_to_the_connection() {
    run(async {
        let Pair {
            near,
            far: _far,
            sender,
            more: _more,
            ..
        } = pair().await;
        // The peer allows 16 MiB for all, 4 MiB each; asked for and written is much less.
        let mut halves = Vec::new();
        for _ in 0..20 {
            let (mut send, recv) = sender.connect(&connect()).await.unwrap().split();
            send.ready(4 << 20).await.unwrap();
            send.write("x".into()).unwrap();
            halves.push((send, recv));
        }
        let (mut send, _recv) = near.split();
        assert_eq!(send.ready(1).await.unwrap(), 1);
    });
}

#[test]
fn hbone_runs_inside_hbone() {
    run(async {
        let Pair { near, far, .. } = pair().await;
        spawn_local(async move {
            let mut server = hbone::Server::handshake(far.into_io(), &Settings::default())
                .await
                .unwrap();
            while let Some(request) = server.accept().await {
                spawn_local(echo(request.unwrap()));
            }
        });
        let (sender, driver) = hbone::handshake(near.into_io(), &Settings::default())
            .await
            .unwrap();
        let driving = spawn_local(driver);
        let mut io = sender.connect(&connect()).await.unwrap().into_io();
        drop(sender);
        let sent: Vec<u8> = (0..1_000_000u32).map(|n| n as u8).collect();
        let (mut read, mut write) = tokio::io::split(&mut io);
        let mut received = Vec::new();
        let writing = async {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let reading = async { read.read_to_end(&mut received).await.unwrap() };
        tokio::join!(writing, reading);
        assert!(
            received == sent,
            "{} of {} bytes",
            received.len(),
            sent.len()
        );
        drop(io);
        driving.await.unwrap().unwrap();
    });
}

/// Frames of one byte in one burst, more than h2 keeps for one connection.
const BURST: usize = 100_000;

#[test]
fn a_burst_of_small_frames_that_is_read_harms_nobody() {
    run(async {
        // all of it there at once, as in the buffer of a socket
        let (near, far) = tokio::io::duplex(16 * BURST);
        let mut raw = Raw::client(near).await;
        let block = connect_block(b"10.0.0.2:80");
        raw.write(&frame(HEADERS, END_HEADERS, 1, &block)).await;
        let mut server = hbone::Server::handshake(far, &Settings::default())
            .await
            .unwrap();
        let request = server.accept().await.unwrap().unwrap();
        let (_send, mut recv) = request.reply.accept(None).unwrap().split();
        let reading = spawn_local(async move { read_all(&mut recv).await.map(|all| all.len()) });
        for _ in 1..BURST {
            raw.write(&frame(DATA, 0, 1, b"x")).await;
        }
        raw.write(&frame(DATA, END_STREAM, 1, b"x")).await;
        spawn_local(async move { while let Some(Ok(_)) = server.accept().await {} });
        assert_eq!(reading.await.unwrap().unwrap(), BURST);
    });
}
