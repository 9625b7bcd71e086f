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

/// Flows reviewed before other work of the thread has its turn. So long the state is held, and whoever publishes a new one
/// waits, and behind it every other reader: a small part of a millisecond.
const REVIEW_SLICE: usize = 64;

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
        mesh::authorize(
            index,
            &Attempt {
                identity: self.identity.as_ref(),
                source: self.source,
                destination: self.destination,
                local,
            },
        )
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
    index: watch::Receiver<Arc<Index>>,
    /// of the policies when the table was made
    version: u64,
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
    pub(crate) fn new(mut index: watch::Receiver<Arc<Index>>) -> Self {
        let version = index.borrow_and_update().policy_version();
        Self {
            version,
            index,
            flows: Rc::default(),
            next: Cell::new(0),
        }
    }

    /// Lists an outbound flow.
    pub(crate) fn enter(&self, open: OpenFlow) -> Place {
        self.insert(Entry {
            open,
            guarded: None,
        })
    }

    /// Lists an inbound flow and watches over it: the receiver resolves when a later policy denies it.
    pub(crate) fn guard(&self, open: OpenFlow, subject: Subject) -> (Place, oneshot::Receiver<()>) {
        let (cut, denied) = oneshot::channel();
        (
            self.insert(Entry {
                open,
                guarded: Some(Guarded { subject, cut }),
            }),
            denied,
        )
    }

    fn insert(&self, entry: Entry) -> Place {
        let key = self.next.replace(self.next.get() + 1);
        self.flows.borrow_mut().insert(key, entry);
        Place {
            key,
            flows: Rc::clone(&self.flows),
        }
    }

    /// A copy of the table.
    pub(crate) fn open_flows(&self) -> Vec<OpenFlow> {
        self.flows
            .borrow()
            .values()
            .map(|e| e.open.clone())
            .collect()
    }

    /// Asks policy again about every inbound flow whenever policies or its own workload changed.
    ///
    /// In slices, each on the newest state: neither this thread nor who changes the state waits for a long table. What
    /// changes meanwhile is another pass.
    pub(crate) async fn watch(&self) {
        let mut index = self.index.clone();
        // what changed since this table was made counts as a change
        let mut version = self.version;
        while index.changed().await.is_ok() {
            let now = index.borrow_and_update().policy_version();
            let policies_changed = std::mem::replace(&mut version, now) != now;
            let keys: Vec<u64> = self.flows.borrow().keys().copied().collect();
            for slice in keys.chunks(REVIEW_SLICE) {
                let state = Arc::clone(&index.borrow());
                let cut = self.review(&state, slice, policies_changed);
                drop(state);
                for flow in cut {
                    tracing::info!(pod = %flow.pod, src = %flow.source, dst = %flow.actual, "connection closed due to policy change");
                }
                tokio::task::yield_now().await;
            }
        }
    }

    /// Reviews the flows with these keys; gives those that were cut.
    fn review(&self, index: &Index, keys: &[u64], policies_changed: bool) -> Vec<OpenFlow> {
        let mut flows = self.flows.borrow_mut();
        let mut cut_flows = Vec::new();
        for key in keys {
            let Some(entry) = flows.get_mut(key) else {
                continue;
            };
            let Some(guarded) = &mut entry.guarded else {
                continue;
            };
            let local = &mut guarded.subject.local;
            let current =
                index.local_workload(&local.namespace, local.name(), &local.service_account);
            let moved = current.filter(|c| !Arc::ptr_eq(c, local)).cloned();
            let workload_changed = moved.is_some();
            if let Some(current) = moved {
                *local = current;
            }
            if !policies_changed && !workload_changed {
                continue;
            }
            let allowed = guarded
                .subject
                .authorize(index, &guarded.subject.local)
                .is_allowed();
            if let Some(Guarded { cut, .. }) = entry.guarded.take_if(|_| !allowed) {
                // the flow may be ending by itself
                let _ = cut.send(());
                cut_flows.push(entry.open.clone());
            }
        }
        cut_flows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESH: &str = r#"
workloads:
- uid: c//Pod/shop/cart-0
  name: cart-0
  namespace: shop
  serviceAccount: cart
  trustDomain: cluster.local
  workloadIps: ["10.1.0.7"]
  services: {}
policies: [POLICY]
"#;
    const DENY_WEB: &str = "{name: no-web, namespace: shop, scope: Namespace, action: Deny, dryRun: false, rules: [[[{principals: [!Exact cluster.local/ns/shop/sa/web]}]]]}";

    fn resources(policy: &str) -> Vec<mesh::Resource> {
        mesh::local::parse(&MESH.replace("POLICY", policy)).expect("the text is valid")
    }

    fn subject(index: &Index, account: &str) -> Subject {
        Subject {
            identity: Some(SpiffeId::new("cluster.local", "shop", account)),
            source: "10.1.0.9:40000".parse().unwrap(),
            destination: "10.1.0.7:8080".parse().unwrap(),
            local: index
                .local_workload("shop", "cart-0", "cart")
                .unwrap()
                .clone(),
        }
    }

    fn open() -> OpenFlow {
        OpenFlow {
            pod: "uid".into(),
            inbound: true,
            source: "10.1.0.9:40000".parse().unwrap(),
            original: None,
            actual: "10.1.0.7:8080".parse().unwrap(),
            protocol: "HBONE",
        }
    }

    #[tokio::test]
    async fn a_new_deny_cuts_whom_it_names_and_nobody_else() {
        let first = Index::build(resources(""));
        let (web, other) = (subject(&first, "web"), subject(&first, "other"));
        let sender = watch::Sender::new(Arc::new(first));
        let live = Live::new(sender.subscribe());
        let (_web, web_denied) = live.guard(open(), web);
        let (_other, mut other_denied) = live.guard(open(), other);
        let delta = sender.borrow().delta_to(&resources(DENY_WEB));
        sender.send_modify(|index| drop(Arc::make_mut(index).apply(delta)));
        tokio::select! {
            () = live.watch() => panic!("the sender is still there"),
            denied = web_denied => denied.expect("cut, not dropped"),
        }
        assert!(other_denied.try_recv().is_err());
        assert_eq!(
            live.open_flows().len(),
            2,
            "both are listed until their paths end"
        );
    }

    #[tokio::test]
    async fn a_change_that_denies_nobody_cuts_nobody() {
        let first = Index::build(resources(DENY_WEB));
        let other = subject(&first, "other");
        let state = Arc::new(Index::build(resources(DENY_WEB)));
        let live = Live::new(watch::Sender::new(state).subscribe());
        let (place, mut denied) = live.guard(open(), other);
        let keys: Vec<u64> = live.flows.borrow().keys().copied().collect();
        assert!(live.review(&first, &keys, true).is_empty());
        assert_eq!(denied.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        drop(place);
        assert!(live.open_flows().is_empty());
    }

    /// The same mesh with the policy in force for the workloads that list it, and what cart lists.
    fn listing(policies: &str) -> Index {
        let policy = DENY_WEB.replace("scope: Namespace", "scope: WorkloadSelector");
        let text = MESH.replace("POLICY", &policy).replace(
            "services: {}",
            &format!("services: {{}}\n  authorizationPolicies: [{policies}]"),
        );
        Index::build(mesh::local::parse(&text).expect("the text is valid"))
    }

    #[test]
    fn a_workload_that_now_lists_a_deny_is_enough() {
        let (before, after) = (listing(""), listing("shop/no-web"));
        let live = Live::new(watch::Sender::new(Arc::new(listing(""))).subscribe());
        let (_web, mut web) = live.guard(open(), subject(&before, "web"));
        let (_other, mut other) = live.guard(open(), subject(&before, "other"));
        let keys: Vec<u64> = live.flows.borrow().keys().copied().collect();
        assert!(live.review(&before, &keys, false).is_empty());
        assert_eq!(live.review(&after, &keys, false).len(), 1);
        assert!(web.try_recv().is_ok() && other.try_recv().is_err());
        // told once
        assert!(live.review(&after, &keys, true).is_empty());
    }

    #[tokio::test]
    async fn a_table_longer_than_a_slice_is_reviewed_to_its_end() {
        let first = Index::build(resources(""));
        let web = subject(&first, "web");
        let sender = watch::Sender::new(Arc::new(first));
        let live = Live::new(sender.subscribe());
        let flows = std::iter::repeat_with(|| live.guard(open(), web.clone()));
        let (_places, cuts): (Vec<_>, Vec<_>) = flows.take(2 * REVIEW_SLICE + 1).unzip();
        let delta = sender.borrow().delta_to(&resources(DENY_WEB));
        sender.send_modify(|index| drop(Arc::make_mut(index).apply(delta)));
        let all = async {
            for cut in cuts {
                cut.await.expect("cut, not dropped");
            }
        };
        tokio::select! {
            () = live.watch() => panic!("the sender is still there"),
            () = all => {}
        }
    }
}
