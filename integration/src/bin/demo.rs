//! `demo [--json] [--keep | --istiod | --waypoint | --clean]`: tells the story of one connection on this machine; `cargo xtask demo` builds
//! and starts it. Exit status 0 only if every step held.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use integration::demo;

/// The main job end to end: label, capture, tunnel, authorize, see.
#[derive(Parser)]
struct Args {
    /// End stdout with one JSON line; the story goes to stderr.
    #[arg(long)]
    json: bool,
    /// Leave everything running and print how to look around.
    #[arg(long)]
    keep: bool,
    /// Mesh state and certificates come from a control plane, not from files.
    #[arg(long, conflicts_with = "keep")]
    istiod: bool,
    /// The story of a waypoint instead: a real Envoy before the server.
    #[arg(long, conflicts_with_all = ["keep", "istiod"])]
    waypoint: bool,
    /// Only take down what an earlier `--keep` left running.
    #[arg(long, conflicts_with_all = ["json", "keep", "istiod", "waypoint"])]
    clean: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(cause) => {
            eprintln!("demo: {cause:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<bool> {
    if args.clean {
        return demo::clean().map(|()| true);
    }
    demo::tell(demo::Options {
        json: args.json,
        keep: args.keep,
        istiod: args.istiod,
        waypoint: args.waypoint,
    })
}
