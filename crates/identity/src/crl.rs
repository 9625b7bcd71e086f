//! Certificates that were taken back: lists from a file, asked at every handshake and over every open tunnel.
//!
//! A certificate is revoked when a list that its issuer has signed names its serial number; the issuer's name on a list is not
//! enough. Without such a list a certificate passes, and a list counts beyond its own end. [`Crl`] holds the lists,
//! [`Watch`] one tunnel's verified path. Leaves to others: reading the file (`ztunnel`), closing tunnels (`proxy`).

mod list;
pub(crate) mod path;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::sync::watch;
use tracing::debug;

use self::list::Lists;
pub use self::list::{CRL_BYTES_MAX, CrlError};
use self::path::{Asked, Link};

/// Which end of a tunnel this process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// It opened the connection; the peer is a server.
    Connecting,
    /// It accepted the connection; the peer is a client.
    Accepting,
}

/// The revocation lists in force, shared by all credentials. Cheap to clone; starts with none, so that nothing is revoked.
#[derive(Clone)]
pub struct Crl {
    shared: Arc<Shared>,
}

struct Shared {
    lists: watch::Sender<Arc<Lists>>,
    rejected: Counts,
    untracked: Counts,
}

#[derive(Default)]
struct Counts {
    connecting: AtomicU64,
    accepting: AtomicU64,
}

impl Counts {
    fn of(&self, side: Side) -> &AtomicU64 {
        match side {
            Side::Connecting => &self.connecting,
            Side::Accepting => &self.accepting,
        }
    }
}

impl Crl {
    /// No lists yet.
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                lists: watch::Sender::new(Arc::default()),
                rejected: Counts::default(),
                untracked: Counts::default(),
            }),
        }
    }

    /// Replaces the lists by those of a file, for the next handshakes and for all open tunnels; gives their number.
    ///
    /// - `file`: PEM if it begins with `-----BEGIN`: all its lists, other blocks are ignored; else one list in DER. An empty
    ///   file revokes nothing. At most [`CRL_BYTES_MAX`] bytes.
    ///
    /// Errors: a file that cannot be understood; the lists in force stay.
    /// Source: RFC 5280, section 5; RFC 7468, section 6.
    pub fn load(&self, file: &[u8]) -> Result<usize, CrlError> {
        let lists = Lists::parse(file)?;
        let count = lists.len();
        self.shared.lists.send_replace(Arc::new(lists));
        Ok(count)
    }

    /// Number of lists in force.
    pub fn lists(&self) -> usize {
        self.shared.lists.borrow().len()
    }

    /// Handshakes refused and tunnels closed because the peer's certificate is revoked; each tunnel counts once.
    pub fn rejected(&self, side: Side) -> u64 {
        self.shared.rejected.of(side).load(Ordering::Relaxed)
    }

    /// Tunnels that are not watched because their verified path is not known.
    pub fn untracked(&self, side: Side) -> u64 {
        self.shared.untracked.of(side).load(Ordering::Relaxed)
    }

    /// Watches the path of a finished handshake: what `peer` presented, verified as of `since`.
    pub(crate) fn watch(
        &self,
        side: Side,
        peer: &[CertificateDer<'_>],
        roots: &RootCertStore,
        since: SystemTime,
    ) -> Watch {
        let lists = self.shared.lists.subscribe();
        let path = match peer.split_first() {
            Some((leaf, intermediates)) => {
                let asked = Asked {
                    leaf,
                    intermediates,
                    roots,
                    now: unix(since),
                    side,
                };
                let current = Arc::clone(&lists.borrow());
                path::find(&asked, &current)
            }
            None => Err(webpki::Error::UnknownIssuer),
        };
        let path = match path {
            Ok(path) => path,
            Err(cause) => {
                debug!(%cause, ?side, "tunnel is not watched for revocation");
                self.shared
                    .untracked
                    .of(side)
                    .fetch_add(1, Ordering::Relaxed);
                return Watch::off();
            }
        };
        Watch(Some(Watched {
            shared: Arc::clone(&self.shared),
            lists,
            path,
            side,
            told: false,
        }))
    }

    /// The lists, for one handshake; `None` while there are none, so that nothing has to be looked for.
    pub(crate) fn current(&self) -> Option<Arc<Lists>> {
        let lists = self.shared.lists.borrow();
        (lists.len() > 0).then(|| Arc::clone(&lists))
    }

    /// Counts a handshake refused because of a revoked certificate.
    pub(crate) fn reject(&self, side: Side) {
        self.shared
            .rejected
            .of(side)
            .fetch_add(1, Ordering::Relaxed);
    }
}

fn unix(at: SystemTime) -> UnixTime {
    let since = at.duration_since(SystemTime::UNIX_EPOCH);
    UnixTime::since_unix_epoch(since.unwrap_or_default())
}

impl Default for Crl {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Crl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crl")
            .field("lists", &self.shared.lists.borrow().len())
            .finish_non_exhaustive()
    }
}

/// One open tunnel, watched for a certificate in its verified path that is taken back.
///
/// It asks by issuer and serial number alone: the end of a certificate or of a list never closes a tunnel.
pub struct Watch(Option<Watched>);

struct Watched {
    shared: Arc<Shared>,
    lists: watch::Receiver<Arc<Lists>>,
    /// From the leaf to the certificate below the root. `None`: revoked already.
    path: Option<Box<[Link]>>,
    side: Side,
    told: bool,
}

impl Watch {
    /// Watches nothing: there are no revocation lists in this process.
    pub fn off() -> Self {
        Self(None)
    }

    /// Whether [`Watch::revoked`] can ever return.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Returns once a certificate of the path is revoked, at once if it already is; otherwise never. Counts the tunnel the
    /// first time. Can be dropped and called again without missing anything.
    pub async fn revoked(&mut self) {
        let Some(watched) = &mut self.0 else {
            return std::future::pending().await;
        };
        while !watched.is_revoked() {
            if watched.lists.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
        if !std::mem::replace(&mut watched.told, true) {
            let rejected = watched.shared.rejected.of(watched.side);
            rejected.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Watched {
    fn is_revoked(&mut self) -> bool {
        let lists = Arc::clone(&self.lists.borrow_and_update());
        match &self.path {
            None => true,
            Some(_) if self.told => true,
            Some(path) => path.iter().any(|link| lists.revokes(&link.borrow())),
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("on", &self.is_on()).finish()
    }
}
