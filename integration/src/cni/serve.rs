//! One connection of the agent, from the hello to its end: the snapshot, then what is asked, and a look at the silence.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prost::Message;

use super::agent::{Answer, Entry};
use super::messages::{Hello, Request, error_of};
use super::packet::{Link, Received};
use super::record::{Event, Record};

/// The agent's deadline for a write and for the wait for an answer.
pub(super) const STEP_MAX: Duration = Duration::from_secs(5);
/// After this long without work the agent looks whether the proxy is still there.
const IDLE: Duration = Duration::from_secs(5);
/// How long that look takes; nothing must come meanwhile.
const LOOK: Duration = Duration::from_millis(10);

/// Something to be asked of one proxy.
pub(super) struct Task {
    pub(super) request: Request,
    pub(super) netns: Option<Arc<File>>,
    pub(super) told: Sender<Outcome>,
}

/// What became of it.
pub(super) enum Outcome {
    Answered(Answer),
    /// no answer in time; the connection stays
    Late,
    /// the connection is over
    Gone,
}

/// A connection as the agent lists it.
pub(super) struct Member {
    pub(super) number: u64,
    pub(super) link: Arc<Link>,
    pub(super) tasks: Sender<Task>,
}

/// What all threads of an agent share.
#[derive(Default)]
pub(super) struct Shared {
    cache: Mutex<BTreeMap<String, Entry>>,
    /// oldest first
    members: Mutex<Vec<Member>>,
    count: AtomicU64,
    pub(super) record: Record,
}

impl Shared {
    pub(super) fn cache(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn members(&self) -> MutexGuard<'_, Vec<Member>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn next_number(&self) -> u64 {
        self.count.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// One connection's own state.
pub(super) struct Serving {
    pub(super) shared: Arc<Shared>,
    pub(super) number: u64,
    pub(super) link: Arc<Link>,
}

impl Serving {
    /// Serves until the connection is over, and notes why.
    pub(super) fn run(self, tasks: &Receiver<Task>) {
        let Err(why) = self.serve(tasks);
        self.shared
            .members()
            .retain(|member| member.number != self.number);
        self.link.close();
        self.note(Event::Dropped {
            link: self.number,
            why,
        });
    }

    fn serve(&self, tasks: &Receiver<Task>) -> Result<std::convert::Infallible, String> {
        self.hello()?;
        let entries: Vec<_> = self.shared.cache().values().cloned().collect();
        for entry in entries {
            // a refusal during the snapshot is logged, and the snapshot goes on
            self.insist(&entry.request(), entry.netns.as_deref())?;
        }
        self.insist(&Request::snapshot_sent(), None)?;
        loop {
            match tasks.recv_timeout(IDLE) {
                Ok(task) => self.carry_out(&task)?,
                Err(RecvTimeoutError::Timeout) => self.look()?,
                Err(RecvTimeoutError::Disconnected) => return Err("stopped".to_owned()),
            }
        }
    }

    fn hello(&self) -> Result<(), String> {
        let bytes = match self.link.receive(STEP_MAX) {
            Ok(Received::Packet(bytes)) => bytes,
            other => return Err(format!("no hello: {other:?}")),
        };
        self.note(Event::Hello {
            link: self.number,
            bytes: bytes.clone(),
        });
        match Hello::decode(&*bytes) {
            Ok(Hello { version: 1 }) => Ok(()),
            other => Err(format!("hello {bytes:02x?}: {other:?}")),
        }
    }

    /// Asks during the snapshot: without an answer the connection is given up.
    fn insist(&self, request: &Request, netns: Option<&File>) -> Result<(), String> {
        match self.ask(request, netns)? {
            Outcome::Answered(_) => Ok(()),
            Outcome::Late | Outcome::Gone => Err(format!("{} unanswered", request.name())),
        }
    }

    fn carry_out(&self, task: &Task) -> Result<(), String> {
        let outcome = self.ask(&task.request, task.netns.as_deref());
        // nobody waiting any more is the caller's own matter
        match outcome {
            Ok(outcome) => {
                let _ = task.told.send(outcome);
                Ok(())
            }
            Err(why) => {
                let _ = task.told.send(Outcome::Gone);
                Err(why)
            }
        }
    }

    /// One request and its answer. An error ends the connection.
    fn ask(&self, request: &Request, netns: Option<&File>) -> Result<Outcome, String> {
        let name = request.name();
        let fds: Vec<_> = netns.iter().map(|file| file.as_fd()).collect();
        let since = Instant::now();
        match self.link.send(&request.encode_to_vec(), &fds, STEP_MAX) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Outcome::Late),
            Err(error) => return Err(format!("write of {name}: {error}")),
        }
        self.note(Event::Sent {
            link: self.number,
            request: name.clone(),
        });
        let bytes = match self.link.receive(STEP_MAX) {
            Ok(Received::Packet(bytes)) => bytes,
            Ok(Received::Nothing) => {
                self.note(Event::Late {
                    link: self.number,
                    request: name,
                });
                return Ok(Outcome::Late);
            }
            Ok(Received::End) => return Err(format!("closed instead of an answer to {name}")),
            Err(error) => return Err(format!("answer to {name}: {error}")),
        };
        let took = since.elapsed();
        self.note(Event::Replied {
            link: self.number,
            request: name.clone(),
            bytes: bytes.clone(),
            took,
        });
        let error = error_of(&bytes).ok_or_else(|| format!("answer to {name}: {bytes:02x?}"))?;
        Ok(Outcome::Answered(Answer {
            link: self.number,
            bytes,
            error,
            took,
        }))
    }

    fn look(&self) -> Result<(), String> {
        match self.link.receive(LOOK) {
            Ok(Received::Nothing) => {
                self.note(Event::Looked { link: self.number });
                Ok(())
            }
            Ok(Received::End) => Err("closed".to_owned()),
            Ok(Received::Packet(bytes)) => Err(format!("sent unasked: {bytes:02x?}")),
            Err(error) => Err(format!("look: {error}")),
        }
    }

    fn note(&self, event: Event) {
        self.shared.record.add(event);
    }
}
