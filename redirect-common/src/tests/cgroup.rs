//! Tables of cases for the walk through cgroups.

use super::*;

struct Tree {
    lineage: Vec<u64>,
    entries: Vec<(u64, CgroupState)>,
    settings: Settings,
    learned: core::cell::Cell<Option<u32>>,
}

impl Lineage for Tree {
    fn ancestor(&self, level: u32) -> u64 {
        self.lineage.get(level as usize).copied().unwrap_or(0)
    }
    fn entry(&self, id: u64) -> Option<CgroupEntry> {
        let entry = self.entries.iter().find(|(of, _)| *of == id);
        entry.map(|(_, state)| CgroupEntry::new(*state))
    }
    fn settings(&self) -> Option<Settings> {
        Some(self.settings)
    }
    fn now(&self) -> u64 {
        100
    }
    fn learned(&self, level: u32) {
        self.learned.set(Some(level));
    }
}

#[test]
fn the_walk_finds_the_first_that_decides() {
    use CgroupState::{Denied, Enrolled, Free, Group, Held};
    // Root 1, capture cgroup 3 at level 2, then groups and pods.
    let ask = |below: &[u64], entries: &[(u64, CgroupState)], hold_until| {
        let mut lineage: Vec<u64> = [1, 2, 3].into();
        lineage.extend(below);
        let tree = Tree {
            lineage,
            entries: entries.to_vec(),
            settings: Settings {
                capture: 3,
                hold_until,
                level: 2,
                padding: 0,
            },
            learned: None.into(),
        };
        standing(&tree)
    };
    for (below, entries, hold_until, want) in [
        (&[][..], &[][..], 200, Standing::Free),
        (&[4], &[], 0, Standing::Free),
        (&[4], &[], 100, Standing::Free),
        (&[4], &[], 101, Standing::Held),
        (&[4, 5], &[(4, Group)], 101, Standing::Held),
        (&[4], &[(4, Group)], 101, Standing::Free),
        (&[4, 5], &[(4, Group), (5, Group)], 101, Standing::Free),
        (&[4, 5], &[(5, Free)], 101, Standing::Free),
        (&[4, 5, 6], &[(4, Group), (5, Held)], 0, Standing::Held),
        (&[4, 5], &[(4, Denied)], 0, Standing::Denied),
        (
            &[4, 5],
            &[(4, Enrolled(9)), (5, Free)],
            0,
            Standing::Enrolled(9),
        ),
        (
            &[4, 5, 6, 7, 8, 9, 10, 11],
            &[(11, Held)],
            0,
            Standing::Held,
        ),
        (
            &[4, 5, 6, 7, 8, 9, 10, 11, 12],
            &[(12, Held)],
            0,
            Standing::Free,
        ),
    ] {
        assert_eq!(
            ask(below, entries, hold_until),
            want,
            "{below:?} {entries:?}"
        );
    }
}

#[test]
fn the_level_is_found_when_guessed_wrong() {
    for (level, want) in [(2, None), (0, Some(2)), (7, Some(2)), (99, Some(2))] {
        let tree = Tree {
            lineage: [1, 2, 3, 4].into(),
            entries: [(4, CgroupState::Held)].into(),
            settings: Settings {
                capture: 3,
                hold_until: 0,
                level,
                padding: 0,
            },
            learned: None.into(),
        };
        assert_eq!(standing(&tree), Standing::Held);
        assert_eq!(tree.learned.get(), want, "{level}");
        let elsewhere = Tree {
            lineage: [1, 2, 9, 4].into(),
            ..tree
        };
        assert_eq!(standing(&elsewhere), Standing::Free);
    }
    let nonsense = CgroupEntry {
        state: 77,
        padding: 0,
        cookie: 0,
    };
    assert_eq!(nonsense.state(), CgroupState::Held);
}

#[test]
fn a_whole_namespace_stands_by_itself() {
    let whole = Pod::CAPTURE | Pod::WHOLE;
    for (flags, want) in [
        (Some(whole), Standing::Enrolled(5)),
        (Some(Pod::CAPTURE), Standing::Free),
        (Some(Pod::WHOLE), Standing::Free),
        (None, Standing::Free),
    ] {
        let pod = flags.map(|flags| Pod { flags });
        assert_eq!(by_namespace(5, pod), want, "{flags:?}");
    }
}
