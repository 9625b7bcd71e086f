//! One push, as the daemon takes it: decode, convert in steps, apply, show. Its parts timed, its peak of memory taken.

use std::time::{Duration, Instant};

use bytes::Bytes;
use control::Publisher;
use control::xds::subscriber::Subscriber;
use mesh::Index;
use prost::Message as _;
use proto::discovery::DeltaDiscoveryResponse;
use tokio::task::yield_now;

use crate::HEAP;
use crate::watcher::Cpu;

/// Resources that the daemon converts before other tasks get their turn.
const STEP: usize = 128;
/// The node whose workloads are local.
pub const NODE: &str = "ip-10-0-0-7.eu-west-1.compute.internal";

/// The receiving end of a control plane.
pub struct Plane {
    subscriber: Subscriber,
    publisher: Publisher,
}

/// What one push took. All up to the moment at which it could be acknowledged.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Took {
    /// Resources in it, and removals.
    pub resources: usize,
    /// Bytes of the message.
    pub bytes: usize,
    /// Decoding and conversion.
    pub convert: Duration,
    /// Into a private copy, and showing it.
    pub apply: Duration,
    /// CPU time of both.
    pub cpu: Duration,
    /// Heap at its highest above what it was before, beside the message itself.
    pub peak: usize,
}

impl Took {
    /// From the bytes of the message to its acknowledgement.
    pub fn total(&self) -> Duration {
        self.convert + self.apply
    }
}

impl Plane {
    pub fn new() -> Self {
        let node = proto::discovery::Node::default();
        Self {
            subscriber: Subscriber::new(node, false),
            publisher: Publisher::new(Index::for_node(NODE)),
        }
    }

    /// Where the state can be read.
    pub fn publisher(&self) -> &Publisher {
        &self.publisher
    }

    /// Takes one message in.
    pub async fn push(&mut self, message: Bytes) -> Took {
        let bytes = message.len();
        let before = HEAP.current_usage();
        HEAP.reset_peak_usage();
        let cpu = Cpu::of_thread();
        let start = Instant::now();
        let response =
            DeltaDiscoveryResponse::decode(message).expect("the bench encoded this message");
        let resources = response.resources.len() + response.removed_resources.len();
        let mut batch = self.subscriber.begin(response);
        while batch.step(STEP) {
            yield_now().await;
        }
        let outcome = batch.finish();
        assert_eq!(outcome.rejected_count, 0, "all resources are good");
        let converted = Instant::now();
        self.publisher.apply(outcome.delta).await;
        let apply = converted.elapsed();
        let cpu = Cpu::of_thread().used_since(cpu);
        Took {
            resources,
            bytes,
            convert: converted - start,
            apply,
            cpu,
            peak: HEAP.peak_usage().saturating_sub(before),
        }
    }
}

/// The one in the middle by total time.
pub fn median(mut all: Vec<Took>) -> Took {
    all.sort_by_key(Took::total);
    all.get(all.len() / 2).copied().unwrap_or_default()
}
