//! One pod: a network namespace, a cgroup, addresses, and processes run inside of them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::place;

/// Most time for a command that is waited for.
const RUN_MAX_SECS: &str = "120";
/// Most time for an application to say that it is ready.
const READY_MAX: Duration = Duration::from_secs(10);

/// A pod. Cheap to clone; does not own what it names (the world does).
#[derive(Debug, Clone)]
pub struct Pod {
    /// pod name, unique in its world
    pub name: String,
    /// namespace
    pub namespace: String,
    /// service account
    pub service_account: String,
    /// pod UID
    pub uid: String,
    /// index of its node
    pub node: usize,
    /// IPv4 address
    pub v4: Ipv4Addr,
    /// IPv6 address
    pub v6: Ipv6Addr,
    /// name of the network namespace, for `ip netns exec`
    pub netns_name: String,
    /// network namespace file
    pub netns: PathBuf,
    /// cgroup v2 directory
    pub cgroup: PathBuf,
    /// the one its processes join: that, or a container's in it
    pub home: PathBuf,
    /// last part of its addresses
    pub host: u8,
    /// labels at birth
    pub labels: BTreeMap<String, String>,
    /// annotations at birth
    pub annotations: BTreeMap<String, String>,
    /// where logs of its applications go
    pub(crate) dir: PathBuf,
}

impl Pod {
    /// An address of the pod with a port, IPv4.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.v4), port)
    }

    /// An address of the pod with a port, IPv6.
    pub fn at6(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V6(self.v6), port)
    }

    /// Its SPIFFE id.
    pub fn identity(&self) -> String {
        format!(
            "spiffe://{}/ns/{}/sa/{}",
            crate::model::TRUST_DOMAIN,
            self.namespace,
            self.service_account
        )
    }

    /// A command that joins the pod's (or its container's) cgroup and network namespace before the program starts, under the same pid.
    pub fn command<S: AsRef<OsStr>>(&self, program: S) -> Command {
        enter(&self.home, &self.netns, program)
    }

    /// Runs a program to its end, at most two minutes.
    ///
    /// Errors: it cannot be started. A failed program is no error: look at the status.
    pub fn run(&self, args: &[&str]) -> Result<Output> {
        ensure!(!args.is_empty(), "nothing to run");
        let mut command = self.command("timeout");
        command
            .args(["-k", "1", RUN_MAX_SECS])
            .args(args)
            .stdin(Stdio::null());
        command
            .output()
            .with_context(|| format!("run {} in {}", args.join(" "), self.name))
    }

    /// Runs a program to its end and returns what it printed.
    ///
    /// Errors: it fails.
    pub fn read(&self, args: &[&str]) -> Result<String> {
        let out = self.run(args)?;
        if !out.status.success() {
            let said = String::from_utf8_lossy(&out.stderr).trim().to_owned();
            bail!(
                "{} in {}: {}: {said}",
                args.join(" "),
                self.name,
                out.status
            );
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// Runs `podapp <args>` to its end and returns the JSON of its last line.
    ///
    /// Errors: it cannot be run or prints no JSON. What it found out (also failures) is in the JSON.
    pub fn podapp(&self, args: &[&str]) -> Result<Value> {
        let binary = place::binary("podapp")?;
        let binary = binary.to_string_lossy();
        let mut all = vec![&*binary];
        all.extend(args);
        let out = self.run(&all)?;
        let text = String::from_utf8_lossy(&out.stdout);
        let last = text
            .lines()
            .rfind(|line| !line.trim().is_empty())
            .unwrap_or_default();
        serde_json::from_str(last).with_context(|| {
            let said = String::from_utf8_lossy(&out.stderr).trim().to_owned();
            format!(
                "podapp {} in {}: {}: printed {text:?}: {said}",
                args.join(" "),
                self.name,
                out.status
            )
        })
    }

    /// Starts a program that goes on; it ends with the returned value.
    ///
    /// Errors: it cannot be started.
    pub fn spawn(&self, args: &[&str]) -> Result<App> {
        let [program, rest @ ..] = args else {
            bail!("nothing to run")
        };
        let mut command = self.command(program);
        command.args(rest);
        App::start(
            command,
            &format!("{}: {}", self.name, args.join(" ")),
            &self.dir.join("apps.log"),
        )
    }

    /// Starts `podapp <args>` and waits for its line `ready`.
    ///
    /// Errors: it does not get ready.
    pub fn serve(&self, args: &[&str]) -> Result<App> {
        let binary = place::binary("podapp")?;
        let binary = binary.to_string_lossy();
        let mut all = vec![&*binary];
        all.extend(args);
        let app = self.spawn(&all)?;
        app.wait_line(READY_MAX, "ready", |line| line.starts_with("ready"))?;
        Ok(app)
    }

    /// What `curl <args>` printed, and its exit code (0 = worked).
    ///
    /// Errors: curl cannot be run.
    pub fn curl(&self, args: &[&str]) -> Result<(i32, String)> {
        let mut all = vec!["curl", "-sS", "--max-time", "20"];
        all.extend(args);
        let out = self.run(&all)?;
        let mut text = String::from_utf8_lossy(&out.stdout).into_owned();
        if !out.status.success() {
            text.push_str(&String::from_utf8_lossy(&out.stderr));
        }
        Ok((out.status.code().unwrap_or(-1), text))
    }
}

/// A command that writes itself into `cgroup`, enters `netns` and becomes `program`.
///
/// `nsenter` and not `ip netns exec`, because the latter mounts another `/sys`, in which cgroups cannot be seen.
pub fn enter<S: AsRef<OsStr>>(cgroup: &Path, netns: &Path, program: S) -> Command {
    let mut command = Command::new("sh");
    command
        .args([
            "-c",
            "echo 0 > \"$1/cgroup.procs\" && shift && exec nsenter \"$@\"",
            "sh",
        ])
        .arg(cgroup)
        .arg(format!("--net={}", netns.display()))
        .arg("--")
        .arg(program);
    command
}

/// Lines printed so far, and whether more can come.
#[derive(Default)]
struct Printed {
    lines: Vec<String>,
    ended: bool,
}

/// A program that runs until it is dropped.
pub struct App {
    child: Child,
    what: String,
    printed: Arc<(Mutex<Printed>, Condvar)>,
}

impl App {
    /// Starts `command`; its errors are appended to `log`.
    ///
    /// Errors: it cannot be started.
    pub fn start(mut command: Command, what: &str, log: &Path) -> Result<Self> {
        let log = append(log)?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log);
        let mut child = command.spawn().with_context(|| format!("start {what}"))?;
        let printed = Arc::<(Mutex<Printed>, Condvar)>::default();
        let stdout = child.stdout.take().context("output of the program")?;
        let sink = Arc::clone(&printed);
        thread::spawn(move || collect(stdout, &sink));
        Ok(Self {
            child,
            what: what.to_owned(),
            printed,
        })
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lines printed so far.
    pub fn lines(&self) -> Vec<String> {
        self.lock().lines.clone()
    }

    /// Waits for a line, also one printed before.
    ///
    /// Errors: the program ended or `limit` passed without it.
    pub fn wait_line(
        &self,
        limit: Duration,
        what: &str,
        fits: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let deadline = Instant::now() + limit;
        let mut printed = self.lock();
        loop {
            if let Some(line) = printed.lines.iter().find(|line| fits(line)) {
                return Ok(line.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if printed.ended || left.is_zero() {
                let why = if printed.ended {
                    "it ended"
                } else {
                    "time is up"
                };
                bail!(
                    "{}: no line {what:?} ({why}); it printed {:?}",
                    self.what,
                    printed.lines
                );
            }
            let woken = self.printed.1.wait_timeout(printed, left);
            printed = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for the end of the program and returns its status and the JSON of its last line, if it is one.
    ///
    /// Errors: it does not end within `limit`.
    pub fn finish(&mut self, limit: Duration) -> Result<(ExitStatus, Option<Value>)> {
        let deadline = Instant::now() + limit;
        let mut printed = self.lock();
        while !printed.ended {
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(
                !left.is_zero(),
                "{}: not at its end within {limit:?}",
                self.what
            );
            printed = self
                .printed
                .1
                .wait_timeout(printed, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        let last = printed
            .lines
            .last()
            .and_then(|line| serde_json::from_str(line).ok());
        drop(printed);
        Ok((self.child.wait().context("wait for the program")?, last))
    }

    /// Sends SIGTERM.
    ///
    /// Errors: the process is gone.
    pub fn terminate(&self) -> Result<()> {
        let pid = i32::try_from(self.child.id()).map_err(|_| anyhow!("pid out of range"))?;
        kill(Pid::from_raw(pid), Signal::SIGTERM)
            .with_context(|| format!("terminate {}", self.what))
    }

    /// Kills it and waits for its end.
    ///
    /// Errors: its output does not end within `limit`.
    pub fn kill(&mut self, limit: Duration) -> Result<()> {
        // an error means that it is gone already, which is what is wanted
        let _ = self.child.kill();
        self.finish(limit).map(drop)
    }

    /// Whether its output has ended.
    pub fn ended(&self) -> bool {
        self.lock().ended
    }

    fn lock(&self) -> MutexGuard<'_, Printed> {
        self.printed
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for App {
    fn drop(&mut self) {
        // an error means that it is already gone, which is what is wanted
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(stdout: ChildStdout, sink: &(Mutex<Printed>, Condvar)) {
    for line in BufReader::new(stdout).lines() {
        let Ok(line) = line else { break };
        sink.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .lines
            .push(line);
        sink.1.notify_all();
    }
    sink.0.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
    sink.1.notify_all();
}

pub(crate) fn append(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("open {}", path.display()))
}
