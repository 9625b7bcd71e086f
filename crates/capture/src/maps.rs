//! Typed handles on the shared maps. Leaves who may write what, and when, to [`crate::capture`].

mod former;
mod tables;

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::net::IpAddr;

use aya::Pod as Plain;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use ipnet::IpNet;
use redirect_common::{
    Address, CgroupEntry, CgroupState, Counter, DAEMONS_MAX, ExcludedPort, ExcludedRange, Kind,
    Local, OpenPort, PODS_MAX, Pod, Saved, Settings, SocketKey, name,
};
use sys::bpf::SocketMap;

use crate::error::StartError;
use crate::pins::Pins;
use crate::programs::is_pinned;

pub(crate) use self::tables::{Entries, Tables};

/// Bits of an IPv4 address in front of it in its v4-mapped form.
const MAPPED_BITS: u32 = 96;

/// All shared maps.
pub(crate) struct Maps {
    pub pods: HashMap<MapData, u64, Pod>,
    pub saved: HashMap<MapData, u64, Saved>,
    pub sockets: SocketMap,
    pub cgroups: HashMap<MapData, u64, CgroupEntry>,
    pub settings: Array<MapData, Settings>,
    locals: HashMap<MapData, Local, u32>,
    ranges: LpmTrie<MapData, ExcludedRange, u32>,
    ports: HashMap<MapData, ExcludedPort, u32>,
    open_ports: HashMap<MapData, OpenPort, u32>,
    exempt: LpmTrie<MapData, Address, u32>,
    daemons: HashMap<MapData, u64, u64>,
    counters: PerCpuArray<MapData, u64>,
    owner: Array<MapData, u64>,
}

/// Makes and pins the maps that the loader cannot make; those that are there stay.
pub(crate) fn prepare(pins: &Pins) -> Result<(), StartError> {
    let captured = pins.path(name::CAPTURED);
    if !is_pinned(&captured) {
        let made =
            sys::bpf::sk_storage(name::CAPTURED).and_then(|map| sys::bpf::pin(&map, &captured));
        made.map_err(|error| failed(name::CAPTURED, &error))?;
    }
    if !is_pinned(&pins.path(name::OWNER)) {
        let map =
            Array::<MapData, u64>::create(1, 0).map_err(|error| failed(name::OWNER, &error))?;
        map.pin(pins.path(name::OWNER))
            .map_err(|error| failed(name::OWNER, &error))?;
    }
    if !is_pinned(&pins.path(name::SAVED)) {
        let map = HashMap::<MapData, u64, Saved>::create(PODS_MAX, NO_PREALLOC)
            .map_err(|error| failed(name::SAVED, &error))?;
        map.pin(pins.path(name::SAVED))
            .map_err(|error| failed(name::SAVED, &error))?;
    }
    Ok(())
}

/// `BPF_F_NO_PREALLOC`: memory for what is there, not for what might be.
const NO_PREALLOC: u32 = 1;

impl Maps {
    /// Opens the pinned maps.
    pub fn open(pins: &Pins) -> Result<Self, StartError> {
        Ok(Self {
            pods: open(pins, name::PODS)?,
            saved: open(pins, name::SAVED)?,
            sockets: SocketMap::open(&pins.path(name::SOCKETS))
                .map_err(|error| failed(name::SOCKETS, &error))?,
            cgroups: open(pins, name::CGROUPS)?,
            settings: open(pins, name::SETTINGS)?,
            locals: open(pins, name::LOCALS)?,
            ranges: open(pins, name::EXCLUDED_RANGES)?,
            ports: open(pins, name::EXCLUDED_PORTS)?,
            open_ports: open(pins, name::OPEN_PORTS)?,
            exempt: open(pins, name::EXEMPT)?,
            daemons: open(pins, name::DAEMONS)?,
            counters: open(pins, name::COUNTERS)?,
            owner: open(pins, name::OWNER)?,
        })
    }

    /// Generation of the owner; 0 when there never was one.
    pub fn owner(&self) -> Result<u64, StartError> {
        self.owner
            .get(&0, 0)
            .map_err(|error| failed(name::OWNER, &error))
    }

    /// Writes the owner's generation.
    pub fn set_owner(&mut self, generation: u64) -> Result<(), StartError> {
        self.owner
            .set(0, generation, 0)
            .map_err(|error| failed(name::OWNER, &error))
    }

    /// Exempts the processes of a daemon's cgroup. When there is no room, forgets daemons whose cgroup is gone.
    ///
    /// - `living`: ids of all cgroups that there are, or none when they cannot be told; asked only when needed
    ///
    /// Errors: [`DAEMONS_MAX`] daemons are alive.
    pub fn add_daemon(
        &mut self,
        cgroup_id: u64,
        generation: u64,
        living: impl FnOnce() -> Option<HashSet<u64>>,
    ) -> Result<(), StartError> {
        add_daemon(&mut self.daemons, cgroup_id, generation, living)
    }

    /// Whether the cgroup is exempt.
    pub fn is_daemon(&self, cgroup_id: u64) -> bool {
        self.daemons.get(&cgroup_id, 0).is_ok()
    }

    /// Makes the exempt sources be exactly `wanted`.
    pub fn set_exempt(&mut self, wanted: &[IpNet]) -> Result<(), StartError> {
        let wanted: Vec<_> = wanted.iter().map(|net| prefix(*net)).collect();
        let stale: Vec<_> = self.exempt.keys().flatten().collect();
        for (bits, address) in &wanted {
            let key = Key::new(*bits, *address);
            self.exempt
                .insert(&key, 1, 0)
                .map_err(|error| failed(name::EXEMPT, &error))?;
        }
        for key in stale {
            if !wanted.contains(&(key.prefix_len(), key.data())) {
                self.exempt
                    .remove(&key)
                    .map_err(|error| failed(name::EXEMPT, &error))?;
            }
        }
        Ok(())
    }

    /// Own addresses of a pod.
    pub fn locals(&self, cookie: u64) -> BTreeSet<IpAddr> {
        self.locals
            .keys()
            .flatten()
            .filter(|key| key.cookie == cookie)
            .map(|key| key.address.into())
            .collect()
    }

    /// Makes a pod's own addresses be exactly `wanted`; new ones come before old ones go.
    pub fn set_locals(&mut self, cookie: u64, wanted: &BTreeSet<IpAddr>) -> io::Result<()> {
        let present = self.locals(cookie);
        for address in wanted.difference(&present) {
            let key = Local {
                cookie,
                address: (*address).into(),
            };
            self.locals.insert(key, 1, 0).map_err(io::Error::other)?;
        }
        for address in present.difference(wanted) {
            let key = Local {
                cookie,
                address: (*address).into(),
            };
            absent_is_fine(self.locals.remove(&key))?;
        }
        Ok(())
    }

    /// Excluded destination ranges of a pod, as key bits and address.
    pub fn ranges(&self, cookie: u64) -> BTreeSet<(u32, IpAddr)> {
        let mine = ExcludedRange::new(cookie, Address::v4(0)).cookie;
        let keys = self
            .ranges
            .keys()
            .flatten()
            .filter(|key| key.data().cookie == mine);
        keys.map(|key| {
            (
                key.prefix_len() - ExcludedRange::COOKIE_BITS,
                key.data().address.into(),
            )
        })
        .collect()
    }

    /// Makes a pod's excluded ranges be exactly `wanted`.
    pub fn set_ranges(&mut self, cookie: u64, wanted: &BTreeSet<(u32, IpAddr)>) -> io::Result<()> {
        let key = |(bits, address): &(u32, IpAddr)| {
            Key::new(
                ExcludedRange::COOKIE_BITS + bits,
                ExcludedRange::new(cookie, (*address).into()),
            )
        };
        let present = self.ranges(cookie);
        for range in wanted.difference(&present) {
            self.ranges
                .insert(&key(range), 1, 0)
                .map_err(io::Error::other)?;
        }
        for range in present.difference(wanted) {
            absent_is_fine(self.ranges.remove(&key(range)))?;
        }
        Ok(())
    }

    /// Excluded destination ports of a pod.
    pub fn ports(&self, cookie: u64) -> BTreeSet<u16> {
        // Keys are only made from 16-bit ports.
        self.ports
            .keys()
            .flatten()
            .filter(|key| key.cookie == cookie)
            .map(|key| key.port as u16)
            .collect()
    }

    /// Makes a pod's excluded ports be exactly `wanted`.
    pub fn set_ports(&mut self, cookie: u64, wanted: &BTreeSet<u16>) -> io::Result<()> {
        let present = self.ports(cookie);
        for port in wanted.difference(&present) {
            self.ports
                .insert(ExcludedPort::new(cookie, *port), 1, 0)
                .map_err(io::Error::other)?;
        }
        for port in present.difference(wanted) {
            absent_is_fine(self.ports.remove(&ExcludedPort::new(cookie, *port)))?;
        }
        Ok(())
    }

    /// Open ports of a pod.
    pub fn open_ports(&self, cookie: u64) -> BTreeSet<u16> {
        // Keys are only made from 16-bit ports.
        let keys = self.open_ports.keys().flatten();
        keys.filter(|key| key.cookie == cookie)
            .map(|key| key.port as u16)
            .collect()
    }

    /// Makes a pod's open ports be exactly `wanted`.
    pub fn set_open_ports(&mut self, cookie: u64, wanted: &BTreeSet<u16>) -> io::Result<()> {
        let present = self.open_ports(cookie);
        for port in wanted.difference(&present) {
            self.open_ports
                .insert(OpenPort::new(cookie, *port), 1, 0)
                .map_err(io::Error::other)?;
        }
        for port in present.difference(wanted) {
            absent_is_fine(self.open_ports.remove(&OpenPort::new(cookie, *port)))?;
        }
        Ok(())
    }

    /// The entry of a pod.
    pub fn pod(&self, cookie: u64) -> Option<Pod> {
        self.pods.get(&cookie, 0).ok()
    }

    /// Writes a pod's flags; none removes the entry.
    pub fn set_pod(&mut self, cookie: u64, flags: Option<u32>) -> io::Result<()> {
        match flags {
            Some(flags) => self
                .pods
                .insert(cookie, Pod { flags }, 0)
                .map_err(io::Error::other),
            None => absent_is_fine(self.pods.remove(&cookie)),
        }
    }

    /// What was said of the cgroups of the pod in the namespace of `cookie` is `state` from now on.
    pub fn rewrite_cgroups(&mut self, cookie: u64, state: CgroupState) -> io::Result<()> {
        let of_pod = |entry: CgroupEntry| entry.state() == CgroupState::Enrolled(cookie);
        let ids: Vec<u64> = self
            .cgroups
            .iter()
            .flatten()
            .filter_map(|(id, entry)| of_pod(entry).then_some(id))
            .collect();
        let entry = CgroupEntry::new(state);
        ids.into_iter()
            .try_for_each(|id| self.cgroups.insert(id, entry, 0).map_err(io::Error::other))
    }

    /// Removes a socket entry; its absence is fine.
    pub fn remove_socket(&self, cookie: u64, kind: Kind) -> io::Result<()> {
        self.sockets
            .remove(&SocketKey::new(cookie, kind).bytes())
            .map(drop)
    }

    /// Cookie of the socket in the map.
    pub fn socket(&self, cookie: u64, kind: Kind) -> Option<u64> {
        self.sockets
            .cookie(&SocketKey::new(cookie, kind).bytes())
            .ok()
            .flatten()
    }

    /// Forgets what was saved of a pod.
    pub fn remove_saved(&mut self, cookie: u64) -> io::Result<()> {
        absent_is_fine(self.saved.remove(&cookie))
    }

    /// All counters, summed over CPUs.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        Counter::ALL
            .iter()
            .map(|(counter, name)| {
                let sum = self
                    .counters
                    .get(&(*counter as u32), 0)
                    .map_or(0, |cpus| cpus.iter().sum());
                (*name, sum)
            })
            .collect()
    }
}

/// Exempts a daemon's cgroup in what a predecessor has pinned at `pins`, if anything; it owns nothing by that.
pub(crate) fn exempt_early(
    pins: &Pins,
    cgroup_id: u64,
    living: impl FnOnce() -> Option<HashSet<u64>>,
) -> Result<(), StartError> {
    if !is_pinned(&pins.path(name::DAEMONS)) {
        return Ok(());
    }
    let mut daemons = open(pins, name::DAEMONS)?;
    add_daemon(&mut daemons, cgroup_id, 0, living)
}

fn add_daemon(
    daemons: &mut HashMap<MapData, u64, u64>,
    cgroup_id: u64,
    generation: u64,
    living: impl FnOnce() -> Option<HashSet<u64>>,
) -> Result<(), StartError> {
    let known: Vec<u64> = daemons.keys().flatten().collect();
    if known.len() >= DAEMONS_MAX as usize && !known.contains(&cgroup_id) {
        let living = living().unwrap_or_else(|| known.iter().copied().collect());
        for id in known.iter().filter(|id| !living.contains(id)) {
            absent_is_fine(daemons.remove(id)).map_err(|error| failed(name::DAEMONS, &error))?;
        }
    }
    daemons
        .insert(cgroup_id, generation, 0)
        .map_err(|error| failed(name::DAEMONS, &error))
}

/// An address range as prefix length and address of the 128-bit form.
pub(crate) fn prefix(net: IpNet) -> (u32, Address) {
    let before = if net.addr().is_ipv4() { MAPPED_BITS } else { 0 };
    (before + u32::from(net.prefix_len()), net.network().into())
}

fn open<T>(pins: &Pins, name: &'static str) -> Result<T, StartError>
where
    T: TryFrom<Map, Error = MapError>,
{
    MapData::from_pin(pins.path(name))
        .and_then(Map::from_map_data)
        .and_then(T::try_from)
        .map_err(|error| failed(name, &error))
}

fn failed(map: &'static str, error: &dyn std::error::Error) -> StartError {
    let source = error
        .source()
        .map_or(String::new(), |source| format!(": {source}"));
    StartError::Map {
        map,
        cause: format!("{error}{source}"),
    }
}

fn absent_is_fine(result: Result<(), MapError>) -> io::Result<()> {
    match result {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
            Ok(())
        }
        Err(error) => Err(io::Error::other(error)),
    }
}

const _: fn() = || {
    fn plain<T: Plain>() {}
    plain::<Saved>();
};
