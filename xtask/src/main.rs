//! The workshop's tools: `cargo xtask setup | demo | test | fuzz | bench | chart | tidy`.
//!
//! This file reads the command line. Each command is a module; none of them knows how the daemon works:
//! the demo's story lives in `integration`, the measurements in `benches`.
#![forbid(unsafe_code)]

mod bench;
mod chart;
mod demo;
mod envoy;
mod fuzz;
mod place;
mod setup;
mod suite;
mod tidy;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Tools to set up, see, test and measure ztunnel.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 80)]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install the tools that are missing (Debian: by apt; elsewhere they are named), and fetch Envoy.
    Setup,
    /// Two nodes, their pods and daemons on this machine: a story with every step verified. Needs root.
    Demo(demo::Options),
    /// Formatting, lints, unit, wire, netns and kernel tests. Needs root.
    Test(suite::Options),
    /// Search inputs that break a law: each fuzz target for a while. Needs a nightly compiler and c++.
    Fuzz(fuzz::Options),
    /// Speed through two daemons beside plain TCP. Needs root.
    Bench(bench::Options),
    /// Hold the Helm chart to its golden files and to the schemas of Kubernetes, and the Dockerfile to its linter.
    Chart(chart::Options),
    /// Hold the documents and the house rules to the code.
    Tidy,
}

fn main() -> ExitCode {
    let outcome = match Args::parse().task {
        Task::Setup => setup::run(setup::Scope::All).and_then(|()| envoy::fetch()),
        Task::Demo(options) => demo::run(&options),
        Task::Test(options) => suite::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::Chart(options) => setup::run(setup::Scope::Build).and_then(|()| chart::run(&options)),
        Task::Tidy => tidy::run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            eprintln!("xtask: {cause:#}");
            ExitCode::FAILURE
        }
    }
}
