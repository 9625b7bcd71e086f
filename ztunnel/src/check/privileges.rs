//! What this process may do: capabilities, seccomp, limits, and whether it sees the host's processes.

use capture::probe::{self, Finding, Status};
use nix::sys::resource::{Resource, getrlimit};

use crate::config::{Config, Enroll, Mode, Redirect};

/// `linux/capability.h`.
const CAPABILITIES: [(&str, u32); 3] = [("NET_ADMIN", 12), ("SYS_ADMIN", 21), ("NET_RAW", 13)];
/// Descriptors that a busy node needs: two for each connection.
const DESCRIPTORS_MIN: u64 = 65_536;

/// All of it.
pub fn findings(config: &Config) -> Vec<Finding> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut found = vec![
        capabilities(&status, Needs::of(config)),
        seccomp(&status),
        descriptors(),
    ];
    let needs_host = config.capture.redirect == Redirect::Ebpf
        || matches!(config.enroll, Enroll::Kubernetes { .. });
    if needs_host {
        let mut host = probe::host_proc(&config.capture.host_proc);
        // pods are found through it
        if matches!(config.enroll, Enroll::Kubernetes { .. }) && host.status == Status::Warning {
            host.status = Status::Failed;
        }
        found.push(host);
    }
    found
}

/// What the daemon does with its capabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// captures
    Programs,
    /// enters pods that others capture
    Pods,
    /// stays where it is, and others capture: it needs none
    Nothing,
}

impl Needs {
    fn of(config: &Config) -> Self {
        match (config.capture.redirect, &config.mode) {
            (Redirect::Ebpf, _) => Self::Programs,
            (Redirect::External { .. }, Mode::Shared) => Self::Pods,
            (Redirect::External { .. }, Mode::Dedicated(_)) => Self::Nothing,
        }
    }

    /// Whether it has a use for a capability.
    fn uses(self, name: &str) -> bool {
        match self {
            Self::Programs => true,
            Self::Pods => name != "NET_RAW",
            Self::Nothing => name == "NET_ADMIN",
        }
    }
}

/// A field of `/proc/self/status`.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.strip_prefix(':').map(str::trim)
}

fn capabilities(status: &str, needs: Needs) -> Finding {
    const NAME: &str = "capabilities";
    let hint = "run as root with the capabilities NET_ADMIN, SYS_ADMIN and NET_RAW (securityContext.capabilities.add)";
    let held = field(status, "CapEff").and_then(|hex| u64::from_str_radix(hex, 16).ok());
    let Some(held) = held else {
        let detail = "no line CapEff in /proc/self/status";
        return Finding::failed(NAME, detail, "mount /proc into the container");
    };
    let missing: Vec<&str> = CAPABILITIES
        .iter()
        .filter(|(name, bit)| held >> bit & 1 == 0 && needs.uses(name))
        .map(|(name, _)| *name)
        .collect();
    if missing.is_empty() {
        return Finding::ok(NAME, "all that are needed");
    }
    let detail = format!("missing {}", missing.join(", "));
    if needs == Needs::Nothing {
        let hint = "applications see this machine as their client: give NET_ADMIN if they are to see the client itself";
        return Finding::warning(NAME, detail, hint);
    }
    Finding::failed(NAME, detail, hint)
}

fn seccomp(status: &str) -> Finding {
    let mode = match field(status, "Seccomp") {
        Some("0") => "none",
        Some("1") => "strict",
        // whether the filter lets through what is needed shows in the kernel's group
        Some("2") => "a filter",
        _ => "not told by this kernel",
    };
    Finding::ok("seccomp", mode)
}

fn descriptors() -> Finding {
    const NAME: &str = "descriptors";
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) if hard >= DESCRIPTORS_MIN => Finding::ok(NAME, format!("at most {hard}")),
        Ok((_, hard)) => Finding::warning(
            NAME,
            format!("at most {hard}"),
            "each connection takes two: raise the hard limit (LimitNOFILE of the container runtime)",
        ),
        Err(error) => Finding::warning(NAME, error.to_string(), "the limit cannot be read"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_bit_by_bit() {
        use Needs::{Nothing, Pods, Programs};
        let cases = [
            ("CapEff:\t000001ffffffffff\n", Programs, None),
            ("Name:\tx\nCapEff:\t0000000000203000\n", Programs, None),
            ("CapEff:\t0000000000201000\n", Pods, None),
            ("CapEff:\t0000000000001000\n", Nothing, None),
            ("CapEff:\t0\n", Nothing, Some("missing NET_ADMIN")),
            (
                "CapEff:\t0000000000201000\n",
                Programs,
                Some("missing NET_RAW"),
            ),
            (
                "CapEff:\t0000000000000000\n",
                Programs,
                Some("missing NET_ADMIN, SYS_ADMIN, NET_RAW"),
            ),
            (
                "CapBnd:\t0000000000203000\n",
                Programs,
                Some("no line CapEff in /proc/self/status"),
            ),
        ];
        for (status, needs, failed) in cases {
            let finding = capabilities(status, needs);
            match failed {
                None => assert_eq!(finding.status, Status::Ok, "{status}"),
                Some(detail) => assert_eq!(finding.detail, detail),
            }
        }
    }

    #[test]
    fn seccomp_is_told() {
        assert_eq!(
            seccomp("Seccomp:\t2\nSeccomp_filters:\t1\n").detail,
            "a filter"
        );
        assert_eq!(seccomp("").detail, "not told by this kernel");
    }
}
