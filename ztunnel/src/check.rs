//! `ztunnel check`: whether this machine, these settings and, where one runs, this daemon are as they should be.
//!
//! Assembles what the files below find out, in groups that are looked at side by side. The cheap ones among the probes are
//! asked at each start of the daemon as well ([`at_start`]). Leaves to others: the probes of the kernel (`capture::probe`).

mod arguments;
mod control_plane;
mod daemon;
mod enrolment;
mod kernel;
mod network;
mod privileges;
mod report;
mod token;

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use capture::probe::{Finding, Status};

use self::arguments::{Arguments, Group, Output};
use self::report::{Paint, Report};
use crate::config::{self, Config, Redirect, World};

/// Most time for a group whose probes ask this machine only.
const MACHINE_MAX: Duration = Duration::from_secs(5);
/// Most time for a group whose probes ask others over the network.
const NETWORK_MAX: Duration = Duration::from_secs(12);
/// Status of a call that makes no sense.
const BAD_USAGE: u8 = 2;

/// What all groups look at.
struct Ground {
    config: Config,
    admin: SocketAddr,
    /// a daemon answers there
    running: bool,
}

/// Runs the command with these arguments; prints what was found.
///
/// The status is 0 when nothing failed, 1 when something did, 2 when the arguments make no sense.
pub fn run(arguments: &[String]) -> ExitCode {
    let arguments = match Arguments::read(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            let status = if error.use_stderr() { BAD_USAGE } else { 0 };
            // nobody is left to be told when the terminal is gone
            let _ = error.print();
            return ExitCode::from(status);
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("ztunnel: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let report = runtime.block_on(look(&arguments));
    // a probe that hangs must not keep the answer
    runtime.shutdown_background();
    if arguments.output == Output::Json {
        println!("{}", report.json());
    }
    ExitCode::from(u8::from(!report.is_ok()))
}

/// Looks at all groups side by side, and shows each in its turn.
async fn look(arguments: &Arguments) -> Report {
    let mut report = Report::default();
    let settings = config::read(&World::of_process());
    let (found, config) = settings_group(settings);
    let failed = found.iter().any(|finding| finding.status == Status::Failed);
    if failed || arguments.wants(Group::Settings) {
        show(arguments, &mut report, Group::Settings, found);
    }
    let port = config.as_ref().map_or(15000, |config| config.admin_port);
    let here = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    let admin = arguments.admin.unwrap_or(here);
    let running = daemon::answers(admin).await;
    let Some(config) = config else {
        // a daemon that runs can tell about itself all the same
        if arguments.wants(Group::Daemon) {
            let found = daemon::findings(admin, None, running).await;
            show(arguments, &mut report, Group::Daemon, found);
        }
        return report;
    };
    let ground = Arc::new(Ground {
        config,
        admin,
        running,
    });
    let wanted = Group::ALL.into_iter().filter(|group| {
        *group != Group::Settings && arguments.wants(*group) && applies(*group, &ground.config)
    });
    let under_way: Vec<_> = wanted
        .map(|group| (group, tokio::spawn(findings(group, Arc::clone(&ground)))))
        .collect();
    for (group, task) in under_way {
        let progress = Progress::begin(arguments, group);
        let found = task.await.unwrap_or_else(|error| {
            let hint = "this is a mistake in ztunnel: please report it";
            vec![Finding::failed(group.name(), error.to_string(), hint)]
        });
        drop(progress);
        show(arguments, &mut report, group, found);
    }
    if arguments.output == Output::Text {
        println!("{}", report.summary());
    }
    report
}

fn show(arguments: &Arguments, report: &mut Report, group: Group, found: Vec<Finding>) {
    if arguments.output == Output::Text {
        print!("{}", report::text(group.name(), &found, Paint::of_stdout()));
    }
    report.add(group.name(), found);
}

/// Names the group that is waited for, on a terminal; gone with the value.
struct Progress(bool);

impl Progress {
    fn begin(arguments: &Arguments, group: Group) -> Self {
        let shown = arguments.output == Output::Text
            && std::io::stderr().is_terminal()
            && std::io::stdout().is_terminal();
        if shown {
            eprint!("… {}", group.name());
        }
        Self(shown)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.0 {
            eprint!("\r\x1b[K");
        }
    }
}

/// Whether a group has anything to say under these settings.
fn applies(group: Group, config: &Config) -> bool {
    match group {
        Group::Cgroup | Group::Pins => config.capture.redirect == Redirect::Ebpf,
        _ => true,
    }
}

fn settings_group(read: Result<Config, config::Invalid>) -> (Vec<Finding>, Option<Config>) {
    match read {
        Ok(config) => {
            let how = format!(
                "ENROLL={}, CAPTURE={}",
                config.enroll.name(),
                config.capture.redirect.name()
            );
            let mut found = vec![Finding::ok("settings", how)];
            let hint = "unset it, or see `ztunnel help`";
            let warned = config.warnings.iter();
            found.extend(warned.map(|text| Finding::warning("settings", text.as_str(), hint)));
            (found, Some(config))
        }
        Err(error) => {
            let hint = "see `ztunnel help`; without valid settings nothing else can be looked at";
            let found = Finding::failed("settings", error.to_string(), hint);
            (vec![found], None)
        }
    }
}

async fn findings(group: Group, ground: Arc<Ground>) -> Vec<Finding> {
    match group {
        // has been shown
        Group::Settings => Vec::new(),
        Group::Kernel => on_machine(group, move || kernel::findings(&ground.config)).await,
        Group::Privileges => on_machine(group, move || privileges::findings(&ground.config)).await,
        Group::Cgroup => on_machine(group, move || kernel::cgroups(&ground.config)).await,
        Group::Pins => on_machine(group, move || kernel::pins(&ground.config)).await,
        Group::Network => on_machine(group, move || network::findings(&ground)).await,
        Group::Enrolment => within(group, NETWORK_MAX, enrolment::findings(&ground.config)).await,
        Group::ControlPlane => {
            // TLS handshakes make it large
            let asked = Box::pin(control_plane::findings(&ground.config));
            within(group, NETWORK_MAX, asked).await
        }
        Group::Daemon => {
            let asked = daemon::findings(ground.admin, Some(&ground.config), ground.running);
            within(group, NETWORK_MAX, asked).await
        }
    }
}

/// Probes that block, on a thread of their own.
async fn on_machine(
    group: Group,
    probes: impl FnOnce() -> Vec<Finding> + Send + 'static,
) -> Vec<Finding> {
    let work = async {
        tokio::task::spawn_blocking(probes)
            .await
            .unwrap_or_else(|error| {
                let hint = "this is a mistake in ztunnel: please report it";
                vec![Finding::failed(group.name(), error.to_string(), hint)]
            })
    };
    within(group, MACHINE_MAX, work).await
}

async fn within(
    group: Group,
    limit: Duration,
    work: impl Future<Output = Vec<Finding>>,
) -> Vec<Finding> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
        let hint = "something that was asked does not answer: a mount, a resolver or a server";
        vec![Finding::failed(
            group.name(),
            format!("no answer within {limit:?}"),
            hint,
        )]
    })
}

/// What this machine lacks for the daemon to start.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{what}: {detail}: {hint}")]
pub struct Missing {
    /// what was looked at
    what: String,
    /// what was found
    detail: String,
    /// what to do
    hint: String,
}

/// Asks what a start depends on, in a few milliseconds, and touches nothing that is in use.
///
/// Errors: the first thing without which the daemon cannot work, and what to do about it. Warnings go to the log.
pub fn at_start(config: &Config) -> Result<(), Missing> {
    let mut said = BTreeSet::new();
    let groups: [fn(&Config) -> Vec<Finding>; 4] = [
        privileges::findings,
        kernel::at_start,
        kernel::cgroups,
        kernel::pins,
    ];
    let ebpf = config.capture.redirect == Redirect::Ebpf;
    for group in groups.into_iter().take(if ebpf { 4 } else { 2 }) {
        for finding in group(config) {
            let hint = finding.hint.unwrap_or_default();
            match finding.status {
                Status::Ok => {}
                Status::Warning => {
                    if said.insert(finding.name.clone()) {
                        tracing::warn!(what = %finding.name, found = finding.detail, hint, "checked at start");
                    }
                }
                Status::Failed => {
                    return Err(Missing {
                        what: finding.name.into_owned(),
                        detail: finding.detail,
                        hint,
                    });
                }
            }
        }
    }
    Ok(())
}
