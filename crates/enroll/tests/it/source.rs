//! The file source from file to actions.

use std::fs;
use std::path::Path;
use std::time::Duration;

use enroll::file::source;
use enroll::watch::WatchConfig;
use enroll::{Action, PodEvent, Roster, Rules, StopReason, Why};
use tokio::sync::mpsc::{Receiver, channel};

use crate::{NEVER, soon};

/// One pod per name; `extra` goes to the first.
fn file(dir: &Path, names: &[&str], extra: &str) -> String {
    let mut text = String::from(
        "namespaces:\n- name: shop\n  labels: {istio.io/dataplane-mode: ambient}\npods:\n",
    );
    for (at, name) in names.iter().enumerate() {
        let dir = dir.display();
        text += &format!(
            "- uid: uid-{name}\n  name: {name}\n  namespace: shop\n  netns: {dir}/{name}.netns\n  cgroup: {dir}/{name}.cgroup\n"
        );
        if at == 0 {
            text += extra;
        }
    }
    text
}

fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

/// Actions in short.
async fn actions(roster: &mut Roster, events: &mut Receiver<PodEvent>) -> Vec<String> {
    let event = soon(events.recv()).await.unwrap();
    let short = |action: Action| match action {
        Action::Start(spec) => format!("start {}", spec.name),
        Action::Stop(spec, StopReason::Left(Why::OptedOut)) => format!("opt-out {}", spec.name),
        Action::Stop(spec, _) => format!("stop {}", spec.name),
        Action::Update(spec) => format!("update {}", spec.name),
        Action::Release(pod) => format!("release {}", pod.name),
    };
    roster.apply(event).into_iter().map(short).collect()
}

#[tokio::test]
async fn follows_the_file_and_keeps_the_last_good_state() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pods.yaml");
    let (events, mut received) = channel(1);
    let config = WatchConfig {
        poll: NEVER,
        ..WatchConfig::default()
    };
    let task = tokio::spawn(source(path.clone(), Rules::default(), config, events));
    let mut roster = Roster::default();

    assert!(actions(&mut roster, &mut received).await.is_empty());
    assert!(!roster.synced() && roster.fault().unwrap().to_string().starts_with("read "));
    replace(&path, &file(dir.path(), &["web", "db"], ""));
    assert_eq!(
        actions(&mut roster, &mut received).await,
        ["start db", "start web"]
            .map(String::from)
            .into_iter()
            .rev()
            .collect::<Vec<_>>()
    );
    assert!(roster.synced() && roster.fault().is_none());
    replace(
        &path,
        &file(
            dir.path(),
            &["web"],
            "  labels: {istio.io/dataplane-mode: none}\n",
        ),
    );
    assert_eq!(
        actions(&mut roster, &mut received).await,
        ["stop db", "opt-out web", "release web"]
    );
    replace(&path, "pods: oops");
    assert!(actions(&mut roster, &mut received).await.is_empty());
    assert!(roster.fault().is_some() && roster.pods().count() == 1);
    fs::write(
        &path,
        file(
            dir.path(),
            &["web"],
            "  annotations: {ambient.istio.io/dns-capture: \"false\"}\n",
        ),
    )
    .unwrap();
    assert_eq!(actions(&mut roster, &mut received).await, ["start web"]);
    replace(&path, &file(dir.path(), &["web"], ""));
    assert_eq!(actions(&mut roster, &mut received).await, ["update web"]);
    drop(received);
    soon(task).await.unwrap();
}

#[tokio::test]
async fn a_namespace_made_anew_under_its_name_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pods.yaml");
    fs::write(&path, file(dir.path(), &["web"], "")).unwrap();
    let (events, mut received) = channel(1);
    let config = WatchConfig {
        poll: Duration::from_millis(20),
        ..WatchConfig::default()
    };
    tokio::spawn(source(path, Rules::default(), config, events));
    let mut roster = Roster::default();
    assert_eq!(actions(&mut roster, &mut received).await, ["start web"]);
    fs::write(dir.path().join("web.netns"), "").unwrap();
    assert_eq!(
        actions(&mut roster, &mut received).await,
        ["stop web", "start web"]
    );
    fs::write(dir.path().join("other"), "").unwrap();
    fs::rename(dir.path().join("other"), dir.path().join("web.netns")).unwrap();
    assert_eq!(
        actions(&mut roster, &mut received).await,
        ["stop web", "start web"]
    );
}
