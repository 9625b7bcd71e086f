//! The labels of traffic metrics, names and order in one place. Where each value comes from is left to `proxy`.

use mesh::{SpiffeId, Str};

/// A value that is missing or empty.
pub(super) const UNKNOWN: &str = "unknown";

/// Which side of a connection counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reporter {
    /// The client's node: outbound.
    Source,
    /// The server's node: inbound.
    Destination,
}

impl Reporter {
    /// Both, in the order of their numbers.
    pub(super) const ALL: [Self; 2] = [Self::Source, Self::Destination];

    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// Why a connection ended early: `response_flags`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Flag {
    /// It did not.
    None,
    /// Authorization policy, at the start or later.
    Deny,
    /// Could not connect, the CONNECT was refused, the outbound TLS handshake failed, or anything else.
    Connect,
    /// TLS configuration.
    TlsFailure,
    /// HTTP/2 handshake or protocol.
    H2HandshakeFailure,
    /// Connect to an HBONE next hop timed out.
    NetworkPolicy,
    /// No certificate.
    IdentityError,
    /// The peer's certificate is revoked.
    CertRevoked,
}

impl Flag {
    /// All, in the order of their numbers.
    pub(super) const ALL: [Self; 8] = [
        Self::None,
        Self::Deny,
        Self::Connect,
        Self::TlsFailure,
        Self::H2HandshakeFailure,
        Self::NetworkPolicy,
        Self::IdentityError,
        Self::CertRevoked,
    ];

    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Deny => "DENY",
            Self::Connect => "CONNECT",
            Self::TlsFailure => "TLS_FAILURE",
            Self::H2HandshakeFailure => "H2_HANDSHAKE_FAILURE",
            Self::NetworkPolicy => "NETWORK_POLICY",
            Self::IdentityError => "IDENTITY_ERROR",
            Self::CertRevoked => "CERT_REVOKED",
        }
    }
}

/// What is known of a workload. Empty is unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkloadLabels {
    /// Name of the owner, such as the Deployment.
    pub workload: Str,
    /// Namespace.
    pub namespace: Str,
    /// Canonical service.
    pub canonical_service: Str,
    /// Canonical revision.
    pub canonical_revision: Str,
    /// Canonical service, or the workload name when known from baggage.
    pub app: Str,
    /// Canonical revision.
    pub version: Str,
    /// Cluster id.
    pub cluster: Str,
    /// Region.
    pub region: Str,
    /// Zone.
    pub zone: Str,
}

impl From<&mesh::Workload> for WorkloadLabels {
    fn from(workload: &mesh::Workload) -> Self {
        Self {
            workload: (workload.owner_name.clone()).unwrap_or_else(|| workload.name().into()),
            namespace: workload.namespace.clone(),
            canonical_service: workload.canonical_name.clone(),
            canonical_revision: workload.canonical_revision.clone(),
            app: workload.canonical_name.clone(),
            version: workload.canonical_revision.clone(),
            cluster: workload.cluster_id.clone(),
            region: workload.place.locality.region.clone(),
            zone: workload.place.locality.zone.clone(),
        }
    }
}

/// One end of a connection.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndLabels {
    /// Source: only from a mutual TLS handshake. Destination: the identity of the workload, also for plaintext.
    pub principal: Option<SpiffeId>,
    /// `None` when the workload is not known at all.
    pub workload: Option<WorkloadLabels>,
}

/// The Service dialled. Empty is unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceLabels {
    /// Hostname.
    pub host: Str,
    /// Namespace.
    pub namespace: Str,
    /// Name.
    pub name: Str,
}

impl From<&mesh::Service> for ServiceLabels {
    fn from(service: &mesh::Service) -> Self {
        Self {
            host: service.hostname.clone(),
            namespace: service.namespace.clone(),
            name: service.name.clone(),
        }
    }
}

/// The labels of one connection, but for `response_flags`, which is known at its end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrafficLabels {
    /// Which side counts.
    pub reporter: Reporter,
    /// The client.
    pub source: EndLabels,
    /// The server, or the waypoint.
    pub destination: EndLabels,
    /// The Service dialled.
    pub service: ServiceLabels,
    /// Whether the connection is HBONE.
    pub mutual_tls: bool,
}

impl TrafficLabels {
    /// Labels with nothing known but who counts.
    pub fn unknown(reporter: Reporter) -> Self {
        Self {
            reporter,
            source: EndLabels::default(),
            destination: EndLabels::default(),
            service: ServiceLabels::default(),
            mutual_tls: false,
        }
    }

    /// Hands each name and value, in order, to `pair`.
    pub(super) fn pairs(&self, flag: Flag, pair: &mut dyn FnMut(&str, &str)) {
        let nothing = WorkloadLabels::default();
        let principal = |end: &EndLabels| {
            end.principal
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default()
        };
        let source = self.source.workload.as_ref().unwrap_or(&nothing);
        let destination = self.destination.workload.as_ref().unwrap_or(&nothing);
        let mut pair =
            |name, value: &str| pair(name, if value.is_empty() { UNKNOWN } else { value });
        pair("reporter", self.reporter.as_str());
        source_pairs(source, &principal(&self.source), &mut pair);
        pair("destination_service", &self.service.host);
        pair("destination_service_namespace", &self.service.namespace);
        pair("destination_service_name", &self.service.name);
        pair("destination_workload", &destination.workload);
        pair(
            "destination_canonical_service",
            &destination.canonical_service,
        );
        pair(
            "destination_canonical_revision",
            &destination.canonical_revision,
        );
        pair("destination_workload_namespace", &destination.namespace);
        pair("destination_principal", &principal(&self.destination));
        pair("destination_app", &destination.app);
        pair("destination_version", &destination.version);
        pair("destination_cluster", &destination.cluster);
        pair("request_protocol", "tcp");
        pair("response_flags", flag.as_str());
        pair(
            "connection_security_policy",
            if self.mutual_tls {
                "mutual_tls"
            } else {
                UNKNOWN
            },
        );
        if self.source.workload.is_some() || self.destination.workload.is_some() {
            pair("source_region", &source.region);
            pair("source_zone", &source.zone);
            pair("destination_region", &destination.region);
            pair("destination_zone", &destination.zone);
        }
    }
}

/// Hands the labels of a source but its place to `pair`, in order.
pub(super) fn source_pairs(
    source: &WorkloadLabels,
    principal: &str,
    pair: &mut dyn FnMut(&'static str, &str),
) {
    pair("source_workload", &source.workload);
    pair("source_canonical_service", &source.canonical_service);
    pair("source_canonical_revision", &source.canonical_revision);
    pair("source_workload_namespace", &source.namespace);
    pair("source_principal", principal);
    pair("source_app", &source.app);
    pair("source_version", &source.version);
    pair("source_cluster", &source.cluster);
}
