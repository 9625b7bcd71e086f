//! The certificate service.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use proto::ca::istio_certificate_service_server::IstioCertificateService;
use proto::ca::{IstioCertificateRequest, IstioCertificateResponse};
use tonic::{Request, Response, Status};

use super::record::Event;
use super::{Ca, Shared, gate};

/// Signs certificates.
#[derive(Clone)]
pub struct Certificates(pub Arc<Shared>);

#[tonic::async_trait]
impl IstioCertificateService for Certificates {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let shared = &self.0;
        let caller = shared.admit(&request)?;
        let request = request.into_inner();
        let identity = match gate::certificate(&request, shared.machine(&caller)) {
            Ok(identity) => identity,
            Err(why) => {
                let status = Status::invalid_argument(format!("{why:#}"));
                return Err(shared.refuse(caller, status));
            }
        };
        let seconds = request.validity_duration;
        let may_be = shared.may_be(&caller, &identity);
        shared.record.add(Event::Asked {
            caller: caller.clone(),
            identity: identity.clone(),
            seconds,
        });
        if let Err(why) = may_be {
            return Err(shared.refuse(caller, Status::unauthenticated(why)));
        }
        // taken out before anything is awaited
        let mode = shared.settings().ca.clone();
        let cert_chain = match mode {
            Ca::Issue(life) => {
                let asked = Duration::from_secs(seconds.unsigned_abs());
                let signed =
                    shared
                        .authority()
                        .sign(&request.csr, &identity, life.unwrap_or(asked));
                let (chain, issued) = signed.map_err(|why| Status::internal(why.to_string()))?;
                shared.record.add(Event::Signed {
                    identity,
                    serial: issued.serial,
                });
                chain
            }
            Ca::Answer(chain) => chain,
            Ca::Refuse(code, why) => return Err(Status::new(code, why)),
            Ca::Hang => pending().await,
        };
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}
