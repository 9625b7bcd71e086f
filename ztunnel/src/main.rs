//! The command line: run the daemon, check, version, help, release.
#![forbid(unsafe_code)]

mod check;
mod config;
mod control_plane;
mod crl_file;
mod dedicated;
mod dump;
mod endpoint;
mod finder;
mod hold;
mod mesh_file;
mod meters;
mod monitor;
mod net;
mod node;
mod own;
mod panics;
mod repair;
mod resolver;
mod run;
mod version;

use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;

use config::variables::{ALL, FORMS};

fn main() -> ExitCode {
    let command = std::env::args().nth(1);
    match command.as_deref() {
        None | Some("proxy") => finish(run::proxy()),
        Some("version") => {
            let istio =
                std::env::var("ISTIO_META_ISTIO_VERSION").unwrap_or_else(|_| "unknown".to_owned());
            println!("{}", version::Version::new(&istio));
            ExitCode::SUCCESS
        }
        Some("help" | "--help" | "-h") => {
            print!("{}", help());
            ExitCode::SUCCESS
        }
        Some("check") => {
            let arguments = std::env::args_os().skip(2);
            let arguments: Vec<String> = arguments
                .map(|a| a.to_string_lossy().into_owned())
                .collect();
            check::run(&arguments)
        }
        Some("release") => finish(release()),
        Some(other) => {
            eprint!("ztunnel: unknown command {other:?}\n\n{}", help());
            ExitCode::FAILURE
        }
    }
}

fn finish(ended: anyhow::Result<()>) -> ExitCode {
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ztunnel: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Undoes everything that a daemon pinned, for when it is to be gone for good.
fn release() -> anyhow::Result<()> {
    let pins = std::env::var("CAPTURE_PIN_PATH")
        .ok()
        .filter(|p| !p.is_empty());
    let pins = pins.unwrap_or_else(|| config::PINS_DEFAULT.to_owned());
    let host_proc = std::env::var("HOST_PROC").ok().filter(|p| !p.is_empty());
    let host_proc = host_proc.unwrap_or_else(|| "/proc".to_owned());
    let released = capture::release_pinned(Path::new(&pins), Path::new(&host_proc))?;
    for problem in &released.problems {
        eprintln!("ztunnel: {problem}");
    }
    anyhow::ensure!(
        released.problems.is_empty(),
        "{} steps failed",
        released.problems.len()
    );
    println!(
        "released {} pods; nothing is pinned below {pins} any more",
        released.pods
    );
    Ok(())
}

fn help() -> String {
    let mut text = String::from(
        "ztunnel: the per-node proxy of an ambient mesh. Every TCP connection between enrolled pods becomes mutually
authenticated, encrypted, authorized and visible, without a sidecar and without a change to the application.

Usage: ztunnel [COMMAND]

Commands:
  proxy     run the daemon (default)
  check     see whether this machine, the settings and a running daemon are as they should be, and what to do
            where they are not (`check --help`)
  version   print what this build is
  release   undo all capture that a daemon left in the kernel (it stays when a daemon ends, so that nothing
            leaks in the clear until the next one starts)
  help      print this text

The daemon is configured by environment variables. A value that cannot be used ends it at start with a
message that names the variable. Files marked as watched take effect without a restart.
",
    );
    for group in ALL {
        // writing to a string cannot fail
        let _ = writeln!(text, "\n{}:", group.title);
        for variable in group.variables {
            let _ = writeln!(text, "  {} [{}]", variable.name, variable.default);
            wrapped(&mut text, variable.help);
        }
    }
    let _ = writeln!(text, "\n{FORMS}");
    text.push_str(
        "
In a cluster of Istio the mesh's state and the certificates come from istiod: XDS_ADDRESS and CA_ADDRESS need
not be set. On one machine, as root, a file and an embedded CA do:
  ENROLL_FILE=pods.yaml LOCAL_XDS_PATH=mesh.yaml EMBEDDED_CA_DIR=/var/lib/ztunnel-ca ztunnel
  curl -s localhost:15000/config_dump         what the daemon knows
  curl -s localhost:15020/metrics             what it counted
  curl -s localhost:15021/healthz/ready       whether it is ready
",
    );
    text
}

/// Appends `words` in lines that fit a terminal.
fn wrapped(text: &mut String, words: &str) {
    const INDENT: &str = "      ";
    const COLUMNS: usize = 110;
    let mut column = COLUMNS;
    for word in words.split(' ') {
        let width = word.chars().count() + 1;
        if column + width > COLUMNS {
            if !text.ends_with('\n') {
                text.push('\n');
            }
            text.push_str(INDENT);
            column = INDENT.len();
        } else {
            text.push(' ');
        }
        text.push_str(word);
        column += width;
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_teaches_every_variable() {
        let text = help();
        assert!(text.lines().all(|line| line.chars().count() <= 120));
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for variable in ALL.iter().flat_map(|group| group.variables) {
            assert!(
                text.contains(variable.name) && text.contains(variable.help),
                "{}",
                variable.name
            );
        }
    }
}
