//! What the daemon's `/config_dump` says about its health. The mesh state in it is passed over.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use capture::probe::Finding;
use serde::Deserialize;

use super::{span, time};
use crate::check::enrolment::listed;

/// A certificate with less of its lifetime than one part in this many was due for renewal long ago.
const LIFETIME_PARTS: u32 = 10;

/// The parts that are looked at.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Dump {
    #[serde(default)]
    certificates: Vec<Certificate>,
    #[serde(default)]
    workload_state: BTreeMap<String, Pod>,
    #[serde(default)]
    stuck_data_threads: Vec<usize>,
    enroll_file_error: Option<String>,
    mesh_file_error: Option<String>,
    control_plane: Option<ControlPlane>,
    #[serde(default)]
    superseded: bool,
    #[serde(default)]
    enrolment: Source,
}

/// How the source of pods stands.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Source {
    connected: Option<bool>,
    faults: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Certificate {
    identity: String,
    state: String,
    #[serde(default)]
    cert_chain: Vec<Link>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Link {
    valid_from: String,
    expiration_time: String,
}

#[derive(Deserialize)]
struct Pod {
    info: Info,
    state: String,
    reason: Option<String>,
    held: Option<String>,
}

#[derive(Deserialize)]
struct Info {
    name: String,
    namespace: String,
}

impl Pod {
    /// Namespace and name; where these are not known, the UID.
    fn name(&self, uid: &str) -> String {
        if self.info.name.is_empty() {
            return uid.to_owned();
        }
        format!("{}/{}", self.info.namespace, self.info.name)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ControlPlane {
    synced: bool,
    connected: bool,
    last_error: Option<String>,
    last_nack: Option<String>,
}

impl Dump {
    /// Reads the body of an answer.
    pub fn parse(body: &[u8]) -> anyhow::Result<Self> {
        Ok(serde_json::from_slice(body)?)
    }

    /// What is to be said about it.
    pub fn findings(&self, now: SystemTime) -> Vec<Finding> {
        let mut found = self.pods();
        found.extend(self.held());
        found.push(self.certificates(now));
        found.extend(self.control_plane.iter().flat_map(ControlPlane::findings));
        found.extend(self.source());
        for (name, error) in [
            ("enrolment file", &self.enroll_file_error),
            ("mesh state file", &self.mesh_file_error),
        ] {
            let hint = "what was in force before stays in force: correct the file";
            found.extend(
                error
                    .iter()
                    .map(|e| Finding::failed(name, e.as_str(), hint)),
            );
        }
        if !self.stuck_data_threads.is_empty() {
            found.push(Finding::failed(
                "data threads",
                format!("{:?} do not answer", self.stuck_data_threads),
                "restart the daemon, and report this with its log",
            ));
        }
        if self.superseded {
            found.push(Finding::warning(
                "superseded",
                "a successor has taken over capture; this one serves what is open",
                "ask the successor: --admin",
            ));
        }
        found
    }

    fn pods(&self) -> Vec<Finding> {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for pod in self.workload_state.values() {
            *counts.entry(pod.state.as_str()).or_default() += 1;
        }
        let counts: Vec<String> = counts
            .iter()
            .map(|(state, count)| format!("{count} {state}"))
            .collect();
        let counts = if counts.is_empty() {
            "none".to_owned()
        } else {
            counts.join(", ")
        };
        let pending = self.workload_state.iter();
        let pending: Vec<String> = pending
            .filter(|(_, pod)| pod.state == "Pending")
            .map(|(uid, pod)| {
                let why = pod.reason.as_deref().unwrap_or("not yet");
                format!("{}: {why}", pod.name(uid))
            })
            .collect();
        let mut found = vec![Finding::ok("pods", counts)];
        if !pending.is_empty() {
            found.push(Finding::failed(
                "pending pods",
                listed(&pending),
                "these pods are in the mesh and not enrolled: their reasons say what is missing; they are tried again and again",
            ));
        }
        found
    }

    fn held(&self) -> Option<Finding> {
        let pods = self.workload_state.iter();
        let held: Vec<String> = pods
            .filter_map(|(uid, pod)| Some(format!("{}: {}", pod.name(uid), pod.held.as_ref()?)))
            .collect();
        (!held.is_empty()).then(|| {
            Finding::warning(
                "held pods",
                listed(&held),
                "they can be enrolled when what their reason names is there; HOLD_TIMEOUT and HOLD_POLICY say what comes after waiting",
            )
        })
    }

    fn certificates(&self, now: SystemTime) -> Finding {
        const NAME: &str = "certificates";
        let (mut bad, mut old) = (Vec::new(), Vec::new());
        for certificate in &self.certificates {
            if let Some(why) = certificate.state.strip_prefix("Unavailable") {
                bad.push(format!("{}{why}", certificate.identity));
            }
            let Some(left) = certificate.left(now) else {
                continue;
            };
            match left {
                Ok((left, lifetime)) if left * LIFETIME_PARTS < lifetime => {
                    old.push(format!(
                        "{} expires in {}",
                        certificate.identity,
                        span(left)
                    ));
                }
                Ok(_) => {}
                Err(past) => bad.push(format!(
                    "{} expired {} ago",
                    certificate.identity,
                    span(past)
                )),
            }
        }
        let hint = "the authority does not answer or refuses: see the control-plane group, and the daemon's log";
        if !bad.is_empty() {
            return Finding::failed(NAME, listed(&bad), hint);
        }
        if !old.is_empty() {
            return Finding::warning(NAME, listed(&old), hint);
        }
        Finding::ok(
            NAME,
            format!("{} kept, none near its end", self.certificates.len()),
        )
    }

    fn source(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        if self.enrolment.connected == Some(false) {
            let hint = "what is enrolled stays; new pods wait until istio-cni's socket or the API server answers";
            found.push(Finding::warning("source of pods", "not connected", hint));
        }
        if !self.enrolment.faults.is_empty() {
            let hint = "what was known before stays in force; the words say what is missing";
            found.push(Finding::warning(
                "source of pods",
                listed(&self.enrolment.faults),
                hint,
            ));
        }
        found
    }
}

impl Certificate {
    /// Time left and whole lifetime of the leaf, or the time since its end; `None` without a readable leaf.
    fn left(&self, now: SystemTime) -> Option<Result<(Duration, Duration), Duration>> {
        let leaf = self.cert_chain.first()?;
        let (from, until) = (time(&leaf.valid_from)?, time(&leaf.expiration_time)?);
        Some(match until.duration_since(now) {
            Ok(left) => Ok((left, until.duration_since(from).unwrap_or_default())),
            Err(past) => Err(past.duration()),
        })
    }
}

impl ControlPlane {
    fn findings(&self) -> Vec<Finding> {
        const NAME: &str = "control plane";
        let error = self.last_error.as_deref().unwrap_or("no error yet");
        let hint = "see the control-plane group; what was received before stays in force";
        let mut found = vec![match (self.connected, self.synced) {
            (true, true) => Finding::ok(NAME, "connected, mesh state received"),
            (true, false) => Finding::failed(
                NAME,
                "connected, no mesh state yet",
                "is istiod still starting?",
            ),
            (false, true) => Finding::warning(NAME, format!("not connected: {error}"), hint),
            (false, false) => Finding::failed(NAME, format!("never reached: {error}"), hint),
        }];
        let hint = "the daemon refused a part of the mesh state: the words name it; report it if it should be taken";
        let refused = self.last_nack.as_deref();
        found.extend(refused.map(|nack| Finding::warning("refused state", nack, hint)));
        found
    }
}

#[cfg(test)]
mod tests {
    use capture::probe::Status;
    use serde_json::json;

    use super::*;

    fn statuses(dump: serde_json::Value) -> BTreeMap<String, (Status, String)> {
        let dump = Dump::parse(dump.to_string().as_bytes()).unwrap();
        let now = time("2026-08-01T12:00:00Z").unwrap();
        let found = dump.findings(now).into_iter();
        found
            .map(|f| (f.name.into_owned(), (f.status, f.detail)))
            .collect()
    }

    #[test]
    fn a_healthy_daemon() {
        let found = statuses(json!({
            "certificates": [{"identity": "spiffe://a", "state": "Available", "certChain":
                [{"validFrom": "2026-08-01T00:00:00Z", "expirationTime": "2026-08-02T00:00:00Z", "pem": "x"}]}],
            "workloadState": {"u1": {"info": {"name": "a", "namespace": "n", "serviceAccount": "s"}, "state": "Up"}},
            "controlPlane": {"synced": true, "connected": true, "lastError": null, "lastNack": null},
            "workloads": [1, 2, 3], "stuckDataThreads": [],
        }));
        assert!(
            found.values().all(|(status, _)| *status == Status::Ok),
            "{found:?}"
        );
        assert_eq!(found["pods"].1, "1 Up");
    }

    #[test]
    fn each_trouble_is_told() {
        let pod = |state: &str| json!({"info": {"name": state, "namespace": "n"}, "state": state, "reason": "because", "held": "it waits"});
        let certificate = |state: &str, until: &str| json!({"identity": until, "state": state, "certChain": [{"validFrom": "2026-07-01T12:00:00Z", "expirationTime": until}]});
        let found = statuses(json!({
            "certificates": [certificate("Available", "2026-08-01T11:00:00Z"), certificate("Unavailable: no authority", "")],
            "workloadState": {"1": pod("Pending"), "2": pod("Up")},
            "controlPlane": {"synced": true, "connected": false, "lastError": "refused", "lastNack": "bad thing"},
            "stuckDataThreads": [1], "superseded": true, "meshFileError": "line 3", "enrollFileError": "line 4",
            "enrolment": {"connected": false, "faults": ["403"]},
        }));
        let expected = [
            ("pending pods", Status::Failed, "n/Pending: because"),
            (
                "held pods",
                Status::Warning,
                "n/Pending: it waits; n/Up: it waits",
            ),
            (
                "certificates",
                Status::Failed,
                "2026-08-01T11:00:00Z expired 1h ago; : no authority",
            ),
            ("control plane", Status::Warning, "not connected: refused"),
            ("refused state", Status::Warning, "bad thing"),
            ("mesh state file", Status::Failed, "line 3"),
            ("enrolment file", Status::Failed, "line 4"),
            ("data threads", Status::Failed, "[1] do not answer"),
            ("source of pods", Status::Warning, "403"),
        ];
        for (name, status, detail) in expected {
            assert_eq!(found[name], (status, detail.to_owned()), "{name}");
        }
        assert_eq!(found["superseded"].0, Status::Warning);
    }

    #[test]
    fn what_is_near_its_end_is_told_before() {
        let found = statuses(
            json!({"certificates": [{"identity": "i", "state": "Available", "certChain":
            [{"validFrom": "2026-07-31T12:00:00Z", "expirationTime": "2026-08-01T13:00:00Z"}]}]}),
        );
        assert_eq!(
            found["certificates"],
            (Status::Warning, "i expires in 1h".to_owned())
        );
    }
}
