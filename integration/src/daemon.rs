//! One running daemon: its own namespace and cgroup on its node, its log, its endpoints.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::access::AccessLine;
use crate::http::{self, Answer};
use crate::metrics::Metrics;
use crate::pod::Pod;
use crate::wait::until;
use crate::world::Node;
use crate::{cgroup, netns, place, pod};

/// Most time for a daemon to get ready.
const READY_MAX: Duration = Duration::from_secs(30);
/// Most time for a daemon to end after SIGTERM: its own deadline and some.
const END_MAX: Duration = Duration::from_secs(30);
/// Most time for a line to reach the log.
pub const LOG_MAX: Duration = Duration::from_secs(10);
/// How long an ending daemon lets open connections run, in the form of its own setting.
const DRAIN: &str = "5s";
/// Lines of a log that an error shows.
const TAIL_LINES: usize = 30;

/// Admin port, on loopback.
pub const ADMIN_PORT: u16 = 15000;
/// Metrics port.
pub const METRICS_PORT: u16 = 15020;
/// Readiness port.
pub const READY_PORT: u16 = 15021;

/// How a daemon ended.
#[derive(Debug, Clone, Copy)]
pub struct Exit {
    /// its status
    pub status: ExitStatus,
    /// time from the signal on
    pub took: Duration,
}

/// A running daemon. Dropping it kills it and removes its namespace and cgroup.
pub struct Daemon {
    child: Child,
    node: Node,
    env: Vec<(String, String)>,
    netns_name: String,
    netns: PathBuf,
    cgroup: PathBuf,
    log: PathBuf,
    kept: bool,
    /// the namespace is another's, and so is what the cgroup lies in
    lodges: bool,
}

impl Daemon {
    /// Starts a daemon on the node and waits until it says that it is ready.
    ///
    /// - `env`: added to or replacing the usual variables; an empty value removes one
    ///
    /// Errors: it ends or does not get ready; the end of its log is in the text.
    pub fn start(node: &Node, env: &[(&str, &str)]) -> Result<Self> {
        let mut daemon = Self::launch(node, env)?;
        daemon.wait_ready()?;
        Ok(daemon)
    }

    /// Starts a daemon without waiting.
    ///
    /// Errors: its namespace, cgroup or process cannot be made.
    pub fn launch(node: &Node, env: &[(&str, &str)]) -> Result<Self> {
        let env: Vec<_> = env
            .iter()
            .map(|&(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        Self::launch_in(node, env, None)
    }

    /// [`Daemon::launch`], in a cgroup of the caller's choice.
    ///
    /// Errors: as there.
    pub fn launch_in(node: &Node, env: Vec<(String, String)>, home: Option<&Path>) -> Result<Self> {
        Self::launch_through(node, env, home, &[])
    }

    /// [`Daemon::launch_in`], started by another program, which gets the daemon's path as its last argument.
    ///
    /// Errors: as there.
    pub fn launch_through(
        node: &Node,
        env: Vec<(String, String)>,
        home: Option<&Path>,
        launcher: &[PathBuf],
    ) -> Result<Self> {
        let host = node.next_daemon();
        let name = format!("ztunnel-{host}");
        let netns_name = format!("{}-{}-{name}", node.world, node.name);
        node.attach(&netns_name, host)?;
        let cgroup = home.map_or_else(|| node.cgroup.join(&name), Path::to_owned);
        Self::spawn(node, env, launcher, &name, netns_name, cgroup)
    }

    /// [`Daemon::launch_through`] on a machine that it is to serve itself: in its namespace, which outlives the daemon, and in
    /// a cgroup below the machine's.
    ///
    /// Errors: as there.
    pub fn launch_on(
        machine: &Pod,
        node: &Node,
        env: Vec<(String, String)>,
        launcher: &[PathBuf],
    ) -> Result<Self> {
        let name = format!("ztunnel-{}", node.next_daemon());
        let cgroup = machine.cgroup.join(&name);
        let netns_name = machine.netns_name.clone();
        let mut daemon = Self::spawn(node, env, launcher, &name, netns_name, cgroup)?;
        daemon.lodges = true;
        Ok(daemon)
    }

    fn spawn(
        node: &Node,
        env: Vec<(String, String)>,
        launcher: &[PathBuf],
        name: &str,
        netns_name: String,
        cgroup: PathBuf,
    ) -> Result<Self> {
        let binary = place::binary("ztunnel")?;
        let netns = netns::path(&netns_name);
        cgroup::make(&cgroup)?;
        let log = node.dir.join(format!("{}-{name}.log", node.name));
        let file = File::create(&log).with_context(|| format!("make {}", log.display()))?;
        let mut command = match launcher {
            [] => program(node, &cgroup, &netns, &binary),
            [first, rest @ ..] => {
                let mut command = pod::enter(&cgroup, &netns, first);
                command.args(rest).arg(&binary);
                command
            }
        };
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default());
        for (key, value) in settings(node, &env) {
            command.env(key, value);
        }
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("share the log")?)
            .stderr(file);
        let child = command
            .spawn()
            .with_context(|| format!("start {}", binary.display()))?;
        Ok(Self {
            child,
            node: node.clone(),
            env,
            netns_name,
            netns,
            cgroup,
            log,
            kept: false,
            lodges: false,
        })
    }

    /// Waits until the daemon is ready.
    ///
    /// Errors: it ends or does not get ready; the end of its log is in the text.
    pub fn wait_ready(&mut self) -> Result<()> {
        let mut last = String::from("no answer");
        let deadline = Instant::now() + READY_MAX;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().context("look after the daemon")? {
                bail!(
                    "the daemon on {} ended with {status}\n{}",
                    self.node.name,
                    self.tail()
                );
            }
            match self.get(READY_PORT, "/healthz/ready") {
                Ok(answer) if answer.status == 200 => return Ok(()),
                Ok(answer) => last = answer.body,
                Err(error) => last = format!("{error:#}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!(
            "the daemon on {} is not ready after {READY_MAX:?}: {last}\n{}",
            self.node.name,
            self.tail()
        )
    }

    /// Its node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Name of its network namespace, for `ip netns exec`.
    pub fn netns_name(&self) -> &str {
        &self.netns_name
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Path {
        &self.netns
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Its log file.
    pub fn log_file(&self) -> &Path {
        &self.log
    }

    /// GET on one of its own ports.
    ///
    /// Errors: no HTTP answer. A status other than 200 is an answer.
    pub fn get(&self, port: u16, path: &str) -> Result<Answer> {
        self.request("GET", port, path)
    }

    /// POST without a body on one of its own ports.
    ///
    /// Errors: as [`Daemon::get`].
    pub fn post(&self, port: u16, path: &str) -> Result<Answer> {
        self.request("POST", port, path)
    }

    /// A request on one of its own ports, over loopback in its namespace.
    ///
    /// Errors: as [`Daemon::get`].
    pub fn request(&self, method: &str, port: u16, path: &str) -> Result<Answer> {
        http::request(
            &self.netns,
            method,
            SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
            path,
        )
    }

    /// Its `/config_dump`.
    ///
    /// Errors: no answer, or no JSON.
    pub fn config_dump(&self) -> Result<Value> {
        let answer = self.get(ADMIN_PORT, "/config_dump")?;
        serde_json::from_str(&answer.body)
            .with_context(|| format!("config_dump of {}: {}", self.node.name, answer.status))
    }

    /// Waits until its `/config_dump` fits.
    ///
    /// Errors: it does not within `limit`; the end of its log is in the text.
    pub fn wait_dump(
        &self,
        limit: Duration,
        what: &str,
        fits: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        until(limit, what, || Ok(Some(self.config_dump()?).filter(&fits)))
            .with_context(|| format!("log of the daemon on {}:\n{}", self.node.name, self.tail()))
    }

    /// Its metrics.
    ///
    /// Errors: no answer, or a status other than 200.
    pub fn metrics(&self) -> Result<Metrics> {
        let answer = self.get(METRICS_PORT, "/metrics")?;
        if answer.status != 200 {
            bail!(
                "metrics of {}: {} {}",
                self.node.name,
                answer.status,
                answer.body
            );
        }
        Ok(Metrics::parse(&answer.body))
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        self.log_from(0)
    }

    /// What it has logged from a position on; positions come from [`Daemon::log_len`].
    pub fn log_from(&self, position: u64) -> String {
        let mut bytes = Vec::new();
        let read = File::open(&self.log).and_then(|mut file| {
            file.seek(SeekFrom::Start(position))?;
            file.read_to_end(&mut bytes)
        });
        // a log that cannot be read reads as empty; the caller then misses its line and says so
        drop(read);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Length of its log in bytes.
    pub fn log_len(&self) -> u64 {
        fs::metadata(&self.log).map_or(0, |meta| meta.len())
    }

    /// The last lines of its log.
    pub fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    /// Its access log so far.
    pub fn access(&self) -> Vec<AccessLine> {
        self.log().lines().filter_map(AccessLine::parse).collect()
    }

    /// Waits for an access-log line.
    ///
    /// Errors: none fits within [`LOG_MAX`]; the lines there are in the text.
    pub fn wait_access(
        &self,
        what: &str,
        fits: impl Fn(&AccessLine) -> bool,
    ) -> Result<AccessLine> {
        until(LOG_MAX, what, || Ok(self.access().into_iter().find(&fits)))
            .with_context(|| format!("log of the daemon on {}:\n{}", self.node.name, self.tail()))
    }

    /// Waits for a log line that contains all of `parts`.
    ///
    /// Errors: none does within [`LOG_MAX`]; the end of the log is in the text.
    pub fn wait_log(&self, from: u64, parts: &[&str]) -> Result<String> {
        let fits = |line: &&str| parts.iter().all(|part| line.contains(part));
        until(LOG_MAX, &format!("log line with {parts:?}"), || {
            Ok(self.log_from(from).lines().find(fits).map(str::to_owned))
        })
        .with_context(|| format!("log of the daemon on {}:\n{}", self.node.name, self.tail()))
    }

    /// Number of its open descriptors.
    pub fn fds(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).map_or(0, Iterator::count)
    }

    /// CPU time it has used, user and system, in clock ticks (usually 10 ms).
    ///
    /// Errors: it is gone.
    pub fn cpu_ticks(&self) -> Result<u64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()))
            .context("stat of the daemon")?;
        let fields = stat
            .rsplit_once(") ")
            .map(|(_, rest)| rest)
            .unwrap_or_default();
        // fields 14 and 15 of proc(5); the first after the name is 3
        let ticks: Vec<u64> = fields
            .split(' ')
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse().ok())
            .collect();
        Ok(ticks.iter().sum())
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end by itself.
    ///
    /// Errors: it does not end within `limit`.
    pub fn wait_exit(&mut self, limit: Duration) -> Result<Exit> {
        let since = Instant::now();
        let name = self.node.name.clone();
        let status = until(limit, &format!("the end of the daemon on {name}"), || {
            Ok(self.child.try_wait()?)
        })?;
        Ok(Exit {
            status,
            took: since.elapsed(),
        })
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// Errors: it does not end in time.
    pub fn terminate(&mut self) -> Result<Exit> {
        self.signal(Signal::SIGTERM)?;
        self.wait_exit(END_MAX)
    }

    /// Sends SIGKILL and waits for the end.
    ///
    /// Errors: it was gone already.
    pub fn kill9(&mut self) -> Result<()> {
        self.child.kill().context("kill the daemon")?;
        self.child.wait().context("wait for the daemon")?;
        Ok(())
    }

    /// Sends a signal.
    ///
    /// Errors: the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).map_err(|_| anyhow!("pid out of range"))?;
        kill(Pid::from_raw(pid), signal)
            .with_context(|| format!("{signal} to the daemon on {}", self.node.name))
    }

    /// Starts a successor with the same settings, waits until that is ready, and only then terminates this one, as a
    /// rolling update does. Afterwards this value is the successor.
    ///
    /// Errors: the successor does not get ready, or the old one does not end.
    pub fn restart_with_successor(&mut self) -> Result<Exit> {
        let mut next = Self::launch_in(&self.node, self.env.clone(), None)?;
        next.wait_ready()?;
        std::mem::swap(self, &mut next);
        next.terminate()
    }

    /// Lets the process go on when this value is gone.
    pub fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        // each of these may have happened already, and the world's own removal comes after them
        let _ = self.child.kill();
        let _ = self.child.wait();
        if self.lodges {
            let _ = cgroup::remove(&self.cgroup);
            return;
        }
        if self.cgroup.starts_with(&self.node.cgroup)
            && !self.cgroup.starts_with(&self.node.kubepods)
        {
            let _ = cgroup::remove(&self.cgroup);
        }
        let _ = netns::ip(None, &[format!("netns delete {}", self.netns_name)]);
    }
}

/// The daemon in its place; where the node has a resolver file of its own, that is its `/etc/resolv.conf`.
fn program(node: &Node, cgroup: &Path, netns: &Path, binary: &Path) -> Command {
    let resolver = node.resolver();
    if !resolver.exists() {
        return pod::enter(cgroup, netns, binary);
    }
    let mut command = pod::enter(cgroup, netns, "unshare");
    let mounted = "mount --bind \"$1\" /etc/resolv.conf && exec \"$2\"";
    command
        .args(["--mount", "--", "sh", "-c", mounted, "sh"])
        .args([&*resolver, binary]);
    command
}

/// The variables a daemon gets: those of its node, then `env`; an empty value removes one.
pub fn settings(node: &Node, env: &[(String, String)]) -> Vec<(String, String)> {
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let mut all = vec![
        ("XDS_ADDRESS".to_owned(), String::new()),
        ("NODE_NAME".to_owned(), node.name.clone()),
        ("ENROLL".to_owned(), "file".to_owned()),
        ("ENROLL_FILE".to_owned(), path(&node.enrolment)),
        ("LOCAL_XDS_PATH".to_owned(), path(&node.state)),
        ("EMBEDDED_CA_DIR".to_owned(), path(&node.ca)),
        ("CAPTURE".to_owned(), "ebpf".to_owned()),
        ("CAPTURE_CGROUP".to_owned(), path(&node.kubepods)),
        ("CAPTURE_PIN_PATH".to_owned(), path(&node.pins)),
        (
            "CAPTURE_EXEMPT_SOURCES".to_owned(),
            format!("{}/32,{}/128", node.gateway4, node.gateway6),
        ),
        (
            "CONNECTION_TERMINATION_DEADLINE".to_owned(),
            DRAIN.to_owned(),
        ),
        ("RUST_LOG".to_owned(), "info".to_owned()),
        ("RUST_BACKTRACE".to_owned(), "1".to_owned()),
    ];
    for (key, value) in node.env.iter().chain(env) {
        all.retain(|(known, _)| known != key);
        if !value.is_empty() {
            all.push((key.clone(), value.clone()));
        }
    }
    all
}
