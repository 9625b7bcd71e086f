//! istiod as the issuer of certificates: one call per certificate, made on behalf of the workload it is for.
//!
//! Leaves to others: keys and signing requests (`identity::csr`), and when to ask and how long to wait (`identity::Certs`).

pub mod laws;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use identity::csr::Request;
use identity::{IssueError, Issued, Issuer, Issuing};
use mesh::SpiffeId;
use proto::ca::IstioCertificateRequest;
use proto::ca::istio_certificate_service_client::IstioCertificateServiceClient as Client;
use proto::wellknown::{Struct, Value, value::Kind};
use rustls::ClientConfig;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tracing::{info, warn};

use crate::cause;
use crate::channel::{Config, ConfigError, Server};
use crate::roots::Material;

/// Largest answer: a chain and a bundle of roots, with room to spare.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Longest text of the CA that is kept and shown.
const MESSAGE_BYTES_MAX: usize = 1024;
/// Metadata key that names the workload (istiod's node authorization).
const IMPERSONATED: &str = "ImpersonatedIdentity";

/// The certificate authority of istiod.
#[derive(Debug)]
pub struct IstioCa {
    server: Server,
    /// Asked for; the authority may give less.
    lifetime_s: i64,
    /// Names the workload in each request.
    on_behalf: bool,
    /// `None` until usable roots were read once.
    current: Mutex<Option<Current>>,
}

/// The channel in use and what it trusts.
#[derive(Debug)]
struct Current {
    roots: Material,
    trust: Arc<ClientConfig>,
    /// Made by the first request.
    channel: Option<Channel>,
}

impl IstioCa {
    /// Checks the settings; connects when the first certificate is asked for. Roots that cannot be read yet are told in the log
    /// and read again for each request: the file may come later.
    ///
    /// - `lifetime`: of the certificates, in whole seconds (`SECRET_TTL`)
    pub fn new(config: Config, lifetime: Duration) -> Result<Self, ConfigError> {
        let ca = Self {
            server: Server::new(config)?,
            lifetime_s: i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX),
            on_behalf: true,
            current: Mutex::new(None),
        };
        if let Err(error) = ca.channel() {
            let (address, error) = (ca.server.address(), cause::chain(&error));
            warn!(
                address,
                error,
                "roots of the CA unusable, no certificate can be had until they are there (CA_ROOT_CA)"
            );
        }
        Ok(ca)
    }

    /// The same for a process that is the workload itself, and asks with the workload's own token: requests name nobody.
    #[must_use]
    pub fn as_workload(self) -> Self {
        Self {
            on_behalf: false,
            ..self
        }
    }

    async fn ask(&self, id: &SpiffeId) -> Result<Issued, IssueError> {
        let request = Request::new(id)?;
        let message = IstioCertificateRequest {
            csr: request.pem().to_owned(),
            validity_duration: self.lifetime_s,
            metadata: self.on_behalf.then(|| impersonated(id)),
        };
        let call = self
            .server
            .request(message)
            .map_err(|e| signing(Code::Unauthenticated, cause::chain(&e)))?;
        let channel = self
            .channel()
            .map_err(|e| signing(Code::Unavailable, cause::chain(&e)))?;
        let mut client = Client::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        let answer = client
            .create_certificate(call)
            .await
            .map_err(|s| refused(&s))?;
        request.finish(answer.into_inner().cert_chain)
    }

    /// The channel, made anew when the roots have changed. Looking at the file before each request sees whatever a watch would have
    /// told: rewritten, replaced, or behind a swapped symlink. The old channel stays while the new roots are unusable.
    fn channel(&self) -> Result<Channel, ConfigError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        match self.renewed(current.as_ref().map(|current| &current.roots)) {
            Ok(None) => {}
            Ok(Some(renewed)) => {
                if current.replace(renewed).is_some() {
                    info!(
                        address = self.server.address(),
                        "roots of the CA changed, connecting anew"
                    );
                }
            }
            Err(error) if current.is_none() => return Err(error),
            Err(error) => warn!(
                address = self.server.address(),
                error = cause::chain(&error),
                "roots of the CA unusable, keeping the old ones"
            ),
        }
        let Current { trust, channel, .. } = current
            .as_mut()
            .expect("one was there, or has just been put in place");
        let channel = channel.get_or_insert_with(|| self.server.lazy(Arc::clone(trust)));
        Ok(channel.clone())
    }

    fn renewed(&self, old: Option<&Material>) -> Result<Option<Current>, ConfigError> {
        let roots = self.server.roots()?;
        if old == Some(&roots) {
            return Ok(None);
        }
        let trust = self.server.trust(&roots)?;
        Ok(Some(Current {
            roots,
            trust,
            channel: None,
        }))
    }
}

impl Issuer for IstioCa {
    fn issue<'a>(&'a self, id: &'a SpiffeId) -> Issuing<'a> {
        Box::pin(self.ask(id))
    }
}

/// Says for whom the certificate is; istiod checks that such a pod runs on our node.
fn impersonated(id: &SpiffeId) -> Struct {
    let value = Value {
        kind: Some(Kind::StringValue(id.to_string())),
    };
    Struct {
        fields: [(IMPERSONATED.to_owned(), value)].into(),
    }
}

fn refused(status: &Status) -> IssueError {
    let mut message = status.message().to_owned();
    cause::causes(&mut message, status);
    signing(status.code(), message)
}

fn signing(code: Code, mut message: String) -> IssueError {
    message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
    IssueError::Signing {
        code: format!("{code:?}"),
        message,
    }
}
