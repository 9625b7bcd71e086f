//! A control plane to try the daemon with: discovery and certificates over real gRPC and TLS, behaving as istiod does,
//! with handles to make it misbehave and a record of what its clients did.
//!
//! ```text
//! Istiod ── Shared: Store (what to say), Settings (how), Authority (keys), Record (what happened)
//!    │ xds, ca: a Server each, so that one can be down without the other
//!    └ Server: accept ─ TLS ─ HTTP/2 ─┬ ads::Discovery: a task per stream around a Session
//!                                     └ ca::Certificates
//! ```

pub mod authority;
pub mod gate;
pub mod messages;
pub mod record;
pub mod server;
pub mod session;
pub mod store;

mod ads;
mod ca;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use proto::discovery::DeltaDiscoveryResponse;
use rustls::ServerConfig;
use tokio::sync::broadcast;
use tonic::{Code, Request, Status};

pub use authority::{Authority, Issued, Signer};
pub use record::{Caller, Event, Record};
pub use server::{Place, Server};
pub use store::{Content, Kind, Store};

use crate::model::Model;

/// The cluster that clients must name: the default of a daemon.
pub const CLUSTER_ID: &str = "Kubernetes";
/// The token that is valid at the beginning.
pub const TOKEN: &str = "first-token";
/// Orders to streams that may wait.
const ORDERS_MAX: usize = 256;

/// How discovery behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Xds {
    /// As istiod.
    Serve,
    /// Streams are taken and read, nothing is answered.
    Silent,
    /// New streams are refused; open ones go on.
    Refuse(Code, String),
}

/// How the certificate service behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ca {
    /// Signs for this long, or for as long as was asked.
    Issue(Option<Duration>),
    /// Refuses.
    Refuse(Code, String),
    /// Takes requests and never answers.
    Hang,
    /// Answers with this chain, whatever was asked.
    Answer(Vec<String>),
}

/// What a test can turn while it runs.
pub struct Settings {
    /// tokens that are valid
    pub tokens: Vec<String>,
    /// discovery
    pub xds: Xds,
    /// certificates
    pub ca: Ca,
    tls: Arc<ServerConfig>,
}

/// An order to every open stream.
#[derive(Debug, Clone)]
pub(crate) enum Order {
    /// end, with a status or cleanly
    Sever(Option<(Code, String)>),
    /// send this
    Send(DeltaDiscoveryResponse),
}

/// Who runs where.
#[derive(Debug, Default)]
struct Placed {
    /// names of the nodes by their addresses
    nodes: BTreeMap<IpAddr, String>,
    /// identities of machines that call for themselves, by their addresses
    machines: BTreeMap<IpAddr, String>,
    /// node and identity of each pod
    pods: BTreeSet<(String, String)>,
}

/// What the parts share.
pub struct Shared {
    /// what there is to say
    pub store: Store,
    /// what happened
    pub record: Record,
    settings: Mutex<Settings>,
    authority: Mutex<Authority>,
    placed: Mutex<Placed>,
    orders: broadcast::Sender<Order>,
    streams: AtomicU64,
}

impl Shared {
    /// What can be turned.
    pub fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The authority for workloads.
    pub fn authority(&self) -> MutexGuard<'_, Authority> {
        self.authority
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn placed(&self) -> MutexGuard<'_, Placed> {
        self.placed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the caller may have certificates for that identity: only for pods of its own node.
    ///
    /// Errors: why not.
    fn may_be(&self, caller: &Caller, identity: &str) -> Result<(), String> {
        if self.machine(caller).as_deref() == Some(identity) {
            return Ok(());
        }
        let placed = self.placed();
        let node = caller.peer.and_then(|peer| placed.nodes.get(&peer));
        let node = node.ok_or_else(|| format!("no node is at {:?}", caller.peer))?;
        let pod = (node.clone(), identity.to_owned());
        if placed.pods.contains(&pod) {
            return Ok(());
        }
        Err(format!("no pod of {identity} is on {node}"))
    }

    /// The identity of a caller that is a workload itself.
    fn machine(&self, caller: &Caller) -> Option<String> {
        let peer = caller.peer?;
        self.placed().machines.get(&peer).cloned()
    }

    fn next_stream(&self) -> u64 {
        self.streams.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Who calls, checked.
    fn admit<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let caller = request
            .extensions()
            .get::<Caller>()
            .cloned()
            .unwrap_or_default();
        let checked = gate::caller(&caller, &self.settings().tokens, CLUSTER_ID);
        match checked {
            Ok(()) => Ok(caller),
            Err(why) => Err(self.refuse(caller, Status::unauthenticated(why))),
        }
    }

    fn refuse(&self, caller: Caller, status: Status) -> Status {
        let why = status.message().to_owned();
        self.record.add(Event::Refused { caller, why });
        status
    }
}

/// A control plane. Dropping it ends its threads.
pub struct Istiod {
    shared: Arc<Shared>,
    front: Signer,
    dir: PathBuf,
    /// discovery
    pub xds: Server,
    /// certificates
    pub ca: Server,
}

impl Istiod {
    /// Begins to serve.
    ///
    /// - `dir`: for the files that daemons are given: root and token
    /// - `names`: of the server's certificate, host names or addresses
    ///
    /// Errors: a file cannot be written or an address not be bound.
    pub fn start(dir: &Path, names: &[&str], xds: Place, ca: Place) -> Result<Self> {
        let front = Signer::root()?;
        let settings = Settings {
            tokens: vec![TOKEN.to_owned()],
            xds: Xds::Serve,
            ca: Ca::Issue(None),
            tls: front.server(&owned(names))?,
        };
        let shared = Arc::new(Shared {
            store: Store::default(),
            record: Record::default(),
            settings: Mutex::new(settings),
            authority: Mutex::new(Authority::new()?),
            placed: Mutex::default(),
            orders: broadcast::Sender::new(ORDERS_MAX),
            streams: AtomicU64::new(0),
        });
        let mut istiod = Self {
            xds: server::server(xds, Arc::clone(&shared)),
            ca: server::server(ca, Arc::clone(&shared)),
            shared,
            front,
            dir: dir.to_owned(),
        };
        authority::write(&istiod.root_file(), istiod.front.pem())?;
        authority::write(&istiod.token_file(), TOKEN)?;
        // daemons watch it before there is a file in it
        fs::create_dir_all(dir.join("crl")).context("make the directory of lists")?;
        istiod.xds.start()?;
        istiod.ca.start()?;
        Ok(istiod)
    }

    /// The root that the server's own certificate leads to.
    pub fn root_file(&self) -> PathBuf {
        self.dir.join("root-cert.pem")
    }

    /// The token that daemons show.
    pub fn token_file(&self) -> PathBuf {
        self.dir.join("istio-token")
    }

    /// A file for lists of revoked certificates; not there at the beginning.
    pub fn crl_file(&self) -> PathBuf {
        self.dir.join("crl").join("ca-crl.pem")
    }

    /// The variables that a daemon needs to come here instead of to files.
    pub fn env(&self) -> Vec<(String, String)> {
        let path = |path: PathBuf| path.to_string_lossy().into_owned();
        let pairs = [
            ("XDS_ADDRESS", format!("https://{}", self.xds.address())),
            ("CA_ADDRESS", format!("https://{}", self.ca.address())),
            ("XDS_ROOT_CA", path(self.root_file())),
            ("CA_ROOT_CA", path(self.root_file())),
            ("AUTH_TOKEN", path(self.token_file())),
            ("LOCAL_XDS_PATH", String::new()),
            ("EMBEDDED_CA_DIR", String::new()),
        ];
        pairs.map(|(key, value)| (key.to_owned(), value)).into()
    }

    /// What happened.
    pub fn record(&self) -> &Record {
        &self.shared.record
    }

    /// What can be turned.
    pub fn settings(&self) -> MutexGuard<'_, Settings> {
        self.shared.settings()
    }

    /// The authority for workloads.
    pub fn authority(&self) -> MutexGuard<'_, Authority> {
        self.shared.authority()
    }

    /// Changes what there is to say; it is pushed as one response per type.
    pub fn change<T>(&self, change: impl FnOnce(&mut Content) -> T) -> T {
        self.shared.store.change(change)
    }

    /// What there is to say.
    pub fn content(&self) -> MutexGuard<'_, Content> {
        self.shared.store.lock()
    }

    /// Tells that a node calls from this address.
    pub fn node_at(&self, address: IpAddr, node: &str) {
        let mut placed = self.shared.placed();
        placed.nodes.insert(address, node.to_owned());
    }

    /// Tells that a workload calls for itself from this address.
    pub fn machine_at(&self, address: IpAddr, identity: &str) {
        let mut placed = self.shared.placed();
        placed.machines.insert(address, identity.to_owned());
    }

    /// The node that calls from this address.
    pub fn node_of(&self, address: IpAddr) -> Option<String> {
        self.shared.placed().nodes.get(&address).cloned()
    }

    /// Learns which pods run where. [`Self::publish`] does that as well.
    pub fn place(&self, model: &Model) {
        let pods = model.pods.iter();
        let pods = pods.map(|pod| (pod.node.clone(), pod.identity()));
        self.shared.placed().pods = pods.collect();
    }

    /// Says what the model says, but for names that a test has spoken about itself.
    ///
    /// Errors: a policy of the model that cannot be read.
    pub fn publish(&self, model: &Model, hbone: &[String]) -> Result<()> {
        let fresh = messages::resources(model, hbone)?;
        self.place(model);
        self.change(|content| content.replace(fresh));
        Ok(())
    }

    /// Sets how discovery behaves, and lets open streams notice.
    pub fn behave(&self, xds: Xds) {
        self.settings().xds = xds;
        self.change(|_| ());
    }

    /// Ends every open stream, with a status or cleanly.
    pub fn sever(&self, status: Option<(Code, &str)>) {
        let status = status.map(|(code, why)| (code, why.to_owned()));
        // an error means that no stream is open
        let _ = self.shared.orders.send(Order::Sever(status));
    }

    /// Sends a response of the test's own making to every open stream.
    pub fn send(&self, response: DeltaDiscoveryResponse) {
        // an error means that no stream is open
        let _ = self.shared.orders.send(Order::Send(response));
    }

    /// Shows a certificate for other names from now on.
    ///
    /// Errors: a name that is none.
    pub fn names(&self, names: &[&str]) -> Result<()> {
        let tls = self.front.server(&owned(names))?;
        self.settings().tls = tls;
        Ok(())
    }

    /// Shows a certificate of a new root, writing that to the root file only if `tell`.
    ///
    /// Errors: of the file system.
    pub fn new_front(&mut self, names: &[&str], tell: bool) -> Result<()> {
        self.front = Signer::root()?;
        if tell {
            authority::write(&self.root_file(), self.front.pem())?;
        }
        self.names(names)
    }

    /// Writes the token that daemons show, by rename.
    ///
    /// Errors: of the file system.
    pub fn write_token(&self, token: &str) -> Result<()> {
        authority::write(&self.token_file(), token)
    }

    /// Ends both services at once, with all connections.
    pub fn stop(&mut self) {
        self.xds.stop();
        self.ca.stop();
    }

    /// Serves both again, at the same addresses.
    ///
    /// Errors: an address cannot be bound.
    pub fn restart(&mut self) -> Result<()> {
        self.xds.start()?;
        self.ca.start()
    }

    /// Ends the streams and connections of discovery at once and serves again.
    ///
    /// Errors: the address cannot be bound.
    pub fn bounce(&mut self) -> Result<()> {
        self.xds.stop();
        self.xds.start()
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}
