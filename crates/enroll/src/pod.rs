//! Pods as values: what a source sees, and what of it matters to the daemon.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;
use sys::Netns;

use crate::file::FileError;
use crate::rules::Why;

/// An open network namespace. Two handles are equal when they are of one namespace.
#[derive(Debug, Clone)]
pub struct NetnsHandle(pub Arc<Netns>);

impl PartialEq for NetnsHandle {
    fn eq(&self, other: &Self) -> bool {
        self.0.id() == other.0.id()
    }
}

impl Eq for NetnsHandle {}

/// Labels or annotations.
pub type Labels = BTreeMap<String, String>;

/// Where a pod is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
pub enum Phase {
    /// Accepted, not all containers run.
    Pending,
    /// Runs.
    #[default]
    Running,
    /// All containers ended well.
    Succeeded,
    /// All containers ended, one badly.
    Failed,
    /// The node does not answer.
    Unknown,
}

impl Phase {
    /// Whether the pod has ended for good.
    pub fn is_terminated(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// A pod as its source states it; whether it is ours is decided by [`crate::rules::Rules`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Kubernetes UID, the key everywhere.
    pub uid: Arc<str>,
    /// Pod name.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Service account.
    pub service_account: Arc<str>,
    /// Network namespace file, when known.
    pub netns: Option<PathBuf>,
    /// The namespace itself, where the source has opened it.
    pub netns_handle: Option<NetnsHandle>,
    /// cgroup v2 directory, when known.
    pub cgroup: Option<PathBuf>,
    /// Uses the node's network namespace.
    pub host_network: bool,
    /// Where it is in its life.
    pub phase: Phase,
    /// Labels.
    pub labels: Labels,
    /// Annotations.
    pub annotations: Labels,
}

/// A pod that is in the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSpec {
    /// Kubernetes UID.
    pub uid: Arc<str>,
    /// Pod name.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Service account.
    pub service_account: Arc<str>,
    /// Network namespace file; only a hint where there is a handle.
    pub netns: PathBuf,
    /// The namespace itself, where the source has opened it: processes behind the path may be gone.
    pub netns_handle: Option<NetnsHandle>,
    /// Inode of the network namespace when the source looked; `None` if it was not there.
    pub netns_inode: Option<u64>,
    /// cgroup v2 directory; none where the source does not know it, because others capture.
    pub cgroup: Option<PathBuf>,
    /// Inode of the cgroup directory when the source looked; `None` if it was not there.
    pub cgroup_inode: Option<u64>,
    /// What is captured.
    pub capture: CaptureOptions,
}

/// What of a pod's traffic is captured.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CaptureOptions {
    /// DNS queries: set by the pod's annotation; `None` is the default of the node.
    pub dns_capture: Option<bool>,
    /// Plaintext to the pod goes straight to the application.
    pub bypass_inbound: bool,
    /// Destinations that the pod's own connections reach directly.
    pub exclude_cidrs: Vec<IpNet>,
    /// Destination ports that the pod's own connections reach directly.
    pub exclude_ports: Vec<RangeInclusive<u16>>,
}

/// A pod that is seen, but is not in the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutPod {
    /// Kubernetes UID.
    pub uid: Arc<str>,
    /// Pod name.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Network namespace file, when known: capture that a predecessor left there must go.
    pub netns: Option<PathBuf>,
    /// cgroup v2 directory, when known.
    pub cgroup: Option<PathBuf>,
    /// Why it is out.
    pub why: Why,
}

/// One pod, in or out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sighting {
    /// In the mesh.
    In(Arc<PodSpec>),
    /// Not in the mesh.
    Out(Arc<OutPod>),
}

impl Sighting {
    /// Kubernetes UID.
    pub fn uid(&self) -> &Arc<str> {
        match self {
            Self::In(spec) => &spec.uid,
            Self::Out(pod) => &pod.uid,
        }
    }
}

/// What a source tells.
#[derive(Debug)]
pub enum PodEvent {
    /// All pods there are; others are gone.
    Snapshot(Vec<Sighting>),
    /// One pod is new or has changed.
    Seen(Sighting),
    /// One pod is gone.
    Gone {
        /// Kubernetes UID.
        uid: Arc<str>,
    },
    /// The source cannot be understood now; what it said before stays in force.
    Invalid(FileError),
}
