//! Golden bytes: what leaves each end, frame by frame.

use hbone::{Connect, Server, Settings};
use tokio::io::AsyncReadExt;
use tokio::task::spawn_local;

use crate::support::*;

/// The code of an RST_STREAM.
const CANCEL: [u8; 4] = [0, 0, 0, 8];
const NO_ERROR: [u8; 4] = [0, 0, 0, 0];

/// 16 MiB less the 65535 bytes every connection starts with.
const WINDOW_RAISE: [u8; 4] = [0x00, 0xff, 0x00, 0x01];

#[test]
fn client_opens_with_the_settings_of_the_contract() {
    run(async {
        let (near, far) = tokio::io::duplex(PIPE);
        let (_sender, _driving) = client(near).await;
        let mut raw = Raw(far);
        raw.read_preface().await;
        #[rustfmt::skip]
        let settings = [
            0, 2, 0, 0, 0, 0,
            0, 4, 0x00, 0x40, 0x00, 0x00,
            0, 5, 0x00, 0x10, 0x00, 0x00,
            0, 6, 0x00, 0x00, 0x40, 0x00,
        ];
        assert_eq!(raw.read().await, frame(SETTINGS, 0, 0, &settings));
        assert_eq!(raw.read().await, frame(WINDOW_UPDATE, 0, 0, &WINDOW_RAISE));
    });
}

#[test]
fn server_opens_with_the_settings_of_the_contract() {
    run(async {
        let (near, far) = tokio::io::duplex(PIPE);
        serve(far, Settings::default(), echo);
        let mut raw = Raw::client(near).await;
        #[rustfmt::skip]
        let settings = [
            0, 3, 0, 0, 0, 200,
            0, 4, 0x00, 0x40, 0x00, 0x00,
            0, 5, 0x00, 0x10, 0x00, 0x00,
            0, 6, 0x00, 0x01, 0x00, 0x00,
        ];
        assert_eq!(raw.read().await, frame(SETTINGS, 0, 0, &settings));
        let mut rest = [raw.read().await, raw.read().await];
        rest.sort_by_key(|frame| frame.kind);
        let raise = frame(WINDOW_UPDATE, 0, 0, &WINDOW_RAISE);
        assert_eq!(rest, [frame(SETTINGS, ACK, 0, &[]), raise]);
    });
}

#[test]
fn configured_sizes_reach_the_wire() {
    run(async {
        let (near, mut far) = tokio::io::duplex(PIPE);
        let settings = Settings {
            stream_window: 70_000,
            frame_size: 20_000,
            ..Settings::default()
        };
        let (_sender, driver) = hbone::handshake(near, &settings).await.unwrap();
        spawn_local(driver);
        let mut bytes = [0; 24 + 9 + 24];
        far.read_exact(&mut bytes).await.unwrap();
        let sent = &bytes[24 + 9..];
        assert_eq!(sent[6..12], [0, 4, 0x00, 0x01, 0x11, 0x70]);
        assert_eq!(sent[12..18], [0, 5, 0x00, 0x00, 0x4e, 0x20]);
    });
}

#[test]
fn connect_request_is_one_headers_frame() {
    run(async {
        let (mut raw, sender, _driving) = Raw::server().await;
        let asking = spawn_local(async move { sender.connect(&connect()).await.map(drop) });
        let head = raw.read_event().await;
        assert_eq!(
            (head.kind, head.flags, head.stream),
            (HEADERS, END_HEADERS, 1)
        );
        assert_eq!(hex(&head.payload), CONNECT_HPACK);
        raw.write(&frame(HEADERS, END_HEADERS, 1, &[STATUS_200]))
            .await;
        asking.await.unwrap().unwrap();
    });
}

#[test]
fn request_carries_exactly_the_fields_of_the_contract() {
    run(async {
        // The bare h2 server shows what the golden bytes say.
        let (near, far) = tokio::io::duplex(PIPE);
        let peer = spawn_local(async move {
            let mut server = h2::server::handshake(far).await.unwrap();
            let (request, _respond) = server.accept().await.unwrap().unwrap();
            let (head, body) = request.into_parts();
            (head, body.is_end_stream())
        });
        let (sender, _driving) = client(near).await;
        let inner = Connect {
            forwarded_network: Some("east"),
            ..connect()
        };
        spawn_local(async move { sender.connect(&inner).await.map(drop) });
        let (head, ended) = peer.await.unwrap();
        assert_eq!(head.method, "CONNECT");
        assert_eq!(head.uri.to_string(), "10.0.0.2:80");
        assert_eq!((head.uri.scheme(), head.uri.path_and_query()), (None, None));
        assert!(!ended, "the upload stays open");
        let fields: Vec<_> = head
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        let expected = [
            ("baggage", "k8s.cluster.name=c1,k8s.namespace.name=shop"),
            ("forwarded", r#"for="10.0.0.1:40000";host=web.shop.svc"#),
            (
                "traceparent",
                "00-0123456789abcdef0123456789abcdef-0123456789abcdef-00",
            ),
            ("x-forwarded-network", "east"),
        ];
        assert_eq!(fields, expected);
    });
}

#[test]
fn answers_are_headers_and_no_more() {
    run(async {
        let (near, far) = tokio::io::duplex(PIPE);
        serve(far, Settings::default(), |request| async move {
            match request.head.unwrap().authority.port {
                80 => {
                    let (_send, mut recv) = request.reply.accept(None).unwrap().split();
                    recv.data().await.unwrap().unwrap();
                }
                81 => {
                    let tunnel = request.reply.accept(Some(&source().header())).unwrap();
                    let (mut send, _recv) = tunnel.split();
                    send.finish().unwrap();
                }
                port => request
                    .reply
                    .refuse(hbone::StatusCode::from_u16(port).unwrap()),
            }
        });
        let mut raw = Raw::client(near).await;
        // 200, and a tunnel dropped on the first data: CANCEL.
        raw.write(&frame(HEADERS, END_HEADERS, 1, &connect_block(b"web:80")))
            .await;
        assert_eq!(raw.read_event().await.kind, HEADERS);
        raw.write(&frame(DATA, 0, 1, b"x")).await;
        assert_eq!(raw.read_event().await, frame(RST_STREAM, 0, 1, &CANCEL));
        // 200 with baggage; ended by END_STREAM first: NO_ERROR.
        raw.write(&frame(HEADERS, END_HEADERS, 3, &connect_block(b"web:81")))
            .await;
        let head = raw.read_event().await;
        assert_eq!(
            (head.kind, head.flags, head.payload[0]),
            (HEADERS, END_HEADERS, STATUS_200)
        );
        assert!(head.payload.len() > 20, "baggage follows the status");
        assert_eq!(raw.read_event().await, frame(DATA, END_STREAM, 3, &[]));
        assert_eq!(raw.read_event().await, frame(RST_STREAM, 0, 3, &NO_ERROR));
        // Refused: status only, END_STREAM, NO_ERROR.
        raw.write(&frame(HEADERS, END_HEADERS, 5, &connect_block(b"web:401")))
            .await;
        let head = raw.read_event().await;
        assert_eq!((head.kind, head.flags), (HEADERS, END_HEADERS | END_STREAM));
        assert_eq!(hex(&head.payload), STATUS_401_HPACK);
        assert_eq!(raw.read_event().await, frame(RST_STREAM, 0, 5, &NO_ERROR));
    });
}

#[test]
fn scheme_or_path_on_connect_resets_the_stream_only() {
    run(async {
        let (near, far) = tokio::io::duplex(PIPE);
        serve(far, Settings::default(), echo);
        let mut raw = Raw::client(near).await;
        let scheme = [connect_block(b"web:80"), vec![0x86]].concat();
        let path = [connect_block(b"web:80"), vec![0x84]].concat();
        for (stream, block) in [(1, scheme), (3, path)] {
            raw.write(&frame(HEADERS, END_HEADERS, stream, &block))
                .await;
            assert_eq!(
                raw.read_event().await,
                frame(RST_STREAM, 0, stream, &[0, 0, 0, 1])
            );
        }
        raw.write(&frame(HEADERS, END_HEADERS, 5, &connect_block(b"web:80")))
            .await;
        assert_eq!(
            raw.read_event().await,
            frame(HEADERS, END_HEADERS, 5, &[STATUS_200])
        );
    });
}

#[test]
fn dropped_and_reset_tunnels_say_cancel() {
    run(async {
        let (mut raw, sender, _driving) = Raw::server().await;
        let asking = spawn_local({
            let sender = sender.clone();
            async move {
                [
                    sender.connect(&connect()).await,
                    sender.connect(&connect()).await,
                ]
            }
        });
        let streams = [raw.accept().await, raw.accept().await];
        let [dropped, reset] = asking.await.unwrap().map(Result::unwrap);
        drop(dropped);
        assert_eq!(
            raw.read_event().await,
            frame(RST_STREAM, 0, streams[0], &CANCEL)
        );
        let (mut send, recv) = reset.split();
        send.reset();
        assert_eq!(
            raw.read_event().await,
            frame(RST_STREAM, 0, streams[1], &CANCEL)
        );
        drop((send, recv));
        // Given up before the answer.
        let waiting = spawn_local(async move { sender.connect(&connect()).await.map(drop) });
        let stream = raw.read_event().await.stream;
        waiting.abort();
        assert_eq!(
            raw.read_event().await,
            frame(RST_STREAM, 0, stream, &CANCEL)
        );
    });
}

#[test]
fn nothing_is_sent_for_empty_data_and_one_frame_per_write() {
    run(async {
        let (mut raw, sender, _driving) = Raw::server().await;
        let asking = spawn_local(async move { sender.connect(&connect()).await.unwrap() });
        let stream = raw.accept().await;
        let (mut send, _recv) = asking.await.unwrap().split();
        send.write(bytes::Bytes::new()).unwrap();
        assert_eq!(send.ready(5).await.unwrap(), 5);
        send.write(bytes::Bytes::from_static(b"hello")).unwrap();
        send.finish().unwrap();
        send.finish().unwrap();
        assert_eq!(raw.read_event().await, frame(DATA, 0, stream, b"hello"));
        assert_eq!(raw.read_event().await, frame(DATA, END_STREAM, stream, &[]));
    });
}

#[test]
fn drain_is_two_goaways_around_a_ping() {
    run(async {
        let (near, far) = tokio::io::duplex(PIPE);
        let serving = spawn_local(async move {
            let mut server = Server::handshake(far, &Settings::default()).await.unwrap();
            let request = server.accept().await.unwrap().unwrap();
            spawn_local(echo(request));
            server.drain();
            server.drain();
            let mut late = 0;
            while let Some(request) = server.accept().await {
                spawn_local(echo(request.unwrap()));
                late += 1;
            }
            late
        });
        let mut raw = Raw::client(near).await;
        raw.write(&frame(HEADERS, END_HEADERS, 1, &connect_block(b"web:80")))
            .await;
        let mut seen = Vec::new();
        let ping = loop {
            let next = raw.read().await;
            match next.kind {
                PING => break next,
                HEADERS | GOAWAY => seen.push(next),
                _ => {}
            }
        };
        let first = frame(GOAWAY, 0, 0, &[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
        assert!(seen.contains(&first), "{seen:?}");
        // A request already on its way is still served.
        raw.write(&frame(HEADERS, END_HEADERS, 3, &connect_block(b"web:80")))
            .await;
        raw.write(&Frame { flags: ACK, ..ping }).await;
        let mut left = vec![
            frame(HEADERS, END_HEADERS, 1, &[STATUS_200]),
            frame(HEADERS, END_HEADERS, 3, &[STATUS_200]),
            frame(GOAWAY, 0, 0, &[0, 0, 0, 3, 0, 0, 0, 0]),
        ];
        left.retain(|frame| !seen.contains(frame));
        while !left.is_empty() {
            let next = raw.read_event().await;
            let at = left.iter().position(|frame| *frame == next);
            left.remove(at.unwrap_or_else(|| panic!("unexpected {next:?}")));
        }
        // Open streams go on; when the last ends, so does the connection.
        raw.write(&frame(DATA, END_STREAM, 1, b"one")).await;
        raw.write(&frame(DATA, END_STREAM, 3, b"two")).await;
        let mut bodies = Vec::new();
        while let Some(next) = raw.next().await {
            if next.kind == DATA && !next.payload.is_empty() {
                bodies.push(next.payload);
            }
        }
        assert_eq!(bodies, [b"one", b"two"]);
        assert_eq!(serving.await.unwrap(), 1);
    });
}

#[test]
fn cut_is_goaway_and_close() {
    run(async {
        let (near, far) = tokio::io::duplex(PIPE);
        let serving = spawn_local(async move {
            let mut server = Server::handshake(far, &Settings::default()).await.unwrap();
            let request = server.accept().await.unwrap().unwrap();
            let (mut send, mut recv) = request.reply.accept(None).unwrap().split();
            server.cut();
            assert!(server.accept().await.is_none());
            assert!(recv.data().await.unwrap().is_err(), "its tunnels fail");
            assert!(send.ready(1).await.is_err());
            assert!(server.accept().await.is_none());
        });
        let mut raw = Raw::client(near).await;
        raw.write(&frame(HEADERS, END_HEADERS, 1, &connect_block(b"web:80")))
            .await;
        let goaway = raw.read_event().await;
        assert_eq!(goaway, frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]));
        serving.await.unwrap();
        assert_eq!(raw.next().await, None);
    });
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The header block of [`connect`] on a fresh connection.
const CONNECT_HPACK: &str = "4287bdab4e9c17b7ff4188081702e05c571e07\
     40858c734c398b9feaf2172516a125b17a874960207ebabc85ea1d2545632157a87496044e7aff\
     408794f6781d92164f9c94f641fc840b81702e1b8d000007f3f739d0983c1635d139eb5d1dc9\
     40884d83216b1d85a93fa700160044cb4db8ebcf8e324859401132d36e3af3e38c921655801132d36e3af3e38c921655800f";
/// `:status: 401` on a connection that has sent one other header.
const STATUS_401_HPACK: &str = "48826801";
