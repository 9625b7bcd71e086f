//! A mesh as istiod would describe it: names of the usual length, pods of Deployments on nodes, a Service each, some policies.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::Bytes;
use prost::Message as _;
use proto::discovery::{DeltaDiscoveryResponse, Resource};
use proto::wellknown::Any;
use proto::{security, workload as wire};

use crate::push::NODE;

const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";
const PODS_PER_NODE: usize = 30;
const SERVICES_PER_NAMESPACE: usize = 50;
/// Every so many pods have an IPv6 address as well.
const DUAL_STACK: usize = 10;
/// Every so many Deployments are behind a second Service, and behind a waypoint.
const SECOND_SERVICE: usize = 5;

/// How much there is of each.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Size {
    pub workloads: usize,
    pub services: usize,
    pub policies: usize,
}

/// What a push holds.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    /// All workloads and Services, in new versions.
    All,
    /// All Services.
    Services,
    /// So many workloads that were healthy and are not, or the other way round.
    Health(usize),
    /// So many workloads that are gone, and new ones in their places.
    Pods(usize),
}

/// The mesh.
pub struct World {
    size: Size,
    /// Per pod: how often it was replaced, and whether it is healthy.
    pods: Vec<(u32, bool)>,
    version: u64,
    /// Where the next change begins.
    next: usize,
}

impl World {
    pub fn new(size: Size) -> Self {
        Self {
            size,
            pods: vec![(0, true); size.workloads],
            version: 0,
            next: 0,
        }
    }

    /// How much there is of each.
    pub fn size(&self) -> Size {
        self.size
    }

    /// Addresses that connections go to: those of Services and of pods.
    pub fn targets(&self) -> Vec<IpAddr> {
        let services = (0..self.size.services).map(vip);
        services
            .chain((0..self.size.workloads).map(|pod| pod_ip(pod, 0)))
            .collect()
    }

    /// A push of all policies.
    pub fn policies(&self) -> Bytes {
        let all = (0..self.size.policies).map(|number| {
            let (name, policy) = self.policy(number);
            resource(name, AUTHORIZATION, &policy, String::new())
        });
        response(AUTHORIZATION, all.collect(), Vec::new())
    }

    /// A push of workloads and Services.
    pub fn addresses(&mut self, change: Change) -> Bytes {
        self.version += 1;
        let mut removed = Vec::new();
        let (services, pods) = match change {
            Change::All => (self.size.services, (0..self.size.workloads).collect()),
            Change::Services => (self.size.services, Vec::new()),
            Change::Health(count) => (0, self.some(count)),
            Change::Pods(count) => (0, self.some(count)),
        };
        for pod in &pods {
            let (generation, healthy) = self.pods[*pod];
            match change {
                Change::Health(_) => self.pods[*pod].1 = !healthy,
                Change::Pods(_) => {
                    removed.push(self.uid(*pod));
                    self.pods[*pod].0 = generation + 1;
                }
                Change::All | Change::Services => {}
            }
        }
        let services = (0..services).map(|number| self.service(number));
        let pods = pods.iter().map(|pod| self.workload(*pod));
        let version = |number: usize| {
            let number = self.version << 32 | number as u64;
            number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_string()
        };
        let all = services
            .chain(pods)
            .enumerate()
            .map(|(number, (name, what))| {
                let address = wire::Address { r#type: Some(what) };
                resource(name, ADDRESS, &address, version(number))
            });
        response(ADDRESS, all.collect(), removed)
    }

    /// So many pods, spread over the mesh, other ones each time.
    fn some(&mut self, count: usize) -> Vec<usize> {
        const STRIDE: usize = 7919;
        let first = self.next;
        self.next = (self.next + count * STRIDE) % self.size.workloads;
        let all = (0..count).map(|number| (first + number * STRIDE) % self.size.workloads);
        all.collect()
    }

    fn deployment(&self, pod: usize) -> usize {
        pod % self.size.services
    }

    fn pod_name(&self, pod: usize) -> String {
        let app = app(self.deployment(pod));
        let (generation, _) = self.pods[pod];
        let tail = scrambled(pod as u64 + (u64::from(generation) << 32));
        format!(
            "{app}-{:09x}-{:05x}",
            scrambled(self.deployment(pod) as u64) >> 28,
            tail >> 44
        )
    }

    fn uid(&self, pod: usize) -> String {
        let namespace = namespace(self.deployment(pod));
        format!("cluster1//Pod/{namespace}/{}", self.pod_name(pod))
    }

    fn workload(&self, pod: usize) -> (String, wire::address::Type) {
        let deployment = self.deployment(pod);
        let (uid, (generation, healthy)) = (self.uid(pod), self.pods[pod]);
        let node = pod / PODS_PER_NODE;
        let mut addresses = vec![octets(pod_ip(pod, generation))];
        if pod.is_multiple_of(DUAL_STACK) {
            let low = pod as u128 | u128::from(generation) << 32;
            addresses.push(octets(Ipv6Addr::from(0xfd00 << 112 | low).into()));
        }
        let hostnames = [Some(hostname(deployment)), second(deployment)];
        let ports = wire::PortList {
            ports: [port(80, 8080), port(9090, 9090)].into(),
        };
        let services = hostnames.into_iter().flatten();
        let services =
            services.map(|host| (format!("{}/{host}", namespace(deployment)), ports.clone()));
        let policies = (deployment < self.size.policies / 2).then(|| policy_name(deployment));
        let workload = wire::Workload {
            name: self.pod_name(pod),
            namespace: namespace(deployment),
            addresses,
            tunnel_protocol: wire::TunnelProtocol::Hbone.into(),
            service_account: app(deployment),
            node: match node {
                0 => NODE.to_owned(),
                _ => format!(
                    "ip-10-{}-{}-7.eu-west-1.compute.internal",
                    node / 256,
                    node % 256
                ),
            },
            canonical_name: app(deployment),
            canonical_revision: "v1".to_owned(),
            workload_type: wire::WorkloadType::Pod.into(),
            workload_name: app(deployment),
            authorization_policies: policies.into_iter().collect(),
            status: if healthy {
                wire::WorkloadStatus::Healthy
            } else {
                wire::WorkloadStatus::Unhealthy
            }
            .into(),
            cluster_id: "cluster1".to_owned(),
            uid: uid.clone(),
            services: services.collect::<BTreeMap<_, _>>().into_iter().collect(),
            locality: Some(wire::Locality {
                region: "eu-west-1".to_owned(),
                zone: format!("eu-west-1{}", ["a", "b", "c"][node % 3]),
                subzone: String::new(),
            }),
            ..wire::Workload::default()
        };
        (uid, wire::address::Type::Workload(workload))
    }

    fn service(&self, number: usize) -> (String, wire::address::Type) {
        let (namespace, host) = (namespace(number), hostname(number));
        let waypoint = number
            .is_multiple_of(SECOND_SERVICE)
            .then(|| wire::GatewayAddress {
                destination: Some(wire::gateway_address::Destination::Hostname(
                    wire::NamespacedHostname {
                        namespace: namespace.clone(),
                        hostname: format!("waypoint.{namespace}.svc.cluster.local"),
                    },
                )),
                hbone_mtls_port: 15008,
            });
        let service = wire::Service {
            name: app(number),
            namespace: namespace.clone(),
            hostname: host.clone(),
            addresses: vec![wire::NetworkAddress {
                address: octets(vip(number)),
                ..wire::NetworkAddress::default()
            }],
            ports: [port(80, 8080), port(9090, 9090)].into(),
            waypoint,
            canonical: true,
            ..wire::Service::default()
        };
        (
            format!("{namespace}/{host}"),
            wire::address::Type::Service(service),
        )
    }

    /// Half of them are chosen by the pods, the others are for their namespaces.
    fn policy(&self, number: usize) -> (String, security::Authorization) {
        let principal = format!(
            "cluster.local/ns/{}/sa/{}",
            namespace(number),
            app(number + 1)
        );
        let matching = security::Match {
            principals: vec![security::StringMatch {
                match_type: Some(security::string_match::MatchType::Exact(principal)),
            }],
            ..security::Match::default()
        };
        let clause = security::Clause {
            matches: vec![matching],
        };
        let scope = if number < self.size.policies / 2 {
            security::Scope::WorkloadSelector
        } else {
            security::Scope::Namespace
        };
        let name = policy_name(number);
        let policy = security::Authorization {
            name: format!("allow-{}", app(number)),
            namespace: namespace(number),
            scope: scope.into(),
            action: security::Action::Allow.into(),
            rules: vec![security::Rule {
                clauses: vec![clause],
            }],
            ..security::Authorization::default()
        };
        (name, policy)
    }
}

fn resource(name: String, url: &str, payload: &impl prost::Message, version: String) -> Bytes {
    let any = Any {
        type_url: url.to_owned(),
        value: payload.encode_to_vec().into(),
    };
    let resource = Resource {
        name,
        version,
        resource: Some(any),
        ..Resource::default()
    };
    resource.encode_to_vec().into()
}

fn response(url: &str, resources: Vec<Bytes>, removed: Vec<String>) -> Bytes {
    let response = DeltaDiscoveryResponse {
        resources,
        removed_resources: removed,
        type_url: url.to_owned(),
        nonce: "nonce".to_owned(),
        ..DeltaDiscoveryResponse::default()
    };
    response.encode_to_vec().into()
}

fn app(deployment: usize) -> String {
    const KINDS: [&str; 6] = [
        "checkout",
        "cart",
        "inventory",
        "payments-api",
        "web",
        "search",
    ];
    format!("{}-{deployment}", KINDS[deployment % KINDS.len()])
}

fn namespace(deployment: usize) -> String {
    format!("namespace-{}", deployment / SERVICES_PER_NAMESPACE)
}

fn hostname(deployment: usize) -> String {
    format!(
        "{}.{}.svc.cluster.local",
        app(deployment),
        namespace(deployment)
    )
}

/// The waypoint's name for every so many: a Service that is not known, whose endpoints are staged.
fn second(deployment: usize) -> Option<String> {
    let is_one = deployment.is_multiple_of(SECOND_SERVICE);
    is_one.then(|| {
        format!(
            "{}-canary.{}.svc.cluster.local",
            app(deployment),
            namespace(deployment)
        )
    })
}

fn policy_name(number: usize) -> String {
    format!("{}/allow-{}", namespace(number), app(number))
}

fn port(service_port: u32, target_port: u32) -> wire::Port {
    wire::Port {
        service_port,
        target_port,
        ..wire::Port::default()
    }
}

fn vip(service: usize) -> IpAddr {
    Ipv4Addr::from_bits(0x0A60_0000 + service as u32).into()
}

fn pod_ip(pod: usize, generation: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0A80_0000 + pod as u32 + (generation << 20)).into()
}

fn octets(ip: IpAddr) -> Bytes {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec().into(),
        IpAddr::V6(v6) => v6.octets().to_vec().into(),
    }
}

/// A number that looks like none.
fn scrambled(number: u64) -> u64 {
    let mixed = (number ^ 0x5DEE_CE66).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed ^ mixed >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9)
}
