//! What the daemons are told: the enrolment file of each node and the mesh state file, both written from one model.
//!
//! The files are replaced by rename, so that a reader never sees half of one.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// The label that puts a namespace or a pod into the mesh.
pub const MODE_LABEL: &str = "istio.io/dataplane-mode";
/// The cluster of workloads that name no other.
pub const CLUSTER: &str = "demo";
/// The trust domain of all identities.
pub const TRUST_DOMAIN: &str = "cluster.local";

/// The port on which waypoints and gateways take tunnels.
pub const HBONE_PORT: u16 = 15008;

/// A reference to a waypoint or to a network's gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    /// who it is
    pub destination: Destination,
    /// its `hboneMtlsPort`: [`HBONE_PORT`], where it is a pod; a service port, where it is a service
    pub port: u16,
}

/// What a reference names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// network (empty = the default one) and address, of a pod or a service
    Address(String, IpAddr),
    /// namespace and host name, of a service or of a workload that has one
    Hostname(String, String),
}

impl Gateway {
    /// By address on the default network, port [`HBONE_PORT`].
    pub fn at(ip: impl Into<IpAddr>) -> Self {
        Self::on("", ip)
    }

    /// By address on a network, port [`HBONE_PORT`].
    pub fn on(network: &str, ip: impl Into<IpAddr>) -> Self {
        Self {
            destination: Destination::Address(network.to_owned(), ip.into()),
            port: HBONE_PORT,
        }
    }

    /// By host name, port [`HBONE_PORT`].
    pub fn named(namespace: &str, hostname: &str) -> Self {
        Self {
            destination: Destination::Hostname(namespace.to_owned(), hostname.to_owned()),
            port: HBONE_PORT,
        }
    }

    /// As a daemon's dump shows it.
    fn shown(&self) -> Value {
        json!({"destination": self.destination.to_string(), "hboneMtlsPort": self.port})
    }

    fn text(&self) -> String {
        format!(
            "{{destination: {}, hboneMtlsPort: {}}}",
            quoted(&self.destination.to_string()),
            self.port
        )
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(network, ip) => write!(f, "{network}/{ip}"),
            Self::Hostname(namespace, hostname) => write!(f, "{namespace}/{hostname}"),
        }
    }
}

/// How an application takes the connections that come through a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppTunnel {
    /// with a PROXY header first
    pub proxy: bool,
    /// on this port, whatever was asked for
    pub port: Option<u16>,
}

/// How endpoints of a service are preferred.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadBalancer {
    /// of `Region`, `Zone`, `Subzone`, `Node`, `Cluster`, `Network`, best first
    pub preferences: Vec<String>,
    /// `Standard`, `Strict`, `Failover`, `Passthrough`
    pub mode: String,
    /// `OnlyHealthy`, `AllowAll`
    pub health: String,
}

/// A pod as the model knows it, or a workload that is none of the world's pods.
#[derive(Debug, Clone, Default)]
pub struct PodRecord {
    /// pod UID
    pub uid: String,
    /// pod name
    pub name: String,
    /// namespace
    pub namespace: String,
    /// service account
    pub service_account: String,
    /// name of its node
    pub node: String,
    /// addresses
    pub ips: Vec<IpAddr>,
    /// network namespace file
    pub netns: PathBuf,
    /// cgroup directory
    pub cgroup: PathBuf,
    /// shares the node's network
    pub host_network: bool,
    /// `Running`, `Succeeded`, `Failed`
    pub phase: String,
    /// labels
    pub labels: BTreeMap<String, String>,
    /// annotations
    pub annotations: BTreeMap<String, String>,
    /// policies of scope `WorkloadSelector` that select it, as `namespace/name`
    pub policies: Vec<String>,
    /// takes tunnels by itself (a waypoint or a gateway), whether it is in the mesh or not
    pub native_tunnel: bool,
    /// its network; empty = the default one
    pub network: String,
    /// cluster, also in its uid; empty = [`CLUSTER`]
    pub cluster: String,
    /// host name that stands for its address
    pub hostname: String,
    /// the waypoint before it
    pub waypoint: Option<Gateway>,
    /// the gateway of its network
    pub network_gateway: Option<Gateway>,
    /// how its application takes connections
    pub app_tunnel: Option<AppTunnel>,
    /// region, zone, subzone
    pub locality: Option<[String; 3]>,
    /// cannot be used
    pub unhealthy: bool,
    /// share of the connections to its services; none = 1
    pub capacity: Option<u32>,
}

impl PodRecord {
    /// A workload that is none of the world's pods: `uid` is written from cluster, namespace and name.
    /// It takes tunnels; change that by `native_tunnel`.
    pub fn stranger(namespace: &str, name: &str, ips: &[IpAddr]) -> Self {
        let mut record = Self {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            ips: ips.to_vec(),
            phase: "Running".to_owned(),
            native_tunnel: true,
            ..Self::default()
        };
        record.service_account = record.workload_name().to_owned();
        record
    }

    /// Its uid in the mesh.
    pub fn mesh_uid(&self) -> String {
        format!("{}//Pod/{}/{}", self.cluster(), self.namespace, self.name)
    }

    /// Its cluster.
    pub fn cluster(&self) -> &str {
        if self.cluster.is_empty() {
            CLUSTER
        } else {
            &self.cluster
        }
    }

    /// Its SPIFFE id.
    pub fn identity(&self) -> String {
        format!(
            "spiffe://{TRUST_DOMAIN}/ns/{}/sa/{}",
            self.namespace, self.service_account
        )
    }

    /// Name of what it is a copy of: the pod name without a trailing number.
    pub fn workload_name(&self) -> &str {
        match self.name.rsplit_once('-') {
            Some((stem, number)) if number.parse::<u32>().is_ok() => stem,
            _ => &self.name,
        }
    }
}

/// A service.
#[derive(Debug, Clone, Default)]
pub struct Service {
    /// name
    pub name: String,
    /// namespace
    pub namespace: String,
    /// virtual addresses
    pub vips: Vec<IpAddr>,
    /// port and target port
    pub ports: Vec<(u16, u16)>,
    /// names of the pods, or other workloads, behind it
    pub pods: Vec<String>,
    /// network of `vips`; empty = the default one
    pub network: String,
    /// virtual addresses on other networks
    pub remote_vips: Vec<(String, IpAddr)>,
    /// host name; empty = `<name>.<namespace>.svc.cluster.local`
    pub host: String,
    /// the waypoint before it
    pub waypoint: Option<Gateway>,
    /// ingress gateways use the waypoint as well; told by a control plane only
    pub ingress_use_waypoint: bool,
    /// waypoints with their weights, instead of the one
    pub weighted_waypoints: Vec<(Gateway, u32)>,
    /// identities that its endpoints may have besides their own
    pub subject_alt_names: Vec<String>,
    /// how endpoints are chosen
    pub load_balancer: Option<LoadBalancer>,
    /// `Dual`, `IPv4`, `IPv6`
    pub ip_families: Option<String>,
    /// for its own namespace only
    pub private: bool,
    /// another one is the canonical service of this host name
    pub not_canonical: bool,
}

impl Service {
    /// Its host name.
    pub fn hostname(&self) -> String {
        if !self.host.is_empty() {
            return self.host.clone();
        }
        format!("{}.{}.svc.{TRUST_DOMAIN}", self.name, self.namespace)
    }
}

/// An authorization policy.
#[derive(Debug, Clone)]
pub struct Policy {
    /// name
    pub name: String,
    /// namespace
    pub namespace: String,
    /// `Global`, `Namespace`, `WorkloadSelector`
    pub scope: String,
    /// `Allow` or `Deny`
    pub action: String,
    /// matches of one rule, each as a YAML flow mapping, e.g. `{destinationPorts: [9000]}`; all in one clause (any of
    /// them is enough). Empty = a rule list without rules.
    pub matches: Vec<String>,
}

impl Policy {
    /// Scope Namespace.
    pub fn new(action: &str, namespace: &str, name: &str, matches: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            scope: "Namespace".to_owned(),
            action: action.to_owned(),
            matches: matches.iter().map(|&text| text.to_owned()).collect(),
        }
    }
}

/// All of it.
#[derive(Debug, Clone, Default)]
pub struct Model {
    /// namespaces with their labels
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
    /// pods on all nodes
    pub pods: Vec<PodRecord>,
    /// workloads that are none of the world's pods
    pub others: Vec<PodRecord>,
    /// services
    pub services: Vec<Service>,
    /// policies
    pub policies: Vec<Policy>,
}

impl Model {
    /// The pod of that name.
    pub fn pod_mut(&mut self, name: &str) -> Option<&mut PodRecord> {
        self.pods.iter_mut().find(|pod| pod.name == name)
    }

    /// The service of that name.
    pub fn service_mut(&mut self, name: &str) -> Option<&mut Service> {
        self.services
            .iter_mut()
            .find(|service| service.name == name)
    }

    /// Whether the workload is announced as one that takes tunnels.
    pub fn takes_tunnels(&self, pod: &PodRecord) -> bool {
        pod.native_tunnel || self.enrolled(pod)
    }

    /// Whether a daemon's dump shows the waypoints of the model, and no others, before what it knows of.
    pub fn waypoints_shown(&self, dump: &Value) -> bool {
        let rows = |key: &str| dump[key].as_array().cloned().unwrap_or_default();
        let one = |gateway: &Option<Gateway>| gateway.as_ref().map(Gateway::shown);
        let workloads = self.pods.iter().chain(&self.others);
        let workloads_fit = workloads.clone().all(|pod| {
            let uid = pod.mesh_uid();
            let mut shown = rows("workloads").into_iter();
            shown
                .find(|row| row["uid"] == uid.as_str())
                .is_none_or(|row| row["waypoint"] == one(&pod.waypoint).unwrap_or_default())
        });
        let services = rows("services");
        workloads_fit
            && self.services.iter().all(|service| {
                let host = service.hostname();
                let row = services.iter().find(|row| {
                    row["hostname"] == host.as_str() && row["namespace"] == service.namespace
                });
                let weighted: Vec<_> = (service.weighted_waypoints.iter())
                    .map(|(gateway, weight)| {
                        json!({"destination": gateway.shown(), "weight": weight})
                    })
                    .collect();
                row.is_none_or(|row| {
                    let shown = row["weightedWaypoints"].as_array().cloned();
                    row["waypoint"] == one(&service.waypoint).unwrap_or_default()
                        && shown.unwrap_or_default() == weighted
                })
            })
    }

    /// Sets or removes the mesh label of a namespace.
    pub fn label(&mut self, namespace: &str, ambient: bool) {
        let labels = self.namespaces.entry(namespace.to_owned()).or_default();
        if ambient {
            labels.insert(MODE_LABEL.to_owned(), "ambient".to_owned());
        } else {
            labels.remove(MODE_LABEL);
        }
    }

    /// Whether the labels put the pod into the mesh.
    pub fn enrolled(&self, pod: &PodRecord) -> bool {
        if pod.host_network
            || pod.annotations.contains_key("sidecar.istio.io/status")
            || pod.phase != "Running"
        {
            return false;
        }
        match pod.labels.get(MODE_LABEL).map(String::as_str) {
            Some("ambient") => true,
            Some("none") => false,
            _ => self
                .namespaces
                .get(&pod.namespace)
                .is_some_and(|labels| labels.get(MODE_LABEL).is_some_and(|mode| mode == "ambient")),
        }
    }

    /// Text of the enrolment file for one node.
    pub fn enrolment(&self, node: &str) -> String {
        let mut out = String::from("namespaces:\n");
        for (name, labels) in &self.namespaces {
            let _ = writeln!(out, "- name: {name}\n  labels: {}", map(labels));
        }
        let pods: Vec<_> = self.pods.iter().filter(|pod| pod.node == node).collect();
        out.push_str(if pods.is_empty() {
            "pods: []\n"
        } else {
            "pods:\n"
        });
        for pod in pods {
            let _ = writeln!(out, "- uid: {}", quoted(&pod.uid));
            let _ = writeln!(out, "  name: {}\n  namespace: {}", pod.name, pod.namespace);
            let _ = writeln!(out, "  serviceAccount: {}", pod.service_account);
            let _ = writeln!(out, "  netns: {}", quoted(&pod.netns.to_string_lossy()));
            let _ = writeln!(out, "  cgroup: {}", quoted(&pod.cgroup.to_string_lossy()));
            let _ = writeln!(
                out,
                "  hostNetwork: {}\n  phase: {}",
                pod.host_network, pod.phase
            );
            let _ = writeln!(
                out,
                "  labels: {}\n  annotations: {}",
                map(&pod.labels),
                map(&pod.annotations)
            );
        }
        out
    }

    /// Text of the mesh state file: the pods in `hbone` (names) and those with tunnels of their own are reached through
    /// HBONE, the others by plain TCP.
    pub fn state(&self, hbone: &[String]) -> String {
        let mut out = String::new();
        let workloads: Vec<_> = self.pods.iter().chain(&self.others).collect();
        heading(&mut out, "workloads", workloads.is_empty());
        for pod in workloads {
            self.workload(&mut out, pod, hbone.contains(&pod.name));
        }
        heading(&mut out, "services", self.services.is_empty());
        for service in &self.services {
            service_entry(&mut out, service);
        }
        heading(&mut out, "policies", self.policies.is_empty());
        for policy in &self.policies {
            policy_entry(&mut out, policy);
        }
        out
    }

    fn workload(&self, out: &mut String, pod: &PodRecord, hbone: bool) {
        let ips: Vec<_> = pod.ips.iter().map(|ip| quoted(&ip.to_string())).collect();
        let _ = writeln!(out, "- uid: {}", quoted(&pod.mesh_uid()));
        let _ = writeln!(out, "  name: {}\n  namespace: {}", pod.name, pod.namespace);
        let _ = writeln!(
            out,
            "  serviceAccount: {}\n  trustDomain: {TRUST_DOMAIN}",
            pod.service_account
        );
        let _ = writeln!(out, "  workloadIps: [{}]", ips.join(", "));
        let tunnels = hbone || pod.native_tunnel;
        let _ = writeln!(
            out,
            "  protocol: {}\n  node: {}",
            if tunnels { "HBONE" } else { "TCP" },
            quoted(&pod.node)
        );
        let _ = writeln!(
            out,
            "  workloadName: {}\n  workloadType: deployment",
            pod.workload_name()
        );
        let _ = writeln!(
            out,
            "  canonicalName: {}\n  canonicalRevision: v1",
            pod.workload_name()
        );
        let _ = writeln!(
            out,
            "  clusterId: {}\n  networkMode: {}",
            pod.cluster(),
            network_mode(pod)
        );
        let policies: Vec<_> = pod.policies.iter().map(|name| quoted(name)).collect();
        let _ = writeln!(out, "  authorizationPolicies: [{}]", policies.join(", "));
        extras(out, pod);
        let mine: Vec<_> = self
            .services
            .iter()
            .filter(|service| service.pods.contains(&pod.name))
            .collect();
        if mine.is_empty() {
            out.push_str("  services: {}\n");
            return;
        }
        out.push_str("  services:\n");
        for service in mine {
            let _ = writeln!(
                out,
                "    {}: {}",
                quoted(&format!("{}/{}", service.namespace, service.hostname())),
                ports(&service.ports)
            );
        }
    }
}

fn heading(out: &mut String, key: &str, empty: bool) {
    let _ = writeln!(out, "{key}:{}", if empty { " []" } else { "" });
}

/// What only some workloads have.
fn extras(out: &mut String, pod: &PodRecord) {
    let mut field = |key: &str, value: &str| {
        let _ = writeln!(out, "  {key}: {value}");
    };
    if !pod.network.is_empty() {
        field("network", &quoted(&pod.network));
    }
    if !pod.hostname.is_empty() {
        field("hostname", &quoted(&pod.hostname));
    }
    if pod.native_tunnel {
        field("nativeTunnel", "true");
    }
    if let Some(waypoint) = &pod.waypoint {
        field("waypoint", &waypoint.text());
    }
    if let Some(gateway) = &pod.network_gateway {
        field("networkGateway", &gateway.text());
    }
    if let Some(tunnel) = &pod.app_tunnel {
        let protocol = if tunnel.proxy { "PROXY" } else { "NONE" };
        let port = tunnel
            .port
            .map_or(String::new(), |port| format!(", port: {port}"));
        field(
            "applicationTunnel",
            &format!("{{protocol: {protocol}{port}}}"),
        );
    }
    if let Some(place) = &pod.locality {
        let [region, zone, subzone] = place.each_ref().map(|text| quoted(text));
        let text = format!("{{region: {region}, zone: {zone}, subzone: {subzone}}}");
        field("locality", &text);
    }
    if pod.unhealthy {
        field("status", "Unhealthy");
    }
    if let Some(capacity) = pod.capacity {
        field("capacity", &capacity.to_string());
    }
}

fn service_entry(out: &mut String, service: &Service) {
    let local = service.vips.iter().map(|vip| (&service.network, vip));
    let remote = service
        .remote_vips
        .iter()
        .map(|(network, vip)| (network, vip));
    let vips = local.chain(remote);
    let vips: Vec<_> = vips
        .map(|(network, vip)| quoted(&format!("{network}/{vip}")))
        .collect();
    let _ = writeln!(
        out,
        "- name: {}\n  namespace: {}",
        service.name, service.namespace
    );
    let _ = writeln!(
        out,
        "  hostname: {}\n  vips: [{}]",
        quoted(&service.hostname()),
        vips.join(", ")
    );
    let _ = writeln!(
        out,
        "  ports: {}\n  canonical: {}",
        ports(&service.ports),
        !service.not_canonical
    );
    if let Some(waypoint) = &service.waypoint {
        let _ = writeln!(out, "  waypoint: {}", waypoint.text());
    }
    if !service.weighted_waypoints.is_empty() {
        let each = service.weighted_waypoints.iter();
        let each: Vec<_> = each
            .map(|(gateway, weight)| {
                format!("{{destination: {}, weight: {weight}}}", gateway.text())
            })
            .collect();
        let _ = writeln!(out, "  weightedWaypoints: [{}]", each.join(", "));
    }
    if !service.subject_alt_names.is_empty() {
        let names: Vec<_> = service
            .subject_alt_names
            .iter()
            .map(|name| quoted(name))
            .collect();
        let _ = writeln!(out, "  subjectAltNames: [{}]", names.join(", "));
    }
    if let Some(balancer) = &service.load_balancer {
        let _ = writeln!(
            out,
            "  loadBalancer: {{routingPreferences: [{}], mode: {}, healthPolicy: {}}}",
            balancer.preferences.join(", "),
            balancer.mode,
            balancer.health
        );
    }
    if let Some(families) = &service.ip_families {
        let _ = writeln!(out, "  ipFamilies: {families}");
    }
    if service.private {
        out.push_str("  visibility: Namespace\n");
    }
}

fn policy_entry(out: &mut String, policy: &Policy) {
    let _ = writeln!(
        out,
        "- name: {}\n  namespace: {}",
        policy.name, policy.namespace
    );
    let _ = writeln!(
        out,
        "  scope: {}\n  action: {}\n  dryRun: false",
        policy.scope, policy.action
    );
    let rules = match policy.matches.as_slice() {
        [] => String::from("[]"),
        matches => format!("[[[{}]]]", matches.join(", ")),
    };
    let _ = writeln!(out, "  rules: {rules}");
}

/// Replaces a file by rename.
///
/// Errors: the directory is not writable.
pub fn replace(path: &Path, text: &str) -> Result<()> {
    let fresh = path.with_extension("new");
    fs::write(&fresh, text).with_context(|| format!("write {}", fresh.display()))?;
    fs::rename(&fresh, path).with_context(|| format!("replace {}", path.display()))
}

fn network_mode(pod: &PodRecord) -> &'static str {
    if pod.host_network {
        "HostNetwork"
    } else {
        "Standard"
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn map(entries: &BTreeMap<String, String>) -> String {
    let entries: Vec<_> = entries
        .iter()
        .map(|(key, value)| format!("{}: {}", quoted(key), quoted(value)))
        .collect();
    format!("{{{}}}", entries.join(", "))
}

fn ports(ports: &[(u16, u16)]) -> String {
    let ports: Vec<_> = ports
        .iter()
        .map(|(port, target)| format!("{port}: {target}"))
        .collect();
    format!("{{{}}}", ports.join(", "))
}
