//! What is held of one type of resources: each name with its version, small enough for 100k of them.
//!
//! Leaves to others: the resources themselves (`mesh`), when a name comes and goes (`subscriber`).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};
use mesh::Str;

/// Names and versions of the resources that were taken.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    entries: HashTable<Entry>,
    hash: DefaultHashBuilder,
    /// Versions that are no numbers, by name.
    texts: HashMap<Str, Box<str>>,
    /// Uids of workloads that came under another name.
    stray_uids: HashSet<Str>,
    /// Counts the sweeps.
    round: u32,
}

/// What came under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A workload whose uid is the name: the usual.
    Workload,
    /// A workload of another uid.
    StrayWorkload(Str),
    /// A service or a policy.
    Other,
}

/// The name is the very text that the resource holds as its key, where these are equal.
#[derive(Debug)]
struct Entry {
    name: Str,
    number: u64,
    /// In which it was last heard of.
    round: u32,
    form: Form,
    is_workload: bool,
}

const _: () = assert!(size_of::<Entry>() <= 32);

/// How a version is written. istiod's are hashes of 64 bits; as numbers they take no allocation of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Empty,
    Decimal,
    Hex,
    PaddedHex,
    /// Something else; it is in `texts`.
    Text,
}

impl Form {
    fn of(version: &str) -> (Self, u64) {
        if version.is_empty() {
            return (Self::Empty, 0);
        }
        let readings = [
            (Self::Decimal, version.parse()),
            (Self::Hex, u64::from_str_radix(version, 16)),
            (Self::PaddedHex, u64::from_str_radix(version, 16)),
        ];
        let numbers = readings
            .into_iter()
            .filter_map(|(form, number)| Some((form, number.ok()?)));
        // only what prints as it was read
        let mut exact = numbers.filter(|(form, number)| form.print(*number) == version);
        exact.next().unwrap_or((Self::Text, 0))
    }

    fn print(self, number: u64) -> String {
        match self {
            Self::Empty | Self::Text => String::new(),
            Self::Decimal => number.to_string(),
            Self::Hex => format!("{number:x}"),
            Self::PaddedHex => format!("{number:016x}"),
        }
    }
}

impl Holdings {
    /// A resource was taken in this version.
    pub(super) fn hold(&mut self, name: Str, version: &str, what: What) {
        let (form, number) = Form::of(version);
        if form == Form::Text {
            self.texts.insert(name.clone(), version.into());
        } else if !self.texts.is_empty() {
            self.texts.remove(&name);
        }
        let is_workload = what == What::Workload;
        if let What::StrayWorkload(uid) = what {
            self.stray_uids.insert(uid);
        }
        let entry = Entry {
            name,
            number,
            round: self.round,
            form,
            is_workload,
        };
        let hash = self.hash.hash_one(&*entry.name);
        match self.entries.find_mut(hash, |held| held.name == entry.name) {
            Some(held) => *held = entry,
            None => {
                let rehash = |held: &Entry| self.hash.hash_one(&*held.name);
                self.entries.insert_unique(hash, entry, rehash);
            }
        }
    }

    /// The resource is gone. Returns whether a workload of that uid was held.
    pub(super) fn forget(&mut self, name: &str) -> bool {
        let was_stray = self.stray_uids.remove(name);
        let hash = self.hash.hash_one(name);
        let Ok(found) = self.entries.find_entry(hash, |held| *held.name == *name) else {
            return was_stray;
        };
        let (old, _) = found.remove();
        if old.form == Form::Text {
            self.texts.remove(name);
        }
        if self.entries.capacity() > 4 * (self.entries.len() + 16) {
            let rehash = |held: &Entry| self.hash.hash_one(&*held.name);
            self.entries.shrink_to_fit(rehash);
        }
        was_stray || old.is_workload
    }

    /// From now on notes which names are heard of.
    pub(super) fn begin_sweep(&mut self) {
        self.round = self.round.wrapping_add(1);
    }

    /// The server has something under this name, whatever it is.
    pub(super) fn hear(&mut self, name: &str) {
        let hash = self.hash.hash_one(name);
        if let Some(held) = self.entries.find_mut(hash, |held| *held.name == *name) {
            held.round = self.round;
        }
    }

    /// The names that were not heard of since the sweep began.
    pub(super) fn unheard(&self) -> Vec<String> {
        let stale = self.entries.iter().filter(|held| held.round != self.round);
        stale.map(|held| held.name.to_string()).collect()
    }

    /// Bytes of all names.
    pub(super) fn name_bytes(&self) -> usize {
        self.entries.iter().map(|held| held.name.len()).sum()
    }

    /// Every name with its version as it was received.
    pub(super) fn versions(&self) -> BTreeMap<String, String> {
        let all = self.entries.iter().map(|held| {
            let version = match held.form {
                Form::Text => self
                    .texts
                    .get(&held.name)
                    .map_or("", |text| text)
                    .to_owned(),
                form => form.print(held.number),
            };
            (held.name.to_string(), version)
        });
        all.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_print_as_they_came() {
        let cases = [
            ("", Form::Empty),
            ("0", Form::Decimal),
            ("18446744073709551615", Form::Decimal),
            ("1234567890123456", Form::Decimal),
            ("18446744073709551616", Form::Text),
            ("007", Form::Text),
            ("+7", Form::Text),
            ("ff", Form::Hex),
            ("FF", Form::Text),
            ("00000000000000ff", Form::PaddedHex),
            ("0000000000000017", Form::PaddedHex),
            ("ffffffffffffffff", Form::Hex),
            ("v1", Form::Text),
            ("2026-01-01T00:00:00Z/3", Form::Text),
        ];
        let mut all = Holdings::default();
        for (version, form) in cases {
            assert_eq!(Form::of(version).0, form, "{version}");
            all.hold(version.into(), version, What::Other);
        }
        let printed = all.versions();
        assert_eq!(printed.len(), cases.len());
        assert!(
            printed.iter().all(|(name, version)| name == version),
            "{printed:?}"
        );
    }

    #[test]
    fn nothing_stays_of_what_goes() {
        let mut all = Holdings::default();
        let names: Vec<Str> = (0..1000).map(|n: u32| n.to_string().into()).collect();
        for name in &names {
            all.hold(name.clone(), "text", What::Workload);
        }
        all.hold(names[0].clone(), "7", What::Workload);
        assert_eq!(all.texts.len(), 999);
        for name in &names {
            assert!(all.forget(name));
            assert!(!all.forget(name));
        }
        assert!(all.texts.is_empty() && all.versions().is_empty());
        assert!(all.entries.capacity() < 200, "{}", all.entries.capacity());
    }

    #[test]
    fn a_sweep_finds_what_was_not_heard_of() {
        let mut all = Holdings::default();
        for name in ["a", "b", "c", "d"] {
            all.hold(name.into(), "1", What::Other);
        }
        all.begin_sweep();
        all.hold("b".into(), "2", What::Other);
        all.hear("c");
        all.hear("unknown");
        all.hold("new".into(), "1", What::Other);
        let mut unheard = all.unheard();
        unheard.sort();
        assert_eq!(unheard, ["a", "d"]);
    }

    #[test]
    fn workloads_are_known_by_uid() {
        let mut all = Holdings::default();
        all.hold("w".into(), "", What::Workload);
        all.hold("name".into(), "", What::StrayWorkload("uid".into()));
        all.hold("ns/host".into(), "", What::Other);
        let gone = ["w", "name", "uid", "ns/host", "unknown"].map(|name| all.forget(name));
        assert_eq!(gone, [true, false, true, false, false]);
    }
}
