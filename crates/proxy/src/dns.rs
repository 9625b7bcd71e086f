//! DNS of a pod: takes the questions that capture steers to us and forwards each to the resolver it was meant for.
//!
//! Answers leave under that resolver's address. Names are not answered here; that is left to a later room.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;

use crate::Shared;
use crate::accept::plain;
use crate::needs::{Asked, DnsPort};
use crate::pod::{Phase, Pod, reached};

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

/// Serves one pod's questions until it leaves.
pub(crate) async fn serve(shared: Arc<Shared>, pod: Arc<Pod>, port: Box<dyn DnsPort>) {
    let mut phase = pod.phase();
    tokio::select! {
        () = reached(&mut phase, Phase::Drain) => {}
        ended = forward_all(&shared, &pod, port.into()) => {
            if let Err(error) = ended {
                tracing::error!(pod = %pod.uid, %error, "dns socket failed");
            }
        }
    }
}

async fn forward_all(
    shared: &Arc<Shared>,
    pod: &Arc<Pod>,
    port: std::rc::Rc<dyn DnsPort>,
) -> io::Result<()> {
    let ready = UdpSocket::from_std(port.readiness()?)?;
    let places = Arc::new(Semaphore::new(QUESTIONS_MAX));
    let mut buffer = vec![0; MESSAGE_BYTES_MAX];
    loop {
        let asked = match ready
            .async_io(Interest::READABLE, || port.try_recv(&mut buffer))
            .await
        {
            Ok(asked) => asked,
            Err(error) => {
                // one question lost must not end the pod's DNS
                tracing::warn!(pod = %pod.uid, %error, "dns question not received");
                tokio::time::sleep(RECEIVE_PAUSE).await;
                continue;
            }
        };
        let asked = Asked {
            client: plain(asked.client),
            resolver: plain(asked.resolver),
            ..asked
        };
        if asked.len < HEADER_BYTES || shared.config.ipv4_only && asked.resolver.is_ipv6() {
            continue;
        }
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            shared.refusals.shed_question();
            continue;
        };
        let (question, pod, port) = (
            buffer[..asked.len].to_vec(),
            Arc::clone(pod),
            std::rc::Rc::clone(&port),
        );
        tokio::task::spawn_local(async move {
            let _place = place;
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
