//! The shared copies of what many resources have in common. Kept by whoever parses resources, for as long as it does.
//!
//! Leaves to others: deciding when to [`prune`](Pools::prune).

use std::sync::Arc;

use crate::name::{Interner, NamespacedHostname, Str};
use crate::ports::{PortMapping, Ports};
use crate::workload::{GatewayAddress, Locality, Membership, Place, Profile};

/// One interner per kind of shared value.
#[derive(Debug, Default)]
pub struct Pools {
    texts: Interner<str>,
    places: Interner<Place>,
    profiles: Interner<Profile>,
    gateways: Interner<GatewayAddress>,
    services: Interner<NamespacedHostname>,
    ports: Interner<[PortMapping]>,
    memberships: Interner<[Membership]>,
    keys: Interner<[Str]>,
}

impl Pools {
    /// A name.
    pub fn text(&mut self, text: &str) -> Str {
        self.texts.intern(text)
    }

    /// A node and its locality: region, zone, subzone.
    pub fn place(&mut self, node: &str, [region, zone, subzone]: [&str; 3]) -> Arc<Place> {
        let place = Place {
            node: self.text(node),
            locality: Locality {
                region: self.text(region),
                zone: self.text(zone),
                subzone: self.text(subzone),
            },
        };
        self.places.share(place)
    }

    /// What a workload has in common with others; its names and lists should come from these pools as well.
    pub fn profile(&mut self, profile: Profile) -> Arc<Profile> {
        self.profiles.share(profile)
    }

    /// A reference to a waypoint or gateway.
    pub fn gateway(&mut self, gateway: GatewayAddress) -> Arc<GatewayAddress> {
        self.gateways.share(gateway)
    }

    /// Port mappings.
    pub fn ports(&mut self, ports: impl IntoIterator<Item = (u16, u16)>) -> Ports {
        let ports: Ports = ports.into_iter().collect();
        Ports(self.ports.share(ports.0))
    }

    /// The name of a Service.
    pub fn service(&mut self, namespace: &str, hostname: &str) -> Arc<NamespacedHostname> {
        let name = NamespacedHostname {
            namespace: self.text(namespace),
            hostname: self.text(hostname),
        };
        self.services.share(name)
    }

    /// A workload's Services, put in the order of their names; of one Service the last holds.
    pub fn memberships(&mut self, mut all: Vec<Membership>) -> Arc<[Membership]> {
        all.sort_by(|a, b| a.service.cmp(&b.service));
        all.reverse();
        all.dedup_by(|a, b| a.service == b.service);
        all.reverse();
        self.memberships.share(Arc::<[Membership]>::from(all))
    }

    /// A list of policy keys.
    pub fn keys<'a>(&mut self, keys: impl IntoIterator<Item = &'a str>) -> Arc<[Str]> {
        let keys: Arc<[Str]> = keys.into_iter().map(|key| self.text(key)).collect();
        self.keys.share(keys)
    }

    /// Forgets what no resource uses any more, a part of it at each call: see [`Interner::prune`]. To be called after each change.
    pub fn prune(&mut self) {
        self.profiles.prune();
        self.memberships.prune();
        self.keys.prune();
        self.services.prune();
        self.gateways.prune();
        self.ports.prune();
        self.places.prune();
        self.texts.prune();
    }
}
