//! Watches: a task per stream that turns changes into events, as the selector of the watch sees them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::reply::Cut;
use super::route::Ask;
use super::select::Selector;
use super::status::Failure;
use super::store::{Change, Kind, Object, TooOld};
use super::view::View;
use super::{Gone, Order, Shared};

/// Pieces of a stream that may wait for the client.
const PIECES_MAX: usize = 64;
/// Where the pieces of a stream go.
type Pieces = mpsc::Sender<Result<Bytes, Cut>>;

/// A watch as it was asked for.
pub struct Watch {
    kind: Kind,
    namespace: Option<String>,
    selector: Selector,
    view: View,
    seen: u64,
    bookmarks: bool,
    /// sent first, as added
    initial: Vec<Object>,
    /// the end of those is told by a bookmark
    initial_end: bool,
    limit: Duration,
}

/// What the stream of a watch begins with.
pub enum Begin {
    /// events
    Events(Box<Watch>),
    /// the version asked for is too old: said in the stream
    Expired(Failure),
}

impl Watch {
    /// Reads the parameters of a watch.
    ///
    /// Errors: 400 and 422 for parameters that do not go together, 410 and 504 for versions.
    pub fn read(shared: &Shared, ask: &Ask, kind: Kind, view: View) -> Result<Begin, Failure> {
        let mut fields = ask.param("fieldSelector").to_owned();
        if let Some(name) = &ask.name {
            fields = format!("{fields},metadata.name={name}");
        }
        let selector = Selector::parse(kind, ask.param("labelSelector"), &fields)?;
        let matching = ask.param("resourceVersionMatch");
        let streaming = ask.query.contains_key("sendInitialEvents");
        let wrong = |why: &str| Err(Failure::invalid("ListOptions.meta.k8s.io", "", why));
        if streaming && matching != "NotOlderThan" {
            return wrong(
                "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            );
        }
        if !streaming && !matching.is_empty() {
            return wrong(
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            );
        }
        let asked = version(ask.param("resourceVersion"))?;
        let content = shared.store.lock();
        let now = content.version();
        if asked > now {
            return Err(Failure::version_too_large(asked, now));
        }
        let initial_wanted = if streaming {
            ask.flag("sendInitialEvents")
        } else {
            asked == 0
        };
        let seen = if initial_wanted { now } else { asked };
        if let Err(TooOld { oldest }) = content.since(kind, seen) {
            let failure = Failure::expired(format!("too old resource version: {asked} ({oldest})"));
            return match shared.settings().gone {
                Gone::InStream => Ok(Begin::Expired(failure)),
                Gone::Status => Err(failure),
            };
        }
        let mut watch = Self {
            kind,
            namespace: ask.namespace.clone(),
            selector,
            view,
            seen,
            bookmarks: ask.flag("allowWatchBookmarks"),
            initial: Vec::new(),
            initial_end: streaming && initial_wanted,
            limit: shared.settings().watch_max,
        };
        if let Ok(seconds) = ask.param("timeoutSeconds").parse() {
            watch.limit = watch.limit.min(Duration::from_secs(seconds));
        }
        if initial_wanted {
            watch.initial = content
                .list(kind)
                .filter(|one| watch.takes(one))
                .cloned()
                .collect();
        }
        Ok(Begin::Events(Box::new(watch)))
    }

    fn takes(&self, object: &Value) -> bool {
        let namespace = &object["metadata"]["namespace"];
        self.namespace
            .as_ref()
            .is_none_or(|wanted| namespace == wanted.as_str())
            && self.selector.takes(object)
    }

    /// The event that a change is to this watch.
    fn event(&self, change: &Change) -> Option<Value> {
        let old = change.old.as_ref().filter(|old| self.takes(old));
        let new = change.new.as_ref().filter(|new| self.takes(new));
        let (name, object) = match (old, new) {
            (None, None) => return None,
            (None, Some(new)) => ("ADDED", (**new).clone()),
            (Some(_), Some(new)) => ("MODIFIED", (**new).clone()),
            (Some(old), None) => {
                let mut last = (**old).clone();
                last["metadata"]["resourceVersion"] = json!(change.version.to_string());
                ("DELETED", last)
            }
        };
        Some(json!({"type": name, "object": self.view.object(&object)}))
    }
}

/// A version parameter; empty is 0.
///
/// Errors: 400, it is no number.
pub fn version(text: &str) -> Result<u64, Failure> {
    if text.is_empty() {
        return Ok(0);
    }
    text.parse().map_err(|_| {
        Failure::bad_request(format!("Invalid value: {text:?}: invalid resource version"))
    })
}

/// Begins to send; the stream ends with the receiver.
pub fn begin(shared: Arc<Shared>, begin: Begin) -> mpsc::Receiver<Result<Bytes, Cut>> {
    let (pieces, receiver) = mpsc::channel(PIECES_MAX);
    tokio::spawn(async move {
        match begin {
            // how a stream ends shows on the client's side
            Begin::Events(watch) => drop(feed(&shared, *watch, &pieces).await),
            Begin::Expired(failure) => drop(expired(&pieces, &failure).await),
        }
    });
    receiver
}

/// The client has gone, or the stream was cut.
struct Over;

async fn feed(shared: &Shared, mut watch: Watch, pieces: &Pieces) -> Result<(), Over> {
    let mut changes = shared.store.subscribe();
    let mut paused = shared.paused.subscribe();
    let mut orders = shared.orders.subscribe();
    let every = shared.settings().bookmark_every;
    let (mut bookmark, end) = (Instant::now() + every, Instant::now() + watch.limit);
    for object in std::mem::take(&mut watch.initial) {
        line(
            pieces,
            &json!({"type": "ADDED", "object": watch.view.object(&object)}),
        )
        .await?;
    }
    if watch.initial_end {
        mark(pieces, &watch, true).await?;
    }
    loop {
        let open = !paused.borrow_and_update().contains(&watch.kind);
        if open {
            changes.borrow_and_update();
            match news(shared, &watch) {
                Ok((events, version)) => {
                    for event in events {
                        line(pieces, &event).await?;
                    }
                    watch.seen = version;
                }
                Err(failure) => return expired(pieces, &failure).await,
            }
        }
        tokio::select! {
            _ = changes.changed(), if open => (),
            _ = paused.changed() => (),
            () = tokio::time::sleep_until(bookmark), if open && watch.bookmarks => {
                bookmark += every;
                mark(pieces, &watch, false).await?;
            }
            // a clean end, as the real one has it after a while
            () = tokio::time::sleep_until(end) => return Ok(()),
            () = pieces.closed() => return Err(Over),
            order = orders.recv() => match order {
                Ok(Order::End) => return Ok(()),
                Ok(Order::Break) => return cut(pieces, Bytes::new()).await,
                Ok(Order::BreakInLine) => {
                    return cut(pieces, Bytes::from_static(b"{\"type\":\"MODIFIED\",\"obj")).await;
                }
                Ok(Order::Garbage) => send(pieces, Bytes::from_static(b"}{ no event\n")).await?,
                Ok(Order::Bookmark) => {
                    if watch.bookmarks {
                        mark(pieces, &watch, false).await?;
                    }
                }
                Ok(Order::Expire) => {
                    let text = format!("too old resource version: {} (now)", watch.seen);
                    return expired(pieces, &Failure::expired(text)).await;
                }
                Err(RecvError::Lagged(_)) => (),
                Err(RecvError::Closed) => return Ok(()),
            },
        }
    }
}

fn news(shared: &Shared, watch: &Watch) -> Result<(Vec<Value>, u64), Failure> {
    let content = shared.store.lock();
    let changes = content
        .since(watch.kind, watch.seen)
        .map_err(|TooOld { oldest }| {
            Failure::expired(format!(
                "too old resource version: {} ({oldest})",
                watch.seen
            ))
        })?;
    let events = changes.iter().filter_map(|change| watch.event(change));
    Ok((events.collect(), content.version()))
}

async fn mark(pieces: &Pieces, watch: &Watch, initial: bool) -> Result<(), Over> {
    let object = watch.view.bookmark(watch.kind, watch.seen, initial);
    line(pieces, &json!({"type": "BOOKMARK", "object": object})).await
}

async fn expired(pieces: &Pieces, failure: &Failure) -> Result<(), Over> {
    line(
        pieces,
        &json!({"type": "ERROR", "object": failure.status()}),
    )
    .await
}

/// Sends a line in two pieces, so that no client takes a piece for a line.
async fn line(pieces: &Pieces, value: &Value) -> Result<(), Over> {
    let mut bytes = Bytes::from(format!("{value}\n"));
    let first = bytes.split_to(bytes.len() / 2);
    send(pieces, first).await?;
    send(pieces, bytes).await
}

async fn send(pieces: &Pieces, bytes: Bytes) -> Result<(), Over> {
    pieces.send(Ok(bytes)).await.map_err(|_| Over)
}

async fn cut(pieces: &Pieces, before: Bytes) -> Result<(), Over> {
    if !before.is_empty() {
        send(pieces, before).await?;
    }
    pieces.send(Err(Cut)).await.map_err(|_| Over)
}
