//! Pods of istio-cni's node agent: a client of its socket, over the protocol ZDS.
//!
//! Its rules are in `zds/book.rs`, the packets in `zds/packet.rs`, one connection in `zds/session.rs`; here is which comes
//! after which. Starting and stopping is left to who takes the orders.

mod backoff;
mod book;
pub mod laws;
mod packet;
mod place;
mod session;
mod wire;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use self::backoff::Backoff;
use self::book::Book;
use self::session::{End, Session};
use self::wire::Wire;
use crate::pod::PodSpec;

/// What is to be done for the agent, one at a time.
#[derive(Debug)]
pub enum Order {
    /// Serve this pod. One that serves already under this UID in another namespace is cut first; in the same, there is
    /// nothing to do.
    Start {
        /// the pod, with a handle of its network namespace
        spec: Arc<PodSpec>,
        /// told once all its listeners are there, or why they are not
        done: oneshot::Sender<Result<(), String>>,
    },
    /// Cut this pod at once; an unknown one is no matter.
    Stop {
        /// Kubernetes UID
        uid: Arc<str>,
        /// told once its listeners close
        done: oneshot::Sender<()>,
    },
}

/// Where the client stands with its agent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// the agent is there
    pub connected: bool,
    /// it has told of all pods on this connection
    pub snapshot: bool,
    /// pods that could not be started, tried again every now and then
    pub pending: Vec<Pending>,
}

impl Standing {
    /// Whether every pod that the agent knows is served.
    pub fn is_ready(&self) -> bool {
        self.connected && self.snapshot && self.pending.is_empty()
    }
}

/// A pod that could not be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// Kubernetes UID
    pub uid: Arc<str>,
    /// pod name
    pub name: Arc<str>,
    /// pod namespace
    pub namespace: Arc<str>,
    /// why
    pub error: String,
}

/// The agent did what the protocol forbids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A pod was added without its name.
    #[error("add without workload info")]
    NoInfo,
    /// A pod was kept after the snapshot.
    #[error("keep after the snapshot")]
    LateKeep,
    /// The snapshot ended twice on one connection.
    #[error("second snapshot on one connection")]
    SecondSnapshot,
}

/// Settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// the agent's socket
    pub path: PathBuf,
    /// give up on a protocol error, instead of connecting anew
    pub strict_exit: bool,
}

/// Pause after the first failed attempt; each further one takes twice the pause before.
const PAUSE: Duration = Duration::from_millis(20);

/// Follows the agent, for ever; must run within a runtime that has I/O and time. Returns for a protocol error, when
/// [`Config::strict_exit`] wants it.
pub async fn run(
    config: Config,
    orders: mpsc::Sender<Order>,
    standing: watch::Sender<Standing>,
) -> ProtocolError {
    let mut book = Book::default();
    // attempts that came to nothing, and connections that broke the protocol
    let (mut attempts, mut faults) = (Backoff::new(PAUSE), Backoff::new(PAUSE));
    loop {
        let wire = match Wire::open(&config.path).await {
            Ok(wire) => wire,
            Err(error) => {
                let pause = attempts.next();
                tracing::warn!(path = %config.path.display(), %error, ?pause, "istio-cni cannot be reached, trying again");
                tokio::time::sleep(pause).await;
                continue;
            }
        };
        tracing::info!(path = %config.path.display(), "connected to istio-cni");
        let mut session = Session::new(wire, &mut book, &orders, &standing);
        let end = session.run().await;
        let served = session.has_served();
        standing.send_replace(Standing::default());
        if let End::Protocol(error) = end {
            tracing::error!(%error, "istio-cni broke the protocol");
            if config.strict_exit {
                return error;
            }
            tokio::time::sleep(faults.next()).await;
            continue;
        }
        faults.reset();
        tracing::info!(why = %end, "connection to istio-cni ended, connecting anew");
        if served {
            attempts.reset();
        } else {
            // an agent that talks nonsense, or hangs up, has its pace kept down
            tokio::time::sleep(attempts.next()).await;
        }
    }
}
