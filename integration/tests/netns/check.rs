//! `ztunnel check`: what it says of a machine that is fine, of each thing that is not, and of a daemon.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::{Daemon, Driver, Layout, Node, World, cgroup, daemon, model, place, pod};
use serde_json::Value;

use crate::cluster::bare;
use crate::support::{SOON, governed, world};

/// Most time for the whole command, also where a server does not answer.
const CHECK_MAX: Duration = Duration::from_secs(15);
/// A token for istiod that expired in 2001; its signature is none.
const EXPIRED: &str =
    "eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOlsiaXN0aW8tY2EiXSwiZXhwIjoxMDAwMDAwMDAwfQ.c2ln";

/// What the command said.
struct Said {
    status: i32,
    json: Value,
}

impl Said {
    /// Status and detail of a finding.
    fn of(&self, group: &str, name: &str) -> Result<(&str, &str)> {
        let text = |value: &'static str| move |f: &'_ Value| f[value].as_str().map(str::to_owned);
        let groups = self.json["groups"].as_array().context("no groups")?;
        let found = groups
            .iter()
            .filter(|g| g["name"] == group)
            .flat_map(|g| g["findings"].as_array().into_iter().flatten())
            .find(|f| text("name")(f).as_deref() == Some(name));
        let found = found.with_context(|| format!("no {group}/{name} in {:#}", self.json))?;
        let status = found["status"].as_str().context("no status")?;
        Ok((status, found["detail"].as_str().context("no detail")?))
    }

    /// A finding failed, its detail says this, and there is a word on what to do.
    fn failed(&self, group: &str, name: &str, says: &str) -> Result<()> {
        let (status, detail) = self.of(group, name)?;
        ensure!(
            status == "failed" && detail.contains(says),
            "{group}/{name} is {status}: {detail}"
        );
        ensure!(
            self.status == 1 && self.json["ok"] == false,
            "{}",
            self.status
        );
        Ok(())
    }

    /// Groups and findings with a status.
    fn with(&self, status: &str) -> Vec<String> {
        let groups = self.json["groups"].as_array().into_iter().flatten();
        groups
            .flat_map(|group| {
                let findings = group["findings"].as_array().into_iter().flatten();
                findings.map(move |finding| (group, finding))
            })
            .filter(|(_, finding)| finding["status"] == status)
            .map(|(group, finding)| format!("{}: {finding}", group["name"]))
            .collect()
    }

    /// Nothing failed.
    fn fine(&self) -> Result<()> {
        let failed = self.with("failed");
        ensure!(
            self.status == 0 && self.json["ok"] == true && failed.is_empty(),
            "status {}: {failed:#?}",
            self.status
        );
        Ok(())
    }
}

/// Runs the command on a node as a daemon would run there, with further variables and arguments.
fn run(node: &Node, netns: &Path, env: &[(&str, &str)], words: &[&str]) -> Result<Output> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let home = node.cgroup.join(format!("check-{count}"));
    cgroup::make(&home)?;
    let (program, arguments) = words.split_first().context("no program")?;
    let mut command: Command = pod::enter(&home, netns, program);
    let env: Vec<_> = env
        .iter()
        .map(|&(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    command
        .args(arguments)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs(daemon::settings(node, &env));
    let since = Instant::now();
    let output = command.output().context("run ztunnel check")?;
    ensure!(since.elapsed() < CHECK_MAX, "took {:?}", since.elapsed());
    let left: Vec<PathBuf> = fs::read_dir(&home)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect();
    ensure!(left.is_empty(), "cgroups stay: {left:?}");
    cgroup::remove(&home)?;
    Ok(output)
}

fn said(output: &Output) -> Result<Said> {
    let json = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{}", String::from_utf8_lossy(&output.stderr)))?;
    let status = output.status.code().context("killed")?;
    Ok(Said { status, json })
}

fn binary() -> Result<String> {
    Ok(place::binary("ztunnel")?.to_string_lossy().into_owned())
}

/// In the node's own namespace, where no daemon is.
fn check(node: &Node, env: &[(&str, &str)]) -> Result<Said> {
    let binary = binary()?;
    said(&run(
        node,
        &node.netns,
        env,
        &[&binary, "check", "-o", "json"],
    )?)
}

/// In a daemon's namespace.
fn check_beside(daemon: &Daemon) -> Result<Said> {
    let (node, binary) = (daemon.node(), binary()?);
    said(&run(
        node,
        daemon.netns(),
        &[],
        &[&binary, "check", "-o", "json"],
    )?)
}

/// Directories beside the pins that tries have left.
fn left_of_tries(node: &Node) -> usize {
    let beside = node.pins.parent().and_then(|dir| fs::read_dir(dir).ok());
    let names = beside
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.file_name());
    names
        .filter(|name| name.to_string_lossy().contains("check"))
        .count()
}

#[test]
fn a_machine_that_is_fine_is_told_so() -> Result<()> {
    let world = world(&Layout::standard())?;
    let node = world.node(0);
    let found = check(node, &[])?;
    found.fine()?;
    for name in [
        "kernel programs",
        "cgroup connect programs",
        "sk_lookup program",
        "links to a cgroup",
        "links to a network namespace",
        "policy routing",
        "sysctls of a pod",
        "the daemon's programs",
    ] {
        assert_eq!(found.of("kernel", name)?.0, "ok", "{name}");
    }
    assert_eq!(found.of("cgroup", "capture cgroup")?.0, "ok");
    assert_eq!(found.of("enrolment", "places of the pods")?.0, "ok");
    assert_eq!(found.of("daemon", "daemon")?.0, "ok");
    assert_eq!(left_of_tries(node), 0);
    let external = check(node, &[("CAPTURE", "external")])?;
    external.fine()?;
    assert_eq!(external.of("kernel", "sockets in a pod")?.0, "ok");
    assert!(external.of("pins", "pin directory").is_err());
    Ok(())
}

#[test]
fn lines_for_people_and_bad_usage() -> Result<()> {
    let world = world(&Layout::standard())?;
    let (node, binary) = (world.node(0), binary()?);
    let shown = run(
        node,
        &node.netns,
        &[],
        &[&binary, "check", "--only", "privileges"],
    )?;
    let text = String::from_utf8(shown.stdout)?;
    assert!(shown.status.success(), "{text}");
    assert!(text.starts_with("privileges\n  ✓ capabilities"), "{text}");
    assert!(
        !text.contains("\x1b[") && !text.contains("kernel\n"),
        "{text}"
    );
    let bad = run(
        node,
        &node.netns,
        &[],
        &[&binary, "check", "--only", "rubbish"],
    )?;
    assert_eq!(bad.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&bad.stderr).contains("control-plane"));
    let settings = check(node, &[("HOLD_POLICY", "maybe")])?;
    settings.failed("settings", "settings", "HOLD_POLICY")
}

/// The kernel's id of the program that a node's daemon has at `connect4`.
fn program(node: &Node) -> Result<String> {
    let versions = fs::read_dir(&node.pins)?.flatten();
    let pin = versions
        .map(|version| version.path().join("link-connect4"))
        .find(|pin| pin.exists())
        .context("no pinned link")?;
    let output = Command::new("bpftool")
        .args(["-j", "link", "show", "pinned"])
        .arg(&pin)
        .output()
        .context("bpftool")?;
    let shown: Value = serde_json::from_slice(&output.stdout)?;
    let one = shown
        .as_array()
        .and_then(|all| all.first())
        .unwrap_or(&shown);
    let id = one["prog_id"].as_u64().with_context(|| shown.to_string())?;
    Ok(id.to_string())
}

fn bpftool(action: &str, cgroup: &Path, id: &str, more: &[&str]) -> Result<()> {
    let output = Command::new("bpftool")
        .args(["cgroup", action])
        .arg(cgroup)
        .args(["connect4", "id", id])
        .args(more)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "bpftool cgroup {action}: {said}");
    Ok(())
}

#[test]
fn programs_of_others_that_shut_capture_out_are_named() -> Result<()> {
    let world = world(&Layout::standard())?;
    let node = world.node(0);
    // any program of that kind does, and the other node has one
    let _other = world.daemon(1)?;
    let id = program(world.node(1))?;
    let (own, above) = (node.kubepods.clone(), node.cgroup.clone());
    for (place, more, status) in [
        (&own, &[][..], "failed"),
        (&own, &["override"], "failed"),
        (&above, &[], "failed"),
        (&above, &["override"], "warning"),
        (&above, &["multi"], "ok"),
        (&own, &["multi"], "ok"),
    ] {
        bpftool("attach", place, &id, more)?;
        let found = check(node, &[]);
        // what the kernel itself thinks of one more program there; twice the same is another matter
        let tried = (place != &own || more != ["multi"])
            .then(|| bpftool("attach", &own, &id, &["multi"]).is_ok());
        if tried == Some(true) {
            bpftool("detach", &own, &id, &[])?;
        }
        bpftool("detach", place, &id, &[])?;
        assert_ne!(
            tried,
            Some(status == "failed"),
            "{} {more:?}",
            place.display()
        );
        let found = found?;
        let (is, detail) = found.of("cgroup", "exclusive programs of others")?;
        assert_eq!(is, status, "{} {more:?}: {detail}", place.display());
        let told = found.of("cgroup", "programs beside capture")?.1;
        let named = if status == "ok" { told } else { detail };
        let expected = format!("connect4 connect4 (id {id}) at {}", place.display());
        assert!(named.contains(&expected), "{named}");
        if status == "failed" {
            found.failed("cgroup", "exclusive programs of others", &id)?;
        } else {
            found.fine()?;
        }
    }
    // a daemon that starts says the same
    bpftool("attach", &own, &id, &[])?;
    let mut refused = Daemon::launch(node, &[])?;
    let exit = refused.wait_exit(SOON);
    bpftool("detach", &own, &id, &[])?;
    ensure!(!exit?.status.success(), "it ended well");
    let log = refused.log();
    for word in [
        "exclusive programs of others",
        &format!("(id {id})"),
        "BPF_F_ALLOW_MULTI",
    ] {
        ensure!(log.contains(word), "{word} is not in {log}");
    }
    Ok(())
}

#[test]
fn missing_capabilities_are_named() -> Result<()> {
    let world = world(&Layout::standard())?;
    let (node, binary) = (world.node(0), binary()?);
    let less = ["setpriv", "--bounding-set", "-sys_admin,-net_raw", &binary];
    let words = |more: &[&'static str]| -> Vec<String> {
        less.iter()
            .chain(more)
            .map(|word| (*word).to_owned())
            .collect()
    };
    let command = words(&["check", "-o", "json"]);
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let found = said(&run(node, &node.netns, &[], &command)?)?;
    found.failed("privileges", "capabilities", "missing SYS_ADMIN, NET_RAW")?;
    found.failed("kernel", "network namespaces", "not permitted")
}

#[test]
fn pins_that_cannot_be_made_are_told() -> Result<()> {
    let world = world(&Layout::standard())?;
    let elsewhere = world.dir().join("no-bpffs");
    let elsewhere = elsewhere.to_string_lossy();
    let found = check(world.node(0), &[("CAPTURE_PIN_PATH", &elsewhere)])?;
    found.failed("pins", "pin directory", "is not on a bpf file system")?;
    let found = check(
        world.node(0),
        &[("CAPTURE_CGROUP", "/sys/fs/cgroup/nowhere-at-all")],
    )?;
    found.failed("cgroup", "capture cgroup", "/sys/fs/cgroup/nowhere-at-all")
}

#[test]
fn the_control_plane_is_looked_for() -> Result<()> {
    let mut world = governed(&Layout::standard())?;
    let token = world.dir().join("expired-token");
    fs::write(&token, EXPIRED)?;
    let token = token.to_string_lossy().into_owned();
    let found = check(world.node(0), &[])?;
    found.fine()?;
    for name in ["mesh state", "certificates"] {
        let (status, detail) = found.of("control-plane", name)?;
        ensure!(
            status == "ok" && detail.contains("its certificate holds for"),
            "{detail}"
        );
    }
    let found = check(world.node(0), &[("AUTH_TOKEN", &token)])?;
    found.failed("control-plane", "token", "expired")?;
    let strange = check(world.node(0), &[("ALT_XDS_HOSTNAME", "")])?;
    strange.fine()?;
    world.istiod_mut().stop();
    let found = check(world.node(0), &[])?;
    found.failed("control-plane", "mesh state", "onnect")
}

#[test]
fn a_daemon_that_runs_is_asked() -> Result<()> {
    let world = world(&Layout::standard())?;
    let daemon = world.daemon(0)?;
    world.label("shop", true, &[&daemon])?;
    let found = check_beside(&daemon)?;
    found.fine()?;
    assert_eq!(found.of("daemon", "ready")?, ("ok", "yes"));
    assert_eq!(found.of("daemon", "drift repaired")?, ("ok", "none"));
    let (_, pods) = found.of("daemon", "pods")?;
    assert!(pods.contains("Up"), "{pods}");
    assert!(
        found
            .of("network", "ports of the endpoints")?
            .1
            .contains("taken by the daemon")
    );
    // one that cannot be enrolled
    let client = world.pod("client-0").clone();
    let gone = client.netns.with_file_name("zt-there-is-no-such-namespace");
    world.edit(|model| {
        if let Some(pod) = model.pod_mut("client-0") {
            pod.netns = gone;
            pod.labels
                .insert(model::MODE_LABEL.to_owned(), "ambient".to_owned());
        }
    })?;
    daemon.wait_dump(SOON, "the pod pending", |dump| {
        dump["workloadState"][&client.uid]["state"] == "Pending"
    })?;
    let found = check_beside(&daemon)?;
    found.failed("daemon", "pending pods", "shop/client-0")?;
    found.failed("daemon", "ready", "workload proxy manager")?;
    found.failed(
        "enrolment",
        "places of the pods",
        "zt-there-is-no-such-namespace",
    )
}

#[test]
fn istio_cnis_socket_is_looked_for_and_not_dialled() -> Result<()> {
    let world = world(&Layout::standard())?;
    let socket = world.dir().join("agent.sock");
    let text = socket.to_string_lossy().into_owned();
    let env = [
        ("ENROLL", "zds"),
        ("ENROLL_FILE", ""),
        ("CAPTURE", ""),
        ("INPOD_UDS", &*text),
    ];
    let found = check(world.node(0), &env)?;
    found.failed("enrolment", "istio-cni's socket", "agent.sock")?;
    let listener = std::os::unix::net::UnixListener::bind(&socket)?;
    listener.set_nonblocking(true)?;
    let found = check(world.node(0), &env)?;
    assert_eq!(found.of("enrolment", "istio-cni's socket")?.0, "ok");
    assert!(listener.accept().is_err(), "it was dialled");
    Ok(())
}

#[test]
fn the_api_server_is_asked_for_permissions() -> Result<()> {
    let world: World = bare(&Layout::standard(), Driver::Systemd)?;
    let found = check(world.node(0), &[])?;
    found.fine()?;
    let (status, detail) = found.of("enrolment", "permissions")?;
    assert!(status == "ok" && detail.contains("patch pods"), "{detail}");
    assert!(
        found
            .of("enrolment", "Kubernetes API")?
            .1
            .contains("v1.33.1")
    );
    let (_, how) = found.of("cgroup", "kubelet's cgroup")?;
    assert!(how.contains("kubelet"), "{how}");
    let elsewhere = world.dir().join("no-kubeconfig");
    let elsewhere = elsewhere.to_string_lossy();
    let found = check(world.node(0), &[("KUBECONFIG", &elsewhere)])?;
    found.failed("enrolment", "Kubernetes API", "no-kubeconfig")
}
