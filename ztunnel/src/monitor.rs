//! Watches the network namespaces of captured pods: says which pod is worth a look, soon after the kernel changed something there.
//!
//! Leaves looking and repairing to the node. One pod that changes all the time costs a look now and then, and no other pod
//! waits for it.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use capture::monitor::Changes;
use sys::Netns;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// Changes come in bunches: a bunch is over when this long has passed since its first.
const GAP_MIN: Duration = Duration::from_millis(20);
/// The longest wait for a pod in which something changes all the time.
const GAP_MAX: Duration = Duration::from_secs(1);
/// A pod in which nothing changed for this long is told of at once again.
const QUIET: Duration = Duration::from_secs(2);
/// Told and not yet looked at; each pod has at most one in here and one waiting for a place.
const TOLD_MAX: usize = 256;
/// Reads that may fail in a row before a pod is looked at in intervals only.
const FAILURES_MAX: usize = 8;

/// Notices of changes in the namespaces of pods, by the namespace's cookie.
pub struct Monitor {
    watches: HashMap<u64, JoinHandle<()>>,
    tell: mpsc::Sender<u64>,
    told: mpsc::Receiver<u64>,
}

impl Monitor {
    /// Watches nothing yet.
    pub fn new() -> Self {
        let (tell, told) = mpsc::channel(TOLD_MAX);
        Self {
            watches: HashMap::new(),
            tell,
            told,
        }
    }

    /// Watches a namespace, which stays alive until [`Monitor::unwatch`]; watched already is fine. Needs a tokio runtime.
    ///
    /// Errors: the kernel refuses the subscription; the pod is then looked at in intervals only.
    pub fn watch(&mut self, netns: &Arc<Netns>) -> io::Result<()> {
        let cookie = netns.cookie();
        if self
            .watches
            .get(&cookie)
            .is_some_and(|task| !task.is_finished())
        {
            return Ok(());
        }
        let changes = AsyncFd::new(Changes::open(netns)?)?;
        let task = tokio::spawn(follow(changes, cookie, self.tell.clone()));
        self.watches.insert(cookie, task);
        Ok(())
    }

    /// Watches a namespace no longer, and lets it go.
    pub fn unwatch(&mut self, cookie: u64) {
        if let Some(task) = self.watches.remove(&cookie) {
            task.abort();
        }
    }

    /// The next namespace in which something has changed. Nothing is lost when it is not awaited to the end.
    pub async fn changed(&mut self) -> u64 {
        loop {
            match self.told.recv().await {
                Some(cookie) if self.watches.contains_key(&cookie) => return cookie,
                // it left meanwhile; and the channel never ends, as a sender is kept here
                Some(_) | None => {}
            }
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        for task in self.watches.values() {
            task.abort();
        }
    }
}

/// Tells of one namespace until it fails again and again, or nobody listens.
async fn follow(changes: AsyncFd<Changes>, cookie: u64, tell: mpsc::Sender<u64>) {
    let mut gap = GAP_MIN;
    let mut failures = 0;
    let mut last: Option<Instant> = None;
    while let Ok(mut readable) = changes.readable().await {
        let calm = last.is_none_or(|at| at.elapsed() >= QUIET);
        gap = if calm {
            GAP_MIN
        } else {
            (gap * 2).min(GAP_MAX)
        };
        sleep(gap).await;
        readable.clear_ready();
        match changes.get_ref().take() {
            Ok(false) => continue,
            Ok(true) => failures = 0,
            Err(error) => {
                failures += 1;
                tracing::debug!(cookie, %error, "changes in a pod's namespace could not be read");
            }
        }
        if tell.send(cookie).await.is_err() || failures > FAILURES_MAX {
            return;
        }
        last = Some(Instant::now());
    }
}
