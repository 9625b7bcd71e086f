//! The one writer of the mesh state: takes changes in turn, and shows each as a whole or not at all.
//!
//! A change is worked into a private copy, in slices with a yield between them; then the copy takes the place of the state in one
//! swap. Readers (`watch::Receiver::borrow`) wait for the swap at most, never for the work. Leaves to others: where changes come from.

use std::sync::Arc;

use mesh::{Applied, Delta, Index};
use tokio::sync::{Mutex, watch};

/// Resources that are worked in before other tasks of the thread get their turn.
const SLICE: usize = 512;

/// Handle to the mesh state for those who change it. Clones change the same state.
#[derive(Clone, Debug)]
pub struct Publisher {
    state: watch::Sender<Index>,
    turn: Arc<Mutex<()>>,
}

impl Publisher {
    /// A state that begins as `index`.
    pub fn new(index: Index) -> Self {
        Self {
            state: watch::Sender::new(index),
            turn: Arc::default(),
        }
    }

    /// A reader, that sees every state from now on.
    pub fn subscribe(&self) -> watch::Receiver<Index> {
        self.state.subscribe()
    }

    /// The state of now. Let go before the next await: a swap waits for it.
    pub fn borrow(&self) -> watch::Ref<'_, Index> {
        self.state.borrow()
    }

    /// Works a change in, after those that came before. Dropping the future before it is done changes nothing.
    pub async fn apply(&self, delta: Delta) -> Applied {
        self.change(|_| delta).await
    }

    /// Makes the state hold just `resources`; those that are there and equal are not touched.
    ///
    /// Not to be used together with [`apply`](Self::apply) from another source: it would take that one's resources away.
    pub async fn replace(&self, resources: &[mesh::Resource]) -> Applied {
        self.change(|index| index.delta_to(resources)).await
    }

    async fn change(&self, delta: impl FnOnce(&Index) -> Delta) -> Applied {
        let _turn = self.turn.lock().await;
        let mut next = self.state.borrow().clone();
        let Delta { remove, upsert } = delta(&next);
        let mut applied = Applied::default();
        let mut remove = remove.into_iter();
        let mut upsert = upsert.into_iter();
        loop {
            let slice = Delta {
                remove: remove.by_ref().take(SLICE).collect(),
                upsert: Vec::new(),
            };
            if slice.remove.is_empty() {
                break;
            }
            merge(&mut applied, next.apply(slice));
            tokio::task::yield_now().await;
        }
        loop {
            let slice = Delta {
                remove: Vec::new(),
                upsert: upsert.by_ref().take(SLICE).collect(),
            };
            if slice.upsert.is_empty() {
                break;
            }
            merge(&mut applied, next.apply(slice));
            tokio::task::yield_now().await;
        }
        drop(self.state.send_replace(next)); // the old state goes here, outside of the lock
        applied
    }
}

fn merge(all: &mut Applied, part: Applied) {
    all.policies_set.extend(part.policies_set);
    all.policies_removed.extend(part.policies_removed);
}
