//! The one writer of the mesh state: takes changes in turn, and shows each as a whole or not at all.
//!
//! A change is worked into a private copy, in slices with a yield between them; then the copy takes the place of the state in one
//! swap. Readers take a reference without a lock and decide on it, so nobody waits for the work, nor for another reader that the
//! kernel has put to sleep.
//!
//! Changes come from the control plane ([`Publisher::apply`]) and from a local file or text ([`Publisher::apply_local`]). What both
//! speak of is the control plane's for as long as it holds it; neither takes away what the other gave.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use mesh::{Applied, Delta, Index, Key, Resource};
use tokio::sync::{Mutex, watch};

/// Resources that are worked in before other tasks of the thread get their turn.
const SLICE: usize = 512;

/// How often an old state is looked after until no reader holds it any more, and the pause in between.
const RETIRE_TRIES_MAX: u32 = 1000;
const RETIRE_PAUSE: Duration = Duration::from_millis(1);

/// Handle to the mesh state for those who change it. Clones change the same state.
#[derive(Clone, Debug)]
pub struct Publisher {
    /// What readers decide on.
    current: Arc<ArcSwap<Index>>,
    /// The same, for those who wait for a change; set second.
    state: watch::Sender<Arc<Index>>,
    turn: Arc<Mutex<Local>>,
}

/// What the local source holds, and of that what the control plane speaks of as well.
#[derive(Clone, Debug, Default)]
struct Local {
    held: HashMap<Key, Resource>,
    overlaid: HashSet<Key>,
}

impl Publisher {
    /// A state that begins as `index`.
    pub fn new(index: Index) -> Self {
        let index = Arc::new(index);
        Self {
            current: Arc::new(ArcSwap::new(Arc::clone(&index))),
            state: watch::Sender::new(index),
            turn: Arc::default(),
        }
    }

    /// The state, to be read at any time from any thread, without a lock.
    pub fn current(&self) -> Arc<ArcSwap<Index>> {
        Arc::clone(&self.current)
    }

    /// A reader that is told of every state from now on.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Index>> {
        self.state.subscribe()
    }

    /// Works a change of the control plane in, after those that came before. Dropping the future before it is done changes nothing.
    pub async fn apply(&self, delta: Delta) -> Applied {
        let mut local = self.turn.lock().await;
        if local.held.is_empty() {
            return self.publish(delta).await;
        }
        let (delta, next) = local.under(delta);
        let applied = self.publish(delta).await;
        *local = next;
        applied
    }

    /// Makes `resources` all that the local source holds. Dropping the future before it is done changes nothing.
    pub async fn apply_local(&self, resources: &[Resource]) -> Applied {
        let mut local = self.turn.lock().await;
        let (delta, next) = local.follow(resources, &self.state.borrow());
        let applied = self.publish(delta).await;
        *local = next;
        applied
    }

    async fn publish(&self, delta: Delta) -> Applied {
        let mut applied = Applied::default();
        if delta.is_empty() {
            return applied;
        }
        let mut next = Index::clone(&self.state.borrow());
        for slice in slices(delta) {
            let Applied {
                policies_set,
                policies_removed,
            } = next.apply(slice);
            applied.policies_set.extend(policies_set);
            applied.policies_removed.extend(policies_removed);
            tokio::task::yield_now().await;
        }
        while next.settle() {
            tokio::task::yield_now().await;
        }
        let next = Arc::new(next);
        drop(self.current.swap(Arc::clone(&next)));
        let old = self.state.send_replace(next);
        if Arc::strong_count(&old) > 1 {
            tokio::spawn(retire(old));
        }
        applied
    }
}

impl Local {
    /// A change of the control plane as it is to be worked in: what it takes away comes back as the local source has it.
    fn under(&self, delta: Delta) -> (Delta, Self) {
        let mut next = self.clone();
        let mut change = Delta::default();
        for key in delta.remove {
            match self.held.get(&key) {
                None => change.remove.push(key),
                // what it never held it cannot take away
                Some(own) if next.overlaid.remove(&key) => change.upsert.push(own.clone()),
                Some(_) => {}
            }
        }
        for resource in &delta.upsert {
            let key = resource.key();
            if self.held.contains_key(&key) {
                next.overlaid.insert(key);
            }
        }
        change.upsert.extend(delta.upsert);
        (change, next)
    }

    /// The change from what is held to `resources`, leaving alone what the control plane speaks of.
    fn follow(&self, resources: &[Resource], index: &Index) -> (Delta, Self) {
        let mut next = Self::default();
        let mut change = Delta::default();
        for resource in resources {
            let key = resource.key();
            let before = self.held.get(&key);
            let is_theirs = match before {
                Some(_) => self.overlaid.contains(&key),
                None => !next.held.contains_key(&key) && holds(index, &key),
            };
            if is_theirs || next.overlaid.contains(&key) {
                next.overlaid.insert(key.clone());
            } else if before != Some(resource) {
                change.upsert.push(resource.clone());
            }
            next.held.insert(key, resource.clone());
        }
        let gone = self
            .held
            .keys()
            .filter(|key| !next.held.contains_key(*key) && !self.overlaid.contains(*key));
        change.remove = gone.cloned().collect();
        (change, next)
    }
}

fn holds(index: &Index, key: &Key) -> bool {
    match key {
        Key::Workload(uid) => index.workload(uid).is_some(),
        Key::Service(name) => index.service(&name.namespace, &name.hostname).is_some(),
        Key::Policy(key) => index.policies().any(|policy| policy.key == *key),
    }
}

/// Sees to it that an old state is taken apart here and not by the reader that happens to be the last: a large one takes long.
async fn retire(old: Arc<Index>) {
    for _ in 0..RETIRE_TRIES_MAX {
        if Arc::strong_count(&old) == 1 {
            return;
        }
        tokio::time::sleep(RETIRE_PAUSE).await;
    }
}

/// Cuts a change in pieces that, one after the other, are the same: removals first.
fn slices(delta: Delta) -> impl Iterator<Item = Delta> {
    let mut remove = delta.remove.into_iter();
    let mut upsert = delta.upsert.into_iter();
    std::iter::from_fn(move || {
        let remove: Vec<_> = remove.by_ref().take(SLICE).collect();
        let room = SLICE - remove.len();
        let slice = Delta {
            remove,
            upsert: upsert.by_ref().take(room).collect(),
        };
        (!slice.is_empty()).then_some(slice)
    })
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use mesh::{Policy, Workload};

    use super::*;

    const MANY: usize = 3 * SLICE + 1;

    fn workload(uid: usize) -> Resource {
        let uid = uid.to_string().into();
        let workload = Workload::new(uid, "", [], Arc::default(), Arc::default());
        Resource::Workload(workload.into())
    }

    fn policy(name: usize) -> Resource {
        let scope = mesh::policy::PolicyScope::Global;
        let action = mesh::policy::Action::Deny;
        Resource::Policy(Policy::new("a", &name.to_string(), scope, action, vec![]).into())
    }

    fn coming(upsert: Vec<Resource>) -> Delta {
        Delta {
            remove: Vec::new(),
            upsert,
        }
    }

    fn going(all: &[Resource]) -> Delta {
        Delta {
            remove: all.iter().map(Resource::key).collect::<Vec<Key>>(),
            upsert: Vec::new(),
        }
    }

    #[tokio::test]
    async fn a_change_is_seen_whole_or_not_at_all() {
        let publisher = Publisher::new(Index::default());
        let mut reader = publisher.subscribe();
        let all: Vec<Resource> = (0..MANY).map(workload).collect();
        let watch = async {
            let mut looks = 0;
            while reader.borrow_and_update().workloads().count() != MANY {
                assert_eq!(reader.borrow().workloads().count(), 0);
                looks += 1;
                tokio::task::yield_now().await;
            }
            looks
        };
        let (_, looks) = tokio::join!(publisher.apply(coming(all.clone())), watch);
        assert!(looks >= 3, "others got their turn: {looks}");
        assert!(!reader.has_changed().unwrap(), "told once");
        publisher.apply(going(&all)).await;
        assert!(reader.has_changed().unwrap());
        assert_eq!(**reader.borrow_and_update(), Index::default());
        publisher.apply(Delta::default()).await;
        assert!(!reader.has_changed().unwrap(), "nothing to tell");
    }

    #[tokio::test]
    async fn changes_take_turns() {
        let publisher = Publisher::new(Index::default());
        let all: Vec<Resource> = (0..MANY).map(policy).collect();
        let (set, removed) = tokio::join!(
            publisher.apply(coming(all.clone())),
            publisher.apply(going(&all)),
        );
        assert_eq!(
            (set.policies_set.len(), removed.policies_removed.len()),
            (MANY, MANY)
        );
        assert_eq!(**publisher.subscribe().borrow(), Index::default());
    }

    #[tokio::test]
    async fn a_change_that_is_given_up_changes_nothing() {
        let publisher = Publisher::new(Index::default());
        {
            let delta = coming((0..MANY).map(workload).collect());
            let mut apply = pin!(publisher.apply(delta));
            let mut context = Context::from_waker(Waker::noop());
            assert!(apply.as_mut().poll(&mut context).is_pending());
        }
        assert_eq!(**publisher.subscribe().borrow(), Index::default());
        publisher.apply(coming(vec![workload(1)])).await;
        assert_eq!(publisher.subscribe().borrow().workloads().count(), 1);
    }

    fn deny(name: &str, dry_run: bool) -> Resource {
        let scope = mesh::policy::PolicyScope::Global;
        let action = mesh::policy::Action::Deny;
        let policy = Policy::new("a", name, scope, action, vec![]);
        Resource::Policy(Policy { dry_run, ..policy }.into())
    }

    #[tokio::test]
    async fn two_sources_do_not_take_each_others_resources_away() {
        let publisher = Publisher::new(Index::default());
        let seen = || {
            let state = publisher.subscribe().borrow().clone();
            let mut all: Vec<_> = state
                .policies()
                .map(|policy| (policy.name.to_string(), policy.dry_run))
                .collect();
            all.sort();
            all
        };
        let is = |all: &[(&str, bool)]| -> Vec<(String, bool)> {
            all.iter()
                .map(|(name, dry)| ((*name).to_owned(), *dry))
                .collect()
        };
        // dry run: the local source's version
        let (mine, theirs) = (deny("p", true), deny("p", false));
        let (only_mine, only_theirs) = (deny("l", true), deny("x", false));
        publisher
            .apply_local(&[mine.clone(), only_mine.clone()])
            .await;
        publisher
            .apply(coming(vec![theirs.clone(), only_theirs.clone()]))
            .await;
        assert_eq!(
            seen(),
            is(&[("l", true), ("p", false), ("x", false)]),
            "the control plane's counts"
        );
        publisher
            .apply_local(std::slice::from_ref(&only_mine))
            .await;
        assert_eq!(
            seen(),
            is(&[("l", true), ("p", false), ("x", false)]),
            "an emptied file takes nothing of it"
        );
        publisher
            .apply_local(&[mine.clone(), only_mine.clone()])
            .await;
        assert_eq!(
            seen(),
            is(&[("l", true), ("p", false), ("x", false)]),
            "a file that comes later does not cover it"
        );
        publisher
            .apply(going(&[theirs, only_theirs, only_mine.clone()]))
            .await;
        assert_eq!(
            seen(),
            is(&[("l", true), ("p", true)]),
            "what it takes away comes back as the file has it"
        );
        publisher.apply_local(&[only_mine]).await;
        assert_eq!(seen(), is(&[("l", true)]));
        publisher.apply_local(&[]).await;
        assert_eq!(seen(), is(&[]));
    }
}
