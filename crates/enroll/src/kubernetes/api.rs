//! Pods and Namespaces as the API server sends them, cut down to what is needed before anything is kept.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use kube::Resource;
use kube::core::{ClusterResourceScope, NamespaceResourceScope, ObjectMeta};
use serde::Deserialize;

use super::REDIRECTION;
use crate::cgroups::CONFIG_HASH;
use crate::pod::{Labels, Phase};
use crate::rules::{ANNOTATIONS_READ, LABELS_READ, MODE_LABEL, SIDECAR_STATUS};

/// Longest value of a label or annotation that is kept, in bytes; of a list, whole entries up to there.
const VALUE_BYTES_MAX: usize = 8 * 1024;
/// Most addresses of a pod; Kubernetes gives one of each family.
const IPS_MAX: usize = 8;
/// The condition that tells when the sandbox was made.
const SANDBOX_READY: &str = "PodReadyToStartContainers";

/// A pod as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KnownPod {
    pub(super) uid: Arc<str>,
    pub(super) name: Arc<str>,
    pub(super) namespace: Arc<str>,
    pub(super) service_account: Arc<str>,
    pub(super) host_network: bool,
    pub(super) phase: Phase,
    pub(super) labels: Labels,
    pub(super) annotations: Labels,
    /// what stands on it of the mesh
    pub(super) redirection: Option<String>,
    /// stands in the cgroup's name instead of the UID
    pub(super) config_hash: Option<Arc<str>>,
    pub(super) ips: Vec<IpAddr>,
    /// changes when the sandbox is made anew
    pub(super) sandbox: Option<String>,
}

/// A pod of the API.
#[derive(Debug, Clone, Deserialize)]
#[serde(from = "PodForm")]
pub(super) struct PodObject {
    metadata: ObjectMeta,
    /// what it says; none when it cannot be a pod of this node
    pub(super) pod: Option<Box<KnownPod>>,
}

/// A namespace of the API: its name and whether its pods are asked for.
#[derive(Debug, Clone, Deserialize)]
#[serde(from = "NamespaceForm")]
pub(super) struct NamespaceObject {
    metadata: ObjectMeta,
    /// value of the label that matters
    pub(super) mode: Option<String>,
}

impl NamespaceObject {
    pub(super) fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct MetaForm {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    labels: Option<Labels>,
    annotations: Option<Labels>,
}

#[derive(Debug, Deserialize)]
struct PodForm {
    #[serde(default)]
    metadata: MetaForm,
    #[serde(default)]
    spec: SpecForm,
    #[serde(default)]
    status: StatusForm,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SpecForm {
    service_account_name: Option<String>,
    host_network: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct StatusForm {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<IpForm>>,
    conditions: Option<Vec<ConditionForm>>,
}

#[derive(Debug, Deserialize)]
struct IpForm {
    #[serde(default)]
    ip: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConditionForm {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    status: String,
    last_transition_time: Option<String>,
}

#[derive(Debug, Deserialize)]
struct NamespaceForm {
    #[serde(default)]
    metadata: MetaForm,
}

impl From<PodForm> for PodObject {
    fn from(form: PodForm) -> Self {
        let mut meta = form.metadata;
        let labels = meta.labels.take().unwrap_or_default();
        let mut annotations = meta.annotations.take().unwrap_or_default();
        let redirection = annotations
            .remove(REDIRECTION)
            .map(|value| cut(value, false));
        let config_hash = annotations
            .remove(CONFIG_HASH)
            .map(|hash| cut(hash, false).into());
        let status = form.status;
        let metadata = kept(meta);
        let said = |value: &Option<String>| {
            value
                .as_deref()
                .filter(|text| !text.is_empty())
                .map(Arc::from)
        };
        let names = (
            said(&metadata.uid),
            said(&metadata.name),
            said(&metadata.namespace),
        );
        let account = form
            .spec
            .service_account_name
            .as_deref()
            .filter(|name| !name.is_empty());
        let pod = match names {
            (Some(uid), Some(name), Some(namespace)) => Some(Box::new(KnownPod {
                uid,
                name,
                namespace,
                service_account: account.unwrap_or("default").into(),
                host_network: form.spec.host_network.unwrap_or(false),
                phase: phase(status.phase.as_deref()),
                labels: only(labels, &LABELS_READ),
                annotations: only(annotations, &ANNOTATIONS_READ),
                redirection,
                config_hash,
                ips: ips(&status),
                sandbox: sandbox(status.conditions),
            })),
            _ => None,
        };
        Self { metadata, pod }
    }
}

impl From<NamespaceForm> for NamespaceObject {
    fn from(form: NamespaceForm) -> Self {
        let mut meta = form.metadata;
        let mode = meta
            .labels
            .take()
            .and_then(|mut labels| labels.remove(MODE_LABEL));
        Self {
            metadata: kept(meta),
            mode,
        }
    }
}

/// What the client's own machinery needs.
fn kept(meta: MetaForm) -> ObjectMeta {
    ObjectMeta {
        name: meta.name,
        namespace: meta.namespace,
        uid: meta.uid,
        resource_version: meta.resource_version,
        ..ObjectMeta::default()
    }
}

fn only(all: Labels, wanted: &[&str]) -> Labels {
    let wanted = all.into_iter().filter(|(key, _)| wanted.contains(&&**key));
    // a sidecar's status is long, and only its being there counts
    let value = |key: &str, value| {
        if key == SIDECAR_STATUS {
            String::new()
        } else {
            cut(value, true)
        }
    };
    wanted
        .map(|(key, text)| {
            let text = value(&key, text);
            (key, text)
        })
        .collect()
}

/// A value of bounded length. Of a list no entry is cut in two: what is left of it might mean more than the whole.
fn cut(mut value: String, list: bool) -> String {
    if value.len() > VALUE_BYTES_MAX {
        let end = (0..=VALUE_BYTES_MAX)
            .rev()
            .find(|at| value.is_char_boundary(*at))
            .unwrap_or(0);
        let end = if list {
            value[..end].rfind(',').unwrap_or(0)
        } else {
            end
        };
        value.truncate(end);
        value.shrink_to_fit();
    }
    value
}

fn phase(text: Option<&str>) -> Phase {
    match text {
        Some("Pending") | None => Phase::Pending,
        Some("Running") => Phase::Running,
        Some("Succeeded") => Phase::Succeeded,
        Some("Failed") => Phase::Failed,
        Some(_) => Phase::Unknown,
    }
}

fn ips(status: &StatusForm) -> Vec<IpAddr> {
    let several = status.pod_ips.iter().flatten().map(|one| &*one.ip);
    let mut ips: Vec<IpAddr> = Vec::new();
    for ip in several
        .chain(status.pod_ip.as_deref())
        .filter_map(|ip| ip.parse().ok())
    {
        if ips.len() < IPS_MAX && !ips.contains(&ip) {
            ips.push(ip);
        }
    }
    ips
}

fn sandbox(conditions: Option<Vec<ConditionForm>>) -> Option<String> {
    let ready = conditions?
        .into_iter()
        .find(|condition| condition.kind == SANDBOX_READY)?;
    let since = ready.last_transition_time.unwrap_or_default();
    Some(cut(format!("{} {since}", ready.status), false))
}

impl Resource for PodObject {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind(_: &()) -> Cow<'_, str> {
        "Pod".into()
    }
    fn group(_: &()) -> Cow<'_, str> {
        "".into()
    }
    fn version(_: &()) -> Cow<'_, str> {
        "v1".into()
    }
    fn plural(_: &()) -> Cow<'_, str> {
        "pods".into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl Resource for NamespaceObject {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind(_: &()) -> Cow<'_, str> {
        "Namespace".into()
    }
    fn group(_: &()) -> Cow<'_, str> {
        "".into()
    }
    fn version(_: &()) -> Cow<'_, str> {
        "v1".into()
    }
    fn plural(_: &()) -> Cow<'_, str> {
        "namespaces".into()
    }
    /// Of namespaces only the metadata is asked for.
    fn metadata_api() -> bool {
        true
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_a_pod_only_what_matters_is_kept() {
        let object: PodObject = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "web", "namespace": "shop", "uid": "u1", "resourceVersion": "7",
                "labels": {"istio.io/dataplane-mode": "ambient", "team": "a", "app": "web"},
                "annotations": {
                    "ambient.istio.io/redirection": "enabled",
                    "kubernetes.io/config.hash": "abc",
                    "sidecar.istio.io/status": "{\"long\": 1}",
                    "other": "x"
                },
                "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:metadata": {}}}]
            },
            "spec": {"serviceAccountName": "web", "nodeName": "n1", "containers": [{"name": "c", "image": "i"}]},
            "status": {
                "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}, {"ip": "?"}],
                "conditions": [{"type": "PodReadyToStartContainers", "status": "True", "lastTransitionTime": "t1"}]
            }
        }))
        .unwrap();
        assert_eq!(object.meta().resource_version.as_deref(), Some("7"));
        let pod = object.pod.unwrap();
        assert_eq!(
            (&*pod.uid, &*pod.service_account, pod.phase),
            ("u1", "web", Phase::Running)
        );
        assert_eq!(pod.redirection.as_deref(), Some("enabled"));
        assert_eq!(pod.config_hash.as_deref(), Some("abc"));
        assert_eq!(pod.sandbox.as_deref(), Some("True t1"));
        assert_eq!(
            pod.ips,
            ["10.0.0.1", "fd00::1"].map(|ip| ip.parse::<IpAddr>().unwrap())
        );
        assert_eq!(
            pod.labels.keys().collect::<Vec<_>>(),
            ["app", "istio.io/dataplane-mode"]
        );
        let kept = Labels::from([("sidecar.istio.io/status".to_owned(), String::new())]);
        assert_eq!(pod.annotations, kept);
    }

    #[test]
    fn a_pod_that_says_little_is_taken_as_it_is() {
        let new = json!({"metadata": {"name": "a", "namespace": "b", "uid": "c", "labels": null}, "spec": {}, "status": {}});
        let pod = serde_json::from_value::<PodObject>(new)
            .unwrap()
            .pod
            .unwrap();
        assert_eq!(
            (pod.phase, &*pod.service_account),
            (Phase::Pending, "default")
        );
        assert!(!pod.host_network && pod.ips.is_empty() && pod.sandbox.is_none());
        let bookmark =
            json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"resourceVersion": "9"}});
        assert_eq!(
            serde_json::from_value::<PodObject>(bookmark).unwrap().pod,
            None
        );
    }

    #[test]
    fn long_lists_are_cut_between_entries() {
        let entry = "10.0.0.0/16,";
        let cut = cut(entry.repeat(VALUE_BYTES_MAX), true);
        assert!(cut.len() <= VALUE_BYTES_MAX && cut.ends_with("10.0.0.0/16"));
        assert_eq!(super::cut("ä".repeat(VALUE_BYTES_MAX), true), "");
        assert_eq!(
            super::cut("ä".repeat(VALUE_BYTES_MAX), false).len(),
            VALUE_BYTES_MAX
        );
    }

    #[test]
    fn of_a_namespace_the_mode_is_kept() {
        let form = json!({"metadata": {"name": "shop", "labels": {"istio.io/dataplane-mode": "ambient", "a": "b"}}});
        let namespace: NamespaceObject = serde_json::from_value(form).unwrap();
        assert_eq!(
            (namespace.name(), namespace.mode.as_deref()),
            ("shop", Some("ambient"))
        );
    }
}
