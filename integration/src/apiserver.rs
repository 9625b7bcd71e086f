//! An API server of Kubernetes to try the daemon with: lists, watches, patches and events over real HTTP/1.1 and TLS,
//! behaving as the real one does, with handles to make it misbehave and a record of what was asked.
//!
//! ```text
//! ApiServer ── Shared: Store (objects, versions, history), Settings (rules, faults), Record (what was asked)
//!    │ Server: accept ─ TLS ─ HTTP/1.1 ─ answer: who, may they, what
//!    │                                     ├ one value: get, list, patch, create
//!    │                                     └ watching: a task per stream
//!    └ kubeconfig, token and root in files, as the daemon reads them
//! ```

pub mod events;
pub mod patch;
pub mod record;
pub mod route;
pub mod rules;
pub mod select;
pub mod status;
pub mod store;

mod answer;
mod reply;
mod view;
mod watching;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::{broadcast, watch};
use tokio_rustls::TlsAcceptor;

pub use record::{Record, Request};
pub use rules::Rule;
pub use store::{Content, Kind, Object, Store};

use crate::istiod::{Signer, authority};
use crate::serve::{Handler, Place, Server};
use route::Ask;

/// The token that is valid at the beginning.
pub const TOKEN: &str = "first-token";
/// Orders to streams that may wait.
const ORDERS_MAX: usize = 256;
/// Most time for a handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Time between bookmarks, about as the real one has it.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// Longest watch, about as the real one has it.
const WATCH_MAX: Duration = Duration::from_secs(1_800);

/// How a watch from a version that is too old is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// 200, and an error in the stream
    InStream,
    /// 410
    Status,
}

/// What happens to a request instead of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// this status; seconds to wait, if it names any
    Status(u16, Option<u32>),
    /// nothing, until the client gives up
    Hang,
    /// the connection ends
    Drop,
}

/// Something that goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// verb of the requests; empty = each
    pub verb: String,
    /// resource of the requests; empty = each
    pub resource: String,
    /// what happens
    pub how: How,
    /// how many times; none = until it is taken away
    pub left: Option<u32>,
}

impl Fault {
    /// A fault that stays.
    pub fn new(verb: &str, resource: &str, how: How) -> Self {
        Self {
            verb: verb.to_owned(),
            resource: resource.to_owned(),
            how,
            left: None,
        }
    }

    /// The same, a few times only.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.left = Some(times);
        self
    }

    fn fits(&self, ask: Option<&Ask>) -> bool {
        let is = |wanted: &str, given: Option<&str>| wanted.is_empty() || given == Some(wanted);
        is(&self.verb, ask.map(|ask| ask.verb.as_str()))
            && is(&self.resource, ask.map(|ask| ask.resource.as_str()))
            && self.left != Some(0)
    }
}

/// What a test can turn while it runs.
pub struct Settings {
    /// tokens that are valid
    pub tokens: Vec<String>,
    /// what the account may do
    pub rules: Vec<Rule>,
    /// what goes wrong; the first that fits counts
    pub faults: Vec<Fault>,
    /// how too old versions are refused
    pub gone: Gone,
    /// time between bookmarks of a stream that begins from now on
    pub bookmark_every: Duration,
    /// longest watch
    pub watch_max: Duration,
    /// rests of lists that were asked for in pieces: version and items by token
    rest: BTreeMap<String, (u64, Vec<Object>)>,
    pages: u64,
}

/// An order to every open watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// end cleanly, as after a timeout
    End,
    /// the connection breaks
    Break,
    /// the connection breaks in the middle of an event
    BreakInLine,
    /// a line that is no event
    Garbage,
    /// send a bookmark
    Bookmark,
    /// 410 in the stream
    Expire,
}

/// What the parts share.
pub struct Shared {
    pub(crate) store: Store,
    record: Record,
    settings: Mutex<Settings>,
    paused: watch::Sender<BTreeSet<Kind>>,
    orders: broadcast::Sender<Order>,
}

impl Shared {
    fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What goes wrong with a request, counted.
    fn fault(&self, ask: Option<&Ask>) -> Option<How> {
        let mut settings = self.settings();
        let fault = settings.faults.iter_mut().find(|fault| fault.fits(ask))?;
        fault.left = fault.left.map(|left| left - 1);
        Some(fault.how)
    }

    /// Waits until a kind is not withheld.
    async fn open(&self, kind: Kind) {
        let mut paused = self.paused.subscribe();
        // an error would mean that the server ends
        let _ = paused.wait_for(|kinds| !kinds.contains(&kind)).await;
    }
}

/// An API server. Dropping it ends its thread.
pub struct ApiServer {
    shared: Arc<Shared>,
    dir: PathBuf,
    server: Server,
}

impl ApiServer {
    /// Begins to serve.
    ///
    /// - `dir`: for the files that clients are given
    /// - `names`: of the server's certificate, host names or addresses
    ///
    /// Errors: a file cannot be written or the address not be bound.
    pub fn start(dir: &Path, names: &[&str], place: Place) -> Result<Self> {
        let front = Signer::root()?;
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let mut tls = (*front.server(&names)?).clone();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let shared = Arc::new(Shared {
            store: Store::default(),
            record: Record::default(),
            settings: Mutex::new(Settings {
                tokens: vec![TOKEN.to_owned()],
                rules: Rule::minimal(),
                faults: Vec::new(),
                gone: Gone::InStream,
                bookmark_every: BOOKMARK_EVERY,
                watch_max: WATCH_MAX,
                rest: BTreeMap::new(),
                pages: 0,
            }),
            paused: watch::Sender::default(),
            orders: broadcast::Sender::new(ORDERS_MAX),
        });
        let handler = handler(Arc::clone(&shared), Arc::new(tls));
        let mut api = Self {
            shared,
            dir: dir.to_owned(),
            server: Server::new(place, "apiserver", handler),
        };
        authority::write(&api.root_file(), front.pem())?;
        authority::write(&api.token_file(), TOKEN)?;
        api.server.start()?;
        authority::write(&api.kubeconfig(), &api.config().to_string())?;
        Ok(api)
    }

    /// The root that the server's certificate leads to.
    pub fn root_file(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// The token that clients show.
    pub fn token_file(&self) -> PathBuf {
        self.dir.join("token")
    }

    /// The file that leads clients here, for `KUBECONFIG`.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// Where it listens.
    pub fn address(&self) -> std::net::SocketAddr {
        self.server.address()
    }

    /// What was asked.
    pub fn record(&self) -> &Record {
        &self.shared.record
    }

    /// What can be turned.
    pub fn settings(&self) -> MutexGuard<'_, Settings> {
        self.shared.settings()
    }

    /// Adds a fault.
    pub fn fault(&self, fault: Fault) {
        self.settings().faults.push(fault);
    }

    /// Takes all faults away.
    pub fn heal(&self) {
        self.settings().faults.clear();
    }

    /// Withholds a kind: watches show no changes of it, and lists and gets of it wait. Or not any more.
    pub fn withhold(&self, kind: Kind, withheld: bool) {
        self.shared.paused.send_modify(|kinds| {
            if withheld {
                kinds.insert(kind);
            } else {
                kinds.remove(&kind);
            }
        });
    }

    /// Changes what is stored.
    pub fn change<T>(&self, change: impl FnOnce(&mut Content) -> T) -> T {
        self.shared.store.change(change)
    }

    /// What is stored.
    pub fn content(&self) -> MutexGuard<'_, Content> {
        self.shared.store.lock()
    }

    /// Word of changes.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.shared.store.subscribe()
    }

    /// A way to the content that outlives a borrow of this value.
    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Changes one object; nothing happens if it is not there.
    pub fn edit(&self, kind: Kind, namespace: &str, name: &str, edit: impl FnOnce(&mut Value)) {
        self.change(|content| {
            if let Some(object) = content.get(kind, namespace, name) {
                let mut object = (**object).clone();
                edit(&mut object);
                content.put(kind, object);
            }
        });
    }

    /// Makes a namespace, or sets its labels.
    pub fn namespace(&self, name: &str, labels: &BTreeMap<String, String>) {
        self.change(|content| {
            let old = content.get(Kind::Namespaces, "", name);
            let mut object = old.map_or_else(
                || {
                    json!({
                        "kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name},
                        "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
                    })
                },
                |old| (**old).clone(),
            );
            object["metadata"]["labels"] = json!({"kubernetes.io/metadata.name": name});
            for (key, value) in labels {
                object["metadata"]["labels"][key] = json!(value);
            }
            content.put(Kind::Namespaces, object);
        });
    }

    /// A pod as it is stored.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<Object> {
        self.content().get(Kind::Pods, namespace, name).cloned()
    }

    /// An annotation of a pod.
    pub fn annotation(&self, namespace: &str, name: &str, key: &str) -> Option<String> {
        let pod = self.pod(namespace, name)?;
        let value = pod["metadata"]["annotations"].get(key)?;
        value.as_str().map(str::to_owned)
    }

    /// Events about a pod, in the form of the core group.
    pub fn events(&self, pod: &str) -> Vec<Object> {
        let content = self.content();
        let about = |event: &&Object| event["involvedObject"]["name"] == pod;
        content.list(Kind::Events).filter(about).cloned().collect()
    }

    /// Tells every open watch.
    pub fn order(&self, order: Order) {
        // an error means that no watch is open
        let _ = self.shared.orders.send(order);
    }

    /// Forgets the history and breaks all watches: whoever comes back with a version gets 410.
    pub fn forget(&self) {
        self.change(Content::compact);
        self.settings().rest.clear();
        self.order(Order::Break);
    }

    /// Goes away at once, with all connections; the port is closed.
    pub fn stop(&mut self) {
        self.server.stop();
    }

    /// Comes back at the same address, with what it held.
    ///
    /// Errors: the address cannot be bound.
    pub fn restart(&mut self) -> Result<()> {
        self.server.start()
    }

    fn config(&self) -> Value {
        let file = |path: PathBuf| path.to_string_lossy().into_owned();
        json!({
            "kind": "Config", "apiVersion": "v1",
            "clusters": [{"name": "world", "cluster": {
                "server": format!("https://{}", self.server.address()),
                "certificate-authority": file(self.root_file()),
            }}],
            "users": [{"name": "ztunnel", "user": {"tokenFile": file(self.token_file())}}],
            "contexts": [{"name": "world", "context": {"cluster": "world", "user": "ztunnel"}}],
            "current-context": "world",
        })
    }
}

fn handler(shared: Arc<Shared>, tls: Arc<ServerConfig>) -> Handler {
    Arc::new(move |tcp, _| {
        let (shared, tls) = (Arc::clone(&shared), Arc::clone(&tls));
        // how a connection ends shows on the client's side
        Box::pin(async move { drop(connection(tcp, shared, tls).await) })
    })
}

async fn connection(tcp: TcpStream, shared: Arc<Shared>, tls: Arc<ServerConfig>) -> Result<()> {
    tcp.set_nodelay(true)?;
    let accepted = TlsAcceptor::from(tls).accept(tcp);
    let tls = tokio::time::timeout(HANDSHAKE_MAX, accepted).await??;
    let service = service_fn(move |request| answer::answer(Arc::clone(&shared), request));
    http1::Builder::new()
        .serve_connection(TokioIo::new(tls), service)
        .await?;
    Ok(())
}
