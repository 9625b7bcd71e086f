//! Shares connections between tunnels to the same peer. What makes two peers the same is in the caller's key, how to
//! dial is the caller's closure; the rules are in `pool/book.rs`, here are only the waiting and the tasks.

mod book;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::future::poll_fn;
use std::hash::Hash;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tracing::{debug, warn};

use crate::{ConnectionError, Driver, Sender, Settings, Slot};
use book::{Book, Checkout, Line};

/// Longest wait for dials of others to the same key. Dials that fail are tried again one after the other, so without
/// a bound the last of many would wait for all.
pub const WAIT_MAX: Duration = Duration::from_secs(30);

/// Longest wait for a new peer to tell how many tunnels it takes, before the next connection to it is dialled.
const TOLD_MAX: Duration = Duration::from_secs(5);

/// A pool of client connections, keyed by whatever makes two of them exchangeable. Belongs to one thread; clones
/// share it. Dropping the last clone closes all its connections.
///
/// Runs its connections with `spawn_local`: needs a `LocalSet` or a local runtime.
pub struct Pool<K>(Rc<Inner<K>>);

struct Inner<K> {
    book: RefCell<Book<K, Sender>>,
    /// Keys being dialled, and who waits for the outcome.
    dials: RefCell<HashMap<K, Rc<Notify>>>,
    /// The connections' drivers; they end with the pool.
    drivers: RefCell<JoinSet<()>>,
    /// The sweeper, at most one; ends with the pool.
    sweeper: RefCell<JoinSet<()>>,
    sweeping: Cell<bool>,
}

/// Why a pool gave no connection.
#[derive(Debug, thiserror::Error)]
pub enum GetError<E> {
    /// The own dial failed.
    #[error("{0}")]
    Dial(E),
    /// Others dialled all the time, and none succeeded.
    #[error("no connection to the next hop within {WAIT_MAX:?}")]
    Waited,
}

impl<K> Pool<K>
where
    K: Clone + Eq + Hash + fmt::Debug + 'static,
{
    /// An empty pool; `pool_size` and `pool_idle` are taken from the settings.
    pub fn new(settings: &Settings) -> Self {
        Pool(Rc::new(Inner {
            book: RefCell::new(Book::new(settings.pool_size, settings.pool_idle)),
            dials: RefCell::default(),
            drivers: RefCell::new(JoinSet::new()),
            sweeper: RefCell::new(JoinSet::new()),
            sweeping: Cell::new(false),
        }))
    }

    /// A place on a connection for `key`: on one that has room, else on one that `dial` makes.
    ///
    /// At most one dial per key is under way; other callers wait for it, then share it or dial in turn. A failed dial
    /// is reported to its own caller only. Dropping the future gives the turn to the next.
    pub async fn get<IO, E>(
        &self,
        key: &K,
        dial: impl AsyncFnOnce() -> Result<(Sender, Driver<IO>), E>,
    ) -> Result<Slot, GetError<E>>
    where
        IO: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let until = Instant::now() + WAIT_MAX;
        loop {
            let checkout = self.0.book.borrow_mut().checkout(key, Instant::now());
            match checkout {
                Checkout::Use(slot) => return Ok(slot),
                Checkout::Dial => return self.dial(key, dial).await.map_err(GetError::Dial),
                Checkout::Wait => self.wait(key, until).await.map_err(|_| GetError::Waited)?,
            }
        }
    }

    /// Takes all connections out of the pool: the idle ones close, the others when their tunnels have ended.
    pub fn clear(&self) {
        self.0.book.borrow_mut().clear();
    }

    /// Takes all connections out and lets them end in peace: those without tunnels send GOAWAY and close. What is left
    /// after `within` is dropped.
    pub async fn close(self, within: Duration) {
        self.clear();
        let mut drivers = self.0.drivers.take();
        let ended = async { while drivers.join_next().await.is_some() {} };
        // the rest is aborted with the set
        let _ = timeout(within, ended).await;
    }

    /// Connections in the pool.
    pub fn len(&self) -> usize {
        self.0.book.borrow().len()
    }

    /// True when no connection is in the pool.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    async fn wait(&self, key: &K, until: Instant) -> Result<(), tokio::time::error::Elapsed> {
        let dial = self.0.dials.borrow().get(key).cloned();
        match dial {
            // Registered when the future is made, and nothing has run since the checkout: no wake-up is lost.
            Some(dial) => timeout_at(until, dial.notified()).await,
            None => Ok(()),
        }
    }

    async fn dial<IO, E>(
        &self,
        key: &K,
        dial: impl AsyncFnOnce() -> Result<(Sender, Driver<IO>), E>,
    ) -> Result<Slot, E>
    where
        IO: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let turn = Turn::take(&self.0, key);
        let (sender, driver) = dial().await?;
        let slot = sender.claim();
        self.0
            .book
            .borrow_mut()
            .add(key.clone(), sender, Instant::now());
        self.drive(key.clone(), driver, turn);
        self.start_sweeper();
        Ok(slot)
    }

    /// Runs a connection until it ends, then forgets it.
    ///
    /// - `turn`: of the dial, kept until the peer has told how many tunnels it takes: those who wait then share as many
    ///   places as there are, and the caller of the dial need not wait for that
    fn drive<IO>(&self, key: K, mut driver: Driver<IO>, turn: Turn<K>)
    where
        IO: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let pool = Rc::downgrade(&self.0);
        let mut untold = Some((turn, Box::pin(sleep(TOLD_MAX))));
        let driven = async move {
            let end = poll_fn(|cx| {
                let end = Pin::new(&mut driver).poll(cx);
                untold
                    .take_if(|(_, late)| driver.is_settled() || late.as_mut().poll(cx).is_ready());
                end
            });
            match end.await {
                Ok(()) => debug!(peer = ?key, "connection closed"),
                Err(error @ ConnectionError::PingTimeout(_)) => {
                    warn!(peer = ?key, %error, "connection dropped, its tunnels fail");
                }
                Err(error) => debug!(peer = ?key, %error, "connection failed"),
            }
            // what the tunnels hear depends on how the driver ended, and the next dial on both
            drop((driver, untold));
            if let Some(pool) = pool.upgrade() {
                pool.book.borrow_mut().prune(&key);
            }
        };
        spawn(&self.0.drivers, driven);
    }

    /// Keeps one task that releases idle connections while there are any.
    fn start_sweeper(&self) {
        if !self.0.sweeping.replace(true) {
            spawn(&self.0.sweeper, sweep(Rc::downgrade(&self.0)));
        }
    }
}

/// Runs a task for as long as the set is there.
fn spawn(tasks: &RefCell<JoinSet<()>>, task: impl Future<Output = ()> + 'static) {
    let mut tasks = tasks.borrow_mut();
    while tasks.try_join_next().is_some() {}
    tasks.spawn_local(task);
}

async fn sweep<K: Clone + Eq + Hash>(pool: Weak<Inner<K>>) {
    loop {
        let Some(pool) = pool.upgrade() else { return };
        let next = pool.book.borrow_mut().sweep(Instant::now());
        let Some(next) = next else {
            pool.sweeping.set(false);
            return;
        };
        drop(pool);
        sleep_until(next).await;
    }
}

impl<K> Clone for Pool<K> {
    fn clone(&self) -> Self {
        Pool(self.0.clone())
    }
}

impl<K> fmt::Debug for Pool<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

impl Line for Sender {
    type Slot = Slot;

    fn is_usable(&self) -> bool {
        Sender::is_usable(self)
    }

    fn reserve(&self) -> Option<Slot> {
        Sender::reserve(self)
    }
}

/// The right to dial a key, held while dialling. However it ends, the next waiter gets its chance.
struct Turn<K: Clone + Eq + Hash> {
    pool: Weak<Inner<K>>,
    key: K,
}

impl<K: Clone + Eq + Hash> Turn<K> {
    fn take(pool: &Rc<Inner<K>>, key: &K) -> Self {
        pool.dials.borrow_mut().insert(key.clone(), Rc::default());
        let (pool, key) = (Rc::downgrade(pool), key.clone());
        Turn { pool, key }
    }
}

impl<K: Clone + Eq + Hash> Drop for Turn<K> {
    fn drop(&mut self) {
        // a pool that is gone has nobody waiting
        let Some(pool) = self.pool.upgrade() else {
            return;
        };
        pool.book.borrow_mut().dialled(&self.key);
        if let Some(waiters) = pool.dials.borrow_mut().remove(&self.key) {
            waiters.notify_waiters();
        }
    }
}
