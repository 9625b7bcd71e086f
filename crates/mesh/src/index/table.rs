//! From hashes of keys to slots: a table that holds no key itself, and is cheap to copy as a whole.
//!
//! Several slots may have one key, and different keys one hash: whoever looks something up checks what it finds.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hash};
use std::ops::RangeInclusive;
use std::sync::{Arc, LazyLock};

use hashbrown::{DefaultHashBuilder, HashTable};

use super::arena::Slot;

/// Hash of a key, the same for all tables of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct KeyHash(u32);

impl KeyHash {
    /// The hash of `key`.
    pub(super) fn of(key: impl Hash) -> Self {
        static SEED: LazyLock<DefaultHashBuilder> = LazyLock::new(DefaultHashBuilder::default);
        Self((SEED.hash_one(key) >> 32) as u32)
    }

    fn shard(self) -> usize {
        (self.0 >> (u32::BITS - SHARD_BITS)) as usize
    }

    /// Odd, so that the low bits stay as many as they were; the high ones are the tag that a table keeps of an entry.
    fn spread(self) -> u64 {
        u64::from(self.0).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }
}

const SHARD_BITS: u32 = 6;
/// Shards of a table: what a change copies, against what a copy of the whole has to count.
const SHARDS: usize = 1 << SHARD_BITS;

/// Entries of one hash that a shard holds: to find one of them costs as many steps. The rest are kept in order beside.
const ALIKE_MAX: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    hash: KeyHash,
    slot: Slot,
}

impl Entry {
    /// All that may have this hash.
    fn all_of(hash: KeyHash) -> RangeInclusive<Self> {
        let (first, last) = (Slot::MIN, Slot::MAX);
        Self { hash, slot: first }..=Self { hash, slot: last }
    }
}

/// Slots by the hash of a key.
#[derive(Clone, Debug)]
pub(super) struct Table {
    /// Boxed, so that an index is a few hundred bytes: readers wait while one takes the place of another.
    shards: Box<[Arc<HashTable<Entry>>; SHARDS]>,
    /// What is over [`ALIKE_MAX`]: of the many policies of one namespace, of the many workloads at one address.
    crowded: Arc<BTreeSet<Entry>>,
}

impl Default for Table {
    fn default() -> Self {
        let empty = Arc::new(HashTable::new());
        Self {
            shards: Box::new(std::array::from_fn(|_| empty.clone())),
            crowded: Arc::default(),
        }
    }
}

impl Table {
    /// The slots that were put in with this hash, in no order.
    pub(super) fn find(&self, hash: KeyHash) -> impl Iterator<Item = Slot> {
        let beside = match self.crowded.is_empty() {
            true => None,
            false => Some(self.crowded.range(Entry::all_of(hash))),
        };
        self.in_shard(hash)
            .chain(beside.into_iter().flatten())
            .map(|entry| entry.slot)
    }

    fn in_shard(&self, hash: KeyHash) -> impl Iterator<Item = &Entry> {
        self.shards[hash.shard()]
            .iter_hash(hash.spread())
            .filter(move |entry| entry.hash == hash)
    }

    /// Puts a slot in, once.
    pub(super) fn insert(&mut self, hash: KeyHash, slot: Slot) {
        let entry = Entry { hash, slot };
        if self.in_shard(hash).any(|e| *e == entry) || self.crowded.contains(&entry) {
            return;
        }
        if self.in_shard(hash).count() >= ALIKE_MAX {
            Arc::make_mut(&mut self.crowded).insert(entry);
            return;
        }
        let shard = &mut self.shards[hash.shard()];
        Arc::make_mut(shard).insert_unique(hash.spread(), entry, |e| e.hash.spread());
    }

    /// Takes a slot out, if it is in.
    pub(super) fn remove(&mut self, hash: KeyHash, slot: Slot) {
        let entry = Entry { hash, slot };
        if self.crowded.contains(&entry) {
            Arc::make_mut(&mut self.crowded).remove(&entry);
            return;
        }
        let shard = &mut self.shards[hash.shard()];
        if shard.find(hash.spread(), |e| *e == entry).is_none() {
            return;
        }
        let shard = Arc::make_mut(shard);
        if let Ok(found) = shard.find_entry(hash.spread(), |e| *e == entry) {
            found.remove();
        }
        if shard.capacity() > 4 * shard.len() {
            shard.shrink_to_fit(|e| e.hash.spread());
        }
    }

    /// How many entries it has.
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.len()).sum::<usize>() + self.crowded.len()
    }

    /// The slots of all entries.
    pub(super) fn slots(&self) -> impl Iterator<Item = Slot> {
        self.shards
            .iter()
            .flat_map(|shard| shard.iter())
            .chain(&*self.crowded)
            .map(|entry| entry.slot)
    }

    /// Panics unless it holds just these entries.
    pub(super) fn audit(&self, expected: impl Iterator<Item = (KeyHash, Slot)>) {
        let expected: std::collections::HashSet<_> = expected.collect();
        for (hash, slot) in &expected {
            assert!(self.find(*hash).any(|s| s == *slot), "an entry is missing");
        }
        assert_eq!(self.len(), expected.len(), "entries are left behind");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(table: &Table, key: u32) -> Vec<Slot> {
        let mut found: Vec<Slot> = table.find(KeyHash::of(key)).collect();
        found.sort_unstable();
        found
    }

    #[test]
    fn slots_come_and_go() {
        let mut table = Table::default();
        for key in 0..10_000 {
            table.insert(KeyHash::of(key), key);
            table.insert(KeyHash::of(key), key + 1);
            table.insert(KeyHash::of(key), key);
        }
        let before = table.clone();
        assert_eq!(table.len(), 20_000);
        for key in 0..10_000 {
            assert_eq!(found(&table, key), [key, key + 1]);
            table.remove(KeyHash::of(key), key);
            table.remove(KeyHash::of(key), key);
            assert_eq!(found(&table, key), [key + 1]);
            table.remove(KeyHash::of(key), key + 1);
        }
        assert_eq!((table.len(), table.slots().count()), (0, 0));
        assert!(
            table.shards.iter().all(|shard| shard.capacity() < 16),
            "gives memory back"
        );
        assert_eq!(
            found(&before, 9_999),
            [9_999, 10_000],
            "a copy keeps what it was"
        );
        before.audit(
            (0..10_000).flat_map(|key| [(KeyHash::of(key), key), (KeyHash::of(key), key + 1)]),
        );
    }

    /// Fifty thousand under one key, in and out, are no more work than under as many keys.
    #[test]
    fn many_of_one_key_are_no_burden() {
        const MANY: u32 = 50_000;
        let hash = KeyHash::of("one");
        let mut table = Table::default();
        for slot in (0..MANY).chain(0..MANY) {
            table.insert(hash, slot);
            table.insert(KeyHash::of(slot), slot);
        }
        assert_eq!(
            table.in_shard(hash).count(),
            ALIKE_MAX,
            "what a search looks at"
        );
        let before = table.clone();
        assert_eq!(found(&table, 7), [7]);
        assert_eq!(table.find(hash).count(), MANY as usize);
        assert_eq!(table.slots().count(), 2 * MANY as usize);
        let mut slots: Vec<Slot> = (0..MANY).collect();
        slots.rotate_left(MANY as usize / 3);
        for slot in slots {
            table.remove(hash, slot);
            table.remove(KeyHash::of(slot), slot);
        }
        assert_eq!((table.len(), table.find(hash).count()), (0, 0));
        assert_eq!(before.find(hash).count(), MANY as usize, "a copy keeps it");
    }

    #[test]
    fn a_change_copies_one_shard() {
        let mut table = Table::default();
        for key in 0..1000 {
            table.insert(KeyHash::of(key), key);
        }
        let before = table.clone();
        table.remove(KeyHash::of(5), 5);
        table.remove(KeyHash::of(6), 5);
        let shared = (table.shards.iter().zip(&*before.shards))
            .filter(|(a, b)| Arc::ptr_eq(a, b))
            .count();
        assert_eq!(shared, SHARDS - 1);
    }
}
