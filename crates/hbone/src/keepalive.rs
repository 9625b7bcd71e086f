//! PING keepalive of one connection: is the peer still there? It does not look at data, so an idle peer and a busy
//! one are asked alike. What follows when it is gone is the connection's business.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep};

use crate::Settings;

/// Asks every `interval` after the last answer; gives up when an answer takes longer than `timeout`.
pub(crate) struct Keepalive {
    ping: PingPong,
    /// Rest until the next PING, or the wait for an answer.
    timer: Pin<Box<Sleep>>,
    asked: bool,
    interval: Duration,
    timeout: Duration,
}

impl Keepalive {
    /// Starts with a rest.
    pub(crate) fn new(ping: PingPong, settings: &Settings) -> Self {
        Keepalive {
            ping,
            timer: Box::pin(sleep(settings.ping_interval)),
            asked: false,
            interval: settings.ping_interval,
            timeout: settings.ping_timeout,
        }
    }

    /// How long a PING may stay unanswered.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Ready once the peer is gone. To be polled by the task that polls the connection, after it; stays pending when
    /// the connection has closed, which the connection itself reports.
    pub(crate) fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if !self.asked {
                ready!(self.timer.as_mut().poll(cx));
                if self.ping.send_ping(Ping::opaque()).is_err() {
                    return Poll::Pending;
                }
                self.turn(true, self.timeout);
            }
            match self.ping.poll_pong(cx) {
                Poll::Ready(Ok(_)) => self.turn(false, self.interval),
                Poll::Ready(Err(_)) => return Poll::Pending,
                Poll::Pending => return self.timer.as_mut().poll(cx),
            }
        }
    }

    fn turn(&mut self, asked: bool, wait: Duration) {
        self.asked = asked;
        self.timer.as_mut().reset(Instant::now() + wait);
    }
}
