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
/// The same for a pod in which something changes all the time.
const GAP_MAX: Duration = Duration::from_secs(1);
/// Bunches of one pod in a row that are told of at once.
const BURST_MAX: u32 = 32;
/// Time after which one more is.
const REFILL: Duration = Duration::from_millis(500);
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
        #[allow(
            deprecated,
            reason = "what succeeds it is unsafe; the subscription keeps its one descriptor until it is dropped"
        )]
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
    let mut patience = Patience::new(Instant::now());
    let mut failures = 0;
    while let Ok(mut readable) = changes.readable().await {
        sleep(patience.gap(Instant::now())).await;
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
    }
}

/// How many more bunches are told of at once.
struct Patience {
    left: u32,
    since: Instant,
}

impl Patience {
    fn new(now: Instant) -> Self {
        Self {
            left: BURST_MAX,
            since: now,
        }
    }

    /// How long to wait for the end of the bunch that begins now.
    fn gap(&mut self, now: Instant) -> Duration {
        while self.left < BURST_MAX && now.saturating_duration_since(self.since) >= REFILL {
            self.left += 1;
            self.since += REFILL;
        }
        if self.left == BURST_MAX {
            self.since = now;
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                GAP_MIN
            }
            None => GAP_MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    /// A namespace of its own, which lives as long as the handle.
    fn netns() -> Arc<Netns> {
        let made = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("needs root");
            Netns::current().expect("the own namespace")
        });
        Arc::new(made.join().expect("a namespace"))
    }

    /// Changes something of loopback.
    fn change(netns: &Netns, how: &str) {
        let run = || {
            let mut ip = std::process::Command::new("ip");
            ip.args(["link", "set", "lo", how]).status()
        };
        let status = netns.run(run).expect("inside").expect("ip");
        assert!(status.success());
    }

    #[tokio::test]
    async fn changes_are_told_of_once_and_soon() {
        let (one, other) = (netns(), netns());
        let mut monitor = Monitor::new();
        monitor.watch(&one).expect("watch");
        monitor.watch(&one).expect("watched already");
        monitor.watch(&other).expect("watch");
        change(&one, "up");
        let told = timeout(Duration::from_secs(5), monitor.changed()).await;
        assert_eq!(told, Ok(one.cookie()));
        // one bunch is one notice, and nothing is told of where nothing changed
        assert!(timeout(GAP_MIN * 4, monitor.changed()).await.is_err());
        change(&other, "up");
        let told = timeout(Duration::from_secs(5), monitor.changed()).await;
        assert_eq!(told, Ok(other.cookie()));
        monitor.unwatch(other.cookie());
        change(&other, "down");
        assert!(timeout(GAP_MIN * 4, monitor.changed()).await.is_err());
    }

    #[test]
    fn one_that_changes_all_the_time_is_told_of_now_and_then() {
        let mut now = Instant::now();
        let mut patience = Patience::new(now);
        for _ in 0..BURST_MAX {
            assert_eq!(patience.gap(now), GAP_MIN);
        }
        assert_eq!(patience.gap(now), GAP_MAX);
        assert_eq!(patience.gap(now), GAP_MAX);
        assert_eq!(patience.gap(now + REFILL), GAP_MIN);
        // calm again
        now += REFILL * (BURST_MAX + 5);
        for _ in 0..BURST_MAX {
            assert_eq!(patience.gap(now), GAP_MIN);
        }
        assert_eq!(patience.gap(now), GAP_MAX);
    }
}
