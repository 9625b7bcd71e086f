//! Follows one resource at the API server: lists it, watches it from there, lists it again when the server has forgotten too much.
//! Whatever fails is tried again for ever; what changes between two lists is left to the reader.

use std::fmt::Debug;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt};
use kube::api::{Api, ListParams, WatchParams};
use kube::core::{Status, WatchEvent};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::faults::{Faults, refused};

/// Objects of one page of a list.
const PAGE: u32 = 250;
/// Most objects of one list; what is beyond is not asked for.
const OBJECTS_MAX: usize = 200_000;
/// Longest wait for one page, and for a watch to begin.
const ANSWER: Duration = Duration::from_secs(30);
/// How long one watch lasts, in seconds; a connection that died silently is noticed after that.
const WATCH_SECONDS: u32 = 150;
/// What the server may be late.
const WATCH_LATE: Duration = Duration::from_secs(10);
/// Pauses after failures.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// HTTP: the version asked for is too old.
const GONE: u16 = 410;

/// What is followed, in the words of faults.
pub(super) struct What {
    pub(super) list: &'static str,
    pub(super) watch: &'static str,
}

/// What is told.
#[derive(Debug)]
pub(super) enum Input<K> {
    /// All there are.
    Listed(Vec<K>),
    /// New or changed.
    Applied(K),
    /// Gone.
    Deleted(K),
}

/// Follows until the reader is gone. `fields`: the field selector, empty for all.
pub(super) async fn follow<K>(
    api: Api<K>,
    fields: &str,
    what: What,
    faults: Faults,
    sender: mpsc::Sender<Input<K>>,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut follower = Follower {
        api,
        fields,
        what,
        faults,
        sender,
        pause: PAUSE_MIN,
    };
    while let Ok(()) = follower.round().await {}
}

struct Follower<'a, K> {
    api: Api<K>,
    fields: &'a str,
    what: What,
    faults: Faults,
    sender: mpsc::Sender<Input<K>>,
    pause: Duration,
}

/// The reader is gone.
struct Ended;

/// Why a watch is over.
enum Over {
    /// It ended as agreed, or broke: go on from the last version.
    Resume,
    /// The versions from there on are forgotten.
    Relist,
}

impl<K> Follower<'_, K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    /// One list, and watches for as long as they can be resumed.
    async fn round(&mut self) -> Result<(), Ended> {
        let (objects, mut version) = match self.list().await {
            Some(listed) => listed,
            None => return self.wait().await,
        };
        self.faults.ok(self.what.list);
        self.tell(Input::Listed(objects)).await?;
        loop {
            let begun = Instant::now();
            let over = self.watch(&mut version).await?;
            if begun.elapsed() > PAUSE_MAX {
                self.pause = PAUSE_MIN;
            }
            // at the end of a long watch this is the shortest pause
            self.wait().await?;
            if let Over::Relist = over {
                return Ok(());
            }
        }
    }

    /// All objects, and their version.
    async fn list(&self) -> Option<(Vec<K>, String)> {
        let mut objects: Vec<K> = Vec::new();
        let mut params = ListParams::default().fields(self.fields).limit(PAGE);
        loop {
            let page = match timeout(ANSWER, self.api.list(&params)).await {
                Ok(Ok(page)) => page,
                Ok(Err(error)) => {
                    self.faults.fail(self.what.list, &error);
                    return None;
                }
                Err(_) => {
                    self.faults
                        .say(self.what.list, format!("no answer within {ANSWER:?}"));
                    return None;
                }
            };
            let room = OBJECTS_MAX - objects.len();
            objects.extend(page.items.into_iter().take(room));
            match page.metadata.continue_.filter(|next| !next.is_empty()) {
                Some(next) if objects.len() < OBJECTS_MAX => params = params.continue_token(&next),
                _ => return Some((objects, page.metadata.resource_version.unwrap_or_default())),
            }
        }
    }

    /// One watch; `version` follows what was seen.
    async fn watch(&mut self, version: &mut String) -> Result<Over, Ended> {
        let params = WatchParams::default()
            .fields(self.fields)
            .timeout(WATCH_SECONDS);
        let begun = timeout(ANSWER, self.api.watch(&params, version)).await;
        let stream = match begun {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                let forgotten = matches!(&error, kube::Error::Api(status) if status.code == GONE);
                if !forgotten {
                    self.faults.fail(self.what.watch, &error);
                }
                return Ok(if forgotten {
                    Over::Relist
                } else {
                    Over::Resume
                });
            }
            Err(_) => {
                self.faults
                    .say(self.what.watch, format!("no answer within {ANSWER:?}"));
                return Ok(Over::Resume);
            }
        };
        self.faults.ok(self.what.watch);
        self.read(pin!(stream), version).await
    }

    async fn read(
        &mut self,
        mut stream: std::pin::Pin<&mut impl Stream<Item = kube::Result<WatchEvent<K>>>>,
        version: &mut String,
    ) -> Result<Over, Ended> {
        let patience = Duration::from_secs(WATCH_SECONDS.into()) + WATCH_LATE;
        loop {
            let next = tokio::select! {
                next = timeout(patience, stream.next()) => next,
                () = self.sender.closed() => return Err(Ended),
            };
            let Ok(Some(next)) = next else {
                return Ok(Over::Resume);
            };
            let input = match next {
                Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                    Input::Applied(object)
                }
                Ok(WatchEvent::Deleted(object)) => Input::Deleted(object),
                Ok(WatchEvent::Bookmark(mark)) => {
                    *version = mark.metadata.resource_version;
                    continue;
                }
                Ok(WatchEvent::Error(status)) => return Ok(self.failed(&status)),
                Err(error) => {
                    self.faults.fail(self.what.watch, &error);
                    return Ok(Over::Resume);
                }
            };
            self.pause = PAUSE_MIN;
            let (Input::Applied(object) | Input::Deleted(object)) = &input else {
                continue;
            };
            if let Some(seen) = object.resource_version() {
                *version = seen;
            }
            self.tell(input).await?;
        }
    }

    fn failed(&self, status: &Status) -> Over {
        if status.code == GONE {
            tracing::debug!(
                request = self.what.watch,
                "the API server has forgotten what came since, listing again"
            );
            return Over::Relist;
        }
        self.faults
            .say(self.what.watch, refused(self.what.watch, status));
        Over::Resume
    }

    async fn tell(&self, input: Input<K>) -> Result<(), Ended> {
        self.sender.send(input).await.map_err(|_| Ended)
    }

    async fn wait(&mut self) -> Result<(), Ended> {
        let pause = self.pause;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        tokio::select! {
            () = tokio::time::sleep(pause) => Ok(()),
            () = self.sender.closed() => Err(Ended),
        }
    }
}
