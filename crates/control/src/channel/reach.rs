//! One connection to a server of the control plane for the sake of seeing that it can be made; nothing is said on it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use identity::Validity;

use super::connector::Connector;
use super::{Config, ConfigError, DialError, Server};

/// A server that was reached and is who it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// The address that took the connection.
    pub address: SocketAddr,
    /// From when until when its certificate holds; `None` when that cannot be read.
    pub validity: Option<Validity>,
    /// Time until the handshake was over, from the name on.
    pub took: Duration,
}

/// Why a server cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// The settings cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No connection, or not with the one who should be there.
    #[error(transparent)]
    Dial(#[from] DialError),
}

/// Resolves the name, connects, shakes hands, and lets go, within the bounds of `config.timing`.
///
/// Errors: which of these steps failed, and why.
pub async fn reach(config: Config) -> Result<Reached, ReachError> {
    let server = Server::new(config)?;
    let trust = server.trust(&server.roots()?)?;
    let since = Instant::now();
    let (stream, address) = Connector::dial(server.connector(trust)).await?;
    let took = since.elapsed();
    let (_, session) = stream.get_ref();
    let leaf = session.peer_certificates().and_then(<[_]>::first);
    Ok(Reached {
        address,
        validity: leaf.and_then(|leaf| Validity::of(leaf).ok()),
        took,
    })
}
