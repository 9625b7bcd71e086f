//! The agent: who is connected, which pods it knows, whom it tells.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::messages::Request;
use super::packet::Port;
use super::record::{Event, Record};
use super::serve::{Member, Outcome, STEP_MAX, Serving, Shared, Task};
use crate::pod::Pod;

/// The agent takes five connections a second.
const ACCEPT_EVERY: Duration = Duration::from_millis(200);
/// Most time for a request to get its turn and its answer: behind a long snapshot and the agent's own deadline.
const TURN_MAX: Duration = Duration::from_secs(60);

/// A pod that the agent knows.
#[derive(Debug, Clone)]
pub struct Entry {
    /// pod UID
    pub uid: String,
    /// pod name
    pub name: String,
    /// namespace
    pub namespace: String,
    /// service account
    pub service_account: String,
    /// network namespace; a pod without one is told of by `keep`
    pub netns: Option<Arc<File>>,
}

impl Entry {
    /// A pod of a world, its namespace held open.
    ///
    /// Errors: its namespace is not there.
    pub fn of(pod: &Pod) -> Result<Self> {
        Self::at(pod, &pod.netns)
    }

    /// The same with another namespace (or whatever `path` is).
    ///
    /// Errors: it cannot be opened.
    pub fn at(pod: &Pod, path: &Path) -> Result<Self> {
        let netns = File::open(path).with_context(|| format!("open {}", path.display()))?;
        Ok(Self {
            netns: Some(Arc::new(netns)),
            ..Self::kept(pod)
        })
    }

    /// The same without one.
    pub fn kept(pod: &Pod) -> Self {
        Self {
            uid: pod.uid.clone(),
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            service_account: pod.service_account.clone(),
            netns: None,
        }
    }

    pub(super) fn request(&self) -> Request {
        if self.netns.is_some() {
            Request::add(
                &self.uid,
                &self.name,
                &self.namespace,
                &self.service_account,
            )
        } else {
            Request::keep(&self.uid)
        }
    }
}

/// An answer as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// on which connection
    pub link: u64,
    /// the packet
    pub bytes: Vec<u8>,
    /// its error text, empty for success
    pub error: String,
    /// time since the request was sent
    pub took: Duration,
}

impl Answer {
    /// Itself, if it is the success of the contract, byte for byte.
    ///
    /// Errors: anything else.
    pub fn acked(self) -> Result<Self> {
        if self.bytes == [0x0a, 0] {
            Ok(self)
        } else {
            bail!("not acked: {self:?}")
        }
    }
}

/// The agent. Dropping it closes everything, as its end does.
pub struct Agent {
    path: PathBuf,
    shared: Arc<Shared>,
    running: Option<(Arc<Port>, JoinHandle<()>)>,
}

impl Agent {
    /// Begins to listen, with an empty cache.
    ///
    /// Errors: of the socket.
    pub fn start(path: &Path) -> Result<Self> {
        let mut agent = Self::stopped(path);
        agent.resume()?;
        Ok(agent)
    }

    /// One that does not listen yet.
    pub fn stopped(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            shared: Arc::default(),
            running: None,
        }
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it saw and did.
    pub fn record(&self) -> &Record {
        &self.shared.record
    }

    /// Stops listening and closes all connections; the cache stays.
    pub fn stop(&mut self) {
        let Some((port, thread)) = self.running.take() else {
            return;
        };
        port.close();
        // a panic of the thread was reported by itself
        let _ = thread.join();
        drop(port);
        let members = std::mem::take(&mut *self.shared.members());
        for member in &members {
            member.link.close();
        }
        // the file stays, as after a crash: whoever dials is refused
    }

    /// Listens again.
    ///
    /// Errors: of the socket.
    pub fn resume(&mut self) -> Result<()> {
        self.stop();
        let port = Port::listen(&self.path)
            .with_context(|| format!("listen at {}", self.path.display()))?;
        let port = Arc::new(port);
        let (shared, own) = (Arc::clone(&self.shared), Arc::clone(&port));
        let thread = thread::spawn(move || accept(&shared, &own));
        self.running = Some((port, thread));
        Ok(())
    }

    /// Puts a pod into the cache, or takes what is known of it out, without telling anyone: the next snapshot shows it.
    pub fn cache(&self, uid: &str, entry: Option<Entry>) {
        let mut cache = self.shared.cache();
        match entry {
            Some(entry) => cache.insert(uid.to_owned(), entry),
            None => cache.remove(uid),
        };
    }

    /// Tells the newest proxy of a pod, and the one before it if that is gone.
    ///
    /// Errors: no proxy is connected, or no answer in time. A refusal is an answer.
    pub fn add(&self, entry: &Entry) -> Result<Answer> {
        self.cache(&entry.uid, Some(entry.clone()));
        loop {
            let newest = self
                .shared
                .members()
                .last()
                .map(|m| (m.number, m.tasks.clone()));
            let (number, tasks) = newest.context("no ztunnel connection")?;
            let (task, told) = task(entry.request(), entry.netns.clone());
            if tasks.send(task).is_ok() {
                match outcome(&told) {
                    Outcome::Answered(answer) => return Ok(answer),
                    Outcome::Late => bail!("add {}: no answer within {STEP_MAX:?}", entry.uid),
                    Outcome::Gone => {}
                }
            }
            self.shared
                .members()
                .retain(|member| member.number != number);
        }
    }

    /// Tells all proxies that a pod is gone; those that are gone themselves are left out.
    ///
    /// Errors: one does not answer in time.
    pub fn del(&self, uid: &str) -> Result<Vec<Answer>> {
        self.cache(uid, None);
        let all: Vec<_> = {
            let members = self.shared.members();
            let ask = |member: &Member| {
                let (task, told) = task(Request::del(uid), None);
                member.tasks.send(task).ok().map(|()| told)
            };
            members.iter().filter_map(ask).collect()
        };
        let mut answers = Vec::new();
        for told in all {
            match outcome(&told) {
                Outcome::Answered(answer) => answers.push(answer),
                Outcome::Late => return Err(anyhow!("del {uid}: no answer within {STEP_MAX:?}")),
                Outcome::Gone => {}
            }
        }
        Ok(answers)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop();
    }
}

fn task(request: Request, netns: Option<Arc<File>>) -> (Task, Receiver<Outcome>) {
    let (told, outcome) = mpsc::channel();
    let task = Task {
        request,
        netns,
        told,
    };
    (task, outcome)
}

/// A connection that ends drops what it had not come to.
fn outcome(told: &Receiver<Outcome>) -> Outcome {
    match told.recv_timeout(TURN_MAX) {
        Ok(outcome) => outcome,
        Err(mpsc::RecvTimeoutError::Timeout) => Outcome::Late,
        Err(mpsc::RecvTimeoutError::Disconnected) => Outcome::Gone,
    }
}

fn accept(shared: &Arc<Shared>, port: &Port) {
    while let Ok(link) = port.accept(None) {
        let at = Instant::now();
        let (number, link) = (shared.next_number(), Arc::new(link));
        let (tasks, asked) = mpsc::channel();
        shared.record.add(Event::Connected { link: number, at });
        shared.members().push(Member {
            number,
            link: Arc::clone(&link),
            tasks,
        });
        let serving = Serving {
            shared: Arc::clone(shared),
            number,
            link,
        };
        thread::spawn(move || serving.run(&asked));
        // the pace is the agent's own: who dials faster waits in the backlog
        thread::sleep(ACCEPT_EVERY.saturating_sub(at.elapsed()));
    }
}
