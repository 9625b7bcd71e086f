//! Which pods are in the mesh, by labels and annotations. Pure.
//!
//! Source: Istio ambient, labels `istio.io/dataplane-mode` on namespaces and pods; annotations of pods.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::IpNet;

use crate::pod::{CaptureOptions, Labels, Pod, PodSpec};

/// The label that puts a namespace or a pod in the mesh, or a pod out of it.
pub const MODE_LABEL: &str = "istio.io/dataplane-mode";
/// Overrides DNS capture for the pod.
pub const DNS_CAPTURE: &str = "ambient.istio.io/dns-capture";
/// Plaintext to the pod is not captured.
pub const BYPASS_INBOUND: &str = "ambient.istio.io/bypass-inbound-capture";
/// Destinations that are not captured: a comma list of ranges.
pub const EXCLUDE_CIDRS: &str = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
/// Destination ports that are not captured: a comma list of ports or `first-last`.
pub const EXCLUDE_PORTS: &str = "traffic.sidecar.istio.io/excludeOutboundPorts";
/// Written by the sidecar injector: the pod has a proxy of its own.
pub const SIDECAR_STATUS: &str = "sidecar.istio.io/status";

/// Labels that a decision reads; sources need not keep others.
pub const LABELS_READ: [&str; 2] = [MODE_LABEL, "app"];
/// Annotations that a decision reads; sources need not keep others.
pub const ANNOTATIONS_READ: [&str; 5] = [
    DNS_CAPTURE,
    BYPASS_INBOUND,
    EXCLUDE_CIDRS,
    EXCLUDE_PORTS,
    SIDECAR_STATUS,
];

/// Most entries of one exclusion list; what follows is captured.
const EXCLUSIONS_MAX: usize = 64;
/// Longest value shown in a warning, in characters.
const SHOWN_MAX: usize = 80;

/// Why a pod is not in the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// It has ended.
    Terminated,
    /// It uses the node's network.
    HostNetwork,
    /// It has a sidecar.
    Sidecar,
    /// Its namespace is never in the mesh.
    NamespaceExcluded,
    /// It is a pod of the proxy.
    Proxy,
    /// Its label says so.
    OptedOut,
    /// Neither its label nor its namespace's asks for the mesh.
    NotLabelled,
    /// Its network namespace or cgroup is not known.
    PlaceUnknown,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Terminated => "terminated",
            Self::HostNetwork => "uses the host network",
            Self::Sidecar => "has a sidecar",
            Self::NamespaceExcluded => "namespace is excluded",
            Self::Proxy => "is the proxy itself",
            Self::OptedOut => "opted out by label",
            Self::NotLabelled => "not labelled for the mesh",
            Self::PlaceUnknown => "network namespace or cgroup unknown",
        })
    }
}

/// An annotation, or a part of it, that was ignored because it is not valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The annotation.
    pub annotation: &'static str,
    /// The part that was ignored.
    pub value: String,
    /// What would be valid.
    pub expected: &'static str,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "annotation {}: {:?} ignored, expected {}",
            self.annotation, self.value, self.expected
        )
    }
}

/// Whether a pod is in the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is, and these annotations were ignored.
    In(Box<PodSpec>, Vec<Warning>),
    /// It is not.
    Out(Why),
}

/// What the node's operator decides about all pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Namespaces whose pods are never in the mesh. Default `kube-system`.
    pub namespaces_excluded: Vec<Arc<str>>,
    /// Namespace of the proxy's own pods (label `app: ztunnel`). Default `istio-system`.
    pub system_namespace: Arc<str>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            namespaces_excluded: vec!["kube-system".into()],
            system_namespace: "istio-system".into(),
        }
    }
}

impl Rules {
    /// Decides about one pod.
    ///
    /// - `namespace_labels`: labels of the pod's namespace; empty when it is not known
    pub fn decide(&self, pod: &Pod, namespace_labels: &Labels) -> Verdict {
        if let Some(why) = self.out(pod, namespace_labels) {
            return Verdict::Out(why);
        }
        let (Some(netns), Some(cgroup)) = (&pod.netns, &pod.cgroup) else {
            return Verdict::Out(Why::PlaceUnknown);
        };
        let (capture, warnings) = capture_options(&pod.annotations);
        let spec = PodSpec {
            uid: pod.uid.clone(),
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            service_account: pod.service_account.clone(),
            netns: netns.clone(),
            netns_handle: pod.netns_handle.clone(),
            netns_inode: None,
            cgroup: Some(cgroup.clone()),
            cgroup_inode: None,
            capture,
        };
        Verdict::In(Box::new(spec), warnings)
    }

    fn out(&self, pod: &Pod, namespace_labels: &Labels) -> Option<Why> {
        let mode = |labels: &Labels, wanted: &str| {
            labels.get(MODE_LABEL).is_some_and(|mode| mode == wanted)
        };
        let is_proxy = pod.namespace == self.system_namespace
            && pod.labels.get("app").is_some_and(|app| app == "ztunnel");
        let asked = mode(&pod.labels, "ambient") || mode(namespace_labels, "ambient");
        [
            (pod.phase.is_terminated(), Why::Terminated),
            (pod.host_network, Why::HostNetwork),
            (pod.annotations.contains_key(SIDECAR_STATUS), Why::Sidecar),
            (
                self.namespaces_excluded.contains(&pod.namespace),
                Why::NamespaceExcluded,
            ),
            (is_proxy, Why::Proxy),
            (mode(&pod.labels, "none"), Why::OptedOut),
            (!asked, Why::NotLabelled),
        ]
        .into_iter()
        .find_map(|(applies, why)| applies.then_some(why))
    }
}

fn capture_options(annotations: &Labels) -> (CaptureOptions, Vec<Warning>) {
    let mut warnings = Warnings(Vec::new());
    let mut flag = |annotation| {
        let text = annotations.get(annotation)?;
        let value = go_bool(text);
        if value.is_none() {
            warnings.add(annotation, text, "true or false");
        }
        value
    };
    let dns_capture = flag(DNS_CAPTURE);
    let bypass_inbound = flag(BYPASS_INBOUND).unwrap_or(false);
    let exclude_cidrs = list(
        annotations,
        EXCLUDE_CIDRS,
        "an IP range such as 10.0.0.0/8",
        cidr,
        &mut warnings,
    );
    let exclude_ports = list(
        annotations,
        EXCLUDE_PORTS,
        "a port 1-65535 or first-last",
        ports,
        &mut warnings,
    );
    (
        CaptureOptions {
            dns_capture,
            bypass_inbound,
            exclude_cidrs,
            exclude_ports,
        },
        warnings.0,
    )
}

struct Warnings(Vec<Warning>);

impl Warnings {
    fn add(&mut self, annotation: &'static str, value: &str, expected: &'static str) {
        let value = value.chars().take(SHOWN_MAX).collect();
        self.0.push(Warning {
            annotation,
            value,
            expected,
        });
    }
}

fn list<T>(
    annotations: &Labels,
    annotation: &'static str,
    expected: &'static str,
    parse: impl Fn(&str) -> Option<T>,
    warnings: &mut Warnings,
) -> Vec<T> {
    let text = annotations
        .get(annotation)
        .map(String::as_str)
        .unwrap_or_default();
    let mut entries = text
        .split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty());
    let mut valid = Vec::new();
    for entry in entries.by_ref().take(EXCLUSIONS_MAX) {
        match parse(entry) {
            Some(value) => valid.push(value),
            None => warnings.add(annotation, entry, expected),
        }
    }
    if let Some(entry) = entries.next() {
        warnings.add(annotation, entry, "at most 64 entries");
    }
    valid
}

/// A range, or one address.
fn cidr(text: &str) -> Option<IpNet> {
    text.parse::<IpNet>()
        .ok()
        .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
        .map(|net| net.trunc())
}

/// A port, or first and last of a range.
fn ports(text: &str) -> Option<RangeInclusive<u16>> {
    let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port != 0);
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(text)?, port(text)?),
    };
    (first <= last).then_some(first..=last)
}

/// Source: Go, `strconv.ParseBool`.
fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::Phase;

    fn map(pairs: &[(&str, &str)]) -> Labels {
        pairs
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect()
    }

    fn pod() -> Pod {
        Pod {
            uid: "u".into(),
            name: "web-0".into(),
            namespace: "shop".into(),
            service_account: "web".into(),
            netns: Some("/run/netns/web".into()),
            netns_handle: None,
            cgroup: Some("/cg/web".into()),
            host_network: false,
            phase: Phase::Running,
            labels: Labels::new(),
            annotations: Labels::new(),
        }
    }

    fn labelled(mode: &str) -> Pod {
        Pod {
            labels: map(&[(MODE_LABEL, mode)]),
            ..pod()
        }
    }

    #[test]
    fn who_is_in_and_why_not() {
        let ambient = map(&[(MODE_LABEL, "ambient")]);
        let none = Labels::new();
        let cases: Vec<(&str, Pod, &Labels, Option<Why>)> = vec![
            ("namespace", pod(), &ambient, None),
            ("pod label alone", labelled("ambient"), &none, None),
            ("other pod label", labelled("sidecar"), &ambient, None),
            ("nothing", pod(), &none, Some(Why::NotLabelled)),
            (
                "other mode",
                labelled("Ambient"),
                &none,
                Some(Why::NotLabelled),
            ),
            ("opted out", labelled("none"), &ambient, Some(Why::OptedOut)),
            (
                "host network",
                Pod {
                    host_network: true,
                    ..labelled("ambient")
                },
                &ambient,
                Some(Why::HostNetwork),
            ),
            (
                "sidecar",
                Pod {
                    annotations: map(&[(SIDECAR_STATUS, "")]),
                    ..labelled("ambient")
                },
                &ambient,
                Some(Why::Sidecar),
            ),
            (
                "excluded",
                Pod {
                    namespace: "kube-system".into(),
                    ..labelled("ambient")
                },
                &ambient,
                Some(Why::NamespaceExcluded),
            ),
            (
                "succeeded",
                Pod {
                    phase: Phase::Succeeded,
                    ..pod()
                },
                &ambient,
                Some(Why::Terminated),
            ),
            (
                "failed",
                Pod {
                    phase: Phase::Failed,
                    ..pod()
                },
                &ambient,
                Some(Why::Terminated),
            ),
            (
                "pending",
                Pod {
                    phase: Phase::Pending,
                    ..pod()
                },
                &ambient,
                None,
            ),
            (
                "no netns",
                Pod {
                    netns: None,
                    ..pod()
                },
                &ambient,
                Some(Why::PlaceUnknown),
            ),
            (
                "no cgroup",
                Pod {
                    cgroup: None,
                    ..pod()
                },
                &ambient,
                Some(Why::PlaceUnknown),
            ),
            (
                "proxy",
                Pod {
                    namespace: "istio-system".into(),
                    labels: map(&[("app", "ztunnel"), (MODE_LABEL, "ambient")]),
                    ..pod()
                },
                &ambient,
                Some(Why::Proxy),
            ),
            (
                "same app elsewhere",
                Pod {
                    labels: map(&[("app", "ztunnel")]),
                    ..pod()
                },
                &ambient,
                None,
            ),
        ];
        for (case, pod, namespace, why) in cases {
            match (Rules::default().decide(&pod, namespace), why) {
                (Verdict::In(spec, warnings), None) => {
                    assert!(spec.uid == pod.uid && warnings.is_empty(), "{case}")
                }
                (Verdict::Out(found), Some(why)) => assert_eq!(found, why, "{case}"),
                (found, why) => panic!("{case}: {found:?}, expected {why:?}"),
            }
        }
    }

    #[test]
    fn annotations_are_read_and_bad_parts_named() {
        let annotations = map(&[
            (DNS_CAPTURE, "F"),
            (BYPASS_INBOUND, "yes"),
            (
                EXCLUDE_CIDRS,
                "10.1.2.3/8, 192.168.0.1,,fd00::1/64,nonsense,1.2.3.4/33",
            ),
            (EXCLUDE_PORTS, "80,8000-8010,0,90-80,70000,x"),
        ]);
        let (options, warnings) = capture_options(&annotations);
        assert_eq!(
            (options.dns_capture, options.bypass_inbound),
            (Some(false), false)
        );
        let cidrs: Vec<String> = options
            .exclude_cidrs
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(cidrs, ["10.0.0.0/8", "192.168.0.1/32", "fd00::/64"]);
        assert_eq!(options.exclude_ports, [80..=80, 8000..=8010]);
        let ignored: Vec<&str> = warnings
            .iter()
            .map(|warning| warning.value.as_str())
            .collect();
        assert_eq!(
            ignored,
            ["yes", "nonsense", "1.2.3.4/33", "0", "90-80", "70000", "x"]
        );
    }

    #[test]
    fn bools_are_gos() {
        for text in ["1", "t", "T", "TRUE", "true", "True"] {
            assert_eq!(go_bool(text), Some(true));
        }
        for text in ["0", "f", "F", "FALSE", "false", "False"] {
            assert_eq!(go_bool(text), Some(false));
        }
        for text in ["", "yes", "tRUE", " true"] {
            assert_eq!(go_bool(text), None);
        }
    }

    #[test]
    fn lists_are_bounded() {
        let many: Vec<String> = (1..=100).map(|port| port.to_string()).collect();
        let (options, warnings) = capture_options(&map(&[(EXCLUDE_PORTS, &many.join(","))]));
        assert_eq!(
            (options.exclude_ports.len(), warnings.len()),
            (EXCLUSIONS_MAX, 1)
        );
    }
}
