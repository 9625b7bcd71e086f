//! Questions of a pod that come over connections, one after another.
//!
//! Source: RFC 7766 (DNS over TCP), RFC 1035, section 4.2.2 (the length in front).

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

use super::desk::{Desk, Via};
use super::message::Transport;
use super::wire::HEADER_BYTES;
use crate::accept::Accepted;
use crate::pod::{Phase, reached};

/// How long a client may take for its next question, for its bytes, or to take an answer (spec: dns §2).
const IDLE_MAX: Duration = Duration::from_secs(5);
/// The same for its next question once the pod is leaving: what it has sent already is there by then.
const LEAVING_IDLE_MAX: Duration = Duration::from_millis(50);

/// Serves questions of a pod that come over TCP, until the client is done.
pub(crate) async fn serve(flow: Accepted) {
    let Accepted {
        shard,
        pod,
        mut stream,
        orig_dst,
        held,
        ..
    } = flow;
    let via = Via {
        transport: Transport::Tcp,
        resolver: pod.net.keeps_resolver().then_some(orig_dst),
    };
    let (mut drain, mut cut) = (pod.phase(), pod.phase());
    let desk = Desk { shard, pod };
    let conversation = converse(&desk, &mut stream, via, &mut drain);
    tokio::select! {
        ended = conversation => if let Err(error) = ended {
            tracing::debug!(pod = %desk.pod.uid, %error, "dns connection ended");
        },
        () = reached(&mut cut, Phase::Cut) => {}
    }
    drop(held);
}

async fn converse(
    desk: &Desk,
    stream: &mut TcpStream,
    via: Via,
    phase: &mut watch::Receiver<Phase>,
) -> io::Result<()> {
    while is_more(stream, phase).await? {
        let Some(message) = within(read(stream)).await? else {
            return Ok(());
        };
        let Some(answer) = desk.answer(&message, via).await else {
            return Ok(());
        };
        within(write(stream, &answer)).await?;
    }
    Ok(())
}

/// Waits for a question. False: none came in time.
async fn is_more(stream: &TcpStream, phase: &mut watch::Receiver<Phase>) -> io::Result<bool> {
    // looked at, not asked for readiness: that would be left over from the last question
    let (mut first, mut last) = ([0; 1], [0; 1]);
    let waited = tokio::select! {
        biased;
        first = timeout(IDLE_MAX, stream.peek(&mut first)) => first,
        () = reached(phase, Phase::Drain) => timeout(LEAVING_IDLE_MAX, stream.peek(&mut last)).await,
    };
    waited.map_or(Ok(false), |bytes| bytes.map(|bytes| bytes > 0))
}

async fn within<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(IDLE_MAX, step)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The next message; none = the client is done, or sends what is none.
async fn read(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let len = match stream.read_u16().await {
        Ok(len) => usize::from(len),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if len < HEADER_BYTES {
        return Ok(None);
    }
    // grows with what comes, not with what was said
    let mut message = Vec::new();
    let read = stream.take(len as u64).read_to_end(&mut message).await?;
    Ok((read == len).then_some(message))
}

async fn write(stream: &mut TcpStream, answer: &[u8]) -> io::Result<()> {
    let len = u16::try_from(answer.len()).map_err(io::Error::other)?;
    let mut message = Vec::with_capacity(2 + answer.len());
    message.extend_from_slice(&len.to_be_bytes());
    message.extend_from_slice(answer);
    stream.write_all(&message).await
}
