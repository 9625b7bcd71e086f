//! Where things are on this machine: the cgroup v2 mount, the run directory of all worlds, the built binaries.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail, ensure};

/// One directory per world lives here, with everything it wrote.
pub const RUN_DIR: &str = "/run/ztunnel-worlds";
/// Where iproute2 keeps named network namespaces.
pub const NETNS_DIR: &str = "/run/netns";
/// Environment variable that names the daemon's binary to use, instead of the one beside this process.
pub const DAEMON_VAR: &str = "ZTUNNEL_BIN";

/// Environment variable that names the Envoy to use, instead of the one that `cargo xtask setup` fetches.
pub const ENVOY_VAR: &str = "ENVOY_BIN";

/// The tools a world is made with, and the Debian package of each.
const TOOLS: [(&str, &str); 4] = [
    ("ip", "iproute2"),
    ("tcpdump", "tcpdump"),
    ("nsenter", "util-linux"),
    ("timeout", "coreutils"),
];

/// The mount point of cgroup v2.
///
/// Errors: none is mounted.
pub fn cgroup_root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    mounts
        .lines()
        .find_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            (right.split(' ').next() == Some("cgroup2"))
                .then(|| left.split(' ').nth(4))?
                .map(PathBuf::from)
        })
        .ok_or_else(|| {
            anyhow!("no cgroup v2 hierarchy is mounted (/proc/self/mountinfo lists none)")
        })
}

/// Checks what every world needs: root and a handful of tools.
///
/// Errors: the first thing that is missing, and where to get it.
pub fn require() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "this needs root: it makes network namespaces, cgroups and mounts"
    );
    let path = env::var_os("PATH").unwrap_or_default();
    for (tool, package) in TOOLS {
        let found = env::split_paths(&path).any(|dir| dir.join(tool).is_file());
        ensure!(
            found,
            "{tool} is missing (Debian: apt-get install {package})"
        );
    }
    Ok(())
}

/// The path of a binary of this workspace: beside the running one, or one directory up for tests.
///
/// Errors: it has not been built.
pub fn binary(name: &str) -> Result<PathBuf> {
    if name == "ztunnel"
        && let Some(path) = env::var_os(DAEMON_VAR)
    {
        return Ok(PathBuf::from(path));
    }
    let me = env::current_exe().context("find the running binary")?;
    me.ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| anyhow!("{name} is not built: cargo build -p ztunnel -p integration"))
}

/// The real Envoy: [`ENVOY_VAR`], or what `cargo xtask setup` keeps below `target`.
///
/// Errors: neither is there.
pub fn envoy() -> Result<PathBuf> {
    if let Some(path) = env::var_os(ENVOY_VAR) {
        return Ok(PathBuf::from(path));
    }
    let me = env::current_exe().context("find the running binary")?;
    let beside = me.ancestors().map(|dir| dir.join("envoy/venv/bin/envoy"));
    let at_top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/envoy/venv/bin/envoy");
    beside
        .chain([at_top])
        .find(|path| path.is_file())
        .ok_or_else(|| {
            anyhow!("Envoy is missing: `cargo xtask setup` fetches it, or {ENVOY_VAR} names one")
        })
}

/// Builds the daemon and this package's binaries once per process, so that a test never runs yesterday's daemon;
/// nothing is built when [`DAEMON_VAR`] names one.
///
/// Errors: cargo's.
pub fn build_once() -> Result<()> {
    static BUILT: OnceLock<Result<(), String>> = OnceLock::new();
    BUILT
        .get_or_init(|| build().map_err(|e| format!("{e:#}")))
        .clone()
        .map_err(|e| anyhow!(e))
}

fn build() -> Result<()> {
    if env::var_os(DAEMON_VAR).is_some() {
        return Ok(());
    }
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut command = Command::new(cargo);
    command.current_dir(workspace).args([
        "build",
        "--quiet",
        "-p",
        "ztunnel",
        "-p",
        "integration",
        "--bins",
    ]);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    let out = command
        .stdin(Stdio::null())
        .output()
        .context("run cargo build")?;
    if !out.status.success() {
        bail!(
            "cargo build of the daemon failed:\n{}",
            String::from_utf8_lossy(&out.stderr)
        );
    }
    Ok(())
}
