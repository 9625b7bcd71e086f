//! The current certificate of every identity of this process: fetched once, shared by all threads, renewed in time.
//!
//! [`Certs`] is the handle, used from any thread; one [`Worker`] runs the fetches on the control thread. What to fetch and
//! when is decided in `book`. Leaves to others: which identities there are, and that a pod gets only its own (`proxy`).

mod worker;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use mesh::SpiffeId;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::info;

pub use self::worker::Worker;
use crate::book::{Book, Now, Priority, State};
use crate::credential::Credential;
use crate::crl::Crl;
use crate::dump::CertDump;
use crate::issue::{IssueError, Issuer};
use crate::tls::Tls;

/// Longest wait for one answer of the issuer.
const ISSUE_DEADLINE: Duration = Duration::from_secs(30);

/// Settings of [`Certs`].
#[derive(Clone)]
pub struct Config {
    /// TLS parameters of all credentials.
    pub tls: Tls,
    /// Whether a certificate must be for the identity that was asked for. Default: yes. No only for a process with one identity.
    pub strict: bool,
    /// Longest wait for one answer of the issuer. Default: 30 s.
    pub issue_deadline: Duration,
    /// Revocation lists that peers are checked against. Default: none.
    pub crl: Option<Crl>,
    /// The wall clock. Default: the system's.
    pub wall: fn() -> SystemTime,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            tls: Tls::default(),
            strict: true,
            issue_deadline: ISSUE_DEADLINE,
            crl: None,
            wall: SystemTime::now,
        }
    }
}

/// Why there is no certificate. The texts are a contract.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IdentityError {
    /// The issuer gave none, and none that still holds is there.
    #[error(transparent)]
    Issue(#[from] Arc<IssueError>),
    /// Nobody knows yet which trust domain the pod is in.
    #[error("workload is unknown: {service_account}.{namespace} ({name})")]
    UnknownWorkload {
        /// The pod's name.
        name: String,
        /// Its namespace.
        namespace: String,
        /// Its service account.
        service_account: String,
    },
    /// The identity was dropped while it was waited for.
    #[error("the identity is no longer needed")]
    Forgotten,
    /// The worker is gone: the process ends.
    #[error("certificates are no longer fetched: the process ends")]
    Stopped,
    /// Too many identities on this node.
    #[error("too many identities at once")]
    TooMany,
}

type Outcome = Result<Arc<Credential>, Arc<IssueError>>;

/// The certificates of this process. Cheap to clone.
#[derive(Clone)]
pub struct Certs {
    shared: Arc<Shared>,
    wake: mpsc::Sender<()>,
}

struct Shared {
    config: Config,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    book: Book<Arc<Credential>>,
    /// Where those wait whose identity is initializing.
    doors: HashMap<SpiffeId, watch::Sender<Option<Outcome>>>,
    stopped: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Now {
        Now {
            mono: Instant::now().into_std(),
            wall: (self.config.wall)(),
        }
    }
}

impl Certs {
    /// Makes the handle and the worker, which the caller runs.
    pub fn new(issuer: Arc<dyn Issuer>, config: Config) -> (Self, Worker) {
        let shared = Arc::new(Shared {
            config,
            inner: Mutex::default(),
        });
        let (wake, woken) = mpsc::channel(1); // one pending wake-up is enough
        let worker = Worker::new(Arc::clone(&shared), woken, issuer);
        (Self { shared, wake }, worker)
    }

    /// As [`Certs::new`], with the worker as a task of the runtime this is called in.
    pub fn spawn(issuer: Arc<dyn Issuer>, config: Config) -> Self {
        let (certs, worker) = Self::new(issuer, config);
        tokio::spawn(worker.run());
        certs
    }

    /// The current certificate of `id`. Waits only while none was ever fetched; callable from any thread and runtime.
    ///
    /// Errors: at once the last failure while no valid certificate can be had; [`IdentityError::Forgotten`] if `id` is dropped
    /// meanwhile.
    pub async fn get(&self, id: &SpiffeId) -> Result<Arc<Credential>, IdentityError> {
        let mut door = match self.ask(id)? {
            Asked::Ready(credential) => return Ok(credential),
            Asked::Waiting(door) => door,
        };
        let _ = self.wake.try_send(()); // full: a wake-up is pending already
        match door.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(outcome)) => Ok(outcome.clone()?),
            _ if self.shared.lock().stopped => Err(IdentityError::Stopped),
            _ => Err(IdentityError::Forgotten),
        }
    }

    fn ask(&self, id: &SpiffeId) -> Result<Asked, IdentityError> {
        let now = self.shared.now().mono;
        let mut inner = self.shared.lock();
        let Inner {
            book,
            doors,
            stopped,
        } = &mut *inner;
        match book
            .want(id, Priority::RealTime, now)
            .map_err(|_| IdentityError::TooMany)?
        {
            State::Available { credential, .. } => Ok(Asked::Ready(Arc::clone(credential))),
            State::Unavailable { error, .. } => Err(Arc::clone(error).into()),
            State::Initializing(_) if *stopped => Err(IdentityError::Stopped),
            State::Initializing(_) => {
                let door = doors
                    .entry(id.clone())
                    .or_insert_with(|| watch::channel(None).0);
                Ok(Asked::Waiting(door.subscribe()))
            }
        }
    }

    /// The current certificate of `id` if there is one; asks for nothing.
    pub fn ready(&self, id: &SpiffeId) -> Option<Arc<Credential>> {
        match self.shared.lock().book.state(id) {
            Some(State::Available { credential, .. }) => Some(Arc::clone(credential)),
            _ => None,
        }
    }

    /// Fetches the certificate of `id` ahead of need, after those that are waited for.
    pub fn prefetch(&self, id: &SpiffeId) {
        let now = self.shared.now().mono;
        if self
            .shared
            .lock()
            .book
            .want(id, Priority::Warmup, now)
            .is_err()
        {
            info!(identity = %id, "certificate not prefetched: too many are waiting");
            return;
        }
        let _ = self.wake.try_send(()); // full: a wake-up is pending already
    }

    /// Drops `id`: its last pod is gone. Who waits for it gets [`IdentityError::Forgotten`].
    pub fn forget(&self, id: &SpiffeId) {
        let mut inner = self.shared.lock();
        inner.book.forget(id);
        inner.doors.remove(id);
    }

    /// All identities for `certificates` of the config dump, sorted by identity.
    pub fn dump(&self) -> Vec<CertDump> {
        let mut dumps: Vec<CertDump> = self
            .states()
            .into_iter()
            .map(|(id, state)| match state {
                Some(Ok(credential)) => CertDump::available(id.to_string(), &credential),
                Some(Err(error)) => CertDump::bare(id.to_string(), format!("Unavailable: {error}")),
                None => CertDump::bare(id.to_string(), "Initializing".into()),
            })
            .collect();
        dumps.sort_by(|a, b| a.identity.cmp(&b.identity));
        dumps
    }

    /// A copy of all states, `None` while initializing: printing certificates is too slow for under the lock.
    fn states(&self) -> Vec<(SpiffeId, Option<Outcome>)> {
        let inner = self.shared.lock();
        let copy = |state: &State<Arc<Credential>>| match state {
            State::Initializing(_) => None,
            State::Available { credential, .. } => Some(Ok(Arc::clone(credential))),
            State::Unavailable { error, .. } => Some(Err(Arc::clone(error))),
        };
        inner
            .book
            .states()
            .map(|(id, state)| (id.clone(), copy(state)))
            .collect()
    }
}

enum Asked {
    Ready(Arc<Credential>),
    Waiting(watch::Receiver<Option<Outcome>>),
}

impl fmt::Debug for Certs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certs")
            .field("identities", &self.shared.lock().book.states().count())
            .finish_non_exhaustive()
    }
}
