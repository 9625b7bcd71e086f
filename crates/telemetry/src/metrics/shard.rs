//! Traffic counters of one data thread: it alone writes them, with plain relaxed stores; a scrape only reads.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::dns::{DnsLabels, DnsQuestion, DnsState, Known};
use super::labels::{Flag, Reporter, TrafficLabels};
use super::lock;

/// Most label sets of one thread, at about 1 KiB each. Labels partly come from peers, so they must not grow without bound.
const SERIES_MAX: usize = 10_000;
/// Most of these that are a peer's word, which can name what does not exist: the others always have room.
const TOLD_MAX: usize = 1_000;

/// Adds to a counter that only this thread writes: cheaper than an atomic addition.
pub(super) fn bump(counter: &AtomicU64, n: u64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(n),
        Ordering::Relaxed,
    );
}

/// The counters of one label set in one thread.
#[derive(Default)]
struct Series {
    opened: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    /// By the number of the [`Flag`].
    closed: [AtomicU64; Flag::ALL.len()],
}

/// The counters of one label set over all threads.
#[derive(Default)]
pub(super) struct Totals {
    pub(super) opened: u64,
    pub(super) received: u64,
    pub(super) sent: u64,
    closed: [u64; Flag::ALL.len()],
}

impl Totals {
    /// How many ended with each flag.
    pub(super) fn closed(&self) -> impl Iterator<Item = (Flag, u64)> {
        Flag::ALL.into_iter().zip(self.closed)
    }

    fn add(&mut self, series: &Series) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        self.opened += read(&series.opened);
        self.received += read(&series.received);
        self.sent += read(&series.sent);
        for (sum, counter) in self.closed.iter_mut().zip(&series.closed) {
            *sum += read(counter);
        }
    }
}

/// What a thread shares with the scraper.
#[derive(Default)]
pub(super) struct ShardState {
    /// Locked by the thread only when a label set is new to it.
    series: Mutex<Vec<(Arc<TrafficLabels>, Arc<Series>)>>,
    sockets: [SocketCount; Reporter::ALL.len()],
    overflow: AtomicU64,
    pub(super) dns: DnsState,
}

#[derive(Default)]
struct SocketCount {
    open: AtomicI64,
    /// A sample exists from the first socket on.
    seen: AtomicBool,
}

impl ShardState {
    pub(super) fn add_to(&self, all: &mut BTreeMap<Arc<TrafficLabels>, Totals>) {
        for (labels, series) in lock(&self.series).iter() {
            all.entry(Arc::clone(labels)).or_default().add(series);
        }
    }

    /// Open sockets by the number of the [`Reporter`]; `None` if there was none yet.
    pub(super) fn sockets(&self) -> [Option<i64>; Reporter::ALL.len()] {
        [&self.sockets[0], &self.sockets[1]].map(|count| {
            count
                .seen
                .load(Ordering::Relaxed)
                .then(|| count.open.load(Ordering::Relaxed))
        })
    }

    pub(super) fn overflow(&self) -> u64 {
        self.overflow.load(Ordering::Relaxed)
    }
}

/// The traffic counters of the thread that made it; it cannot leave it. Cheap to clone.
#[derive(Clone)]
pub struct Shard {
    state: Arc<ShardState>,
    known: Rc<RefCell<HashMap<Arc<TrafficLabels>, Arc<Series>>>>,
    /// Label sets made from a peer's word.
    told: Rc<Cell<usize>>,
    dns: Known,
}

impl Shard {
    pub(super) fn new(state: Arc<ShardState>) -> Self {
        Self {
            state,
            known: Rc::default(),
            told: Rc::default(),
            dns: Known::default(),
        }
    }

    /// Counts a connection as opened. Past 10,000 label sets it is counted with all labels unknown, and as overflow.
    pub fn connection(&self, labels: TrafficLabels) -> Connection {
        let series = self.series(labels);
        bump(&series.opened, 1);
        Connection {
            series,
            closed: false,
            thread: PhantomData,
        }
    }

    /// [`Shard::connection`] with labels of which some are a peer's word, in its baggage. Past 1,000 such label sets it is
    /// counted as `proven` says, and as overflow.
    pub fn connection_told(
        &self,
        labels: TrafficLabels,
        proven: impl FnOnce() -> TrafficLabels,
    ) -> Connection {
        if self.known.borrow().contains_key(&labels) {
            return self.connection(labels);
        }
        if self.told.get() == TOLD_MAX {
            bump(&self.state.overflow, 1);
            return self.connection(proven());
        }
        self.told.set(self.told.get() + 1);
        self.connection(labels)
    }

    fn series(&self, labels: TrafficLabels) -> Arc<Series> {
        let mut known = self.known.borrow_mut();
        if let Some(series) = known.get(&labels) {
            return Arc::clone(series);
        }
        let labels = if known.len() < SERIES_MAX {
            labels
        } else {
            bump(&self.state.overflow, 1);
            TrafficLabels::unknown(labels.reporter)
        };
        let labels = Arc::new(labels);
        let entry = known.entry(Arc::clone(&labels)).or_insert_with(|| {
            let series = Arc::new(Series::default());
            lock(&self.state.series).push((labels, Arc::clone(&series)));
            series
        });
        Arc::clone(entry)
    }

    /// Counts a DNS question of a pod. Past 10,000 label sets it is counted without who asked.
    pub fn dns_question(&self, labels: DnsLabels) -> DnsQuestion {
        self.dns.question(&self.state.dns, labels)
    }

    /// Counts an accepted socket as open until the guard is dropped.
    pub fn socket(&self, reporter: Reporter) -> Socket {
        let count = &self.state.sockets[reporter as usize];
        count.seen.store(true, Ordering::Relaxed);
        count
            .open
            .store(count.open.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        Socket {
            state: Arc::clone(&self.state),
            reporter,
            thread: PhantomData,
        }
    }
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard")
            .field("series", &self.known.borrow().len())
            .finish()
    }
}

/// The counters of one open connection. Dropped without [`Connection::close`] it counts as closed without a flag.
pub struct Connection {
    series: Arc<Series>,
    closed: bool,
    /// Counters have one writing thread.
    thread: PhantomData<Rc<()>>,
}

impl Connection {
    /// Counts bytes from client to server, whichever side reports.
    pub fn received(&self, bytes: u64) {
        bump(&self.series.received, bytes);
    }

    /// Counts bytes from server to client, whichever side reports.
    pub fn sent(&self, bytes: u64) {
        bump(&self.series.sent, bytes);
    }

    /// Counts the connection as closed; also as failed unless `flag` is [`Flag::None`].
    pub fn close(mut self, flag: Flag) {
        self.count_close(flag);
    }

    fn count_close(&mut self, flag: Flag) {
        if !std::mem::replace(&mut self.closed, true) {
            bump(&self.series.closed[flag as usize], 1);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.count_close(Flag::None);
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}

/// An accepted socket, counted as open while this lives.
pub struct Socket {
    state: Arc<ShardState>,
    reporter: Reporter,
    /// Counters have one writing thread.
    thread: PhantomData<Rc<()>>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        let open = &self.state.sockets[self.reporter as usize].open;
        open.store(open.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket")
            .field("reporter", &self.reporter)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_flags_and_reporters_are_their_places() {
        assert!(
            Flag::ALL
                .iter()
                .enumerate()
                .all(|(at, flag)| *flag as usize == at)
        );
        assert!(
            Reporter::ALL
                .iter()
                .enumerate()
                .all(|(at, reporter)| *reporter as usize == at)
        );
    }

    #[test]
    fn series_are_bounded_and_nothing_is_lost() {
        let state = Arc::new(ShardState::default());
        let shard = Shard::new(Arc::clone(&state));
        for n in 0..SERIES_MAX + 50 {
            let mut labels = TrafficLabels::unknown(Reporter::Source);
            labels.service.name = n.to_string().into();
            shard.connection(labels).received(1);
        }
        let mut all = BTreeMap::new();
        state.add_to(&mut all);
        assert_eq!(all.len(), SERIES_MAX + 1);
        assert_eq!(state.overflow(), 50);
        let unknown = &all[&TrafficLabels::unknown(Reporter::Source)];
        assert_eq!(
            (unknown.opened, unknown.received, unknown.closed[0]),
            (50, 50, 50)
        );
    }

    #[test]
    fn what_peers_tell_leaves_room_for_what_is_known() {
        let state = Arc::new(ShardState::default());
        let shard = Shard::new(Arc::clone(&state));
        let named = |name: String| {
            let mut labels = TrafficLabels::unknown(Reporter::Destination);
            labels.service.name = name.into();
            labels
        };
        let proven = || named("proven".into());
        for n in 0..SERIES_MAX + 7 {
            let told = || named(format!("told-{n}"));
            shard.connection_told(told(), proven).received(1);
            if n < TOLD_MAX {
                // not a new one
                shard.connection_told(told(), proven).received(1);
            }
        }
        shard.connection(named("known".into())).received(1);
        let mut all = BTreeMap::new();
        state.add_to(&mut all);
        assert_eq!(all.len(), TOLD_MAX + 2);
        let received = |name: &str| all[&named(name.into())].received;
        assert_eq!(received("told-3"), 2);
        let rest = (SERIES_MAX + 7 - TOLD_MAX) as u64;
        assert_eq!((received("proven"), received("known")), (rest, 1));
        assert_eq!(state.overflow(), rest);
    }
}
