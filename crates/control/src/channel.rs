//! The authenticated way to a server of the control plane: who it must be, and what it is told about us.
//!
//! Always TLS, always HTTP/2. Leaves to others: what is said on it (`xds`, `ca`), and when to try again.

mod connector;
mod reach;
mod verify;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::uri::Scheme;
use http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use identity::{ALPN_H2, Tls};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tonic::transport::{Channel, Endpoint};

pub use self::connector::DialError;
use self::connector::{Connector, Target};
pub use self::reach::{ReachError, Reached, reach};
use crate::roots::Material;
pub use crate::roots::{Roots, RootsError};
pub use crate::token::{Token, TokenError};

/// Port of an address that names none.
const PORT_HTTPS: u16 = 443;
/// HTTP/2 receive windows in bytes, of the stream and of the connection: what may be under way of a large push, and what it may cost
/// in memory while its beginning is worked in.
const WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Largest list of headers that the server may send, in bytes.
const HEADER_LIST_BYTES_MAX: u32 = 64 * 1024;
/// Headers that belong to the connection; HTTP/2 forbids them in a request (RFC 9113, section 8.2.2).
const HOP_BY_HOP: [&str; 6] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];
/// The header that says which cluster the token is from.
const CLUSTER_ID: HeaderName = HeaderName::from_static("clusterid");

/// How to reach a server of the control plane, and how to prove who we are.
#[derive(Clone)]
pub struct Config {
    /// `https://host:port`; a path is ignored.
    pub address: String,
    /// Who vouches for the server.
    pub roots: Roots,
    /// A name that the server's certificate may have instead of the address's host.
    pub alternative_name: Option<String>,
    /// Sent as bearer token, together with `cluster_id`. `None`: no authentication.
    pub token: Option<Token>,
    /// The cluster that the token is from.
    pub cluster_id: String,
    /// Further headers of each call, name and value.
    pub headers: Vec<(String, String)>,
    /// Versions and suites.
    pub tls: Tls,
    /// Bounds on waiting.
    pub timing: Timing,
}

impl Config {
    /// A server at `address` that `roots` vouch for; no token, cluster `Kubernetes`.
    pub fn new(address: impl Into<String>, roots: Roots) -> Self {
        Self {
            address: address.into(),
            roots,
            alternative_name: None,
            token: None,
            cluster_id: "Kubernetes".to_owned(),
            headers: Vec::new(),
            tls: Tls::default(),
            timing: Timing::default(),
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Config")
            .field("address", &self.address)
            .field("roots", &self.roots)
            .field("alternative_name", &self.alternative_name)
            .field("token", &self.token)
            .field("cluster_id", &self.cluster_id)
            .field("headers", &names) // values may be secrets
            .field("tls", &self.tls)
            .field("timing", &self.timing)
            .finish()
    }
}

/// How long to wait for a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Until its name is resolved. Default 10 s.
    pub resolve: Duration,
    /// Until TCP is connected, for each of its addresses. Default 5 s.
    pub connect: Duration,
    /// Until the TLS handshake is over. Default 10 s.
    pub handshake: Duration,
    /// Between an answer to a HTTP/2 PING and the next PING, while a call is open. Default 30 s.
    pub ping_interval: Duration,
    /// Until a PING is answered; then the connection counts as dead. Default 10 s.
    pub ping_timeout: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            resolve: Duration::from_secs(10),
            connect: Duration::from_secs(5),
            handshake: Duration::from_secs(10),
            ping_interval: Duration::from_secs(30),
            ping_timeout: Duration::from_secs(10),
        }
    }
}

/// What is wrong with a [`Config`]. Found before anything is sent.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not an address.
    #[error("address {address:?}: expected https://<host>:<port>: {why}")]
    Address {
        /// As given.
        address: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Neither a DNS name nor an IP address.
    #[error("alternative server name {0:?}: expected a DNS name or an IP address")]
    AlternativeName(String),
    /// A header that cannot be sent.
    #[error("header {0:?}: its name or its value cannot be sent")]
    Header(String),
    /// A cluster id that cannot be sent.
    #[error("cluster id {0:?}: cannot be sent as a header")]
    ClusterId(String),
    /// No roots.
    #[error(transparent)]
    Roots(#[from] RootsError),
    /// The TLS library refuses the parameters.
    #[error("TLS: {0}")]
    Tls(String),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// Nobody to trust.
    #[error(transparent)]
    Trust(#[from] ConfigError),
    /// The server cannot be reached, or is not who it should be.
    #[error(transparent)]
    Dial(tonic::transport::Error),
}

/// A checked [`Config`].
#[derive(Debug)]
pub(crate) struct Server {
    config: Config,
    target: Target,
    alternative: Option<ServerName<'static>>,
    endpoint: Endpoint,
    /// Those that never change.
    headers: HeaderMap,
}

impl Server {
    pub(crate) fn new(config: Config) -> Result<Self, ConfigError> {
        let (uri, target) = parse(&config.address)?;
        let alternative = config
            .alternative_name
            .as_ref()
            .map(|name| {
                ServerName::try_from(name.clone())
                    .map_err(|_| ConfigError::AlternativeName(name.clone()))
            })
            .transpose()?;
        Ok(Self {
            headers: headers(&config)?,
            endpoint: endpoint(uri, config.timing),
            target,
            alternative,
            config,
        })
    }

    /// As given.
    pub(crate) fn address(&self) -> &str {
        &self.config.address
    }

    /// What its roots are made of at the moment.
    pub(crate) fn roots(&self) -> Result<Material, ConfigError> {
        Ok(self.config.roots.read()?)
    }

    /// TLS that trusts `roots`, which [`Server::roots`] gave.
    pub(crate) fn trust(&self, roots: &Material) -> Result<Arc<ClientConfig>, ConfigError> {
        let store = self.config.roots.store(roots)?;
        let tls = |e: &dyn fmt::Display| ConfigError::Tls(e.to_string());
        let provider = Arc::clone(self.config.tls.provider());
        let verifier = verify::Verifier::new(store, &provider, self.alternative.clone())
            .map_err(|e| tls(&e))?;
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(self.config.tls.versions())
            .map_err(|e| tls(&e))?
            .dangerous() // only to accept the alternative name
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        Ok(Arc::new(config))
    }

    /// A new connection, with roots as they are now.
    pub(crate) async fn connect(&self) -> Result<Channel, ConnectError> {
        let trust = self.trust(&self.roots()?)?;
        self.endpoint
            .connect_with_connector(self.connector(trust))
            .await
            .map_err(ConnectError::Dial)
    }

    /// A channel that connects when it is used, and again when it was cut. To be made within a runtime.
    pub(crate) fn lazy(&self, trust: Arc<ClientConfig>) -> Channel {
        self.endpoint
            .connect_with_connector_lazy(self.connector(trust))
    }

    fn connector(&self, trust: Arc<ClientConfig>) -> Connector {
        let timing = self.config.timing;
        Connector::new(self.target.clone(), trust, timing)
    }

    /// `message` as a call with the headers that prove who we are; the token is read now.
    pub(crate) fn request<T>(&self, message: T) -> Result<tonic::Request<T>, TokenError> {
        let mut headers = self.headers.clone();
        if let Some(token) = &self.config.token {
            headers.insert(header::AUTHORIZATION, token.bearer()?);
        }
        let metadata = tonic::metadata::MetadataMap::from_headers(headers);
        Ok(tonic::Request::from_parts(
            metadata,
            tonic::Extensions::default(),
            message,
        ))
    }
}

fn parse(address: &str) -> Result<(Uri, Target), ConfigError> {
    let wrong = |why| ConfigError::Address {
        address: address.to_owned(),
        why,
    };
    let uri: Uri = address.parse().map_err(|_| wrong("not an address"))?;
    if uri.scheme() != Some(&Scheme::HTTPS) {
        return Err(wrong("only https is spoken"));
    }
    if uri.authority().is_some_and(|a| a.as_str().contains('@')) {
        return Err(wrong("no user belongs there"));
    }
    let host = uri.host().unwrap_or_default();
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| wrong("the host is neither a DNS name nor an IP address"))?;
    let target = Target {
        host: host.to_owned(),
        port: uri.port_u16().unwrap_or(PORT_HTTPS),
        name,
    };
    Ok((uri, target))
}

/// HTTP/2 as xDS and CA speak it.
fn endpoint(uri: Uri, timing: Timing) -> Endpoint {
    Endpoint::from(uri)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .http2_max_header_list_size(HEADER_LIST_BYTES_MAX)
        .http2_keep_alive_interval(timing.ping_interval)
        .keep_alive_timeout(timing.ping_timeout)
        .keep_alive_while_idle(false)
}

/// The cluster's header goes with the token, and wins over extra headers as that does.
fn headers(config: &Config) -> Result<HeaderMap, ConfigError> {
    let mut headers = HeaderMap::new();
    for (name, value) in &config.headers {
        let wrong = || ConfigError::Header(name.clone());
        let key = HeaderName::try_from(name).map_err(|_| wrong())?;
        let mut value = HeaderValue::try_from(value).map_err(|_| wrong())?;
        if HOP_BY_HOP.contains(&key.as_str()) {
            return Err(wrong());
        }
        value.set_sensitive(true);
        headers.append(key, value);
    }
    if config.token.is_some() {
        let id = HeaderValue::try_from(&config.cluster_id)
            .map_err(|_| ConfigError::ClusterId(config.cluster_id.clone()))?;
        headers.insert(CLUSTER_ID, id);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(address: &str) -> Config {
        Config::new(address, Roots::System)
    }

    #[test]
    fn addresses() {
        let cases = [
            (
                "https://istiod.istio-system.svc:15012",
                Ok(("istiod.istio-system.svc", 15012)),
            ),
            ("https://istiod/any/path?x=1", Ok(("istiod", 443))),
            ("https://10.0.0.1:15012", Ok(("10.0.0.1", 15012))),
            ("https://[fd00::1]:15012", Ok(("fd00::1", 15012))),
            ("http://istiod:15012", Err("only https is spoken")),
            ("istiod:15012", Err("only https is spoken")),
            ("", Err("not an address")),
            ("https://", Err("not an address")),
            ("https://user@istiod:1", Err("no user belongs there")),
            (
                "https://is_t!iod:1",
                Err("the host is neither a DNS name nor an IP address"),
            ),
        ];
        for (address, expected) in cases {
            match (Server::new(config(address)), expected) {
                (Ok(server), Ok((host, port))) => {
                    assert_eq!(
                        (server.target.host.as_str(), server.target.port),
                        (host, port)
                    );
                }
                (Err(ConfigError::Address { why, .. }), Err(expected)) => assert_eq!(why, expected),
                (got, _) => panic!("{address}: {got:?}"),
            }
        }
    }

    #[test]
    fn headers_go_out_as_set_and_the_token_wins() {
        let server = |headers: &[(&str, &str)], token: Option<&str>| {
            Server::new(Config {
                headers: headers
                    .iter()
                    .map(|(k, v)| ((*k).into(), (*v).into()))
                    .collect(),
                token: token.map(|t| Token::Inline(t.into())),
                cluster_id: "c1".into(),
                ..config("https://istiod:1")
            })
        };
        let sent = |server: &Server| {
            let request = server.request(()).unwrap();
            let headers = request.metadata().clone().into_headers();
            let mut sent: Vec<(String, String)> = headers
                .iter()
                .map(|(k, v)| (k.to_string(), v.to_str().unwrap().to_owned()))
                .collect();
            sent.sort();
            sent
        };
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        let anonymous = server(&[("X_Tenant", "a")], None).unwrap();
        assert_eq!(sent(&anonymous), [pair("x_tenant", "a")]);
        let known = server(&[("authorization", "x"), ("clusterid", "x")], Some("t")).unwrap();
        let expected = [pair("authorization", "Bearer t"), pair("clusterid", "c1")];
        assert_eq!(sent(&known), expected);
        for (name, value) in [("a b", "x"), ("x", "a\nb"), ("te", "trailers"), ("", "")] {
            let error = server(&[(name, value)], None).unwrap_err();
            assert!(matches!(error, ConfigError::Header(of) if of == name));
        }
    }

    #[test]
    fn names_and_cluster_are_checked() {
        let bad = Config {
            alternative_name: Some("not a name".into()),
            ..config("https://istiod:1")
        };
        assert!(matches!(
            Server::new(bad),
            Err(ConfigError::AlternativeName(_))
        ));
        let bad = Config {
            token: Some(Token::Inline("t".into())),
            cluster_id: "a\nb".into(),
            ..config("https://istiod:1")
        };
        assert!(matches!(Server::new(bad), Err(ConfigError::ClusterId(_))));
    }

    #[test]
    fn secrets_never_print() {
        let config = Config {
            token: Some(Token::Inline("s3cr3t".into())),
            headers: vec![("x-key".into(), "s3cr3t".into())],
            ..config("https://istiod:1")
        };
        let server = Server::new(config.clone()).unwrap();
        let request = server.request(()).unwrap();
        for text in [
            format!("{config:?}"),
            format!("{server:?}"),
            format!("{request:?}"),
        ] {
            assert!(!text.contains("s3cr3t"), "{text}");
            assert!(text.contains("x-key"), "{text}");
        }
    }
}
