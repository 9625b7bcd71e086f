//! The `baggage` header: attributes of a workload. It labels, it never proves who someone is.

use std::fmt;
use std::sync::Arc;

use http::HeaderValue;

/// Attributes of a workload, as told by its proxy. Absent and empty are the same.
///
/// Printing writes `key=value` items in a fixed order, comma separated, without spaces or escapes. An attribute that
/// cannot be written so that the other side reads the same (`,`, `=`, controls, non-ASCII) is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Baggage {
    /// `k8s.cluster.name`.
    pub cluster: Option<Arc<str>>,
    /// `k8s.namespace.name`.
    pub namespace: Option<Arc<str>>,
    /// `k8s.<kind>.name`: the workload's kind and name.
    pub workload: Option<(WorkloadKind, Arc<str>)>,
    /// `service.name`: canonical name.
    pub service: Option<Arc<str>>,
    /// `service.version`: canonical revision.
    pub revision: Option<Arc<str>>,
    /// `cloud.region`.
    pub region: Option<Arc<str>>,
    /// `cloud.availability_zone`.
    pub zone: Option<Arc<str>>,
}

/// Longest attribute that is taken from a peer, bytes: the longest name Kubernetes has. They become metric labels, which
/// are kept.
pub(crate) const VALUE_BYTES_MAX: usize = 253;

/// What kind of thing a workload is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WorkloadKind {
    /// `k8s.deployment.name`.
    #[default]
    Deployment,
    /// `k8s.cronjob.name`.
    CronJob,
    /// `k8s.job.name`.
    Job,
    /// `k8s.pod.name`.
    Pod,
}

impl WorkloadKind {
    fn key(self) -> &'static str {
        match self {
            WorkloadKind::Deployment => "k8s.deployment.name",
            WorkloadKind::CronJob => "k8s.cronjob.name",
            WorkloadKind::Job => "k8s.job.name",
            WorkloadKind::Pod => "k8s.pod.name",
        }
    }
}

impl Baggage {
    /// Reads all `baggage` lines of a head, later items over earlier ones. Unknown keys and items without a value are
    /// skipped, as are values longer than any name; a line with bytes beyond ASCII makes the whole baggage empty.
    pub fn parse<'a>(lines: impl IntoIterator<Item = &'a HeaderValue>) -> Baggage {
        let mut baggage = Baggage::default();
        for line in lines {
            let Ok(text) = line.to_str() else {
                return Baggage::default();
            };
            for item in text.split(',') {
                baggage.take(item);
            }
        }
        baggage
    }

    /// Takes one `key=value` item; the value ends at a second `=`.
    fn take(&mut self, item: &str) {
        let mut parts = item.split('=');
        let (Some(key), Some(value)) = (parts.next(), parts.next()) else {
            return;
        };
        if value.is_empty() || value.len() > VALUE_BYTES_MAX {
            return;
        }
        let value = || Some(Arc::from(value));
        let workload = |kind| value().map(|name| (kind, name));
        match key {
            "k8s.cluster.name" => self.cluster = value(),
            "k8s.namespace.name" => self.namespace = value(),
            "k8s.deployment.name" => self.workload = workload(WorkloadKind::Deployment),
            "k8s.cronjob.name" => self.workload = workload(WorkloadKind::CronJob),
            "k8s.job.name" => self.workload = workload(WorkloadKind::Job),
            "k8s.pod.name" => self.workload = workload(WorkloadKind::Pod),
            "service.name" => self.service = value(),
            "service.version" => self.revision = value(),
            "cloud.region" => self.region = value(),
            "cloud.availability_zone" => self.zone = value(),
            _ => {}
        }
    }

    /// True when no attribute is known.
    pub fn is_empty(&self) -> bool {
        *self == Baggage::default()
    }

    /// The header's value. Cheap to clone: make it once per workload, not once per connection.
    pub fn header(&self) -> HeaderValue {
        HeaderValue::try_from(self.to_string()).expect("only writable values are printed")
    }

    fn items(&self) -> [(&'static str, Option<&Arc<str>>); 7] {
        let (kind, name) = match &self.workload {
            Some((kind, name)) => (*kind, Some(name)),
            None => (WorkloadKind::default(), None),
        };
        [
            ("k8s.cluster.name", self.cluster.as_ref()),
            ("k8s.namespace.name", self.namespace.as_ref()),
            (kind.key(), name),
            ("service.name", self.service.as_ref()),
            ("service.version", self.revision.as_ref()),
            ("cloud.region", self.region.as_ref()),
            ("cloud.availability_zone", self.zone.as_ref()),
        ]
    }
}

fn writable(value: &str) -> bool {
    let sound = |byte: u8| matches!(byte, b' '..=b'~') && !matches!(byte, b',' | b'=');
    !value.is_empty() && value.bytes().all(sound)
}

impl fmt::Display for Baggage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (key, value) in self.items() {
            if let Some(value) = value.filter(|value| writable(value)) {
                write!(f, "{separator}{key}={value}")?;
                separator = ",";
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(lines: &[&[u8]]) -> Baggage {
        let values: Vec<HeaderValue> = lines
            .iter()
            .map(|line| HeaderValue::from_bytes(line).unwrap())
            .collect();
        Baggage::parse(&values)
    }

    fn full() -> Baggage {
        Baggage {
            cluster: Some("c1".into()),
            namespace: Some("shop".into()),
            workload: Some((WorkloadKind::Deployment, "cart".into())),
            service: Some("cart".into()),
            revision: Some("v3".into()),
            region: Some("eu-1".into()),
            zone: Some("eu-1b".into()),
        }
    }

    const FULL: &str = "k8s.cluster.name=c1,k8s.namespace.name=shop,k8s.deployment.name=cart,service.name=cart,\
                        service.version=v3,cloud.region=eu-1,cloud.availability_zone=eu-1b";

    #[test]
    fn prints_in_fixed_order_and_reads_back() {
        assert_eq!(full().to_string(), FULL);
        assert_eq!(parse(&[FULL.as_bytes()]), full());
        assert_eq!(Baggage::default().header(), "");
        assert!(parse(&[b""]).is_empty());
    }

    #[test]
    fn leaves_out_what_cannot_be_read_back() {
        for odd in ["", "a,k8s.namespace.name=admin", "a=b", "a\nb", "\u{e9}"] {
            let baggage = Baggage {
                service: Some(odd.into()),
                ..full()
            };
            let expected = Baggage {
                service: None,
                ..full()
            };
            assert_eq!(parse(&[baggage.header().as_bytes()]), expected, "{odd:?}");
        }
    }

    #[test]
    fn reads_every_workload_kind() {
        for (key, kind) in [
            ("deployment", WorkloadKind::Deployment),
            ("cronjob", WorkloadKind::CronJob),
            ("job", WorkloadKind::Job),
            ("pod", WorkloadKind::Pod),
        ] {
            let text = format!("k8s.{key}.name=x");
            let baggage = parse(&[text.as_bytes()]);
            assert_eq!(baggage.workload, Some((kind, "x".into())));
            assert_eq!(baggage.to_string(), text);
        }
    }

    #[test]
    fn tolerates_what_it_does_not_know() {
        let named = |name: &str| Baggage {
            service: Some(name.into()),
            ..Baggage::default()
        };
        for (lines, expected) in [
            (vec![&b"service.name=a=b"[..]], named("a")),
            (vec![b"service.name=a,service.name=b"], named("b")),
            (vec![b"service.name=a", b"service.name=b"], named("b")),
            (vec![b"service.name=a,service.name="], named("a")),
            (vec![b"service.name= a"], named(" a")),
            (vec![b" service.name=a"], Baggage::default()),
            (vec![b"service.name=%20"], named("%20")),
            (vec![b"nonsense,=,==,,x=y,service.name=a"], named("a")),
            (vec![b"service.name"], Baggage::default()),
            (
                vec![b"service.name=a,cloud.region=\xff"],
                Baggage::default(),
            ),
            (
                vec![b"service.name=a", b"cloud.region=\xc3\xa9"],
                Baggage::default(),
            ),
        ] {
            assert_eq!(parse(&lines), expected, "{lines:?}");
        }
    }
}
