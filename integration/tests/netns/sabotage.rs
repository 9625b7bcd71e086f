//! The kernel's part of capture is damaged under traffic: nothing leaves in the clear, the damage is seen, told, counted and mended.
//!
//! What the kernel tells of is mended at once, all else within one interval.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use integration::{App, Capture, Daemon, Layout, Pod, netns, place, wait};
use serde_json::Value;

use crate::support::{Mesh, SOON, connect, echo, world};

/// What the load sends, and must never be seen on the wire.
const MARKER: &str = "are you there?";
/// Most time for what the kernel tells of.
const AT_ONCE: Duration = Duration::from_millis(500);
/// The interval of the daemons that look for themselves, as they are told it and as it is.
const INTERVAL: (&str, Duration) = ("2s", Duration::from_secs(2));
/// One interval, and time for a repair on a busy machine.
const IN_TIME: Duration = Duration::from_secs(4);

/// A mesh whose client sends all the time, and a record of the wire.
struct Stage {
    load: App,
    stop: PathBuf,
    wire: Capture,
    _server: App,
    mesh: Mesh,
}

impl Stage {
    /// - `env`: of the daemons
    fn set(env: &[(&str, &str)]) -> Result<Self> {
        ensure!(
            Command::new("bpftool").arg("version").output().is_ok(),
            "bpftool is missing (Debian: apt-get install bpftool)"
        );
        let world = world(&Layout::standard())?;
        let daemons = world.nodes().iter().map(|node| Daemon::start(node, env));
        let daemons = daemons.collect::<Result<Vec<_>>>()?;
        let mesh = Mesh { daemons, world };
        mesh.label("shop", true)?;
        let server = mesh.pod("server-0").serve(&["echo"])?;
        let wire = mesh.world.node(0).capture(mesh.world.node(1))?;
        let stop = mesh.world.dir().join("enough");
        let load = load(mesh.pod("client-0"), &mesh, &stop)?;
        Ok(Self {
            load,
            stop,
            wire,
            _server: server,
            mesh,
        })
    }

    fn client(&self) -> Pod {
        self.mesh.pod("client-0").clone()
    }

    fn daemon(&self) -> &Daemon {
        &self.mesh.daemons[0]
    }

    /// How often drift of a kind was counted.
    fn drift(&self, kind: &str) -> Result<f64> {
        let metrics = self.daemon().metrics()?;
        Ok(metrics.sum("ztunnel_capture_drift_total", &[("kind", kind)]))
    }

    /// Does the damage and waits until it is seen, told, counted and mended, and the client's traffic works.
    ///
    /// - `limit`: from the damage to the repair
    fn damaged(
        &self,
        what: &str,
        kind: &str,
        limit: Duration,
        damage: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let (from, before) = (self.daemon().log_len(), self.drift(kind)?);
        damage().with_context(|| format!("damage: {what}"))?;
        let since = Instant::now();
        let kind_field = format!("kind={kind}");
        self.daemon()
            .wait_log(from, &["capture drifted", &kind_field])
            .with_context(|| format!("{what}: not told"))?;
        self.daemon()
            .wait_log(from, &["capture repaired", &kind_field])
            .with_context(|| format!("{what}: not repaired"))?;
        let took = since.elapsed();
        ensure!(took <= limit, "{what}: repaired after {took:?} only");
        wait::until(SOON, &format!("{what}: counted"), || {
            Ok((self.drift(kind)? > before).then_some(()))
        })?;
        let server = self.mesh.pod("server-0");
        for to in [server.at(9000), server.at6(9000)] {
            echo(&self.client(), to, &["--send", MARKER])
                .with_context(|| format!("{what}: no traffic after the repair"))?;
        }
        Ok(())
    }

    /// Ends the load, and looks at all that went over the wire.
    fn end(mut self) -> Result<()> {
        fs::write(&self.stop, "")?;
        let (_, told) = self.load.finish(SOON * 3)?;
        ensure!(
            told.as_ref()
                .is_some_and(|told| told["ok"].as_u64() > Some(0)),
            "the load did nothing: {told:?}"
        );
        let packets = self.wire.stop()?;
        ensure!(packets.tls(15008) > 0, "no tunnel was seen");
        ensure!(!packets.shows(MARKER), "clear text left the node");
        Ok(())
    }
}

/// One connection after another from the pod to the server, until the file is there.
fn load(pod: &Pod, mesh: &Mesh, stop: &Path) -> Result<App> {
    let (binary, to) = (place::binary("podapp")?, mesh.pod("server-0").at(9000));
    pod.spawn(&[
        &binary.to_string_lossy(),
        "load",
        "--to",
        &to.to_string(),
        "--count",
        "100",
        "--timeout-ms",
        "3000",
        "--stop-file",
        &stop.to_string_lossy(),
    ])
}

/// Runs `ip` in the pod's namespace.
fn ip(pod: &Pod, line: &str) -> Result<()> {
    let words: Vec<_> = line.split(' ').collect();
    netns::show(&pod.netns_name, &words).map(drop)
}

/// Where a daemon of the node keeps its pins.
fn pins(stage: &Stage) -> Result<PathBuf> {
    let base = &stage.mesh.world.node(0).pins;
    let dirs = fs::read_dir(base).with_context(|| format!("{}", base.display()))?;
    let mut dirs: Vec<_> = dirs.flatten().map(|entry| entry.path()).collect();
    ensure!(dirs.len() == 1, "one layout of pins: {dirs:?}");
    dirs.pop().context("a directory of pins")
}

fn bpftool(args: &[&str]) -> Result<Vec<u8>> {
    let out = Command::new("bpftool").args(args).output()?;
    if !out.status.success() {
        let said = [out.stdout, out.stderr].concat();
        bail!(
            "bpftool {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&said)
        );
    }
    Ok(out.stdout)
}

/// Takes all entries out of a pinned map.
fn empty(map: &Path) -> Result<()> {
    let map = map.to_string_lossy();
    let dump = bpftool(&["-j", "map", "dump", "pinned", &map])?;
    let entries: Vec<BTreeMap<String, Value>> = serde_json::from_slice(&dump)?;
    ensure!(!entries.is_empty(), "{map} is empty already");
    for entry in entries {
        let key = entry["key"].as_array().context("a key")?;
        let key = key.iter().filter_map(Value::as_str);
        let mut args = vec!["map", "delete", "pinned", &map, "key", "hex"];
        args.extend(key.map(|byte| byte.trim_start_matches("0x")));
        bpftool(&args)?;
    }
    Ok(())
}

/// The pinned link of the client's namespace.
fn lookup(pins: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(pins)?.flatten().map(|entry| entry.path());
    let mut links = entries.filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("lookup-")
    });
    links.next().context("a link at the pod's namespace")
}

#[test]
fn rules_and_routes_are_back_at_once() -> Result<()> {
    // looking now and then would come far too late
    let stage = Stage::set(&[("CAPTURE_RECONCILE_INTERVAL", "300s")])?;
    let client = stage.client();
    for family in ["-4", "-6"] {
        for pref in ["90", "100", "101"] {
            let line = format!("{family} rule del pref {pref}");
            stage.damaged(&line, "rule", AT_ONCE, || ip(&client, &line))?;
        }
        let line = format!("{family} route flush table 139");
        stage.damaged(&line, "route", AT_ONCE, || ip(&client, &line))?;
    }
    // what others put in between is taken away
    let way = format!(
        "route add 172.31.0.0/16 via {} table 139",
        stage.mesh.world.node(0).gateway4
    );
    stage.damaged(&way, "route", AT_ONCE, || ip(&client, &way))?;
    let rule = "rule add pref 200 from 10.0.0.0/8 table 139";
    stage.damaged(rule, "rule", AT_ONCE, || ip(&client, rule))?;
    // the same rule again with a selector that lets nothing through to it
    let narrowed = "rule add pref 100 fwmark 0x53b uidrange 4242-4242 table 139";
    stage.damaged(narrowed, "rule", AT_ONCE, || {
        ip(&client, "rule del pref 100")?;
        ip(&client, narrowed)
    })?;
    stage.end()
}

#[test]
fn addresses_that_come_and_go_are_followed() -> Result<()> {
    let stage = Stage::set(&[("CAPTURE_RECONCILE_INTERVAL", "300s")])?;
    let (client, daemon) = (stage.client(), stage.daemon());
    let locals = pins(&stage)?.join("LOCALS");
    let count = || -> Result<usize> {
        let dump = bpftool(&["-j", "map", "dump", "pinned", &locals.to_string_lossy()])?;
        Ok(serde_json::from_slice::<Vec<Value>>(&dump)?.len())
    };
    let before = count()?;
    let drift = stage.drift("map")? + stage.drift("rule")? + stage.drift("route")?;
    for (line, more) in [
        ("addr add 10.244.1.99/24 dev eth0", 1),
        ("addr del 10.244.1.99/24 dev eth0", 0),
    ] {
        let from = daemon.log_len();
        ip(&client, line)?;
        wait::until(AT_ONCE * 4, line, || {
            Ok((count()? == before + more).then_some(()))
        })?;
        daemon.wait_log(from, &["addresses have changed"])?;
    }
    // a family goes, with all that belongs to it, and comes back
    let v6 = format!("addr del {}/64 dev eth0", client.v6);
    let rules = || netns::show(&client.netns_name, &["-6", "rule"]);
    ip(&client, &v6)?;
    wait::until(SOON, "no rules of IPv6", || {
        Ok((!rules()?.contains("0x53b")).then_some(()))
    })?;
    ip(
        &client,
        &format!("addr add {}/64 dev eth0 nodad", client.v6),
    )?;
    ip(
        &client,
        &format!(
            "route replace default via {}",
            stage.mesh.world.node(0).gateway6
        ),
    )?;
    wait::until(SOON, "rules of IPv6", || {
        Ok(rules()?.contains("0x53b").then_some(()))
    })?;
    echo(
        &client,
        stage.mesh.pod("server-0").at6(9000),
        &["--send", MARKER],
    )?;
    let after = stage.drift("map")? + stage.drift("rule")? + stage.drift("route")?;
    ensure!(
        after == drift,
        "a change of addresses is no drift: {drift} {after}"
    );
    stage.end()
}

#[test]
fn maps_programs_and_sysctls_are_back_within_an_interval() -> Result<()> {
    let stage = Stage::set(&[("CAPTURE_RECONCILE_INTERVAL", INTERVAL.0)])?;
    let client = stage.client();
    let pins = pins(&stage)?;
    for (map, kind) in [
        ("PODS", "map"),
        ("LOCALS", "map"),
        ("CGROUPS", "cgroup"),
        ("EXEMPT", "map"),
    ] {
        stage.damaged(map, kind, IN_TIME, || empty(&pins.join(map)))?;
    }
    for link in ["connect4", "connect6", "egress", "ingress", "setsockopt"] {
        let path = pins.join(format!("link-{link}"));
        stage.damaged(&format!("{link} detached"), "program", IN_TIME, || {
            bpftool(&["link", "detach", "pinned", &path.to_string_lossy()]).map(drop)
        })?;
        stage.damaged(&format!("{link} unpinned"), "program", IN_TIME, || {
            Ok(fs::remove_file(&path)?)
        })?;
    }
    let path = lookup(&pins)?;
    stage.damaged("sk_lookup detached", "program", IN_TIME, || {
        bpftool(&["link", "detach", "pinned", &path.to_string_lossy()]).map(drop)
    })?;
    stage.damaged("sk_lookup unpinned", "program", IN_TIME, || {
        Ok(fs::remove_file(&path)?)
    })?;
    stage.damaged("a map unpinned", "map", IN_TIME, || {
        Ok(fs::remove_file(pins.join("PODS"))?)
    })?;
    for key in [
        "net/ipv4/tcp_fwmark_accept",
        "net/ipv4/fwmark_reflect",
        "net/ipv6/fwmark_reflect",
    ] {
        stage.damaged(key, "sysctl", IN_TIME, || {
            netns::set_sysctl(&client.netns, key, "0")
        })?;
    }
    stage.end()
}

#[test]
fn sockets_that_are_gone_are_opened_anew() -> Result<()> {
    let stage = Stage::set(&[("CAPTURE_RECONCILE_INTERVAL", INTERVAL.0)])?;
    let (daemon, pins) = (stage.daemon(), pins(&stage)?);
    let (from, before) = (daemon.log_len(), stage.drift("socket")?);
    empty(&pins.join("SOCKETS"))?;
    daemon.wait_log(from, &["capture drifted", "kind=socket"])?;
    daemon.wait_log(from, &["pod enrolled", &stage.client().uid])?;
    ensure!(stage.drift("socket")? > before, "not counted");
    echo(
        &stage.client(),
        stage.mesh.pod("server-0").at(9000),
        &["--send", MARKER],
    )?;
    stage.end()
}

#[test]
fn what_cannot_be_mended_is_told_until_it_can() -> Result<()> {
    let stage = Stage::set(&[("CAPTURE_RECONCILE_INTERVAL", INTERVAL.0)])?;
    let (client, daemon) = (stage.client(), stage.daemon());
    let from = daemon.log_len();
    // no route leads to a device that is down
    ip(&client, "link set lo down")?;
    daemon.wait_log(from, &["capture not repaired", &client.uid])?;
    let ready = || daemon.get(integration::daemon::READY_PORT, "/healthz/ready");
    wait::until(SOON, "not ready, and why", || {
        let answer = ready()?;
        Ok((answer.status == 500 && answer.body.contains("capture repair")).then_some(()))
    })?;
    let dump = daemon.wait_dump(SOON, "pending", |dump| {
        dump["workloadState"][&client.uid]["state"] == "Pending"
    })?;
    let reason = &dump["workloadState"][&client.uid]["reason"];
    ensure!(
        reason.as_str().is_some_and(|text| text.contains("route")),
        "{reason}"
    );
    ip(&client, "link set lo up")?;
    wait::until(IN_TIME, "ready again", || {
        Ok((ready()?.status == 200).then_some(()))
    })?;
    daemon.wait_dump(SOON, "up again", |dump| {
        dump["workloadState"][&client.uid]["state"] == "Up"
    })?;
    echo(
        &client,
        stage.mesh.pod("server-0").at(9000),
        &["--send", MARKER],
    )?;
    stage.end()
}

#[test]
fn a_process_that_moves_elsewhere_gets_nothing_out() -> Result<()> {
    let stage = Stage::set(&[("CAPTURE_RECONCILE_INTERVAL", INTERVAL.0)])?;
    let (client, daemon) = (stage.client(), stage.daemon());
    // a namespace with an uplink of its own
    let elsewhere = format!("{}-elsewhere", stage.mesh.world.id());
    stage.mesh.world.node(0).attach(&elsewhere, 150)?;
    let mut moved = client.clone();
    moved.netns = netns::path(&elsewhere);
    let (from, before) = (daemon.log_len(), stage.drift("netns")?);
    let stop = stage.mesh.world.dir().join("enough-elsewhere");
    let stray = load(&moved, &stage.mesh, &stop)?;
    let line = daemon.wait_log(from, &["not where it was enrolled", &client.uid])?;
    ensure!(line.contains("kind=netns"), "{line}");
    ensure!(stage.drift("netns")? > before, "not counted");
    let state = |wanted: &'static str| {
        daemon.wait_dump(SOON, wanted, |dump| {
            dump["workloadState"][&client.uid]["state"] == wanted
        })
    };
    state("Pending")?;
    let seen = connect(
        &moved,
        stage.mesh.pod("server-0").at(9000),
        &["--send", MARKER, "--timeout-ms", "1500"],
    )?;
    ensure!(seen["ok"] == false, "{seen}");
    // what stays where it belongs is served all the time
    echo(
        &client,
        stage.mesh.pod("server-0").at(9000),
        &["--send", MARKER],
    )?;
    drop(stray);
    state("Up")?;
    netns::ip(None, &[format!("netns delete {elsewhere}")])?;
    stage.end()
}

#[test]
fn a_namespace_that_is_replaced_is_captured_again() -> Result<()> {
    let mut stage = Stage::set(&[("CAPTURE_RECONCILE_INTERVAL", INTERVAL.0)])?;
    let client = stage.client();
    fs::write(&stage.stop, "")?;
    stage.load.finish(SOON * 3)?;
    fs::remove_file(&stage.stop)?;
    let (daemon, node) = (stage.daemon(), stage.mesh.world.node(0));
    let (from, before) = (daemon.log_len(), stage.drift("netns")?);
    // as a runtime does that makes the sandbox anew: the same file, another namespace, the same address
    netns::ip(
        Some(&node.netns_name),
        &[format!("link del p{}", client.host)],
    )?;
    netns::ip(None, &[format!("netns delete {}", client.netns_name)])?;
    node.attach(&client.netns_name, client.host)?;
    // before anybody has looked
    let early = connect(
        &client,
        stage.mesh.pod("server-0").at(9000),
        &["--send", MARKER, "--timeout-ms", "8000"],
    )?;
    daemon.wait_log(from, &["capture drifted", "kind=netns", &client.uid])?;
    daemon.wait_log(from, &["pod enrolled", &client.uid])?;
    ensure!(stage.drift("netns")? > before, "not counted");
    ensure!(
        early["ok"] == true,
        "what began before it was seen was held, and then captured: {early}"
    );
    echo(
        &client,
        stage.mesh.pod("server-0").at(9000),
        &["--send", MARKER],
    )?;
    stage.load = load(&client, &stage.mesh, &stage.stop)?;
    stage.end()
}
