//! Compiles the kernel programs with whatever BPF toolchain the machine has; without one the daemon builds all the same.
//!
//! First route: a rustc that has `core` for the BPF target compiled, and an `llc` at least as new as its LLVM.
//! Second route: a nightly rustc with `rust-src`, and `bpf-linker`.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The programs of `redirect-ebpf`, one object each.
const OBJECTS: [&str; 5] = ["redirect", "guard", "track", "lookup", "own"];
/// How much newer than rustc's LLVM an `llc` is looked for.
const LLC_NEWER_MAX: u32 = 6;
/// Where distributions put a rustc that is not rustup's.
const SYSTEM_RUSTC: &str = "/usr/bin/rustc";

fn main() {
    println!("cargo::rustc-check-cfg=cfg(has_programs)");
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("../..");
    for path in [
        "redirect-ebpf/src",
        "redirect-ebpf/Cargo.toml",
        "redirect-ebpf/Cargo.lock",
        "redirect-common/src",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }
    for name in ["BPF_RUSTC", "BPF_LLC", "PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let manifest = root.join("redirect-ebpf/Cargo.toml");
    let out = PathBuf::from(variable("OUT_DIR"));
    let build = Build {
        manifest,
        out,
        target: target(),
    };
    if let Some((rustc, llc)) = compiled_core(&build.target) {
        OBJECTS
            .iter()
            .for_each(|name| build.with_llc(&rustc, &llc, name));
    } else if nightly_with_linker() {
        OBJECTS.iter().for_each(|name| build.with_linker(name));
    } else {
        println!(
            "cargo::warning=no BPF toolchain: building without eBPF capture. Install rustc-web, libstd-rust-web-dev-bpf and llvm-22 \
             (Debian 12), or a nightly rustc with rust-src and bpf-linker"
        );
        return;
    }
    println!("cargo::rustc-cfg=has_programs");
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|error| panic!("cargo sets {name}: {error}"))
}

fn target() -> String {
    let endian = if variable("CARGO_CFG_TARGET_ENDIAN") == "big" {
        "bpfeb"
    } else {
        "bpfel"
    };
    format!("{endian}-unknown-none")
}

/// A rustc with the target's `core`, and an `llc` for its bitcode.
fn compiled_core(target: &str) -> Option<(PathBuf, PathBuf)> {
    let mut candidates: Vec<PathBuf> = env::var_os("BPF_RUSTC")
        .map(PathBuf::from)
        .into_iter()
        .collect();
    candidates.extend([
        PathBuf::from(SYSTEM_RUSTC),
        PathBuf::from(variable("RUSTC")),
    ]);
    candidates.into_iter().find_map(|rustc| {
        let libraries = output(&rustc, ["--print", "target-libdir", "--target", target])?;
        let has_core = fs::read_dir(libraries.trim())
            .ok()?
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"));
        let llvm = major(&output(&rustc, ["-vV"])?, "LLVM version:")?;
        has_core
            .then(|| llc(llvm))
            .flatten()
            .map(|llc| (rustc, llc))
    })
}

/// An `llc` that reads bitcode of LLVM `least`.
fn llc(least: u32) -> Option<PathBuf> {
    let mut candidates: Vec<PathBuf> = env::var_os("BPF_LLC")
        .map(PathBuf::from)
        .into_iter()
        .collect();
    candidates.extend(
        (least..=least + LLC_NEWER_MAX).map(|version| PathBuf::from(format!("llc-{version}"))),
    );
    candidates.push(PathBuf::from("llc"));
    candidates.into_iter().find(|llc| {
        output(llc, ["--version"])
            .and_then(|text| major(&text, "LLVM version"))
            .is_some_and(|version| version >= least)
    })
}

fn nightly_with_linker() -> bool {
    let nightly = |arguments: [&str; 4]| {
        clean(Command::new("rustup"))
            .args(arguments)
            .output()
            .ok()
            .filter(|done| done.status.success())
    };
    let Some(sysroot) = nightly(["run", "nightly", "rustc", "--print=sysroot"]) else {
        return false;
    };
    let sources = Path::new(String::from_utf8_lossy(&sysroot.stdout).trim())
        .join("lib/rustlib/src/rust/library/core");
    sources.is_dir() && output(Path::new("bpf-linker"), ["--version"]).is_some()
}

fn output<'a>(program: &Path, arguments: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let done = clean(Command::new(program)).args(arguments).output().ok()?;
    done.status
        .success()
        .then(|| String::from_utf8_lossy(&done.stdout).into_owned())
}

/// The number after `label`.
fn major(text: &str, label: &str) -> Option<u32> {
    let rest = text.split_once(label)?.1.trim_start();
    rest.split('.').next()?.parse().ok()
}

/// Without what this build's own cargo and rustc were told: it is meant for another target.
fn clean(mut command: Command) -> Command {
    for name in [
        "RUSTC",
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTUP_TOOLCHAIN",
        "CARGO_BUILD_TARGET",
        "CARGO_BUILD_RUSTFLAGS",
        "CARGO_MAKEFLAGS",
        "CARGO_TARGET_DIR",
    ] {
        command.env_remove(name);
    }
    command
}

fn run(command: &mut Command) {
    let status = command
        .status()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(status.success(), "{command:?} failed: {status}");
}

struct Build {
    manifest: PathBuf,
    out: PathBuf,
    target: String,
}

impl Build {
    /// `cargo rustc` for one program of the kernel crate.
    fn cargo(&self, cargo: impl AsRef<OsStr>, name: &str) -> Command {
        let mut command = clean(Command::new(cargo));
        command.args([
            "rustc",
            "--release",
            "--locked",
            "--quiet",
            "--target",
            &self.target,
            "--bin",
            name,
        ]);
        command.arg("--manifest-path").arg(&self.manifest);
        command.arg("--target-dir").arg(self.out.join("ebpf"));
        command
    }

    /// Bitcode by rustc (fat link-time optimisation makes one file), object code by `llc`.
    fn with_llc(&self, rustc: &Path, llc: &Path, name: &str) {
        let bitcode = self.out.join(format!("{name}.bc"));
        let object = self.out.join(format!("{name}.o"));
        let mut command = self.cargo(variable("CARGO"), name);
        command
            .env("RUSTC", rustc)
            .env("RUSTC_BOOTSTRAP", "aya_ebpf");
        command
            .arg("--")
            .arg(format!("--emit=obj={}", bitcode.display()))
            .arg("-Clinker=/bin/true");
        run(&mut command);
        let mut command = Command::new(llc);
        command
            .args(["-march=bpf", "-mcpu=v2", "-O2", "-filetype=obj", "-o"])
            .arg(&object)
            .arg(&bitcode);
        run(&mut command);
    }

    /// Everything by a nightly cargo and the BPF linker.
    fn with_linker(&self, name: &str) {
        let mut command = self.cargo("cargo", name);
        command
            .env("RUSTUP_TOOLCHAIN", "nightly")
            .arg("-Zbuild-std=core");
        command
            .arg("--")
            .args(["-Clinker=bpf-linker", "-Clink-arg=--cpu=v2"]);
        run(&mut command);
        let built = self
            .out
            .join("ebpf")
            .join(&self.target)
            .join("release")
            .join(name);
        let object = self.out.join(format!("{name}.o"));
        fs::copy(&built, &object)
            .unwrap_or_else(|error| panic!("copying {}: {error}", built.display()));
    }
}
