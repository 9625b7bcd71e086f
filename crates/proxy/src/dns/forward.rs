//! Asks a resolver from within the pod's namespace: UDP first, TCP for what is too long for it, once more when nothing comes.
//!
//! Each try has a socket of its own, and so a source port of the kernel's choice, and an id of its own. What `relay` does not take
//! for the answer is not one. Which questions are asked at all is left to `memory`.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use rand::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep_until};

use super::relay::{Reception, receive};
use super::wire::Header;
use crate::needs::{Dial, Net};

/// A further try begins this long after the one before, when that has no answer; whichever answers first counts.
const SECOND_TRY_AFTER: Duration = Duration::from_millis(1500);
/// A question is given up after this long: clients ask again after 5 s and should hear of it before that.
const ANSWER_WAIT: Duration = Duration::from_millis(4500);
/// Most tries, as many as resolvers are used; a lone one is tried twice.
const TRIES_MAX: usize = 3;
/// Response codes that say what is known (RFC 1035, section 4.1.1).
const NO_ERROR: u8 = 0;
const NO_NAME: u8 = 3;
/// Datagrams of the resolver's address that do not answer the question, until the try is given up: somebody is guessing.
const FORGERIES_MAX: u32 = 32;
/// Largest DNS message.
pub(super) const MESSAGE_BYTES_MAX: usize = 65_535;

thread_local! {
    /// Where messages land before their length is known.
    pub(super) static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; MESSAGE_BYTES_MAX]);
}

/// Why there is no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum Trouble {
    #[error("no answer within {ANSWER_WAIT:?}")]
    Silence,
    #[error("there is no resolver to ask")]
    NoResolver,
    #[error("too many messages that do not answer the question")]
    Forgeries,
    #[error("too many questions under way")]
    Busy,
    #[error("{0}")]
    Network(Arc<io::Error>),
    #[error("the pod is leaving")]
    Leaving,
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Network(error.into())
    }
}

/// An answer, and the place in the list of the resolver that gave it.
pub(super) type Answered = (Arc<[u8]>, usize);

/// A try under way.
type Try<'a> = Pin<Box<dyn Future<Output = Result<Answered, Trouble>> + 'a>>;

/// Asks `question`, whatever its id, of the resolver at `first` of `resolvers`; of the next ones when that is silent, out of
/// reach, or answers that it cannot or will not say. Such a word counts when none has a better one.
///
/// Errors: none answered in time, or none can be reached.
pub(super) async fn ask(
    net: &dyn Net,
    resolvers: &[SocketAddr],
    first: usize,
    question: &[u8],
) -> Result<Answered, Trouble> {
    let is_only = resolvers.len() < 2;
    let attempt = |turn: usize| -> Try<'_> {
        let at = first.wrapping_add(turn) % resolvers.len().max(1);
        Box::pin(async move {
            let resolver = resolvers.get(at).copied().ok_or(Trouble::NoResolver)?;
            let answer = once(net, resolver, question).await?;
            Ok((answer.into(), at))
        })
    };
    let mut turns = 1..TRIES_MAX.min(resolvers.len().max(2));
    let mut under_way = vec![attempt(0)];
    let (mut word, mut trouble) = (None, Trouble::Silence);
    let start = Instant::now();
    let end = sleep_until(start + ANSWER_WAIT);
    tokio::pin!(end);
    loop {
        let next = start + SECOND_TRY_AFTER * u32::try_from(turns.start).unwrap_or(u32::MAX);
        tokio::select! {
            biased;
            done = first_of(&mut under_way) => match done {
                Ok(answer) if is_only || is_last_word(&answer.0) => return Ok(answer),
                Ok(answer) => word = word.or(Some(answer)),
                // out of reach is told at once
                Err(why) if is_only => return Err(why),
                Err(why) => trouble = why,
            },
            () = sleep_until(next), if !turns.is_empty() => {}
            () = &mut end => break,
        }
        match turns.next() {
            Some(turn) => under_way.push(attempt(turn)),
            None if under_way.is_empty() => break,
            None => {}
        }
    }
    word.ok_or(trouble)
}

/// The first of these tries to end, which is then no longer among them.
async fn first_of(tries: &mut Vec<Try<'_>>) -> Result<Answered, Trouble> {
    poll_fn(|cx| {
        for at in 0..tries.len() {
            if let Poll::Ready(done) = tries[at].as_mut().poll(cx) {
                drop(tries.swap_remove(at));
                return Poll::Ready(done);
            }
        }
        Poll::Pending
    })
    .await
}

/// Whether a resolver knows: there is such a name with these records, or there is none. What it refuses or fails to find out,
/// another one may know.
pub(super) fn is_last_word(answer: &[u8]) -> bool {
    Header::read(answer).is_some_and(|header| matches!(header.code(), NO_ERROR | NO_NAME))
}

/// One try with one resolver.
async fn once(net: &dyn Net, resolver: SocketAddr, question: &[u8]) -> Result<Vec<u8>, Trouble> {
    let mut question = question.to_vec();
    let id: [u8; 2] = rand::rng().random();
    if let Some(place) = question.first_chunk_mut() {
        *place = id;
    }
    let (answer, reception) = over_udp(net, resolver, &question).await?;
    if reception == Reception::Whole {
        return Ok(answer);
    }
    match over_tcp(net, resolver, &question).await {
        Ok(whole) => Ok(whole),
        Err(error) => {
            // the client may fare better with it than without
            tracing::debug!(%resolver, %error, "a long dns answer could not be had over tcp");
            Ok(answer)
        }
    }
}

async fn over_udp(
    net: &dyn Net,
    resolver: SocketAddr,
    question: &[u8],
) -> Result<(Vec<u8>, Reception), Trouble> {
    let socket = UdpSocket::from_std(net.resolver(resolver)?)?;
    socket.send(question).await?;
    let mut forgeries = 0;
    loop {
        readable(&socket).await?;
        let received = SCRATCH.with_borrow_mut(|scratch| {
            let len = socket.try_recv(scratch)?;
            let reception = receive(question, &scratch[..len]);
            let is_ours = reception != Reception::Foreign;
            Ok::<_, io::Error>(is_ours.then(|| (scratch[..len].to_vec(), reception)))
        });
        match received {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => forgeries += 1,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        if forgeries >= FORGERIES_MAX {
            return Err(Trouble::Forgeries);
        }
    }
}

/// Waits for a datagram.
///
/// Errors: what came instead, such as that nobody listens there. It makes a socket ready, but not readable.
async fn readable(socket: &UdpSocket) -> io::Result<()> {
    loop {
        let ready = socket.ready(Interest::READABLE | Interest::ERROR).await?;
        if ready.is_error() {
            if let Some(error) = socket.take_error()? {
                return Err(error);
            }
            // told before: wait for the next
            let _ = socket.try_io(Interest::ERROR, || {
                Err::<(), _>(io::ErrorKind::WouldBlock.into())
            });
        }
        if ready.is_readable() {
            return Ok(());
        }
    }
}

async fn over_tcp(net: &dyn Net, resolver: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let socket = net.socket(&Dial::Hop { to: resolver })?;
    let mut stream = socket.connect(resolver).await?;
    let len = u16::try_from(question.len()).map_err(io::Error::other)?;
    let mut message = Vec::with_capacity(2 + question.len());
    message.extend_from_slice(&len.to_be_bytes());
    message.extend_from_slice(question);
    stream.write_all(&message).await?;
    let mut answer = Vec::new();
    let len = stream.read_u16().await?;
    let read = stream.take(len.into()).read_to_end(&mut answer).await?;
    match receive(question, &answer) {
        Reception::Whole if read == usize::from(len) => Ok(answer),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}
