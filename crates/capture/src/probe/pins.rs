//! Where pins go and what is there already, and whether the host's procfs is the host's.

use std::fs;
use std::path::Path;

use redirect_common::LAYOUT;

use super::Finding;
use crate::pins::CONTAINERS_OWN;

/// The directory of pins: on a bpf file system, writable, and what daemons have left there.
///
/// - `host_proc`: the host's procfs
pub fn pins(path: &Path, host_proc: &Path) -> Vec<Finding> {
    vec![place(path, host_proc), generations(path)]
}

fn place(path: &Path, host_proc: &Path) -> Finding {
    const NAME: &str = "pin directory";
    let shown = path.display();
    let hint = format!(
        "mount the host's bpf file system (hostPath /sys/fs/bpf; on a host without one, mount -t bpf bpf /sys/fs/bpf there first) and set CAPTURE_PIN_PATH to a directory on it; it is {shown} now"
    );
    match sys::bpffs::holds(path) {
        Ok(true) => {}
        Ok(false) if path.starts_with(sys::bpffs::POINT) => {
            let detail = format!("{} is no bpf file system yet", sys::bpffs::POINT);
            return match sys::bpffs::mounts_stay(host_proc) {
                Some(true) => Finding::ok(NAME, format!("{detail}; the daemon mounts one")),
                Some(false) => Finding::failed(NAME, format!("{shown}: {CONTAINERS_OWN}"), hint),
                None => Finding::warning(
                    NAME,
                    detail,
                    "the daemon mounts one at its start, which would vanish with a container",
                ),
            };
        }
        Ok(false) => {
            return Finding::failed(NAME, format!("{shown} is not on a bpf file system"), hint);
        }
        Err(error) => return Finding::failed(NAME, format!("{shown}: {error}"), hint),
    }
    let nearest = path.ancestors().find(|dir| dir.is_dir());
    let Some(nearest) = nearest.filter(|dir| sys::bpffs::holds(dir).unwrap_or(false)) else {
        return Finding::failed(NAME, format!("{shown} is not a directory"), hint);
    };
    let trial = nearest.join(format!("ztunnel-check-{}", std::process::id()));
    match fs::create_dir(&trial).and_then(|()| fs::remove_dir(&trial)) {
        Ok(()) => Finding::ok(NAME, format!("{shown}, writable")),
        Err(error) => Finding::failed(
            NAME,
            format!("{} cannot be written: {error}", nearest.display()),
            hint,
        ),
    }
}

/// Pins of other map layouts: daemons that are older or newer than this one.
fn generations(path: &Path) -> Finding {
    const NAME: &str = "pins of other versions";
    let own = format!("v{LAYOUT}");
    let mut others: Vec<String> = fs::read_dir(path)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| *name != own)
        .collect();
    others.sort_unstable();
    if others.is_empty() {
        let detail = if path.join(own).is_dir() {
            "none; there are pins of this one"
        } else {
            "none"
        };
        return Finding::ok(NAME, detail);
    }
    Finding::warning(
        NAME,
        others.join(", "),
        "another version's daemon captures pods, or did: let it go with its own `ztunnel release` once no pod needs it",
    )
}

/// The host's procfs shows the host's processes, and is not that of a container.
pub fn host_proc(path: &Path) -> Finding {
    const NAME: &str = "host's procfs";
    let hint = "mount the host's /proc (hostPath /proc) and set HOST_PROC to where it is, or give the pod hostPID";
    let shown = path.display();
    // kthreadd has pid 2 on every host, and is in no container
    match fs::read_to_string(path.join("2/comm")) {
        Ok(name) if name.trim() == "kthreadd" => {
            Finding::ok(NAME, format!("{shown} is that of the host"))
        }
        Ok(_) | Err(_) if path.join("1/comm").exists() => Finding::warning(
            NAME,
            format!("{shown} shows the processes of a container only"),
            hint,
        ),
        _ => Finding::failed(NAME, format!("{shown} is no procfs"), hint),
    }
}
