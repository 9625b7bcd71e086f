//! SOCKS5 for the pod's own clients, on its loopback: a handshake, and from then on a connection as if capture had brought it.
//!
//! What the client says is understood by [`handshake`]; names are resolved as the pod's DNS would.

pub mod handshake;
pub mod laws;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use telemetry::access::Direction;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::Instrument;

use self::handshake::{Handshake, Next, Reply, Target};
use crate::accept::Accepted;
use crate::budget::Share;
use crate::failure::Failure;
use crate::pod::{Phase, reached};
use crate::{accept, dns, outbound, report};

/// How long a client may take to say where it wants to go.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long its name may take to be resolved.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves one SOCKS5 client to its end.
pub(crate) async fn serve(flow: Accepted) {
    let trace = hbone::Traceparent::random(&mut *flow.shard.rng.borrow_mut());
    let span = tracing::info_span!("socks5", id = %format_args!("{:032x}", trace.trace()));
    path(flow, trace).instrument(span).await;
}

async fn path(mut flow: Accepted, trace: hbone::Traceparent) {
    let mut phase = flow.pod.phase();
    let asked = tokio::select! {
        biased;
        () = reached(&mut phase, Phase::Cut) => Err(Failure::Drain),
        asked = ask(&mut flow) => asked,
    };
    match asked {
        Ok(Some(to)) => {
            flow.orig_dst = to;
            if accept::is_dns(&flow) {
                dns::serve_tcp(flow).await;
            } else {
                outbound::path(flow, trace).await;
            }
        }
        Ok(None) => {}
        Err(why) => {
            let shared = &flow.shard.shared;
            report::refused(shared, Direction::Outbound, flow.peer, flow.orig_dst, &why);
        }
    }
}

/// Where the client wants to go; it has been told that it will be connected. `None` when it is gone, or was told that it
/// will not be and that is counted elsewhere.
///
/// Errors: it broke the protocol or was too slow; its name is not known; where it wants to go is switched off.
async fn ask(flow: &mut Accepted) -> Result<Option<SocketAddr>, Failure> {
    let target = match timeout(HANDSHAKE_TIMEOUT, shake(&mut flow.stream)).await {
        Ok(Ok(target)) => target?,
        Ok(Err(error)) => {
            tracing::debug!(%error, "client gone before it said where it wants to go");
            return Ok(None);
        }
        Err(_) => return Err(Failure::SocksTimeout),
    };
    let to = match resolve(flow, target).await {
        Ok(to) => to,
        Err(why) => return refuse(flow, Reply::Unresolved, why).await,
    };
    if flow.shard.shared.config.ipv4_only && to.is_ipv6() {
        return refuse(flow, Reply::General, Failure::Ipv6Off).await;
    }
    if !flow.held.outbound() {
        let _ = tell(&mut flow.stream, Reply::General.bytes()).await;
        flow.shard.shared.refusals.shed(&flow.pod, Share::Outbound);
        return Ok(None);
    }
    Ok(tell(&mut flow.stream, Reply::Success.bytes())
        .await
        .is_ok()
        .then_some(to))
}

async fn refuse<T>(flow: &mut Accepted, reply: Reply, why: Failure) -> Result<T, Failure> {
    // whoever is gone need not be told
    let _ = tell(&mut flow.stream, reply.bytes()).await;
    Err(why)
}

/// Speaks with the client until it has said what it wants. Not a byte of what follows is read.
///
/// Errors: outer, the client is gone; inner, what it says is refused, which it has been told.
async fn shake(client: &mut TcpStream) -> io::Result<Result<Target, Failure>> {
    let mut handshake = Handshake::default();
    let mut buffer = [0; handshake::MESSAGE_BYTES_MAX];
    loop {
        let wanted = handshake.wants().min(buffer.len());
        let len = client.read(&mut buffer[..wanted]).await?;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match handshake.feed(&buffer[..len]).1 {
            Next::Read => {}
            Next::Answer(answer) => client.write_all(answer).await?,
            Next::Connect(target) => return Ok(Ok(target)),
            Next::Refuse(why) => {
                let _ = client.write_all(why.answer()).await;
                return Ok(Err(Failure::Socks(why)));
            }
        }
    }
}

/// A few bytes, which fit into the empty buffer of a socket that nobody has written much to.
async fn tell(client: &mut TcpStream, answer: &[u8]) -> io::Result<()> {
    timeout(HANDSHAKE_TIMEOUT, client.write_all(answer)).await?
}

/// The address that the client means: the first of its own family that its name has, else the first of the other.
///
/// Errors: [`Failure::NotResolved`].
async fn resolve(flow: &Accepted, target: Target) -> Result<SocketAddr, Failure> {
    let (host, port) = match target {
        Target::Address(ip, port) => return Ok(SocketAddr::new(ip, port)),
        Target::Name(host, port) => (host, port),
    };
    let own = flow.peer.is_ipv6();
    let families = [own, !own].into_iter();
    let mut why = None;
    for v6 in families.filter(|v6| !(*v6 && flow.shard.shared.config.ipv4_only)) {
        let answer = timeout(
            RESOLVE_TIMEOUT,
            dns::resolve(&flow.shard, &flow.pod, &host, v6),
        )
        .await;
        match answer {
            Ok(Ok(addresses)) => {
                if let Some(first) = addresses.first() {
                    return Ok(SocketAddr::new(first.to_canonical(), port));
                }
            }
            Ok(Err(error)) => why = why.or(Some(error)),
            Err(_) => why = why.or_else(|| Some(format!("no answer within {RESOLVE_TIMEOUT:?}"))),
        }
    }
    let why = why.unwrap_or_else(|| "it has no address".to_owned());
    Err(Failure::NotResolved { host, why })
}
