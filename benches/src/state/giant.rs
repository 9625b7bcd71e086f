//! Services with very many endpoints, of which pods come and go: what a change costs, and how long decisions about them take.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use control::Publisher;
use mesh::service::{BalanceMode, HealthPolicy, LoadBalancer, Scope};
use mesh::workload::{Health, Locality, Membership, Place, Profile};
use mesh::{Delta, Index, NamespacedHostname, NetworkAddress, Resource, Service, Workload};

use crate::watcher::{Waits, Watchers};

/// Rounds of changes: in each a pod comes, and some change their health.
const ROUNDS: usize = 40;
const ILL: usize = 500;
const PODS_PER_NODE: usize = 30;
/// Time between the rounds, for decisions on an index that has just changed and on one that has not.
const PAUSE: Duration = Duration::from_millis(10);

/// What was measured.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Giant {
    /// Endpoints of each of the Services.
    pub endpoints: usize,
    /// One more pod: until all readers see it. The median.
    pub one_pod: Duration,
    /// Health of some of the endpoints.
    pub health: Duration,
    /// Decisions beside these changes.
    pub waits: Waits,
}

/// Measures Services of so many endpoints, one for each way to choose.
pub async fn measure(endpoints: usize) -> Giant {
    let crowd = Crowd::new(endpoints + ROUNDS);
    let publisher = Publisher::new(Index::default());
    let services = crowd.services();
    let vips: Vec<IpAddr> = (0..services.len()).map(vip).collect();
    let pods = (0..endpoints).map(|number| crowd.pod(number, Health::Healthy));
    publisher
        .apply(coming(services.into_iter().chain(pods).collect()))
        .await;
    let watchers = Watchers::start(&publisher, &vips);
    let (mut ones, mut ills) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        std::thread::sleep(PAUSE);
        let one = crowd.pod(endpoints + round, Health::Healthy);
        ones.push(timed(&publisher, vec![one]).await);
        std::thread::sleep(PAUSE);
        let status = [Health::Unhealthy, Health::Healthy][round % 2];
        let ill = (0..ILL).map(|number| crowd.pod(number * (endpoints / ILL), status));
        ills.push(timed(&publisher, ill.collect()).await);
    }
    Giant {
        endpoints,
        one_pod: median(ones),
        health: median(ills),
        waits: watchers.stop(),
    }
}

/// What the pods have in common.
struct Crowd {
    /// Healthy, and not.
    profiles: [Arc<Profile>; 2],
    /// By node.
    places: Vec<Arc<Place>>,
}

impl Crowd {
    fn new(pods: usize) -> Self {
        let services = (0..modes().len()).map(|number| Membership {
            service: Arc::new(name(number)),
            ports: [(80, 8080)].into_iter().collect(),
        });
        let healthy = Profile {
            namespace: "big".into(),
            services: services.collect(),
            ..Profile::default()
        };
        let ill = Profile {
            status: Health::Unhealthy,
            ..healthy.clone()
        };
        Self {
            profiles: [healthy, ill].map(Arc::new),
            places: (0..=pods / PODS_PER_NODE).map(place).collect(),
        }
    }

    fn pod(&self, number: usize, status: Health) -> Resource {
        let name = format!("everyone-{number}");
        let uid = format!("cluster1//Pod/big/{name}");
        let address = IpAddr::from(Ipv4Addr::from_bits(0x0B00_0000 + number as u32));
        let profile = self.profiles[usize::from(status == Health::Unhealthy)].clone();
        let place = self.places[number / PODS_PER_NODE].clone();
        let pod = Workload::new(uid.into(), &name, [address], place, profile);
        Resource::Workload(Arc::new(pod))
    }

    fn services(&self) -> Vec<Resource> {
        let all = modes().into_iter().enumerate();
        let service = |(number, load_balancer)| {
            let NamespacedHostname {
                namespace,
                hostname,
            } = name(number);
            let address = NetworkAddress {
                network: "".into(),
                ip: vip(number),
            };
            Resource::Service(Arc::new(Service {
                namespace,
                hostname,
                vips: [address].into(),
                ports: [(80, 8080)].into_iter().collect(),
                load_balancer,
                ..Service::default()
            }))
        };
        all.map(service).collect()
    }
}

fn place(node: usize) -> Arc<Place> {
    Arc::new(Place {
        node: format!("node-{node}").into(),
        locality: Locality {
            region: "eu-west-1".into(),
            zone: ["a", "b", "c"][node % 3].into(),
            subzone: "".into(),
        },
    })
}

/// Any endpoint, the nearest zone, the same node where there is one: the source is nowhere, so that all have to be weighed.
fn modes() -> [Option<LoadBalancer>; 3] {
    let near = |preferences: &[Scope]| {
        Some(LoadBalancer {
            routing_preferences: preferences.into(),
            mode: BalanceMode::Failover,
            health_policy: HealthPolicy::OnlyHealthy,
        })
    };
    [
        None,
        near(&[Scope::Network, Scope::Region, Scope::Zone]),
        near(&[Scope::Network, Scope::Node]),
    ]
}

fn name(number: usize) -> NamespacedHostname {
    NamespacedHostname {
        namespace: "big".into(),
        hostname: format!("everyone-{number}.big.svc.cluster.local").into(),
    }
}

fn vip(number: usize) -> IpAddr {
    Ipv4Addr::from_bits(0x0A60_0000 + number as u32).into()
}

fn coming(upsert: Vec<Resource>) -> Delta {
    Delta {
        remove: Vec::new(),
        upsert,
    }
}

async fn timed(publisher: &Publisher, upsert: Vec<Resource>) -> Duration {
    let start = Instant::now();
    publisher.apply(coming(upsert)).await;
    start.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
