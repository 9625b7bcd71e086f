//! DNS of a pod: takes the questions that capture steers to us and forwards each to the resolver it was meant for.
//!
//! Answers leave under that resolver's address. Names are not answered here; that is left to a later room.

use std::cell::RefCell;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use crate::Shared;
use crate::accept::{Accepted, plain};
use crate::needs::{Asked, DnsPort};
use crate::pod::{Phase, Pod, reached};
use crate::shard::Shard;

/// Questions of one pod that wait for their resolver at a time; more are dropped, as a full socket buffer would.
const QUESTIONS_MAX: usize = 512;
/// How long a resolver may take; clients ask again after 5 s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a failed receive, so that a lasting fault does not spin.
const RECEIVE_PAUSE: Duration = Duration::from_millis(20);
/// Largest DNS message.
const MESSAGE_BYTES_MAX: usize = 65_535;
/// A DNS header; anything shorter is not a message.
const HEADER_BYTES: usize = 12;

thread_local! {
    /// Where answers land before their length is known.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; MESSAGE_BYTES_MAX]);
}

/// Serves one pod's questions until it leaves. What was asked before that is still answered, unless all of it is cut.
pub(crate) async fn serve(shared: Arc<Shared>, pod: Arc<Pod>, port: Box<dyn DnsPort>) {
    let (mut drain, mut cut) = (pod.phase(), pod.phase());
    let mut desk = Desk {
        shared,
        pod,
        port: port.into(),
        under_way: JoinSet::new(),
        buffer: vec![0; MESSAGE_BYTES_MAX],
    };
    let served = async {
        tokio::select! {
            () = reached(&mut drain, Phase::Drain) => desk.close(),
            Err(error) = desk.serve() => {
                tracing::error!(pod = %desk.pod.uid, %error, "dns socket failed");
            }
        }
        while desk.under_way.join_next().await.is_some() {}
    };
    tokio::select! {
        () = served => {}
        () = reached(&mut cut, Phase::Cut) => {}
    }
}

/// Serves questions of a pod that come over TCP, until the client is done.
pub(crate) async fn serve_tcp(flow: Accepted) {
    crate::outbound::serve(flow).await;
}

/// The addresses of `host` as the pod's own DNS tells them: IPv6 (AAAA) if `v6`, else IPv4 (A). Empty when there are none.
///
/// Errors: no answer; why, as text for the access log.
pub(crate) async fn resolve(
    shard: &Rc<Shard>,
    _pod: &Arc<Pod>,
    host: &str,
    v6: bool,
) -> Result<Vec<IpAddr>, String> {
    let found = shard.shared.resolver.resolve(host).await?;
    Ok(found.into_iter().filter(|ip| ip.is_ipv6() == v6).collect())
}

/// The questions of one DNS port.
struct Desk {
    shared: Arc<Shared>,
    pod: Arc<Pod>,
    port: Rc<dyn DnsPort>,
    under_way: JoinSet<()>,
    buffer: Vec<u8>,
}

impl Desk {
    /// Takes questions for ever.
    async fn serve(&mut self) -> io::Result<()> {
        let ready = UdpSocket::from_std(self.port.readiness()?)?;
        loop {
            while self.under_way.try_join_next().is_some() {}
            let asked = ready
                .async_io(Interest::READABLE, || self.port.try_recv(&mut self.buffer))
                .await;
            match asked {
                Ok(asked) => self.take(asked),
                Err(error) => {
                    // one question lost must not end the pod's DNS
                    tracing::warn!(pod = %self.pod.uid, %error, "dns question not received");
                    tokio::time::sleep(RECEIVE_PAUSE).await;
                }
            }
        }
    }

    /// Takes what waits, and no more.
    fn close(&mut self) {
        self.port.close();
        for _ in 0..QUESTIONS_MAX {
            match self.port.try_recv(&mut self.buffer) {
                Ok(asked) => self.take(asked),
                Err(_) => return,
            }
        }
    }

    /// Forwards the question in the buffer.
    fn take(&mut self, asked: Asked) {
        let asked = Asked {
            client: plain(asked.client),
            resolver: plain(asked.resolver),
            ..asked
        };
        let v6_off = self.shared.config.ipv4_only && asked.resolver.is_ipv6();
        if asked.len < HEADER_BYTES || v6_off {
            return;
        }
        if self.under_way.len() >= QUESTIONS_MAX {
            return self.shared.refusals.shed_question();
        }
        let question = self.buffer[..asked.len].to_vec();
        let (pod, port) = (Arc::clone(&self.pod), Rc::clone(&self.port));
        self.under_way.spawn_local(async move {
            if let Err(error) = forward(&pod, &*port, asked, &question).await {
                tracing::debug!(pod = %pod.uid, resolver = %asked.resolver, %error, "dns question not answered");
            }
        });
    }
}

async fn forward(pod: &Pod, port: &dyn DnsPort, asked: Asked, question: &[u8]) -> io::Result<()> {
    let upstream = UdpSocket::from_std(pod.net.resolver(asked.resolver)?)?;
    upstream.send(question).await?;
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, receive(&upstream, question))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    port.answer(asked.resolver, asked.client, &answer)
}

/// The first message with the question's id; others are not ours.
async fn receive(upstream: &UdpSocket, question: &[u8]) -> io::Result<Vec<u8>> {
    loop {
        upstream.readable().await?;
        let answer = SCRATCH.with_borrow_mut(|scratch| {
            let len = upstream.try_recv(scratch)?;
            Ok::<_, io::Error>(
                (len >= HEADER_BYTES && scratch[..2] == question[..2])
                    .then(|| scratch[..len].to_vec()),
            )
        });
        match answer {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}
