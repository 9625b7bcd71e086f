//! The pool's rules, without tasks, clock or sockets: which connection to use, when to dial, which to let go.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

/// A connection, as far as the rules need to know it.
pub(super) trait Line {
    /// A place on the connection.
    type Slot;

    /// False once it can take no new stream, ever.
    fn is_usable(&self) -> bool;

    /// A place for one more stream, if there is room now.
    fn reserve(&self) -> Option<Self::Slot>;
}

/// What a caller in need of a connection is to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Checkout<S> {
    /// Use this place.
    Use(S),
    /// Dial, then report with `add` (on success) and `dialled` (always).
    Dial,
    /// Someone else dials this key: wait for it, then ask again.
    Wait,
}

/// All pooled connections. Connections that are full stay in it: they are passed over until a stream of theirs ends.
pub(super) struct Book<K, L> {
    peers: HashMap<K, Peer<L>>,
    /// Connections in all peers together.
    len: usize,
    len_max: usize,
    idle_max: Duration,
}

struct Peer<L> {
    /// Oldest first; the first with room is used, so that late ones fall idle when load falls.
    lines: Vec<Entry<L>>,
    dialling: bool,
}

struct Entry<L> {
    line: L,
    /// When a place on it was last given out.
    used: Instant,
}

impl<K: Clone + Eq + Hash, L: Line> Book<K, L> {
    pub(super) fn new(len_max: usize, idle_max: Duration) -> Self {
        Book {
            peers: HashMap::new(),
            len: 0,
            len_max: len_max.max(1),
            idle_max,
        }
    }

    /// Connections held.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Finds a place for one stream to `key`.
    pub(super) fn checkout(&mut self, key: &K, now: Instant) -> Checkout<L::Slot> {
        self.prune(key);
        if !self.peers.contains_key(key) {
            self.peers.insert(
                key.clone(),
                Peer {
                    lines: Vec::new(),
                    dialling: false,
                },
            );
        }
        let peer = self.peers.get_mut(key).expect("inserted above");
        for entry in &mut peer.lines {
            if let Some(slot) = entry.line.reserve() {
                entry.used = now;
                return Checkout::Use(slot);
            }
        }
        match std::mem::replace(&mut peer.dialling, true) {
            true => Checkout::Wait,
            false => Checkout::Dial,
        }
    }

    /// Takes in a freshly dialled connection; if there are too many, the one unused for longest goes.
    pub(super) fn add(&mut self, key: K, line: L, now: Instant) {
        if self.len >= self.len_max {
            self.evict();
        }
        let peer = self.peers.entry(key).or_insert(Peer {
            lines: Vec::new(),
            dialling: false,
        });
        peer.lines.push(Entry { line, used: now });
        self.len += 1;
    }

    /// A dial to `key` has ended, however it did.
    pub(super) fn dialled(&mut self, key: &K) {
        if let Some(peer) = self.peers.get_mut(key) {
            peer.dialling = false;
        }
        self.prune(key);
    }

    /// Drops the unusable connections of one peer.
    pub(super) fn prune(&mut self, key: &K) {
        let Some(peer) = self.peers.get_mut(key) else {
            return;
        };
        let before = peer.lines.len();
        peer.lines.retain(|entry| entry.line.is_usable());
        self.len -= before - peer.lines.len();
        if peer.lines.is_empty() && !peer.dialling {
            self.peers.remove(key);
        }
    }

    /// Drops what is idle for too long or unusable. Returns when to come again, `None` when nothing is left.
    pub(super) fn sweep(&mut self, now: Instant) -> Option<Instant> {
        let idle_max = self.idle_max;
        self.keep(|entry| entry.line.is_usable() && now < entry.used + idle_max);
        let entries = self.peers.values().flat_map(|peer| &peer.lines);
        entries.map(|entry| entry.used + idle_max).min()
    }

    /// Drops all connections.
    pub(super) fn clear(&mut self) {
        self.keep(|_| false);
    }

    fn keep(&mut self, wanted: impl Fn(&Entry<L>) -> bool) {
        self.peers.retain(|_, peer| {
            peer.lines.retain(&wanted);
            !peer.lines.is_empty() || peer.dialling
        });
        self.len = self.peers.values().map(|peer| peer.lines.len()).sum();
    }

    /// Drops the connection unused for longest. Looks at all of them: it follows a dial, which costs far more.
    fn evict(&mut self) {
        let oldest = self
            .peers
            .iter()
            .filter_map(|(key, peer)| Some((peer.lines.iter().map(|entry| entry.used).min()?, key)))
            .min_by_key(|(used, _)| *used)
            .map(|(used, key)| (used, key.clone()));
        let Some((used, key)) = oldest else { return };
        let peer = self.peers.get_mut(&key).expect("found above");
        if let Some(at) = peer.lines.iter().position(|entry| entry.used == used) {
            peer.lines.remove(at);
            self.len -= 1;
        }
        if peer.lines.is_empty() && !peer.dialling {
            self.peers.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests;
