//! `bench`: builds everything for speed and runs the measurements of `benches`.

use crate::place::{cargo, check, need_root, target};
use crate::setup;
use anyhow::{Context, Result};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// What is measured, and how much.
#[derive(clap::Args)]
pub struct Options {
    #[command(subcommand)]
    part: Option<Part>,
    /// Fewer and shorter rounds.
    #[arg(long, global = true)]
    quick: bool,
    /// Reuse the binaries of the last run, whatever changed since.
    #[arg(long, global = true)]
    no_build: bool,
}

#[derive(clap::Subcommand)]
enum Part {
    /// State of a mesh of 100k workloads: time of a push, memory, waits of data threads. Needs no root.
    State,
}

/// Sets up, builds with the release profile, measures.
pub fn run(options: &Options) -> Result<()> {
    match options.part {
        None => {
            need_root("bench")?;
            setup::run(setup::Scope::All)?;
            let all = ["-p", "ztunnel", "-p", "integration", "-p", "benches"];
            build(options, &[&["--bins"], &all[..]].concat())?;
            measure(options, "benches")
        }
        Some(Part::State) => {
            build(options, &["-p", "benches", "--bin", "bench-state"])?;
            measure(options, "bench-state")
        }
    }
}

fn build(options: &Options, what: &[&str]) -> Result<()> {
    if options.no_build {
        return Ok(());
    }
    let args = [&["build", "--release"], what].concat();
    check(&mut cargo(&args)).context("building for speed")
}

fn measure(options: &Options, binary: &str) -> Result<()> {
    let mut measure = Command::new(target().join("release").join(binary));
    measure
        .arg("--out")
        .arg(target().join("bench"))
        .stdin(Stdio::null());
    if options.quick {
        measure.arg("--quick");
    }
    // Replaces this process, so that a signal reaches the measurements themselves.
    Err(measure.exec()).context("cannot start the measurements")
}
