//! The log: one filter, one format, one writer thread.
//!
//! Module events are formatted on the thread that logs them, access records on the writer thread; both share the filter and the queue.
//! Reading `RUST_LOG` and `LOG_FORMAT`, and the words of `POST /logging`, are left to `ztunnel`.

mod filter;
mod layer;
mod line;
mod queue;
mod writer;

use std::io::{self, Write};
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tracing::Dispatch;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::Registry;

pub use self::filter::{Filter, FilterError};
pub(crate) use self::layer::level_name;
pub(crate) use self::line::{Fields, push, stamp};
pub(crate) use self::queue::Weigh;

use self::layer::LogLayer;
use self::queue::Queue;
pub(crate) use self::writer::Item;
use crate::access::Access;

/// Longest wait of [`LogHandle::flush`]: a reader of standard output that is stuck must not keep the process from ending.
const FLUSH_WAIT_MAX: Duration = Duration::from_secs(5);

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Columns parted by TABs.
    #[default]
    Plain,
    /// One JSON object per line.
    Json,
}

impl FromStr for Format {
    type Err = std::convert::Infallible;

    /// `json` is JSON, anything else is plain.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(if text == "json" {
            Self::Json
        } else {
            Self::Plain
        })
    }
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter text is not valid.
    #[error("log filter")]
    Filter(#[from] FilterError),
    /// The writer thread did not start.
    #[error("start the log writer thread")]
    Thread(#[source] io::Error),
    /// The process has a logger already.
    #[error("a logger is already installed in this process")]
    Installed,
}

/// Sets up the log of the process on standard output.
///
/// - `filter`: text of `RUST_LOG`; `None` or empty is `info`. `hickory_server::server=off` is put before it.
///
/// Errors: [`LogError`]; nothing is installed then.
pub fn init(format: Format, filter: Option<&str>) -> Result<LogHandle, LogError> {
    let (handle, dispatch) = build(format, filter, Box::new(io::stdout()))?;
    tracing::dispatcher::set_global_default(dispatch).map_err(|_| LogError::Installed)?;
    Ok(handle)
}

/// As [`init`], but writes to `out` and installs nothing: the caller decides where the [`Dispatch`] is in force.
///
/// Errors: [`LogError::Filter`], [`LogError::Thread`].
pub fn build(
    format: Format,
    filter: Option<&str>,
    out: Box<dyn Write + Send>,
) -> Result<(LogHandle, Dispatch), LogError> {
    let initial = Filter::initial(filter)?;
    let shared = Arc::new(Shared::new(format, initial));
    writer::spawn(Arc::clone(&shared), out).map_err(LogError::Thread)?;
    let dispatch = Dispatch::new(Registry::default().with(LogLayer::new(Arc::clone(&shared))));
    let closer = Arc::new(Closer(Arc::clone(&shared)));
    Ok((
        LogHandle {
            shared,
            _closer: closer,
        },
        dispatch,
    ))
}

/// What the layer, the access log, the writer and the handles share.
pub(crate) struct Shared {
    pub(crate) format: Format,
    initial: Filter,
    current: RwLock<Arc<Filter>>,
    access_level: AtomicU8,
    pub(crate) queue: Queue<Item>,
}

impl Shared {
    fn new(format: Format, initial: Filter) -> Self {
        Self {
            format,
            access_level: AtomicU8::new(rank(initial.level_of(crate::access::TARGET))),
            current: RwLock::new(Arc::new(initial.clone())),
            initial,
            queue: Queue::default(),
        }
    }

    /// The filter in force.
    pub(crate) fn filter(&self) -> Arc<Filter> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the access log lets `level` through: one relaxed load.
    pub(crate) fn access_enabled(&self, level: tracing::Level) -> bool {
        rank(level.into()) <= self.access_level.load(Ordering::Relaxed)
    }

    /// Changes the filter under the lock, so that of two changes at once none is lost.
    fn replace(
        &self,
        change: impl FnOnce(&Filter) -> Result<Filter, FilterError>,
    ) -> Result<String, FilterError> {
        let listing = {
            let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
            let next = change(&current)?;
            self.access_level.store(
                rank(next.level_of(crate::access::TARGET)),
                Ordering::Relaxed,
            );
            let listing = next.to_string();
            *current = Arc::new(next);
            listing
        };
        tracing::callsite::rebuild_interest_cache();
        Ok(listing)
    }
}

/// A level as a number: 0 is off, 5 is trace.
fn rank(level: tracing::level_filters::LevelFilter) -> u8 {
    level.into_level().map_or(0, |level| match level {
        tracing::Level::ERROR => 1,
        tracing::Level::WARN => 2,
        tracing::Level::INFO => 3,
        tracing::Level::DEBUG => 4,
        tracing::Level::TRACE => 5,
    })
}

/// Ends the writer thread when the last handle is gone, once it has written what is queued.
struct Closer(Arc<Shared>);

impl Drop for Closer {
    fn drop(&mut self) {
        self.0.queue.close();
    }
}

/// The running log. Cheap to clone. When the last handle is dropped the writer ends and later lines are dropped.
#[derive(Clone)]
pub struct LogHandle {
    shared: Arc<Shared>,
    _closer: Arc<Closer>,
}

impl LogHandle {
    /// The filter in force: entries from the most to the least specific, the default level last.
    pub fn current(&self) -> String {
        self.shared.filter().to_string()
    }

    /// Adds `entries` to the filter in force; an entry for a known target replaces it. Returns the new listing.
    ///
    /// Errors: [`FilterError`]; nothing is changed then.
    pub fn change(&self, entries: &str) -> Result<String, FilterError> {
        self.shared.replace(|current| current.with(entries))
    }

    /// Back to the filter of the start, plus `entries` (may be empty). Returns the new listing.
    ///
    /// Errors: [`FilterError`]; nothing is changed then.
    pub fn reset(&self, entries: &str) -> Result<String, FilterError> {
        self.shared.replace(|_| self.shared.initial.with(entries))
    }

    /// The access log that writes through this log.
    pub fn access(&self) -> Access {
        Access::new(Arc::clone(&self.shared))
    }

    /// Waits until all lines logged before this call are written, at most 5 s. `false` if they were not.
    pub fn flush(&self) -> bool {
        let (done, written) = std::sync::mpsc::sync_channel(1);
        self.shared.queue.push(Item::Flush(done)) && written.recv_timeout(FLUSH_WAIT_MAX).is_ok()
    }
}

impl std::fmt::Debug for LogHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogHandle")
            .field("filter", &self.current())
            .finish_non_exhaustive()
    }
}
