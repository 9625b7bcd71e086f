//! What the mesh knows of one Service: its addresses, ports, and how its endpoints are chosen.
//!
//! Leaves to others: which workloads are its endpoints (`index`), the choice itself (`balance`).

use std::sync::Arc;

use crate::name::{NamespacedHostname, NetworkAddress, NetworkCidr, Str};
use crate::ports::Ports;
use crate::spiffe::SpiffeId;
use crate::workload::{GatewayAddress, Health, Workload};

/// One Service or ServiceEntry. Key: namespace and host name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Kubernetes name, for telemetry.
    pub name: Str,
    /// Kubernetes namespace.
    pub namespace: Str,
    /// Fully qualified host name.
    pub hostname: Str,
    /// Its virtual addresses; empty for a headless one.
    pub vips: Box<[NetworkAddress]>,
    /// Ranges of addresses that belong to it.
    pub cidr_vips: Box<[NetworkCidr]>,
    /// Service port to target port; target 0 = named, the endpoint decides.
    pub ports: Ports,
    /// Endpoints it states itself; the usual ones come from the workloads.
    pub endpoints: Box<[Endpoint]>,
    /// Further identities its endpoints may show.
    pub subject_alt_names: Box<[SubjectAltName]>,
    /// Waypoint for traffic addressed to it.
    pub waypoint: Option<Arc<GatewayAddress>>,
    /// Waypoints to draw from per connection, instead of `waypoint`, when their weights add up to more than 0.
    pub weighted_waypoints: Box<[WeightedWaypoint]>,
    /// How endpoints are chosen; absent = all healthy ones alike.
    pub load_balancer: Option<LoadBalancer>,
    /// Address families to use; absent = no restriction.
    pub ip_families: Option<IpFamilies>,
    /// Preferred when several namespaces define the host or the address.
    pub canonical: bool,
    /// Who may use it.
    pub visibility: Visibility,
}

impl Service {
    /// Its key.
    pub fn key(&self) -> NamespacedHostname {
        NamespacedHostname {
            namespace: self.namespace.clone(),
            hostname: self.hostname.clone(),
        }
    }

    /// Whether connections go to the address that was dialled, without choosing an endpoint.
    pub fn is_passthrough(&self) -> bool {
        self.load_balancer
            .as_ref()
            .is_some_and(|lb| lb.mode == BalanceMode::Passthrough)
    }

    /// Whether unhealthy endpoints may be chosen too.
    pub fn allows_unhealthy(&self) -> bool {
        self.load_balancer
            .as_ref()
            .is_some_and(|lb| lb.health_policy == HealthPolicy::AllowAll)
    }

    /// Whether a client in `namespace` may use it; `None` = do not ask.
    pub fn is_visible_to(&self, namespace: Option<&str>) -> bool {
        self.visibility == Visibility::Public || namespace.is_none_or(|ns| ns == &*self.namespace)
    }

    /// The further identities that are SPIFFE ids; others cannot match any peer.
    pub fn extra_identities(&self) -> impl Iterator<Item = &SpiffeId> {
        self.subject_alt_names.iter().filter_map(SubjectAltName::id)
    }
}

/// An endpoint stated by the Service itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Uid of the workload.
    pub workload_uid: Str,
    /// Service port to this endpoint's own port.
    pub ports: Ports,
    /// Its health.
    pub status: Health,
}

/// An accepted peer identity as given, and parsed if it is a SPIFFE id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubjectAltName {
    text: Str,
    id: Option<SpiffeId>,
}

impl SubjectAltName {
    /// Takes any text.
    pub fn new(text: impl Into<Str>) -> Self {
        let text = text.into();
        Self {
            id: text.parse().ok(),
            text,
        }
    }

    /// As given.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The identity, unless the text is something else.
    pub fn id(&self) -> Option<&SpiffeId> {
        self.id.as_ref()
    }
}

/// One waypoint to draw, with its share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightedWaypoint {
    /// The waypoint.
    pub destination: GatewayAddress,
    /// Its share of the sum of all weights; 0 = never.
    pub weight: u32,
}

/// How an endpoint is chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadBalancer {
    /// What to compare between source and candidate, most important first.
    pub routing_preferences: Box<[Scope]>,
    /// What to do with the comparison.
    pub mode: BalanceMode,
    /// Whether unhealthy endpoints count.
    pub health_policy: HealthPolicy,
}

/// What is compared between source and candidate. Texts are compared as they are: empty equals empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Region.
    Region,
    /// Zone.
    Zone,
    /// Subzone.
    Subzone,
    /// Node.
    Node,
    /// Cluster id.
    Cluster,
    /// Network.
    Network,
}

impl Scope {
    /// What is compared of a workload.
    pub(crate) fn of(self, workload: &Workload) -> &Str {
        match self {
            Self::Region => &workload.place.locality.region,
            Self::Zone => &workload.place.locality.zone,
            Self::Subzone => &workload.place.locality.subzone,
            Self::Node => &workload.place.node,
            Self::Cluster => &workload.cluster_id,
            Self::Network => &workload.network,
        }
    }
}

/// How preferences are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BalanceMode {
    /// Not at all.
    #[default]
    Standard,
    /// Only endpoints that match every preference.
    Strict,
    /// The best matching group.
    Failover,
    /// No choice: the dialled address.
    Passthrough,
}

/// Which endpoints count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HealthPolicy {
    /// Healthy ones.
    #[default]
    OnlyHealthy,
    /// All.
    AllowAll,
}

/// Address families that may be used towards endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpFamilies {
    /// Both; the client's own is preferred.
    Dual,
    /// IPv4 only.
    Ipv4,
    /// IPv6 only.
    Ipv6,
}

/// Who may use a Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Visibility {
    /// Every namespace.
    #[default]
    Public,
    /// Clients of its own namespace.
    Namespace,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_spiffe_names_are_identities() {
        let service = Service {
            subject_alt_names: ["spiffe://td/ns/a/sa/b", "example.com"]
                .map(SubjectAltName::new)
                .into(),
            ..Service::default()
        };
        assert_eq!(
            service
                .extra_identities()
                .map(ToString::to_string)
                .collect::<Vec<_>>(),
            ["spiffe://td/ns/a/sa/b"]
        );
    }
}
