//! `bench`: builds everything for speed and runs the measurements of `benches`.

use crate::place::{cargo, check, need_root, target};
use crate::setup;
use anyhow::{Context, Result};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// How much is measured.
#[derive(clap::Args)]
pub struct Options {
    /// Fewer and shorter rounds.
    #[arg(long)]
    quick: bool,
    /// Reuse the binaries of the last run, whatever changed since.
    #[arg(long)]
    no_build: bool,
}

/// Sets up, builds with the release profile, measures.
pub fn run(options: &Options) -> Result<()> {
    need_root("bench")?;
    setup::run(setup::Scope::All)?;
    if !options.no_build {
        check(&mut cargo(&[
            "build",
            "--release",
            "--bins",
            "-p",
            "ztunnel",
            "-p",
            "integration",
            "-p",
            "benches",
        ]))
        .context("building for speed")?;
    }
    let mut measure = Command::new(target().join("release").join("benches"));
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
