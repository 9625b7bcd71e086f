//! First step of every path: take connections off a pod's listeners and give each to a data thread.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tracing::Instrument;

use crate::budget::Share;
use crate::failure::Failure;
use crate::pod::{Door, Listeners, Phase, Pod, Stay, reached};
use crate::shard::{LoadMark, Shard};
use crate::{dns, inbound, outbound, passthrough, report, socks};

/// Pause after a failed accept, so that exhausted descriptors do not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Connections taken from a listener that closes: as many as its queue holds.
const REST_MAX: usize = 4096;
/// Of these, as many before other work of the thread has its turn.
const REST_SLICE: usize = 32;

/// Resolvers listen here.
const DNS_PORT: u16 = 53;

/// Which listener a connection came in on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// captured outbound connection of the application
    Outbound,
    /// HBONE from a peer
    Hbone,
    /// captured plaintext inbound connection
    Plaintext,
    /// SOCKS5 client of the pod
    Socks,
    /// connection of the application to a resolver, where the daemon answers in its place
    Dns,
}

impl Kind {
    /// What a connection counts as when it is accepted. One to the HBONE port is a stranger's until its handshake.
    fn share(self) -> Share {
        match self {
            Kind::Outbound => Share::Outbound,
            Kind::Hbone => Share::Handshake,
            Kind::Plaintext => Share::Plaintext,
            Kind::Socks => Share::Socks,
            Kind::Dns => Share::Dns,
        }
    }

    fn reporter(self) -> telemetry::metrics::Reporter {
        match self {
            Kind::Outbound | Kind::Socks | Kind::Dns => telemetry::metrics::Reporter::Source,
            Kind::Hbone | Kind::Plaintext => telemetry::metrics::Reporter::Destination,
        }
    }

    /// Whether only captured connections are served: one that was made to the listener itself would lead here again.
    fn is_capture(self) -> bool {
        matches!(self, Kind::Outbound | Kind::Plaintext)
    }
}

/// One accepted connection on the thread that serves it.
pub(crate) struct Accepted {
    pub(crate) shard: Rc<Shard>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) stream: tokio::net::TcpStream,
    /// the other end
    pub(crate) peer: SocketAddr,
    /// where the connection was meant to go
    pub(crate) orig_dst: SocketAddr,
    /// it was captured, not made to the listener itself
    pub(crate) captured: bool,
    /// what the connection takes until it is over
    pub(crate) held: Held,
}

/// Places in the pod's budget, the thread's load and the socket gauge, given back on drop.
pub(crate) struct Held {
    stay: Stay,
    _mark: LoadMark,
    _open: telemetry::metrics::Socket,
}

impl Held {
    /// Moves a connection whose peer has proven who it is out of the strangers' budget; false when its own is used up.
    pub(crate) fn proven(&mut self) -> bool {
        self.stay.become_a(Share::Hbone)
    }

    /// Counts a connection that has said where it leads as one of the application's; false when its budget is used up.
    pub(crate) fn outbound(&mut self) -> bool {
        self.stay.become_a(Share::Outbound)
    }
}

/// Starts the accept loops of `pod` on this thread.
pub(crate) fn start(shard: &Rc<Shard>, pod: &Arc<Pod>, listeners: Listeners, doors: Vec<Door>) {
    let Listeners {
        outbound,
        hbone,
        plaintext,
        socks,
        dns,
        dns_tcp,
    } = listeners;
    let listeners = [
        (Kind::Outbound, outbound),
        (Kind::Hbone, hbone),
        (Kind::Plaintext, plaintext),
        (Kind::Socks, socks),
    ];
    let single = listeners
        .into_iter()
        .filter_map(|(kind, l)| Some((kind, l?)));
    let resolvers = dns_tcp.into_iter().map(|l| (Kind::Dns, l));
    let mut doors = doors.into_iter();
    for ((kind, listener), door) in single.chain(resolvers).zip(&mut doors) {
        let (shard, pod) = (Rc::clone(shard), Arc::clone(pod));
        tokio::task::spawn_local(async move {
            if let Err(error) = listen(&shard, &pod, kind, listener).await {
                tracing::error!(pod = %pod.uid, ?kind, %error, "listener failed");
            }
            drop(door);
        });
    }
    for (port, door) in dns.into_iter().zip(doors) {
        let (shard, pod) = (Rc::clone(shard), Arc::clone(pod));
        tokio::task::spawn_local(async move {
            dns::serve(shard, pod, port).await;
            drop(door);
        });
    }
}

async fn listen(
    shard: &Rc<Shard>,
    pod: &Arc<Pod>,
    kind: Kind,
    listener: std::net::TcpListener,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let mut phase = pod.phase();
    loop {
        tokio::select! {
            biased;
            () = reached(&mut phase, Phase::Drain) => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => admit(shard, pod, kind, stream.into_std()?),
                Err(error) => {
                    tracing::warn!(pod = %pod.uid, ?kind, %error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    // What the kernel has completed already would be reset by closing the listener. Asked directly: the runtime would
    // only tell of connections that it has heard of.
    let listener = listener.into_std()?;
    let take = |stream| {
        admit(shard, pod, kind, stream);
        *phase.borrow() == Phase::Drain
    };
    if *phase.borrow() == Phase::Drain {
        rest(&listener, take).await?;
    }
    Ok(())
}

/// Gives what waits in `listener` to `take` until nothing does, or `take` says that it is enough. Who comes meanwhile is
/// served as well, but no more than a full queue of them, and other work of the thread has its turn.
async fn rest(
    listener: &std::net::TcpListener,
    take: impl Fn(TcpStream) -> bool,
) -> io::Result<()> {
    for number in 1..=REST_MAX {
        let Ok((stream, _)) = listener.accept() else {
            break;
        };
        stream.set_nonblocking(true)?;
        if !take(stream) {
            break;
        }
        if number % REST_SLICE == 0 {
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}

fn admit(shard: &Rc<Shard>, pod: &Arc<Pod>, kind: Kind, stream: TcpStream) {
    let share = kind.share();
    let Some(stay) = pod.enter(share) else {
        shard.shared.refusals.shed(pod, share);
        return;
    };
    if let Some((stream, stay)) = shard.place(pod, kind, stream, stay) {
        take(shard, pod, kind, stream, stay);
    }
}

/// Serves one accepted connection on this thread.
pub(crate) fn take(shard: &Rc<Shard>, pod: &Arc<Pod>, kind: Kind, stream: TcpStream, stay: Stay) {
    let mut accepted = match settle(shard, pod, kind, stream, stay) {
        Ok(accepted) => accepted,
        Err(error) => {
            tracing::debug!(pod = %pod.uid, ?kind, %error, "connection gone before it was served");
            return;
        }
    };
    if shard.shared.config.ipv4_only && accepted.orig_dst.is_ipv6() {
        return refuse(&accepted, kind, &Failure::Ipv6Off);
    }
    if kind.is_capture() && !accepted.captured {
        return refuse(&accepted, kind, &Failure::SelfCall);
    }
    let mut kind = kind;
    if kind == Kind::Outbound && is_dns(&accepted) {
        if !accepted.held.stay.become_a(Share::Dns) {
            return shard.shared.refusals.shed(pod, Share::Dns);
        }
        kind = Kind::Dns;
    }
    let span = tracing::info_span!("proxy", wl = %format_args!("{}/{}", pod.namespace, pod.name));
    match kind {
        Kind::Outbound => spawn(outbound::serve(accepted), span),
        Kind::Hbone => spawn(inbound::serve(accepted), span),
        Kind::Plaintext => spawn(passthrough::serve(accepted), span),
        Kind::Socks => spawn(socks::serve(accepted), span),
        Kind::Dns => spawn(dns::serve_tcp(accepted), span),
    }
}

/// Whether a captured connection leads to a resolver whose place the daemon takes.
pub(crate) fn is_dns(flow: &Accepted) -> bool {
    flow.pod.options.dns && flow.orig_dst.port() == DNS_PORT
}

/// Ends a connection that is not served: IPv6 that is switched off is captured like all else, so that nothing passes by in
/// the clear; one that was made to the listener itself would only lead here again.
fn refuse(flow: &Accepted, kind: Kind, why: &Failure) {
    let direction = match kind {
        Kind::Outbound | Kind::Socks | Kind::Dns => telemetry::access::Direction::Outbound,
        Kind::Hbone | Kind::Plaintext => telemetry::access::Direction::Inbound,
    };
    let shared = &flow.shard.shared;
    report::refused(shared, direction, flow.peer, flow.orig_dst, why);
}

fn spawn(path: impl Future<Output = ()> + 'static, span: tracing::Span) {
    tokio::task::spawn_local(path.instrument(span));
}

fn settle(
    shard: &Rc<Shard>,
    pod: &Arc<Pod>,
    kind: Kind,
    stream: TcpStream,
    stay: Stay,
) -> io::Result<Accepted> {
    let (peer, local) = (plain(stream.peer_addr()?), plain(stream.local_addr()?));
    let meant = match kind {
        Kind::Hbone | Kind::Socks => Some(local),
        Kind::Outbound | Kind::Plaintext | Kind::Dns => pod.net.original_destination(&stream)?,
    };
    let stream = tokio::net::TcpStream::from_std(stream)?;
    let held = Held {
        stay,
        _mark: shard.mark(),
        _open: shard.counters.socket(kind.reporter()),
    };
    Ok(Accepted {
        shard: Rc::clone(shard),
        pod: Arc::clone(pod),
        stream,
        peer,
        orig_dst: meant.map_or(local, plain),
        captured: meant.is_some(),
        held,
    })
}

/// The address without IPv4-in-IPv6 mapping.
pub(crate) fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn listener() -> (std::net::TcpListener, SocketAddr) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let to = listener.local_addr().unwrap();
        (listener, to)
    }

    #[tokio::test]
    async fn what_waits_is_taken_before_a_listener_closes() {
        let (listener, to) = listener();
        let _clients = [(); 5].map(|()| TcpStream::connect(to).unwrap());
        let taken = Cell::new(0);
        let take = |wanted| {
            let taken = &taken;
            move |_| {
                taken.set(taken.get() + 1);
                taken.get() < wanted
            }
        };
        rest(&listener, take(2)).await.unwrap();
        assert_eq!(taken.get(), 2);
        rest(&listener, take(100)).await.unwrap();
        assert_eq!(taken.get(), 5);
    }

    #[tokio::test]
    async fn a_flood_neither_holds_the_thread_nor_the_listener() {
        let (listener, to) = listener();
        let _first = TcpStream::connect(to).unwrap();
        let (taken, turns) = (Cell::new(0), Cell::new(0));
        let flooded = rest(&listener, |_| {
            taken.set(taken.get() + 1);
            // whoever goes is followed by the next at once
            TcpStream::connect(to).is_ok()
        });
        let other = async {
            loop {
                turns.set(turns.get() + 1);
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            () = other => unreachable!("it goes on for ever"),
            done = flooded => done.unwrap(),
        }
        assert_eq!(taken.get(), REST_MAX);
        assert!(turns.get() >= REST_MAX / REST_SLICE, "{turns:?}");
    }
}
