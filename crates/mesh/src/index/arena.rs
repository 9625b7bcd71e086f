//! Values in numbered slots, cheap to copy as a whole: a copy shares all leaves, and a change copies the one leaf it touches.

use std::sync::Arc;

/// Number of a slot.
pub(super) type Slot = u32;

/// Slots of a leaf: what a change copies, against what a copy of the whole has to count.
const LEAF: usize = 128;

type Leaf<T> = [Option<Arc<T>>; LEAF];

/// Values by slot. A slot that was freed is used again.
#[derive(Debug)]
pub(super) struct Arena<T> {
    leaves: Vec<Arc<Leaf<T>>>,
    free: Vec<Slot>,
    /// Slots that were ever used.
    used: usize,
}

impl<T> Clone for Arena<T> {
    fn clone(&self) -> Self {
        Self {
            leaves: self.leaves.clone(),
            free: self.free.clone(),
            used: self.used,
        }
    }
}

impl<T> Default for Arena<T> {
    fn default() -> Self {
        Self {
            leaves: Vec::new(),
            free: Vec::new(),
            used: 0,
        }
    }
}

impl<T> Arena<T> {
    /// How many values it holds.
    pub(super) fn len(&self) -> usize {
        self.used - self.free.len()
    }

    /// The value in a slot.
    pub(super) fn get(&self, slot: Slot) -> Option<&Arc<T>> {
        let slot = slot as usize;
        self.leaves.get(slot / LEAF)?[slot % LEAF].as_ref()
    }

    /// The value in a slot, to be replaced or changed.
    pub(super) fn get_mut(&mut self, slot: Slot) -> Option<&mut Arc<T>> {
        self.place(slot)?.as_mut()
    }

    /// All values with their slots.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Slot, &Arc<T>)> {
        let all = self.leaves.iter().flat_map(|leaf| leaf.iter());
        (0..)
            .zip(all)
            .filter_map(|(slot, value)| Some((slot, value.as_ref()?)))
    }

    /// Puts a value into a free slot.
    pub(super) fn insert(&mut self, value: Arc<T>) -> Slot {
        let slot = self.free.pop().unwrap_or_else(|| self.grow());
        if let Some(place) = self.place(slot) {
            *place = Some(value);
        }
        slot
    }

    /// Frees a slot.
    pub(super) fn remove(&mut self, slot: Slot) -> Option<Arc<T>> {
        let value = self.place(slot)?.take()?;
        self.free.push(slot);
        if self.len() == 0 {
            *self = Self::default();
        }
        Some(value)
    }

    fn place(&mut self, slot: Slot) -> Option<&mut Option<Arc<T>>> {
        let slot = slot as usize;
        let leaf = self.leaves.get_mut(slot / LEAF)?;
        Some(&mut Arc::make_mut(leaf)[slot % LEAF])
    }

    fn grow(&mut self) -> Slot {
        if self.used == self.leaves.len() * LEAF {
            self.leaves.push(Arc::new([const { None }; LEAF]));
        }
        let slot = Slot::try_from(self.used).expect("2^32 values do not fit into memory");
        self.used += 1;
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_keeps_what_it_was() {
        let mut arena = Arena::default();
        let slots: Vec<Slot> = (0..1000).map(|i| arena.insert(Arc::new(i))).collect();
        let before = arena.clone();
        *arena.get_mut(slots[500]).expect("in use") = Arc::new(-1);
        assert_eq!(arena.remove(slots[7]).as_deref(), Some(&7));
        assert_eq!(arena.remove(slots[7]), None);
        assert_eq!(arena.insert(Arc::new(-2)), slots[7], "used again");
        assert_eq!(before.iter().map(|(_, i)| **i).sum::<i32>(), 499_500);
        assert_eq!(
            arena.iter().map(|(_, i)| **i).sum::<i32>(),
            499_500 - 501 - 9
        );
        assert_eq!(
            (arena.len(), before.get(slots[7]).map(|i| **i)),
            (1000, Some(7))
        );
        let shared = (arena.leaves.iter().zip(&before.leaves))
            .filter(|(a, b)| Arc::ptr_eq(a, b))
            .count();
        assert_eq!(shared, arena.leaves.len() - 2, "two leaves were touched");
        for slot in slots {
            arena.remove(slot);
        }
        assert_eq!((arena.len(), arena.leaves.len()), (0, 0));
    }
}
