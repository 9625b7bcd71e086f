//! What the mesh knows of one workload, packed for meshes of 100k of them, and the `baggage` text that describes it to peers.
//!
//! Leaves to others: finding workloads (`index`), reading them from a file (`local`), showing them (`dump`).

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use crate::name::{NamespacedHostname, NetworkAddress, Str};
use crate::ports::Ports;
use crate::spiffe::SpiffeId;

/// One workload: a pod, a WorkloadEntry, or an endpoint of a ServiceEntry. Key: `uid`.
///
/// Lists and names are shared (`Arc`) so that the pods of one Deployment hold them once: see [`crate::Interner`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Primary key, e.g. `Kubernetes//Pod/shop/cart-0`.
    pub uid: Str,
    /// Pod name.
    pub name: Str,
    /// Kubernetes namespace.
    pub namespace: Str,
    /// Trust domain of its identity.
    pub trust_domain: Str,
    /// Kubernetes service account.
    pub service_account: Str,
    /// Network its addresses are on; empty for the default one.
    pub network: Str,
    /// Node it runs on; empty when it has none.
    pub node: Str,
    /// Name to resolve when it has no usable address; else empty.
    pub hostname: Str,
    /// Name of the owner (Deployment…), for telemetry.
    pub workload_name: Str,
    /// Canonical service name, for telemetry.
    pub canonical_name: Str,
    /// Canonical revision, for telemetry.
    pub canonical_revision: Str,
    /// Cluster it belongs to.
    pub cluster_id: Str,
    /// Region, zone, subzone.
    pub locality: Arc<Locality>,
    /// Its addresses, never IPv4-mapped; may be empty.
    pub addresses: Box<[IpAddr]>,
    /// The Services it is an endpoint of, with its own port mappings, sorted by name.
    pub services: Arc<[Membership]>,
    /// Keys (`namespace/name`) of the selector policies that apply to it.
    pub authorization_policies: Arc<[Str]>,
    /// Waypoint for traffic addressed to this workload itself.
    pub waypoint: Option<Arc<GatewayAddress>>,
    /// Gateway that leads to its network; ignored when that is the source's own network.
    pub network_gateway: Option<Arc<GatewayAddress>>,
    /// How its application wants inbound traffic delivered.
    pub application_tunnel: Option<ApplicationTunnel>,
    /// Load-balancing weight; 0 is never chosen.
    pub capacity: u32,
    /// How to reach it.
    pub protocol: Protocol,
    /// Whether its addresses are its own.
    pub network_mode: NetworkMode,
    /// Kind of its owner.
    pub workload_type: Option<WorkloadType>,
    /// Endpoint health.
    pub status: Health,
    /// Whether it speaks HBONE by itself.
    pub native_tunnel: bool,
}

impl Default for Workload {
    /// An anonymous healthy workload of weight 1, reached by plain TCP.
    fn default() -> Self {
        Self {
            uid: Str::default(),
            name: Str::default(),
            namespace: Str::default(),
            trust_domain: Str::default(),
            service_account: Str::default(),
            network: Str::default(),
            node: Str::default(),
            hostname: Str::default(),
            workload_name: Str::default(),
            canonical_name: Str::default(),
            canonical_revision: Str::default(),
            cluster_id: Str::default(),
            locality: Arc::default(),
            addresses: Box::default(),
            services: Arc::default(),
            authorization_policies: Arc::default(),
            waypoint: None,
            network_gateway: None,
            application_tunnel: None,
            capacity: 1,
            protocol: Protocol::Tcp,
            network_mode: NetworkMode::Standard,
            workload_type: None,
            status: Health::Healthy,
            native_tunnel: false,
        }
    }
}

impl Workload {
    /// The identity its peers must see.
    pub fn identity(&self) -> SpiffeId {
        SpiffeId::new(
            self.trust_domain.clone(),
            self.namespace.clone(),
            self.service_account.clone(),
        )
    }

    /// Whether both have the same identity.
    pub fn same_identity(&self, other: &Self) -> bool {
        self.service_account == other.service_account
            && self.namespace == other.namespace
            && self.trust_domain == other.trust_domain
    }

    /// How it takes part in the Service of that name, if it does.
    pub fn membership(&self, namespace: &str, hostname: &str) -> Option<&Membership> {
        self.services
            .iter()
            .find(|m| *m.service.hostname == *hostname && *m.service.namespace == *namespace)
    }

    /// Whether it is a pod, by the form of its uid.
    pub fn is_pod(&self) -> bool {
        self.uid.contains("//Pod/")
    }
}

/// A workload's part in one Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Membership {
    /// The Service.
    pub service: Arc<NamespacedHostname>,
    /// Service port to this workload's own port; ports left out take the Service's target port.
    pub ports: Ports,
}

/// Where something runs. Absent parts are empty; empty equals empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Locality {
    /// Region.
    pub region: Str,
    /// Zone within the region.
    pub zone: Str,
    /// Subzone within the zone.
    pub subzone: Str,
}

/// Reference to a waypoint or to a network gateway.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GatewayAddress {
    /// What it is.
    pub destination: Destination,
    /// Its port for mTLS HBONE.
    pub hbone_mtls_port: u16,
}

/// The two ways to name a gateway.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Destination {
    /// By Service (or workload) host name: the client's address family decides.
    Hostname(NamespacedHostname),
    /// By literal address.
    Address(NetworkAddress),
}

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Hostname(name) => name.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// How inbound traffic is handed to the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ApplicationTunnel {
    /// What precedes the application's bytes.
    pub protocol: TunnelFormat,
    /// Port to deliver to instead of the one asked for.
    pub port: Option<u16>,
}

/// What precedes the application's bytes on local delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TunnelFormat {
    /// Nothing.
    None,
    /// A PROXY protocol v2 header.
    Proxy,
}

/// How a workload is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Plain TCP.
    #[default]
    Tcp,
    /// HTTP/2 CONNECT over mutual TLS on port 15008.
    Hbone,
}

/// Whether a workload's addresses are its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum NetworkMode {
    /// The address identifies the workload.
    #[default]
    Standard,
    /// The address is the node's: never looked up by address.
    HostNetwork,
}

/// Endpoint health.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Health {
    /// Ready.
    #[default]
    Healthy,
    /// Not ready, or terminating.
    Unhealthy,
}

/// Kind of a workload's owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WorkloadType {
    /// Deployment.
    Deployment,
    /// CronJob.
    CronJob,
    /// Job.
    Job,
    /// A pod of its own.
    Pod,
}

impl WorkloadType {
    /// Its lower-case name in dumps and in baggage keys.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::CronJob => "cronjob",
            Self::Job => "job",
            Self::Pod => "pod",
        }
    }
}

/// The `baggage` header that describes `workload` to a peer: `key=value` pairs in fixed order, absent attributes left out.
///
/// A value holding a byte that a header list cannot carry (control, non-ASCII, `,`, `;`, `=` or blank) is left out like an absent one.
pub fn baggage(workload: &Workload) -> String {
    let owner = match workload.workload_type.unwrap_or(WorkloadType::Deployment) {
        WorkloadType::Deployment => "k8s.deployment.name",
        WorkloadType::CronJob => "k8s.cronjob.name",
        WorkloadType::Job => "k8s.job.name",
        WorkloadType::Pod => "k8s.pod.name",
    };
    let items = [
        ("k8s.cluster.name", &workload.cluster_id),
        ("k8s.namespace.name", &workload.namespace),
        (owner, &workload.workload_name),
        ("service.name", &workload.canonical_name),
        ("service.version", &workload.canonical_revision),
        ("cloud.region", &workload.locality.region),
        ("cloud.availability_zone", &workload.locality.zone),
    ];
    let mut text = String::new();
    for (key, value) in items {
        let plain = value
            .bytes()
            .all(|b| b.is_ascii_graphic() && !matches!(b, b',' | b';' | b'='));
        if value.is_empty() || !plain {
            continue;
        }
        let comma = if text.is_empty() { "" } else { "," };
        write!(text, "{comma}{key}={value}").expect("writing to a String cannot fail");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn baggage_in_order() {
        let cart = Workload {
            cluster_id: "c1".into(),
            namespace: "shop".into(),
            workload_name: "cart".into(),
            workload_type: Some(WorkloadType::Deployment),
            canonical_name: "cart".into(),
            canonical_revision: "v3".into(),
            locality: Arc::new(Locality {
                region: "eu-1".into(),
                zone: "eu-1b".into(),
                subzone: "x".into(),
            }),
            ..Workload::default()
        };
        assert_eq!(
            baggage(&cart),
            "k8s.cluster.name=c1,k8s.namespace.name=shop,k8s.deployment.name=cart,service.name=cart,\
             service.version=v3,cloud.region=eu-1,cloud.availability_zone=eu-1b"
        );
    }

    #[test]
    fn baggage_leaves_out_what_is_absent_or_unfit() {
        let odd = Workload {
            namespace: "shop".into(),
            workload_name: "w".into(),
            workload_type: Some(WorkloadType::Pod),
            canonical_name: "a,b=c".into(),
            canonical_revision: "v\n1".into(),
            ..Workload::default()
        };
        assert_eq!(baggage(&odd), "k8s.namespace.name=shop,k8s.pod.name=w");
        assert_eq!(baggage(&Workload::default()), "");
    }

    #[test]
    fn stays_small() {
        assert!(size_of::<Workload>() <= 304, "{}", size_of::<Workload>());
    }
}
