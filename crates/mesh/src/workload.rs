//! What the mesh knows of one workload, packed for meshes of 100k of them, and the `baggage` text that describes it to peers.
//!
//! A workload holds what is its own; what the pods of one Deployment, and of one node, have in common they share.
//! Leaves to others: finding workloads (`index`), sharing what is equal (`pools`), reading them from a file (`local`).

use std::fmt::Write as _;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use crate::name::{NamespacedHostname, NetworkAddress, Str};
use crate::ports::Ports;
use crate::spiffe::SpiffeId;

/// One workload: a pod, a WorkloadEntry, or an endpoint of a ServiceEntry. Key: `uid`.
///
/// Reads as its [`Profile`] as well: `workload.namespace`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// Primary key, e.g. `Kubernetes//Pod/shop/cart-0`.
    pub uid: Str,
    /// Its name, where that is not what follows the last `/` of `uid`: see [`Workload::name`].
    own_name: Option<Box<str>>,
    /// Its addresses, never IPv4-mapped; may be empty.
    pub addresses: Addresses,
    /// Where it runs.
    pub place: Arc<Place>,
    /// What it has in common with others of its kind.
    pub profile: Arc<Profile>,
}

/// What the pods of one Deployment have in common. Shared by those that are equal: see [`crate::Pools::profile`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Profile {
    /// Kubernetes namespace.
    pub namespace: Str,
    /// Trust domain of its identity.
    pub trust_domain: Str,
    /// Kubernetes service account.
    pub service_account: Str,
    /// Network its addresses are on; empty for the default one.
    pub network: Str,
    /// Name to resolve when it has no usable address; else empty.
    pub hostname: Str,
    /// Name of the owner (Deployment…), where that is not the workload's own name: see [`Workload::workload_name`].
    pub owner_name: Option<Str>,
    /// Canonical service name, for telemetry.
    pub canonical_name: Str,
    /// Canonical revision, for telemetry.
    pub canonical_revision: Str,
    /// Cluster it belongs to.
    pub cluster_id: Str,
    /// The Services it is an endpoint of, with its own port mappings, sorted by name, each once.
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

impl Default for Profile {
    /// Anonymous and healthy, of weight 1, reached by plain TCP.
    fn default() -> Self {
        Self {
            namespace: Str::default(),
            trust_domain: Str::default(),
            service_account: Str::default(),
            network: Str::default(),
            hostname: Str::default(),
            owner_name: None,
            canonical_name: Str::default(),
            canonical_revision: Str::default(),
            cluster_id: Str::default(),
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

impl Deref for Workload {
    type Target = Profile;

    fn deref(&self) -> &Profile {
        &self.profile
    }
}

impl Workload {
    /// A workload of that uid and name, with what it shares with others.
    pub fn new(
        uid: Str,
        name: &str,
        addresses: impl Into<Addresses>,
        place: Arc<Place>,
        profile: Arc<Profile>,
    ) -> Self {
        let own_name = (last_part(&uid) != name).then(|| name.into());
        Self {
            uid,
            own_name,
            addresses: addresses.into(),
            place,
            profile,
        }
    }

    /// Pod name.
    pub fn name(&self) -> &str {
        self.own_name
            .as_deref()
            .unwrap_or_else(|| last_part(&self.uid))
    }

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
        let wanted = (namespace, hostname);
        let at = (self.services)
            .binary_search_by(|m| (&*m.service.namespace, &*m.service.hostname).cmp(&wanted))
            .ok()?;
        self.services.get(at)
    }

    /// Name of the owner (Deployment…), for telemetry. Its own name where the pod stands for itself.
    pub fn workload_name(&self) -> &str {
        self.owner_name.as_deref().unwrap_or_else(|| self.name())
    }

    /// The same with a changed profile, not shared with anyone.
    pub fn with(mut self, change: impl FnOnce(&mut Profile)) -> Self {
        change(Arc::make_mut(&mut self.profile));
        self
    }

    /// Whether it is a pod, by the form of its uid.
    pub fn is_pod(&self) -> bool {
        self.uid.contains("//Pod/")
    }
}

/// What follows the last `/`; all of it when there is none.
fn last_part(uid: &str) -> &str {
    uid.rsplit_once('/').map_or(uid, |(_, last)| last)
}

/// A workload's addresses: nearly always one, and then not in an allocation of its own. Reads as a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses(Held);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Held {
    One(IpAddr),
    Other(Box<[IpAddr]>),
}

impl Default for Addresses {
    fn default() -> Self {
        Self(Held::Other(Box::default()))
    }
}

impl Deref for Addresses {
    type Target = [IpAddr];

    fn deref(&self) -> &[IpAddr] {
        match &self.0 {
            Held::One(only) => std::slice::from_ref(only),
            Held::Other(all) => all,
        }
    }
}

impl FromIterator<IpAddr> for Addresses {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(all: I) -> Self {
        let mut all = all.into_iter();
        match (all.next(), all.next()) {
            (None, _) => Self::default(),
            (Some(only), None) => Self(Held::One(only)),
            (Some(first), Some(second)) => Self(Held::Other(
                [first, second].into_iter().chain(all).collect(),
            )),
        }
    }
}

impl From<Vec<IpAddr>> for Addresses {
    fn from(all: Vec<IpAddr>) -> Self {
        all.into_iter().collect()
    }
}

impl<const N: usize> From<[IpAddr; N]> for Addresses {
    fn from(all: [IpAddr; N]) -> Self {
        all.into_iter().collect()
    }
}

/// Where a workload runs. Shared by all on one node: see [`crate::Pools::place`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Place {
    /// Node it runs on; empty when it has none.
    pub node: Str,
    /// Region, zone, subzone.
    pub locality: Locality,
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
        ("k8s.cluster.name", &*workload.cluster_id),
        ("k8s.namespace.name", &workload.namespace),
        (owner, workload.workload_name()),
        ("service.name", &workload.canonical_name),
        ("service.version", &workload.canonical_revision),
        ("cloud.region", &workload.place.locality.region),
        ("cloud.availability_zone", &workload.place.locality.zone),
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
        let place = Place {
            locality: Locality {
                region: "eu-1".into(),
                zone: "eu-1b".into(),
                subzone: "x".into(),
            },
            ..Place::default()
        };
        let profile = Profile {
            cluster_id: "c1".into(),
            namespace: "shop".into(),
            owner_name: Some("cart".into()),
            workload_type: Some(WorkloadType::Deployment),
            canonical_name: "cart".into(),
            canonical_revision: "v3".into(),
            ..Profile::default()
        };
        let cart = Workload::new("u".into(), "cart-0", [], place.into(), profile.into());
        assert_eq!(
            baggage(&cart),
            "k8s.cluster.name=c1,k8s.namespace.name=shop,k8s.deployment.name=cart,service.name=cart,\
             service.version=v3,cloud.region=eu-1,cloud.availability_zone=eu-1b"
        );
    }

    #[test]
    fn baggage_leaves_out_what_is_absent_or_unfit() {
        let odd = Workload::default().with(|profile| {
            profile.namespace = "shop".into();
            profile.owner_name = Some("w".into());
            profile.workload_type = Some(WorkloadType::Pod);
            profile.canonical_name = "a,b=c".into();
            profile.canonical_revision = "v\n1".into();
        });
        assert_eq!(baggage(&odd), "k8s.namespace.name=shop,k8s.pod.name=w");
        assert_eq!(baggage(&Workload::default()), "");
    }

    #[test]
    fn names_are_kept_only_where_the_uid_does_not_tell() {
        let cases = [
            ("k//Pod/shop/cart-0", "cart-0", false),
            ("k//Pod/shop/cart-0", "cart", true),
            ("k//Pod/shop/cart-0", "", true),
            ("cart-0", "cart-0", false),
            ("", "", false),
            ("shop/", "", false),
        ];
        for (uid, name, kept) in cases {
            let workload = Workload::new(uid.into(), name, [], Arc::default(), Arc::default());
            assert_eq!(workload.name(), name, "{uid}");
            assert_eq!(workload.own_name.is_some(), kept, "{uid}");
        }
    }

    #[test]
    fn addresses_are_a_slice() {
        let ips: Vec<IpAddr> = ["10.0.0.1", "2001:db8::1", "10.0.0.1"]
            .map(|ip| ip.parse().expect("an address"))
            .into();
        for count in 0..=ips.len() {
            let held: Addresses = ips[..count].iter().copied().collect();
            assert_eq!(*held, ips[..count]);
            assert_eq!(held, Addresses::from(ips[..count].to_vec()));
        }
    }

    #[test]
    fn stays_small() {
        assert!(size_of::<Workload>() <= 72, "{}", size_of::<Workload>());
    }
}
