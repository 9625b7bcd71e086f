//! Looking up single addresses while the subscription is on demand: many ask, one question goes out, all get the answer.
//!
//! An answer is believed for a moment only: istiod does not tell when an address that was asked for in vain comes to life. What is
//! held has no need to be believed, unless the mesh does not answer by it: an address of the host's network, a service that the
//! asker may not see. Leaves to others: what to ask for (`mesh::lookup`), and what an answer means for a connection (`proxy`).

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

use super::Shared;
use super::subscriber::Answer;

/// Longest wait for an answer.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// Questions under way at a time.
const OPEN_MAX: usize = 4096;
/// How long something that was answered is not asked for again.
const FRESH: Duration = Duration::from_secs(1);
/// Answers that are remembered for that long.
const FRESH_MAX: usize = 4096;

/// Why a lookup has no answer. The connection it is for must not go on: its destination may be one that needs protection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// The control plane is away, or slow.
    #[error("the control plane did not answer within {WAIT_MAX:?} about {0}")]
    Timeout(String),
    /// It answered with something that cannot be understood.
    #[error("the control plane's answer about {0} was refused")]
    Rejected(String),
    /// Too many questions at a time.
    #[error("too many lookups at once")]
    TooMany,
    /// The subscription has ended: the process ends.
    #[error("the subscription has ended")]
    Stopped,
}

/// Asks the control plane for single addresses, from any thread. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Finder {
    shared: Arc<Shared>,
}

impl Finder {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Looks up an address; `network` may be empty. Returns whether it is there: the mesh state holds it then.
    pub async fn address(&self, network: &str, ip: IpAddr) -> Result<bool, FindError> {
        self.shared.asks.find(format!("{network}/{ip}")).await
    }

    /// Looks up a service or a workload by its host name.
    pub async fn host(&self, namespace: &str, hostname: &str) -> Result<bool, FindError> {
        self.shared
            .asks
            .find(format!("{namespace}/{hostname}"))
            .await
    }
}

/// The questions of all finders.
#[derive(Debug, Default)]
pub(super) struct Asks {
    book: Mutex<Book>,
    asked: Notify,
}

#[derive(Debug, Default)]
struct Book {
    open: HashMap<String, watch::Sender<Option<Answer>>>,
    /// Those of them that the server was not asked on this stream.
    unsent: BTreeSet<String>,
    /// What was answered lately: whether it is there, and since when that is known.
    fresh: HashMap<String, (bool, Instant)>,
    stopped: bool,
}

/// Where a question stands.
enum Ask<'a> {
    Known(bool),
    Waits(Place<'a>),
}

/// A place in the queue of one question.
struct Place<'a> {
    asks: &'a Asks,
    name: String,
    door: Option<watch::Receiver<Option<Answer>>>,
}

impl Drop for Place<'_> {
    /// A question for which nobody waits any more is forgotten.
    fn drop(&mut self) {
        self.door = None;
        let mut book = self.asks.lock();
        if book
            .open
            .get(&self.name)
            .is_some_and(|of| of.receiver_count() == 0)
        {
            book.open.remove(&self.name);
            book.unsent.remove(&self.name);
        }
    }
}

impl Asks {
    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn find(&self, name: String) -> Result<bool, FindError> {
        let mut place = match self.queue(name)? {
            Ask::Known(is_there) => return Ok(is_there),
            Ask::Waits(place) => place,
        };
        let Some(door) = place.door.as_mut() else {
            return Err(FindError::Stopped);
        };
        let answer = timeout(WAIT_MAX, door.wait_for(Option::is_some)).await;
        let answer = answer.map(|seen| seen.ok().and_then(|answer| *answer));
        match answer {
            Err(_) => Err(FindError::Timeout(place.name.clone())),
            Ok(None) => Err(FindError::Stopped),
            Ok(Some(Answer::Held)) => Ok(true),
            Ok(Some(Answer::Absent)) => Ok(false),
            Ok(Some(Answer::Rejected)) => Err(FindError::Rejected(place.name.clone())),
        }
    }

    /// Joins the question about `name`, or opens it, unless it was answered a moment ago.
    fn queue(&self, name: String) -> Result<Ask<'_>, FindError> {
        let mut book = self.lock();
        if book.stopped {
            return Err(FindError::Stopped);
        }
        if let Some((is_there, at)) = book.fresh.get(&name)
            && at.elapsed() < FRESH
        {
            return Ok(Ask::Known(*is_there));
        }
        let door = match book.open.get(&name) {
            Some(of) => of.subscribe(),
            None if book.open.len() >= OPEN_MAX => return Err(FindError::TooMany),
            None => {
                let (of, door) = watch::channel(None);
                book.open.insert(name.clone(), of);
                book.unsent.insert(name.clone());
                self.asked.notify_one();
                door
            }
        };
        Ok(Ask::Waits(Place {
            asks: self,
            name,
            door: Some(door),
        }))
    }

    /// A new stream: nothing was asked on it yet.
    pub(super) fn restart(&self) {
        let mut book = self.lock();
        book.unsent = book.open.keys().cloned().collect();
        if !book.unsent.is_empty() {
            self.asked.notify_one();
        }
    }

    /// Waits for a name that the server must be asked for. Dropping the future loses none.
    pub(super) async fn next(&self) -> String {
        loop {
            // the lock is gone before the wait
            let name = self.lock().unsent.pop_first();
            match name {
                Some(name) => return name,
                None => self.asked.notified().await,
            }
        }
    }

    /// The state changes: what was held may not be held any more. To be called before it does.
    pub(super) fn changes(&self) {
        self.lock().fresh.retain(|_, (is_there, _)| !*is_there);
    }

    /// The server's answers, once the state holds what they bring.
    pub(super) fn release(&self, answers: &[(String, Answer)]) {
        if answers.is_empty() {
            return;
        }
        let now = Instant::now();
        let mut book = self.lock();
        for (name, answer) in answers {
            match answer {
                Answer::Held => book.remember(name, true, now),
                Answer::Absent => book.remember(name, false, now),
                Answer::Rejected => drop(book.fresh.remove(name)),
            }
            book.unsent.remove(name);
            if let Some(of) = book.open.remove(name) {
                let _ = of.send(Some(*answer)); // nobody waits: that is fine
            }
        }
    }

    /// Nobody asks the server any more.
    pub(super) fn stop(&self) {
        let mut book = self.lock();
        book.stopped = true;
        book.open.clear();
        book.unsent.clear();
    }
}

impl Book {
    fn remember(&mut self, name: &str, is_there: bool, now: Instant) {
        // what was known is older, also where there is no room
        self.fresh.remove(name);
        if self.fresh.len() >= FRESH_MAX {
            self.fresh
                .retain(|_, (_, at)| now.duration_since(*at) < FRESH);
        }
        if self.fresh.len() < FRESH_MAX {
            self.fresh.insert(name.to_owned(), (is_there, now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::sleep;

    fn answered(name: &str, answer: Answer) -> [(String, Answer); 1] {
        [(name.to_owned(), answer)]
    }

    async fn ask(asks: &Asks, name: &str) -> Result<bool, FindError> {
        asks.find(name.to_owned()).await
    }

    #[tokio::test(start_paused = true)]
    async fn every_answer_has_its_meaning() {
        let asks = Asks::default();
        let cases = [
            (Answer::Held, Ok(true)),
            (Answer::Absent, Ok(false)),
            (Answer::Rejected, Err(FindError::Rejected("n".into()))),
        ];
        for (answer, expected) in cases {
            let server = async {
                assert_eq!(asks.next().await, "n");
                asks.release(&answered("n", answer));
            };
            let (a, b, ()) = tokio::join!(ask(&asks, "n"), ask(&asks, "n"), server);
            assert_eq!((&a, &b), (&expected, &expected));
            sleep(FRESH).await;
        }
        assert!(asks.lock().open.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_believed_for_a_moment() {
        let late = Err(FindError::Timeout("n".into()));
        let asks = Asks::default();
        for (answer, expected) in [(Answer::Absent, false), (Answer::Held, true)] {
            asks.release(&answered("n", answer));
            sleep(FRESH - Duration::from_millis(1)).await;
            assert_eq!(ask(&asks, "n").await, Ok(expected));
            sleep(Duration::from_millis(1)).await;
            assert_eq!(ask(&asks, "n").await, late, "asked again");
        }
        asks.release(&answered("n", Answer::Held));
        asks.release(&answered("n", Answer::Rejected));
        assert_eq!(ask(&asks, "n").await, late, "it may be there");
        asks.release(&answered("n", Answer::Held));
        asks.changes();
        assert_eq!(ask(&asks, "n").await, late, "it may have gone");
        asks.release(&answered("n", Answer::Absent));
        asks.changes();
        assert_eq!(ask(&asks, "n").await, Ok(false));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_in_vain_leaves_nothing_behind() {
        let asks = Asks::default();
        let began = Instant::now();
        let answers = tokio::join!(ask(&asks, "n"), ask(&asks, "n"));
        let late = Err(FindError::Timeout("n".into()));
        assert_eq!(answers, (late.clone(), late));
        assert_eq!(began.elapsed(), WAIT_MAX);
        let book = asks.lock();
        assert!(book.open.is_empty() && book.unsent.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_stream_is_asked_again() {
        let asks = Asks::default();
        let server = async {
            assert_eq!(asks.next().await, "n");
            asks.restart();
            assert_eq!(asks.next().await, "n");
            asks.stop();
        };
        let (answer, ()) = tokio::join!(ask(&asks, "n"), server);
        assert_eq!(answer, Err(FindError::Stopped));
        assert_eq!(ask(&asks, "n").await, Err(FindError::Stopped));
    }

    #[tokio::test(start_paused = true)]
    async fn there_is_a_bound() {
        let asks = Asks::default();
        let places: Vec<_> = (0..OPEN_MAX)
            .map(|at| asks.queue(at.to_string()).unwrap())
            .collect();
        assert_eq!(ask(&asks, "more").await, Err(FindError::TooMany));
        drop(places);
        for at in 0..=FRESH_MAX {
            asks.release(&answered(&at.to_string(), Answer::Absent));
        }
        assert_eq!(asks.lock().fresh.len(), FRESH_MAX);
        sleep(FRESH).await;
        asks.release(&answered("more", Answer::Absent));
        assert_eq!(asks.lock().fresh.len(), 1);
    }
}
