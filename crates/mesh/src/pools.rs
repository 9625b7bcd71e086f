//! The shared copies of what many resources have in common. Kept by whoever parses resources, for as long as it does.
//!
//! Leaves to others: deciding when to [`prune`](Pools::prune).

use std::sync::Arc;

use crate::name::{Interner, NamespacedHostname, Str};
use crate::workload::{Locality, Membership};

/// One interner per kind of shared value.
#[derive(Debug, Default)]
pub struct Pools {
    texts: Interner<str>,
    localities: Interner<Locality>,
    services: Interner<NamespacedHostname>,
    memberships: Interner<[Membership]>,
    keys: Interner<[Str]>,
}

impl Pools {
    /// A name.
    pub fn text(&mut self, text: &str) -> Str {
        self.texts.intern(text)
    }

    /// A locality of three names.
    pub fn locality(&mut self, region: &str, zone: &str, subzone: &str) -> Arc<Locality> {
        let locality = Locality {
            region: self.text(region),
            zone: self.text(zone),
            subzone: self.text(subzone),
        };
        self.localities.share(Arc::new(locality))
    }

    /// The name of a Service.
    pub fn service(&mut self, namespace: &str, hostname: &str) -> Arc<NamespacedHostname> {
        let name = NamespacedHostname {
            namespace: self.text(namespace),
            hostname: self.text(hostname),
        };
        self.services.share(Arc::new(name))
    }

    /// A workload's Services, put in the order of their names.
    pub fn memberships(&mut self, mut all: Vec<Membership>) -> Arc<[Membership]> {
        all.sort_by(|a, b| a.service.cmp(&b.service));
        self.memberships.share(all.into())
    }

    /// A list of policy keys.
    pub fn keys<'a>(&mut self, keys: impl IntoIterator<Item = &'a str>) -> Arc<[Str]> {
        let keys: Arc<[Str]> = keys.into_iter().map(|key| self.text(key)).collect();
        self.keys.share(keys)
    }

    /// Forgets what no resource uses any more.
    pub fn prune(&mut self) {
        self.memberships.prune();
        self.keys.prune();
        self.services.prune();
        self.localities.prune();
        self.texts.prune();
    }
}
