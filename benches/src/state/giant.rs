//! A Service with very many endpoints, of which one pod comes and goes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh::workload::{Membership, Profile};
use mesh::{Delta, Index, NamespacedHostname, Resource, Service, Workload};

const ROUNDS: usize = 20;

/// Copies an index with one Service of `members` endpoints, adds one, and lets go of the old one: the median of that.
pub fn one_pod(members: usize) -> Duration {
    let name = NamespacedHostname {
        namespace: "big".into(),
        hostname: "everyone.big.svc.cluster.local".into(),
    };
    let membership = Membership {
        service: Arc::new(name.clone()),
        ports: [(80, 8080)].into_iter().collect(),
    };
    let profile = Arc::new(Profile {
        namespace: name.namespace.clone(),
        services: [membership].into(),
        ..Profile::default()
    });
    let pod = |number: usize| {
        let name = format!("everyone-{number}");
        let uid = format!("cluster1//Pod/big/{name}");
        let pod = Workload::new(uid.into(), &name, [], Arc::default(), profile.clone());
        Resource::Workload(Arc::new(pod))
    };
    let mut all: Vec<Resource> = (0..members).map(pod).collect();
    all.push(Resource::Service(Arc::new(Service {
        namespace: name.namespace.clone(),
        hostname: name.hostname,
        ..Service::default()
    })));
    let mut index = Index::build(all);
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|round| {
            let upsert = vec![pod(members + round)];
            let start = Instant::now();
            let mut next = index.clone();
            next.apply(Delta {
                remove: Vec::new(),
                upsert,
            });
            index = next;
            start.elapsed()
        })
        .collect();
    times.sort();
    times[ROUNDS / 2]
}
