//! The discovery service: one task per stream around a [`Session`].

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use proto::discovery::aggregated_discovery_service_server::AggregatedDiscoveryService;
use proto::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use tokio::sync::{broadcast, mpsc};
use tonic::codegen::tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::record::Event;
use super::session::Session;
use super::{Order, Shared, Xds};

/// Responses of a stream that wait for the connection.
const RESPONSES_MAX: usize = 16;

/// What goes out on a stream.
type Outcome = Result<DeltaDiscoveryResponse, Status>;

/// Serves discovery.
#[derive(Clone)]
pub struct Discovery(pub Arc<Shared>);

/// Responses, as they are made.
pub struct Responses(mpsc::Receiver<Outcome>);

impl Stream for Responses {
    type Item = Outcome;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Outcome>> {
        self.0.poll_recv(context)
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Discovery {
    type StreamAggregatedResourcesStream =
        Pin<Box<dyn Stream<Item = Result<DiscoveryResponse, Status>> + Send>>;
    type DeltaAggregatedResourcesStream = Responses;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented(
            "only the incremental variant is served",
        ))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Responses>, Status> {
        let caller = self.0.admit(&request)?;
        if let Xds::Refuse(code, why) = self.0.settings().xds.clone() {
            return Err(self.0.refuse(caller, Status::new(code, why)));
        }
        let stream = self.0.next_stream();
        // both from here on: an order that is given once the stream stands in the record reaches it
        let orders = self.0.orders.subscribe();
        self.0.record.add(Event::Opened { stream, caller });
        let (sender, receiver) = mpsc::channel(RESPONSES_MAX);
        let shared = Arc::clone(&self.0);
        tokio::spawn(async move {
            if let Err(status) = serve(stream, request.into_inner(), &sender, &shared, orders).await
            {
                // an error means that the client has gone
                let _ = sender.send(Err(status)).await;
            }
            shared.record.add(Event::Ended { stream });
        });
        Ok(Response::new(Responses(receiver)))
    }
}

/// Until the client ends the stream or an order does; an error is the status that it ends with.
async fn serve(
    stream: u64,
    mut inbound: Streaming<DeltaDiscoveryRequest>,
    sender: &mpsc::Sender<Outcome>,
    shared: &Shared,
    mut orders: broadcast::Receiver<Order>,
) -> Result<(), Status> {
    let mut session = Session::default();
    let mut changes = shared.store.subscribe();
    loop {
        while !matches!(shared.settings().xds, Xds::Silent) {
            let Some(response) = session.next(&shared.store.lock()) else {
                break;
            };
            send(stream, sender, shared, response).await?;
        }
        tokio::select! {
            message = inbound.message() => {
                let Some(request) = message? else { return Ok(()) };
                shared.record.add(Event::Request { stream, request: request.clone() });
                if let Some(node) = &request.node {
                    super::gate::node(node).map_err(Status::invalid_argument)?;
                }
                session.request(&request, &shared.store.lock()).map_err(Status::invalid_argument)?;
            }
            changed = changes.changed() => changed.map_err(|_| Status::aborted("no store"))?,
            order = orders.recv() => match order {
                Ok(Order::Sever(Some((code, why)))) => return Err(Status::new(code, why)),
                Ok(Order::Sever(None)) => return Ok(()),
                Ok(Order::Send(response)) => send(stream, sender, shared, response).await?,
                Err(why) => return Err(Status::internal(format!("an order was lost: {why}"))),
            },
        }
    }
}

async fn send(
    stream: u64,
    sender: &mpsc::Sender<Outcome>,
    shared: &Shared,
    response: DeltaDiscoveryResponse,
) -> Result<(), Status> {
    shared.record.add(Event::Response {
        stream,
        url: response.type_url.clone(),
        nonce: response.nonce.clone(),
        names: super::session::names(&response),
        removed: response.removed_resources.clone(),
    });
    let sent = sender.send(Ok(response)).await;
    sent.map_err(|_| Status::cancelled("the client has gone"))
}
