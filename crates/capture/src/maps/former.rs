//! Taking over what a daemon of another map layout left: its entries are copied, as far as they have the shape they have today.

use std::hash::Hash;

use aya::Pod as Plain;
use aya::maps::{Array, HashMap, LpmTrie, MapData};
use redirect_common::{ExcludedRange, name};

use super::{Maps, open};
use crate::error::StartError;
use crate::pins::Pins;

impl Maps {
    /// Copies pods, their addresses, exclusions and records, and the daemons; what is there already stays. The former daemon then
    /// sees itself superseded.
    ///
    /// Errors: a map is missing or has another shape; what was copied until then stays.
    pub fn take_over(&mut self, former: &Pins) -> Result<(), StartError> {
        copy(former, name::DAEMONS, &mut self.daemons)?;
        copy(former, name::LOCALS, &mut self.locals)?;
        copy(former, name::EXCLUDED_PORTS, &mut self.ports)?;
        let ranges: LpmTrie<MapData, ExcludedRange, u32> = open(former, name::EXCLUDED_RANGES)?;
        for (key, value) in ranges.iter().flatten() {
            // What does not fit is made right when the pod is enrolled again.
            let _ = self.ranges.insert(&key, value, 0);
        }
        // Records first: a pod with an entry and without a record could never be released.
        copy(former, name::SAVED, &mut self.saved)?;
        copy(former, name::PODS, &mut self.pods)?;
        let mut owner: Array<MapData, u64> = open(former, name::OWNER)?;
        let generation = owner.get(&0, 0).unwrap_or_default();
        owner
            .set(0, generation + 1, 0)
            .map_err(|error| super::failed(name::OWNER, &error))
    }
}

/// Entries of a former map that are not in `map`.
fn copy<K: Plain + Hash + Eq, V: Plain>(
    former: &Pins,
    name: &'static str,
    map: &mut HashMap<MapData, K, V>,
) -> Result<(), StartError> {
    /// `BPF_NOEXIST`.
    const NEW: u64 = 1;
    let entries: HashMap<MapData, K, V> = open(former, name)?;
    for (key, value) in entries.iter().flatten() {
        // There already, or no room: the pod is made right when it is enrolled again.
        let _ = map.insert(key, value, NEW);
    }
    Ok(())
}
