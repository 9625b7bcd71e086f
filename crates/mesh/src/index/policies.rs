//! Policies by key, and the ones that apply without being listed: mesh-wide and per namespace.

use std::collections::HashMap;
use std::sync::Arc;

use crate::name::Str;
use crate::policy::{Policy, PolicyScope};
use crate::workload::Workload;

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Policies {
    by_key: HashMap<Str, Arc<Policy>>,
    /// Sorted by key, as each list of `by_namespace`.
    global: Vec<Arc<Policy>>,
    by_namespace: HashMap<Str, Vec<Arc<Policy>>>,
}

impl Policies {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.by_key.values()
    }

    /// Puts it in, in place of the one with its key. Says whether that changed anything.
    pub(super) fn insert(&mut self, policy: Arc<Policy>) -> bool {
        if self.by_key.get(&policy.key) == Some(&policy) {
            return false;
        }
        self.remove(&policy.key);
        match policy.scope {
            PolicyScope::Global => add(&mut self.global, &policy),
            PolicyScope::Namespace => {
                add(
                    self.by_namespace
                        .entry(policy.namespace.clone())
                        .or_default(),
                    &policy,
                );
            }
            PolicyScope::WorkloadSelector => {}
        }
        self.by_key.insert(policy.key.clone(), policy);
        true
    }

    /// Takes it out. Says whether it was there.
    pub(super) fn remove(&mut self, key: &str) -> bool {
        let Some(old) = self.by_key.remove(key) else {
            return false;
        };
        self.global.retain(|p| *p.key != *key);
        if let Some(held) = self.by_namespace.get_mut(&old.namespace) {
            held.retain(|p| *p.key != *key);
            if held.is_empty() {
                self.by_namespace.remove(&old.namespace);
            }
        }
        true
    }

    pub(super) fn applying_to<'a>(
        &'a self,
        workload: &'a Workload,
    ) -> (Vec<&'a Arc<Policy>>, Vec<&'a Str>) {
        let mut unknown = Vec::new();
        let mut all: Vec<_> = self
            .by_namespace
            .get(&workload.namespace)
            .into_iter()
            .flatten()
            .collect();
        all.extend(&self.global);
        for key in workload.authorization_policies.iter() {
            match self.by_key.get(key) {
                Some(policy) => all.push(policy),
                None => unknown.push(key),
            }
        }
        all.sort_by(|a, b| a.key.cmp(&b.key));
        all.dedup_by(|a, b| a.key == b.key);
        (all, unknown)
    }
}

fn add(list: &mut Vec<Arc<Policy>>, policy: &Arc<Policy>) {
    if let Err(at) = list.binary_search_by(|p| p.key.cmp(&policy.key)) {
        list.insert(at, policy.clone());
    }
}
