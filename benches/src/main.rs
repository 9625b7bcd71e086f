//! Speed through two daemons beside plain TCP and two plain relays, in the same namespaces, from one run.
//!
//! `cargo xtask bench` builds and starts it. The loads and their targets are this same binary, run inside the pods.
#![forbid(unsafe_code)]

mod cpu;
mod load;
mod measure;
mod report;
mod serve;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use serde_json::json;

/// Measures the data path on this machine.
#[derive(Parser)]
struct Args {
    /// Fewer and shorter rounds.
    #[arg(long)]
    quick: bool,
    /// Directory for the JSON file.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    #[command(subcommand)]
    part: Option<Part>,
}

/// What runs inside a pod.
#[derive(Subcommand)]
enum Part {
    /// Listen: sink, echo, HTTP and one-byte server.
    #[command(hide = true)]
    Serve,
    /// Relay all of these ports.
    #[command(hide = true)]
    Relay {
        to: IpAddr,
        #[arg(long)]
        offset: u16,
    },
    /// Load one of them.
    #[command(hide = true)]
    Load {
        kind: load::Kind,
        to: SocketAddr,
        #[arg(long)]
        threads: u16,
        #[arg(long)]
        secs: u64,
    },
}

/// The usual effort: minutes, and steady enough to compare.
const USUAL: measure::Effort = measure::Effort { rounds: 5, secs: 3 };
/// Enough to see that everything works.
const QUICK: measure::Effort = measure::Effort { rounds: 2, secs: 1 };

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            eprintln!("benches: {cause:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<()> {
    match args.part {
        Some(Part::Serve) => serve::targets(),
        Some(Part::Relay { to, offset }) => serve::relay(to, offset),
        Some(Part::Load {
            kind,
            to,
            threads,
            secs,
        }) => {
            println!(
                "{}",
                serde_json::to_string(&load::run(kind, to, threads, Duration::from_secs(secs))?)?
            );
            Ok(())
        }
        None => bench(if args.quick { QUICK } else { USUAL }, &args.out),
    }
}

fn bench(effort: measure::Effort, out: &Path) -> Result<()> {
    let measure::Measured { series, congestion } =
        measure::run(effort, |text| eprintln!("{text}"))?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .unwrap_or_default()
        .trim()
        .to_owned();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let (rounds, secs) = (effort.rounds, effort.secs);
    println!("Linux {kernel}, {cpus} CPUs, {congestion}, {rounds} rounds of {secs} s");
    print!("{}", report::table(&series));
    println!(
        "\nratio: median beside plain TCP. CPU: of the two proxies, and of the whole machine."
    );
    std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let file = out.join("speed.json");
    let whole = json!({
        "kernel": kernel, "cpus": cpus, "congestion": congestion, "rounds": rounds, "secs": secs, "series": series,
    });
    std::fs::write(&file, serde_json::to_string_pretty(&whole)?)
        .with_context(|| format!("cannot write {}", file.display()))?;
    println!("every sample: {}", file.display());
    Ok(())
}
