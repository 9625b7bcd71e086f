//! Network namespaces: made and wired with iproute2, entered by a thread of our own.

use std::fs::{self, File};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};

use crate::place::NETNS_DIR;

/// Path of the named namespace.
pub fn path(name: &str) -> PathBuf {
    Path::new(NETNS_DIR).join(name)
}

/// Makes a named namespace. Its interfaces, made after this, use their IPv6 addresses at once: while duplicates are
/// looked for, a router asks for no neighbours.
///
/// Errors: of `ip`.
pub fn make(name: &str) -> Result<()> {
    ip(None, &[format!("netns add {name}")])?;
    for key in ["accept_dad", "dad_transmits"] {
        set_sysctl(&path(name), &format!("net/ipv6/conf/default/{key}"), "0")?;
    }
    Ok(())
}

/// Runs `ip` commands in one go, inside namespace `netns` if one is given.
///
/// Errors: the first command that fails, with what `ip` said.
pub fn ip(netns: Option<&str>, lines: &[String]) -> Result<()> {
    let mut command = Command::new("ip");
    if let Some(netns) = netns {
        command.args(["-n", netns]);
    }
    let mut child = command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("run ip")?;
    let mut stdin = child.stdin.take().context("stdin of ip")?;
    stdin
        .write_all(lines.join("\n").as_bytes())
        .context("write to ip")?;
    stdin.write_all(b"\n").context("write to ip")?;
    drop(stdin);
    let out = child.wait_with_output().context("wait for ip")?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr).trim().to_owned();
        bail!(
            "ip -n {}: {said}\ncommands:\n{}",
            netns.unwrap_or("-"),
            lines.join("\n")
        );
    }
    Ok(())
}

/// What `ip <args>` prints in a namespace.
///
/// Errors: `ip` failed.
pub fn show(netns: &str, args: &[&str]) -> Result<String> {
    let out = Command::new("ip")
        .args(["-n", netns])
        .args(args)
        .output()
        .context("run ip")?;
    if !out.status.success() {
        bail!(
            "ip -n {netns} {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Runs `job` on a thread of its own inside the namespace; sockets it makes belong there for ever.
///
/// Errors: the namespace cannot be entered, or `job` panicked.
pub fn inside<T: Send>(netns: &Path, job: impl FnOnce() -> T + Send) -> Result<T> {
    let file = File::open(netns).with_context(|| format!("open namespace {}", netns.display()))?;
    thread::scope(|scope| {
        let worker = scope.spawn(move || -> Result<T> {
            setns(&file, CloneFlags::CLONE_NEWNET).context("enter namespace")?;
            Ok(job())
        });
        worker
            .join()
            .map_err(|_| anyhow!("the job inside {} panicked", netns.display()))?
    })
}

/// Sets a sysctl inside a namespace.
///
/// - `key`: path below `/proc/sys`, e.g. `net/ipv4/ip_forward`
///
/// Errors: it does not exist or refuses the value.
pub fn set_sysctl(netns: &Path, key: &str, value: &str) -> Result<()> {
    let file = Path::new("/proc/sys").join(key);
    inside(netns, || fs::write(&file, value))?
        .with_context(|| format!("write {value} to {}", file.display()))
}

/// Reads a sysctl inside a namespace.
///
/// Errors: it does not exist.
pub fn sysctl(netns: &Path, key: &str) -> Result<String> {
    let file = Path::new("/proc/sys").join(key);
    let text = inside(netns, || fs::read_to_string(&file))?
        .with_context(|| format!("read {}", file.display()))?;
    Ok(text.trim().to_owned())
}

/// Sends one UDP datagram from inside a namespace; used as an end mark for captures.
///
/// Errors: of the socket.
pub fn send_mark(netns: &Path, to: SocketAddr, bytes: &[u8]) -> Result<()> {
    inside(netns, || {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        std::net::UdpSocket::bind(any)?.send_to(bytes, to)
    })?
    .with_context(|| format!("send a mark to {to}"))?;
    Ok(())
}
