//! Pods that are to be in the mesh and are not yet: their connections wait, and nothing of them is on the wire.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::apiserver::Kind;
use integration::{App, Daemon, Driver, Layout, Packets, Pod, PodPlan, place, until, world};
use serde_json::{Value, json};

use crate::cluster::{Cluster, IN_FORCE_MAX, MARKER};
use crate::support::{SOON, connect, echo};

/// Patience of applications that wait for their first connection.
const PATIENCE: &str = "50000";
/// Most time until such a connection has come about.
const FIRST_MAX: Duration = Duration::from_secs(70);
/// The limit of holding where a test waits for it.
const SHORT: (&str, &str) = ("HOLD_TIMEOUT", "2s");
/// Most time a connect of a pod takes that is held for a moment only: a request for it is sent again after a second.
const MOMENT_MS: u64 = 3_500;
/// An address that no pod has.
const NOBODY: &str = "10.244.1.199";

/// Starts an application whose first act is to connect.
fn eager(pod: &Pod, to: &Pod) -> Result<App> {
    let binary = place::binary("podapp")?.to_string_lossy().into_owned();
    let to = to.at(9000).to_string();
    let args = [
        "connect",
        "--to",
        &to,
        "--send",
        MARKER,
        "--timeout-ms",
        PATIENCE,
    ];
    pod.spawn(&[&[binary.as_str()], &args[..]].concat())
}

/// What it told.
fn told(mut app: App, daemon: &Daemon) -> Result<Value> {
    let (_, seen) = app.finish(FIRST_MAX)?;
    let seen = seen.context("it told nothing")?;
    let log = || format!("{seen}\n{}", daemon.tail());
    ensure!(seen["received"] == MARKER, "not echoed: {}", log());
    Ok(seen)
}

/// A sum of the decisions of the kernel's programs.
fn verdicts(daemon: &Daemon, verdict: &str) -> Result<f64> {
    let metrics = daemon.metrics()?;
    Ok(metrics.sum("ztunnel_capture_verdicts_total", &[("verdict", verdict)]))
}

/// Waits until the kernel has decided so.
fn decided(daemon: &Daemon, verdict: &str) -> Result<()> {
    until(SOON, &format!("{verdict} counted"), || {
        Ok((verdicts(daemon, verdict)? >= 1.0).then_some(()))
    })
}

/// Waits until a pod is shown as held, in words that contain `how`.
fn held(daemon: &Daemon, pod: &Pod, how: &str) -> Result<()> {
    daemon.wait_dump(SOON, "held", |dump| {
        let shown = dump["workloadState"][&pod.uid]["held"].as_str();
        shown.is_some_and(|text| text.contains(how))
    })?;
    let count = daemon
        .metrics()?
        .sum("ztunnel_capture_pods", &[("state", "held")]);
    ensure!(count >= 1.0, "{count} pods are counted as held");
    Ok(())
}

/// Nothing of a pod is in the clear.
fn private(packets: &Packets, server: &Pod) {
    assert!(!packets.shows(MARKER), "clear text on the wire");
    assert_eq!(
        packets.syn_to(server.at(9000)),
        0,
        "a plain request on the wire"
    );
}

/// A pod that cannot be enrolled: it is said to have an address that its namespace does not own.
fn stuck(cluster: &mut Cluster, name: &str) -> Result<Pod> {
    let pod = cluster.world.bind_pod(&PodPlan::new("shop", name, 0))?;
    cluster.world.publish_state()?;
    cluster.world.edit_pod(name, |object| {
        object["status"]["podIP"] = json!(NOBODY);
        object["status"]["podIPs"] = json!([{"ip": NOBODY}]);
    });
    cluster.world.make_sandbox(name)?;
    Ok(pod)
}

fn first_instruction(driver: Driver) -> Result<()> {
    let mut cluster = Cluster::labelled(driver, &[])?;
    let server = cluster.pod("server-0").clone();
    let _echo = server.serve(&["echo"])?;
    let wire = cluster.world.node(0).capture(cluster.world.node(1))?;
    // the daemon hears of them only later; kubelet does not wait for that
    cluster.world.api().withhold(Kind::Pods, true);
    let mut apps = Vec::new();
    for name in ["eager-0", "eager-1", "eager-2"] {
        let pod = cluster.world.bind_pod(&PodPlan::new("shop", name, 0))?;
        cluster.world.publish_state()?;
        cluster.world.make_sandbox(name)?;
        apps.push((eager(&pod, &server)?, pod));
        cluster.world.tell_running(name);
    }
    decided(&cluster.daemons[0], "connect_held")?;
    decided(&cluster.daemons[0], "egress_dropped_held")?;
    assert!(apps.iter().all(|(app, _)| app.lines().is_empty()));
    cluster.world.api().withhold(Kind::Pods, false);
    for (app, pod) in apps {
        let seen = told(app, &cluster.daemons[0])?;
        let line = cluster.outbound(&pod, &seen)?;
        assert_eq!(line.field("src.identity"), pod.identity(), "{}", line.text);
        assert_eq!(
            line.field("dst.identity"),
            server.identity(),
            "{}",
            line.text
        );
        cluster.captured(&pod.name)?;
    }
    private(&wire.stop()?, &server);
    Ok(())
}

#[test]
fn a_connect_before_the_enrolment_waits_for_it_under_cgroupfs() -> Result<()> {
    first_instruction(Driver::Cgroupfs)
}

#[test]
fn a_connect_before_the_enrolment_waits_for_it_under_systemd() -> Result<()> {
    first_instruction(Driver::Systemd)
}

#[test]
fn a_sandbox_made_anew_in_its_pods_cgroup_stays_closed_until_it_is_found() -> Result<()> {
    let mut cluster = Cluster::labelled(Driver::Systemd, &[])?;
    let server = cluster.pod("server-0").clone();
    let _echo = server.serve(&["echo"])?;
    let before = cluster.pod("client-0").clone();
    cluster.authenticated(&before, &server, &[])?;
    let wire = cluster.world.node(0).capture(cluster.world.node(1))?;
    let moved = cluster.world.move_sandbox("client-0")?;
    assert_eq!((&moved.uid, &moved.cgroup), (&before.uid, &before.cgroup));
    let first = eager(&moved, &server)?;
    // the daemon has seen that the pod's place is another, and does not know which
    cluster.daemons[0].wait_dump(SOON, "a pod without a place", |dump| {
        let why = dump["workloadState"][&moved.uid]["reason"].as_str();
        why.is_some_and(|why| why.contains("unknown"))
    })?;
    let held = verdicts(&cluster.daemons[0], "connect_held_netns")?;
    let second = eager(&moved, &server)?;
    until(SOON, "the second one is held as well", || {
        let now = verdicts(&cluster.daemons[0], "connect_held_netns")?;
        Ok((now > held).then_some(()))
    })?;
    cluster.world.tell_running("client-0");
    for app in [first, second] {
        let seen = told(app, &cluster.daemons[0])?;
        let line = cluster.outbound(&moved, &seen)?;
        assert_eq!(
            line.field("src.identity"),
            moved.identity(),
            "{}",
            line.text
        );
    }
    private(&wire.stop()?, &server);
    cluster.captured("client-0")
}

#[test]
fn a_pod_that_is_known_but_not_found_waits() -> Result<()> {
    let mut cluster = Cluster::labelled(Driver::Cgroupfs, &[])?;
    let server = cluster.pod("server-0").clone();
    let _echo = server.serve(&["echo"])?;
    let wire = cluster.world.node(0).capture(cluster.world.node(1))?;
    let pod = stuck(&mut cluster, "stuck-0")?;
    let app = eager(&pod, &server)?;
    let daemon = &cluster.daemons[0];
    held(daemon, &pod, "wait")?;
    decided(daemon, "egress_dropped_held")?;
    assert!(app.lines().is_empty(), "{:?}", app.lines());
    cluster.world.tell_running("stuck-0");
    let seen = told(app, daemon)?;
    cluster.outbound(&pod, &seen)?;
    cluster.captured("stuck-0")?;
    daemon.wait_dump(SOON, "not held", |dump| {
        dump["workloadState"][&pod.uid]["held"].is_null()
    })?;
    private(&wire.stop()?, &server);
    let metrics = daemon.metrics()?;
    assert_eq!(
        metrics.sum("ztunnel_capture_pods", &[("state", "held")]),
        0.0
    );
    Ok(())
}

#[test]
fn after_the_limit_connections_are_refused() -> Result<()> {
    let mut cluster = Cluster::labelled(Driver::Systemd, &[SHORT])?;
    let server = cluster.pod("server-0").clone();
    let _echo = server.serve(&["echo"])?;
    let wire = cluster.world.node(0).capture(cluster.world.node(1))?;
    let from = cluster.daemons[0].log_len();
    let pod = stuck(&mut cluster, "stuck-0")?;
    let early = eager(&pod, &server)?;
    let daemon = &cluster.daemons[0];
    daemon.wait_log(from, &["was not enrolled in time", "refused", &pod.uid])?;
    held(daemon, &pod, "refused")?;
    for to in [server.at(9000), server.at6(9000)] {
        let seen = connect(&pod, to, &["--send", MARKER])?;
        assert_eq!(seen["step"], "connect", "{seen}");
        assert!(
            ["PermissionDenied", "ConnectionRefused"]
                .iter()
                .any(|kind| seen["kind"] == *kind),
            "{seen}"
        );
    }
    decided(daemon, "connect_denied_hold")?;
    let denied = daemon
        .metrics()?
        .sum("ztunnel_hold_pods_total", &[("outcome", "denied")]);
    assert_eq!(denied, 1.0);
    cluster.annotated("stuck-0", Some("pending"))?;
    assert!(early.lines().is_empty(), "{:?}", early.lines());
    drop(early);
    // it is found after all
    cluster.world.tell_running("stuck-0");
    cluster.captured("stuck-0")?;
    cluster.authenticated(&pod, &server, &["--send", MARKER])?;
    private(&wire.stop()?, &server);
    Ok(())
}

#[test]
fn after_the_limit_connections_are_let_out_where_that_is_the_policy() -> Result<()> {
    let mut cluster = Cluster::labelled(Driver::Cgroupfs, &[SHORT, ("HOLD_POLICY", "allow")])?;
    let server = cluster.pod("server-0").clone();
    let _echo = server.serve(&["echo"])?;
    let wire = cluster.world.node(0).capture(cluster.world.node(1))?;
    let from = cluster.daemons[0].log_len();
    let pod = stuck(&mut cluster, "stuck-0")?;
    let early = eager(&pod, &server)?;
    let daemon = &cluster.daemons[0];
    daemon.wait_log(
        from,
        &["was not enrolled in time", "go out as they are", &pod.uid],
    )?;
    // one that waited, and a new one
    told(early, daemon)?;
    echo(&pod, server.at(9000), &["--send", MARKER])?;
    assert!(wire.stop()?.shows(MARKER));
    let allowed = daemon
        .metrics()?
        .sum("ztunnel_hold_pods_total", &[("outcome", "allowed")]);
    assert_eq!(allowed, 1.0);
    cluster.annotated("stuck-0", Some("pending"))?;
    cluster.world.tell_running("stuck-0");
    cluster.captured("stuck-0")?;
    cluster.authenticated(&pod, &server, &[]).map(drop)
}

#[test]
fn nobody_reaches_a_held_pod() -> Result<()> {
    let mut cluster = Cluster::labelled(Driver::Cgroupfs, &[])?;
    let pod = stuck(&mut cluster, "stuck-0")?;
    let daemon = &cluster.daemons[0];
    held(daemon, &pod, "wait")?;
    let _echo = pod.serve(&["echo"])?;
    let outsider = cluster.pod("outsider-0");
    for to in [pod.at(9000), pod.at6(9000)] {
        let seen = connect(outsider, to, &["--timeout-ms", "1500"])?;
        assert_eq!(
            (seen["ok"].as_bool(), &seen["step"]),
            (Some(false), &json!("connect")),
            "{to}: {seen}"
        );
    }
    decided(daemon, "ingress_dropped_held")?;
    // what it does with itself is its own business
    let seen = pod.podapp(&["connect", "--to", "127.0.0.1:9000"])?;
    assert_eq!(seen["received"], "hello", "{seen}");
    cluster.world.tell_running("stuck-0");
    cluster.captured("stuck-0")?;
    echo(outsider, pod.at(9000), &[])?;
    cluster
        .authenticated(cluster.pod("server-0"), &pod, &[])
        .map(drop)
}

#[test]
fn pods_that_are_not_for_the_mesh_wait_for_a_moment_only() -> Result<()> {
    let mut cluster = Cluster::labelled(Driver::Systemd, &[])?;
    let server = cluster.pod("server-0").clone();
    let _echo = server.serve(&["echo"])?;
    for (n, plan) in [
        PodPlan::new("other", "plain-0", 0),
        PodPlan::new("shop", "plain-1", 0).labelled("istio.io/dataplane-mode", "none"),
        PodPlan::new("kube-system", "plain-2", 0),
        PodPlan::new("shop", "plain-3", 0).annotated("sidecar.istio.io/status", "{}"),
        PodPlan::new("other", "plain-4", 0).on_host_network(),
    ]
    .into_iter()
    .enumerate()
    {
        let pod = cluster.world.start_pod(&plan)?;
        let seen = told(eager(&pod, &server)?, &cluster.daemons[0])?;
        let took = seen["ms"].as_u64().context("no time")?;
        assert!(took < MOMENT_MS, "{n}: {took} ms: {seen}");
        assert_eq!(cluster.world.redirection(&pod.name), None);
    }
    // and while the API server says nothing, as long as that lasts
    cluster.world.api().withhold(Kind::Pods, true);
    let pod = cluster
        .world
        .start_pod(&PodPlan::new("other", "plain-9", 0))?;
    let app = eager(&pod, &server)?;
    decided(&cluster.daemons[0], "egress_dropped_held")?;
    assert!(app.lines().is_empty());
    cluster.world.api().withhold(Kind::Pods, false);
    told(app, &cluster.daemons[0]).map(drop)
}

#[test]
fn pods_that_were_there_before_the_daemon_are_not_held() -> Result<()> {
    let mut cluster = Cluster::up(&Layout::standard(), Driver::Cgroupfs, &[])?;
    let (outsider, server) = (
        cluster.pod("outsider-0").clone(),
        cluster.pod("server-0").clone(),
    );
    let _echo = server.serve(&["echo"])?;
    cluster.daemons[1].kill9()?;
    cluster.world.api().withhold(Kind::Pods, true);
    cluster.daemons[1] = Daemon::launch(cluster.world.node(1), &[])?;
    // it listens, and has not heard of any pod
    until(IN_FORCE_MAX, "the daemon's first answer", || {
        Ok(cluster.daemons[1].config_dump().ok())
    })?;
    for _ in 0..20 {
        let seen = echo(&outsider, server.at(9000), &[])?;
        assert!(seen["ms"].as_u64().is_some_and(|ms| ms < 900), "{seen}");
    }
    cluster.world.api().withhold(Kind::Pods, false);
    cluster.daemons[1].wait_ready()?;
    cluster.world.label_namespace("shop", true);
    cluster.captured("server-0")
}

#[test]
fn nothing_is_held_where_holding_is_off() -> Result<()> {
    let mut cluster = Cluster::labelled(Driver::Cgroupfs, &[("HOLD", "false")])?;
    let server = cluster.pod("server-0").clone();
    let _echo = server.serve(&["echo"])?;
    cluster.world.api().withhold(Kind::Pods, true);
    let pod = cluster
        .world
        .start_pod(&PodPlan::new("shop", "eager-0", 0))?;
    let wire = cluster.world.node(0).capture(cluster.world.node(1))?;
    let seen = told(eager(&pod, &server)?, &cluster.daemons[0])?;
    assert!(seen["ms"].as_u64().is_some_and(|ms| ms < 900), "{seen}");
    assert!(wire.stop()?.shows(MARKER));
    assert_eq!(verdicts(&cluster.daemons[0], "connect_held")?, 0.0);
    cluster.world.api().withhold(Kind::Pods, false);
    cluster.captured("eager-0")?;
    let dump = cluster.daemons[0].config_dump()?;
    assert!(world::is_in(&dump, &pod.uid));
    cluster.authenticated(&pod, &server, &[]).map(drop)
}
