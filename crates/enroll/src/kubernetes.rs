//! The Kubernetes source: this node's Pods and the Namespaces, watched at the API server, and where each pod lives on this machine.
//!
//! Capture and listeners are left to others; what became of a pod comes back through the [`Reporter`], which writes it onto the pod.

mod api;
mod desk;
mod faults;
mod follow;
mod look;
mod permissions;
mod source;
mod state;
mod writer;

use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderValue;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use tokio::sync::{Notify, mpsc};

pub use self::permissions::{Allowed, AskError, PERMISSIONS, Permission, permissions};

use self::desk::Desk;
use self::faults::Faults;
use self::follow::What;
use self::source::Source;
use self::state::State;
use crate::place::Finder;
use crate::pod::PodEvent;
use crate::rules::Rules;

/// Annotation that tells istiod and people whether a pod is captured.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";

/// Changes of one resource that wait for the source.
const INPUTS_MAX: usize = 256;
/// Longest wait for a connection to the API server.
const CONNECT: Duration = Duration::from_secs(10);
const PODS: What = What {
    list: "list pods",
    watch: "watch pods",
};
const NAMESPACES: What = What {
    list: "list namespaces",
    watch: "watch namespaces",
};

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

/// What source, writer and reporter share.
pub(crate) struct Shared {
    desk: Mutex<Desk>,
    notify: Notify,
    faults: Faults,
    synced: AtomicBool,
}

impl Shared {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes onto pods what became of them: the annotation [`REDIRECTION`] and Events.
#[derive(Clone)]
pub struct Reporter {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Reporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reporter").finish_non_exhaustive()
    }
}

impl Reporter {
    /// What became of a pod; the latest word counts. Never blocks.
    pub fn report(&self, uid: &Arc<str>, report: Report) {
        self.shared.desk().report(uid, report, Instant::now());
        self.shared.notify.notify_one();
    }

    /// Another process writes from now on: what is queued is dropped, and later reports and sightings change nothing. Never blocks.
    /// A request that the API server already has cannot be recalled.
    pub fn retire(&self) {
        self.shared.desk().retire();
        self.shared.notify.notify_one();
    }

    /// How it stands with the API server.
    pub fn standing(&self) -> Standing {
        Standing {
            synced: self.shared.synced.load(Ordering::Relaxed),
            faults: self.shared.faults.texts(),
        }
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
    let finder = Finder::new(&config.host_proc).map_err(|cause| Error::Proc {
        path: config.host_proc.display().to_string(),
        cause,
    })?;
    let client = client(&config).await?;
    let shared = Arc::new(Shared {
        desk: Mutex::new(Desk::new(Instant::now())),
        notify: Notify::new(),
        faults: Faults::default(),
        synced: AtomicBool::new(false),
    });
    let reporter = Reporter {
        shared: shared.clone(),
    };
    let (pods, pods_in) = mpsc::channel(INPUTS_MAX);
    let (namespaces, namespaces_in) = mpsc::channel(INPUTS_MAX);
    let source = Source {
        state: State::new(config.rules),
        finder: Arc::new(finder),
        cgroup_root: config.cgroup_root,
        shared: shared.clone(),
        events,
        pods: pods_in,
        namespaces: namespaces_in,
    };
    let run = async move {
        let fields = format!("spec.nodeName={}", config.node_name);
        let faults = &shared.faults;
        let pods = follow::follow(
            Api::all(client.clone()),
            &fields,
            PODS,
            faults.clone(),
            pods,
        );
        let spaces = follow::follow(
            Api::all(client.clone()),
            "",
            NAMESPACES,
            faults.clone(),
            namespaces,
        );
        let write = writer::write(client, shared.clone(), config.node_name);
        tokio::select! {
            () = source.run() => {}
            // the watches go on for ever
            ((), (), ()) = async { tokio::join!(pods, spaces, write) } => {}
        }
    };
    Ok((reporter, run))
}

async fn client(config: &Config) -> Result<Client, Error> {
    let settings = |error: &dyn std::error::Error| Error::Settings(error.to_string());
    let mut kube = match &config.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).map_err(|error| settings(&error))?;
            let options = KubeConfigOptions::default();
            kube::Config::from_custom_kubeconfig(file, &options)
                .await
                .map_err(|error| settings(&error))?
        }
        None => kube::Config::incluster().map_err(|error| settings(&error))?,
    };
    kube.connect_timeout = Some(CONNECT);
    let agent = format!("ztunnel/{}", config.version);
    let agent = HeaderValue::try_from(agent).map_err(|error| settings(&error))?;
    kube.headers.push((http::header::USER_AGENT, agent));
    Client::try_from(kube).map_err(|error| Error::Client(Box::new(error)))
}
