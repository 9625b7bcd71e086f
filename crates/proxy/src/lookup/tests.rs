//! Answers that come, that do not come, and what a connection makes of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;

use mesh::{Authority, Delta, Hop, NamespacedHostname, NetworkAddress, Resource};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::*;

const CLIENT: &str = "
workloads:
- {uid: a, name: client, namespace: shop, workloadIps: [10.0.0.1], trustDomain: t, services: {}}
";
const SERVER: &str = "
workloads:
- {uid: b, name: server, namespace: shop, workloadIps: [10.0.0.2], trustDomain: t, protocol: HBONE, services: {}}
";
const BY_NAME: &str = "
workloads:
- {uid: c, name: db, namespace: shop, workloadIps: [], hostname: db.example, trustDomain: t, services: {shop/db.shop: {80: 5432}}}
services:
- {name: db, namespace: shop, hostname: db.shop, vips: [/10.1.0.1], ports: {80: 5432}}
";
const OWN_SERVICE: &str = "
services:
- {name: web, namespace: shop, hostname: web.shop, vips: [/10.1.0.2], ports: {80: 8080}}
";

fn state(texts: &[&str]) -> Delta {
    let parse = |text: &&str| mesh::local::parse(text).expect("the test's own state");
    Delta {
        remove: Vec::new(),
        upsert: texts.iter().flat_map(parse).collect::<Vec<Resource>>(),
    }
}

/// A control plane, a resolver and the state they fill.
struct World {
    state: ArcSwap<Index>,
    registry: Registry,
    budget: Budget,
    /// what is told about a name, and what that puts into the state
    known: BTreeMap<&'static str, &'static str>,
    /// says nothing, ever
    silent: bool,
    asked: Mutex<Vec<String>>,
    names: Result<Vec<IpAddr>, String>,
}

impl World {
    fn new(held: &[&str]) -> Self {
        let mut index = Index::default();
        index.apply(state(held));
        Self {
            state: ArcSwap::from_pointee(index),
            registry: Registry::new(),
            budget: Budget::new(1),
            known: BTreeMap::new(),
            silent: false,
            asked: Mutex::default(),
            names: Err("nobody knows".to_owned()),
        }
    }

    fn sources(&self, on_demand: bool) -> Sources<'_> {
        Sources {
            state: &self.state,
            resolver: self,
            finder: on_demand.then_some(self as _),
            registry: &self.registry,
            budget: &self.budget,
        }
    }

    fn client(&self) -> Arc<Workload> {
        let index = self.state.load();
        let own = index.workload_by_ip("", "10.0.0.1".parse().unwrap());
        Arc::clone(own.expect("the client is in the state"))
    }

    async fn route(&self, on_demand: bool, target: &str) -> Result<Plan, Failure> {
        let flow = Flow {
            source: self.client(),
            client: "10.0.0.1:40000".parse().unwrap(),
            target: target.parse().unwrap(),
            socks: false,
        };
        let rng = RefCell::new(SmallRng::seed_from_u64(1));
        route(self.sources(on_demand), &flow, &rng).await
    }

    async fn admit(&self, authority: Authority) -> Result<Admitted, Failure> {
        let local = self.client();
        let asked = Connect {
            local: &local,
            tunnel_local: "10.0.0.1".parse().unwrap(),
            client: "10.0.0.9:40000".parse().unwrap(),
            identity: None,
            authority: &authority,
            forwarded_host: None,
            socks: false,
            localhost_app_tunnel: true,
            keep_source: true,
        };
        admit(self.sources(true), &asked).await
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    async fn answer(&self, name: String) -> Result<bool, String> {
        self.asked.lock().unwrap().push(name.clone());
        if self.silent {
            std::future::pending::<()>().await;
        }
        match self.known.get(name.as_str()) {
            Some(&"broken") => Err("the answer was refused".to_owned()),
            Some(text) => {
                self.state.rcu(|index| {
                    let mut next = Index::clone(index);
                    next.apply(state(&[text]));
                    next
                });
                Ok(true)
            }
            None => Ok(false),
        }
    }
}

impl Finder for World {
    fn address<'a>(&'a self, address: &'a NetworkAddress) -> Pending<'a, Result<bool, String>> {
        Box::pin(self.answer(address.to_string()))
    }

    fn host<'a>(&'a self, name: &'a NamespacedHostname) -> Pending<'a, Result<bool, String>> {
        Box::pin(self.answer(name.to_string()))
    }
}

impl Resolver for World {
    fn resolve<'a>(&'a self, host: &'a str) -> Pending<'a, Result<Vec<IpAddr>, String>> {
        self.asked.lock().unwrap().push(host.to_owned());
        Box::pin(async {
            if self.silent {
                std::future::pending::<()>().await;
            }
            self.names.clone()
        })
    }
}

#[tokio::test]
async fn on_demand_an_unknown_address_is_asked_for_and_then_decided() {
    let mut world = World::new(&[CLIENT]);
    world.known.insert("/10.0.0.2", SERVER);
    let plan = world.route(true, "10.0.0.2:80").await.unwrap();
    assert!(matches!(plan.hop, Hop::Hbone { .. }), "{plan:?}");
    // what is held is not asked for again
    world.route(true, "10.0.0.2:81").await.unwrap();
    assert_eq!(world.asked(), ["/10.0.0.2"]);
}

#[tokio::test]
async fn what_the_control_plane_says_is_nowhere_passes_through() {
    let world = World::new(&[CLIENT]);
    let plan = world.route(true, "192.0.2.1:443").await.unwrap();
    assert_eq!(plan.hop, Hop::Passthrough);
    assert_eq!(world.asked(), ["/192.0.2.1"]);
}

#[tokio::test(start_paused = true)]
async fn without_an_answer_nothing_passes() {
    let mut world = World::new(&[CLIENT]);
    world.known.insert("/10.0.0.3", "broken");
    let refused = world.route(true, "10.0.0.3:80").await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "failed to look up /10.0.0.3: the answer was refused"
    );
    world.silent = true;
    let refused = world.route(true, "10.0.0.2:80").await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "failed to look up /10.0.0.2: no answer within 10s"
    );
    assert_eq!((refused.reason(), refused.status()), ("lookup", 503));
}

#[tokio::test]
async fn a_pod_has_a_bounded_number_of_questions_open() {
    let mut world = World::new(&[CLIENT, BY_NAME]);
    world.silent = true;
    let mut waiting = Box::pin(world.route(true, "10.0.0.2:80"));
    tokio::select! {
        biased;
        done = &mut waiting => panic!("{done:?}"),
        () = std::future::ready(()) => {}
    }
    // the control plane's answers and the resolver's count together
    for (on_demand, target) in [(true, "10.0.0.3:80"), (false, "10.1.0.1:80")] {
        let refused = world.route(on_demand, target).await.unwrap_err();
        assert_eq!(
            (refused.reason(), refused.status()),
            ("lookup_budget", 503),
            "{refused}"
        );
    }
    assert_eq!(world.asked(), ["/10.0.0.2"]);
    // what needs no answer goes on
    world.route(false, "10.0.0.3:80").await.unwrap();
    drop(waiting);
    let next = world.route(true, "10.0.0.3:80");
    tokio::select! {
        biased;
        done = next => panic!("{done:?}"),
        () = std::future::ready(()) => {}
    }
    assert_eq!(world.asked(), ["/10.0.0.2", "/10.0.0.3"]);
}

#[tokio::test]
async fn an_answer_that_does_not_help_is_not_asked_for_for_ever() {
    let mut world = World::new(&[CLIENT]);
    // something was there, says the control plane, but the state has it no more
    world.known.insert("/10.0.0.3", "");
    let plan = world.route(true, "10.0.0.3:80").await.unwrap();
    assert_eq!(plan.hop, Hop::Passthrough);
    assert_eq!(world.asked(), ["/10.0.0.3"]);
}

#[tokio::test]
async fn with_all_state_held_nobody_is_asked() {
    let world = World::new(&[CLIENT]);
    let plan = world.route(false, "10.0.0.2:80").await.unwrap();
    assert_eq!(plan.hop, Hop::Passthrough);
    assert_eq!(world.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn a_host_name_that_a_peer_asks_for_is_looked_up() {
    let host = || Authority::Host {
        host: "web.shop".into(),
        port: 80,
    };
    let world = World::new(&[CLIENT]);
    let refused = world.admit(host()).await.unwrap_err();
    assert!(matches!(refused, Failure::Rejected(_)), "{refused}");
    assert_eq!(world.asked(), ["shop/web.shop"]);
    let mut world = World::new(&[CLIENT]);
    world.known.insert("shop/web.shop", OWN_SERVICE);
    let admitted = world.admit(host()).await.unwrap();
    assert_eq!(admitted.to, "10.0.0.1:8080".parse::<SocketAddr>().unwrap());
}

#[tokio::test]
async fn an_endpoint_by_name_is_resolved_and_counted() {
    let mut world = World::new(&[CLIENT, BY_NAME]);
    world.names = Ok(vec![
        "fd00::5".parse().unwrap(),
        "192.0.2.5".parse().unwrap(),
    ]);
    for count in 1..=2 {
        let plan = world.route(false, "10.1.0.1:80").await.unwrap();
        // of the family that was dialled
        assert_eq!(plan.to, "192.0.2.5:5432".parse::<SocketAddr>().unwrap());
        let (_, text) = world.registry.encode([]);
        let counted = format!("hostname=\"db.example\"}} {count}\n");
        assert!(text.contains(&counted), "{text}");
    }
    assert_eq!(world.asked(), ["db.example", "db.example"]);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_whose_name_gives_no_address_is_refused() {
    let mut world = World::new(&[CLIENT, BY_NAME]);
    for (names, silent, text) in [
        (
            Err("no such name".to_owned()),
            false,
            "no ip addresses were resolved for db.example: no such name",
        ),
        (
            Ok(Vec::new()),
            false,
            "no ip addresses were resolved for db.example",
        ),
        (
            Ok(Vec::new()),
            true,
            "no ip addresses were resolved for db.example: no answer within 10s",
        ),
    ] {
        (world.names, world.silent) = (names, silent);
        let refused = world.route(false, "10.1.0.1:80").await.unwrap_err();
        assert_eq!(refused.to_string(), text);
        assert_eq!(refused.status(), 503);
    }
}
