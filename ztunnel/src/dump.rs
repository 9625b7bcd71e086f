//! `/config_dump`: everything the daemon knows, as one JSON object with sorted keys. Secrets are not in it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use proxy::{OpenFlow, Refusal, Shards, Shared};
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;

use crate::config::{Config, Local, view};
use crate::control_plane;
use crate::mesh_file::{self, Fault};
use crate::node::{Held, Postures, State, View, Views, lock};
use crate::own;
use crate::version::Version;

/// Dumps that are made at one time: that of a large mesh takes memory, and a thread for a while.
static TURN: Semaphore = Semaphore::const_new(1);

/// Makes the dump.
#[derive(Clone)]
pub struct Dumper {
    /// settings
    pub config: Arc<Config>,
    /// build
    pub version: Version,
    /// mesh state, certificates, refusals
    pub shared: Arc<Shared>,
    /// open flows
    pub shards: Arc<Shards>,
    /// pods
    pub views: Views,
    /// how the process stands among others
    pub posture: Postures,
    /// why the mesh state on disk is not the one in force
    pub fault: Fault,
    /// the same for the enrolment file
    pub enroll_fault: Fault,
    /// the daemon's own pod, if it is known
    pub own: Option<own::Seen>,
    /// the control plane, if there is one
    pub xds: Option<control::xds::Client>,
}

impl Dumper {
    /// The whole dump, pretty-printed. Made on a thread of its own: a large mesh takes long, and others of this thread must not wait.
    ///
    /// Errors: a value that JSON cannot hold, which would be a mistake of ours; nobody is there to make it.
    pub async fn json(&self) -> anyhow::Result<String> {
        // goes along with the work: that ends later than the request, if this is given up
        let turn = TURN.acquire().await?;
        let (flows, silent) = self.shards.flows().await;
        let dumper = self.clone();
        let made = tokio::task::spawn_blocking(move || {
            let made = dumper.print(&flows, &silent);
            drop(turn);
            made
        });
        Ok(made.await??)
    }

    fn print(&self, flows: &[OpenFlow], silent: &[usize]) -> serde_json::Result<String> {
        let mut dump = Map::new();
        let index = Arc::clone(&self.shared.index.borrow());
        let mesh = mesh::dump::Snapshot::take(&index);
        drop(index);
        dump.insert("workloads".into(), serde_json::to_value(mesh.workloads())?);
        dump.insert("services".into(), serde_json::to_value(mesh.services())?);
        dump.insert("policies".into(), serde_json::to_value(mesh.policies())?);
        dump.insert(
            "stagedServices".into(),
            serde_json::to_value(mesh.staged_services())?,
        );
        dump.insert(
            "certificates".into(),
            serde_json::to_value(self.shared.certs.dump())?,
        );
        dump.insert("config".into(), view::settings(&self.config));
        dump.insert("staticConfig".into(), self.file()?);
        dump.insert("version".into(), serde_json::to_value(&self.version)?);
        dump.insert("stuckDataThreads".into(), json!(silent));
        dump.insert("workloadState".into(), self.pods(flows));
        dump.insert("ownPod".into(), self.own(flows));
        dump.insert(
            "refusals".into(),
            self.shared.refusals.last().iter().map(refusal).collect(),
        );
        let posture = lock(&self.posture).clone();
        dump.insert("superseded".into(), json!(posture.superseded));
        dump.insert(
            "enrolment".into(),
            json!({"connected": posture.connected, "faults": posture.faults}),
        );
        dump.insert("enrollFileError".into(), json!(*lock(&self.enroll_fault)));
        dump.insert(
            "controlPlane".into(),
            self.xds.as_ref().map(control_plane::view).into(),
        );
        dump.insert("meshFileError".into(), json!(*lock(&self.fault)));
        serde_json::to_string_pretty(&dump)
    }

    /// The file as it is on disk now.
    fn file(&self) -> serde_json::Result<Value> {
        let resources = match &self.config.local {
            Some(Local::File(path)) => mesh_file::read(path).unwrap_or_default(),
            Some(Local::Inline(text)) => mesh::local::parse(text).unwrap_or_default(),
            None => Vec::new(),
        };
        serde_json::to_value(mesh::dump::static_config(&resources))
    }

    fn pods(&self, flows: &[OpenFlow]) -> Value {
        let views = lock(&self.views).clone();
        views
            .iter()
            .map(|(uid, view)| (uid.to_string(), pod(uid, view, flows)))
            .collect::<BTreeMap<_, _>>()
            .into_iter()
            .collect::<Map<_, _>>()
            .into()
    }

    fn own(&self, flows: &[OpenFlow]) -> Value {
        let seen = self.own.as_ref().map(|seen| {
            let (uid, view) = seen.view();
            pod(uid, &view, flows)
        });
        seen.into()
    }
}

fn pod(uid: &str, view: &View, flows: &[OpenFlow]) -> Value {
    let info = json!({"name": &*view.name, "namespace": &*view.namespace, "serviceAccount": &*view.service_account});
    let (state, reason) = match &view.state {
        State::Up => ("Up", None),
        State::Pending(why) => ("Pending", Some(why.as_str())),
        State::Leaving => ("Leaving", Some("connections made before are still open")),
        State::Out(why) => ("Out", Some(why.as_str())),
    };
    let mut pod = json!({"info": info, "state": state});
    if let Some(held) = view.held {
        pod["held"] = json!(match held {
            Held::Waiting => "its connections wait until it is enrolled",
            Held::Denied => "it was not enrolled in time, its connections are refused",
        });
    }
    if let Some(reason) = reason {
        pod["reason"] = json!(reason);
    }
    if matches!(view.state, State::Up | State::Leaving) {
        let side = |inbound: bool| -> Value {
            flows
                .iter()
                .filter(|f| &*f.pod == uid && f.inbound == inbound)
                .map(flow)
                .collect()
        };
        pod["connections"] = json!({"inbound": side(true), "outbound": side(false)});
    }
    pod
}

fn flow(flow: &OpenFlow) -> Value {
    json!({"src": flow.source.to_string(), "originalDst": flow.original, "actualDst": flow.actual.to_string(), "protocol": flow.protocol})
}

fn refusal(refusal: &Refusal) -> Value {
    let at = refusal.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    json!({
        "at": at.as_secs_f64(),
        "direction": refusal.direction,
        "src": refusal.source.map(|a| a.to_string()),
        "srcIdentity": refusal.source_identity,
        "dst": refusal.destination.map(|a| a.to_string()),
        "reason": refusal.reason,
        "error": refusal.error,
    })
}
