//! What an index is fed with: resources, their keys, and the change from one set of them to another.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::name::{NamespacedHostname, Str};
use crate::policy::Policy;
use crate::service::Service;
use crate::workload::Workload;

/// One thing that an index can hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    /// A workload.
    Workload(Arc<Workload>),
    /// A service.
    Service(Arc<Service>),
    /// A policy.
    Policy(Arc<Policy>),
}

impl Resource {
    /// Its key.
    pub fn key(&self) -> Key {
        match self {
            Self::Workload(workload) => Key::Workload(workload.uid.clone()),
            Self::Service(service) => Key::Service(service.key()),
            Self::Policy(policy) => Key::Policy(policy.key.clone()),
        }
    }
}

/// Names one thing in an index.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// A workload's uid.
    Workload(Str),
    /// A service's namespace and host name.
    Service(NamespacedHostname),
    /// A policy's key.
    Policy(Str),
}

/// A change of an index. Removals come before upserts; removing what is not there is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// What goes.
    pub remove: Vec<Key>,
    /// What comes, or takes the place of the thing with the same key.
    pub upsert: Vec<Resource>,
}

impl Delta {
    /// The change from `old` to `new`: nothing for what is in both and equal. Of resources with one key the last holds.
    pub fn between(old: &[Resource], new: &[Resource]) -> Self {
        let wanted: BTreeMap<Key, &Resource> = new.iter().map(|r| (r.key(), r)).collect();
        let held: BTreeMap<Key, &Resource> = old.iter().map(|r| (r.key(), r)).collect();
        let changed = wanted.iter().filter(|(key, r)| held.get(*key) != Some(*r));
        Self {
            upsert: changed.map(|(_, r)| (*r).clone()).collect(),
            remove: held
                .into_keys()
                .filter(|key| !wanted.contains_key(key))
                .collect(),
        }
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.upsert.is_empty()
    }
}

/// What applying a [`Delta`] did to policies, for the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Keys of policies that are new or changed.
    pub policies_set: Vec<Str>,
    /// Keys of policies that are gone.
    pub policies_removed: Vec<Str>,
}
