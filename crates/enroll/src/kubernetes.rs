//! The Kubernetes source: this node's Pods and the Namespaces, watched at the API server, and where each pod lives on this machine.
//!
//! Capture and listeners are left to others; what became of a pod comes back through the [`Reporter`], which writes it onto the pod.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::pod::PodEvent;
use crate::rules::Rules;

/// Annotation that tells istiod and people whether a pod is captured.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";

/// What the source needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node, as in `spec.nodeName` of its pods.
    pub node_name: String,
    /// The host's procfs.
    pub host_proc: PathBuf,
    /// Where pods' cgroups are looked for: the cgroup v2 root or a directory above all pods.
    pub cgroup_root: PathBuf,
    /// Which pods are in the mesh.
    pub rules: Rules,
    /// A kubeconfig file; none = the environment and files that every pod of a cluster has.
    pub kubeconfig: Option<PathBuf>,
    /// Shown to the API server as `ztunnel/<version>`.
    pub version: String,
}

/// Why the source cannot start. An API server that does not answer is no reason.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kubeconfig or the in-cluster settings cannot be used.
    #[error("Kubernetes API settings: {0}")]
    Settings(String),
    /// The client cannot be made from them.
    #[error("Kubernetes API client: {0}")]
    Client(#[source] Box<kube::Error>),
    /// The host's procfs cannot be read.
    #[error("{path}: {cause} (HOST_PROC has to be the host's procfs)")]
    Proc {
        /// What was opened.
        path: String,
        /// What the kernel said.
        #[source]
        cause: std::io::Error,
    },
}

/// What became of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// The kernel captures it, as was read back.
    Captured,
    /// It should be in the mesh, and is not or not fully.
    Pending {
        /// Why, in words for the pod's owner.
        reason: String,
    },
    /// It has left the mesh, or is gone.
    Left,
}

/// What is known of the API server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// Both lists were read once.
    pub synced: bool,
    /// What does not work now; empty when all does. What was read before stays in force.
    pub faults: Vec<String>,
}

/// Writes onto pods what became of them: the annotation [`REDIRECTION`] and Events.
#[derive(Debug, Clone)]
pub struct Reporter {}

impl Reporter {
    /// What became of a pod; the latest word counts. Never blocks.
    pub fn report(&self, uid: &Arc<str>, report: Report) {
        let _ = (uid, report);
    }

    /// How it stands with the API server.
    pub fn standing(&self) -> Standing {
        Standing::default()
    }
}

/// Makes the source: the future is to be run; it emits one [`PodEvent::Snapshot`] when both lists are in and every pod's place was
/// looked for, then changes only. It ends when the receiver of `events` is gone. Must be called within a tokio runtime.
///
/// Errors: [`Error`]; an API server that is away or refuses is retried for ever by the future.
pub async fn start(
    config: Config,
    events: mpsc::Sender<PodEvent>,
) -> Result<(Reporter, impl Future<Output = ()> + Send + 'static), Error> {
    let _ = config;
    Ok((Reporter {}, async move { events.closed().await }))
}
