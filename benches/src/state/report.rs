//! What the measurements say, as a table with the targets, and as JSON.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::push::Took;
use crate::watcher::Waits;
use crate::world::Size;

/// Heap of one workload with all that is kept about it, bytes.
const HEAP_MAX: usize = 700;
/// Longest wait of a data thread for the state.
const WAIT_MAX: Duration = Duration::from_millis(1);
/// Longer waits that are put down to a machine with too much to do.
const WAITS_BUSY_MAX: u64 = 10;
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
pub struct Report {
    size: Size,
    pushes: Vec<Row>,
    heap_bytes: usize,
    heap_bytes_per_workload: usize,
    heap_bytes_without_workloads: usize,
    noise: Waits,
    waits: Waits,
    giant_service: Duration,
    targets: Vec<Target>,
}

impl Report {
    pub fn new(
        size: Size,
        pushes: Vec<Row>,
        heap_bytes: usize,
        without: usize,
        noise: Waits,
        waits: Waits,
        giant_service: Duration,
    ) -> Self {
        // a thread that lost its CPU inside of the exchange makes others wait for the kernel, not for the state
        let is_idle = pushes.iter().all(|row| row.took.preempted == 0);
        let per_workload = heap_bytes.saturating_sub(without) / size.workloads.max(1);
        let mut targets = vec![
            Target {
                what: "heap per workload",
                limit: format!("{HEAP_MAX} B"),
                measured: format!("{per_workload} B"),
                holds: per_workload <= HEAP_MAX,
                demanded: true,
            },
            Target {
                what: "longest wait for the state",
                limit: ms(WAIT_MAX),
                measured: ms(waits.state_max),
                holds: waits.state_max <= WAIT_MAX,
                demanded: is_idle || waits.state_long > WAITS_BUSY_MAX,
            },
        ];
        let tenths = pushes
            .iter()
            .map(|row| row.took)
            .filter(|took| took.resources == TENTH);
        if let Some(worst) = tenths.map(|took| took.total()).max() {
            targets.push(Target {
                what: "10k workloads, bytes to ACK",
                limit: ms(TENTH_MAX),
                measured: ms(worst),
                holds: worst <= TENTH_MAX,
                demanded: false,
            });
        }
        Self {
            size,
            pushes,
            heap_bytes,
            heap_bytes_per_workload: per_workload,
            heap_bytes_without_workloads: without,
            noise,
            waits,
            giant_service,
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
        } = self.size;
        writeln!(
            f,
            "{workloads} workloads, {services} services, {policies} policies\n"
        )?;
        writeln!(
            f,
            "{:<26}{:>9}{:>7}{:>10}{:>9}{:>8}{:>9}",
            "push (median)", "resources", "MB", "decode ms", "apply ms", "CPU ms", "peak MB"
        )?;
        for Row { name, took } in &self.pushes {
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
            megabytes(self.heap_bytes),
            megabytes(self.heap_bytes_without_workloads),
            self.heap_bytes_per_workload
        )?;
        writeln!(
            f,
            "one more pod of a Service with {} endpoints: {}",
            workloads / 2,
            ms(self.giant_service)
        )?;
        writeln!(
            f,
            "\ndata thread: longest wait for the state, longest decision; set aside: the kernel took the CPU away"
        )?;
        for (name, waits) in [
            ("without pushes", self.noise),
            ("during pushes", self.waits),
        ] {
            writeln!(
                f,
                "  {name}: {}, {}, {} of {} waits over 1 ms; set aside: {}, up to {}",
                ms(waits.state_max),
                ms(waits.decision_max),
                waits.state_long,
                waits.decisions,
                waits.preempted,
                ms(waits.preempted_max)
            )?;
        }
        let lost: i64 = self.pushes.iter().map(|row| row.took.preempted).sum();
        if lost > 0 {
            writeln!(
                f,
                "  the control thread lost its CPU as well: measure on an idle machine"
            )?;
        }
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

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn ms(time: Duration) -> String {
    format!("{:.3} ms", millis(time))
}

fn megabytes(bytes: usize) -> f64 {
    bytes as f64 / 1_000_000.0
}
