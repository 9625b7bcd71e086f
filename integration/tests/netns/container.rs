//! The daemon as the chart's pod runs it: the mounts, the capabilities, the user and the variables of the rendered chart,
//! a read-only root, the supplied filter of system calls, no new privileges, and namespaces of its own for processes, mounts
//! and cgroups. No kubelet is needed: `container/launch.py` does what a container runtime does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use integration::cni::{self, Rules, Site};
use integration::{Daemon, Driver, Layout, Node, cgroup, place};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cluster::{self, Cluster, MARKER};
use crate::support::{self, echo};

/// Debian's own Python, which has the bindings of libseccomp.
const PYTHON: &str = "/usr/bin/python3";
/// Variables of the chart that lead to a control plane; these worlds have the mesh in a file.
const ELSEWHERE: [&str; 2] = ["CA_ADDRESS", "XDS_ADDRESS"];

/// What the chart says about its one container.
struct Chart {
    container: Value,
    volumes: Vec<Value>,
}

impl Chart {
    /// From a golden file of the chart.
    fn read(golden: &str) -> Result<Self> {
        let path = top().join(format!("helm/tests/golden/{golden}.yaml"));
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let objects: Vec<Value> = serde_saphyr::from_multiple(&text)?;
        let set = objects.iter().find(|object| object["kind"] == "DaemonSet");
        let pod = &set.context("no DaemonSet")?["spec"]["template"]["spec"];
        Ok(Self {
            container: pod["containers"][0].clone(),
            volumes: pod["volumes"].as_array().context("no volumes")?.clone(),
        })
    }

    /// Variables with a value.
    fn env(&self) -> Vec<(String, String)> {
        let all = self.container["env"].as_array().into_iter().flatten();
        let pairs =
            all.filter_map(|entry| Some((entry["name"].as_str()?, entry["value"].as_str()?)));
        pairs
            .filter(|(name, _)| !ELSEWHERE.contains(name))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    /// Mounts of the host: its path, the path in the container, whether it can be written.
    fn host_paths(&self) -> Vec<(&str, &str, bool)> {
        let source = |name: &Value| {
            let volume = self.volumes.iter().find(|volume| volume["name"] == *name)?;
            volume["hostPath"]["path"].as_str()
        };
        let mounts = self.container["volumeMounts"]
            .as_array()
            .into_iter()
            .flatten();
        mounts
            .filter_map(|mount| {
                let writable = mount["readOnly"] != json!(true);
                Some((
                    source(&mount["name"])?,
                    mount["mountPath"].as_str()?,
                    writable,
                ))
            })
            .collect()
    }
}

/// How one daemon is started: the directory that holds the plan and the container's root, and the command.
struct Launch {
    command: Vec<PathBuf>,
    // the root is mounted there; removed with this value
    _dir: TempDir,
}

impl Launch {
    /// - `socket`: istio-cni's, when there is one
    fn plan(node: &Node, chart: &Chart, socket: Option<&Path>) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let root = dir.path().join("root");
        fs::create_dir(&root)?;
        let binary = place::binary("ztunnel")?;
        let mut binds = vec![
            json!([binary, binary, false]),
            // the world's files stand for the pod's Secrets and ConfigMaps
            json!([node.dir, node.dir, true]),
        ];
        for (host, inside, writable) in chart.host_paths() {
            let bind = match host {
                "/proc" => json!([host, inside, writable]),
                "/sys/fs/cgroup" => json!([node.cgroup, inside, writable]),
                "/sys/fs/bpf" => json!([node.pins.parent(), inside, writable]),
                "/var/run/ztunnel" => {
                    let socket = socket.context("the chart wants a socket of istio-cni")?;
                    json!([socket, format!("{inside}/ztunnel.sock"), writable])
                }
                other => anyhow::bail!("the chart mounts {other}, which the test does not know"),
            };
            binds.push(bind);
        }
        let security = &chart.container["securityContext"];
        ensure!(security["runAsUser"] == json!(0) && security["privileged"] == json!(false));
        ensure!(security["readOnlyRootFilesystem"] == json!(true));
        let plan = json!({
            "root": root,
            "binds": binds,
            "capabilities": security["capabilities"]["add"],
            "group": security["runAsGroup"],
            "seccomp": top().join("helm/ztunnel/files/seccomp.json"),
            "cgroups": place::cgroup_root()?,
        });
        let file = dir.path().join("plan.json");
        fs::write(&file, plan.to_string())?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/netns/container/launch.py");
        Ok(Self {
            command: vec![PathBuf::from(PYTHON), script, file],
            _dir: dir,
        })
    }

    /// Starts the daemon and waits until it is ready and confined as planned.
    fn start(&self, node: &Node, env: Vec<(String, String)>, capabilities: u64) -> Result<Daemon> {
        let mut daemon = Daemon::launch_through(node, env, None, &self.command)?;
        daemon.wait_ready()?;
        confined(&daemon, capabilities)?;
        Ok(daemon)
    }
}

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// `kubectl exec … ztunnel check`: a second process in the container finds nothing wrong.
fn check(daemon: &Daemon, capabilities: &str) -> Result<String> {
    let pids = fs::read_to_string(daemon.cgroup().join("cgroup.procs"))?;
    let pid = pids.split_whitespace().next().context("no process")?;
    let environ = fs::read(format!("/proc/{pid}/environ"))?;
    let env = environ.split(|byte| *byte == 0).filter_map(|entry| {
        let text = std::str::from_utf8(entry).ok()?;
        text.split_once('=')
    });
    let netns = format!("--net={}", daemon.netns().display());
    let bounding = format!("-all,{capabilities}");
    // into the container's cgroup where that can be reached from within; who starts it stays outside
    let join = "for list in /host/sys/fs/cgroup/ztunnel-*/cgroup.procs; do \
                [ \"$(stat -c %i \"${list%/*}\")\" = \"$(stat -c %i /sys/fs/cgroup)\" ] && echo 0 > \"$list\"; done; exec \"$@\"";
    let out = Command::new("nsenter")
        .args([&netns, "--target", pid, "--mount", "--pid", "--cgroup"])
        .args(["--ipc", "--uts", "--", "sh", "-c", join, "sh"])
        .args(["setpriv", "--regid", "1337", "--clear-groups"])
        .args(["--no-new-privs", "--inh-caps", "-all"])
        .args(["--bounding-set", &bounding])
        .arg(place::binary("ztunnel")?)
        .args(["check", "-o", "json"])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs(env)
        .output()?;
    let text = String::from_utf8_lossy(&out.stdout);
    ensure!(
        out.status.success(),
        "{}: {text}{}",
        out.status,
        String::from_utf8_lossy(&out.stderr)
    );
    Ok(text.into_owned())
}

/// The daemon's process runs under a filter, without new privileges, with exactly these capabilities, and alone.
fn confined(daemon: &Daemon, capabilities: u64) -> Result<()> {
    let pids = fs::read_to_string(daemon.cgroup().join("cgroup.procs"))?;
    let [pid] = pids.split_whitespace().collect::<Vec<_>>()[..] else {
        anyhow::bail!("processes in the container's cgroup: {pids:?}");
    };
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        let lines = status.lines().filter_map(|line| line.split_once(':'));
        lines
            .filter(|(key, _)| *key == name)
            .map(|(_, value)| value.trim().to_owned())
            .next()
            .unwrap_or_default()
    };
    ensure!(
        field("Seccomp") == "2" && field("NoNewPrivs") == "1",
        "{status}"
    );
    ensure!(field("Gid").starts_with("1337"), "{status}");
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        ensure!(
            u64::from_str_radix(&field(set), 16)? == capabilities,
            "{set}: {status}"
        );
    }
    Ok(())
}

/// NET_ADMIN, NET_RAW, SYS_ADMIN (capability.h).
const THREE: u64 = 1 << 12 | 1 << 13 | 1 << 21;
/// The same and SYS_PTRACE.
const FOUR: u64 = THREE | 1 << 19;

/// Variables for a daemon that captures by itself: the chart's, and what the world needs besides.
fn env_of(node: &Node, chart: &Chart) -> Result<Vec<(String, String)>> {
    let mut env = chart.env();
    // the chart leaves both to the daemon, which finds the node's pods and bpffs where they are mounted
    for name in ["CAPTURE_CGROUP", "CAPTURE_PIN_PATH"] {
        env.push((name.to_owned(), String::new()));
    }
    // several nodes of tests have a kubelet on this machine, so that its name alone does not tell
    let kubelet = node.env.iter().find(|(name, _)| name == "KUBELET_CGROUP");
    if let Some((name, path)) = kubelet {
        let inside = Path::new(path).strip_prefix(&node.cgroup)?;
        let path = Path::new("/host/sys/fs/cgroup").join(inside);
        env.push((name.clone(), path.to_string_lossy().into_owned()));
    }
    Ok(env)
}

fn with_the_api_server(driver: Driver) -> Result<()> {
    let chart = Chart::read("kubernetes")?;
    let world = cluster::bare(&Layout::standard(), driver)?;
    let mut daemons = Vec::new();
    let mut launches = Vec::new();
    for node in world.nodes() {
        if driver == Driver::Systemd {
            // the world has both directories, a node with systemd only this driver's
            cgroup::remove(&node.cgroup.join("kubepods"))?;
        }
        let launch = Launch::plan(node, &chart, None)?;
        daemons.push(launch.start(node, env_of(node, &chart)?, FOUR)?);
        launches.push(launch);
    }
    let mut cluster = Cluster { daemons, world };
    cluster.world.label_namespace("shop", true);
    cluster.captured("client-0")?;
    cluster.captured("server-0")?;
    let _echo = cluster.pod("server-0").serve(&["echo"])?;
    let wire = cluster.world.node(0).capture(cluster.world.node(1))?;
    let (client, server) = (
        cluster.pod("client-0").clone(),
        cluster.pod("server-0").clone(),
    );
    cluster.authenticated(&client, &server, &["--send", MARKER])?;

    let said = check(
        &cluster.daemons[0],
        "+net_admin,+net_raw,+sys_admin,+sys_ptrace",
    )?;
    ensure!(said.contains("own, with 2 processes"), "{said}");

    // a rolling update: the new pod beside the old one, then the old one ends
    let node = cluster.world.node(0).clone();
    let next = launches[0].start(&node, env_of(&node, &chart)?, FOUR)?;
    let mut old = std::mem::replace(&mut cluster.daemons[0], next);
    cluster.captured("client-0")?;
    ensure!(old.terminate()?.status.success(), "{}", old.tail());
    cluster.authenticated(&client, &server, &["--send", MARKER])?;

    let packets = wire.stop()?;
    ensure!(!packets.shows(MARKER), "clear text on the wire");
    cluster.world.label_namespace("shop", false);
    cluster.released("client-0")?;
    cluster.nothing_refused()
}

#[test]
fn the_charts_pod_captures_by_itself_under_cgroupfs() -> Result<()> {
    with_the_api_server(Driver::Cgroupfs)
}

#[test]
fn the_charts_pod_captures_by_itself_under_systemd() -> Result<()> {
    with_the_api_server(Driver::Systemd)
}

#[test]
fn the_charts_pod_serves_istio_cni() -> Result<()> {
    let chart = Chart::read("default")?;
    let world = support::world(&Layout::standard())?;
    let mut daemons = Vec::new();
    let mut sites = Vec::new();
    for node in world.nodes() {
        let site = Site::raise(node)?;
        let socket = cni::socket(node);
        let launch = Launch::plan(node, &chart, Some(&socket))?;
        let mut env = chart.env();
        // these are the daemon's defaults, so the chart does not set them
        for name in ["ENROLL", "CAPTURE", "INPOD_UDS"] {
            env.push((name.to_owned(), String::new()));
        }
        daemons.push(launch.start(&site.node, env, THREE)?);
        sites.push(site);
    }
    for pod in world.pods().iter().filter(|pod| pod.namespace == "shop") {
        let tail = || daemons[pod.node].tail();
        sites[pod.node]
            .enroll(pod, &Rules::default())
            .with_context(tail)?;
    }
    world.model().label("shop", true);
    world.publish_state()?;
    world.settled_state(&daemons.iter().collect::<Vec<_>>())?;
    let (client, server) = (world.pod("client-0"), world.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    let wire = world.node(0).capture(world.node(1))?;
    let seen = echo(client, server.at(9000), &["--send", MARKER])?;
    let from = support::local(&seen)?;
    let line = daemons[client.node].wait_access("outbound line", |line| {
        line.is("outbound") && line.field("src.addr") == from
    })?;
    ensure!(
        line.field("dst.identity") == server.identity(),
        "{}",
        line.text
    );
    check(&daemons[0], "+net_admin,+net_raw,+sys_admin")?;
    let packets = wire.stop()?;
    ensure!(
        !packets.shows(MARKER) && packets.tls(15008) > 0,
        "clear text on the wire"
    );
    Ok(())
}
