//! What the kernel can do for capture, the cgroups and the pins. Leaves the probes themselves to `capture::probe`.

use capture::probe::{self, Finding, Scratch};

use crate::config::{Config, Enroll, Mode, Redirect};
use crate::dedicated;

/// Name of the kernel's process that is asked for kubelet.
const KUBELET: &str = "kubelet";
/// Most processes that are looked at for it.
const PROCESSES_MAX: usize = 65_536;

/// Everything that is tried, with the daemon's own programs.
pub fn findings(config: &Config) -> Vec<Finding> {
    let mut found = vec![version()];
    found.extend(at_start(config));
    if config.capture.redirect == Redirect::Ebpf {
        found.extend(Scratch::found().map(|scratch| probe::cgroup_link(&scratch)));
        let dedicated = config.mode != Mode::Shared;
        found.push(probe::own_programs(&config.capture.pins, dedicated));
    }
    found
}

/// The cheap ones: all but the links to a cgroup and the daemon's own programs, which a start makes and loads anyway.
pub fn at_start(config: &Config) -> Vec<Finding> {
    match config.capture.redirect {
        Redirect::Ebpf => ebpf(config),
        // no pod is entered
        Redirect::External { .. } if config.mode != Mode::Shared => {
            vec![probe::original_destination()]
        }
        Redirect::External { mark, reuse_port } => external(mark, reuse_port),
    }
}

fn ebpf(config: &Config) -> Vec<Finding> {
    let mut found = vec![probe::built()];
    found.extend(probe::loads());
    found.push(probe::socket_map());
    if config.mode != Mode::Shared {
        found.extend(probe::dedicated());
    }
    match Scratch::found() {
        Err(finding) => found.push(finding),
        Ok(scratch) => found.extend([
            probe::netns_link(&scratch),
            probe::sockets(&scratch),
            probe::routing(&scratch),
            probe::sysctls(&scratch, &config.capture.host_proc),
        ]),
    }
    found
}

fn external(mark: Option<u32>, reuse_port: bool) -> Vec<Finding> {
    let sockets = match Scratch::found() {
        Err(finding) => finding,
        Ok(scratch) => probe::external_sockets(&scratch, mark, reuse_port),
    };
    vec![sockets, probe::original_destination()]
}

fn version() -> Finding {
    match std::fs::read_to_string("/proc/sys/kernel/osrelease") {
        Ok(release) => {
            let text = format!("Linux {}, {}", release.trim(), std::env::consts::ARCH);
            Finding::ok("version", text)
        }
        Err(error) => Finding::warning("version", error.to_string(), "is /proc mounted?"),
    }
}

/// The capture cgroup, the daemon's own, programs of others at either, and kubelet's.
pub fn cgroups(config: &Config) -> Vec<Finding> {
    let top = dedicated::capture_cgroup(config).ok();
    let configured = top.filter(|_| config.capture.cgroup.is_some() || config.mode != Mode::Shared);
    let (mut found, capture) = probe::own_cgroup(configured.as_deref());
    if let Some(capture) = capture {
        found.extend(probe::others_at_cgroup(&capture, &config.capture.pins));
    }
    found.push(probe::others_at_sockets(&config.capture.pins));
    found.extend(kubelet(config));
    found
}

/// Whether kubelet's probes can be told from other connections of the node.
fn kubelet(config: &Config) -> Option<Finding> {
    const NAME: &str = "kubelet's cgroup";
    let hint = "kubelet's probes then count as plaintext of a stranger: set KUBELET_CGROUP, or CAPTURE_EXEMPT_SOURCES to the node's addresses";
    if let Some(path) = &config.capture.kubelet_cgroup {
        return Some(match sys::cgroup::id(path) {
            Ok(_) => Finding::ok(NAME, path.display().to_string()),
            Err(error) => Finding::failed(NAME, format!("{}: {error}", path.display()), hint),
        });
    }
    if !matches!(config.enroll, Enroll::Kubernetes { .. }) {
        return None;
    }
    let processes = std::fs::read_dir(&config.capture.host_proc)
        .into_iter()
        .flatten()
        .flatten();
    let runs = processes.take(PROCESSES_MAX).any(|process| {
        std::fs::read_to_string(process.path().join("comm"))
            .is_ok_and(|name| name.trim() == KUBELET)
    });
    Some(if runs {
        Finding::ok(NAME, "found by its process")
    } else {
        Finding::warning(
            NAME,
            format!(
                "no process of that name in {}",
                config.capture.host_proc.display()
            ),
            hint,
        )
    })
}

/// The directory of pins.
pub fn pins(config: &Config) -> Vec<Finding> {
    probe::pins(&config.capture.pins, &config.capture.host_proc)
}
