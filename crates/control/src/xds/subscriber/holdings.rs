//! What is held of one type of resources: each name with its version, small enough for 100k of them.
//!
//! Also which resource came under a name, as far as the name does not tell. Leaves to others: the resources themselves (`mesh`), when
//! a name comes and goes (`subscriber`).

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};
use mesh::index::Key;
use mesh::{NamespacedHostname, Resource, Str};

/// Names and versions of the resources that were taken.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    entries: HashTable<Entry>,
    hash: DefaultHashBuilder,
    /// Versions that are no numbers, by name.
    texts: HashMap<Str, Box<str>>,
    /// Resources whose key is not what their name says, by name. The control planes that are known send none.
    strays: HashMap<Str, Key>,
    /// The other way round: the name that such a resource came under last.
    stray_names: HashMap<Key, Str>,
    /// Counts the sweeps.
    round: u32,
}

/// What came under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// A workload whose uid is the name.
    Workload,
    /// A service, of this `<namespace>/<hostname>`.
    Service,
    /// A policy of this key.
    Policy,
    /// Something of another key; it is in `strays`.
    Stray,
}

impl What {
    fn of(key: &Key, name: &str) -> Self {
        match key {
            Key::Workload(uid) if **uid == *name => Self::Workload,
            Key::Service(host) if is_named(host, name) => Self::Service,
            Key::Policy(key) if **key == *name => Self::Policy,
            _ => Self::Stray,
        }
    }
}

/// Whether `name`, taken apart, gives `host`.
fn is_named(host: &NamespacedHostname, name: &str) -> bool {
    if host.namespace.contains('/') {
        return false;
    }
    let rest = name.strip_prefix(&*host.namespace);
    rest.and_then(|rest| rest.strip_prefix('/')) == Some(&*host.hostname)
}

/// `<namespace>/<hostname>`, taken apart.
fn host(name: &str) -> Option<NamespacedHostname> {
    let (namespace, hostname) = name.split_once('/')?;
    Some(NamespacedHostname {
        namespace: namespace.into(),
        hostname: hostname.into(),
    })
}

/// The name is the very text that the resource holds as its key, where these are equal.
#[derive(Debug)]
struct Entry {
    name: Str,
    number: u64,
    /// In which it was last heard of.
    round: u32,
    form: Form,
    what: What,
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
    /// A resource was taken in this version. Returns the key of what the name stood for until now, if that was another.
    pub(super) fn hold(&mut self, name: &str, version: &str, resource: &Resource) -> Option<Key> {
        let key = resource.key();
        let name = match &key {
            Key::Workload(text) | Key::Policy(text) if **text == *name => text.clone(),
            _ => name.into(),
        };
        self.hold_key(name, version, key)
    }

    /// As above, of what is not at hand.
    pub(super) fn hold_key(&mut self, name: Str, version: &str, key: Key) -> Option<Key> {
        let (form, number) = Form::of(version);
        if form == Form::Text {
            self.texts.insert(name.clone(), version.into());
        } else if !self.texts.is_empty() {
            self.texts.remove(&name);
        }
        let entry = Entry {
            what: What::of(&key, &name),
            name,
            number,
            round: self.round,
            form,
        };
        let older = self.key(&entry.name).filter(|older| *older != key);
        if older.is_some() {
            self.unlink(&entry.name);
        }
        if entry.what == What::Stray {
            self.stray_names.insert(key.clone(), entry.name.clone());
            self.strays.insert(entry.name.clone(), key);
        }
        let hash = self.hash.hash_one(&*entry.name);
        match self.entries.find_mut(hash, |held| held.name == entry.name) {
            Some(held) => *held = entry,
            None => {
                let rehash = |held: &Entry| self.hash.hash_one(&*held.name);
                self.entries.insert_unique(hash, entry, rehash);
            }
        }
        older
    }

    fn find(&self, name: &str) -> Option<&Entry> {
        let hash = self.hash.hash_one(name);
        self.entries.find(hash, |held| *held.name == *name)
    }

    /// What came under the name.
    fn key(&self, name: &str) -> Option<Key> {
        let held = self.find(name)?;
        match held.what {
            What::Workload => Some(Key::Workload(held.name.clone())),
            What::Policy => Some(Key::Policy(held.name.clone())),
            What::Service => host(name).map(Key::Service),
            What::Stray => self.strays.get(name).cloned(),
        }
    }

    fn unlink(&mut self, name: &str) {
        if let Some(key) = self.strays.remove(name)
            && self.stray_names.get(&key).is_some_and(|of| **of == *name)
        {
            self.stray_names.remove(&key);
        }
    }

    /// Whether a resource is held under this name.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// Whether what has this key is held, under whatever name.
    pub(super) fn holds(&self, key: &Key) -> bool {
        let under = |name: &str, what| self.find(name).is_some_and(|held| held.what == what);
        let is_named = match key {
            Key::Workload(uid) => under(uid, What::Workload),
            Key::Policy(key) => under(key, What::Policy),
            Key::Service(host) => {
                let name = host.to_string();
                is_named(host, &name) && under(&name, What::Service)
            }
        };
        is_named || self.stray_names.contains_key(key)
    }

    /// The resource of this name is gone, or the workload of this uid. Returns the name that it was held under, and its key.
    pub(super) fn forget(&mut self, name: &str) -> Option<(Str, Key)> {
        if let Some(key) = self.key(name) {
            return Some((self.remove(name)?, key));
        }
        if self.stray_names.is_empty() {
            return None;
        }
        let key = Key::Workload(name.into());
        let name = self.stray_names.get(&key)?.clone();
        Some((self.remove(&name)?, key))
    }

    fn remove(&mut self, name: &str) -> Option<Str> {
        let hash = self.hash.hash_one(name);
        let found = self
            .entries
            .find_entry(hash, |held| *held.name == *name)
            .ok()?;
        let (old, _) = found.remove();
        if old.form == Form::Text {
            self.texts.remove(name);
        }
        if old.what == What::Stray {
            self.unlink(name);
        }
        if self.entries.capacity() > 4 * (self.entries.len() + 16) {
            let rehash = |held: &Entry| self.hash.hash_one(&*held.name);
            self.entries.shrink_to_fit(rehash);
        }
        Some(old.name)
    }

    /// The same names in no known version, made afresh: nothing is relied on but that the names are there.
    pub(super) fn doubted(&self) -> Self {
        let mut fresh = Self::default();
        for held in &self.entries {
            if let Some(key) = self.key(&held.name) {
                fresh.hold_key(held.name.clone(), "", key);
            }
        }
        fresh
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

    fn workload(all: &mut Holdings, name: &str, version: &str) {
        all.hold_key(name.into(), version, Key::Workload(name.into()));
    }

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
            workload(&mut all, version, version);
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
        let names: Vec<String> = (0..1000).map(|n: u32| n.to_string()).collect();
        for name in &names {
            workload(&mut all, name, "text");
        }
        workload(&mut all, &names[0], "7");
        assert_eq!(all.texts.len(), 999);
        for name in &names {
            assert!(all.forget(name).is_some());
            assert!(all.forget(name).is_none());
        }
        assert!(all.texts.is_empty() && all.versions().is_empty());
        assert!(all.entries.capacity() < 200, "{}", all.entries.capacity());
    }

    #[test]
    fn a_sweep_finds_what_was_not_heard_of() {
        let mut all = Holdings::default();
        for name in ["a", "b", "c", "d"] {
            workload(&mut all, name, "1");
        }
        all.begin_sweep();
        workload(&mut all, "b", "2");
        all.hear("c");
        all.hear("unknown");
        workload(&mut all, "new", "1");
        let mut unheard = all.unheard();
        unheard.sort();
        assert_eq!(unheard, ["a", "d"]);
    }

    #[test]
    fn each_name_knows_its_resource() {
        let service = |name: &str| Key::Service(host(name).unwrap());
        let uid = |uid: &str| Key::Workload(uid.into());
        let mut all = Holdings::default();
        let held = [
            ("w", uid("w")),
            ("name", uid("uid")),
            ("ns/host", service("ns/host")),
            ("other", service("ns/odd")),
            ("a/p", Key::Policy("a/p".into())),
        ];
        for (name, key) in held.clone() {
            assert_eq!(all.hold_key(name.into(), "1", key.clone()), None);
            assert_eq!(all.hold_key(name.into(), "2", key.clone()), None);
            assert!(all.holds(&key) && all.contains(name), "{name}");
        }
        let unknown = [uid("name"), service("ns/other"), Key::Policy("a/q".into())];
        assert!(unknown.iter().all(|key| !all.holds(key)));
        let mut all = all.doubted();
        assert!(all.versions().values().all(String::is_empty));
        // by its uid a workload is found under any name
        let (name, key) = all.forget("uid").unwrap();
        assert_eq!((&*name, key), ("name", uid("uid")));
        for (name, key) in held.into_iter().filter(|(name, _)| *name != "name") {
            assert_eq!(all.forget(name), Some((name.into(), key)));
            assert_eq!(all.forget(name), None);
        }
        assert!(all.strays.is_empty() && all.stray_names.is_empty());
    }

    #[test]
    fn a_name_that_turns_to_another_resource_gives_the_old_one() {
        let mut all = Holdings::default();
        let turns = ["name", "one", "two", "name", "one"].map(|uid| Key::Workload(uid.into()));
        let mut older = None;
        for key in turns {
            assert_eq!(all.hold_key("name".into(), "", key.clone()), older);
            older = Some(key);
        }
        assert_eq!((all.strays.len(), all.stray_names.len()), (1, 1));
        assert!(all.forget("name").is_some());
        assert!(all.strays.is_empty() && all.stray_names.is_empty());
    }
}
