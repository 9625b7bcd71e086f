//! A client's connection that this side cuts.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use hbone::{ConnectionError, Settings, handshake};
use tokio::sync::oneshot;
use tokio::task::spawn_local;

use crate::support::*;

fn is_ready(future: impl Future) -> bool {
    let mut cx = Context::from_waker(Waker::noop());
    matches!(pin!(future).poll(&mut cx), Poll::Ready(_))
}

#[test]
fn every_tunnel_learns_of_the_cut_and_nothing_is_said_to_the_peer() {
    run(async {
        let (near, far) = tokio::io::duplex(PIPE);
        let (cut, signal) = oneshot::channel();
        let (sender, driver) = handshake(near, &Settings::default()).await.unwrap();
        let driving = spawn_local(driver.cut_when(async { signal.await.unwrap() }));
        let serving = serve(far, Settings::default(), echo);
        let one = sender.connect(&connect()).await.unwrap();
        let two = sender.connect(&connect()).await.unwrap();
        assert!(!is_ready(one.cut()));
        cut.send(()).unwrap();
        one.cut().await;
        let end = driving.await.unwrap();
        assert!(matches!(end, Err(ConnectionError::Cut)), "{end:?}");
        two.cut().await;
        let (_, mut recv) = two.split();
        assert!(recv.data().await.unwrap().is_err());
        assert!(!sender.is_usable());
        assert!(sender.connect(&connect()).await.unwrap_err().peer_left());
        let _ = serving.await.unwrap();
    });
}

#[test]
fn an_unanswered_connect_learns_of_the_cut() {
    run(async {
        let (near, _far) = tokio::io::duplex(PIPE);
        let (cut, signal) = oneshot::channel();
        let (sender, driver) = handshake(near, &Settings::default()).await.unwrap();
        let driving = spawn_local(driver.cut_when(async { signal.await.unwrap() }));
        let slot = sender.claim();
        let told = slot.cut();
        assert!(!is_ready(slot.cut()));
        cut.send(()).unwrap();
        let asked = connect();
        tokio::select! {
            biased;
            () = told => {}
            done = slot.connect(&asked) => panic!("{done:?}"),
        }
        assert!(driving.await.unwrap().is_err());
    });
}

#[test]
fn a_connection_that_ends_otherwise_was_not_cut() {
    run(async {
        let (near, far) = tokio::io::duplex(PIPE);
        let (sender, driver) = handshake(near, &Settings::default()).await.unwrap();
        let driving = spawn_local(driver.cut_when(std::future::pending()));
        let serving = serve(far, Settings::default(), echo);
        let tunnel = sender.connect(&connect()).await.unwrap();
        serving.abort();
        let _ = driving.await.unwrap();
        let cut = tunnel.cut();
        let (_, mut recv) = tunnel.split();
        assert!(!matches!(recv.data().await, Some(Ok(_))));
        assert!(!is_ready(cut));
    });
}
