//! A real, unmodified Envoy as a waypoint or as an east-west gateway: started in a pod's place with certificates of its
//! world, looked at through its admin port and its access log (one JSON object a line), killed, drained, started again.
//!
//! What it does with a request is told by the templates in `integration/envoy`. Fetching it is `cargo xtask setup`'s.

mod config;
mod papers;
mod sandwich;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

pub use self::config::{Gateway, Waypoint};
pub use self::papers::{Ca, Papers};
pub use self::sandwich::Sandwich;
use crate::http::{self, Answer};
use crate::pod::{self, App, Pod};
use crate::wait::until;
use crate::{World, place};

/// Port of its admin interface, on loopback.
pub const ADMIN_PORT: u16 = 9901;
/// Most time for it to get ready.
const READY_MAX: Duration = Duration::from_secs(30);
/// Most time for a line to reach its log.
const LOG_MAX: Duration = Duration::from_secs(10);
/// Most time for it to end after SIGTERM.
const END_MAX: Duration = Duration::from_secs(10);
/// Characters of its own log that an error shows.
const TAIL_CHARS: usize = 3000;

/// Where an Envoy runs, and who it is.
#[derive(Debug, Clone)]
pub struct Seat {
    /// its name, unique in its world; answers that pass it carry the name in `x-waypoint-cluster`
    pub name: String,
    /// network namespace file; it listens there on port 15008 of all addresses
    pub netns: PathBuf,
    /// cgroup v2 directory
    pub cgroup: PathBuf,
    /// its certificate
    pub papers: Papers,
    /// what it says of itself to the pods
    pub baggage: String,
    /// where its files go
    pub dir: PathBuf,
}

impl Seat {
    /// In a pod, with the pod's identity. The pod is not in the mesh, but `native_tunnel` in the model.
    ///
    /// Errors: of [`Papers::issue`].
    pub fn in_pod(world: &World, pod: &Pod) -> Result<Self> {
        Self::disguised(world, pod, &pod.identity())
    }

    /// The same with another identity.
    ///
    /// Errors: as there.
    pub fn disguised(world: &World, pod: &Pod, identity: &str) -> Result<Self> {
        let dir = world.dir();
        let stem = pod
            .name
            .rsplit_once('-')
            .map_or(&*pod.name, |(stem, _)| stem);
        Ok(Self {
            name: pod.name.clone(),
            netns: pod.netns.clone(),
            cgroup: pod.home.clone(),
            papers: Papers::issue(&world.ca(), identity, &dir, &format!("{}-envoy", pod.name))?,
            baggage: format!(
                "k8s.cluster.name={},k8s.namespace.name={},k8s.deployment.name={stem},\
                 service.name={stem},service.version=v1",
                crate::model::CLUSTER,
                pod.namespace
            ),
            dir,
        })
    }
}

/// A running Envoy. Dropping it kills it.
pub struct Envoy {
    seat: Seat,
    config: PathBuf,
    app: App,
    /// lines of processes before this one
    earlier: Vec<String>,
}

impl Envoy {
    /// Starts a waypoint and waits until it is ready.
    ///
    /// Errors: Envoy is missing, refuses its configuration, or does not get ready.
    pub fn waypoint(seat: Seat, waypoint: &Waypoint) -> Result<Self> {
        let text = waypoint.render(&seat)?;
        Self::start(seat, &text)
    }

    /// Starts an east-west gateway and waits until it is ready.
    ///
    /// Errors: as [`Envoy::waypoint`].
    pub fn gateway(seat: Seat, gateway: &Gateway) -> Result<Self> {
        let text = gateway.render(&seat)?;
        Self::start(seat, &text)
    }

    fn start(seat: Seat, text: &str) -> Result<Self> {
        let config = seat.dir.join(format!("{}-envoy.yaml", seat.name));
        fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
        let app = launch(&seat, &config)?;
        let envoy = Self {
            seat,
            config,
            app,
            earlier: Vec::new(),
        };
        envoy.wait_ready()?;
        Ok(envoy)
    }

    /// Where it runs and who it is.
    pub fn seat(&self) -> &Seat {
        &self.seat
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.app.pid()
    }

    /// Its own log, not the access log.
    pub fn log_file(&self) -> PathBuf {
        log_file(&self.seat)
    }

    /// Waits until it says that it is ready.
    ///
    /// Errors: it does not; the end of its own log is in the text.
    pub fn wait_ready(&self) -> Result<()> {
        until(READY_MAX, "Envoy ready", || {
            ensure!(self.alive(), "Envoy ended");
            let answer = self.admin("GET", "/ready");
            Ok(answer.ok().filter(|answer| answer.status == 200))
        })
        .map(drop)
        .with_context(|| format!("log of {}:\n{}", self.seat.name, self.tail()))
    }

    /// Ends it at once, with every tunnel, and leaves it away.
    ///
    /// Errors: none, if it is gone already.
    pub fn kill(&mut self) -> Result<()> {
        self.app.kill(END_MAX)
    }

    /// Asks it to end, as a pod's deletion does: every tunnel is dropped.
    ///
    /// Errors: it does not end in time.
    pub fn terminate(&mut self) -> Result<()> {
        self.app.terminate()?;
        self.app.finish(END_MAX).map(drop)
    }

    /// Starts it again after its end, with the same configuration, and waits until it is ready.
    ///
    /// Errors: as [`Envoy::waypoint`].
    pub fn restart(&mut self) -> Result<()> {
        self.earlier.extend(self.app.lines());
        self.app = launch(&self.seat, &self.config)?;
        self.wait_ready()
    }

    /// From now on each connection gets GOAWAY with its next answer; open tunnels live on, new connections are taken.
    ///
    /// Errors: of the admin port.
    pub fn fail_health_check(&self) -> Result<()> {
        self.ask("POST", "/healthcheck/fail").map(drop)
    }

    /// The end of that.
    ///
    /// Errors: of the admin port.
    pub fn pass_health_check(&self) -> Result<()> {
        self.ask("POST", "/healthcheck/ok").map(drop)
    }

    /// The value of a counter or gauge, 0 where it is not known, e.g. `http.hbone_terminate.downstream_cx_active`.
    ///
    /// Errors: of the admin port.
    pub fn stat(&self, name: &str) -> Result<u64> {
        let text = self.ask("GET", "/stats")?;
        let lines = text.lines().filter_map(|line| line.split_once(": "));
        let mut found = lines.filter(|(key, _)| *key == name);
        Ok(found
            .next()
            .and_then(|(_, value)| value.parse().ok())
            .unwrap_or(0))
    }

    /// A request to its admin port that has to work.
    ///
    /// Errors: no answer, or a status other than 200.
    pub fn ask(&self, method: &str, path: &str) -> Result<String> {
        let answer = self.admin(method, path)?;
        if answer.status != 200 {
            bail!(
                "{method} {path} of {}: {} {}",
                self.seat.name,
                answer.status,
                answer.body
            );
        }
        Ok(answer.body)
    }

    fn admin(&self, method: &str, path: &str) -> Result<Answer> {
        let to = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), ADMIN_PORT);
        http::request(&self.seat.netns, method, to, path)
    }

    /// Its access log so far, also that of earlier processes: objects with `log` = `hbone` (a tunnel that ended), `l7` (a
    /// request), `originate` (a tunnel to a pod that failed), `eastwest`, `sandwich`.
    pub fn access(&self) -> Vec<Value> {
        let now = self.app.lines();
        let lines = self.earlier.iter().chain(&now);
        lines
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// Waits for an entry of its access log.
    ///
    /// - `log`: which kind, as in [`Envoy::access`]
    ///
    /// Errors: none fits in time; what is there stands in the text.
    pub fn wait_access(
        &self,
        log: &str,
        what: &str,
        fits: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        until(LOG_MAX, what, || {
            let mut entries = self.access().into_iter();
            Ok(entries.find(|entry| entry["log"] == log && fits(entry)))
        })
        .with_context(|| {
            let entries = self.access();
            let last = entries.iter().rev().take(10).map(Value::to_string);
            let last: Vec<_> = last.collect();
            format!(
                "access log of {}, newest first:\n{}",
                self.seat.name,
                last.join("\n")
            )
        })
    }

    fn alive(&self) -> bool {
        Path::new("/proc").join(self.pid().to_string()).exists() && !self.app.ended()
    }

    fn tail(&self) -> String {
        let text = fs::read_to_string(self.log_file()).unwrap_or_default();
        let start = text
            .char_indices()
            .rev()
            .nth(TAIL_CHARS)
            .map_or(0, |(at, _)| at);
        text[start..].to_owned()
    }
}

fn launch(seat: &Seat, config: &Path) -> Result<App> {
    let mut command = pod::enter(&seat.cgroup, &seat.netns, place::envoy()?);
    command.arg("-c").arg(config).args([
        "--concurrency",
        "2",
        "--disable-hot-restart",
        "--file-flush-interval-msec",
        "50",
        "--log-level",
        "info",
    ]);
    App::start(command, &format!("Envoy {}", seat.name), &log_file(seat))
}

fn log_file(seat: &Seat) -> PathBuf {
    seat.dir.join(format!("{}-envoy.log", seat.name))
}
