//! Tells when a file may have changed: by the kernel's events on its directory, and by looking now and then, so that an event that
//! was missed is made good. Works for files written in place, replaced by rename, and behind symlinks that are swapped.
//!
//! What is in the file is left to the reader, who also copes with being told once too often.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until};
use tracing::warn;

/// How patient a watch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchConfig {
    /// Quiet time after which a change counts as finished. Default 50 ms.
    pub debounce: Duration,
    /// A change that never comes to rest is reported after this time all the same. Default 500 ms.
    pub debounce_max: Duration,
    /// How often to look without an event. Default 10 s.
    pub poll: Duration,
}

impl Default for WatchConfig {
    fn default() -> Self {
        Self {
            debounce: Duration::from_millis(50),
            debounce_max: Duration::from_millis(500),
            poll: Duration::from_secs(10),
        }
    }
}

/// Watches one file, which need not be there yet.
pub struct FileWatch {
    path: PathBuf,
    config: WatchConfig,
    /// One signal is enough: it says that there is something to look at.
    signals: Receiver<()>,
    /// Set when an event named the file itself.
    named: Arc<AtomicBool>,
    watcher: Option<RecommendedWatcher>,
    watched: Vec<(PathBuf, Id)>,
    print: Option<Print>,
    pending: Option<Pending>,
    poll: Interval,
}

/// A change that has not come to rest.
#[derive(Clone, Copy)]
struct Pending {
    due: Instant,
    latest: Instant,
}

/// Device and inode.
type Id = (u64, u64);

/// What differs between two states of a file: identity, size, times of content and inode in nanoseconds.
type Print = (Id, u64, [i64; 4]);

/// Why the caller is told.
enum Cause {
    Event,
    Poll,
}

impl FileWatch {
    /// Starts watching. Must be called within a tokio runtime with time enabled. Without kernel events it falls back to looking now
    /// and then, with a warning.
    pub fn new(path: impl Into<PathBuf>, config: WatchConfig) -> Self {
        let path = path.into();
        let named = Arc::new(AtomicBool::new(false));
        let (sender, signals) = channel(1);
        let handler = Handler {
            name: path.file_name().map(OsString::from),
            named: Arc::clone(&named),
            sender,
        };
        let watcher = notify::recommended_watcher(move |event| handler.handle(event))
            .inspect_err(
                |error| warn!(path = %path.display(), %error, "no file events, polling only"),
            )
            .ok();
        let mut poll = interval_at(Instant::now() + config.poll, config.poll);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let print = print(&path);
        let mut watch = Self {
            path,
            config,
            signals,
            named,
            watcher,
            watched: Vec::new(),
            print,
            pending: None,
            poll,
        };
        watch.rewatch();
        watch
    }

    /// Waits until the file may have changed since the last return, or since [`FileWatch::new`]. Can be dropped and called again
    /// without missing a change.
    pub async fn changed(&mut self) {
        while let Cause::Poll = self.next().await {
            if self.has_new_print() {
                return;
            }
        }
    }

    /// As [`FileWatch::changed`], but also returns at each poll: for readers that look at more than the file.
    pub async fn looked(&mut self) {
        self.next().await;
    }

    async fn next(&mut self) -> Cause {
        loop {
            let due = self.pending.map(|pending| pending.due);
            tokio::select! {
                Some(()) = self.signals.recv() => self.note(),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.pending = None;
                    self.rewatch();
                    let named = self.named.swap(false, Ordering::AcqRel);
                    if self.has_new_print() || named {
                        return Cause::Event;
                    }
                }
                _ = self.poll.tick() => {
                    self.rewatch();
                    return Cause::Poll;
                }
            }
        }
    }

    fn note(&mut self) {
        let now = Instant::now();
        let latest = self
            .pending
            .map_or(now + self.config.debounce_max, |pending| pending.latest);
        self.pending = Some(Pending {
            due: (now + self.config.debounce).min(latest),
            latest,
        });
    }

    fn has_new_print(&mut self) -> bool {
        let now = print(&self.path);
        std::mem::replace(&mut self.print, now) != now
    }

    /// Watches the directory of the path and that of the file behind it, as they are now.
    fn rewatch(&mut self) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        let wanted: Vec<(PathBuf, Id)> = directories(&self.path)
            .into_iter()
            .filter_map(|dir| Some((id(&dir)?, dir)))
            .map(|(id, dir)| (dir, id))
            .collect();
        for (dir, _) in self
            .watched
            .iter()
            .filter(|watched| !wanted.contains(watched))
        {
            // The watch may be gone with its directory.
            let _ = watcher.unwatch(dir);
        }
        let kept = |entry: &(PathBuf, Id)| {
            self.watched.contains(entry)
                || watcher.watch(&entry.0, RecursiveMode::NonRecursive).is_ok()
        };
        // A directory that cannot be watched is tried again at the next poll.
        self.watched = wanted.into_iter().filter(kept).collect();
    }
}

impl std::fmt::Debug for FileWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileWatch")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// Runs on the watcher's thread.
struct Handler {
    name: Option<OsString>,
    named: Arc<AtomicBool>,
    sender: Sender<()>,
}

impl Handler {
    fn handle(&self, event: notify::Result<Event>) {
        let (names_it, counts) = match &event {
            Ok(event) => (
                event.need_rescan()
                    || event
                        .paths
                        .iter()
                        .any(|path| path.file_name() == self.name.as_deref()),
                // Reading the file is an event too, and we read it.
                !matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write)),
            ),
            Err(_) => (true, true),
        };
        if counts {
            self.named.fetch_or(names_it, Ordering::AcqRel);
            // A full channel holds a signal that is not seen yet.
            let _ = self.sender.try_send(());
        }
    }
}

fn directories(path: &Path) -> Vec<PathBuf> {
    let parent = |path: &Path| match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let mut directories = vec![parent(path)];
    if let Ok(target) = fs::canonicalize(path) {
        let behind = parent(&target);
        if id(&behind) != id(&directories[0]) {
            directories.push(behind);
        }
    }
    directories
}

fn id(path: &Path) -> Option<Id> {
    fs::metadata(path)
        .ok()
        .map(|metadata| (metadata.dev(), metadata.ino()))
}

fn print(path: &Path) -> Option<Print> {
    let metadata = fs::metadata(path).ok()?;
    let times = [
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    ];
    Some(((metadata.dev(), metadata.ino()), metadata.size(), times))
}
