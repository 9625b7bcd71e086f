//! One stream of the subscription, from the first request to its end: one response after the other.
//!
//! Order within a response: convert, apply, answer, then let go who waited for it. Conversion gives way to other tasks of the thread
//! again and again; it holds no lock. Reading does not wait for writing: answers and questions queue up beside it.

use std::collections::VecDeque;
use std::time::Duration;

use proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use tracing::{debug, error, info, warn};

use super::retry::End;
use super::subscriber::{Kind, Outcome};
use super::worker::Worker;
use crate::cause;
use crate::channel::ConnectError;

/// Largest response.
const RESPONSE_BYTES_MAX: usize = 200 * 1024 * 1024;
/// Requests on their way into the connection.
const REQUESTS_MAX: usize = 64;
/// Requests waiting for room there, beyond which no response is read and nothing is asked. A server may want its responses read before
/// it reads requests, so these wait where they stop nothing.
const WAITING_MAX: usize = 1024;
/// Longest wait for the server to take a request.
const SEND_WAIT_MAX: Duration = Duration::from_secs(30);
/// Longest wait for the status of a stream that takes no requests any more.
const STATUS_WAIT_MAX: Duration = Duration::from_secs(1);
/// Resources that are converted before other tasks of the thread get their turn: well below a millisecond of work.
const STEP: usize = 128;

/// How a session ended, and why.
pub(super) struct Ended {
    pub end: End,
    /// With all causes; `None` if there is nothing to complain about.
    pub error: Option<String>,
}

impl Ended {
    pub(super) fn new(end: End, error: String) -> Self {
        Self {
            end,
            error: Some(error),
        }
    }

    /// A stream that was up has ended with `status`.
    fn status(status: &Status) -> Self {
        Self::new(End::of(status), told(status))
    }

    fn complete() -> Self {
        Self {
            end: End::Complete,
            error: None,
        }
    }
}

type Requests = mpsc::Sender<DeltaDiscoveryRequest>;
type Waiting = VecDeque<DeltaDiscoveryRequest>;
type Responses = Streaming<DeltaDiscoveryResponse>;

impl Worker {
    /// Opens a stream and serves it until it ends.
    pub(super) async fn session(&mut self) -> Ended {
        let (mut responses, requests) = match self.open().await {
            Ok(stream) => stream,
            Err(ended) => return ended,
        };
        self.shared.counts.opened();
        self.shared.asks.restart();
        info!(
            address = self.server.address(),
            "connected to the control plane"
        );
        let mut waiting = Waiting::new();
        let mut stuck_at = Instant::now();
        loop {
            if waiting.is_empty() {
                stuck_at = Instant::now() + SEND_WAIT_MAX;
            }
            let has_room = waiting.len() < WAITING_MAX;
            tokio::select! {
                room = requests.reserve(), if !waiting.is_empty() => {
                    let Ok(room) = room else {
                        return status_of(&mut responses).await;
                    };
                    if let Some(request) = waiting.pop_front() {
                        room.send(request);
                    }
                    stuck_at = Instant::now() + SEND_WAIT_MAX;
                }
                response = responses.message(), if has_room => match response {
                    Ok(Some(response)) => waiting.push_back(self.take(response).await),
                    Ok(None) => return Ended::complete(),
                    Err(status) => return Ended::status(&status),
                },
                name = self.shared.asks.next(), if has_room => {
                    waiting.extend(self.subscriber.demand(&name));
                }
                () = sleep_until(stuck_at), if !waiting.is_empty() => {
                    let error = format!("the server took no request for {SEND_WAIT_MAX:?}");
                    return Ended::new(End::Local, error);
                }
            }
        }
    }

    async fn open(&mut self) -> Result<(Responses, Requests), Ended> {
        let channel = self.server.connect().await.map_err(|error| {
            let end = match &error {
                ConnectError::Trust(_) => End::Local,
                ConnectError::Dial(_) => End::NotOpened,
            };
            Ended::new(end, cause::chain(&error))
        })?;
        let first = self.subscriber.connected();
        let (requests, queue) = mpsc::channel(REQUESTS_MAX.max(first.len()));
        for request in first {
            // there is room for all of them, and the other half is here
            let _ = requests.try_send(request);
        }
        let call = self
            .server
            .request(ReceiverStream::new(queue))
            .map_err(|error| Ended::new(End::NotOpened, cause::chain(&error)))?;
        let mut client = AggregatedDiscoveryServiceClient::new(channel)
            .max_decoding_message_size(RESPONSE_BYTES_MAX);
        match client.delta_aggregated_resources(call).await {
            Ok(response) => Ok((response.into_inner(), requests)),
            Err(status) => Err(Ended::new(End::NotOpened, told(&status))),
        }
    }

    /// Applies a response. Returns the answer.
    async fn take(&mut self, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        let (url, resources) = (response.type_url.clone(), response.resources.len());
        let mut batch = self.subscriber.begin(response);
        while batch.step(STEP) {
            yield_now().await;
        }
        let outcome = batch.finish();
        self.report(&url, resources, &outcome);
        let Outcome {
            kind,
            delta,
            reply,
            released,
            ..
        } = outcome;
        if !delta.is_empty() {
            if kind == Some(Kind::Address) {
                self.shared.asks.changes();
            }
            self.publisher.apply(delta).await;
        }
        self.shared.asks.release(&released);
        if self.subscriber.synced() && !self.shared.synced.send_replace(true) {
            info!("state of the mesh received");
        }
        reply
    }

    fn report(&self, url: &str, resources: usize, outcome: &Outcome) {
        let counts = &self.shared.counts;
        counts.took(outcome.kind, outcome.payload_bytes, outcome.rejected_count);
        if outcome.kind.is_none() {
            error!(url, resources, "response of an unknown type");
        }
        if let Some(error) = &outcome.reply.error_detail {
            let rejected = outcome.rejected_count;
            warn!(
                url,
                rejected,
                resources,
                error = error.message,
                "resources refused"
            );
            counts.refused(&error.message);
        }
        let (set, removed) = (outcome.delta.upsert.len(), outcome.delta.remove.len());
        debug!(
            url,
            set,
            removed,
            bytes = outcome.payload_bytes,
            "response received"
        );
    }
}

/// The status of a call whose requests are not taken any more.
async fn status_of(responses: &mut Responses) -> Ended {
    let last = async {
        loop {
            match responses.message().await {
                // it could not be answered; the next stream brings it again
                Ok(Some(_)) => {}
                Ok(None) => return Ended::complete(),
                Err(status) => return Ended::status(&status),
            }
        }
    };
    timeout(STATUS_WAIT_MAX, last).await.unwrap_or_else(|_| {
        let error = "the server takes no requests any more".to_owned();
        Ended::new(End::Local, error)
    })
}

/// Code, message and causes of `status`.
fn told(status: &Status) -> String {
    let mut text = format!("{:?}", status.code());
    if !status.message().is_empty() {
        text = format!("{text}: {}", status.message());
    }
    cause::causes(&mut text, status);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_told_with_its_code() {
        assert_eq!(told(&Status::internal("")), "Internal");
        assert_eq!(told(&Status::internal("why")), "Internal: why");
    }
}
