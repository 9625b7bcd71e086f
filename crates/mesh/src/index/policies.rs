//! Policies by key, and the ones that apply without being listed: mesh-wide and per namespace.

use std::sync::Arc;

use super::arena::{Arena, Slot};
use super::table::{KeyHash, Table};
use crate::name::Str;
use crate::policy::{Policy, PolicyScope};
use crate::workload::Workload;

#[derive(Clone, Debug, Default)]
pub(super) struct Policies {
    slots: Arena<Policy>,
    by_key: Table,
    /// Those of scope global and namespace.
    by_scope: Table,
}

impl PartialEq for Policies {
    fn eq(&self, other: &Self) -> bool {
        self.slots.len() == other.slots.len() && self.iter().all(|p| other.get(&p.key) == Some(p))
    }
}

impl Policies {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.slots.iter().map(|(_, policy)| policy)
    }

    fn get(&self, key: &str) -> Option<&Arc<Policy>> {
        let mut found = self.found(&self.by_key, key_hash(key));
        found.find(|p| *p.key == *key)
    }

    fn slot_of(&self, key: &str) -> Option<Slot> {
        let mut found = self.by_key.find(key_hash(key));
        found.find(|slot| self.slots.get(*slot).is_some_and(|p| *p.key == *key))
    }

    fn found<'a>(
        &'a self,
        table: &'a Table,
        hash: KeyHash,
    ) -> impl Iterator<Item = &'a Arc<Policy>> {
        table.find(hash).filter_map(|slot| self.slots.get(slot))
    }

    /// Puts it in, in place of the one with its key. Says whether that changed anything.
    pub(super) fn insert(&mut self, policy: Arc<Policy>) -> bool {
        if self.get(&policy.key) == Some(&policy) {
            return false;
        }
        self.remove(&policy.key);
        let (key, scope) = (key_hash(&policy.key), scope_hash(&policy));
        let slot = self.slots.insert(policy);
        self.by_key.insert(key, slot);
        if let Some(scope) = scope {
            self.by_scope.insert(scope, slot);
        }
        true
    }

    /// Takes it out. Says whether it was there.
    pub(super) fn remove(&mut self, key: &str) -> bool {
        let Some(slot) = self.slot_of(key) else {
            return false;
        };
        let old = self.slots.remove(slot);
        self.by_key.remove(key_hash(key), slot);
        if let Some(scope) = old.and_then(|old| scope_hash(&old)) {
            self.by_scope.remove(scope, slot);
        }
        true
    }

    pub(super) fn applying_to<'a>(
        &'a self,
        workload: &'a Workload,
    ) -> (Vec<&'a Arc<Policy>>, Vec<&'a Str>) {
        let global = self.found(&self.by_scope, global_hash());
        let of_namespace = self.found(&self.by_scope, namespace_hash(&workload.namespace));
        let mut all: Vec<_> =
            global
                .filter(|p| p.scope == PolicyScope::Global)
                .chain(of_namespace.filter(|p| {
                    p.scope == PolicyScope::Namespace && p.namespace == workload.namespace
                }))
                .collect();
        let mut unknown = Vec::new();
        for key in workload.authorization_policies.iter() {
            match self.get(key) {
                Some(policy) => all.push(policy),
                None => unknown.push(key),
            }
        }
        all.sort_by(|a, b| a.key.cmp(&b.key));
        all.dedup_by(|a, b| a.key == b.key);
        (all, unknown)
    }

    /// Panics unless each table says what the policies say.
    pub(super) fn audit(&self) {
        let all = || self.slots.iter();
        self.by_key
            .audit(all().map(|(slot, p)| (key_hash(&p.key), slot)));
        self.by_scope
            .audit(all().filter_map(|(slot, p)| Some((scope_hash(p)?, slot))));
    }
}

fn key_hash(key: &str) -> KeyHash {
    KeyHash::of(key)
}

fn global_hash() -> KeyHash {
    KeyHash::of(None::<&str>)
}

fn namespace_hash(namespace: &str) -> KeyHash {
    KeyHash::of(Some(namespace))
}

/// `None` for those that apply only where they are listed.
fn scope_hash(policy: &Policy) -> Option<KeyHash> {
    match policy.scope {
        PolicyScope::Global => Some(global_hash()),
        PolicyScope::Namespace => Some(namespace_hash(&policy.namespace)),
        PolicyScope::WorkloadSelector => None,
    }
}
