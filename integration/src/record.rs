//! What a server of the tests saw and did, in order, to look at and to wait for. Which things those are is each server's own.

use std::fmt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Most entries that are kept; a test that makes more loses the rest, and waits then fail and say so.
const ENTRIES_MAX: usize = 100_000;
/// Entries that the error of a wait shows.
const SHOWN: usize = 16;

/// A thing that is recorded.
pub trait Entry: Clone + fmt::Debug {
    /// Who records it, as errors name it.
    const BY: &'static str;

    /// It on one line, for errors.
    fn line(&self) -> String {
        format!("{self:?}")
    }
}

/// All entries so far.
#[derive(Debug)]
pub struct Record<E> {
    entries: Mutex<Vec<E>>,
    more: Condvar,
}

impl<E> Default for Record<E> {
    fn default() -> Self {
        Self {
            entries: Mutex::default(),
            more: Condvar::default(),
        }
    }
}

impl<E: Entry> Record<E> {
    /// Adds one.
    pub fn add(&self, entry: E) {
        let mut entries = self.lock();
        if entries.len() < ENTRIES_MAX {
            entries.push(entry);
        }
        drop(entries);
        self.more.notify_all();
    }

    /// Number of entries so far; positions for [`Record::since`] and [`Record::wait`].
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Entries from a position on.
    pub fn since(&self, from: usize) -> Vec<E> {
        self.lock().get(from..).unwrap_or_default().to_vec()
    }

    /// Waits until `look` finds something in one of the entries from `from` on.
    ///
    /// - `what`: named in the error
    ///
    /// Errors: it does not within `limit`; the last entries are in the text.
    pub fn wait<T>(
        &self,
        from: usize,
        limit: Duration,
        what: &str,
        look: impl Fn(&E) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + limit;
        let mut entries = self.lock();
        let mut next = from;
        loop {
            while let Some(entry) = entries.get(next) {
                if let Some(found) = look(entry) {
                    return Ok(found);
                }
                next += 1;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let tail = &entries[entries.len().saturating_sub(SHOWN)..];
                let shown: Vec<_> = tail.iter().map(Entry::line).collect();
                let shown = shown.join("\n");
                bail!(
                    "{}: no {what} within {limit:?}; last entries:\n{shown}",
                    E::BY
                );
            }
            let woken = self.more.wait_timeout(entries, left);
            entries = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<E>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
