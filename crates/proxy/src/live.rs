//! The flows under way on one data thread: listed for the dump, and inbound ones cut when policy turns against them.
//!
//! An inbound flow enters before it is authorized, so that no change of policy can slip between.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use mesh::{Attempt, Index, SpiffeId, Str, Verdict, Workload};
use tokio::sync::{oneshot, watch};

/// One flow as `/config_dump` lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenFlow {
    /// UID of the pod that it belongs to
    pub pod: Str,
    /// true = to the pod
    pub inbound: bool,
    /// client
    pub source: SocketAddr,
    /// inbound: host named by the client; outbound: destination as dialled
    pub original: Option<String>,
    /// inbound: application; outbound: next hop
    pub actual: SocketAddr,
    /// `TCP` or `HBONE`
    pub protocol: &'static str,
}

/// Who asks for what on an inbound flow, kept to ask policy again.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    pub(crate) identity: Option<SpiffeId>,
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) local: Arc<Workload>,
}

impl Subject {
    /// The verdict of `index` on this flow.
    pub(crate) fn authorize(&self, index: &Index, local: &Workload) -> Verdict {
        mesh::authorize(index, &Attempt { identity: self.identity.as_ref(), source: self.source, destination: self.destination, local })
    }
}

struct Entry {
    open: OpenFlow,
    guarded: Option<Guarded>,
}

struct Guarded {
    subject: Subject,
    cut: oneshot::Sender<()>,
}

/// The table of one data thread.
pub(crate) struct Live {
    index: watch::Receiver<Index>,
    flows: Rc<RefCell<HashMap<u64, Entry>>>,
    next: Cell<u64>,
}

/// A flow's place in the table, given back on drop.
pub(crate) struct Place {
    key: u64,
    flows: Rc<RefCell<HashMap<u64, Entry>>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.flows.borrow_mut().remove(&self.key);
    }
}

impl Live {
    pub(crate) fn new(index: watch::Receiver<Index>) -> Self {
        Self { index, flows: Rc::default(), next: Cell::new(0) }
    }

    /// Lists an outbound flow.
    pub(crate) fn enter(&self, open: OpenFlow) -> Place {
        self.insert(Entry { open, guarded: None })
    }

    /// Lists an inbound flow and watches over it: the receiver resolves when a later policy denies it.
    pub(crate) fn guard(&self, open: OpenFlow, subject: Subject) -> (Place, oneshot::Receiver<()>) {
        let (cut, denied) = oneshot::channel();
        (self.insert(Entry { open, guarded: Some(Guarded { subject, cut }) }), denied)
    }

    fn insert(&self, entry: Entry) -> Place {
        let key = self.next.replace(self.next.get() + 1);
        self.flows.borrow_mut().insert(key, entry);
        Place { key, flows: Rc::clone(&self.flows) }
    }

    /// A copy of the table.
    pub(crate) fn open_flows(&self) -> Vec<OpenFlow> {
        self.flows.borrow().values().map(|e| e.open.clone()).collect()
    }

    /// Asks policy again about every inbound flow whenever policies or its own workload changed.
    pub(crate) async fn watch(&self) {
        let mut index = self.index.clone();
        let mut version = index.borrow_and_update().policy_version();
        while index.changed().await.is_ok() {
            let now = index.borrow_and_update();
            let policies_changed = std::mem::replace(&mut version, now.policy_version()) != now.policy_version();
            self.review(&now, policies_changed);
        }
    }

    fn review(&self, index: &Index, policies_changed: bool) {
        for entry in self.flows.borrow_mut().values_mut() {
            let Some(guarded) = &mut entry.guarded else { continue };
            let local = &mut guarded.subject.local;
            let current = index.local_workload(&local.namespace, &local.name, &local.service_account);
            let moved = current.filter(|c| !Arc::ptr_eq(c, local)).cloned();
            let workload_changed = moved.is_some();
            if let Some(current) = moved {
                *local = current;
            }
            if !policies_changed && !workload_changed {
                continue;
            }
            if !guarded.subject.authorize(index, &guarded.subject.local).is_allowed() {
                let flow = &entry.open;
                tracing::info!(pod = %flow.pod, src = %flow.source, dst = %flow.actual, "connection closed due to policy change");
                if let Some(Guarded { cut, .. }) = entry.guarded.take() {
                    // the flow may be ending by itself
                    let _ = cut.send(());
                }
            }
        }
    }
}
