//! Names as the mesh writes them: shared strings, `namespace/hostname`, `network/ip`, and the interner that keeps one copy of each.
//!
//! Leaves to others: what a name refers to (`index`).

use std::borrow::Borrow;
use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashTable};
use ipnet::IpNet;

/// A shared immutable string. Equal names of one source should be one allocation: see [`Interner`].
pub type Str = Arc<str>;

/// Key of a Service: its namespace and its host name, compared case-sensitively. Written `namespace/hostname`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespacedHostname {
    /// Kubernetes namespace.
    pub namespace: Str,
    /// Fully qualified host name.
    pub hostname: Str,
}

impl fmt::Display for NamespacedHostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

/// A name that is not of the form it must have; the text says which form that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {0}")]
pub struct Malformed(pub &'static str);

impl FromStr for NamespacedHostname {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let form = Malformed("<namespace>/<hostname>");
        let (namespace, hostname) = text.split_once('/').ok_or(form)?;
        if hostname.is_empty() {
            return Err(form);
        }
        Ok(Self {
            namespace: namespace.into(),
            hostname: hostname.into(),
        })
    }
}

/// An IP address on a network. Written `network/ip`; the default network is the empty name: `/10.0.0.1`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkAddress {
    /// Name of the network; empty for the default one.
    pub network: Str,
    /// The address, never IPv4-mapped.
    pub ip: IpAddr,
}

impl fmt::Display for NetworkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.ip)
    }
}

impl FromStr for NetworkAddress {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let form = Malformed("<network>/<ip>");
        let (network, ip) = text.rsplit_once('/').ok_or(form)?;
        let ip: IpAddr = ip.parse().map_err(|_| form)?;
        if network.contains('/') {
            return Err(form);
        }
        Ok(Self {
            network: network.into(),
            ip: ip.to_canonical(),
        })
    }
}

/// A range of addresses on a network.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkCidr {
    /// Name of the network; empty for the default one.
    pub network: Str,
    /// The range; host bits may be set and are ignored.
    pub cidr: IpNet,
}

/// One copy of every value put in; the copies live as long as anyone uses them.
///
/// For the border that parses resources: a mesh of 100k workloads has few namespaces, nodes and service lists.
#[derive(Debug)]
pub struct Interner<T: ?Sized> {
    parts: [HashTable<Arc<T>>; PARTS],
    hash: DefaultHashBuilder,
    /// Values that came since the last pruning.
    fresh: usize,
    /// The part to prune next.
    next: usize,
}

/// Into how many parts an interner is cut, so that pruning is done a part at a time.
const PARTS: usize = 16;

impl<T: ?Sized> Default for Interner<T> {
    fn default() -> Self {
        Self {
            parts: [const { HashTable::new() }; PARTS],
            hash: DefaultHashBuilder::default(),
            fresh: 0,
            next: 0,
        }
    }
}

impl<T: ?Sized + Hash + Eq> Interner<T> {
    /// The shared copy of `value`, made now when it is the first.
    pub fn intern<'a>(&mut self, value: &'a T) -> Arc<T>
    where
        Arc<T>: From<&'a T>,
    {
        self.held(value, |value| value.into())
    }

    /// The shared copy of an owned value: its `Arc`, or itself for a sized one.
    pub fn share<V: Borrow<T> + Into<Arc<T>>>(&mut self, value: V) -> Arc<T> {
        self.held(value, Into::into)
    }

    fn held<V: Borrow<T>>(&mut self, value: V, make: impl FnOnce(V) -> Arc<T>) -> Arc<T> {
        let hash = self.hash.hash_one(value.borrow());
        let part = &mut self.parts[part_of(hash)];
        if let Some(known) = part.find(hash, |known| **known == *value.borrow()) {
            return known.clone();
        }
        let shared = make(value);
        part.insert_unique(hash, shared.clone(), |known| self.hash.hash_one(&**known));
        self.fresh += 1;
        shared
    }

    /// Forgets some of what nobody else uses any more: a part of it at each call, and all of it when half of it is new.
    ///
    /// So a call after each change costs in proportion to the change, and what is unused goes within 16 calls.
    pub fn prune(&mut self) {
        let due = 1 + 2 * PARTS * std::mem::take(&mut self.fresh) / (self.len() + 1);
        for _ in 0..due.min(PARTS) {
            let part = &mut self.parts[self.next];
            part.retain(|value| Arc::strong_count(value) > 1);
            if part.capacity() > 4 * part.len() {
                part.shrink_to_fit(|known| self.hash.hash_one(&**known));
            }
            self.next = (self.next + 1) % PARTS;
        }
    }

    /// How many distinct values are held.
    pub fn len(&self) -> usize {
        self.parts.iter().map(HashTable::len).sum()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// By bits that the tables themselves make no use of.
fn part_of(hash: u64) -> usize {
    (hash >> 48) as usize % PARTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_and_print() {
        let cases = [
            ("shop/cart.shop.svc", true),
            ("/x", true),
            ("shop", false),
            ("shop/", false),
        ];
        for (text, good) in cases {
            let parsed = text.parse::<NamespacedHostname>();
            assert_eq!(parsed.is_ok(), good, "{text}");
            if let Ok(name) = parsed {
                assert_eq!(name.to_string(), text);
            }
        }
    }

    #[test]
    fn network_addresses_parse_and_print() {
        let cases = [
            ("/10.0.0.1", Some("/10.0.0.1")),
            ("n1/2001:db8::1", Some("n1/2001:db8::1")),
            ("n1/::ffff:10.0.0.1", Some("n1/10.0.0.1")),
            ("10.0.0.1", None),
            ("a/b/10.0.0.1", None),
            ("n1/host", None),
        ];
        for (text, printed) in cases {
            let parsed = text.parse::<NetworkAddress>().ok().map(|a| a.to_string());
            assert_eq!(parsed.as_deref(), printed, "{text}");
        }
    }

    #[test]
    fn interner_shares_and_forgets() {
        let mut names = Interner::<str>::default();
        let (a, b) = (names.intern("shop"), names.intern("shop"));
        assert!(Arc::ptr_eq(&a, &b));
        let c = names.share(Str::from("shop"));
        assert!(Arc::ptr_eq(&a, &c) && names.len() == 1);
        drop((a, b, c));
        names.prune();
        assert!(names.is_empty(), "all that is new is looked at");
    }

    #[test]
    fn pruning_goes_around() {
        let mut names = Interner::<str>::default();
        let held: Vec<Str> = (0..500).map(|i| names.intern(&i.to_string())).collect();
        names.prune();
        assert_eq!(names.len(), 500, "all are in use");
        drop(held);
        names.prune();
        assert!((1..500).contains(&names.len()), "a part at a time");
        for _ in 1..PARTS {
            names.prune();
        }
        assert!(names.is_empty());
    }
}
