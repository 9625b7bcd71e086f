//! The worker of the subscription: one stream after the other, with a rest in between, for as long as the process lives.
//!
//! Leaves to others: what happens on a stream (`session`), and how long the rest is (`retry`).

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::sleep;
use tracing::{Instrument, error, info, info_span, warn};

use super::Shared;
use super::retry::{self, End, Next, Reason};
use super::session::Ended;
use super::subscriber::Subscriber;
use crate::Publisher;
use crate::channel::Server;
use crate::node::Node;

/// Keeps the subscription alive. Runs until it is dropped.
#[derive(Debug)]
pub struct Worker {
    pub(super) server: Server,
    pub(super) subscriber: Subscriber,
    pub(super) publisher: Publisher,
    pub(super) shared: Arc<Shared>,
    backoff: Duration,
    streams: u64,
}

impl Worker {
    pub(super) fn new(
        server: Server,
        node: Node,
        on_demand: bool,
        publisher: Publisher,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            server,
            subscriber: Subscriber::new(node.to_proto(), on_demand),
            publisher,
            shared,
            backoff: retry::BACKOFF_MIN,
            streams: 0,
        }
    }

    /// Subscribes, and again whenever the stream ends. What was learnt stays in force in between.
    pub async fn run(mut self) -> Infallible {
        loop {
            self.streams += 1;
            let span = info_span!("xds", id = self.streams);
            let pause = self.turn().instrument(span).await;
            sleep(pause).await;
        }
    }

    /// One stream from attempt to end. Returns how long to rest.
    async fn turn(&mut self) -> Duration {
        let Ended { end, error } = match contained(self.session()).await {
            Some(ended) => ended,
            None => self.begin_anew(),
        };
        let next = retry::after(end, self.backoff);
        self.backoff = next.backoff;
        self.shared.counts.ended(next.reason, error.as_deref());
        self.tell(&next, error.as_deref().unwrap_or("none"));
        next.pause
    }

    /// After a panic nobody knows how much of the last response the mesh holds: what it may hold is asked for anew.
    fn begin_anew(&mut self) -> Ended {
        error!("a response made the subscription panic; asking for everything anew");
        self.subscriber.doubt();
        Ended::new(End::Local, "panic while handling a response".to_owned())
    }

    fn tell(&self, next: &Next, error: &str) {
        let (address, retry_in) = (self.server.address(), next.pause);
        match next.reason {
            Reason::Complete | Reason::Reconnect => {
                info!(address, error, ?retry_in, "control plane closed the stream");
            }
            Reason::ConnectionError => {
                warn!(address, error, ?retry_in, "control plane unreachable");
            }
            Reason::Error => {
                warn!(
                    address,
                    error,
                    ?retry_in,
                    "stream to the control plane failed"
                );
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.asks.stop();
    }
}

/// The outcome of `work`; `None` if it panicked, which is reported already.
async fn contained<T>(work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    poll_fn(|cx| {
        // whatever the panic left behind goes with the future, or is replaced by the caller
        catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx)))
            .map_or(Poll::Ready(None), |poll| poll.map(Some))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::task::yield_now;

    #[tokio::test]
    async fn a_panic_ends_one_stream_only() {
        let calm = contained(async {
            yield_now().await;
            1
        });
        assert_eq!(calm.await, Some(1));
        let mut touched = 0;
        let wild = contained(async {
            touched += 1;
            yield_now().await;
            if touched > 0 {
                panic!("on purpose");
            }
        });
        assert_eq!(wild.await, None);
        assert_eq!(touched, 1);
    }
}
