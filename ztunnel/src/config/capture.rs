//! Which pods are ours and how their connections come to us: enrolment, capture, and the listeners' settings.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use super::PINS_DEFAULT;
use super::proxy_config::ProxyConfig;
use super::value::{Env, Invalid};

/// The mark that capture exempts, fixed in the kernel programs.
const PACKET_MARK: u32 = 1337;
/// Where names are asked for; capture brings the questions there, whatever port.
const DNS_ADDRESS_DEFAULT: &str = "localhost:15053";

/// Where the connect programs attach and where their state is pinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capture {
    /// cgroup v2 directory; none = kubepods, else the v2 root
    pub cgroup: Option<PathBuf>,
    /// directory in a bpffs
    pub pins: PathBuf,
    /// sources whose plaintext goes to the application directly, such as a node's health checks
    pub exempt_sources: Vec<IpNet>,
    /// questions to port 53 come to the daemon, unless a pod says otherwise
    pub dns: bool,
    /// the application sees its client's address
    pub keep_source: bool,
    /// off: IPv6 connections of pods are refused, names give IPv4 addresses only
    pub ipv6: bool,
}

impl Capture {
    pub(super) fn read(env: &Env<'_>, proxy: &ProxyConfig) -> Result<Self, Invalid> {
        refuse_other_sources(env)?;
        refuse_other_listeners(env)?;
        let dns = dns(proxy)?;
        refuse_to_do_nothing(env, dns)?;
        Ok(Self {
            cgroup: env.optional("CAPTURE_CGROUP").map(PathBuf::from),
            pins: env.text("CAPTURE_PIN_PATH", PINS_DEFAULT).into(),
            exempt_sources: exempt_sources(env)?,
            dns,
            // unset and true are one: capture never serves a pod without it
            keep_source: env.switch("ENABLE_ORIG_SRC")?.unwrap_or(true),
            ipv6: env.bool("IPV6_ENABLED", true)?,
        })
    }
}

fn exempt_sources(env: &Env<'_>) -> Result<Vec<IpNet>, Invalid> {
    let parse = |item: String| {
        let net = item
            .parse::<IpNet>()
            .or_else(|_| item.parse::<IpAddr>().map(IpNet::from));
        net.map_err(|_| {
            Invalid::new(
                "CAPTURE_EXEMPT_SOURCES",
                item,
                "a comma-separated list of addresses or CIDRs",
            )
        })
    };
    env.list("CAPTURE_EXEMPT_SOURCES", "")
        .into_iter()
        .map(parse)
        .collect()
}

/// What another version may offer is refused, not ignored.
fn refuse_other_sources(env: &Env<'_>) -> Result<(), Invalid> {
    for (name, only, expected) in [
        (
            "ENROLL",
            "file",
            "file (zds and kubernetes are not supported yet)",
        ),
        ("CAPTURE", "ebpf", "ebpf (external is not supported yet)"),
        (
            "PROXY_MODE",
            "shared",
            "shared (dedicated is not supported yet)",
        ),
    ] {
        let value = env.text(name, only);
        if value != only {
            return Err(Invalid::new(name, value, expected));
        }
    }
    if let Some(socket) = env.optional("INPOD_UDS") {
        return Err(Invalid::new(
            "INPOD_UDS",
            socket,
            "empty or unset (the socket of istio-cni is not supported yet; pods come from ENROLL_FILE)",
        ));
    }
    Ok(())
}

fn refuse_other_listeners(env: &Env<'_>) -> Result<(), Invalid> {
    if !env.bool("INPOD_PORT_REUSE", true)? {
        return Err(Invalid::new(
            "INPOD_PORT_REUSE",
            "false",
            "true or unset (capture hands listeners over from one process to the next)",
        ));
    }
    if env.bool("UNSTABLE_ENABLE_SOCKS5", false)? {
        return Err(Invalid::new(
            "UNSTABLE_ENABLE_SOCKS5",
            "true",
            "false or unset (SOCKS5 is not supported yet)",
        ));
    }
    if env.number("PACKET_MARK", PACKET_MARK)? != PACKET_MARK {
        return Err(Invalid::new(
            "PACKET_MARK",
            env.text("PACKET_MARK", ""),
            "1337 or unset (the capture programs exempt this mark)",
        ));
    }
    Ok(())
}

fn refuse_to_do_nothing(env: &Env<'_>, dns: bool) -> Result<(), Invalid> {
    if env.bool("ENABLE_PROXY", true)? {
        return Ok(());
    }
    let expected = if dns {
        "true or unset (a daemon for DNS alone is not supported yet)"
    } else {
        "true or unset (with DNS_CAPTURE off as well there is nothing to do)"
    };
    Err(Invalid::new("ENABLE_PROXY", "false", expected))
}

/// Whether questions to port 53 are captured: unless metadata `DNS_CAPTURE` is there and not `true`.
fn dns(proxy: &ProxyConfig) -> Result<bool, Invalid> {
    const ADDRESS: &str = "ISTIO_META_DNS_PROXY_ADDR";
    let address = proxy.metadata(ADDRESS).unwrap_or(DNS_ADDRESS_DEFAULT);
    let port = address.strip_prefix("localhost:");
    let known = port.is_some_and(|port| port.parse::<u16>().is_ok())
        || address.parse::<std::net::SocketAddr>().is_ok();
    if !known {
        return Err(Invalid::new(
            ADDRESS,
            address,
            "localhost:<port> or <ip>:<port>",
        ));
    }
    if address != DNS_ADDRESS_DEFAULT {
        return Err(Invalid::new(
            ADDRESS,
            address,
            "localhost:15053 or unset (capture brings questions to a socket of its own, at no fixed port)",
        ));
    }
    let wanted = proxy.metadata("ISTIO_META_DNS_CAPTURE");
    Ok(wanted.is_none_or(|value| value.eq_ignore_ascii_case("true")))
}
