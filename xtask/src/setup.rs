//! `setup`: which programs the house needs, which are missing, and how Debian installs them.
//!
//! Nothing is done when all is there. How the kernel programs are built is `crates/capture/build.rs`;
//! here it is only found out whether it can.

use crate::place::{ask, cargo, check, is_root, need_root, which};
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::{Command, Stdio};

/// How much of the tools a task needs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Compile, format, lint and run tests without namespaces.
    Build,
    /// The same and kernel programs, namespaces, captures.
    All,
}

/// Longest wait for another apt to finish, in seconds.
const APT_LOCK_SECS: u32 = 300;
/// Debian's second compiler, which ships a compiled `core` for BPF.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const BPF_TARGET: &str = "bpfel-unknown-none";
/// Newest LLVM major whose tools are looked for.
const LLVM_MAJOR_MAX: u32 = 30;

/// One thing the house needs.
struct Need {
    what: String,
    /// Debian's packages that bring it.
    packages: Vec<String>,
    scope: Scope,
    /// How to get it where apt cannot.
    elsewhere: &'static str,
}

/// Finds what is missing and installs it; an error names what could not be had.
pub fn run(scope: Scope) -> Result<()> {
    components()?;
    // The second pass is needed because LLVM's version is known only once the compiler is there.
    for _ in 0..2 {
        let missing = missing(scope);
        if missing.is_empty() {
            return Ok(());
        }
        install(&missing)?;
    }
    let left = missing(scope);
    if left.is_empty() {
        Ok(())
    } else {
        bail!("still missing after apt-get:\n{}", list(&left))
    }
}

fn missing(scope: Scope) -> Vec<Need> {
    let mut needs = Vec::new();
    let mut program = |name: &str, packages: &[&str], scope| {
        if which(name).is_none() {
            let packages = packages.iter().map(|p| (*p).to_owned()).collect();
            needs.push(Need {
                what: name.to_owned(),
                packages,
                scope,
                elsewhere: "",
            });
        }
    };
    program("cc", &["gcc", "libc6-dev"], Scope::Build);
    program("make", &["make"], Scope::Build);
    program("python3", &["python3"], Scope::Build);
    program("ip", &["iproute2"], Scope::All);
    program("iptables", &["iptables"], Scope::All);
    program("bpftool", &["bpftool"], Scope::All);
    program("tcpdump", &["tcpdump"], Scope::All);
    program("curl", &["curl", "ca-certificates"], Scope::All);
    program("dig", &["bind9-dnsutils"], Scope::All);
    program("musl-gcc", &["musl-tools"], Scope::All);
    program("ps", &["procps"], Scope::All);
    program("mount", &["mount"], Scope::All);
    needs.extend(missing_venv());
    needs.extend(missing_seccomp());
    needs.extend(missing_bpf());
    needs.retain(|need| scope == Scope::All || need.scope == Scope::Build);
    needs
}

/// Python's environments, which Debian ships apart: the chart's tools live in one.
fn missing_venv() -> Option<Need> {
    let there = ask("python3", &["-c", "import ensurepip, venv"]).is_some();
    (!there).then(|| Need {
        what: "Python's venv".to_owned(),
        packages: vec!["python3-venv".to_owned()],
        scope: Scope::Build,
        elsewhere: "",
    })
}

/// Debian's Python with the bindings of libseccomp: it starts the daemon as a container runtime does.
fn missing_seccomp() -> Option<Need> {
    let there = ask("/usr/bin/python3", &["-c", "import seccomp"]).is_some();
    (!there).then(|| Need {
        what: "/usr/bin/python3 with the module seccomp".to_owned(),
        packages: vec!["python3".to_owned(), "python3-seccomp".to_owned()],
        scope: Scope::All,
        elsewhere: "",
    })
}

/// The BPF toolchain: Debian's rustc with a `core` for BPF and LLVM's code generator, or nightly with bpf-linker.
fn missing_bpf() -> Option<Need> {
    if nightly_route() {
        return None;
    }
    let elsewhere = "a rustup nightly with rust-src (rustup toolchain install nightly -c rust-src) and bpf-linker (cargo install bpf-linker)";
    let need = |what: &str, packages: &[&str]| Need {
        what: what.to_owned(),
        packages: packages.iter().map(|p| (*p).to_owned()).collect(),
        scope: Scope::All,
        elsewhere,
    };
    if !has_bpf_core() {
        return Some(need(
            "a rustc with core for bpfel-unknown-none",
            &["rustc-web", "libstd-rust-web-dev-bpf"],
        ));
    }
    let wanted = llvm_major(&ask(DEBIAN_RUSTC, &["-vV"])?)?;
    let found = (wanted..=LLVM_MAJOR_MAX).any(|major| which(&format!("llc-{major}")).is_some());
    (!found).then(|| {
        need(
            &format!("llc, LLVM {wanted} or newer"),
            &[&format!("llvm-{wanted}")],
        )
    })
}

fn has_bpf_core() -> bool {
    let Some(dir) = ask(
        DEBIAN_RUSTC,
        &["--print", "target-libdir", "--target", BPF_TARGET],
    ) else {
        return false;
    };
    let Ok(entries) = std::fs::read_dir(dir.trim()) else {
        return false;
    };
    entries
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
}

fn nightly_route() -> bool {
    which("bpf-linker").is_some()
        && ask("rustc", &["+nightly", "--print", "sysroot"]).is_some_and(|dir| {
            Path::new(dir.trim())
                .join("lib/rustlib/src/rust/library/core")
                .is_dir()
        })
}

/// LLVM's major version in the words of `rustc -vV`.
fn llvm_major(verbose: &str) -> Option<u32> {
    let line = verbose
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    line.split('.').next()?.trim().parse().ok()
}

/// rustfmt and clippy belong to the toolchain, not to the distribution.
fn components() -> Result<()> {
    for (name, asked) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        let there = cargo(&[asked, "--version"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if there.is_ok_and(|status| status.success()) {
            continue;
        }
        eprintln!("setup: adding {name} to the Rust toolchain");
        check(Command::new("rustup").args(["component", "add", name]))
            .with_context(|| format!("{name} is missing and rustup could not add it"))?;
    }
    Ok(())
}

fn install(missing: &[Need]) -> Result<()> {
    if which("apt-get").is_none() {
        bail!(
            "missing tools, and no apt-get here to install them:\n{}",
            list(missing)
        );
    }
    let packages: Vec<&str> = missing
        .iter()
        .flat_map(|need| &need.packages)
        .map(String::as_str)
        .collect();
    if !is_root() {
        bail!(
            "missing tools:\n{}\nas root: apt-get install {}",
            list(missing),
            packages.join(" ")
        );
    }
    need_root("setup")?;
    eprintln!("setup: installing {}", packages.join(" "));
    apt(&["update"])?;
    if let Some(absent) = packages.iter().find(|package| !offered(package)) {
        bail!(
            "this distribution has no package {absent}; missing:\n{}",
            list(missing)
        );
    }
    let mut args = vec!["install", "--yes", "--no-install-recommends"];
    args.extend(packages);
    apt(&args)
}

/// Whether apt knows the package.
fn offered(package: &str) -> bool {
    ask("apt-cache", &["policy", package])
        .is_some_and(|text| text.contains("Candidate:") && !text.contains("Candidate: (none)"))
}

fn apt(args: &[&str]) -> Result<()> {
    let lock = format!("DPkg::Lock::Timeout={APT_LOCK_SECS}");
    let mut command = Command::new("apt-get");
    command
        .args(["-q", "-o", &lock])
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null());
    // Our stdout may be somebody's JSON.
    command.stdout(std::io::stderr());
    check(&mut command)
}

fn list(missing: &[Need]) -> String {
    let line = |need: &Need| match need.elsewhere {
        "" => format!("  {} (Debian: {})", need.what, need.packages.join(" ")),
        other => format!(
            "  {} (Debian 12: {}; elsewhere: {other})",
            need.what,
            need.packages.join(" ")
        ),
    };
    missing.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_version_is_read_from_rustc() {
        let cases = [
            (
                "rustc 1.96.0\nhost: x86_64-unknown-linux-gnu\nLLVM version: 22.1.8\n",
                Some(22),
            ),
            ("rustc 1.96.0\nLLVM version: 9\n", Some(9)),
            ("rustc 1.96.0\n", None),
            ("LLVM version: new\n", None),
        ];
        for (text, wanted) in cases {
            assert_eq!(llvm_major(text), wanted, "{text:?}");
        }
    }
}
