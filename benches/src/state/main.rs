//! The state of a large mesh: how long a push takes from its bytes to its acknowledgement, what a workload costs in memory, and how
//! long a data thread waits for the state meanwhile. `cargo xtask bench state` builds and starts it.
//!
//! The push goes through `control` as the daemon's does, without the network. A binary of its own because it counts allocations.
#![forbid(unsafe_code)]

mod giant;
mod push;
mod report;
mod watcher;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use peak_alloc::PeakAlloc;

use push::Plane;
use report::{Measured, Report, Row};
use watcher::Watchers;
use world::{Change, Size, World};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Measures the state of a large mesh on this machine.
#[derive(Parser)]
struct Args {
    /// A tenth of the size.
    #[arg(long)]
    quick: bool,
    /// Directory for the JSON file.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

const USUAL: Size = Size {
    workloads: 100_000,
    services: 10_000,
    policies: 5_000,
};
const QUICK: Size = Size {
    workloads: 10_000,
    services: 1_000,
    policies: 500,
};
/// Updates of one workload that are timed.
const SINGLES: usize = 200;
/// Updates of a tenth that are timed.
const ROUNDS: usize = 9;

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(cause) => {
            eprintln!("bench-state: {cause:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<bool> {
    let size = if args.quick { QUICK } else { USUAL };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    let report = runtime.block_on(measure(size));
    print!("{report}");
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot make {}", args.out.display()))?;
    let file = args.out.join("state.json");
    std::fs::write(&file, serde_json::to_string_pretty(&report)?)
        .with_context(|| format!("cannot write {}", file.display()))?;
    println!("all of it: {}", file.display());
    Ok(report.holds())
}

async fn measure(size: Size) -> Report {
    let mut world = World::new(size);
    let without_workloads = heap_without_workloads(&mut world).await;
    let before = HEAP.current_usage();
    let (mut plane, mut rows) = filled(&mut world).await;
    let heap = HEAP.current_usage().saturating_sub(before);
    let targets = world.targets();
    // the same work for a state that nobody reads, beside the same readers
    let noise = {
        let mut world = World::new(size);
        let (mut other, _) = filled(&mut world).await;
        let watchers = Watchers::start(plane.publisher(), &targets);
        changes(&mut other, &mut world).await;
        watchers.stop()
    };
    let watchers = Watchers::start(plane.publisher(), &targets);
    rows.extend(changes(&mut plane, &mut world).await);
    let waits = watchers.stop();
    Report::new(Measured {
        size,
        rows,
        heap,
        without_workloads,
        noise,
        waits,
        giant: giant::measure(size.workloads / 2).await,
    })
}

/// A state with the whole mesh in it.
async fn filled(world: &mut World) -> (Plane, Vec<Row>) {
    let mut plane = Plane::new();
    let policies = plane.push(world.policies()).await;
    let all = plane.push(world.addresses(Change::All)).await;
    let rows = [("policies", policies), ("first push", all)];
    (plane, rows.map(|(name, took)| Row::of(name, took)).into())
}

/// Pushes of all kinds.
async fn changes(plane: &mut Plane, world: &mut World) -> Vec<Row> {
    let tenth = world.size().workloads / 10;
    let mut rows = Vec::new();
    for (name, change, rounds) in [
        ("10 % change health", Change::Health(tenth), ROUNDS),
        ("10 % replaced by new pods", Change::Pods(tenth), ROUNDS),
        ("all again", Change::All, 1),
        ("1 workload changes health", Change::Health(1), SINGLES),
    ] {
        let mut all = Vec::new();
        for _ in 0..rounds {
            all.push(plane.push(world.addresses(change)).await);
        }
        rows.push(Row::of(name, push::median(all)));
    }
    rows
}

/// Heap of services and policies alone, with all that is kept about them.
async fn heap_without_workloads(world: &mut World) -> usize {
    let before = HEAP.current_usage();
    let mut plane = Plane::new();
    plane.push(world.policies()).await;
    plane.push(world.addresses(Change::Services)).await;
    HEAP.current_usage().saturating_sub(before)
}
