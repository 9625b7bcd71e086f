//! What the measurements say, as a table with the targets, and as JSON.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::giant::Giant;
use crate::push::Took;
use crate::watcher::{THREADS, Waits};
use crate::world::Size;

/// Heap of one workload with all that is kept about it, bytes.
const HEAP_MAX: usize = 700;
/// Longest wait of a data thread for the state.
const WAIT_MAX: Duration = Duration::from_millis(1);
/// Longest decision on a Service with very many endpoints.
const DECISION_MAX: Duration = Duration::from_millis(1);
/// From the bytes of a push of 10k workloads to its acknowledgement: wanted, not yet demanded.
const TENTH_MAX: Duration = Duration::from_millis(24);
/// The push that is held to it, at full size.
const TENTH: usize = 10_000;

/// One push.
#[derive(Debug, Serialize)]
pub struct Row {
    name: &'static str,
    took: Took,
}

impl Row {
    pub fn of(name: &'static str, took: Took) -> Self {
        Self { name, took }
    }
}

/// A target, and what was measured.
#[derive(Debug, Serialize)]
struct Target {
    what: &'static str,
    limit: String,
    measured: String,
    holds: bool,
    /// Whether missing it is a failure.
    demanded: bool,
}

/// All measurements.
#[derive(Debug, Serialize)]
pub struct Measured {
    /// The mesh.
    pub size: Size,
    /// Pushes; all but the first two beside the data threads.
    pub rows: Vec<Row>,
    /// Heap with the whole mesh.
    pub heap: usize,
    /// Heap with no workload in it.
    pub without_workloads: usize,
    /// Data threads beside a thread with the same work for something else.
    pub noise: Waits,
    /// Data threads beside the pushes.
    pub waits: Waits,
    /// Services with very many endpoints.
    pub giant: Giant,
}

/// Measurements and what follows from them.
#[derive(Debug, Serialize)]
pub struct Report {
    #[serde(flatten)]
    measured: Measured,
    heap_bytes_per_workload: usize,
    targets: Vec<Target>,
}

impl Report {
    pub fn new(measured: Measured) -> Self {
        let Measured {
            heap,
            without_workloads,
            size,
            ..
        } = measured;
        let per_workload = heap.saturating_sub(without_workloads) / size.workloads.max(1);
        let longest = |what, limit, measured| Target {
            what,
            limit: ms(limit),
            measured: ms(measured),
            holds: measured <= limit,
            demanded: true,
        };
        let mut targets = vec![
            Target {
                what: "heap per workload",
                limit: format!("{HEAP_MAX} B"),
                measured: format!("{per_workload} B"),
                holds: per_workload <= HEAP_MAX,
                demanded: true,
            },
            longest(
                "longest wait for the state",
                WAIT_MAX,
                measured.waits.state_max,
            ),
            longest(
                "longest wait for the state, many endpoints",
                WAIT_MAX,
                measured.giant.waits.state_max,
            ),
            longest(
                "longest decision, many endpoints",
                DECISION_MAX,
                measured.giant.waits.decision_max,
            ),
        ];
        let tenths = (measured.rows.iter())
            .map(|row| row.took)
            .filter(|took| took.resources == TENTH);
        if let Some(worst) = tenths.map(|took| took.total()).max() {
            targets.push(Target {
                demanded: false,
                ..longest("10k workloads, bytes to ACK", TENTH_MAX, worst)
            });
        }
        Self {
            measured,
            heap_bytes_per_workload: per_workload,
            targets,
        }
    }

    /// Whether all targets are met that are demanded.
    pub fn holds(&self) -> bool {
        self.targets
            .iter()
            .all(|target| target.holds || !target.demanded)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Size {
            workloads,
            services,
            policies,
        } = self.measured.size;
        writeln!(
            f,
            "{workloads} workloads, {services} services, {policies} policies\n"
        )?;
        writeln!(
            f,
            "{:<26}{:>9}{:>7}{:>10}{:>9}{:>8}{:>9}",
            "push (median)", "resources", "MB", "decode ms", "apply ms", "CPU ms", "peak MB"
        )?;
        for Row { name, took } in &self.measured.rows {
            writeln!(
                f,
                "{name:<26}{:>9}{:>7.1}{:>10.2}{:>9.2}{:>8.1}{:>9.1}",
                took.resources,
                megabytes(took.bytes),
                millis(took.convert),
                millis(took.apply),
                millis(took.cpu),
                megabytes(took.peak)
            )?;
        }
        writeln!(
            f,
            "\nheap: {:.1} MB, of it {:.1} MB services and policies, {} B per workload",
            megabytes(self.measured.heap),
            megabytes(self.measured.without_workloads),
            self.heap_bytes_per_workload
        )?;
        self.print_waits(f)?;
        writeln!(f)?;
        for target in &self.targets {
            let Target {
                what,
                limit,
                measured,
                holds,
                demanded,
            } = target;
            let verdict = match (holds, demanded) {
                (true, _) => "PASS",
                (false, true) => "FAIL",
                (false, false) => "open",
            };
            writeln!(f, "{verdict}  {what}: {measured}, at most {limit}")?;
        }
        Ok(())
    }
}

impl Report {
    fn print_waits(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let giant = &self.measured.giant;
        writeln!(
            f,
            "Services with {} endpoints: one more pod {}, health of some {}",
            giant.endpoints,
            ms(giant.one_pod),
            ms(giant.health)
        )?;
        writeln!(
            f,
            "\n{:<26}{:>11}{:>10}{:>11}{:>13}{:>12}{:>10}",
            format!("{THREADS} data threads"),
            "decisions",
            "wait ms",
            "over 1 ms",
            "decision ms",
            "set aside*",
            "up to ms"
        )?;
        for (name, waits) in [
            ("same work, other state", self.measured.noise),
            ("beside pushes", self.measured.waits),
            ("many endpoints", giant.waits),
        ] {
            writeln!(
                f,
                "{name:<26}{:>11}{:>10.3}{:>11}{:>13.3}{:>12}{:>10.1}",
                waits.decisions,
                millis(waits.state_max),
                waits.state_long,
                millis(waits.decision_max),
                waits.preempted,
                millis(waits.preempted_max)
            )?;
        }
        writeln!(f, "* the thread itself lost its CPU meanwhile")
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn ms(time: Duration) -> String {
    format!("{:.3} ms", millis(time))
}

fn megabytes(bytes: usize) -> f64 {
    bytes as f64 / 1_000_000.0
}
