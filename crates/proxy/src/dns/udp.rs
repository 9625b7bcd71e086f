//! Questions of a pod that come as datagrams.
//!
//! They are taken in slices, so that no pod's flood holds the thread; what can be said at once needs no task and no copy.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use super::desk::{AtOnce, Desk, Via};
use super::forward::SCRATCH;
use super::memory::Seat;
use super::message::Transport;
use crate::accept::plain;
use crate::needs::{Asked, DnsPort};
use crate::pod::{Phase, Pod, reached};
use crate::shard::Shard;

/// Questions taken before other work of the thread has its turn.
const SLICE: usize = 32;
/// Questions taken from a socket that closes.
const REST_MAX: usize = 512;
/// Where resolvers listen.
const RESOLVER_PORT: u16 = 53;
/// Pause after a failed receive, so that a lasting fault does not spin.
const RECEIVE_PAUSE: Duration = Duration::from_millis(20);

/// Serves one pod's questions until it leaves. What was asked before that is still answered, unless all of it is cut.
pub(crate) async fn serve(shard: Rc<Shard>, pod: Arc<Pod>, port: Box<dyn DnsPort>) {
    let (mut drain, mut cut) = (pod.phase(), pod.phase());
    let mut door = Door {
        desk: Desk { shard, pod },
        port: port.into(),
        under_way: JoinSet::new(),
    };
    let served = async {
        tokio::select! {
            () = reached(&mut drain, Phase::Drain) => door.close(),
            Err(error) = door.serve() => {
                tracing::error!(pod = %door.desk.pod.uid, %error, "dns socket failed");
            }
        }
        while door.under_way.join_next().await.is_some() {}
    };
    tokio::select! {
        () = served => {}
        () = reached(&mut cut, Phase::Cut) => {}
    }
}

/// One DNS port and the questions that came through it.
struct Door {
    desk: Desk,
    port: Rc<dyn DnsPort>,
    under_way: JoinSet<()>,
}

impl Door {
    /// Takes questions for ever.
    async fn serve(&mut self) -> io::Result<()> {
        let ready = UdpSocket::from_std(self.port.readiness()?)?;
        loop {
            while self.under_way.try_join_next().is_some() {}
            ready.readable().await?;
            match self.slice(&ready) {
                Ok(()) => tokio::task::yield_now().await,
                Err(error) => {
                    // one question lost must not end the pod's DNS
                    tracing::warn!(pod = %self.desk.pod.uid, %error, "dns question not received");
                    tokio::time::sleep(RECEIVE_PAUSE).await;
                }
            }
        }
    }

    /// Takes what waits, but not more than a slice.
    fn slice(&mut self, ready: &UdpSocket) -> io::Result<()> {
        for _ in 0..SLICE {
            match ready.try_io(Interest::READABLE, || self.take()) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes what waits, and no more.
    fn close(&mut self) {
        self.port.close();
        for _ in 0..REST_MAX {
            if self.take().is_err() {
                return;
            }
        }
    }

    /// Takes one question.
    fn take(&mut self) -> io::Result<()> {
        SCRATCH.with_borrow_mut(|scratch| {
            let asked = self.port.try_recv(scratch)?;
            self.hear(asked, &scratch[..asked.len]);
            Ok(())
        })
    }

    fn hear(&mut self, asked: Asked, message: &[u8]) {
        let asked = Asked {
            client: plain(asked.client),
            resolver: asked.resolver.map(plain),
            ..asked
        };
        // capture brings what was sent to port 53; all else was sent to this socket itself, which is nobody's resolver
        if (asked.resolver).is_some_and(|resolver| resolver.port() != RESOLVER_PORT) {
            return;
        }
        let is_v6 = asked.resolver.is_some_and(|resolver| resolver.is_ipv6());
        if is_v6 && self.desk.shard.shared.config.ipv4_only {
            return;
        }
        let via = Via {
            transport: Transport::Udp,
            resolver: asked.resolver,
        };
        match self.desk.at_once(message, via) {
            AtOnce::Say(answer) => say(&self.desk.pod, &*self.port, &asked, &answer),
            AtOnce::Ignore => {}
            AtOnce::Wait => self.wait(asked, message.to_vec(), via),
        }
    }

    /// Answers when the answer is known.
    fn wait(&mut self, asked: Asked, message: Vec<u8>, via: Via) {
        let Some(seat) = Seat::take(&self.desk.pod) else {
            return self
                .desk
                .shard
                .shared
                .refusals
                .shed_question(&self.desk.pod);
        };
        let (desk, port) = (self.desk.clone(), Rc::clone(&self.port));
        self.under_way.spawn_local(async move {
            if let Some(answer) = desk.later(&message, via).await {
                say(&desk.pod, &*port, &asked, &answer);
            }
            drop(seat);
        });
    }
}

fn say(pod: &Pod, port: &dyn DnsPort, asked: &Asked, answer: &[u8]) {
    if let Err(error) = port.answer(asked, answer) {
        tracing::debug!(pod = %pod.uid, client = %asked.client, %error, "dns answer not sent");
    }
}
