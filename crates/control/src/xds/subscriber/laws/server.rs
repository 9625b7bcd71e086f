//! A model of istiod, and beside it of what a subscriber must hold after each of its responses.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use mesh::Resource;
use prost::Message as _;
use proto::discovery::{self, DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use proto::wellknown::Any;
use proto::{security, workload as wire};

use super::super::{Answer, Kind};
use super::{Draw, converted};

/// Both halves of the model.
#[derive(Default)]
pub(super) struct Server {
    on_demand: bool,
    first_bytes_max: usize,
    world: BTreeMap<(Kind, String), Item>,
    versions: u64,
    /// Names that the stream of now subscribes to, when on demand: asked for, or sent.
    subscribed: BTreeSet<String>,
    queue: VecDeque<(Kind, Vec<discovery::Resource>, BTreeSet<String>)>,
    nonces: u64,
    client: Client,
    /// The response that is not answered yet.
    current: Option<DeltaDiscoveryResponse>,
}

/// What the subscriber must hold: version and resource by name, and names asked for in vain so far. No resource: it may hold it.
#[derive(Default)]
struct Client {
    held: BTreeMap<(Kind, String), (String, Option<Resource>)>,
    demands: BTreeSet<String>,
    /// Types of which it said nothing, so that the next response holds all.
    sweeping: BTreeSet<Kind>,
}

#[derive(Clone)]
struct Item {
    version: String,
    payload: Option<Bytes>,
    aliases: Vec<String>,
}

/// A name to ask for.
pub(super) fn name(draw: &mut Draw<'_>) -> String {
    match draw.below(4) {
        0 => format!("/10.0.0.{}", draw.below(5)),
        1 => format!("/10.1.0.{}", draw.below(4)),
        2 => workload_name(draw.below(5)),
        _ => service_name(draw.below(4)),
    }
}

fn workload_name(of: u8) -> String {
    format!("c//Pod/ns/w{of}")
}

fn service_name(of: u8) -> String {
    format!("ns/s{of}")
}

fn workload(of: u8, draw: &mut Draw<'_>) -> Bytes {
    let workload = wire::Workload {
        uid: workload_name(of),
        namespace: "ns".into(),
        addresses: vec![Bytes::copy_from_slice(&[10, 0, 0, of])],
        status: i32::from(draw.below(2)),
        services: [(service_name(draw.below(4)), wire::PortList::default())].into(),
        ..wire::Workload::default()
    };
    let address = wire::Address {
        r#type: Some(wire::address::Type::Workload(workload)),
    };
    address.encode_to_vec().into()
}

fn service(of: u8, draw: &mut Draw<'_>) -> Bytes {
    let service = wire::Service {
        namespace: "ns".into(),
        hostname: format!("s{of}"),
        addresses: vec![wire::NetworkAddress {
            address: Bytes::copy_from_slice(&[10, 1, 0, of]),
            ..wire::NetworkAddress::default()
        }],
        canonical: draw.flag(),
        ..wire::Service::default()
    };
    let address = wire::Address {
        r#type: Some(wire::address::Type::Service(service)),
    };
    address.encode_to_vec().into()
}

fn policy(of: u8, draw: &mut Draw<'_>) -> Bytes {
    let policy = security::Authorization {
        name: format!("p{of}"),
        namespace: "ns".into(),
        scope: i32::from(draw.below(3)),
        action: i32::from(draw.below(2)),
        ..security::Authorization::default()
    };
    policy.encode_to_vec().into()
}

/// A payload that is refused; `None` is one that is not there.
fn faulty(kind: Kind, draw: &mut Draw<'_>) -> Option<Bytes> {
    match draw.below(3) {
        0 => None,
        1 => Some(Bytes::from_static(&[0xff])),
        _ if kind == Kind::Authorization => Some(Bytes::from_static(&[0x18, 0x07])), // scope 7
        _ => Some(Bytes::new()),
    }
}

impl Item {
    fn resource(&self, name: &str) -> discovery::Resource {
        discovery::Resource {
            name: name.to_owned(),
            version: self.version.clone(),
            resource: self.payload.clone().map(|value| Any {
                value,
                ..Any::default()
            }),
            aliases: self.aliases.clone(),
            ..discovery::Resource::default()
        }
    }
}

impl Server {
    pub(super) fn new(on_demand: bool, first_bytes_max: usize) -> Self {
        Self {
            on_demand,
            first_bytes_max,
            ..Self::default()
        }
    }

    /// A new stream, which begins with these requests.
    pub(super) fn connect(&mut self, requests: &[DeltaDiscoveryRequest]) {
        let (first, late) = requests.split_at(Kind::ALL.len());
        self.check_first(first, late);
        self.queue.clear();
        self.current = None;
        for (kind, request) in Kind::ALL.into_iter().zip(first) {
            let echoed = &request.initial_resource_versions;
            if kind == Kind::Address {
                self.subscribed = echoed.keys().cloned().collect();
            }
            let of_interest = self.found(kind, &self.subscribed);
            let news = of_interest.iter().filter(|(name, item)| {
                item.version.is_empty() || echoed.get(*name) != Some(&item.version)
            });
            let news = news.map(|(name, item)| item.resource(name)).collect();
            let is_there = |name: &String| {
                let mut all = of_interest.iter();
                all.any(|(known, item)| known == name || item.aliases.contains(name))
            };
            let gone = echoed
                .keys()
                .filter(|name| !is_there(name))
                .cloned()
                .collect();
            self.send(kind, news, gone);
        }
        late.iter().for_each(|request| self.subscribe(request));
    }

    /// What is sent is subscribed to.
    fn send(&mut self, kind: Kind, news: Vec<discovery::Resource>, gone: BTreeSet<String>) {
        if kind == Kind::Address {
            self.subscribed
                .extend(news.iter().map(|resource| resource.name.clone()));
        }
        self.queue.push_back((kind, news, gone));
    }

    /// What has one of these names, or everything.
    fn found(&self, kind: Kind, names: &BTreeSet<String>) -> BTreeMap<String, Item> {
        let by_name = self.on_demand && kind == Kind::Address;
        let all = self.world.iter().filter(|((of, name), item)| {
            let mut called = item.aliases.iter().chain([name]);
            *of == kind && (!by_name || called.any(|name| names.contains(name)))
        });
        all.map(|((_, name), item)| (name.clone(), item.clone()))
            .collect()
    }

    /// Whether changes of this name are told.
    fn wants(&self, kind: Kind, name: &str) -> bool {
        kind == Kind::Authorization || !self.on_demand || self.subscribed.contains(name)
    }

    /// Something comes, changes or goes, in a response of its own or together with the last one.
    pub(super) fn change(&mut self, draw: &mut Draw<'_>) {
        let (kind, of) = match draw.below(3) {
            0 => (Kind::Address, draw.below(5)),
            1 => (Kind::Address, 100 + draw.below(4)),
            _ => (Kind::Authorization, draw.below(4)),
        };
        let name = match (kind, of) {
            (Kind::Address, 100..) => service_name(of - 100),
            (Kind::Address, _) => workload_name(of),
            (Kind::Authorization, _) => format!("ns/p{of}"),
        };
        let key = (kind, name.clone());
        let action = draw.below(6);
        let together = draw.flag();
        if action == 0 {
            if self.world.remove(&key).is_some() && self.wants(kind, &name) {
                let (_, gone) = self.open(kind, together);
                gone.insert(name);
            }
            return;
        }
        let item = self.item(kind, of, action == 1, draw);
        self.world.insert(key, item.clone());
        if self.wants(kind, &name) {
            let (news, gone) = self.open(kind, together);
            gone.remove(&name);
            news.push(item.resource(&name));
        }
    }

    fn item(&mut self, kind: Kind, of: u8, is_faulty: bool, draw: &mut Draw<'_>) -> Item {
        self.versions += 1;
        let n = self.versions;
        let version = match draw.below(4) {
            0 => String::new(),
            1 => n.to_string(),
            2 => format!("{n:016x}"),
            _ => format!("v{n}"),
        };
        let version = if kind == Kind::Authorization {
            String::new()
        } else {
            version
        };
        let good = match (kind, of) {
            (Kind::Address, 100..) => service(of - 100, draw),
            (Kind::Address, _) => workload(of, draw),
            (Kind::Authorization, _) => policy(of, draw),
        };
        let aliases = match (kind, of) {
            (Kind::Address, 100..) => vec![format!("/10.1.0.{}", of - 100)],
            (Kind::Address, _) => vec![format!("/10.0.0.{of}")],
            (Kind::Authorization, _) => vec![],
        };
        Item {
            version,
            payload: if is_faulty {
                faulty(kind, draw)
            } else {
                Some(good)
            },
            aliases,
        }
    }

    /// The response to put a change in.
    fn open(
        &mut self,
        kind: Kind,
        together: bool,
    ) -> (&mut Vec<discovery::Resource>, &mut BTreeSet<String>) {
        let fits = self.queue.back().is_some_and(|(of, ..)| *of == kind);
        if !(together && fits) {
            self.queue.push_back((kind, Vec::new(), BTreeSet::new()));
        }
        let last = self.queue.len() - 1;
        let (_, news, gone) = &mut self.queue[last];
        (news, gone)
    }

    /// A name was asked for, so that there is an answer.
    pub(super) fn asked(&mut self, requests: &[DeltaDiscoveryRequest]) {
        assert_eq!(requests.is_empty(), !self.on_demand);
        let Some(last) = requests.last() else { return };
        let [name] = &last.resource_names_subscribe[..] else {
            panic!("one name at a time: {requests:?}");
        };
        self.client.demands.insert(name.clone());
        let before = self.queue.len();
        requests.iter().for_each(|request| self.subscribe(request));
        // what the client does not know to be sent is on its way, and the answer
        let mut on_its_way = self.queue.iter().flat_map(|(_, news, _)| news);
        let is_answered = self.queue.len() > before || on_its_way.any(|news| news.name == *name);
        assert!(is_answered, "unanswered: {requests:?}");
    }

    /// Answers what is new of a subscription, and nothing else.
    fn subscribe(&mut self, request: &DeltaDiscoveryRequest) {
        assert_eq!(request.type_url, Kind::Address.url());
        assert!(request.node.is_none() && request.initial_resource_versions.is_empty());
        let coming = request.resource_names_subscribe.iter().cloned();
        let going = &request.resource_names_unsubscribe;
        let news: BTreeSet<String> = coming
            .filter(|name| !self.subscribed.contains(name) && !going.contains(name))
            .collect();
        self.subscribed.extend(news.iter().cloned());
        self.subscribed.retain(|name| !going.contains(name));
        if news.is_empty() {
            return;
        }
        let found = self.found(Kind::Address, &news);
        let is_known = |name: &String| {
            let mut all = found.iter();
            all.any(|(known, item)| known == name || item.aliases.contains(name))
        };
        let gone = news
            .iter()
            .filter(|name| !is_known(name))
            .cloned()
            .collect();
        let resources = found.iter().map(|(name, item)| item.resource(name));
        self.send(Kind::Address, resources.collect(), gone);
    }

    /// A response was taken in and not applied: all of it, or so many of its resources.
    pub(super) fn given_up(&mut self, steps: Option<usize>) {
        let response = self.current.take().expect("a response was sent");
        let kind = kind_of(&response);
        for (_, resource) in opened(&response).take(steps.unwrap_or(usize::MAX)) {
            if taken(kind, &resource).is_some() {
                let held = &mut self.client.held;
                held.entry((kind, resource.name)).or_default();
            }
        }
        // asked again by whoever still waits
        let named = opened(&response).take(steps.unwrap_or(usize::MAX));
        let names =
            named.flat_map(|(_, resource)| [resource.aliases, vec![resource.name]].concat());
        let gone = response.removed_resources.iter().cloned();
        let gone = gone.filter(|_| steps.is_none());
        if kind == Kind::Address {
            for name in names.chain(gone) {
                self.client.demands.remove(&name);
            }
        }
    }

    /// The subscriber does not rely on any version.
    pub(super) fn doubted(&mut self) {
        let all = self.client.held.values_mut();
        all.for_each(|(version, _)| version.clear());
    }

    /// Puts everything that is faulty right.
    pub(super) fn mend(&mut self) {
        let is_bad = |((kind, name), item): (&(Kind, String), &Item)| {
            let payload = item.payload.as_ref();
            let good = payload.and_then(|payload| converted(*kind, name, payload));
            good.is_none().then(|| (*kind, name.clone()))
        };
        let bad: Vec<_> = self.world.iter().filter_map(is_bad).collect();
        for (kind, name) in bad {
            let digit = name.as_bytes()[name.len() - 1] - b'0';
            let of = if name.starts_with("ns/s") {
                100 + digit
            } else {
                digit
            };
            let item = self.item(kind, of, false, &mut Draw { bytes: &[] });
            self.world.insert((kind, name), item);
        }
    }

    pub(super) fn next(&mut self) -> Option<DeltaDiscoveryResponse> {
        let (kind, news, gone) = self.queue.pop_front()?;
        self.nonces += 1;
        let response = DeltaDiscoveryResponse {
            resources: news
                .iter()
                .map(|resource| resource.encode_to_vec().into())
                .collect(),
            removed_resources: gone.into_iter().collect(),
            type_url: kind.url().to_owned(),
            nonce: self.nonces.to_string(),
            ..DeltaDiscoveryResponse::default()
        };
        self.current = Some(response.clone());
        Some(response)
    }

    /// How many resources of a response are to be refused.
    pub(super) fn faults(&self, response: &DeltaDiscoveryResponse) -> usize {
        let all = opened(response);
        all.filter(|(kind, resource)| taken(*kind, resource).is_none())
            .count()
    }

    /// Names that were asked for and not answered.
    pub(super) fn waiting(&self) -> BTreeSet<String> {
        self.client.demands.clone()
    }

    /// The subscriber's answer: brings the model of it up to date.
    pub(super) fn answered(
        &mut self,
        reply: &DeltaDiscoveryRequest,
        released: &[(String, Answer)],
    ) {
        let response = self.current.take().expect("a response was sent");
        assert_eq!(reply.response_nonce, response.nonce);
        let mut answers = Vec::new();
        for (kind, resource) in opened(&response) {
            let good = taken(kind, &resource);
            let answer = if good.is_some() {
                Answer::Held
            } else {
                Answer::Rejected
            };
            if let Some(good) = good {
                let held = (resource.version.clone(), Some(good));
                self.client.held.insert((kind, resource.name.clone()), held);
            }
            if kind == Kind::Address {
                answers.push((resource.name, answer));
                answers.extend(resource.aliases.into_iter().map(|alias| (alias, answer)));
            }
        }
        let kind = kind_of(&response);
        if self.client.sweeping.remove(&kind) {
            let named: Vec<_> = opened(&response)
                .map(|(_, resource)| resource.name)
                .collect();
            let held = &mut self.client.held;
            held.retain(|(of, name), _| *of != kind || named.contains(name));
        }
        for name in response.removed_resources {
            self.client.held.remove(&(kind, name.clone()));
            if kind == Kind::Address {
                answers.push((name, Answer::Absent));
            }
        }
        answers.retain(|(name, _)| self.client.demands.remove(name));
        assert_eq!(released, answers);
    }

    /// What the subscriber must hold.
    pub(super) fn held(&self) -> Vec<Resource> {
        self.client
            .held
            .values()
            .filter_map(|(_, resource)| resource.clone())
            .collect()
    }

    /// What is said first is what is held, cut where it is too long; what is asked for by name follows then.
    fn check_first(&mut self, first: &[DeltaDiscoveryRequest], late: &[DeltaDiscoveryRequest]) {
        self.client.sweeping.clear();
        let bound = self.first_bytes_max;
        for (kind, mut expected) in Kind::ALL.into_iter().zip(self.expected_first()) {
            let said = &first[kind as usize];
            let versions = std::mem::take(&mut expected.initial_resource_versions);
            let fits = {
                let mut whole = expected.clone();
                whole.initial_resource_versions = versions.clone();
                whole.encoded_len() <= bound
            };
            let mut rest = said.clone();
            let told = std::mem::take(&mut rest.initial_resource_versions);
            assert_eq!(rest, expected);
            if kind == Kind::Address && self.on_demand {
                let named = late
                    .iter()
                    .flat_map(|request| &request.resource_names_subscribe);
                let mut all = told.clone();
                all.extend(named.map(|name| (name.clone(), versions[name].clone())));
                assert_eq!(all, versions, "each name is told or asked for");
                assert_eq!(late.is_empty(), fits || versions.is_empty());
                assert!(said.encoded_len() <= bound || told.is_empty());
            } else if fits {
                assert_eq!(told, versions);
            } else {
                assert!(told.is_empty());
                self.client.sweeping.insert(kind);
            }
        }
        for request in late {
            let names = request.resource_names_subscribe.len();
            assert!(request.encoded_len() <= bound || names == 1);
        }
    }

    /// What it must say first on a new stream.
    pub(super) fn expected_first(&self) -> [DeltaDiscoveryRequest; 2] {
        Kind::ALL.map(|kind| {
            let by_name = self.on_demand && kind == Kind::Address;
            let names: Vec<String> = if by_name {
                vec!["*".to_owned()]
            } else {
                vec![]
            };
            let of_kind = self.client.held.iter().filter(|((of, _), _)| *of == kind);
            let mut versions: BTreeMap<String, String> = of_kind
                .map(|((_, name), (version, _))| (name.clone(), version.clone()))
                .collect();
            if by_name {
                for name in &self.client.demands {
                    versions.entry(name.clone()).or_default();
                }
            }
            DeltaDiscoveryRequest {
                node: Some(Node::default()),
                type_url: kind.url().to_owned(),
                resource_names_subscribe: names.clone(),
                resource_names_unsubscribe: names,
                initial_resource_versions: versions,
                ..DeltaDiscoveryRequest::default()
            }
        })
    }

    /// All that the subscriber should have in the end.
    pub(super) fn world(&self) -> Vec<Resource> {
        let of_kind = |kind| {
            let mut all = self.found(kind, &self.subscribed);
            all.retain(|name, _| self.wants(kind, name));
            let all = all.into_iter();
            all.filter_map(move |(name, item)| converted(kind, &name, item.payload.as_ref()?))
        };
        Kind::ALL.into_iter().flat_map(of_kind).collect()
    }
}

fn kind_of(response: &DeltaDiscoveryResponse) -> Kind {
    let mut all = Kind::ALL.into_iter();
    all.find(|kind| kind.url() == response.type_url)
        .expect("the model sends no other types")
}

fn opened(response: &DeltaDiscoveryResponse) -> impl Iterator<Item = (Kind, discovery::Resource)> {
    let kind = kind_of(response);
    let all = response.resources.iter();
    all.map(move |encoded| {
        let resource = discovery::Resource::decode(encoded.clone());
        (kind, resource.expect("the model sends readable wrappers"))
    })
}

fn taken(kind: Kind, resource: &discovery::Resource) -> Option<Resource> {
    converted(kind, &resource.name, &resource.resource.as_ref()?.value)
}
