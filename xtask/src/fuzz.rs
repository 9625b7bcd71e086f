//! `fuzz`: builds the fuzz targets with coverage and address checks, runs each for a while, and tells what it found.
//!
//! What the targets do is `fuzz/`. Their collected inputs stay in `target/fuzz/corpus`; one worth keeping goes to `fuzz/seeds/<target>`.

use crate::place::{ask, check, root, target, which};
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What is fuzzed, and how long.
#[derive(clap::Args)]
pub struct Options {
    /// Targets, as in fuzz/fuzz_targets. None: every one.
    targets: Vec<String>,
    /// Seconds for each target.
    #[arg(long, default_value_t = 20)]
    secs: u32,
}

/// What cargo-fuzz sets as well: coverage counters and compared values for libFuzzer, AddressSanitizer, and the checks of a debug build.
const RUSTFLAGS: &str = "-Cpasses=sancov-module \
-Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares \
-Cllvm-args=-simplifycfg-branch-fold-threshold=0 \
-Zsanitizer=address \
-Cdebug-assertions=on \
-Coverflow-checks=on \
-Ccodegen-units=1";
/// Longest time for one input, in seconds: a slow machine's worst is far below.
const INPUT_SECS_MAX: u32 = 20;
/// Memory that one target may take, in MiB.
const MEMORY_MIB_MAX: u32 = 4096;
/// Lines of a target's log that are repeated when it ends badly.
const LOG_LINES_SHOWN: usize = 40;

/// What a run came to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    runs: Option<u64>,
    /// Inputs that reach something new.
    inputs: Option<u64>,
    /// The input that broke a law.
    artifact: Option<String>,
}

/// Builds and runs; fails when a target did.
pub fn run(options: &Options) -> Result<()> {
    let targets = choose(&options.targets, &known()?)?;
    let host = nightly()?;
    if which("c++").is_none() {
        bail!("the fuzzer's runtime needs a C++ compiler, c++ (Debian: apt-get install g++)");
    }
    build(&targets, &host)?;
    let mut bad = Vec::new();
    println!("{:<22} {:>10} {:>8}", "target", "runs", "inputs");
    for name in &targets {
        let (outcome, log, is_good) = fuzz(name, &host, options.secs)?;
        let shown = |count: Option<u64>| count.map_or("?".to_owned(), |count| count.to_string());
        let (runs, inputs) = (shown(outcome.runs), shown(outcome.inputs));
        let mark = if is_good { "ok" } else { "FOUND" };
        println!("{name:<22} {runs:>10} {inputs:>8}  {mark}");
        if !is_good {
            println!("{}", last_lines(&log));
            if let Some(artifact) = &outcome.artifact {
                println!("again: {} {artifact}", binary(name, &host).display());
            }
            bad.push(outcome.artifact.unwrap_or_else(|| name.clone()));
        }
    }
    if bad.is_empty() {
        return Ok(());
    }
    bail!("found: {}", bad.join(", "))
}

/// The targets there are.
fn known() -> Result<Vec<String>> {
    let dir = root().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in
        std::fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?
    {
        let path = entry?.path();
        names.extend(
            path.file_stem()
                .map(|stem| stem.to_string_lossy().into_owned()),
        );
    }
    names.sort();
    Ok(names)
}

fn choose(asked: &[String], known: &[String]) -> Result<Vec<String>> {
    if let Some(other) = asked.iter().find(|name| !known.contains(name)) {
        bail!(
            "no fuzz target {other:?}, expected one of {}",
            known.join(", ")
        );
    }
    Ok(if asked.is_empty() { known } else { asked }.to_vec())
}

/// The nightly toolchain's host triple.
fn nightly() -> Result<String> {
    let version = ask("rustup", &["run", "nightly", "rustc", "-vV"]).context(
        "fuzzing needs a nightly compiler for its sanitizers: rustup toolchain install nightly --profile minimal",
    )?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV names no host")?.trim().to_owned())
}

fn build(targets: &[String], host: &str) -> Result<()> {
    eprintln!("fuzz: building with the nightly compiler (the first time takes minutes)");
    let mut command = Command::new("rustup");
    command
        .args(["run", "nightly", "cargo", "build", "--locked", "--release"])
        .args([
            "--package",
            "fuzz",
            "--features",
            "fuzz/run",
            "--target",
            host,
        ])
        .arg("--target-dir")
        .arg(dir())
        .args(targets.iter().flat_map(|name| ["--bin", name]))
        .current_dir(root())
        .stdin(Stdio::null())
        .env("RUSTFLAGS", RUSTFLAGS)
        // what a daemon to be shipped wants would only make this slow
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false");
    check(&mut command).context("building the fuzz targets")
}

/// Everything of fuzzing that is not in the repository.
fn dir() -> PathBuf {
    target().join("fuzz")
}

fn binary(name: &str, host: &str) -> PathBuf {
    dir().join(host).join("release").join(name)
}

/// Runs one target. Returns also its log, and whether it ended well.
fn fuzz(name: &str, host: &str, secs: u32) -> Result<(Outcome, String, bool)> {
    let corpus = dir().join("corpus").join(name);
    let artifacts = dir().join("artifacts").join(name);
    for dir in [&corpus, &artifacts] {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let log = artifacts.with_extension("log");
    let stderr = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = Command::new(binary(name, host));
    command
        .arg(format!("-max_total_time={secs}"))
        .arg(format!("-timeout={INPUT_SECS_MAX}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg("-print_final_stats=1")
        .arg(&corpus);
    let seeds = root().join("fuzz/seeds").join(name);
    if seeds.is_dir() {
        command.arg(seeds);
    }
    let status = command
        .current_dir(root())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .status()
        .with_context(|| format!("cannot start {name}"))?;
    let text = String::from_utf8_lossy(&read(&log)?).into_owned();
    Ok((outcome(&text), text, status.success()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// What libFuzzer says of a run.
fn outcome(log: &str) -> Outcome {
    let mut outcome = Outcome::default();
    for line in log.lines() {
        if let Some(count) = line.strip_prefix("stat::number_of_executed_units:") {
            outcome.runs = count.trim().parse().ok();
        } else if let Some((_, path)) = line.split_once("Test unit written to ") {
            outcome.artifact = Some(path.trim().to_owned());
        } else if let Some((_, rest)) = line.split_once(" corp: ") {
            let count = rest.split('/').next();
            outcome.inputs = count
                .and_then(|count| count.parse().ok())
                .or(outcome.inputs);
        }
    }
    outcome
}

fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_those_with_a_file_and_an_entry() {
        let known = known().unwrap();
        let manifest = String::from_utf8(read(&root().join("fuzz/Cargo.toml")).unwrap()).unwrap();
        assert_eq!(manifest.matches("[[bin]]").count(), known.len());
        for name in &known {
            let entry = format!("name = \"{name}\"\npath = \"fuzz_targets/{name}.rs\"");
            assert!(manifest.contains(&entry), "{name}");
        }
        assert_eq!(choose(&[], &known).unwrap(), known);
        let one = [known[0].clone()];
        assert_eq!(choose(&one, &known).unwrap(), one);
        let error = choose(&["tpyo".to_owned()], &known)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("no fuzz target \"tpyo\", expected one of address, "),
            "{error}"
        );
    }

    #[test]
    fn logs_of_the_fuzzer_are_read() {
        let good = "#2\tINITED cov: 12 ft: 13 corp: 1/1b exec/s: 0 rss: 40Mb\n\
            #900\tDONE   cov: 99 ft: 180 corp: 57/12Kb lim: 100 exec/s: 45 rss: 60Mb\n\
            Done 900 runs in 20 second(s)\nstat::number_of_executed_units: 900\n";
        let expected = Outcome {
            runs: Some(900),
            inputs: Some(57),
            artifact: None,
        };
        assert_eq!(outcome(good), expected);
        let bad = "thread panicked\n==7== ERROR: libFuzzer: deadly signal\n\
            artifact_prefix='/t/'; Test unit written to /t/crash-12ab\n";
        assert_eq!(outcome(bad).artifact.as_deref(), Some("/t/crash-12ab"));
        assert_eq!(outcome(""), Outcome::default());
    }
}
