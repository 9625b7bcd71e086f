//! The arguments of `ztunnel check`. Leaves the settings, which are the daemon's own, to `config`.

use std::net::SocketAddr;

use clap::{Parser, ValueEnum};

/// What can be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Group {
    /// the daemon's environment variables
    Settings,
    /// what the kernel can do, found by trying it
    Kernel,
    /// capabilities and limits of this process
    Privileges,
    /// the cgroup of the pods and the daemon's own, programs of others there
    Cgroup,
    /// the directory of pins
    Pins,
    /// ports, sizes and switches of this network namespace
    Network,
    /// the source of pods
    Enrolment,
    /// istiod: reachable, trusted, token and clock
    ControlPlane,
    /// the daemon that runs here
    Daemon,
}

impl Group {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 9] = [
        Self::Settings,
        Self::Kernel,
        Self::Privileges,
        Self::Cgroup,
        Self::Pins,
        Self::Network,
        Self::Enrolment,
        Self::ControlPlane,
        Self::Daemon,
    ];

    /// As it is written on the command line and in the output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Settings => "settings",
            Self::Kernel => "kernel",
            Self::Privileges => "privileges",
            Self::Cgroup => "cgroup",
            Self::Pins => "pins",
            Self::Network => "network",
            Self::Enrolment => "enrolment",
            Self::ControlPlane => "control-plane",
            Self::Daemon => "daemon",
        }
    }
}

/// How the result is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// lines for people
    Text,
    /// one JSON object
    Json,
}

/// Looks whether this machine, the settings (the same environment variables as the daemon's) and the daemon that runs here
/// are as they should be, and says what to do where they are not.
///
/// Ends with 0 when nothing failed, 1 when something did, 2 when the arguments make no sense.
#[derive(Debug, Parser)]
#[command(name = "ztunnel check")]
pub struct Arguments {
    /// Where the daemon's admin endpoint is [default: 127.0.0.1 and the port of the settings]
    #[arg(long, value_name = "ADDRESS")]
    pub admin: Option<SocketAddr>,
    /// How the result is written
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// Look at this group only; may be given several times
    #[arg(long, value_enum, value_name = "GROUP")]
    only: Vec<Group>,
}

impl Arguments {
    /// Reads what follows the word `check`.
    pub fn read(arguments: &[String]) -> Result<Self, clap::Error> {
        let name = std::iter::once("ztunnel check");
        Self::try_parse_from(name.chain(arguments.iter().map(String::as_str)))
    }

    /// Whether a group is to be looked at.
    pub fn wants(&self, group: Group) -> bool {
        self.only.is_empty() || self.only.contains(&group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Arguments, clap::Error> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Arguments::read(&words)
    }

    #[test]
    fn lines() {
        let plain = read("").unwrap();
        assert_eq!((plain.admin, plain.output), (None, Output::Text));
        assert!(Group::ALL.into_iter().all(|group| plain.wants(group)));
        let chosen = read("--admin [::1]:1 -o json --only kernel --only control-plane").unwrap();
        assert_eq!(chosen.admin, Some("[::1]:1".parse().unwrap()));
        assert_eq!(chosen.output, Output::Json);
        let wanted: Vec<_> = Group::ALL
            .into_iter()
            .filter(|group| chosen.wants(*group))
            .collect();
        assert_eq!(wanted, [Group::Kernel, Group::ControlPlane]);
        for wrong in ["--only rubbish", "-o yaml", "--admin here", "more"] {
            assert!(read(wrong).unwrap_err().use_stderr(), "{wrong}");
        }
        assert!(!read("--help").unwrap_err().use_stderr());
    }

    #[test]
    fn names_are_those_of_the_command_line() {
        for group in Group::ALL {
            let value = group.to_possible_value().unwrap();
            assert_eq!(value.get_name(), group.name());
        }
        assert_eq!(Group::ALL.len(), Group::value_variants().len());
    }
}
