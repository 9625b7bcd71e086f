//! What the control plane has to say: resources by type and name, each with the version that stands on the wire.
//!
//! A change is made under one lock and announced once, so that it is pushed as one response per type. What the model
//! says and what a test says are kept apart: a test's word wins, and stays when the model is published again.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use prost::Message;
use proto::{discovery, security, wellknown, workload};
use tokio::sync::watch;

use super::messages;

/// A type of resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// workloads and services
    Address,
    /// policies
    Authorization,
}

impl Kind {
    /// Both, in the order in which they are pushed.
    pub const ALL: [Self; 2] = [Self::Address, Self::Authorization];

    /// The name on the wire.
    pub fn url(self) -> &'static str {
        match self {
            Self::Address => "type.googleapis.com/istio.workload.Address",
            Self::Authorization => "type.googleapis.com/istio.security.Authorization",
        }
    }

    /// The type of that name.
    pub fn of(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.url() == url)
    }
}

/// One resource.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// version on the wire; always empty for policies, as istiod does it
    pub version: String,
    /// other names it is found by
    pub aliases: Vec<String>,
    /// keys of the services it belongs to
    pub services: Vec<String>,
    /// node it runs on
    pub node: String,
    /// the message; none = a resource without a payload, which is malformed
    pub payload: Option<Bytes>,
    /// number of the change that brought it
    pub change: u64,
}

impl Entry {
    /// As it stands in a response.
    pub fn resource(&self, kind: Kind, name: &str) -> discovery::Resource {
        discovery::Resource {
            version: self.version.clone(),
            name: name.to_owned(),
            aliases: self.aliases.clone(),
            resource: self.payload.clone().map(|value| wellknown::Any {
                type_url: kind.url().to_owned(),
                value,
            }),
            ..Default::default()
        }
    }
}

/// The resources of one type.
pub type Entries = BTreeMap<String, Entry>;

/// All resources; changed through [`Store::change`].
#[derive(Debug, Default)]
pub struct Content {
    kinds: BTreeMap<Kind, Entries>,
    /// names that a test has spoken about: the model does not touch them
    own: BTreeSet<(Kind, String)>,
    changes: u64,
}

impl Content {
    /// The resources of a type.
    pub fn entries(&self, kind: Kind) -> &Entries {
        static NONE: Entries = Entries::new();
        self.kinds.get(&kind).unwrap_or(&NONE)
    }

    /// Sets a workload; returns its name.
    pub fn workload(&mut self, workload: workload::Workload) -> String {
        let name = workload.uid.clone();
        self.own.insert((Kind::Address, name.clone()));
        self.put(Kind::Address, &name, of_workload(workload));
        name
    }

    /// Sets a service; returns its name.
    pub fn service(&mut self, service: workload::Service) -> String {
        let name = messages::service_name(&service);
        self.own.insert((Kind::Address, name.clone()));
        self.put(Kind::Address, &name, of_service(service));
        name
    }

    /// Sets a policy; returns its name.
    pub fn policy(&mut self, policy: &security::Authorization) -> String {
        let name = format!("{}/{}", policy.namespace, policy.name);
        self.own.insert((Kind::Authorization, name.clone()));
        self.put(Kind::Authorization, &name, of_policy(policy));
        name
    }

    /// Sets any bytes, or no payload at all, under a name.
    pub fn raw(&mut self, kind: Kind, name: &str, payload: Option<&[u8]>) {
        self.own.insert((kind, name.to_owned()));
        let payload = payload.map(Bytes::copy_from_slice);
        self.put(kind, name, entry(kind, payload));
    }

    /// Takes a resource away; the model does not bring it back.
    pub fn remove(&mut self, kind: Kind, name: &str) {
        self.own.insert((kind, name.to_owned()));
        self.kinds.entry(kind).or_default().remove(name);
    }

    /// Leaves a name to the model again; what that says about it comes with its next publication.
    pub fn leave(&mut self, kind: Kind, name: &str) {
        self.own.remove(&(kind, name.to_owned()));
    }

    /// Makes everything but what tests have spoken about as the model has it.
    pub(super) fn replace(&mut self, fresh: BTreeMap<Kind, Entries>) {
        for (&kind, entries) in &mut self.kinds {
            entries.retain(|name, _| self.own.contains(&(kind, name.clone())));
        }
        for (kind, entries) in fresh {
            for (name, entry) in entries {
                if !self.own.contains(&(kind, name.clone())) {
                    self.put(kind, &name, entry);
                }
            }
        }
    }

    fn put(&mut self, kind: Kind, name: &str, mut entry: Entry) {
        entry.change = hash(&(&entry.payload, &entry.aliases));
        self.kinds
            .entry(kind)
            .or_default()
            .insert(name.to_owned(), entry);
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
            changes: watch::Sender::new(0),
        }
    }
}

impl Store {
    /// Changes the content and announces that.
    pub fn change<T>(&self, change: impl FnOnce(&mut Content) -> T) -> T {
        let mut content = self.lock();
        let outcome = change(&mut content);
        content.changes += 1;
        let number = content.changes;
        drop(content);
        self.changes.send_replace(number);
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

/// A workload as an entry.
pub fn of_workload(workload: workload::Workload) -> Entry {
    let network = &workload.network;
    let aliases = workload.addresses.iter();
    let aliases = aliases
        .filter_map(|bytes| messages::ip(bytes))
        .map(|ip| format!("{network}/{ip}"))
        .collect();
    Entry {
        aliases,
        services: workload.services.keys().cloned().collect(),
        node: workload.node.clone(),
        ..entry(
            Kind::Address,
            Some(address(workload::address::Type::Workload(workload))),
        )
    }
}

/// A service as an entry.
pub fn of_service(service: workload::Service) -> Entry {
    let aliases = service.addresses.iter().filter_map(|address| {
        let ip = messages::ip(&address.address)?;
        Some(match address.length {
            Some(length) => format!("{}/{ip}/{length}", address.network),
            None => format!("{}/{ip}", address.network),
        })
    });
    Entry {
        aliases: aliases.collect(),
        ..entry(
            Kind::Address,
            Some(address(workload::address::Type::Service(service))),
        )
    }
}

/// A policy as an entry.
pub fn of_policy(policy: &security::Authorization) -> Entry {
    entry(Kind::Authorization, Some(policy.encode_to_vec().into()))
}

fn address(of: workload::address::Type) -> Bytes {
    workload::Address { r#type: Some(of) }
        .encode_to_vec()
        .into()
}

fn entry(kind: Kind, payload: Option<Bytes>) -> Entry {
    Entry {
        version: match kind {
            Kind::Address => hash(&payload).to_string(),
            Kind::Authorization => String::new(),
        },
        aliases: Vec::new(),
        services: Vec::new(),
        node: String::new(),
        payload,
        change: 0,
    }
}

fn hash(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}
