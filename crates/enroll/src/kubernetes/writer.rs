//! Carries out what the desk decides: patches of annotations, and Events.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::core::ObjectMeta;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::api::PodObject;
use super::desk::{Job, Outcome, Task, Who};
use super::{REDIRECTION, Shared};

/// Longest wait for an answer.
const ANSWER: Duration = Duration::from_secs(15);
/// Who writes, for the API server.
const MANAGER: &str = "ztunnel";
/// Who tells, in Events.
const CONTROLLER: &str = "istio.io/ztunnel";
/// Faults of the two requests.
const PATCH: &str = "patch pods";
const CREATE: &str = "create events";
/// Longest pod name in an Event's name, in bytes: the whole has 253.
const NAME_BYTES_MAX: usize = 220;

/// Writes until the desk retires; requests that are on their way then are given up.
pub(super) async fn write(client: Client, shared: Arc<Shared>, node: String) {
    let mut jobs: JoinSet<(Job, Outcome)> = JoinSet::new();
    loop {
        let wake = loop {
            let mut desk = shared.desk();
            if desk.retired() {
                return;
            }
            match desk.next(Instant::now()) {
                Some(job) => {
                    let work = carry_out(client.clone(), shared.clone(), node.clone(), job);
                    jobs.spawn(work);
                }
                None => break desk.wake(),
            }
        };
        let due = async {
            match wake {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(ended) = jobs.join_next() => if let Ok((job, outcome)) = ended {
                shared.desk().done(&job, outcome, Instant::now());
            },
            () = shared.notify.notified() => {}
            () = due => {}
        }
    }
}

async fn carry_out(client: Client, shared: Arc<Shared>, node: String, job: Job) -> (Job, Outcome) {
    let who = &job.who;
    let (what, answer) = match &job.task {
        Task::Annotate(value) => (PATCH, timeout(ANSWER, annotate(client, who, *value)).await),
        Task::Warn(reason) => {
            let event = event(
                who,
                &node,
                "Warning",
                "EnrollmentFailed",
                format!("not in the mesh yet: {reason}"),
            );
            (CREATE, timeout(ANSWER, create(client, event)).await)
        }
        Task::Recovered => {
            let event = event(
                who,
                &node,
                "Normal",
                "Enrolled",
                "traffic is captured by the mesh".to_owned(),
            );
            (CREATE, timeout(ANSWER, create(client, event)).await)
        }
    };
    let outcome = match answer {
        Ok(Ok(())) => {
            shared.faults.ok(what);
            tracing::debug!(pod = %who.uid, name = %who.name, namespace = %who.namespace, task = ?job.task, "written onto the pod");
            Outcome::Done
        }
        // 422: the pod of this name has another UID
        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 422) => {
            tracing::debug!(pod = %who.uid, name = %who.name, namespace = %who.namespace, code = status.code, "pod not written onto, it is gone");
            Outcome::NoPod
        }
        Ok(Err(error)) => {
            shared.faults.fail(what, &error);
            Outcome::Failed
        }
        Err(_) => {
            shared
                .faults
                .say(what, format!("no answer within {ANSWER:?}"));
            Outcome::Failed
        }
    };
    (job, outcome)
}

/// The UID stands in the patch, so that a pod of the same name that came later is not written onto.
async fn annotate(client: Client, who: &Who, value: Option<&str>) -> kube::Result<()> {
    let pods: Api<PodObject> = Api::namespaced(client, &who.namespace);
    let patch = json!({"metadata": {"uid": &*who.uid, "annotations": {REDIRECTION: value}}});
    let params = PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let answer = pods
        .patch_metadata(&who.name, &params, &Patch::Merge(patch))
        .await;
    answer.map(|_| ())
}

async fn create(client: Client, event: Event) -> kube::Result<()> {
    let namespace = event.metadata.namespace.clone().unwrap_or_default();
    let events: Api<Event> = Api::namespaced(client, &namespace);
    events
        .create(&PostParams::default(), &event)
        .await
        .map(|_| ())
}

fn event(who: &Who, node: &str, kind: &str, reason: &str, note: String) -> Event {
    let now = Timestamp::now();
    let cut = (0..=NAME_BYTES_MAX.min(who.name.len()))
        .rev()
        .find(|at| who.name.is_char_boundary(*at));
    let name = who.name[..cut.unwrap_or(0)].trim_end_matches(['.', '-']);
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{:x}", now.as_nanosecond())),
            namespace: Some(who.namespace.to_string()),
            ..ObjectMeta::default()
        },
        action: Some("Enroll".to_owned()),
        event_time: Some(MicroTime(now)),
        note: Some(note),
        reason: Some(reason.to_owned()),
        regarding: Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(who.name.to_string()),
            namespace: Some(who.namespace.to_string()),
            uid: Some(who.uid.to_string()),
            ..ObjectReference::default()
        }),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(format!("ztunnel-{node}").chars().take(128).collect()),
        type_: Some(kind.to_owned()),
        ..Event::default()
    }
}
