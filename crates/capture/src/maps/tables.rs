//! Reading back what lies in the shared maps: single entries by key for one pod, one walk for all pods. Changes nothing.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use redirect_common::{Address, CgroupState, ExcludedPort, ExcludedRange, Local, OpenPort};

use super::{Key, Maps};

/// Entries of all pods in the maps that are keyed by more than the pod.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    pods: HashMap<u64, Entries>,
}

/// Entries of one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entries {
    /// Own addresses.
    pub locals: BTreeSet<IpAddr>,
    /// Excluded ranges, as key bits and address.
    pub ranges: BTreeSet<(u32, IpAddr)>,
    /// Excluded ports.
    pub ports: BTreeSet<u16>,
    /// Open ports.
    pub open_ports: BTreeSet<u16>,
}

impl Tables {
    /// Entries of a pod.
    pub fn of(&self, cookie: u64) -> Entries {
        self.pods.get(&cookie).cloned().unwrap_or_default()
    }

    fn pod(&mut self, cookie: u64) -> &mut Entries {
        self.pods.entry(cookie).or_default()
    }
}

impl Maps {
    /// Walks the maps once, for all pods.
    pub fn tables(&self) -> Tables {
        let mut tables = Tables::default();
        for key in self.locals.keys().flatten() {
            tables.pod(key.cookie).locals.insert(key.address.into());
        }
        for key in self.ranges.keys().flatten() {
            let data = key.data();
            let [high, low] = data.cookie;
            let bits = key.prefix_len().saturating_sub(ExcludedRange::COOKIE_BITS);
            let range = (bits, data.address.into());
            tables
                .pod(u64::from(high) << 32 | u64::from(low))
                .ranges
                .insert(range);
        }
        for key in self.ports.keys().flatten() {
            // keys are only made from 16-bit ports
            tables.pod(key.cookie).ports.insert(key.port as u16);
        }
        for key in self.open_ports.keys().flatten() {
            // the same
            tables.pod(key.cookie).open_ports.insert(key.port as u16);
        }
        tables
    }

    /// Those of `asked` that are there. Of ranges: whether the address is excluded, if need be by a wider range.
    pub fn entries(&self, cookie: u64, asked: &Entries) -> Entries {
        let local = |ip: &&IpAddr| {
            let address: Address = (**ip).into();
            self.locals.get(&Local { cookie, address }, 0).is_ok()
        };
        let range = |(bits, ip): &&(u32, IpAddr)| {
            let data = ExcludedRange::new(cookie, (*ip).into());
            let key = Key::new(ExcludedRange::COOKIE_BITS + bits, data);
            self.ranges.get(&key, 0).is_ok()
        };
        let port = |port: &&u16| {
            self.ports
                .get(&ExcludedPort::new(cookie, **port), 0)
                .is_ok()
        };
        let open = |port: &&u16| {
            let key = OpenPort::new(cookie, **port);
            self.open_ports.get(&key, 0).is_ok()
        };
        Entries {
            open_ports: asked.open_ports.iter().filter(open).copied().collect(),
            locals: asked.locals.iter().filter(local).copied().collect(),
            ranges: asked.ranges.iter().filter(range).copied().collect(),
            ports: asked.ports.iter().filter(port).copied().collect(),
        }
    }

    /// What the kernel was told of a cgroup.
    pub fn cgroup(&self, id: u64) -> Option<CgroupState> {
        self.cgroups.get(&id, 0).ok().map(|entry| entry.state())
    }

    /// The exempt sources, as key bits and address.
    pub fn exempt(&self) -> BTreeSet<(u32, IpAddr)> {
        let keys = self.exempt.keys().flatten();
        keys.map(|key| (key.prefix_len(), key.data().into()))
            .collect()
    }
}
