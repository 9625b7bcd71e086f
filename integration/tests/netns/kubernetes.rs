//! Pods that an API server tells: labelled, un-labelled, replaced, probed. How the API server itself misbehaves is in
//! `apiserver`.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::apiserver::Kind;
use integration::{
    AccessLine, Driver, Layout, Pod, PodPlan, Policy, REDIRECTION, World, cgroup, leftovers, place,
    world,
};
use serde_json::json;

use crate::cluster::{Cluster, IN_FORCE_MAX, MARKER, bare, soon};
use crate::support::{SOON, connect, echo, hold, local, still_held};

/// Most time from a label to captured and annotated pods, where the machine is idle.
const LABEL_MAX: Duration = Duration::from_secs(1);
/// How often that is tried: the machine may have other things to do.
const LABEL_TRIES: usize = 3;
/// How long a pod has ended before the API server says so.
const ENDING: Duration = Duration::from_secs(3);
/// An address that no pod has.
const NOBODY: &str = "10.244.1.199";
/// Most time of a first connect.
const FIRST_MAX: Duration = Duration::from_secs(60);

#[test]
fn a_cluster_without_a_daemon_is_as_kubelet_makes_it() -> Result<()> {
    for (driver, ends) in [
        (Driver::Cgroupfs, "/kubepods/burstable/pod"),
        (
            Driver::Systemd,
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod",
        ),
    ] {
        let mut world = bare(&Layout::standard(), driver)?;
        let (client, server) = (world.pod("client-0").clone(), world.pod("server-0").clone());
        assert!(client.cgroup.to_string_lossy().contains(ends), "{client:?}");
        let pause = fs::read_dir(&client.cgroup)?.flatten().find(|entry| {
            entry.path() != client.home && !cgroup::processes(&entry.path()).is_empty()
        });
        assert!(pause.is_some(), "no pause process");
        let _echo = server.serve(&["echo"])?;
        echo(&client, server.at(9000), &["--send", MARKER])?;
        assert_eq!(world.probe_tcp(1, server.at(9000))?["received"], "hello");
        assert_eq!(world.host_connect(1, server.at(9000))?["received"], "hello");
        let object = world.api().pod("shop", "client-0").expect("it is stored");
        assert_eq!(object["status"]["podIP"], client.v4.to_string());
        world.delete_pod("client-0")?;
        assert!(!client.cgroup.exists() && !client.netns.exists());
        assert!(world.api().pod("shop", "client-0").is_none());
        let id = world.id().to_owned();
        drop(world);
        assert!(leftovers::namespaces(&id).is_empty());
        assert!(!place::cgroup_root()?.join(&id).exists());
    }
    Ok(())
}

/// Time from a label until all pods of `shop` are annotated, with the patches accepted.
fn label_takes(cluster: &Cluster) -> Result<Duration> {
    let record = cluster.world.api().record();
    let from = record.len();
    let since = Instant::now();
    cluster.world.label_namespace("shop", true);
    let mut longest = Duration::ZERO;
    for name in ["client-0", "server-0"] {
        let at = record.wait(from, IN_FORCE_MAX, "annotation of a pod", |one| {
            let enabled = one
                .annotation(REDIRECTION)
                .is_some_and(|value| value == "enabled");
            let right = one.is("patch", "pods") && one.name() == name && one.status == 200;
            (enabled && right).then_some(one.at)
        })?;
        longest = longest.max(at.duration_since(since));
    }
    Ok(longest)
}

fn labels_are_followed(driver: Driver) -> Result<()> {
    let cluster = Cluster::up(&Layout::standard(), driver, &[])?;
    let (client, server) = (cluster.pod("client-0"), cluster.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    let plain = hold(client, server.at(9000))?;
    let mut fastest = Duration::MAX;
    let mut tunnelled = None;
    for _ in 0..LABEL_TRIES {
        fastest = fastest.min(label_takes(&cluster)?);
        // the kernel had it before the annotation said so
        for pod in [client, server] {
            let dump = cluster.daemon_of(pod).config_dump()?;
            ensure!(
                world::is_in(&dump, &pod.uid),
                "annotated, but not served: {}",
                pod.name
            );
        }
        cluster.captured("client-0")?;
        cluster.captured("server-0")?;
        let wire = cluster.world.node(0).capture(cluster.world.node(1))?;
        cluster.authenticated(client, server, &["--send", MARKER])?;
        let packets = wire.stop()?;
        assert!(!packets.shows(MARKER) && packets.tls(15008) > 0);
        if tunnelled.is_none() {
            tunnelled = Some(hold(client, server.at(9000))?);
        }
        cluster.world.label_namespace("shop", false);
        cluster.released("client-0")?;
        cluster.released("server-0")?;
        let wire = cluster.world.node(0).capture(cluster.world.node(1))?;
        echo(client, server.at(9000), &["--send", MARKER])?;
        assert!(wire.stop()?.shows(MARKER), "still captured");
    }
    still_held(&plain)?;
    still_held(&tunnelled.context("it was made")?)?;
    assert!(
        fastest <= LABEL_MAX,
        "a label was in force only after {fastest:?}"
    );
    cluster.nothing_refused()
}

#[test]
fn labels_are_followed_under_cgroupfs() -> Result<()> {
    labels_are_followed(Driver::Cgroupfs)
}

#[test]
fn labels_are_followed_under_systemd() -> Result<()> {
    labels_are_followed(Driver::Systemd)
}

fn first_connect(driver: Driver) -> Result<()> {
    let mut cluster = Cluster::labelled(driver, &[])?;
    let server = cluster.pod("server-0").clone();
    let _echo = server.serve(&["echo"])?;
    let wire = cluster.world.node(0).capture(cluster.world.node(1))?;
    // of each quality of service
    for name in ["fresh-0", "fresh-1", "fresh-2"] {
        let pod = cluster.world.bind_pod(&PodPlan::new("shop", name, 0))?;
        cluster.world.publish_state()?;
        cluster.world.make_sandbox(name)?;
        let binary = place::binary("podapp")?.to_string_lossy().into_owned();
        let to = server.at(9000).to_string();
        let args = [
            "connect",
            "--to",
            &to,
            "--send",
            MARKER,
            "--timeout-ms",
            "40000",
        ];
        let mut app = pod.spawn(&[&[binary.as_str()], &args[..]].concat())?;
        cluster.world.tell_running(name);
        let (_, seen) = app.finish(FIRST_MAX)?;
        let seen = seen.context("it told nothing")?;
        ensure!(
            seen["received"] == MARKER,
            "{name}: {seen}\n{}",
            cluster.daemons[0].tail()
        );
        let line = cluster.outbound(&pod, &seen)?;
        assert_eq!(line.field("src.identity"), pod.identity(), "{}", line.text);
        cluster.captured(name)?;
    }
    let packets = wire.stop()?;
    assert!(!packets.shows(MARKER), "clear text on the wire");
    assert_eq!(packets.tcp_to(server.at(9000)), 0);
    Ok(())
}

#[test]
fn a_new_pods_first_connect_is_captured_under_cgroupfs() -> Result<()> {
    first_connect(Driver::Cgroupfs)
}

#[test]
fn a_new_pods_first_connect_is_captured_under_systemd() -> Result<()> {
    first_connect(Driver::Systemd)
}

#[test]
fn an_address_that_is_used_again_has_the_new_identity() -> Result<()> {
    let mut cluster = Cluster::labelled(Driver::Cgroupfs, &[])?;
    let (client, server) = (
        cluster.pod("client-0").clone(),
        cluster.pod("server-0").clone(),
    );
    let first = server.serve(&["echo"])?;
    let held = hold(&client, server.at(9000))?;
    cluster.authenticated(&client, &server, &[])?;

    cluster.world.delete_pod("client-0")?;
    let plan = PodPlan::new("shop", "heir-0", 0).at_host(client.host);
    let heir = cluster.world.start_pod(&plan)?;
    assert_eq!(heir.v4, client.v4);
    cluster.captured("heir-0")?;
    let wire = cluster.world.node(0).capture(cluster.world.node(1))?;
    cluster.authenticated(&heir, &server, &["--send", MARKER])?;
    let line = inbound_of(&cluster, &server, &heir)?;
    assert_eq!(line.field("src.workload"), "heir-0", "{}", line.text);
    assert!(!wire.stop()?.shows(MARKER));
    drop(held);

    // and at the other end: no tunnel to the pod that was there is used for the one that is there now
    cluster.world.delete_pod("server-0")?;
    drop(first);
    let plan = PodPlan::new("shop", "next-0", 1).at_host(server.host);
    let next = cluster.world.start_pod(&plan)?;
    assert_eq!(next.v4, server.v4);
    let _echo = next.serve(&["echo"])?;
    cluster.captured("next-0")?;
    let since = Instant::now();
    cluster.authenticated(&heir, &next, &[])?;
    assert!(
        since.elapsed() < SOON / 2,
        "only after {:?}",
        since.elapsed()
    );
    for (node, gone) in [(0, &client), (1, &server)] {
        let dump = cluster.daemons[node].config_dump()?;
        assert!(
            world::is_out(&dump, &gone.uid),
            "{} is still served",
            gone.name
        );
    }
    Ok(())
}

fn inbound_of(cluster: &Cluster, server: &Pod, client: &Pod) -> Result<AccessLine> {
    let daemon = cluster.daemon_of(server);
    daemon.wait_access("inbound line", |line| {
        line.is("inbound") && line.field("src.identity") == client.identity()
    })
}

#[test]
fn a_pod_that_ends_is_no_trouble() -> Result<()> {
    let mut cluster = Cluster::labelled(Driver::Cgroupfs, &[])?;
    let client = cluster.pod("client-0").clone();
    let drift = |cluster: &Cluster| -> Result<f64> {
        let metrics = cluster.daemons[0].metrics()?;
        Ok(metrics.sum("ztunnel_capture_drift_total", &[]))
    };
    let (before, from) = (drift(&cluster)?, cluster.daemons[0].log_len());
    // kubelet takes its sandbox down, and the API server tells of it later
    cluster.world.api().withhold(Kind::Pods, true);
    cluster.world.delete_pod("client-0")?;
    let since = Instant::now();
    while since.elapsed() < ENDING {
        let ready = cluster.daemons[0].get(15021, "/healthz/ready")?;
        ensure!(ready.status == 200, "not ready: {}", ready.body);
        std::thread::sleep(Duration::from_millis(20));
    }
    cluster.world.api().withhold(Kind::Pods, false);
    cluster.daemons[0].wait_dump(SOON, "the end of client-0", |dump| {
        world::is_out(dump, &client.uid)
    })?;
    let log = cluster.daemons[0].log_from(from);
    let errors: Vec<_> = log
        .lines()
        .filter(|line| line.contains("\terror\t"))
        .collect();
    ensure!(errors.is_empty(), "{}", errors.join("\n"));
    ensure!(drift(&cluster)? == before, "an end is no drift:\n{log}");
    Ok(())
}

#[test]
fn a_renewed_sandbox_is_captured_anew() -> Result<()> {
    let mut cluster = Cluster::labelled(Driver::Systemd, &[])?;
    let server = cluster.pod("server-0").clone();
    let _echo = server.serve(&["echo"])?;
    let before = cluster.pod("client-0").clone();
    cluster.authenticated(&before, &server, &[])?;
    let client = cluster.world.renew_sandbox("client-0")?;
    assert_eq!((&client.uid, client.v4), (&before.uid, before.v4));
    let wire = cluster.world.node(0).capture(cluster.world.node(1))?;
    let seen = echo(
        &client,
        server.at(9000),
        &["--send", MARKER, "--timeout-ms", "40000"],
    )?;
    cluster.outbound(&client, &seen)?;
    let packets = wire.stop()?;
    assert!(!packets.shows(MARKER), "clear text on the wire");
    cluster.captured("client-0")
}

#[test]
fn pods_that_are_not_for_the_mesh_are_left_alone() -> Result<()> {
    let mut layout = Layout::standard();
    layout.pods.extend([
        PodPlan::new("shop", "none-0", 0).labelled("istio.io/dataplane-mode", "none"),
        PodPlan::new("shop", "host-0", 0).on_host_network(),
        PodPlan::new("shop", "side-0", 0).annotated("sidecar.istio.io/status", "{}"),
        PodPlan::new("kube-system", "system-0", 0),
        PodPlan::new("istio-system", "ztunnel-x", 0),
        PodPlan::new("shop", "done-0", 0),
        PodPlan::new("other", "asked-0", 0).labelled("istio.io/dataplane-mode", "ambient"),
    ]);
    let mut cluster = Cluster::up(&layout, Driver::Cgroupfs, &[])?;
    for namespace in ["shop", "kube-system", "istio-system"] {
        cluster.world.label_namespace(namespace, true);
    }
    for name in ["client-0", "server-0", "done-0", "asked-0"] {
        cluster.captured(name)?;
    }
    cluster.world.end_pod("done-0", "Succeeded")?;
    let done = cluster.pod("done-0").clone();
    cluster.annotated("done-0", None)?;
    cluster.daemons[0].wait_dump(SOON, "the end of done-0", |dump| {
        world::is_out(dump, &done.uid)
    })?;

    let server = cluster.pod("server-0");
    let _echo = server.serve(&["echo"])?;
    let left = [
        "none-0",
        "host-0",
        "side-0",
        "system-0",
        "ztunnel-x",
        "outsider-0",
    ];
    for name in left {
        let pod = cluster.pod(name);
        let dump = cluster.daemon_of(pod).config_dump()?;
        assert!(world::is_out(&dump, &pod.uid), "{name} is served");
        assert_eq!(cluster.world.redirection(name), None, "{name}");
        let seen = echo(pod, server.at(9000), &[])?;
        let mine = local(&seen)?;
        // as plain text, of nobody
        let line = cluster.daemons[1]
            .wait_access("inbound line", |line| line.field("src.addr") == mine)?;
        assert_eq!(line.field("src.identity"), "", "{name}: {}", line.text);
    }
    let patched = cluster.patches(0);
    let wrong = patched.iter().find(|one| left.contains(&one.name()));
    assert!(wrong.is_none(), "{wrong:?}");
    cluster.authenticated(cluster.pod("asked-0"), server, &[])?;
    cluster.nothing_refused()
}

#[test]
fn labels_and_annotations_of_pods_are_followed() -> Result<()> {
    let mut layout = Layout::standard();
    let bypass = "ambient.istio.io/bypass-inbound-capture";
    layout
        .pods
        .push(PodPlan::new("shop", "bypass-0", 1).annotated(bypass, "true"));
    layout.pods.push(
        PodPlan::new("shop", "private-0", 0).annotated("ambient.istio.io/dns-capture", "false"),
    );
    layout.pods.push(PodPlan::new("other", "resolver-0", 1));
    let cluster = Cluster::up(&layout, Driver::Systemd, &[])?;
    cluster.world.label_namespace("shop", true);
    for name in ["client-0", "server-0", "bypass-0", "private-0"] {
        cluster.captured(name)?;
    }
    let (client, server, outsider) = (
        cluster.pod("client-0"),
        cluster.pod("server-0"),
        cluster.pod("outsider-0"),
    );
    let bypass = cluster.pod("bypass-0");
    let _servers = (server.serve(&["echo"])?, bypass.serve(&["echo"])?);
    let direct = local(&echo(outsider, bypass.at(9000), &[])?)?;
    let seen = local(&echo(outsider, server.at(9000), &[])?)?;
    let daemon = &cluster.daemons[1];
    daemon.wait_access("inbound line", |line| line.field("src.addr") == seen)?;
    let lines = daemon.access();
    assert!(
        lines.iter().all(|line| line.field("src.addr") != direct),
        "bypassed inbound"
    );

    let resolver = cluster.pod("resolver-0");
    let dns = resolver.serve(&["dns"])?;
    // who sends the question: the socket that asked, or one of the daemon's
    let steered = |pod: &Pod| -> Result<bool> {
        let seen = pod.podapp(&["dig", "--server", &resolver.at(53).to_string()])?;
        let from = |line: &str| line.starts_with("udp from") && line.contains(&pod.v4.to_string());
        let line = dns.wait_line(SOON, "a question", from)?;
        Ok(!line.ends_with(&format!(":{}", seen["port"])))
    };
    assert!(!steered(cluster.pod("private-0"))? && steered(client)?);

    // a label of the pod's own, without one of its namespace
    let mode = "istio.io/dataplane-mode";
    cluster.world.edit_pod("outsider-0", |pod| {
        pod["metadata"]["labels"][mode] = "ambient".into()
    });
    cluster.captured("outsider-0")?;
    cluster.authenticated(outsider, server, &[])?;
    cluster.world.edit_pod("outsider-0", |pod| {
        pod["metadata"]["labels"][mode] = "none".into()
    });
    cluster.released("outsider-0")?;
    // the pod's word counts more than its namespace's
    cluster.world.edit_pod("client-0", |pod| {
        pod["metadata"]["labels"][mode] = "none".into()
    });
    cluster.released("client-0")?;
    Ok(())
}

#[test]
fn a_static_pod_is_found_by_its_hash() -> Result<()> {
    let mut layout = Layout::standard();
    let hash = "0123456789abcdef0123456789abcdef";
    for (name, node) in [("static-0", 0), ("still-0", 1)] {
        let plan = PodPlan::new("shop", name, node)
            .annotated("kubernetes.io/config.hash", &format!("{hash}{node}")[1..])
            .annotated("kubernetes.io/config.mirror", hash)
            .annotated("kubernetes.io/config.source", "file");
        layout.pods.push(plan);
    }
    for driver in [Driver::Cgroupfs, Driver::Systemd] {
        let cluster = Cluster::up(&layout, driver, &[])?;
        cluster.world.label_namespace("shop", true);
        cluster.captured("static-0")?;
        cluster.captured("still-0")?;
        let server = cluster.pod("still-0");
        let _echo = server.serve(&["echo"])?;
        cluster.authenticated(cluster.pod("static-0"), server, &[])?;
    }
    Ok(())
}

/// Demands authenticated peers of a pod.
fn strict(world: &World, name: &str) -> Result<()> {
    world.edit(|model| {
        let anybody = ["{notPrincipals: [!Presence []]}"];
        let mut policy = Policy::new(
            "Deny",
            "istio-system",
            "istio_converted_static_strict",
            &anybody,
        );
        policy.scope = "WorkloadSelector".to_owned();
        model.policies.push(policy);
        if let Some(pod) = model.pod_mut(name) {
            pod.policies
                .push("istio-system/istio_converted_static_strict".to_owned());
        }
    })
}

#[test]
fn kubelet_probes_pass_under_strict_and_nobody_else_does() -> Result<()> {
    let mut cluster = Cluster::labelled(Driver::Cgroupfs, &[])?;
    strict(&cluster.world, "server-0")?;
    cluster.daemons[1].wait_dump(SOON, "the policy", |dump| {
        dump["policies"][0]["name"].is_string()
    })?;
    let server = cluster.pod("server-0").clone();
    let _servers = (server.serve(&["echo"])?, server.serve(&["http"])?);
    for round in 0..3 {
        for _ in 0..10 {
            for to in [server.at(9000), server.at6(9000)] {
                let seen = cluster.world.probe_tcp(1, to)?;
                assert_eq!(
                    seen["received"], "hello",
                    "probe of {to}, round {round}: {seen}"
                );
            }
        }
        for to in [server.at(8080), server.at6(8080)] {
            assert_eq!(
                cluster.world.probe_http(1, to)?,
                200,
                "probe of {to}, round {round}"
            );
        }
        // another process on the host, at the same address
        for to in [server.at(9000), server.at6(9000)] {
            let seen = cluster.world.host_connect(1, to)?;
            assert_ne!(seen["received"], "hello", "{seen}");
            let mine = local(&seen)?;
            let line = cluster.daemons[1]
                .wait_access("inbound line", |line| line.field("src.addr") == mine)?;
            let why = line.field("error");
            assert!(
                why.contains("explicitly denied by: istio-system/"),
                "{}",
                line.text
            );
        }
        match round {
            0 => cluster.world.restart_kubelet(1)?,
            1 => drop(cluster.daemons[1].restart_with_successor()?),
            _ => (),
        }
    }
    let outsider = cluster.pod("outsider-0");
    let seen = connect(outsider, server.at(9000), &[])?;
    assert_ne!(seen["received"], "hello", "{seen}");
    cluster
        .authenticated(cluster.pod("client-0"), &server, &[])
        .map(drop)
}

/// What a pod is said to have that its namespace does not own.
fn wrong_address(cluster: &Cluster, name: &str) {
    cluster.world.edit_pod(name, |object| {
        object["status"]["phase"] = "Running".into();
        object["status"]["podIP"] = NOBODY.into();
        object["status"]["podIPs"] = json!([{"ip": NOBODY}]);
    });
}

#[test]
fn an_enrolment_that_fails_is_told_and_recovers() -> Result<()> {
    let mut cluster = Cluster::labelled(Driver::Cgroupfs, &[])?;
    let from = cluster.world.api().record().len();
    let lost = cluster.world.bind_pod(&PodPlan::new("shop", "lost-0", 0))?;
    cluster.world.publish_state()?;
    wrong_address(&cluster, "lost-0");
    cluster.world.make_sandbox("lost-0")?;
    cluster.annotated("lost-0", Some("pending"))?;
    let record = cluster.world.api().record();
    let (status, event) = record.wait(from, 2 * IN_FORCE_MAX, "event about it", |one| {
        one.is("create", "events")
            .then(|| (one.status, one.body.clone()))
    })?;
    assert_eq!(status, 201, "{event}");
    assert_eq!(event["type"], "Warning", "{event}");
    assert_eq!(event["reason"], "EnrollmentFailed", "{event}");
    let server = cluster.pod("server-0");
    let _echo = server.serve(&["echo"])?;
    let wire = cluster.world.node(0).capture(cluster.world.node(1))?;
    let args = ["--send", MARKER, "--timeout-ms", "1500"];
    let seen = connect(&lost, server.at(9000), &args)?;
    assert_ne!(seen["received"], MARKER, "not enrolled, so held: {seen}");
    assert!(!wire.stop()?.shows(MARKER));

    cluster.world.tell_running("lost-0");
    cluster.captured("lost-0")?;
    cluster.authenticated(&lost, server, &[])?;
    soon("an event about the recovery", || {
        let events = cluster.world.api().events("lost-0");
        events.iter().any(|event| event["type"] == "Normal")
    })?;
    cluster.nothing_refused()
}

#[test]
fn a_pod_that_loses_its_place_is_pending() -> Result<()> {
    let mut cluster = Cluster::labelled(Driver::Cgroupfs, &[])?;
    let server = cluster.pod("server-0").clone();
    let _echo = server.serve(&["echo"])?;
    let wire = cluster.world.node(0).capture(cluster.world.node(1))?;
    // a new sandbox, and addresses that are not its own
    wrong_address(&cluster, "client-0");
    let client = cluster.world.renew_sandbox("client-0")?;
    let args = ["--send", MARKER, "--timeout-ms", "1500"];
    let seen = connect(&client, server.at(9000), &args)?;
    assert_ne!(seen["received"], MARKER, "not enrolled, so held: {seen}");
    cluster.annotated("client-0", Some("pending"))?;
    assert!(!wire.stop()?.shows(MARKER));
    cluster.world.tell_running("client-0");
    cluster.captured("client-0")?;
    cluster.authenticated(&client, &server, &[]).map(drop)
}

#[test]
fn restarts_leave_annotations_as_they_are() -> Result<()> {
    let mut cluster = Cluster::labelled(Driver::Systemd, &[])?;
    let (client, server) = (
        cluster.pod("client-0").clone(),
        cluster.pod("server-0").clone(),
    );
    let _echo = server.serve(&["echo"])?;
    cluster.world.label_namespace("other", true);
    cluster.captured("outsider-0")?;
    let from = cluster.world.api().record().len();
    // replaced in good order, and after a crash
    for daemon in &mut cluster.daemons {
        daemon.restart_with_successor()?;
    }
    cluster.daemons[0].kill9()?;
    cluster.daemons[0] = cluster.world.daemon(0)?;
    cluster.captured("client-0")?;
    cluster.authenticated(&client, &server, &[])?;
    assert!(
        cluster.patches(from).is_empty(),
        "{:?}",
        cluster.patches(from)
    );

    // what left the mesh while nobody was there to see it
    cluster.daemons[1].kill9()?;
    cluster.world.label_namespace("other", false);
    cluster.daemons[1] = cluster.world.daemon(1)?;
    cluster.released("outsider-0")?;
    let patches = cluster.patches(from);
    assert!(
        patches.iter().all(|one| one.name() == "outsider-0"),
        "{patches:?}"
    );
    Ok(())
}
