//! Data threads: each a current-thread runtime that owns its connections from accept to close.
//!
//! A pod's listeners live on one thread, its home; an accepted connection goes to the thread with the fewest flows and
//! never moves again. What the threads share is read-only or handed over at accept.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::TcpStream;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

use crate::Shared;
use crate::accept::{self, Kind};
use crate::live::{Live, OpenFlow};
use crate::pod::{Door, Listeners, Pod, Stay};
use crate::tunnels::Tunnels;

/// Connections on their way from one thread to another; when a queue is full the accepting thread keeps the connection.
const HANDOVER_MAX: usize = 1024;
/// A neighbour must have this many flows fewer before a connection is handed over: a hand-over costs a wake-up.
const HANDOVER_GAIN_MIN: usize = 1;

/// How long a data thread may take to list its flows before it is reported as stuck.
const FLOWS_WAIT: Duration = Duration::from_secs(1);

/// Work for a data thread.
pub(crate) enum Command {
    /// Accept for this pod from now on.
    Serve(Arc<Pod>, Listeners, Vec<Door>),
    /// Serve one accepted connection.
    Take(Arc<Pod>, Kind, TcpStream, Stay),
    /// Drop what is kept for a pod's stay that is over.
    Forget(u64),
    /// List the open flows.
    Flows(oneshot::Sender<Vec<OpenFlow>>),
    /// Run something of the assembly's on this thread.
    Run(Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()>>> + Send>),
}

/// How the other threads reach one data thread.
#[derive(Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    load: Arc<AtomicUsize>,
}

impl Handle {
    /// Flows that the thread serves now.
    pub fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }
}

/// All data threads.
pub struct Shards {
    handles: Arc<[Handle]>,
    homes: AtomicUsize,
    threads: Vec<JoinHandle<()>>,
}

impl Shards {
    /// Starts `count` data threads, named `ztunnel-<n>`.
    ///
    /// Errors: the kernel's when a thread or its poller cannot be made.
    pub fn start(count: usize, shared: &Arc<Shared>) -> io::Result<Self> {
        let (mut handles, mut inboxes) = (Vec::new(), Vec::new());
        for _ in 0..count.max(1) {
            let (commands, inbox) = mpsc::channel(HANDOVER_MAX);
            handles.push(Handle {
                commands,
                load: Arc::default(),
            });
            inboxes.push(inbox);
        }
        let handles: Arc<[Handle]> = handles.into();
        let mut threads = Vec::new();
        for (number, inbox) in inboxes.into_iter().enumerate() {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let (shared, peers) = (Arc::clone(shared), Arc::clone(&handles));
            let thread = std::thread::Builder::new().name(format!("ztunnel-{number}"));
            threads.push(thread.spawn(move || {
                let local = LocalSet::new();
                local.block_on(&runtime, async move {
                    let shard = Shard::new(number, shared, peers);
                    shard.run(inbox).await;
                });
            })?);
        }
        Ok(Self {
            handles,
            homes: AtomicUsize::new(0),
            threads,
        })
    }

    /// Starts serving `pod` on the next data thread in turn.
    pub async fn serve(&self, pod: Arc<Pod>, listeners: Listeners) {
        let turn = self.homes.fetch_add(1, Ordering::Relaxed);
        let home = &self.handles[turn % self.handles.len()];
        // a closed inbox means that the process is ending
        let doors = (0..listeners.doors()).map(|_| pod.door()).collect();
        let _ = home
            .commands
            .send(Command::Serve(pod, listeners, doors))
            .await;
    }

    /// Forgets what the threads keep for one stay of a pod ([`Pod::serial`]), whose flows must have ended or been cut.
    pub async fn forget(&self, serial: u64) {
        for handle in self.handles.iter() {
            let _ = handle.commands.send(Command::Forget(serial)).await;
        }
    }

    /// All open flows of all pods, and the numbers of the threads that did not answer within a second.
    pub async fn flows(&self) -> (Vec<OpenFlow>, Vec<usize>) {
        let (mut all, mut silent) = (Vec::new(), Vec::new());
        for (number, handle) in self.handles.iter().enumerate() {
            let ask = async {
                let (answer, flows) = oneshot::channel();
                handle.commands.send(Command::Flows(answer)).await.ok()?;
                flows.await.ok()
            };
            match tokio::time::timeout(FLOWS_WAIT, ask).await {
                Ok(Some(flows)) => all.extend(flows),
                _ => silent.push(number),
            }
        }
        (all, silent)
    }

    /// Runs `task` on the first data thread.
    pub async fn run<F, Fut>(&self, task: F)
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        let _ = self.handles[0]
            .commands
            .send(Command::Run(Box::new(|| Box::pin(task()))))
            .await;
    }

    /// Number of data threads.
    pub fn count(&self) -> usize {
        self.threads.len()
    }

    /// Number of data threads that still run.
    pub fn alive(&self) -> usize {
        self.threads.iter().filter(|t| !t.is_finished()).count()
    }
}

/// What one data thread owns.
pub(crate) struct Shard {
    number: usize,
    pub(crate) shared: Arc<Shared>,
    pub(crate) counters: telemetry::metrics::Shard,
    pub(crate) live: Live,
    pub(crate) rng: RefCell<SmallRng>,
    tunnels: RefCell<HashMap<u64, Rc<Tunnels>>>,
    peers: Arc<[Handle]>,
}

impl Shard {
    fn new(number: usize, shared: Arc<Shared>, peers: Arc<[Handle]>) -> Rc<Self> {
        let counters = shared.registry.shard();
        let live = Live::new(shared.index.clone());
        let rng = RefCell::new(SmallRng::from_os_rng());
        Rc::new(Self {
            number,
            shared,
            counters,
            live,
            rng,
            tunnels: RefCell::default(),
            peers,
        })
    }

    async fn run(self: Rc<Self>, mut inbox: mpsc::Receiver<Command>) {
        tokio::task::spawn_local({
            let shard = Rc::clone(&self);
            async move { shard.live.watch().await }
        });
        while let Some(command) = inbox.recv().await {
            self.obey(command);
        }
    }

    fn obey(self: &Rc<Self>, command: Command) {
        match command {
            Command::Serve(pod, listeners, doors) => accept::start(self, &pod, listeners, doors),
            Command::Take(pod, kind, stream, stay) => accept::take(self, &pod, kind, stream, stay),
            Command::Forget(serial) => {
                if let Some(tunnels) = self.tunnels.borrow_mut().remove(&serial) {
                    drop(tokio::task::spawn_local(tunnels.close()));
                }
            }
            // the asker may have given up, which is its own business
            Command::Flows(answer) => drop(answer.send(self.live.open_flows())),
            Command::Run(task) => drop(tokio::task::spawn_local(task())),
        }
    }

    /// This thread's tunnels of `pod`.
    pub(crate) fn tunnels(&self, pod: &Pod) -> Rc<Tunnels> {
        let mut tunnels = self.tunnels.borrow_mut();
        Rc::clone(
            tunnels
                .entry(pod.serial())
                .or_insert_with(|| Rc::new(Tunnels::new(&self.shared.config))),
        )
    }

    /// Gives the connection to the least loaded thread; returns it when that is this one.
    pub(crate) fn place(
        &self,
        pod: &Arc<Pod>,
        kind: Kind,
        stream: TcpStream,
        stay: Stay,
    ) -> Option<(TcpStream, Stay)> {
        let own = self.load();
        let Some(least) = self.peers.iter().min_by_key(|p| p.load()) else {
            return Some((stream, stay));
        };
        if least.load() + HANDOVER_GAIN_MIN > own {
            return Some((stream, stay));
        }
        let command = Command::Take(Arc::clone(pod), kind, stream, stay);
        match least.commands.try_send(command) {
            Ok(()) => None,
            Err(TrySendError::Full(command) | TrySendError::Closed(command)) => match command {
                Command::Take(_, _, stream, stay) => Some((stream, stay)),
                _ => None,
            },
        }
    }

    fn load(&self) -> usize {
        self.peers[self.number].load()
    }

    /// Counts a flow on this thread until the mark is dropped.
    pub(crate) fn mark(&self) -> LoadMark {
        let load = Arc::clone(&self.peers[self.number].load);
        load.fetch_add(1, Ordering::Relaxed);
        LoadMark(load)
    }
}

/// One flow's share of its thread's load.
pub(crate) struct LoadMark(Arc<AtomicUsize>);

impl Drop for LoadMark {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
