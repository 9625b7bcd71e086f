//! The source of pods: istio-cni's socket, the enrolment file, the API server. Asks, and disturbs nobody.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use capture::probe::Finding;
use enroll::file::{Enrolment, parse};
use enroll::kubernetes::{self, AskError, Permission};
use enroll::{PodSpec, Sighting};

use super::report::chain;
use crate::config::{Config, Enroll, Redirect};

/// Problems that are listed; more are counted.
const LISTED_MAX: usize = 8;
/// Largest enrolment file that is read; a larger one is refused by the daemon as well.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Most time for the API server's answers.
const API_MAX: Duration = Duration::from_secs(8);
const UNREACHED: &str =
    "is the API server reachable from this node (KUBERNETES_SERVICE_HOST, KUBECONFIG)?";

/// All of it.
pub async fn findings(config: &Config) -> Vec<Finding> {
    match &config.enroll {
        Enroll::Zds { socket, .. } => vec![zds(socket)],
        Enroll::File(path) => file(config, path),
        Enroll::Kubernetes { node } => kubernetes(config, node).await,
        Enroll::Own => Vec::new(),
    }
}

async fn kubernetes(config: &Config, node: &str) -> Vec<Finding> {
    const NAME: &str = "Kubernetes API";
    const RIGHTS: &str = "permissions";
    let settings = kubernetes::Config {
        node_name: node.to_owned(),
        host_proc: config.capture.host_proc.clone(),
        // for the places of pods, which are not asked for here
        cgroup_root: Default::default(),
        rules: crate::run::rules(config),
        kubeconfig: config.kubeconfig.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let asked = match tokio::time::timeout(API_MAX, kubernetes::permissions(&settings)).await {
        Ok(Ok(asked)) => asked,
        Ok(Err(error)) => return vec![Finding::failed(NAME, chain(&error), api_hint(&error))],
        Err(_) => {
            let detail = format!("no answer within {API_MAX:?}");
            return vec![Finding::failed(NAME, detail, UNREACHED)];
        }
    };
    let words = |denied: &[Permission]| -> String {
        let words: Vec<String> = denied
            .iter()
            .map(|denied| format!("{} {}", denied.verb, denied.resource))
            .collect();
        words.join(", ")
    };
    let hint =
        "the ClusterRole of the chart gives them: is it there, and bound to this service account?";
    let rights = if asked.denied.is_empty() {
        Finding::ok(RIGHTS, words(&kubernetes::PERMISSIONS))
    } else if asked.denied.iter().any(|denied| denied.essential) {
        Finding::failed(RIGHTS, format!("missing: {}", words(&asked.denied)), hint)
    } else {
        Finding::warning(RIGHTS, format!("missing: {}", words(&asked.denied)), hint)
    };
    vec![
        Finding::ok(NAME, format!("{}, node {node}", asked.version)),
        rights,
    ]
}

fn api_hint(error: &AskError) -> &'static str {
    match error {
        AskError::Settings(_) => {
            "in a pod the service account has to be mounted (automountServiceAccountToken); elsewhere set KUBECONFIG"
        }
        error if error.is_refusal() => {
            "is the service account's token mounted and fresh, or the kubeconfig's user valid?"
        }
        AskError::Answer { .. } => UNREACHED,
    }
}

/// The socket is not dialled: to the agent each connection is a daemon that wants all pods.
fn zds(socket: &Path) -> Finding {
    const NAME: &str = "istio-cni's socket";
    let shown = socket.display();
    match fs::metadata(socket) {
        Ok(meta) if meta.file_type().is_socket() => Finding::ok(NAME, format!("{shown}")),
        Ok(_) => Finding::failed(
            NAME,
            format!("{shown} is not a socket"),
            "set INPOD_UDS to the socket of istio-cni's node agent",
        ),
        Err(error) => Finding::failed(
            NAME,
            format!("{shown}: {error}"),
            "does istio-cni run on this node with ambient enabled, and is the host's /var/run/ztunnel mounted? Without istio-cni: ENROLL=kubernetes",
        ),
    }
}

fn file(config: &Config, path: &Path) -> Vec<Finding> {
    const NAME: &str = "enrolment file";
    let shown = path.display();
    let read = fs::metadata(path).and_then(|meta| {
        if meta.len() > FILE_BYTES_MAX {
            return Err(io::Error::other(format!(
                "larger than {FILE_BYTES_MAX} bytes"
            )));
        }
        fs::read_to_string(path)
    });
    let parsed = read
        .map_err(|error| error.to_string())
        .and_then(|text| parse(&text).map_err(|error| error.to_string()));
    match parsed {
        Ok(enrolment) => pods(config, &enrolment),
        Err(error) => vec![Finding::failed(
            NAME,
            format!("{shown}: {error}"),
            "correct it at the place that is named; what was in force before stays until then",
        )],
    }
}

fn pods(config: &Config, enrolment: &Enrolment) -> Vec<Finding> {
    let (mut members, mut ignored) = (Vec::new(), Vec::new());
    for (sighting, warnings) in enrolment.sightings(&crate::run::rules(config)) {
        ignored.extend(warnings.iter().map(ToString::to_string));
        if let Sighting::In(spec) = sighting {
            members.push(spec);
        }
    }
    let detail = format!(
        "{} pods, {} of them in the mesh",
        enrolment.pods.len(),
        members.len()
    );
    let mut found = vec![Finding::ok("enrolment file", detail)];
    if !ignored.is_empty() {
        found.push(Finding::warning(
            "annotations",
            listed(&ignored),
            "these annotations are ignored: correct them",
        ));
    }
    let ebpf = config.capture.redirect == Redirect::Ebpf;
    let lost: Vec<String> = members
        .iter()
        .filter_map(|spec| place(spec, ebpf))
        .collect();
    found.push(if lost.is_empty() {
        Finding::ok("places of the pods", "all are there")
    } else {
        Finding::failed(
            "places of the pods",
            listed(&lost),
            "correct netns and cgroup of these pods, or start them: they stay pending until then",
        )
    });
    found
}

/// What is wrong with where a pod is said to be.
fn place(spec: &Arc<PodSpec>, ebpf: bool) -> Option<String> {
    let whose = format!("{}/{}", spec.namespace, spec.name);
    if let Err(error) = sys::Netns::open(&spec.netns) {
        return Some(format!("{whose}: netns {}: {error}", spec.netns.display()));
    }
    if !ebpf {
        return None;
    }
    let cgroup = spec.cgroup.as_deref()?;
    let error = sys::cgroup::id(cgroup).err()?;
    Some(format!("{whose}: cgroup {}: {error}", cgroup.display()))
}

/// The first few, and how many more there are.
pub fn listed(items: &[String]) -> String {
    let shown = items.iter().take(LISTED_MAX).map(String::as_str);
    let mut text = shown.collect::<Vec<_>>().join("; ");
    if items.len() > LISTED_MAX {
        text.push_str(&format!("; and {} more", items.len() - LISTED_MAX));
    }
    text
}

#[cfg(test)]
mod tests {
    use capture::probe::Status;

    use super::*;

    #[test]
    fn long_lists_are_cut() {
        let items: Vec<String> = (0..10).map(|i| i.to_string()).collect();
        assert_eq!(listed(&items), "0; 1; 2; 3; 4; 5; 6; 7; and 2 more");
        assert_eq!(listed(&items[..1]), "0");
    }

    #[test]
    fn sockets_are_told_from_files() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, other) = (dir.path().join("a.sock"), dir.path().join("b"));
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        fs::write(&other, "").unwrap();
        assert_eq!(zds(&socket).status, Status::Ok);
        assert_eq!(zds(&other).status, Status::Failed);
        assert_eq!(zds(&dir.path().join("c")).status, Status::Failed);
    }
}
