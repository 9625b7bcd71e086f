//! The names that were asked for and not answered yet, oldest first.
//!
//! Leaves to others: waiting for the answers (`finder`).

use std::collections::{BTreeMap, HashMap};

use mesh::Str;

/// Unanswered names that are remembered; of more the oldest are given up. Above the number of questions that someone waits for.
const DEMANDS_MAX: usize = 8192;

/// Unanswered names.
#[derive(Debug, Default)]
pub(super) struct Demands {
    by_name: HashMap<Str, u64>,
    by_age: BTreeMap<u64, Str>,
    next: u64,
}

impl Demands {
    /// Notes a name; one that is there counts as new.
    pub(super) fn add(&mut self, name: &str) {
        let name: Str = name.into();
        if let Some(older) = self.by_name.insert(name.clone(), self.next) {
            self.by_age.remove(&older);
        }
        self.by_age.insert(self.next, name);
        self.next += 1;
        while self.by_age.len() > DEMANDS_MAX {
            if let Some((_, oldest)) = self.by_age.pop_first() {
                self.by_name.remove(&oldest);
            }
        }
    }

    /// Takes a name out. Returns whether it was there.
    pub(super) fn answer(&mut self, name: &str) -> bool {
        let age = self.by_name.remove(name);
        age.is_some_and(|age| self.by_age.remove(&age).is_some())
    }

    /// Whether nothing is asked for.
    pub(super) fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        self.by_age.values().map(|name| &**name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_given_up() {
        let mut demands = Demands::default();
        for n in 0..DEMANDS_MAX {
            demands.add(&n.to_string());
        }
        demands.add("0");
        demands.add("new");
        assert_eq!(demands.iter().count(), DEMANDS_MAX);
        assert!(!demands.answer("1"), "the oldest but for the renewed one");
        assert!(demands.answer("0") && demands.answer("new") && demands.answer("2"));
        assert!(!demands.answer("2"));
        assert_eq!(demands.by_name.len(), demands.by_age.len());
    }
}
