//! What one pod has asked of resolvers: answers that are still good, questions under way, which resolver answers.
//!
//! One for each pod, used by all data threads. A question is asked once however many wait for it, and goes on without them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::cache::{Cache, Key};
use super::forward::{Answered, Trouble, ask, is_last_word};
use super::relay::summary;
use crate::budget::Budget;
use crate::pod::{Phase, Pod, reached};

/// Questions of one pod that wait at a time; as many are asked of resolvers for them. More are dropped, as a full socket buffer
/// would, or refused.
const QUESTIONS_MAX: usize = 512;

type Outcome = Result<Arc<[u8]>, Trouble>;

/// A pod's memory of names. Takes next to nothing until it asks.
#[derive(Debug)]
pub(crate) struct Memory {
    inner: Mutex<Inner>,
    waiting: Budget,
    /// place of the resolver of the node that answered last
    resolver: AtomicUsize,
}

#[derive(Debug, Default)]
struct Inner {
    cache: Cache,
    under_way: HashMap<Arc<Key>, watch::Receiver<Option<Outcome>>>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            inner: Mutex::default(),
            waiting: Budget::new(QUESTIONS_MAX),
            resolver: AtomicUsize::new(0),
        }
    }
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An answer that is still good, and its age.
    pub(super) fn find(&self, key: &Key) -> Option<(Arc<[u8]>, Duration)> {
        self.lock().cache.find(key, Instant::now())
    }

    fn keep(&self, key: &Arc<Key>, answer: &Arc<[u8]>) {
        if let Some(keep) = summary(answer).keep {
            self.lock().cache.keep(key, answer, keep, Instant::now());
        }
    }
}

/// A question's place among those that wait, given back on drop.
pub(super) struct Seat(Arc<Pod>);

impl Seat {
    /// None: too many wait.
    pub(super) fn take(pod: &Arc<Pod>) -> Option<Self> {
        pod.dns.waiting.enter().then(|| Self(Arc::clone(pod)))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.dns.waiting.leave();
    }
}

/// The answer to `question`, which is asked unless it is under way already, and kept as long as it is good. Needs a `LocalSet`.
///
/// Errors: no resolver answered, or too many questions are under way.
pub(super) async fn fetch(pod: &Arc<Pod>, key: Key, question: Vec<u8>) -> Outcome {
    let mut answer = {
        let mut inner = pod.dns.lock();
        match inner.under_way.get(&key) {
            Some(answer) => answer.clone(),
            None if inner.under_way.len() >= QUESTIONS_MAX => return Err(Trouble::Busy),
            None => {
                let (told, answer) = watch::channel(None);
                let key = Arc::new(key);
                inner.under_way.insert(Arc::clone(&key), answer.clone());
                let under_way = UnderWay {
                    pod: Arc::clone(pod),
                    key,
                };
                tokio::task::spawn_local(look_up(under_way, question, told));
                answer
            }
        }
    };
    match answer.wait_for(Option::is_some).await {
        Ok(outcome) => outcome.clone().unwrap_or(Err(Trouble::Leaving)),
        Err(_) => Err(Trouble::Leaving),
    }
}

/// The same for a question that is not like others: asked by itself, and not kept.
pub(super) async fn fetch_alone(
    pod: &Pod,
    resolver: Option<SocketAddr>,
    question: &[u8],
) -> Outcome {
    let list;
    let (resolvers, first) = match resolver {
        Some(one) => {
            list = [one];
            (&list[..], 0)
        }
        None => (
            pod.net.node_resolvers(),
            pod.dns.resolver.load(Ordering::Relaxed),
        ),
    };
    let (answer, at): Answered = ask(&*pod.net, resolvers, first, question).await?;
    // one that refuses or fails is not the one to go on with
    if resolver.is_none() && is_last_word(&answer) {
        pod.dns.resolver.store(at, Ordering::Relaxed);
    }
    Ok(answer)
}

/// A question that is asked; dropped, it no longer is.
struct UnderWay {
    pod: Arc<Pod>,
    key: Arc<Key>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.pod.dns.lock().under_way.remove(&self.key);
    }
}

async fn look_up(asked: UnderWay, question: Vec<u8>, told: watch::Sender<Option<Outcome>>) {
    let pod = &asked.pod;
    let mut cut = pod.phase();
    let outcome = tokio::select! {
        outcome = fetch_alone(pod, asked.key.resolver, &question) => outcome,
        () = reached(&mut cut, Phase::Cut) => Err(Trouble::Leaving),
    };
    if let Ok(answer) = &outcome {
        pod.dns.keep(&asked.key, answer);
    }
    // whoever asks from now on finds it kept, or asks anew
    drop(asked);
    let _ = told.send(Some(outcome));
}

#[cfg(test)]
mod tests;
