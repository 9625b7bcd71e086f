//! Answers of resolvers that one pod may have again, within bounds of number and of bytes.
//!
//! When it is full, the oldest go; one that was asked for since gets a second turn. How long an answer is good is left to `relay`.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most answers of one pod (spec: dns §6).
const ENTRIES_MAX: usize = 8192;
/// Most bytes of them, with what keeping them takes. 8,192 usual answers have about half of that.
const BYTES_MAX: usize = 2 * 1024 * 1024;
/// Largest answer that is kept.
const ANSWER_BYTES_MAX: usize = 16 * 1024;
/// What an answer costs beside its bytes and its key's.
const OVERHEAD_BYTES: usize = 160;

/// What was asked, and whom.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// none = whichever the node has
    pub(super) resolver: Option<SocketAddr>,
    /// name in lower case, type, class, flags
    pub(super) essence: Vec<u8>,
}

#[derive(Debug)]
struct Entry {
    answer: Arc<[u8]>,
    at: Instant,
    until: Instant,
    /// since its last turn
    was_asked: bool,
}

/// The answers of one pod. Takes no memory while there are none.
#[derive(Debug, Default)]
pub(super) struct Cache {
    entries: HashMap<Arc<Key>, Entry>,
    /// oldest first; each key of `entries` once
    order: VecDeque<Arc<Key>>,
    bytes: usize,
}

fn cost(key: &Key, answer: &[u8]) -> usize {
    key.essence.len() + answer.len() + OVERHEAD_BYTES
}

impl Cache {
    /// The answer, if it is still good, and its age.
    pub(super) fn find(&mut self, key: &Key, now: Instant) -> Option<(Arc<[u8]>, Duration)> {
        let entry = self.entries.get_mut(key)?;
        if now >= entry.until {
            return None;
        }
        entry.was_asked = true;
        let age = now.saturating_duration_since(entry.at);
        Some((Arc::clone(&entry.answer), age))
    }

    /// Keeps an answer that is good for `keep`.
    pub(super) fn keep(
        &mut self,
        key: &Arc<Key>,
        answer: &Arc<[u8]>,
        keep: Duration,
        now: Instant,
    ) {
        let Some(until) = now.checked_add(keep) else {
            return;
        };
        if answer.len() > ANSWER_BYTES_MAX {
            return;
        }
        let entry = Entry {
            answer: Arc::clone(answer),
            at: now,
            until,
            was_asked: false,
        };
        self.bytes += cost(key, answer);
        match self.entries.insert(Arc::clone(key), entry) {
            Some(before) => self.bytes -= cost(key, &before.answer),
            None => self.order.push_back(Arc::clone(key)),
        }
        self.fit(now);
    }

    /// Lets go of what is beyond the bounds, and of the oldest that are no longer good.
    fn fit(&mut self, now: Instant) {
        while let Some(oldest) = self.order.front() {
            let is_full = self.entries.len() > ENTRIES_MAX || self.bytes > BYTES_MAX;
            let entry = self.entries.get_mut(oldest);
            let is_over = entry.as_ref().is_none_or(|e| now >= e.until);
            if !is_full && !is_over {
                return;
            }
            let Some(oldest) = self.order.pop_front() else {
                return;
            };
            match entry {
                Some(entry) if !is_over && entry.was_asked => {
                    entry.was_asked = false;
                    self.order.push_back(oldest);
                }
                _ => {
                    if let Some(entry) = self.entries.remove(&oldest) {
                        self.bytes -= cost(&oldest, &entry.answer);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn key(number: usize) -> Arc<Key> {
        Arc::new(Key {
            resolver: None,
            essence: number.to_be_bytes().to_vec(),
        })
    }

    fn answer(len: usize) -> Arc<[u8]> {
        vec![7; len].into()
    }

    fn check(cache: &Cache) {
        assert_eq!(cache.entries.len(), cache.order.len());
        let costs = cache.entries.iter().map(|(k, e)| cost(k, &e.answer));
        assert_eq!(cache.bytes, costs.sum::<usize>());
        assert!(cache.entries.len() <= ENTRIES_MAX && cache.bytes <= BYTES_MAX);
    }

    #[test]
    fn an_answer_is_given_as_long_as_it_is_good() {
        let (mut cache, start) = (Cache::default(), Instant::now());
        let seconds = Duration::from_secs;
        cache.keep(&key(1), &answer(9), seconds(10), start);
        let found = cache.find(&key(1), start + seconds(9));
        assert_eq!(found.map(|(a, age)| (a.len(), age)), Some((9, seconds(9))));
        assert!(cache.find(&key(1), start + seconds(10)).is_none());
        assert!(cache.find(&key(2), start).is_none());
        // another one in its place; and the next to come finds it gone
        cache.keep(&key(1), &answer(5), seconds(10), start + seconds(10));
        check(&cache);
        cache.keep(&key(2), &answer(5), seconds(10), start + seconds(30));
        check(&cache);
        assert_eq!(cache.entries.len(), 1);
    }

    #[test]
    fn number_and_bytes_are_bounded_and_what_is_asked_for_stays() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        cache.keep(&key(0), &answer(40), DAY, now);
        for number in 1..3 * ENTRIES_MAX {
            cache.keep(&key(number), &answer(40), DAY, now);
            assert!(cache.find(&key(0), now).is_some(), "{number}");
        }
        check(&cache);
        assert_eq!(cache.entries.len(), ENTRIES_MAX);
        assert!(cache.find(&key(1), now).is_none());
        for number in 0..1000 {
            cache.keep(&key(number), &answer(ANSWER_BYTES_MAX), DAY, now);
            check(&cache);
        }
        cache.keep(&key(9), &answer(ANSWER_BYTES_MAX + 1), DAY, now);
        check(&cache);
        assert!(cache.find(&key(9), now).is_none());
    }
}
