//! What the daemons are told: the enrolment file of each node and the mesh state file, both written from one model.
//!
//! The files are replaced by rename, so that a reader never sees half of one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The label that puts a namespace or a pod into the mesh.
pub const MODE_LABEL: &str = "istio.io/dataplane-mode";
/// The trust domain of all identities.
pub const TRUST_DOMAIN: &str = "cluster.local";

/// A pod as the model knows it.
#[derive(Debug, Clone)]
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
}

impl PodRecord {
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
#[derive(Debug, Clone)]
pub struct Service {
    /// name
    pub name: String,
    /// namespace
    pub namespace: String,
    /// virtual addresses
    pub vips: Vec<IpAddr>,
    /// port and target port
    pub ports: Vec<(u16, u16)>,
    /// names of the pods behind it
    pub pods: Vec<String>,
}

impl Service {
    /// `<name>.<namespace>.svc.cluster.local`
    pub fn hostname(&self) -> String {
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

    /// Text of the mesh state file: the pods in `hbone` (names) are reachable through HBONE, the others by plain TCP.
    pub fn state(&self, hbone: &[String]) -> String {
        let mut out = String::from(if self.pods.is_empty() {
            "workloads: []\n"
        } else {
            "workloads:\n"
        });
        for pod in &self.pods {
            self.workload(&mut out, pod, hbone.contains(&pod.name));
        }
        out.push_str(if self.services.is_empty() {
            "services: []\n"
        } else {
            "services:\n"
        });
        for service in &self.services {
            let vips: Vec<_> = service
                .vips
                .iter()
                .map(|vip| quoted(&format!("/{vip}")))
                .collect();
            let _ = writeln!(
                out,
                "- name: {}\n  namespace: {}",
                service.name, service.namespace
            );
            let _ = writeln!(
                out,
                "  hostname: {}\n  vips: [{}]",
                service.hostname(),
                vips.join(", ")
            );
            let _ = writeln!(out, "  ports: {}\n  canonical: true", ports(&service.ports));
        }
        out.push_str(if self.policies.is_empty() {
            "policies: []\n"
        } else {
            "policies:\n"
        });
        for policy in &self.policies {
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
        out
    }

    fn workload(&self, out: &mut String, pod: &PodRecord, hbone: bool) {
        let ips: Vec<_> = pod.ips.iter().map(|ip| quoted(&ip.to_string())).collect();
        let _ = writeln!(
            out,
            "- uid: {}",
            quoted(&format!("demo//Pod/{}/{}", pod.namespace, pod.name))
        );
        let _ = writeln!(out, "  name: {}\n  namespace: {}", pod.name, pod.namespace);
        let _ = writeln!(
            out,
            "  serviceAccount: {}\n  trustDomain: {TRUST_DOMAIN}",
            pod.service_account
        );
        let _ = writeln!(out, "  workloadIps: [{}]", ips.join(", "));
        let _ = writeln!(
            out,
            "  protocol: {}\n  node: {}",
            if hbone { "HBONE" } else { "TCP" },
            pod.node
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
            "  clusterId: demo\n  networkMode: {}",
            network_mode(pod)
        );
        let policies: Vec<_> = pod.policies.iter().map(|name| quoted(name)).collect();
        let _ = writeln!(out, "  authorizationPolicies: [{}]", policies.join(", "));
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
                "    {}/{}: {}",
                service.namespace,
                service.hostname(),
                ports(&service.ports)
            );
        }
    }
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
