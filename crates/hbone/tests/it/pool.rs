//! The pool with real connections: sharing, growing, letting go.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::pending;
use std::rc::Rc;
use std::time::Duration;

use hbone::{
    Driver, GetError, HandshakeError, Pool, Request, Sender, Settings, Slot, StatusCode, WAIT_MAX,
};
use tokio::io::DuplexStream;
use tokio::task::spawn_local;
use tokio::time::Instant;

use crate::support::*;

type Dialled<E> = Result<(Sender, Driver<DuplexStream>), E>;

/// Something to dial: counts the dials, echoes on every tunnel.
#[derive(Clone, Default)]
struct Peer {
    dials: Rc<Cell<usize>>,
    settings: Rc<Settings>,
}

impl Peer {
    async fn dial(&self) -> Dialled<HandshakeError> {
        self.dials.set(self.dials.get() + 1);
        dial(
            &self.settings,
            Rc::new(|request: Request| Box::pin(echo(request))),
        )
        .await
    }

    async fn get(&self, pool: &Pool<&'static str>, key: &'static str) -> Slot {
        pool.get(&key, async || self.dial().await).await.unwrap()
    }
}

fn pool() -> Pool<&'static str> {
    Pool::new(&Settings::default())
}

#[test]
fn two_hundred_and_fifty_tunnels_need_three_connections() {
    run(async {
        let (pool, peer) = (pool(), Peer::default());
        let tasks: Vec<_> = (0..250)
            .map(|_| {
                let (pool, peer) = (pool.clone(), peer.clone());
                spawn_local(async move {
                    let slot = peer.get(&pool, "peer").await;
                    slot.connect(&connect()).await.unwrap().split()
                })
            })
            .collect();
        let mut tunnels = Vec::new();
        for task in tasks {
            tunnels.push(task.await.unwrap());
        }
        assert_eq!((peer.dials.get(), pool.len()), (3, 3));
        for (number, (send, _)) in tunnels.iter_mut().enumerate() {
            write_all(send, number.to_string().into()).await.unwrap();
            send.finish().unwrap();
        }
        for (number, (_, recv)) in tunnels.iter_mut().enumerate() {
            assert_eq!(read_all(recv).await.unwrap(), number.to_string().as_bytes());
        }
        // Full connections come back when tunnels end.
        drop(tunnels);
        drop(peer.get(&pool, "peer").await);
        assert_eq!(peer.dials.get(), 3);
        drop(peer.get(&pool, "other").await);
        assert_eq!((peer.dials.get(), pool.len()), (4, 4));
    });
}

#[test]
fn a_limit_of_one_gives_each_tunnel_its_own_connection() {
    run(async {
        let settings = Rc::new(Settings {
            client_streams: 1,
            ..Settings::default()
        });
        let (pool, peer) = (
            pool(),
            Peer {
                settings,
                ..Peer::default()
            },
        );
        let one = peer
            .get(&pool, "peer")
            .await
            .connect(&connect())
            .await
            .unwrap();
        let two = peer
            .get(&pool, "peer")
            .await
            .connect(&connect())
            .await
            .unwrap();
        assert_eq!(peer.dials.get(), 2);
        drop((one, two));
    });
}

#[test]
fn a_failed_dial_is_told_to_its_caller_and_the_next_one_tries() {
    run(async {
        let (pool, peer) = (pool(), Peer::default());
        let (start, mut started) = tokio::sync::mpsc::unbounded_channel();
        let (fail, failing) = tokio::sync::oneshot::channel::<()>();
        let first = spawn_local({
            let pool = pool.clone();
            async move {
                let dial = async || -> Dialled<&'static str> {
                    start.send(()).unwrap();
                    let _ = failing.await;
                    Err("no route")
                };
                pool.get(&"peer", dial).await.map(drop)
            }
        });
        started.recv().await.unwrap();
        let waiters: Vec<_> = (0..5)
            .map(|_| {
                let (pool, peer) = (pool.clone(), peer.clone());
                spawn_local(async move { peer.get(&pool, "peer").await })
            })
            .collect();
        tokio::task::yield_now().await;
        assert_eq!(peer.dials.get(), 0);
        fail.send(()).unwrap();
        let error = first.await.unwrap().unwrap_err();
        assert!(matches!(error, GetError::Dial("no route")), "{error}");
        for waiter in waiters {
            waiter.await.unwrap();
        }
        assert_eq!(peer.dials.get(), 1);
    });
}

#[test]
fn a_dial_given_up_wakes_the_next_one() {
    run(async {
        let (pool, peer) = (pool(), Peer::default());
        let (start, mut started) = tokio::sync::mpsc::unbounded_channel();
        let first = spawn_local({
            let pool = pool.clone();
            async move {
                let dial = async || -> Dialled<Infallible> {
                    start.send(()).unwrap();
                    pending().await
                };
                let _ = pool.get(&"peer", dial).await;
            }
        });
        started.recv().await.unwrap();
        let second = spawn_local({
            let (pool, peer) = (pool.clone(), peer.clone());
            async move { peer.get(&pool, "peer").await }
        });
        tokio::task::yield_now().await;
        first.abort();
        second.await.unwrap();
        assert_eq!(peer.dials.get(), 1);
    });
}

#[test]
fn waiting_for_others_has_an_end() {
    run_paused(async {
        let pool = pool();
        let start = Instant::now();
        spawn_local({
            let pool = pool.clone();
            async move {
                let _ = pool
                    .get(&"peer", async || -> Dialled<Infallible> { pending().await })
                    .await;
            }
        });
        tokio::task::yield_now().await;
        let end = pool
            .get(&"peer", async || -> Dialled<Infallible> { unreachable!() })
            .await;
        assert!(matches!(end, Err(GetError::Waited)), "{end:?}");
        assert!(start.elapsed() >= WAIT_MAX && start.elapsed() < WAIT_MAX * 2);
    });
}

/// Dials a peer that says GOAWAY as soon as it has been asked something.
async fn dial_draining() -> Dialled<HandshakeError> {
    let (near, far) = tokio::io::duplex(PIPE);
    spawn_local(async move {
        let mut server = hbone::Server::handshake(far, &Settings::default())
            .await
            .unwrap();
        while let Some(Ok(request)) = server.accept().await {
            request.reply.refuse(StatusCode::SERVICE_UNAVAILABLE);
            server.drain();
        }
    });
    hbone::handshake(near, &Settings::default()).await
}

#[test]
fn connections_that_take_no_more_are_replaced() {
    run_paused(async {
        let (pool, peer) = (pool(), Peer::default());
        let slot = pool.get(&"peer", dial_draining).await.unwrap();
        assert!(slot.connect(&connect()).await.is_err());
        // Lets the GOAWAY arrive.
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(pool.is_empty(), "forgotten as soon as it has closed");
        peer.get(&pool, "peer")
            .await
            .connect(&connect())
            .await
            .unwrap();
        assert_eq!(peer.dials.get(), 1);
    });
}

/// A peer whose connections report their end.
fn watched(
    ended: tokio::sync::mpsc::UnboundedSender<Instant>,
) -> impl AsyncFnOnce() -> Dialled<HandshakeError> {
    async move || {
        let (near, far) = tokio::io::duplex(PIPE);
        let serving = serve(far, Settings::default(), echo);
        spawn_local(async move {
            let _ = serving.await;
            let _ = ended.send(Instant::now());
        });
        hbone::handshake(near, &Settings::default()).await
    }
}

#[test]
fn idle_connections_close_after_five_minutes() {
    run_paused(async {
        let (pool, start) = (pool(), Instant::now());
        let (give, mut ends) = tokio::sync::mpsc::unbounded_channel();
        let slot = pool.get(&"peer", watched(give)).await.unwrap();
        let tunnel = slot.connect(&connect()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(299)).await;
        assert_eq!(pool.len(), 1);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(pool.is_empty(), "released after the idle time");
        assert!(ends.try_recv().is_err(), "its last tunnel keeps it open");
        drop(tunnel);
        let end = ends.recv().await.unwrap();
        assert_eq!((end - start).as_secs(), 301);
        // The sweeper starts anew with the next connection.
        let (give, mut ends) = tokio::sync::mpsc::unbounded_channel();
        drop(pool.get(&"peer", watched(give)).await.unwrap());
        let end = ends.recv().await.unwrap();
        assert_eq!((end - start).as_secs(), 601);
    });
}

#[test]
fn clearing_closes_idle_connections_and_spares_tunnels() {
    run(async {
        let pool = pool();
        let (give, mut ends) = tokio::sync::mpsc::unbounded_channel();
        drop(pool.get(&"idle", watched(give)).await.unwrap());
        let (give, mut busy_ends) = tokio::sync::mpsc::unbounded_channel();
        let slot = pool.get(&"busy", watched(give)).await.unwrap();
        let (mut send, mut recv) = slot.connect(&connect()).await.unwrap().split();
        pool.clear();
        assert!(pool.is_empty());
        ends.recv().await.unwrap();
        write_all(&mut send, "still".into()).await.unwrap();
        send.finish().unwrap();
        assert_eq!(read_all(&mut recv).await.unwrap(), b"still");
        assert!(busy_ends.try_recv().is_err());
        drop((send, recv));
        busy_ends.recv().await.unwrap();
    });
}

#[test]
fn a_pool_that_closes_says_goodbye_and_waits_for_tunnels_no_longer_than_told() {
    run_paused(async {
        let pool = pool();
        let raw = Rc::new(Cell::new(None));
        let dial = async || {
            let (near, far) = tokio::io::duplex(PIPE);
            raw.set(Some(Raw(far)));
            hbone::handshake(near, &Settings::default()).await
        };
        drop(pool.get(&"idle", dial).await.unwrap());
        let mut idle = raw.take().unwrap();
        idle.read_preface().await;
        let (give, mut ends) = tokio::sync::mpsc::unbounded_channel();
        let slot = pool.get(&"busy", watched(give)).await.unwrap();
        let (_send, mut recv) = slot.connect(&connect()).await.unwrap().split();
        let start = Instant::now();
        let closed = spawn_local(pool.close(Duration::from_secs(3)));
        assert_eq!(idle.read_event().await, frame(GOAWAY, 0, 0, &[0; 8]));
        assert_eq!(idle.next().await, None);
        assert!(start.elapsed() < Duration::from_secs(1));
        assert!(recv.data().await.unwrap().is_err(), "it was given its time");
        assert_eq!(start.elapsed().as_secs(), 3);
        closed.await.unwrap();
        ends.recv().await.unwrap();
    });
}

#[test]
fn dropping_the_pool_closes_everything() {
    run(async {
        let pool = pool();
        let (give, mut ends) = tokio::sync::mpsc::unbounded_channel();
        let slot = pool.get(&"peer", watched(give)).await.unwrap();
        let (_send, mut recv) = slot.connect(&connect()).await.unwrap().split();
        drop(pool);
        assert!(recv.data().await.unwrap().is_err(), "its tunnels fail");
        ends.recv().await.unwrap();
    });
}

#[test]
fn the_least_recently_used_connection_makes_room() {
    run_paused(async {
        let small = Settings {
            pool_size: 2,
            ..Settings::default()
        };
        let (pool, peer) = (Pool::new(&small), Peer::default());
        for (key, dials) in [("a", 1), ("b", 2), ("a", 2), ("c", 3), ("a", 3), ("b", 4)] {
            drop(peer.get(&pool, key).await);
            assert_eq!(peer.dials.get(), dials, "{key}");
            assert!(pool.len() <= 2);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
}
