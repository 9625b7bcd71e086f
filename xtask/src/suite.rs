//! `test`: every check of the house, stage by stage, with one summary at the end.
//!
//! A stage that fails does not stop the next one: a run tells everything it can.

use crate::place::{cargo, need_root, root, target};
use crate::{chart, demo, envoy, setup, tidy};
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Which tests run.
#[derive(clap::Args)]
pub struct Options {
    /// Stages (lint, unit, chart, kernel, netns, waypoint, demo); other words select tests by name. None: every stage.
    filters: Vec<String>,
}

/// The stages, in the order they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Formatting, clippy, the house rules.
    Lint,
    /// Unit, laws and wire tests of everything that needs neither namespaces nor kernel programs.
    Unit,
    /// The Helm chart and the Dockerfile.
    Chart,
    /// `sys` and `capture` against the running kernel, and the verdicts both sides share.
    Kernel,
    /// The real daemon in real namespaces.
    Netns,
    /// The same with a real Envoy as waypoint and as gateway between networks.
    Waypoint,
    /// The demo, told to nobody: with files, with a control plane, with a waypoint.
    Demo,
}

const STAGES: [(Stage, &str); 7] = [
    (Stage::Lint, "lint"),
    (Stage::Unit, "unit"),
    (Stage::Chart, CHART),
    (Stage::Kernel, "kernel"),
    (Stage::Netns, "netns"),
    (Stage::Waypoint, WAYPOINT),
    (Stage::Demo, "demo"),
];

/// The stages that names of tests alone select.
const WITH_TESTS: [Stage; 5] = [
    Stage::Unit,
    Stage::Chart,
    Stage::Kernel,
    Stage::Netns,
    Stage::Waypoint,
];

/// Crates whose tests are the kernel stage.
const KERNEL_CRATES: [&str; 3] = ["sys", "capture", "redirect-common"];

/// The stage with Envoy, and its test target.
const WAYPOINT: &str = "waypoint";
/// The stage of the chart, and its test target.
const CHART: &str = "chart";

/// What a stage came to.
#[derive(Default, Debug, PartialEq, Eq)]
struct Tally {
    passed: u32,
    failed: u32,
    ignored: u32,
    /// Why the stage failed although no test did: a compiler's refusal, a lint, a broken rule.
    broken: Vec<String>,
    /// Those words of the command line that selected a test.
    named: BTreeSet<String>,
}

/// Runs the chosen stages; fails when one of them does.
pub fn run(options: &Options) -> Result<()> {
    let (stages, names) = choose(&options.filters);
    let build_only = stages
        .iter()
        .all(|stage| matches!(stage, Stage::Lint | Stage::Unit | Stage::Chart));
    if !build_only {
        need_root("test")?;
    }
    setup::run(if build_only {
        setup::Scope::Build
    } else {
        setup::Scope::All
    })?;
    let mut rows = Vec::new();
    for stage in stages {
        let started = Instant::now();
        eprintln!("\n=== {} ===", name_of(stage));
        let mut tally = Tally::default();
        perform(stage, &names, &mut tally)?;
        rows.push((stage, tally, started.elapsed()));
    }
    summary(&rows)?;
    all_named(&names, rows.iter().map(|(_, tally, _)| tally))
}

/// Fails when a word of the command line selected no test: it is a typing error, and a run without tests proves nothing.
fn all_named<'a>(names: &[String], tallies: impl Iterator<Item = &'a Tally>) -> Result<()> {
    let found: BTreeSet<&String> = tallies.flat_map(|tally| &tally.named).collect();
    let unknown: Vec<&str> = names
        .iter()
        .filter(|name| !found.contains(name))
        .map(String::as_str)
        .collect();
    if unknown.is_empty() {
        return Ok(());
    }
    bail!(
        "no test of these stages has a name with {}; stages are {}",
        unknown.join(" or "),
        STAGES.map(|(_, name)| name).join(", ")
    )
}

/// Splits the command line's words into stages and names of tests.
fn choose(filters: &[String]) -> (Vec<Stage>, Vec<String>) {
    let is_stage = |word: &String| STAGES.iter().any(|(_, name)| name == word);
    let names: Vec<String> = filters
        .iter()
        .filter(|word| !is_stage(word))
        .cloned()
        .collect();
    let asked: Vec<Stage> = STAGES
        .iter()
        .filter(|(_, name)| filters.iter().any(|word| word == name))
        .map(|(stage, _)| *stage)
        .collect();
    let stages = match (asked.is_empty(), names.is_empty()) {
        (false, _) => asked,
        (true, true) => STAGES.map(|(stage, _)| stage).to_vec(),
        (true, false) => WITH_TESTS.to_vec(),
    };
    (stages, names)
}

fn name_of(stage: Stage) -> &'static str {
    STAGES
        .iter()
        .find(|(other, _)| *other == stage)
        .map_or("?", |(_, name)| name)
}

fn perform(stage: Stage, names: &[String], tally: &mut Tally) -> Result<()> {
    match stage {
        Stage::Lint => lint(tally),
        Stage::Unit => {
            let mut args = vec!["test", "--workspace", "--exclude", "integration"];
            args.extend(KERNEL_CRATES.iter().flat_map(|name| ["--exclude", name]));
            tests(&args, names, tally)
        }
        Stage::Chart => rendered(names, tally),
        Stage::Kernel => {
            let mut args = vec!["test"];
            args.extend(KERNEL_CRATES.iter().flat_map(|name| ["-p", name]));
            tests(&args, names, tally)
        }
        Stage::Netns => worlds(&targets()?, names, tally),
        Stage::Waypoint => match envoy::fetch() {
            Ok(()) => worlds(&["--test".to_owned(), WAYPOINT.to_owned()], names, tally),
            Err(cause) => {
                tally.broken.push(format!("{cause:#}"));
                Ok(())
            }
        },
        Stage::Demo => story(tally),
    }
}

/// Tests of the package that makes worlds, with all that runs in them built before.
fn worlds(targets: &[String], names: &[String], tally: &mut Tally) -> Result<()> {
    if let Err(cause) = demo::build() {
        tally.broken.push(format!("{cause:#}"));
        return Ok(());
    }
    let mut args = vec!["test", "-p", "integration"];
    args.extend(targets.iter().map(String::as_str));
    tests(&args, names, tally)
}

/// Everything of that package but what other stages run, as arguments of cargo.
fn targets() -> Result<Vec<String>> {
    let mut found = vec!["--lib".to_owned(), "--bins".to_owned()];
    let dir = root().join("integration/tests");
    for entry in std::fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if ![WAYPOINT, CHART].contains(&name.as_str()) {
            found.extend(["--test".to_owned(), name]);
        }
    }
    Ok(found)
}

/// What helm renders, and what that means: golden files, unless only some tests are wanted, then the tests that read them.
fn rendered(names: &[String], tally: &mut Tally) -> Result<()> {
    if names.is_empty() {
        golden(tally);
    }
    tests(
        &["test", "-p", "integration", "--test", CHART],
        names,
        tally,
    )
}

fn golden(tally: &mut Tally) {
    match chart::findings(false) {
        Ok((passed, findings)) => {
            tally.passed += passed;
            let findings = findings.into_iter();
            tally
                .broken
                .extend(findings.map(|finding| format!("chart: {finding}")));
        }
        Err(cause) => tally.broken.push(format!("{cause:#}")),
    }
}

fn lint(tally: &mut Tally) -> Result<()> {
    command(
        cargo(&["fmt", "--all", "--check"]),
        "cargo fmt --all --check",
        tally,
    )?;
    let outside = [
        "fmt",
        "--manifest-path",
        "redirect-ebpf/Cargo.toml",
        "--check",
    ];
    command(
        cargo(&outside),
        "cargo fmt --manifest-path redirect-ebpf/Cargo.toml --check",
        tally,
    )?;
    let clippy = [
        "clippy",
        "--locked",
        "--workspace",
        "--all-targets",
        "--features",
        "fuzz/targets",
        "--",
        "-D",
        "warnings",
    ];
    command(cargo(&clippy), "cargo clippy", tally)?;
    let broken = tidy::findings()?;
    tally.passed += u32::from(broken.is_empty());
    tally
        .broken
        .extend(broken.into_iter().map(|finding| format!("tidy: {finding}")));
    Ok(())
}

/// One command that either passes or breaks the stage.
fn command(mut command: Command, name: &str, tally: &mut Tally) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {name}"))?;
    if status.success() {
        tally.passed += 1;
    } else {
        tally.broken.push(format!("{name}: {status}"));
    }
    Ok(())
}

/// `cargo test`, shown as it runs and counted.
fn tests(args: &[&str], names: &[String], tally: &mut Tally) -> Result<()> {
    let mut cargo = cargo(args);
    cargo
        .args(["--no-fail-fast", "--"])
        .args(names)
        .stdout(Stdio::piped());
    let mut child = cargo.spawn().context("cannot start cargo test")?;
    let stdout = child
        .stdout
        .take()
        .context("cargo's stdout is not a pipe")?;
    let before = tally.failed;
    let mut out = std::io::stdout().lock();
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        writeln!(out, "{line}")?;
        count(&line, tally);
        recognise(&line, names, tally);
    }
    let status = child.wait()?;
    if !status.success() && tally.failed == before {
        tally
            .broken
            .push(format!("cargo {}: {status}", args.join(" ")));
    }
    Ok(())
}

/// Adds one line of the test harness: `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
fn count(line: &str, tally: &mut Tally) {
    let Some(rest) = line.strip_prefix("test result: ") else {
        return;
    };
    let Some((_, numbers)) = rest.split_once(". ") else {
        return;
    };
    for part in numbers.split("; ") {
        let Some((number, what)) = part.split_once(' ') else {
            continue;
        };
        let number = number.parse().unwrap_or(0);
        match what {
            "passed" => tally.passed += number,
            "failed" => tally.failed += number,
            "ignored" => tally.ignored += number,
            _ => {}
        }
    }
}

/// Notes which of `names` a line such as `test mesh::authorize ... ok` is about.
fn recognise(line: &str, names: &[String], tally: &mut Tally) {
    let Some(rest) = line.strip_prefix("test ") else {
        return;
    };
    let test = rest.split(" ... ").next().unwrap_or(rest);
    let fits = |name: &&String| test.contains(name.as_str());
    tally.named.extend(names.iter().filter(fits).cloned());
}

fn story(tally: &mut Tally) -> Result<()> {
    if let Err(cause) = demo::build() {
        tally.broken.push(format!("{cause:#}"));
        return Ok(());
    }
    // both ways in which the mesh's state can come, and a waypoint where there is an Envoy for it
    let mut sources = vec![&[][..], &["--istiod"]];
    match envoy::fetch() {
        Ok(()) => sources.push(&["--waypoint"]),
        Err(cause) => tally.broken.push(format!("{cause:#}")),
    }
    for source in sources {
        let status = demo::storyteller()
            .arg("--json")
            .args(source)
            .stdin(Stdio::null())
            .status();
        match status.with_context(|| format!("cannot start the demo in {}", target().display()))? {
            status if status.success() => tally.passed += 1,
            status => tally.broken.push(format!("demo {source:?}: {status}")),
        }
    }
    Ok(())
}

fn summary(rows: &[(Stage, Tally, Duration)]) -> Result<()> {
    println!(
        "\n{:<8} {:>7} {:>7} {:>8} {:>7}",
        "stage", "passed", "failed", "ignored", "time"
    );
    for (stage, tally, took) in rows {
        let mark = if good(tally) { "ok" } else { "FAILED" };
        println!(
            "{:<8} {:>7} {:>7} {:>8} {:>6}s  {mark}",
            name_of(*stage),
            tally.passed,
            tally.failed,
            tally.ignored,
            took.as_secs()
        );
        for cause in &tally.broken {
            println!("         {cause}");
        }
    }
    let bad: Vec<&str> = rows
        .iter()
        .filter(|(_, tally, _)| !good(tally))
        .map(|(stage, ..)| name_of(*stage))
        .collect();
    if bad.is_empty() {
        Ok(())
    } else {
        bail!("failed: {}", bad.join(", "))
    }
}

fn good(tally: &Tally) -> bool {
    tally.failed == 0 && tally.broken.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn words_choose_stages_and_names() {
        let all = STAGES.map(|(stage, _)| stage).to_vec();
        let cases = [
            ("", all, ""),
            ("unit", vec![Stage::Unit], ""),
            ("netns lint", vec![Stage::Lint, Stage::Netns], ""),
            ("netns main_path", vec![Stage::Netns], "main_path"),
            ("denies", WITH_TESTS.to_vec(), "denies"),
        ];
        for (line, stages, names) in cases {
            assert_eq!(choose(&words(line)), (stages, words(names)), "{line:?}");
        }
    }

    #[test]
    fn each_test_target_has_one_stage() {
        let targets = targets().unwrap();
        let is_there = |name: &str| targets.iter().any(|target| target == name);
        assert!(is_there("netns") && is_there("istiod"), "{targets:?}");
        assert!(!is_there(CHART) && !is_there(WAYPOINT), "{targets:?}");
    }

    #[test]
    fn harness_results_are_counted() {
        let mut tally = Tally::default();
        count(
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.1s",
            &mut tally,
        );
        count(
            "test result: FAILED. 2 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out",
            &mut tally,
        );
        count("test mesh::authorize ... ok", &mut tally);
        assert_eq!(
            tally,
            Tally {
                passed: 14,
                failed: 4,
                ignored: 1,
                ..Tally::default()
            }
        );
    }

    #[test]
    fn words_that_select_nothing_are_told() {
        let names = words("denies acess");
        let (mut unit, mut netns) = (Tally::default(), Tally::default());
        for line in [
            "test mesh::denies_all ... ok",
            "acess was denied",
            "test result: ok. 0 passed; 0 failed",
        ] {
            recognise(line, &names, &mut netns);
        }
        let error = all_named(&names, [&unit, &netns].into_iter()).unwrap_err();
        assert!(error.to_string().contains("a name with acess;"), "{error}");
        recognise("test policy::acess ... FAILED", &names, &mut unit);
        assert!(all_named(&names, [&unit, &netns].into_iter()).is_ok());
        assert!(all_named(&[], [&unit].into_iter()).is_ok());
    }
}
