//! The data plane: takes captured connections of enrolled pods, asks `mesh` what to do with each, does it, reports.
//!
//! One file per step, one per path; `shard` holds the data threads. Namespaces, raw sockets, files and enrolment are left
//! to the assembly, which implements [`needs`].
#![forbid(unsafe_code)]

mod accept;
mod budget;
mod connect;
mod copy;
pub mod dns;
mod failure;
mod identify;
mod inbound;
mod live;
mod lookup;
pub mod needs;
mod outbound;
mod passthrough;
mod pod;
mod proxy_header;
mod refusals;
mod report;
mod shard;
pub mod socks;
mod tunnels;

use std::sync::Arc;

use arc_swap::ArcSwap;
use mesh::{Index, Str, Workload};
use telemetry::access::Access;
use telemetry::metrics::Registry;
use tokio::sync::watch;

pub use budget::{
    DNS_TCP_PER_POD_MAX, HANDSHAKES_PER_POD_MAX, HBONE_PER_POD_MAX, LOOKUPS_PER_POD_MAX,
    OUTBOUND_PER_POD_MAX, PLAINTEXT_PER_POD_MAX, SOCKS_PER_POD_MAX, Share,
};
pub use failure::Failure;
pub use live::OpenFlow;
pub use pod::{Listeners, Phase, Pod, PodName, PodOptions};
pub use refusals::{REFUSALS_KEPT, Refusal, Refusals};
pub use shard::{Handle, Shards};

/// Settings of the data plane.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// name of the network this node is on, as in the mesh state
    pub network: Str,
    /// HTTP/2 parameters and pool bounds
    pub hbone: hbone::Settings,
    /// answer a CONNECT with the local workload's attributes, and read the peer's
    pub response_baggage: bool,
    /// deliver PROXY-protocol tunnels on the pod's loopback
    pub localhost_app_tunnel: bool,
    /// log policy decisions at info instead of debug
    pub policy_info: bool,
    /// refuse IPv6 connections of pods
    pub ipv4_only: bool,
    /// pods have a SOCKS5 listener, which makes its port one of ours
    pub socks: bool,
    /// how names are answered
    pub dns: DnsConfig,
}

/// Settings of the DNS proxy.
#[derive(Debug, Clone, Default)]
pub struct DnsConfig {
    /// pods' questions come to the daemon, where a pod does not say otherwise
    pub on: bool,
    /// suffix of the cluster's service names, such as `cluster.local`
    pub cluster_domain: Str,
    /// whose Service is preferred when several namespaces have a host name
    pub preferred_namespace: Option<Str>,
    /// search domains that clients append; none = those of a pod (`<ns>.svc.<D>`, `svc.<D>`, `<D>`)
    pub search: Option<Arc<[Str]>>,
}

/// What all data threads read.
pub struct Shared {
    /// settings
    pub config: Config,
    /// the mesh state; one snapshot is borrowed per decision
    pub index: watch::Receiver<Arc<Index>>,
    /// the same, for decisions: read without a lock, and never older than what `index` tells
    pub state: Arc<ArcSwap<Index>>,
    /// certificates of the local pods
    pub certs: identity::Certs,
    /// access log
    pub access: Access,
    /// metrics; each thread takes a shard of its own
    pub registry: Registry,
    /// refusals with their reasons
    pub refusals: Refusals,
    /// addresses of endpoints that are known by host name
    pub resolver: Arc<dyn needs::Resolver>,
    /// asks for mesh state; none = all of it is there
    pub finder: Option<Arc<dyn needs::Finder>>,
}

impl Shared {
    /// The mesh state of now.
    fn state(&self) -> Arc<Index> {
        self.state.load_full()
    }

    /// Asks policy about an inbound flow and logs what it said.
    fn decide(&self, subject: &live::Subject, local: &Workload) -> Result<(), Failure> {
        let verdict = {
            let index = self.state();
            subject.authorize(&index, current(&index, local))
        };
        for note in &verdict.notes {
            let policy = note.policy();
            let policy = policy.as_deref();
            if note.is_warning() {
                tracing::warn!(target: "ztunnel::state", policy, "{note}");
            } else if self.config.policy_info {
                tracing::info!(target: "ztunnel::state", policy, "{note}");
            } else {
                tracing::debug!(target: "ztunnel::state", policy, "{note}");
            }
        }
        verdict.outcome.map_err(Failure::Denied)
    }
}

/// The pod's workload in the state that is asked, so that a list of policies that changed since the flow was accepted counts;
/// `local` itself where it is no longer there.
fn current<'a>(index: &'a Index, local: &'a Workload) -> &'a Workload {
    let found = index.local_workload(&local.namespace, local.name(), &local.service_account);
    found.map_or(local, |workload| workload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workload_of_the_state_counts() {
        let index = |listed: &str| {
            let text = format!(
                "workloads: [{{uid: u/cart-0, name: cart-0, namespace: shop, serviceAccount: cart, workloadIps: [], services: {{}}, authorizationPolicies: [{listed}]}}]"
            );
            Index::build(mesh::local::parse(&text).expect("a good file"))
        };
        let (before, after) = (index(""), index("shop/p"));
        let local = before.workload("u/cart-0").expect("in the text");
        let listed = |index: &Index| current(index, local).authorization_policies.len();
        assert_eq!((listed(&before), listed(&after)), (0, 1));
        assert_eq!(listed(&Index::default()), 0);
    }
}
