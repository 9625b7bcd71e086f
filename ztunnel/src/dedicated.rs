//! Dedicated mode (`PROXY_MODE=dedicated`): the daemon serves the network namespace that it is in itself, a machine or a container.
//!
//! What differs from a node's daemon before anything is captured; the rest is the one member that `enroll::own` tells about. Our own
//! capture is undone neither by the end of the daemon nor by its restart: `ztunnel release` does that. So a new daemon must reach
//! its control plane past what a predecessor left, before it can take that over.

use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::Context;
use capture::exempt::{self, Exemption};
use capture::external::{self, Options, Sockets};
use capture::own_cgroup::{self, CgroupError};
use sys::Netns;

use crate::check;
use crate::config::{Config, Mode, Redirect};
use crate::run::external_options;

/// Tells the daemon from the processes that it is to capture; none where it captures no namespace of its own. To be kept until the end,
/// and to be asked for before the daemon makes any socket.
///
/// Errors: this machine lacks what capture needs, or the daemon cannot be told from others.
pub fn exempt(config: &Config) -> anyhow::Result<Option<Exemption>> {
    if config.mode == Mode::Shared || config.capture.redirect != Redirect::Ebpf {
        return Ok(None);
    }
    check::at_start(config).context("this machine lacks something")?;
    let cgroup = capture_cgroup(config).context("CAPTURE_CGROUP is not set")?;
    let exemption = exempt::take(&cgroup, &config.capture.pins).context(
        "the daemon has to be told from the processes whose connections it takes (CAPTURE=ebpf)",
    )?;
    Ok(Some(exemption))
}

/// Opens the listeners that others lead the machine's connections to before the mesh is known: until then connections wait in the kernel.
/// None where we capture, and where a process has the ports: a daemon that is to be replaced goes on until this one knows the mesh.
///
/// Errors: the kernel's.
pub fn listen_early(config: &Config) -> anyhow::Result<Option<Sockets>> {
    let options = external_options(config).filter(|_| config.mode != Mode::Shared);
    let Some(options) = options else {
        return Ok(None);
    };
    let netns = Netns::current().context("the own network namespace")?;
    let alone = Options {
        reuse_port: false,
        transparent: false,
        ..options.clone()
    };
    match external::open(&netns, &alone) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => return Ok(None),
        tried => drop(tried.context("open the listeners")?),
    }
    let sockets = external::open(&netns, &options).context("open the listeners")?;
    Ok(Some(sockets))
}

/// The cgroup that capture attaches to: of all pods, or of the whole machine.
///
/// Errors: no cgroup v2 hierarchy is mounted.
pub fn capture_cgroup(config: &Config) -> Result<PathBuf, CgroupError> {
    match (&config.capture.cgroup, &config.mode) {
        (Some(cgroup), _) => Ok(cgroup.clone()),
        (None, Mode::Shared) => own_cgroup::default_cgroup(),
        (None, Mode::Dedicated(_)) => own_cgroup::top_cgroup(),
    }
}
