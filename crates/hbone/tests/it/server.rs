//! Requests and answers, and what hostile or foreign peers get.

use hbone::{
    BadRequest, Connect, ConnectError, Forwarded, HandshakeError, Server, Settings, StatusCode,
};
use tokio::io::AsyncWriteExt;
use tokio::task::spawn_local;

use crate::support::*;

#[test]
fn head_arrives_and_baggage_comes_back() {
    run(async {
        let (near, far) = tokio::io::duplex(PIPE);
        serve(far, Settings::default(), |request| async move {
            let head = request.head.unwrap();
            assert_eq!(head.authority.to_string(), "10.0.0.2:80");
            assert_eq!(head.baggage, source());
            assert_eq!(head.forwarded_host.as_deref(), Some("web.shop.svc"));
            assert_eq!(head.traceparent, Some(connect().traceparent));
            assert_eq!(head.forwarded_network, None);
            let tunnel = request.reply.accept(Some(&source().header())).unwrap();
            assert!(tunnel.peer_baggage().is_empty());
            // Held until the client is done: dropped at once, the reset would overtake the answer.
            let (_send, mut recv) = tunnel.split();
            assert!(recv.data().await.is_none());
        });
        let (sender, _driving) = client(near).await;
        let tunnel = sender.connect(&connect()).await.unwrap();
        assert_eq!(tunnel.peer_baggage(), source());
    });
}

#[test]
fn a_refusal_leaves_the_connection_usable() {
    run(async {
        let (near, far) = tokio::io::duplex(PIPE);
        serve(far, Settings::default(), |request| async move {
            match request.head.as_ref().unwrap().authority.port {
                80 => echo(request).await,
                port => request.reply.refuse(StatusCode::from_u16(port).unwrap()),
            }
        });
        let (sender, _driving) = client(near).await;
        for (authority, text) in [
            ("10.0.0.2:401", "http status: 401 Unauthorized"),
            ("10.0.0.2:400", "http status: 400 Bad Request"),
            ("10.0.0.2:503", "http status: 503 Service Unavailable"),
            ("10.0.0.2:204", "http status: 204 No Content"),
        ] {
            let refused = sender
                .connect(&Connect {
                    authority,
                    ..connect()
                })
                .await;
            assert_eq!(refused.unwrap_err().to_string(), text);
        }
        assert_eq!(sender.open(), 0);
        let (mut send, mut recv) = sender.connect(&connect()).await.unwrap().split();
        send.ready(2).await.unwrap();
        send.write("ok".into()).unwrap();
        send.finish().unwrap();
        assert_eq!(read_all(&mut recv).await.unwrap(), b"ok");
    });
}

#[test]
fn requests_that_are_no_connect_reach_the_caller_as_such() {
    run(async {
        let (near, far) = tokio::io::duplex(PIPE);
        let (give, mut take) = tokio::sync::mpsc::unbounded_channel();
        serve(far, Settings::default(), move |request| {
            let give = give.clone();
            async move {
                give.send(request.head.unwrap_err()).unwrap();
                request.reply.refuse(StatusCode::BAD_REQUEST);
            }
        });
        let mut raw = Raw::client(near).await;
        // GET http / of web:80.
        let get = [vec![0x82, 0x86, 0x84], literal(1, b"web:80")].concat();
        let bare = connect_block(b"web");
        let missing = literal(2, b"CONNECT");
        for (stream, block) in [(1, get), (3, bare), (5, missing)] {
            raw.write(&frame(HEADERS, END_HEADERS, stream, &block))
                .await;
            let head = raw.read_event().await;
            assert_eq!((head.kind, head.flags), (HEADERS, END_HEADERS | END_STREAM));
            assert_eq!(
                raw.read_event().await,
                frame(RST_STREAM, 0, stream, &[0, 0, 0, 0])
            );
        }
        assert_eq!(take.recv().await, Some(BadRequest::Method));
        assert!(matches!(take.recv().await, Some(BadRequest::Authority(_))));
        assert_eq!(take.recv().await, Some(BadRequest::NoAuthority));
    });
}

#[test]
fn a_request_may_end_its_upload_at_once() {
    run(async {
        let (near, far) = tokio::io::duplex(PIPE);
        serve(far, Settings::default(), echo);
        let mut raw = Raw::client(near).await;
        let block = connect_block(b"web:80");
        raw.write(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block))
            .await;
        assert_eq!(
            raw.read_event().await,
            frame(HEADERS, END_HEADERS, 1, &[STATUS_200])
        );
        assert_eq!(raw.read_event().await, frame(DATA, END_STREAM, 1, &[]));
    });
}

#[test]
fn oversized_headers_cost_one_request_only() {
    run(async {
        let (near, far) = tokio::io::duplex(PIPE);
        serve(far, Settings::default(), echo);
        let (sender, _driving) = client(near).await;
        let host = "h".repeat(70_000);
        let forwarded = Forwarded {
            host: Some(&host),
            ..connect().forwarded
        };
        let refused = sender
            .connect(&Connect {
                forwarded,
                ..connect()
            })
            .await;
        assert!(
            matches!(refused, Err(ConnectError::Status(_) | ConnectError::H2(_))),
            "{refused:?}"
        );
        let within = "h".repeat(40_000);
        let forwarded = Forwarded {
            host: Some(&within),
            ..connect().forwarded
        };
        sender
            .connect(&Connect {
                forwarded,
                ..connect()
            })
            .await
            .unwrap();
    });
}

#[test]
fn more_streams_than_allowed_are_refused_by_the_server() {
    run(async {
        let (near, far) = tokio::io::duplex(PIPE);
        let settings = Settings {
            server_streams: 2,
            ..Settings::default()
        };
        serve(far, settings, echo);
        let mut raw = Raw::client(near).await;
        for stream in [1, 3, 5] {
            raw.write(&frame(
                HEADERS,
                END_HEADERS,
                stream,
                &connect_block(b"web:80"),
            ))
            .await;
        }
        let mut events = [
            raw.read_event().await,
            raw.read_event().await,
            raw.read_event().await,
        ];
        events.sort_by_key(|frame| frame.stream);
        assert_eq!(events[2], frame(RST_STREAM, 0, 5, &[0, 0, 0, 7]));
        assert_eq!((events[0].kind, events[1].kind), (HEADERS, HEADERS));
    });
}

#[test]
fn a_flood_of_early_resets_ends_the_connection() {
    run(async {
        let (near, far) = tokio::io::duplex(1 << 20);
        let mut raw = Raw::client(near).await;
        for stream in (1..200).step_by(2) {
            raw.write(&frame(
                HEADERS,
                END_HEADERS,
                stream,
                &connect_block(b"web:80"),
            ))
            .await;
            raw.write(&frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]))
                .await;
        }
        let serving = serve(far, Settings::default(), echo);
        let goaway = loop {
            let event = raw.read_event().await;
            if event.kind == GOAWAY {
                break event;
            }
        };
        assert_eq!(goaway.payload[4..8], [0, 0, 0, 11], "ENHANCE_YOUR_CALM");
        assert!(serving.await.unwrap().is_err());
    });
}

#[test]
fn other_protocols_are_told_apart() {
    run(async {
        for bytes in [
            &b"GET / HTTP/1.1\r\nhost: web\r\n\r\n"[..],
            &[0; 64],
            &[0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0],
        ] {
            let (mut near, far) = tokio::io::duplex(PIPE);
            near.write_all(bytes).await.unwrap();
            let end = Server::handshake(far, &Settings::default()).await;
            assert!(matches!(end, Err(HandshakeError::Preface)), "{end:?}");
        }
        let (near, far) = tokio::io::duplex(PIPE);
        drop(near);
        let end = Server::handshake(far, &Settings::default())
            .await
            .unwrap_err();
        assert!(
            end.to_string().starts_with("http2 handshake failed: "),
            "{end}"
        );
        for (answer, text) in [
            (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "h2 failed: "),
            (&[0xff; 64], "h2 failed: "),
            (b"", "io error: "),
        ] {
            let (near, mut far) = tokio::io::duplex(PIPE);
            let (sender, driving) = client(near).await;
            far.write_all(answer).await.unwrap();
            far.shutdown().await.unwrap();
            let end = sender.connect(&connect()).await.unwrap_err();
            assert!(end.to_string().starts_with(text), "{end}");
            let _ = driving.await.unwrap();
            assert!(!sender.is_usable());
        }
    });
}

#[test]
fn a_caller_notices_when_the_client_gives_up_waiting() {
    run(async {
        let (near, far) = tokio::io::duplex(PIPE);
        let (give, mut take) = tokio::sync::mpsc::unbounded_channel();
        serve(far, Settings::default(), move |mut request| {
            let give = give.clone();
            async move {
                give.send(None).unwrap();
                let end = request.reply.abandoned().await;
                assert!(request.reply.accept(None).unwrap_err().is_gone());
                give.send(Some(end)).unwrap();
            }
        });
        let (sender, _driving) = client(near).await;
        let waiting = spawn_local(async move { sender.connect(&connect()).await.map(drop) });
        assert!(take.recv().await.unwrap().is_none());
        waiting.abort();
        assert!(take.recv().await.unwrap().unwrap().is_gone());
    });
}

#[test]
fn the_peers_smaller_stream_limit_is_kept() {
    run(async {
        let (near, far) = tokio::io::duplex(PIPE);
        let settings = Settings {
            server_streams: 3,
            ..Settings::default()
        };
        serve(far, settings, echo);
        let (sender, _driving) = client(near).await;
        let first = sender.connect(&connect()).await.unwrap();
        assert_eq!(sender.limit(), 3);
        let slots = [sender.reserve().unwrap(), sender.reserve().unwrap()];
        assert!(sender.reserve().is_none());
        drop(first);
        assert_eq!(sender.open(), 2);
        assert!(sender.reserve().is_some());
        for slot in slots {
            slot.connect(&connect()).await.unwrap();
        }
        assert_eq!(sender.open(), 0);
    });
}

#[test]
fn random_frames_neither_panic_nor_hang_a_server() {
    use rand::{Rng, SeedableRng, rngs::SmallRng};
    run(async {
        for seed in 0..500 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let (near, far) = tokio::io::duplex(1 << 20);
            let serving = serve(far, Settings::default(), echo);
            let mut raw = Raw::client(near).await;
            for _ in 0..rng.random_range(1..20) {
                let block = connect_block(b"web:80");
                let payload = match rng.random_range(0..3) {
                    0 => block,
                    1 => [block, vec![rng.random(); rng.random_range(0..40)]].concat(),
                    _ => (0..rng.random_range(0..40)).map(|_| rng.random()).collect(),
                };
                let kind = rng.random_range(0..11);
                raw.write(&frame(
                    kind,
                    rng.random::<u8>() & 0x2d,
                    rng.random_range(0..8),
                    &payload,
                ))
                .await;
            }
            raw.0.shutdown().await.unwrap();
            // However it ends, it ends without a panic.
            let _ = serving
                .await
                .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        }
    });
}
