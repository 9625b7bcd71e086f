//! The names that were asked for and not answered yet, oldest first; and those that the server knows on the stream of now.
//!
//! Leaves to others: waiting for the answers (`finder`).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};

use mesh::Str;

/// Unanswered names that are remembered; of more the oldest are given up. Above the number of questions that someone waits for.
const DEMANDS_MAX: usize = 8192;

/// Names that are remembered as known to the server; beyond, every name counts as such. 2 MiB or so.
const ASKED_MAX: usize = 1 << 17;

/// The names that the server knows on this stream as asked for or as sent, but for those that are held. Only their hashes: taken for
/// known, a name that is not costs one request.
#[derive(Debug, Default)]
pub(super) struct Asked {
    hashes: HashSet<u64>,
    hash: RandomState,
}

impl Asked {
    pub(super) fn note(&mut self, name: &str) {
        if self.hashes.len() < ASKED_MAX {
            self.hashes.insert(self.hash.hash_one(name));
        }
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.hashes.len() >= ASKED_MAX || self.hashes.contains(&self.hash.hash_one(name))
    }

    /// A new stream.
    pub(super) fn clear(&mut self) {
        self.hashes = HashSet::new();
    }
}

/// Unanswered names.
#[derive(Debug, Default)]
pub(super) struct Demands {
    by_name: HashMap<Str, u64>,
    by_age: BTreeMap<u64, Str>,
    next: u64,
}

impl Demands {
    /// Notes a name; one that is there counts as new.
    pub(super) fn add(&mut self, name: &str) {
        let name: Str = name.into();
        if let Some(older) = self.by_name.insert(name.clone(), self.next) {
            self.by_age.remove(&older);
        }
        self.by_age.insert(self.next, name);
        self.next += 1;
        while self.by_age.len() > DEMANDS_MAX {
            if let Some((_, oldest)) = self.by_age.pop_first() {
                self.by_name.remove(&oldest);
            }
        }
    }

    /// Takes a name out. Returns whether it was there.
    pub(super) fn answer(&mut self, name: &str) -> bool {
        let age = self.by_name.remove(name);
        age.is_some_and(|age| self.by_age.remove(&age).is_some())
    }

    /// Whether nothing is asked for.
    pub(super) fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        self.by_age.values().map(|name| &**name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_remembered_counts_as_asked() {
        let mut asked = Asked::default();
        asked.note("a");
        assert!(asked.contains("a") && !asked.contains("b"));
        for n in 0..2 * ASKED_MAX {
            asked.note(&n.to_string());
        }
        assert_eq!(asked.hashes.len(), ASKED_MAX);
        assert!(asked.contains("b"));
        asked.clear();
        assert!(!asked.contains("a"));
    }

    #[test]
    fn the_oldest_are_given_up() {
        let mut demands = Demands::default();
        for n in 0..DEMANDS_MAX {
            demands.add(&n.to_string());
        }
        demands.add("0");
        demands.add("new");
        assert_eq!(demands.iter().count(), DEMANDS_MAX);
        assert!(!demands.answer("1"), "the oldest but for the renewed one");
        assert!(demands.answer("0") && demands.answer("new") && demands.answer("2"));
        assert!(!demands.answer("2"));
        assert_eq!(demands.by_name.len(), demands.by_age.len());
    }
}
