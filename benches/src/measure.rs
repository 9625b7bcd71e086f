//! The rounds: for each path of bytes in turn, every load once; alternating, so that a slow minute hits all alike.
//!
//! One pair of namespaces for all paths. Plain TCP and the relays run while the pods are not enrolled, the daemons'
//! turn begins by labelling their namespace.

use crate::load::{Kind, Outcome};
use crate::report::{Path, Sample, Series};
use crate::{cpu, serve};
use anyhow::{Context, Result, ensure};
use integration::{App, Daemon, Layout, Pod, PodPlan, World, netns, place};
use std::net::SocketAddr;
use std::time::Duration;

/// How much is measured.
#[derive(Clone, Copy)]
pub struct Effort {
    /// Rounds per path.
    pub rounds: u32,
    /// Time of one load, in seconds.
    pub secs: u32,
}

/// What is measured, and how an outcome is read.
struct Measurement {
    name: &'static str,
    unit: &'static str,
    cpu_unit: &'static str,
    kind: Kind,
    port: u16,
    threads: u16,
    value: fn(&Outcome) -> f64,
    /// CPU seconds per unit times this are the CPU column.
    cpu_scale: f64,
}

const MEASUREMENTS: [Measurement; 5] = [
    bulk("throughput, 1 stream", 1),
    bulk("throughput, 8 streams", 8),
    Measurement {
        name: "ping-pong of 64 bytes, 1 connection",
        unit: "p50 in us",
        cpu_unit: "us/trip",
        kind: Kind::Ping,
        port: serve::ECHO,
        threads: 1,
        value: |outcome| outcome.p50_us,
        cpu_scale: 1e6,
    },
    Measurement {
        name: "new connections, 8 at once",
        unit: "per second",
        cpu_unit: "us/conn",
        kind: Kind::Connect,
        port: serve::ONCE,
        threads: 8,
        value: rate,
        cpu_scale: 1e6,
    },
    Measurement {
        name: "HTTP requests, 8 kept connections",
        unit: "per second",
        cpu_unit: "us/req",
        kind: Kind::Http,
        port: serve::HTTP,
        threads: 8,
        value: rate,
        cpu_scale: 1e6,
    },
];

const fn bulk(name: &'static str, threads: u16) -> Measurement {
    Measurement {
        name,
        unit: "Gbit/s",
        cpu_unit: "s/GB",
        kind: Kind::Bulk,
        port: serve::SINK,
        threads,
        value: |outcome| rate(outcome) * 8.0 / 1e9,
        cpu_scale: 1e9,
    }
}

fn rate(outcome: &Outcome) -> f64 {
    outcome.units as f64 / outcome.secs
}

/// Longest wait for a server of ours to listen.
const READY_MAX: Duration = Duration::from_secs(10);
/// The namespace that is labelled.
const NAMESPACE: &str = "bench";
/// Tried in this order and set in every namespace, so that a machine's default does not decide the result. A namespace
/// may only use what the machine allows (`tcp_allowed_congestion_control`), which is not ours to change; reno always is.
const CONGESTION_CONTROLS: [&str; 2] = ["cubic", "reno"];

/// Two nodes with a pod each, their daemons, targets and relays.
struct Field {
    client: Pod,
    server: Pod,
    relays: [App; 2],
    _targets: App,
    daemons: Vec<Daemon>,
    congestion: &'static str,
    world: World,
}

/// Everything measured, and under which congestion control.
pub struct Measured {
    /// One entry per measurement and path, in the order of the table.
    pub series: Vec<Series>,
    /// Of every TCP socket in the namespaces.
    pub congestion: &'static str,
}

/// Measures everything; `progress` hears what is going on.
pub fn run(effort: Effort, progress: impl Fn(&str)) -> Result<Measured> {
    progress("two nodes, two pods, two daemons");
    let field = Field::raise()?;
    let mut all: Vec<Series> = Vec::new();
    for measurement in &MEASUREMENTS {
        all.extend([Path::Plain, Path::Relays, Path::Mesh].map(|path| Series {
            measurement: measurement.name,
            unit: measurement.unit,
            cpu_unit: measurement.cpu_unit,
            path,
            samples: Vec::new(),
        }));
    }
    for round in 0..effort.rounds {
        let mut order = [Path::Plain, Path::Relays, Path::Mesh];
        if round % 2 == 1 {
            order.reverse();
        }
        for path in order {
            field.enrolled(path == Path::Mesh)?;
            for measurement in &MEASUREMENTS {
                let of = format!("{} of {}", round + 1, effort.rounds);
                progress(&format!(
                    "round {of}: {}, {}",
                    path.name(),
                    measurement.name
                ));
                let sample = field
                    .sample(measurement, path, effort.secs)
                    .with_context(|| format!("{}, {}", path.name(), measurement.name))?;
                let series = all
                    .iter_mut()
                    .find(|series| series.measurement == measurement.name && series.path == path);
                series
                    .context("every measurement has its series")?
                    .samples
                    .push(sample);
            }
        }
    }
    Ok(Measured {
        series: all,
        congestion: field.congestion,
    })
}

impl Field {
    fn raise() -> Result<Self> {
        let pods = vec![
            PodPlan::new(NAMESPACE, "client-0", 0),
            PodPlan::new(NAMESPACE, "server-0", 1),
        ];
        let world = World::raise(&Layout {
            nodes: 2,
            pods,
            services: Vec::new(),
        })?;
        let (client, server) = (world.pod("client-0").clone(), world.pod("server-0").clone());
        let daemons = world.daemons()?;
        let pods = [&client.netns, &server.netns].map(|path| path.as_path());
        let all: Vec<_> = pods
            .into_iter()
            .chain(daemons.iter().map(Daemon::netns))
            .collect();
        let set = |name: &&&str| {
            all.iter().all(|netns| {
                netns::set_sysctl(netns, "net/ipv4/tcp_congestion_control", name).is_ok()
            })
        };
        let congestion = CONGESTION_CONTROLS
            .iter()
            .find(set)
            .copied()
            .context("no congestion control can be set")?;
        let targets = start(&server, &["serve"])?;
        let offset = serve::RELAY.to_string();
        let relays = [
            start(
                &client,
                &["relay", &server.v4.to_string(), "--offset", &offset],
            )?,
            start(&server, &["relay", "127.0.0.1", "--offset", "0"])?,
        ];
        Ok(Self {
            client,
            server,
            relays,
            _targets: targets,
            daemons,
            congestion,
            world,
        })
    }

    fn enrolled(&self, wanted: bool) -> Result<()> {
        self.world
            .label(NAMESPACE, wanted, &self.daemons.iter().collect::<Vec<_>>())
    }

    fn sample(&self, measurement: &Measurement, path: Path, secs: u32) -> Result<Sample> {
        let to = match path {
            Path::Plain | Path::Mesh => self.server.at(measurement.port),
            Path::Relays => SocketAddr::from(([127, 0, 0, 1], measurement.port + serve::RELAY)),
        };
        let proxies: Vec<u32> = match path {
            Path::Plain => Vec::new(),
            Path::Relays => self.relays.iter().map(App::pid).collect(),
            Path::Mesh => self.daemons.iter().map(Daemon::pid).collect(),
        };
        let (before, machine) = (cpu::of(&proxies)?, cpu::machine()?);
        let outcome = self.load(measurement, to, secs)?;
        let (proxies, machine) = (cpu::of(&proxies)? - before, cpu::machine()? - machine);
        ensure!(outcome.units > 0, "nothing went through: {outcome:?}");
        ensure!(
            outcome.failed == 0,
            "{} of {} failed",
            outcome.failed,
            outcome.failed + outcome.units
        );
        let per_unit = measurement.cpu_scale / outcome.units as f64;
        Ok(Sample {
            value: (measurement.value)(&outcome),
            p99_us: (measurement.kind != Kind::Bulk).then_some(outcome.p99_us),
            proxies_cpu: proxies * per_unit,
            machine_cpu: machine * per_unit,
        })
    }

    fn load(&self, measurement: &Measurement, to: SocketAddr, secs: u32) -> Result<Outcome> {
        let me = place::binary("benches")?;
        let (kind, to) = (measurement.kind.name(), to.to_string());
        let (threads, secs) = (measurement.threads.to_string(), secs.to_string());
        let text = self.client.read(&[
            &me.to_string_lossy(),
            "load",
            kind,
            &to,
            "--threads",
            &threads,
            "--secs",
            &secs,
        ])?;
        serde_json::from_str(&text).with_context(|| format!("the load printed {text:?}"))
    }
}

/// Starts this binary in a pod and waits until it listens.
fn start(pod: &Pod, args: &[&str]) -> Result<App> {
    let me = place::binary("benches")?;
    let me = me.to_string_lossy();
    let mut all = vec![&*me];
    all.extend(args);
    let app = pod.spawn(&all)?;
    app.wait_line(READY_MAX, "ready", |line| line == "ready")?;
    Ok(app)
}
