//! The task behind [`super::Certs`]: fetches what the book says, bounded in number and time, and tells those who wait.
//!
//! Leaves to others: what is fetched when (`book`).

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mesh::SpiffeId;
use tokio::sync::mpsc;
use tokio::task::{Id, JoinError, JoinSet};
use tracing::{debug, warn};

use super::{Config, Inner, Shared};
use crate::book::{Fresh, Next, State};
use crate::credential::Credential;
use crate::issue::{IssueError, Issuer};

/// Longest sleep of the worker, so that a wall clock that was set is noticed.
const RECHECK: Duration = Duration::from_secs(60);
/// Largest share of the half-life by which a renewal comes earlier.
const RENEWAL_JITTER: f64 = 0.1;

/// Runs the fetches; ends when every [`Certs`](super::Certs) is gone, and all waiters get an error when it is dropped.
pub struct Worker {
    shared: Arc<Shared>,
    woken: mpsc::Receiver<()>,
    issuer: Arc<dyn Issuer>,
    flights: JoinSet<Result<Credential, IssueError>>,
    /// What each task of `flights` fetches.
    passengers: HashMap<Id, SpiffeId>,
}

impl Worker {
    pub(super) fn new(
        shared: Arc<Shared>,
        woken: mpsc::Receiver<()>,
        issuer: Arc<dyn Issuer>,
    ) -> Self {
        Self {
            shared,
            woken,
            issuer,
            flights: JoinSet::new(),
            passengers: HashMap::new(),
        }
    }

    /// Fetches and renews until every [`Certs`](super::Certs) is gone. Runs on any runtime with time.
    pub async fn run(mut self) {
        loop {
            let pause = self.start_fetches();
            tokio::select! {
                Some(landed) = self.flights.join_next_with_id() => self.land(landed),
                woken = self.woken.recv() => if woken.is_none() { return },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Starts all that may start now; gives how long nothing else will be due.
    fn start_fetches(&mut self) -> Duration {
        loop {
            let next = self.shared.lock().book.next(self.shared.now());
            match next {
                Next::Wait(pause) => return pause.unwrap_or(RECHECK).min(RECHECK),
                Next::Fetch(id) => {
                    let flight = fetch(
                        Arc::clone(&self.issuer),
                        id.clone(),
                        self.shared.config.clone(),
                    );
                    let task = self.flights.spawn(flight).id();
                    self.passengers.insert(task, id);
                }
            }
        }
    }

    fn land(&mut self, landed: Result<(Id, Result<Credential, IssueError>), JoinError>) {
        let (task, result) = match landed {
            Ok((task, result)) => (task, result),
            Err(panicked) => (panicked.id(), Err(IssueError::Panicked)),
        };
        let Some(id) = self.passengers.remove(&task) else {
            return;
        };
        match &result {
            Ok(credential) => {
                debug!(identity = %id, until = ?credential.validity().not_after, "certificate issued")
            }
            Err(error) => warn!(identity = %id, %error, "certificate not issued"),
        }
        let result = result.map(fresh).map_err(Arc::new);
        let mut inner = self.shared.lock();
        let Inner { book, doors, .. } = &mut *inner;
        let outcome = match book.done(&id, result, self.shared.now(), rand::random()) {
            Some(State::Available { credential, .. }) => Ok(Arc::clone(credential)),
            Some(State::Unavailable { error, .. }) => Err(Arc::clone(error)),
            Some(State::Initializing(_)) | None => return,
        };
        if let Some(door) = doors.remove(&id) {
            door.send_replace(Some(outcome));
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let mut inner = self.shared.lock();
        inner.stopped = true;
        inner.doors.clear();
    }
}

async fn fetch(
    issuer: Arc<dyn Issuer>,
    id: SpiffeId,
    config: Config,
) -> Result<Credential, IssueError> {
    let issued = tokio::time::timeout(config.issue_deadline, issuer.issue(&id))
        .await
        .unwrap_or(Err(IssueError::Deadline(config.issue_deadline)))?;
    let credential = Credential::with(&id, issued, &config)?;
    // counted as a failure, so that it neither replaces a good one nor is asked for in a loop
    if credential.validity().not_after <= (config.wall)() {
        return Err(IssueError::Expired);
    }
    Ok(credential)
}

fn fresh(credential: Credential) -> Fresh<Arc<Credential>> {
    let renew_at = credential.renew_at(rand::random::<f64>() * RENEWAL_JITTER);
    let not_after = credential.validity().not_after;
    Fresh {
        credential: Arc::new(credential),
        renew_at,
        not_after,
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("flights", &self.flights.len())
            .finish_non_exhaustive()
    }
}
