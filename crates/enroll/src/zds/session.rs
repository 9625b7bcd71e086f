//! One connection to the agent, from its snapshot to its end: requests are carried out one after the other and answered in
//! time, and what could not be started is tried again.

use std::collections::VecDeque;
use std::fmt;
use std::future::{pending, ready};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::book::{Book, Candidate, Started, Step};
use super::packet::{self, BadPacket, Info, PACKET_BYTES_MAX, Request};
use super::place::Place;
use super::wire::Wire;
use super::{Order, ProtocolError, Standing};
use crate::pod::{CaptureOptions, NetnsHandle, PodSpec};

/// How long a request may take; the agent waits 5 s for the answer, of which a start that is tried again may take one more.
const ORDER_MAX: Duration = Duration::from_millis(3_500);
/// How long a start that is tried again may take: requests wait behind it.
const RETRY_ORDER_MAX: Duration = Duration::from_secs(1);
/// Time between a failed start and its next try.
const RETRY: Duration = Duration::from_secs(5);

/// Why a connection ended.
#[derive(Debug)]
pub(super) enum End {
    /// The agent hung up, or the socket broke.
    Lost(io::Error),
    /// A packet could not be read.
    Unreadable(BadPacket),
    /// The agent broke the protocol.
    Protocol(ProtocolError),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(error) => write!(f, "{error}"),
            Self::Unreadable(error) => write!(f, "failure to read message : {error}"),
            Self::Protocol(error) => write!(f, "failure to process message : {error}"),
        }
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Lost(error)
    }
}

/// One connection.
pub(super) struct Session<'a> {
    wire: Wire,
    book: &'a mut Book<Place>,
    orders: &'a mpsc::Sender<Order>,
    standing: &'a watch::Sender<Standing>,
    /// when what is pending is tried again
    retry_at: Option<Instant>,
    /// what is being tried again
    retries: VecDeque<Arc<str>>,
    served: bool,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        wire: Wire,
        book: &'a mut Book<Place>,
        orders: &'a mpsc::Sender<Order>,
        standing: &'a watch::Sender<Standing>,
    ) -> Self {
        book.connected();
        Self {
            wire,
            book,
            orders,
            standing,
            retry_at: None,
            retries: VecDeque::new(),
            served: false,
        }
    }

    /// Whether any request was understood.
    pub(super) fn has_served(&self) -> bool {
        self.served
    }

    /// Serves the connection to its end.
    pub(super) async fn run(&mut self) -> End {
        let mut buffer = [0; PACKET_BYTES_MAX];
        loop {
            self.tell();
            let retry_at = self.retry_at;
            let due = async {
                match retry_at {
                    Some(at) => sleep_until(at).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                packet = self.wire.receive(&mut buffer) => {
                    let done = match packet {
                        Ok(packet) => self.take(&buffer, packet).await,
                        Err(error) => Err(error.into()),
                    };
                    if let Err(end) = done {
                        return end;
                    }
                }
                // one at a time, so that requests come between
                () = ready(()), if !self.retries.is_empty() => self.retry().await,
                () = due => {
                    self.retry_at = None;
                    self.retries = self.book.pending_uids().cloned().collect();
                }
            }
        }
    }

    /// Says how things stand.
    fn tell(&self) {
        let now = Standing {
            connected: true,
            snapshot: self.book.has_snapshot(),
            pending: self.book.pending().collect(),
        };
        self.standing.send_if_modified(|told| {
            let changed = *told != now;
            *told = now;
            changed
        });
    }

    /// Takes one packet: carries out what it asks for, and answers.
    async fn take(&mut self, buffer: &[u8], packet: sys::seqpacket::Packet) -> Result<(), End> {
        if packet.len == 0 && packet.fds.is_empty() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let request = match read(buffer, packet) {
            Ok(request) => request,
            Err(error) => return Err(self.refuse(End::Unreadable(error)).await),
        };
        self.served = true;
        self.note(&request);
        let step = match self.book.take(request) {
            Ok(step) => step,
            Err(error) => return Err(self.refuse(End::Protocol(error)).await),
        };
        let error = self.carry_out(step).await;
        self.arm();
        let answer = error.map_or_else(String::new, |error| {
            format!("failure to start proxy : {error}")
        });
        Ok(self.wire.send(&packet::answer(&answer)).await?)
    }

    /// Logs what the agent asks for.
    fn note(&self, request: &Request<Place>) {
        match request {
            Request::Add { uid, info, .. } => {
                let (name, namespace) = names(info.as_ref());
                tracing::info!(pod = %uid, name, namespace, "istio-cni adds a pod");
            }
            Request::Keep(uid) => {
                let (name, namespace) = names(self.book.info(uid));
                tracing::info!(pod = %uid, name, namespace, "istio-cni keeps a pod");
            }
            Request::Del(uid) => {
                let (name, namespace) = names(self.book.info(uid));
                tracing::info!(pod = %uid, name, namespace, "istio-cni deletes a pod");
            }
            Request::SnapshotSent => tracing::info!("istio-cni has told of all pods"),
        }
    }

    /// Does what a request leads to; gives what went wrong.
    async fn carry_out(&mut self, step: Step<Place>) -> Option<String> {
        match step {
            Step::Done => None,
            Step::Refused(why) => {
                tracing::error!(error = why, "pod not served");
                Some(why)
            }
            Step::Start {
                candidate,
                replaces,
            } => {
                let uid = Arc::clone(&candidate.uid);
                let error = self.start(candidate, replaces, ORDER_MAX).await?;
                tracing::error!(pod = %uid, error, "pod not served, trying again");
                Some(error)
            }
            Step::Stop(uids) => {
                self.stop(uids).await;
                None
            }
        }
    }

    /// Tells the agent why the connection ends.
    async fn refuse(&self, end: End) -> End {
        if let Err(error) = self.wire.send(&packet::answer(&end.to_string())).await {
            tracing::debug!(%error, "the refusal could not be sent");
        }
        end
    }

    /// Orders a start and waits for its outcome; gives what went wrong.
    async fn start(
        &mut self,
        mut candidate: Candidate<Place>,
        replaces: bool,
        within: Duration,
    ) -> Option<String> {
        let until = Instant::now() + within;
        let how = match self.spec(&mut candidate) {
            Ok(spec) => self.order_start(spec, until).await,
            Err(error) => {
                if replaces {
                    // what was served before is over whatever comes after it
                    self.stop(vec![Arc::clone(&candidate.uid)]).await;
                }
                Started::No(error)
            }
        };
        let error = match &how {
            Started::Yes => None,
            Started::No(error) => Some(error.clone()),
            Started::Unknown => Some(format!("no answer within {within:?}")),
        };
        self.book.started(candidate, how);
        error
    }

    async fn order_start(&self, spec: PodSpec, until: Instant) -> Started {
        let (done, answer) = oneshot::channel();
        let spec = Arc::new(spec);
        let order = self.order(Order::Start { spec, done });
        if timeout_at(until, order).await.is_err() {
            // not even taken
            return Started::No("the node is busy".to_owned());
        }
        match timeout_at(until, answer).await {
            Ok(Ok(Ok(()))) => Started::Yes,
            Ok(Ok(Err(error))) => Started::No(error),
            Ok(Err(_)) | Err(_) => Started::Unknown,
        }
    }

    /// Orders stops and waits until they have begun, as long as the agent does.
    async fn stop(&self, uids: Vec<Arc<str>>) {
        let until = Instant::now() + ORDER_MAX;
        let mut answers = Vec::with_capacity(uids.len());
        for uid in uids {
            let (done, answer) = oneshot::channel();
            if timeout_at(until, self.order(Order::Stop { uid, done }))
                .await
                .is_err()
            {
                break;
            }
            answers.push(answer);
        }
        for answer in answers {
            // orders are carried out in turn: one that is late is not lost
            if timeout_at(until, answer).await.is_err() {
                tracing::warn!("pods take long to stop");
                return;
            }
        }
    }

    async fn order(&self, order: Order) {
        if self.orders.send(order).await.is_err() {
            // nobody takes orders any more: the process is ending
            pending::<()>().await;
        }
    }

    /// What is to be served.
    ///
    /// Errors: it cannot be; why.
    fn spec(&self, candidate: &mut Candidate<Place>) -> Result<PodSpec, String> {
        let netns = candidate
            .netns
            .open()
            .map_err(|error| format!("network namespace: {error}"))?;
        if let Some(holder) = self.book.holder(candidate) {
            return Err(format!("its network namespace is that of pod {holder}"));
        }
        let inode = netns.inode();
        Ok(PodSpec {
            uid: Arc::clone(&candidate.uid),
            name: Arc::clone(&candidate.info.name),
            namespace: Arc::clone(&candidate.info.namespace),
            service_account: Arc::clone(&candidate.info.service_account),
            netns: PathBuf::from(format!("net:[{inode}]")),
            netns_handle: Some(NetnsHandle(netns)),
            netns_inode: Some(inode),
            cgroup: None,
            cgroup_inode: None,
            capture: CaptureOptions::default(),
        })
    }

    /// Tries the next pending pod again.
    async fn retry(&mut self) {
        let next = self.retries.pop_front();
        // it may have gone meanwhile
        if let Some(candidate) = next.and_then(|uid| self.book.again(&uid)) {
            let uid = Arc::clone(&candidate.uid);
            match self.start(candidate, false, RETRY_ORDER_MAX).await {
                None => tracing::info!(pod = %uid, "pod served after all"),
                Some(error) => {
                    tracing::warn!(pod = %uid, error, "pod not served yet, trying again")
                }
            }
        }
        if self.retries.is_empty() {
            self.arm();
        }
    }

    /// Sets the time of the next tries, unless it is set, or they are under way.
    fn arm(&mut self) {
        let wanted = self.book.pending_uids().next().is_some();
        if wanted && self.retry_at.is_none() && self.retries.is_empty() {
            self.retry_at = Some(Instant::now() + RETRY);
        }
    }
}

/// Reads a packet, and what its descriptors are.
fn read(buffer: &[u8], packet: sys::seqpacket::Packet) -> Result<Request<Place>, BadPacket> {
    let places: io::Result<Vec<Place>> = packet.fds.into_iter().map(Place::new).collect();
    let places = places.map_err(|error| BadPacket::Descriptor(error.to_string()))?;
    packet::read(&buffer[..packet.len], packet.truncated, places)
}

/// Name and namespace for the log.
fn names(info: Option<&Info>) -> (&str, &str) {
    info.map_or(("", ""), |info| (&info.name, &info.namespace))
}
