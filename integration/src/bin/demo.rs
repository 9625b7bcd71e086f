//! `demo [--json] [--keep | --clean]`: tells the story of one connection on this machine; `cargo xtask demo` builds
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
    /// Only take down what an earlier `--keep` left running.
    #[arg(long, conflicts_with_all = ["json", "keep"])]
    clean: bool,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    if args.clean {
        demo::clean()?;
        return Ok(ExitCode::SUCCESS);
    }
    let ok = demo::tell(demo::Options {
        json: args.json,
        keep: args.keep,
    })?;
    Ok(if ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
