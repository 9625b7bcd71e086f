//! What the API server holds: objects, one version for all of them, and a bounded history to watch from.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tokio::sync::watch;

/// Changes that are remembered; a watch from before them gets 410.
const HISTORY_MAX: usize = 1_000;
/// Version of the first object.
const FIRST_VERSION: u64 = 1_000;
/// When everything was made; the age of nothing matters here.
const CREATED: &str = "2026-01-02T03:04:05Z";

/// A resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// pods
    Pods,
    /// namespaces
    Namespaces,
    /// events, of the core group and of `events.k8s.io`
    Events,
}

impl Kind {
    /// The resource of that name in a group, if it is served.
    pub fn of(group: &str, resource: &str) -> Option<Self> {
        match (group, resource) {
            ("", "pods") => Some(Self::Pods),
            ("", "namespaces") => Some(Self::Namespaces),
            ("" | "events.k8s.io", "events") => Some(Self::Events),
            _ => None,
        }
    }

    /// Name in paths.
    pub fn resource(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Namespaces => "namespaces",
            Self::Events => "events",
        }
    }

    /// Name in objects.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Pods => "Pod",
            Self::Namespaces => "Namespace",
            Self::Events => "Event",
        }
    }

    /// Whether its objects lie in namespaces.
    pub fn namespaced(self) -> bool {
        self != Self::Namespaces
    }
}

/// An object; shared, because history, lists and watches hold it too.
pub type Object = Arc<Value>;

/// One change.
#[derive(Debug, Clone)]
pub struct Change {
    /// version it led to
    pub version: u64,
    /// of what
    pub kind: Kind,
    /// before; none = created
    pub old: Option<Object>,
    /// after; none = deleted
    pub new: Option<Object>,
}

/// The asked version is older than what is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooOld {
    /// the oldest version that can be watched from
    pub oldest: u64,
}

/// Objects and history.
#[derive(Debug)]
pub struct Content {
    version: u64,
    oldest: u64,
    objects: BTreeMap<Kind, BTreeMap<(String, String), Object>>,
    history: VecDeque<Change>,
}

impl Default for Content {
    fn default() -> Self {
        Self {
            version: FIRST_VERSION,
            oldest: FIRST_VERSION,
            objects: BTreeMap::new(),
            history: VecDeque::new(),
        }
    }
}

impl Content {
    /// The version now.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// One object; the namespace is empty for what has none.
    pub fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<&Object> {
        let key = (namespace.to_owned(), name.to_owned());
        self.objects.get(&kind)?.get(&key)
    }

    /// All objects of a kind, in the order in which lists have them.
    pub fn list(&self, kind: Kind) -> impl Iterator<Item = &Object> {
        self.objects
            .get(&kind)
            .into_iter()
            .flat_map(BTreeMap::values)
    }

    /// Sets an object under its own name; nothing happens if it is the same as before.
    pub fn put(&mut self, kind: Kind, mut object: Value) -> Object {
        let metadata = &object["metadata"];
        let key = (
            text(&metadata["namespace"]).to_owned(),
            text(&metadata["name"]).to_owned(),
        );
        let old = self.objects.entry(kind).or_default().get(&key).cloned();
        if let Some(old) = &old {
            object["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
            if **old == object {
                return Arc::clone(old);
            }
        }
        self.version += 1;
        let version = self.version;
        let metadata = &mut object["metadata"];
        metadata["resourceVersion"] = json!(version.to_string());
        if text(&metadata["uid"]).is_empty() {
            metadata["uid"] = json!(format!("00000000-0000-4000-9000-{version:012x}"));
        }
        if text(&metadata["creationTimestamp"]).is_empty() {
            metadata["creationTimestamp"] = json!(CREATED);
        }
        let object = Arc::new(object);
        let objects = self.objects.entry(kind).or_default();
        objects.insert(key, Arc::clone(&object));
        self.remember(kind, old, Some(Arc::clone(&object)));
        object
    }

    /// Removes an object.
    pub fn remove(&mut self, kind: Kind, namespace: &str, name: &str) -> Option<Object> {
        let key = (namespace.to_owned(), name.to_owned());
        let old = self.objects.get_mut(&kind)?.remove(&key)?;
        self.version += 1;
        // a watch shows the last state with the version of the removal
        let mut last = (*old).clone();
        last["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.remember(kind, Some(Arc::new(last)), None);
        Some(old)
    }

    /// Changes of a kind after a version.
    ///
    /// Errors: they are not all remembered.
    pub fn since(&self, kind: Kind, version: u64) -> Result<Vec<Change>, TooOld> {
        if version < self.oldest {
            return Err(TooOld {
                oldest: self.oldest,
            });
        }
        let later = self.history.iter();
        let later = later.filter(|change| change.version > version && change.kind == kind);
        Ok(later.cloned().collect())
    }

    /// Forgets the history, and lets a version pass, so that every watch from before gets 410.
    pub fn compact(&mut self) {
        self.history.clear();
        self.version += 1;
        self.oldest = self.version;
    }

    fn remember(&mut self, kind: Kind, old: Option<Object>, new: Option<Object>) {
        let version = self.version;
        self.history.push_back(Change {
            version,
            kind,
            old,
            new,
        });
        if self.history.len() > HISTORY_MAX
            && let Some(first) = self.history.pop_front()
        {
            self.oldest = first.version;
        }
    }
}

/// The content, and word of its changes.
#[derive(Debug)]
pub struct Store {
    content: Mutex<Content>,
    changes: watch::Sender<u64>,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            content: Mutex::default(),
            changes: watch::Sender::new(FIRST_VERSION),
        }
    }
}

impl Store {
    /// Changes the content and announces that.
    pub fn change<T>(&self, change: impl FnOnce(&mut Content) -> T) -> T {
        let mut content = self.lock();
        let outcome = change(&mut content);
        let version = content.version;
        drop(content);
        self.changes.send_if_modified(|known| {
            let news = *known != version;
            *known = version;
            news
        });
        outcome
    }

    /// The content as it is.
    pub fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Word of changes.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

/// A string, empty if it is none.
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_history_and_compaction() {
        let mut content = Content::default();
        let pod = |phase: &str| json!({"metadata": {"namespace": "a", "name": "p"}, "status": {"phase": phase}});
        let first = content.put(Kind::Pods, pod("Pending"));
        let seen = content.version();
        let mut same = (*first).clone();
        same["metadata"]["resourceVersion"] = json!("1");
        content.put(Kind::Pods, same.clone());
        assert_eq!(content.version(), seen, "nothing changed");
        same["status"]["phase"] = json!("Running");
        content.put(Kind::Pods, same);
        content.put(Kind::Namespaces, json!({"metadata": {"name": "a"}}));
        content.remove(Kind::Pods, "a", "p");
        let changes = content.since(Kind::Pods, seen).unwrap();
        assert_eq!(changes.len(), 2);
        assert!(changes[1].new.is_none());
        let last = changes[1].old.as_ref().unwrap();
        assert_eq!(
            last["metadata"]["resourceVersion"],
            changes[1].version.to_string()
        );
        content.compact();
        assert!(content.since(Kind::Pods, seen).is_err());
        assert_eq!(
            content.since(Kind::Pods, content.version()).unwrap().len(),
            0
        );
    }
}
