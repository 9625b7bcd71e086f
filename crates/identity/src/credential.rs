//! One certificate with its key, ready for both ends of a tunnel.
//!
//! Configurations are built once per certificate and shared; a new certificate is a new `Credential`, so whoever
//! takes one per TLS connection always has the current one. Leaves to others: when to renew (`certs`).

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use mesh::SpiffeId;
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::CertificateDer;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, InconsistentKeys, RootCertStore, ServerConfig};
use tracing::warn;

use crate::certs::Config;
use crate::crl::{Crl, Side, Watch};
use crate::issue::{IssueError, Issued, Key};
use crate::leaf::{Facts, Validity};
use crate::schedule::renew_at;
use crate::tls::{ALPN_H2, Tls};
use crate::verify::{ClientCheck, ServerCheck};

/// Client configurations kept per credential, one per set of expected identities. When full, all are dropped:
/// each costs only a few allocations to build again.
const CLIENT_CONFIGS_MAX: usize = 256;

/// A certificate with its key and its roots, as TLS configurations.
pub struct Credential {
    identity: SpiffeId,
    validity: Validity,
    certified: Arc<CertifiedKey>,
    roots: Vec<CertificateDer<'static>>,
    anchors: Arc<RootCertStore>,
    crl: Option<Crl>,
    server: Arc<ServerConfig>,
    /// Everything of a client configuration but the expected identities.
    client: ClientConfig,
    /// The check of servers, expecting nobody yet.
    check: ServerCheck,
    clients: Mutex<HashMap<Arc<[SpiffeId]>, Arc<ClientConfig>>>,
}

impl Credential {
    /// As [`Credential::with`], without revocation lists.
    pub fn new(id: &SpiffeId, issued: Issued, strict: bool, tls: &Tls) -> Result<Self, IssueError> {
        let config = Config {
            strict,
            tls: tls.clone(),
            ..Config::default()
        };
        Self::with(id, issued, &config)
    }

    /// Makes a credential from what an issuer gave for `id`; of the settings `strict`, `tls` and `crl` count.
    ///
    /// - `strict`: the first URI name of the leaf must be `id`. Otherwise the leaf's own first identity counts, and `id`
    ///   only if it has none (a process that holds just one identity and takes what it gets).
    ///
    /// Errors: an empty chain, no usable root, a leaf for someone else, a key that does not belong to the leaf.
    pub fn with(id: &SpiffeId, issued: Issued, config: &Config) -> Result<Self, IssueError> {
        let Config {
            strict, tls, crl, ..
        } = config;
        let Issued { chain, roots, key } = issued;
        let facts = Facts::parse(
            chain
                .first()
                .ok_or_else(|| IssueError::EmptyChain(id.clone()))?,
        )
        .map_err(IssueError::Leaf)?;
        let identity = leaf_identity(id, &facts, *strict)?;
        let (roots, anchors) = usable(roots);
        if roots.is_empty() {
            return Err(IssueError::NoRoots(id.clone()));
        }
        let (certified, anchors) = (
            Arc::new(certify(chain, &key).map_err(IssueError::Tls)?),
            Arc::new(anchors),
        );
        let check = ClientCheck::new(
            Arc::clone(&anchors),
            Arc::clone(tls.provider()),
            identity.trust_domain(),
            crl.clone(),
        )
        .map_err(IssueError::Tls)?;
        let server = server(&certified, check, tls).map_err(IssueError::Tls)?;
        let check = ServerCheck {
            roots: Arc::clone(&anchors),
            provider: Arc::clone(tls.provider()),
            expected: Arc::new([]),
            crl: crl.clone(),
        };
        let client = client(&certified, check.clone(), tls).map_err(IssueError::Tls)?;
        Ok(Self {
            identity,
            validity: facts.validity,
            certified,
            roots,
            anchors,
            crl: crl.clone(),
            server: Arc::new(server),
            client,
            check,
            clients: Mutex::default(),
        })
    }

    /// The identity the leaf stands for.
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// From when until when the leaf holds.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// When to ask for the successor; `jitter` as in [`renew_at`]. A leaf with an empty validity is to be renewed at once.
    pub fn renew_at(&self, jitter: f64) -> SystemTime {
        renew_at(self.validity.not_before, self.validity.not_after, jitter)
            .unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Leaf, then intermediates, as presented to peers.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// The roots peers are checked against.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// Watches over a tunnel made with this credential, once its handshake is through.
    ///
    /// - `side`: ours
    /// - `peer`: what the peer presented, leaf first
    /// - `since`: when the tunnel was made
    ///
    /// Costs nothing without revocation lists.
    pub fn watch(
        &self,
        side: Side,
        peer: Option<&[CertificateDer<'_>]>,
        since: SystemTime,
    ) -> Watch {
        match &self.crl {
            Some(crl) => crl.watch(side, peer.unwrap_or_default(), &self.anchors, since),
            None => Watch::off(),
        }
    }

    /// For the accepting side: asks for a client certificate of our trust domain, speaks `h2`, keeps no sessions.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// For the connecting side: the server must be one of `expected`; an empty set lets nobody pass.
    pub fn client_config(&self, expected: &[SpiffeId]) -> Arc<ClientConfig> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = clients.get(expected) {
            return Arc::clone(known);
        }
        let expected: Arc<[SpiffeId]> = expected.into();
        let mut config = self.client.clone();
        let check = self.check.expecting(Arc::clone(&expected));
        config.dangerous().set_certificate_verifier(Arc::new(check));
        let config = Arc::new(config);
        if clients.len() >= CLIENT_CONFIGS_MAX {
            clients.clear();
        }
        clients.insert(expected, Arc::clone(&config));
        config
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("identity", &self.identity)
            .field("validity", &self.validity)
            .field("key", &"[redacted]")
            .finish_non_exhaustive()
    }
}

fn leaf_identity(id: &SpiffeId, facts: &Facts, strict: bool) -> Result<SpiffeId, IssueError> {
    if strict {
        return match facts.uris.first().map(|uri| uri.parse::<SpiffeId>()) {
            Some(Ok(first)) if first == *id => Ok(first),
            _ => Err(IssueError::UnexpectedSan(id.clone())),
        };
    }
    Ok(facts
        .uris
        .iter()
        .find_map(|uri| uri.parse().ok())
        .unwrap_or_else(|| id.clone()))
}

/// Joins leaf and key, which must belong together.
fn certify(chain: Vec<CertificateDer<'static>>, key: &Key) -> Result<CertifiedKey, rustls::Error> {
    let certified = CertifiedKey::new(chain, any_supported_type(key.der())?);
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(certified),
        Err(why) => Err(why),
    }
}

/// Keeps the roots that can be parsed.
fn usable(roots: Vec<CertificateDer<'static>>) -> (Vec<CertificateDer<'static>>, RootCertStore) {
    let (mut kept, mut anchors) = (Vec::with_capacity(roots.len()), RootCertStore::empty());
    for root in roots {
        match anchors.add(root.clone()) {
            Ok(()) => kept.push(root),
            Err(cause) => warn!(%cause, "trust root skipped"),
        }
    }
    (kept, anchors)
}

fn server(
    certified: &Arc<CertifiedKey>,
    check: ClientCheck,
    tls: &Tls,
) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(tls.provider()))
        .with_protocol_versions(tls.versions())?
        .with_client_cert_verifier(Arc::new(check))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(certified))));
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    // No resumption in any version: every connection shows its certificate.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// A client configuration that trusts nobody yet.
fn client(
    certified: &Arc<CertifiedKey>,
    check: ServerCheck,
    tls: &Tls,
) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(tls.provider()))
        .with_protocol_versions(tls.versions())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(check))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(certified))));
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.enable_sni = false;
    config.enable_early_data = false;
    config.resumption = Resumption::disabled();
    Ok(config)
}
