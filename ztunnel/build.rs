//! Tells the binary which revision and compiler it was built from; without git the revision is `unknown`.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let revision = output("git", &["rev-parse", "HEAD"]);
    // only files that change with a commit: the status may be older than an edit, never newer than a commit
    for file in ["HEAD", "index"] {
        if let Some(path) = output(
            "git",
            &["rev-parse", "--path-format=absolute", "--git-path", file],
        ) {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    let status = match output("git", &["status", "--porcelain", "--untracked-files=no"]) {
        None => "Unknown",
        Some(changes) if changes.is_empty() => "Clean",
        Some(_) => "Modified",
    };
    let compiler = std::env::var("RUSTC")
        .ok()
        .and_then(|rustc| output(&rustc, &["--version"]));
    let compiler = compiler
        .as_deref()
        .and_then(|line| line.split(' ').nth(1))
        .unwrap_or("unknown")
        .to_owned();
    println!(
        "cargo:rustc-env=ZTUNNEL_GIT_REVISION={}",
        revision.unwrap_or_else(|| "unknown".to_owned())
    );
    println!("cargo:rustc-env=ZTUNNEL_BUILD_STATUS={status}");
    println!("cargo:rustc-env=ZTUNNEL_RUST_VERSION={compiler}");
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
