//! Files that are wrong: the log names file, line, field and value, and the last good state stays in force.

use std::fs;

use anyhow::Result;
use integration::{Daemon, Layout, Node, Pod, Policy, model};

use crate::support::{Mesh, SOON, connect, echo, world};

#[test]
fn a_wrong_enrolment_file_changes_nothing_and_is_named() -> Result<()> {
    let mesh = Mesh::up(&Layout::standard())?;
    let (client, server) = (mesh.pod("client-0"), mesh.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    let daemon = &mesh.daemons[0];
    let file = &mesh.world.node(0).enrolment;
    let good = fs::read_to_string(file)?;
    let line = |text: &str, part: &str| {
        text.lines()
            .position(|line| line.contains(part))
            .map_or(0, |n| n + 1)
    };
    let cases = [
        (
            good.replace("hostNetwork: false", "hostNetwork: maybe"),
            "hostNetwork",
            "maybe",
        ),
        (
            good.replace("phase: Running", "phase: Walking"),
            "phase",
            "Walking",
        ),
        (good.replace("  netns:", "  netnz:"), "netnz", "netnz"),
        (
            good.replace("serviceAccount: client", "serviceAccount: [1, 2]"),
            "serviceAccount",
            "[1, 2]",
        ),
    ];
    for (text, field, value) in cases {
        let from = daemon.log_len();
        model::replace(file, &text)?;
        let said = daemon.wait_log(from, &["node1-pods.yaml", field])?;
        assert!(
            said.contains(&line(&text, value).to_string()),
            "no line number: {said}"
        );
        if !value.starts_with('[') {
            assert!(said.contains(value), "no value: {said}");
        }
        echo(client, server.at(9000), &[])?;
    }
    for text in ["{", "pods:\n  - [", "\u{0}\u{1}\u{2}", "pods: 7"] {
        let from = daemon.log_len();
        model::replace(file, text)?;
        daemon.wait_log(from, &["node1-pods.yaml"])?;
        echo(client, server.at(9000), &[])?;
    }
    fs::remove_file(file)?;
    echo(client, server.at(9000), &[])?;
    mesh.label("shop", false)?;
    mesh.label("shop", true)?;
    echo(client, server.at(9000), &[])?;
    Ok(())
}

#[test]
fn a_wrong_state_file_changes_nothing_and_is_named() -> Result<()> {
    let mesh = Mesh::up(&Layout::standard())?;
    let (client, server) = (mesh.pod("client-0"), mesh.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    mesh.edit(|model| {
        model.policies.push(Policy::new(
            "Deny",
            "shop",
            "no-web",
            &["{destinationPorts: [8080]}"],
        ))
    })?;
    let file = mesh.world.dir().join("mesh.yaml");
    let good = fs::read_to_string(&file)?;
    let cases = [
        (
            good.replacen("protocol: HBONE", "protocol: HBONEE", 1),
            "protocol",
            "HBONEE",
        ),
        (
            good.replace("action: Deny", "action: Maybe"),
            "action",
            "Maybe",
        ),
        (
            good.replacen(
                "workloadIps: [\"10.244.1.10\"",
                "workloadIps: [\"10.244.1.999\"",
                1,
            ),
            "workloadIps",
            "10.244.1.999",
        ),
        (
            good.replace("destinationPorts: [8080]", "destinationPorts: [88888]"),
            "destinationPorts",
            "88888",
        ),
        (
            good.replace("  scope: Namespace", "  scoop: Namespace"),
            "scoop",
            "scoop",
        ),
    ];
    for (text, field, value) in cases {
        assert_ne!(text, good, "{field}: the case changes nothing");
        let from = mesh.daemons[1].log_len();
        model::replace(&file, &text)?;
        let said = mesh.daemons[1].wait_log(from, &["mesh.yaml", field, value])?;
        let line = text
            .lines()
            .position(|line| line.contains(value))
            .map_or(0, |n| n + 1);
        assert!(
            said.contains(&line.to_string()),
            "line {line} is not named: {said}"
        );
        echo(client, server.at(9000), &[])?;
        let seen = connect(client, server.at(8080), &[])?;
        assert_ne!(seen["ok"], true, "the policy is still in force: {seen}");
    }
    mesh.edit(|model| model.policies.clear())?;
    echo(client, server.at(9000), &[])?;
    Ok(())
}

#[test]
fn a_pod_whose_namespace_vanished_is_named_and_harms_no_other() -> Result<()> {
    let mesh = Mesh::up(&Layout::standard())?;
    let (client, server, outsider) = (
        mesh.pod("client-0"),
        mesh.pod("server-0"),
        mesh.pod("outsider-0"),
    );
    let _echo = server.serve(&["echo"])?;
    let from = mesh.daemons[1].log_len();
    let gone = outsider
        .netns
        .with_file_name("zt-there-is-no-such-namespace");
    mesh.world.edit(|model| {
        if let Some(pod) = model.pod_mut("outsider-0") {
            pod.netns.clone_from(&gone);
            pod.labels
                .insert(model::MODE_LABEL.to_owned(), "ambient".to_owned());
        }
    })?;
    let said = mesh.daemons[1].wait_log(from, &["zt-there-is-no-such-namespace"])?;
    assert!(
        said.contains("outsider-0") || said.contains(&outsider.uid),
        "the pod is not named: {said}"
    );
    echo(client, server.at(9000), &[])?;
    mesh.daemons[1].wait_dump(SOON, "the pod pending", |dump| {
        dump["workloadState"][&outsider.uid]["state"] == "Pending"
    })?;
    // it comes up by itself once the namespace is there
    mesh.world.edit(|model| {
        if let Some(pod) = model.pod_mut("outsider-0") {
            pod.netns.clone_from(&outsider.netns);
        }
    })?;
    mesh.world.settled_enrolment(&mesh.all())?;
    // and one that is taken away under the daemon's feet leaves the others alone
    integration::netns::ip(None, &[format!("netns delete {}", outsider.netns_name)])?;
    mesh.world
        .edit(|model| model.pods.retain(|pod| pod.name != "outsider-0"))?;
    mesh.daemons[1].wait_dump(SOON, "the pod gone", |dump| {
        integration::world::is_out(dump, &outsider.uid)
    })?;
    echo(client, server.at(9000), &[])?;
    Ok(())
}

#[test]
fn a_daemon_that_cannot_start_says_why() -> Result<()> {
    let world = world(&Layout::standard())?;
    let node = world.node(0);
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str]);
    let cases: [Case<'_>; 5] = [
        (&[("SECRET_TTL", "soon")], &["SECRET_TTL", "soon"]),
        (&[("ENROLL_FILE", "")], &["ENROLL_FILE"]),
        (
            &[("CAPTURE_EXEMPT_SOURCES", "10.0.0.0/99")],
            &["CAPTURE_EXEMPT_SOURCES", "10.0.0.0/99"],
        ),
        (
            &[("CAPTURE_CGROUP", "/sys/there-is-no-such-group")],
            &["/sys/there-is-no-such-group"],
        ),
        (
            &[("CAPTURE_PIN_PATH", "/run/not-a-bpffs")],
            &["/run/not-a-bpffs"],
        ),
    ];
    for (env, parts) in cases {
        let mut daemon = Daemon::launch(node, env)?;
        let exit = daemon.wait_exit(SOON)?;
        assert!(!exit.status.success(), "{env:?}");
        let log = daemon.log();
        assert!(
            parts.iter().all(|part| log.contains(part)),
            "{env:?}: {log}"
        );
        assert!(!log.contains("panicked"), "{log}");
    }
    Ok(())
}

#[test]
fn a_daemon_in_a_pods_cgroup_moves_out_or_refuses() -> Result<()> {
    let world = world(&Layout::standard())?;
    let (node, pod) = (world.node(0), world.pod("client-0"));
    for pod_is_empty in [true, false] {
        let _app = (!pod_is_empty).then(|| pod.serve(&["echo"])).transpose()?;
        moves_out_or_refuses(node, pod)?;
    }
    Ok(())
}

fn moves_out_or_refuses(node: &Node, pod: &Pod) -> Result<()> {
    let mut daemon = Daemon::launch_in(node, Vec::new(), Some(&pod.cgroup))?;
    match daemon.wait_ready() {
        Ok(()) => {
            let pids = integration::cgroup::processes(&pod.cgroup);
            assert!(
                !pids.contains(&daemon.pid()),
                "it shares the cgroup of a pod"
            );
        }
        Err(error) => assert!(format!("{error:#}").contains("cgroup"), "{error:#}"),
    }
    Ok(())
}
