//! One discovery stream as a state machine: requests in, responses out. No I/O.
//!
//! As istiod does it: a type has one response on its way at a time; what a client says it holds is not sent again if
//! it is the same (workloads and services; policies always are), and what it holds but is gone is removed; what a client
//! refused is not sent again before it changes or a new stream begins. On demand, only a request that changes what a stream is
//! subscribed to is answered, and what is sent is subscribed to; that an address which was asked for in vain has come to life is
//! not told. Stricter than istiod with what a client must not say.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use proto::wellknown::value::Kind as Value;

use super::store::{Content, Entries, Kind};

/// The name that stands for everything.
const ALL: &str = "*";
/// What a client holds of which it is not known whether it is the same.
const UNKNOWN: u64 = 0;

/// A subscription to one type.
#[derive(Debug, Default)]
struct Watch {
    wildcard: bool,
    /// names that were asked for, or sent
    names: BTreeSet<String>,
    /// names that are still to be answered, also with their absence
    asked: BTreeSet<String>,
    /// what the client holds: resource name to the change that brought it
    held: BTreeMap<String, u64>,
    /// nonce of the response on its way
    outstanding: Option<String>,
    /// the first response is sent even if there is nothing to say
    answered: bool,
}

/// A stream.
#[derive(Debug, Default)]
pub struct Session {
    node: String,
    watches: BTreeMap<Kind, Watch>,
    nonces: u64,
}

impl Session {
    /// Takes a request.
    ///
    /// Errors: what a client must not send, as the text of a status.
    pub fn request(
        &mut self,
        request: &DeltaDiscoveryRequest,
        content: &Content,
    ) -> Result<(), String> {
        let Some(kind) = Kind::of(&request.type_url) else {
            // only an answer to a response of that type can be meant
            return match request.response_nonce.as_str() {
                "" => Err(format!("unknown type {:?}", request.type_url)),
                _ => Ok(()),
            };
        };
        let Some(watch) = self.watches.get_mut(&kind) else {
            return self.first(kind, request, content);
        };
        let (coming, going) = (
            &request.resource_names_subscribe,
            &request.resource_names_unsubscribe,
        );
        let url = kind.url();
        if request.node.is_some() || !request.initial_resource_versions.is_empty() {
            return Err(format!(
                "{url}: the contents of a first request in a later one"
            ));
        }
        if !request.response_nonce.is_empty() {
            if !(coming.is_empty() && going.is_empty()) {
                return Err(format!("{url}: names in an answer"));
            }
            if watch.outstanding.as_ref() == Some(&request.response_nonce) {
                watch.outstanding = None;
            }
            return Ok(());
        }
        if request.error_detail.is_some() {
            return Err(format!("{url}: a complaint about nothing"));
        }
        for name in coming {
            if watch.names.insert(name.clone()) {
                watch.asked.insert(name.clone());
            }
        }
        // in one request they count last
        for name in going {
            watch.names.remove(name);
            watch.asked.remove(name);
        }
        Ok(())
    }

    fn first(
        &mut self,
        kind: Kind,
        request: &DeltaDiscoveryRequest,
        content: &Content,
    ) -> Result<(), String> {
        if !request.response_nonce.is_empty() {
            return Err(format!("{}: an answer before any request", kind.url()));
        }
        let node = request
            .node
            .as_ref()
            .ok_or_else(|| format!("{}: first request without a node", kind.url()))?;
        let fields = node.metadata.as_ref().map(|metadata| &metadata.fields);
        let name = fields.and_then(|fields| fields.get("NODE_NAME")?.kind.clone());
        if let Some(Value::StringValue(name)) = name {
            self.node = name;
        }
        let has = |names: &[String]| names.iter().any(|name| name == ALL);
        let subscribed = &request.resource_names_subscribe;
        let mut watch = Watch {
            wildcard: (subscribed.is_empty() || has(subscribed))
                && !has(&request.resource_names_unsubscribe),
            ..Watch::default()
        };
        for (name, version) in &request.initial_resource_versions {
            let entry = content.entries(kind).get(name);
            if entry.is_none() && version.is_empty() && !watch.wildcard {
                watch.asked.insert(name.clone());
            } else {
                let same = entry
                    .filter(|entry| kind == Kind::Address && entry.version == *version)
                    .map_or(UNKNOWN, |entry| entry.change);
                watch.held.insert(name.clone(), same);
            }
        }
        if !watch.wildcard {
            let named = subscribed.iter().filter(|name| *name != ALL);
            watch.asked.extend(named.cloned());
            watch.names.extend(watch.asked.iter().cloned());
            watch
                .names
                .extend(request.initial_resource_versions.keys().cloned());
        }
        self.watches.insert(kind, watch);
        Ok(())
    }

    /// The next response that is due, if there is one.
    pub fn next(&mut self, content: &Content) -> Option<DeltaDiscoveryResponse> {
        for (&kind, watch) in &mut self.watches {
            if watch.outstanding.is_some() {
                continue;
            }
            let entries = content.entries(kind);
            let wanted = watch.wanted(entries, &self.node);
            let fresh: Vec<_> = wanted
                .into_iter()
                .filter(|name| watch.lacks(entries, name))
                .map(str::to_owned)
                .collect();
            let gone = watch.gone(entries);
            if watch.answered && fresh.is_empty() && gone.is_empty() && watch.asked.is_empty() {
                continue;
            }
            for name in &gone {
                watch.held.remove(name);
            }
            let mut resources = Vec::new();
            for name in &fresh {
                if let Some(entry) = entries.get(name) {
                    watch.held.insert(name.clone(), entry.change);
                    watch.names.insert(name.clone());
                    resources.push(entry.resource(kind, name).encode_to_vec().into());
                }
            }
            self.nonces += 1;
            let nonce = format!("nonce-{}", self.nonces);
            watch.outstanding = Some(nonce.clone());
            watch.answered = true;
            watch.asked.clear();
            return Some(DeltaDiscoveryResponse {
                type_url: kind.url().to_owned(),
                nonce,
                resources,
                removed_resources: gone,
                ..Default::default()
            });
        }
        None
    }
}

/// Names of the resources of a response.
pub fn names(response: &DeltaDiscoveryResponse) -> Vec<String> {
    let resources = response.resources.iter();
    resources
        .filter_map(|bytes| Resource::decode(bytes.clone()).ok())
        .map(|resource| resource.name)
        .collect()
}

impl Watch {
    /// Names of the resources that the client is to have.
    fn wanted<'a>(&self, entries: &'a Entries, node: &str) -> BTreeSet<&'a str> {
        if self.wildcard {
            return entries.keys().map(String::as_str).collect();
        }
        let mut wanted: BTreeSet<&str> = BTreeSet::new();
        for (name, entry) in entries {
            // by another name only when that is asked
            let named = self.names.contains(name)
                || entry.aliases.iter().any(|alias| self.asked.contains(alias));
            if named || (!entry.node.is_empty() && entry.node == node) {
                wanted.insert(name);
            }
        }
        // the endpoints of a service that was asked for
        let services = wanted.clone();
        for (name, entry) in entries {
            if entry
                .services
                .iter()
                .any(|key| services.contains(key.as_str()))
            {
                wanted.insert(name);
            }
        }
        wanted
    }

    /// Whether a resource is to be sent: the client does not have it as it is, or asked for it anew.
    fn lacks(&self, entries: &Entries, name: &str) -> bool {
        let Some(entry) = entries.get(name) else {
            return false;
        };
        self.held.get(name) != Some(&entry.change)
            || self.asked.contains(name)
            || entry.aliases.iter().any(|alias| self.asked.contains(alias))
    }

    /// Names that the client holds, or asked for, and that do not exist.
    fn gone(&self, entries: &Entries) -> Vec<String> {
        let known = |name: &String| {
            entries.contains_key(name)
                || (self.asked.contains(name)
                    && entries.values().any(|entry| entry.aliases.contains(name)))
        };
        let held = self.held.keys().filter(|name| !entries.contains_key(*name));
        let asked = self.asked.iter().filter(|name| !known(name));
        held.chain(asked)
            .cloned()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::{discovery, workload};

    fn content(uids: &[&str]) -> Content {
        let mut content = Content::default();
        for uid in uids {
            content.workload(workload::Workload {
                uid: (*uid).to_owned(),
                addresses: vec![bytes::Bytes::from_static(&[10, 0, 0, 1])],
                ..Default::default()
            });
        }
        content
    }

    fn initial(held: &[(&str, &str)]) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            node: Some(discovery::Node::default()),
            type_url: Kind::Address.url().to_owned(),
            initial_resource_versions: held
                .iter()
                .map(|(name, version)| ((*name).to_owned(), (*version).to_owned()))
                .collect(),
            ..Default::default()
        }
    }

    fn ack(response: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..Default::default()
        }
    }

    #[test]
    fn one_response_at_a_time_and_only_what_changed() {
        let mut mesh = content(&["a", "b"]);
        let mut session = Session::default();
        session.request(&initial(&[]), &mesh).unwrap();
        let first = session.next(&mesh).unwrap();
        assert_eq!(names(&first), ["a", "b"]);
        mesh.remove(Kind::Address, "a");
        assert!(
            session.next(&mesh).is_none(),
            "the first is not answered yet"
        );
        session.request(&ack(&first), &mesh).unwrap();
        let second = session.next(&mesh).unwrap();
        assert!(second.resources.is_empty());
        assert_eq!(second.removed_resources, ["a"]);
        session.request(&ack(&second), &mesh).unwrap();
        assert!(session.next(&mesh).is_none());
    }

    #[test]
    fn a_new_stream_gets_what_it_lacks() {
        let mesh = content(&["a", "b"]);
        let version = mesh.entries(Kind::Address)["a"].version.clone();
        let mut session = Session::default();
        let held = [("a", version.as_str()), ("b", "old"), ("c", "x")];
        session.request(&initial(&held), &mesh).unwrap();
        let response = session.next(&mesh).unwrap();
        assert_eq!(names(&response), ["b"]);
        assert_eq!(response.removed_resources, ["c"]);
    }

    #[test]
    fn on_demand_answers_aliases_and_absence() {
        let mesh = content(&["a"]);
        let mut session = Session::default();
        let mut request = initial(&[]);
        request.resource_names_subscribe = vec![ALL.to_owned()];
        request.resource_names_unsubscribe = vec![ALL.to_owned()];
        session.request(&request, &mesh).unwrap();
        let first = session.next(&mesh).unwrap();
        assert!(first.resources.is_empty());
        session.request(&ack(&first), &mesh).unwrap();
        let ask = |coming: &[&str], going: &[&str]| {
            let names = |of: &[&str]| of.iter().map(|&name| name.to_owned()).collect();
            DeltaDiscoveryRequest {
                type_url: Kind::Address.url().to_owned(),
                resource_names_subscribe: names(coming),
                resource_names_unsubscribe: names(going),
                ..Default::default()
            }
        };
        let both = ["/10.0.0.1", "/10.0.0.2"];
        session.request(&ask(&both, &[]), &mesh).unwrap();
        let second = session.next(&mesh).unwrap();
        assert_eq!(names(&second), ["a"]);
        assert_eq!(second.removed_resources, ["/10.0.0.2"]);
        session.request(&ack(&second), &mesh).unwrap();
        // what changes nothing is not answered; what was sent counts as asked for
        for name in ["/10.0.0.1", "/10.0.0.2", "a"] {
            session.request(&ask(&[name], &[]), &mesh).unwrap();
            assert!(session.next(&mesh).is_none(), "{name}");
            session.request(&ask(&[name], &[name]), &mesh).unwrap();
            assert!(session.next(&mesh).is_none(), "{name}");
            session.request(&ask(&[name], &[]), &mesh).unwrap();
            let again = session.next(&mesh).expect(name);
            assert_eq!(names(&again).len() + again.removed_resources.len(), 1);
            session.request(&ack(&again), &mesh).unwrap();
        }
    }

    #[test]
    fn what_a_client_must_not_say_is_refused() {
        let mesh = content(&["a"]);
        let mut session = Session::default();
        assert!(
            session
                .request(&DeltaDiscoveryRequest::default(), &mesh)
                .is_err()
        );
        session.request(&initial(&[]), &mesh).unwrap();
        let first = session.next(&mesh).unwrap();
        let answer = ack(&first);
        let wrong = [
            DeltaDiscoveryRequest {
                node: Some(discovery::Node::default()),
                ..answer.clone()
            },
            DeltaDiscoveryRequest {
                resource_names_subscribe: vec!["a".to_owned()],
                ..answer.clone()
            },
            DeltaDiscoveryRequest {
                initial_resource_versions: [("a".to_owned(), String::new())].into(),
                ..answer.clone()
            },
            DeltaDiscoveryRequest {
                response_nonce: String::new(),
                error_detail: Some(discovery::Status::default()),
                ..answer.clone()
            },
        ];
        for request in wrong {
            assert!(session.request(&request, &mesh).is_err(), "{request:?}");
        }
        session.request(&answer, &mesh).unwrap();
    }
}
