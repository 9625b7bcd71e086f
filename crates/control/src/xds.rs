//! The subscription to istiod's state: a stream that is opened again whenever it ends, for as long as the process lives.
//!
//! [`Client`] is the handle for everyone else: is the state there, what happened, look this one up. One [`Worker`] does the talking.
//! What is said is decided in [`subscriber`], when to try again in `retry`. Leaves to others: what the state means (`mesh`).

mod convert;
mod counts;
mod finder;
mod retry;
mod session;
pub mod subscriber;
mod worker;

use std::sync::Arc;

use tokio::sync::watch;

pub use self::counts::{Counts, TypeCounts};
pub use self::finder::{FindError, Finder};
pub use self::worker::Worker;
use crate::Publisher;
use crate::channel::{self, ConfigError, Server};
use crate::node::Node;

/// What to subscribe to, where, and as whom.
#[derive(Debug, Clone)]
pub struct Config {
    /// The server.
    pub channel: channel::Config,
    /// Who we are.
    pub node: Node,
    /// Ask for addresses one by one ([`Client::finder`]) instead of for all (`XDS_ON_DEMAND`).
    pub on_demand: bool,
}

/// Handle to the subscription, for any thread. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    shared: Arc<Shared>,
    on_demand: bool,
}

/// What handle and worker share.
#[derive(Debug)]
pub(crate) struct Shared {
    counts: counts::Book,
    asks: finder::Asks,
    synced: watch::Sender<bool>,
}

impl Client {
    /// Checks the settings; makes the handle, and the worker which the caller runs.
    pub fn new(config: Config, publisher: Publisher) -> Result<(Self, Worker), ConfigError> {
        let Config {
            channel,
            node,
            on_demand,
        } = config;
        let shared = Arc::new(Shared {
            counts: counts::Book::default(),
            asks: finder::Asks::default(),
            synced: watch::Sender::new(false),
        });
        let server = Server::new(channel)?;
        let worker = Worker::new(server, node, on_demand, publisher, Arc::clone(&shared));
        Ok((Self { shared, on_demand }, worker))
    }

    /// Whether all that must be known before traffic is handled is known. Never turns back.
    pub fn synced(&self) -> watch::Receiver<bool> {
        self.shared.synced.subscribe()
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        self.shared.counts.read()
    }

    /// Looks up single addresses. `None` unless the subscription is on demand: then there is nothing to look up.
    pub fn finder(&self) -> Option<Finder> {
        self.on_demand
            .then(|| Finder::new(Arc::clone(&self.shared)))
    }
}
