//! Keepalive, on a clock that jumps.

use std::time::Duration;

use hbone::{ConnectionError, HandshakeError, Server, Settings};
use tokio::io::AsyncWriteExt;
use tokio::task::spawn_local;
use tokio::time::Instant;

use crate::support::*;

/// Reads up to the next PING that is a question.
async fn ping(raw: &mut Raw) -> Frame {
    loop {
        let frame = raw.read().await;
        if frame.kind == PING && frame.flags == 0 {
            return frame;
        }
    }
}

#[test]
fn client_asks_every_ten_seconds_and_drops_a_silent_peer() {
    run_paused(async {
        let start = Instant::now();
        let (mut raw, sender, driving) = Raw::server().await;
        let asking = spawn_local({
            let sender = sender.clone();
            async move { sender.connect(&connect()).await.unwrap() }
        });
        raw.accept().await;
        let (mut send, mut recv) = asking.await.unwrap().split();
        for beat in 1..=3 {
            let asked = ping(&mut raw).await;
            assert_eq!(start.elapsed().as_secs(), beat * 10);
            raw.write(&Frame {
                flags: ACK,
                ..asked
            })
            .await;
        }
        ping(&mut raw).await;
        assert_eq!(start.elapsed().as_secs(), 40);
        let end = driving.await.unwrap();
        assert_eq!(start.elapsed().as_secs(), 60);
        assert!(
            matches!(end, Err(ConnectionError::PingTimeout(_))),
            "{end:?}"
        );
        assert!(!sender.is_usable());
        assert!(recv.data().await.unwrap().is_err(), "its tunnels fail");
        assert!(send.ready(1).await.is_err());
        assert_eq!(raw.next().await, None, "closed without a word");
    });
}

#[test]
fn server_says_goaway_to_a_silent_peer() {
    run_paused(async {
        let start = Instant::now();
        let (near, far) = tokio::io::duplex(PIPE);
        let serving = serve(far, Settings::default(), echo);
        let mut raw = Raw::client(near).await;
        ping(&mut raw).await;
        assert_eq!(start.elapsed().as_secs(), 10);
        assert_eq!(raw.read_event().await, frame(GOAWAY, 0, 0, &[0; 8]));
        assert_eq!(raw.next().await, None);
        assert_eq!(start.elapsed().as_secs(), 30);
        let end = serving.await.unwrap();
        assert!(
            matches!(end, Err(ConnectionError::PingTimeout(_))),
            "{end:?}"
        );
    });
}

#[test]
fn a_peer_that_does_not_even_read_is_cut_in_the_end() {
    run_paused(async {
        let start = Instant::now();
        // A pipe that is full after the preface and a few frames: GOAWAY cannot be written.
        let (mut near, far) = tokio::io::duplex(120);
        let serving = serve(far, Settings::default(), echo);
        near.write_all(PREFACE).await.unwrap();
        let mut raw = Raw(near);
        raw.write(&frame(SETTINGS, 0, 0, &[])).await;
        for _ in 0..8 {
            raw.write(&frame(PING, 0, 0, &[1; 8])).await;
        }
        let end = serving.await.unwrap();
        assert!(
            matches!(end, Err(ConnectionError::PingTimeout(_))),
            "{end:?}"
        );
        assert!(
            start.elapsed() <= Duration::from_secs(31),
            "{:?}",
            start.elapsed()
        );
    });
}

#[test]
fn two_live_ends_keep_each_other() {
    run_paused(async {
        let Pair {
            near,
            far,
            sender,
            driving,
            ..
        } = pair().await;
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert!(sender.is_usable() && !driving.is_finished());
        let (mut send, _recv) = near.split();
        let (_send, mut recv) = far.split();
        write_all(&mut send, "awake".into()).await.unwrap();
        assert_eq!(recv.data().await.unwrap().unwrap(), "awake");
    });
}

#[test]
fn a_silent_client_does_not_hold_the_handshake() {
    run_paused(async {
        let (_near, far) = tokio::io::duplex(PIPE);
        let end = Server::handshake(far, &Settings::default()).await;
        assert!(matches!(end, Err(HandshakeError::Timeout(_))), "{end:?}");
        let (near, _far) = tokio::io::duplex(8);
        let end = hbone::handshake(near, &Settings::default()).await.map(drop);
        assert!(matches!(end, Err(HandshakeError::Timeout(_))), "{end:?}");
    });
}
