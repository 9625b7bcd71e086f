//! Which pods are ours and how their connections come to us: enrolment, capture, and the listeners' settings.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::PINS_DEFAULT;
use super::mode::Mode;
use super::proxy_config::ProxyConfig;
use super::value::{Env, Invalid};

/// The mark that capture exempts, fixed in the kernel programs.
const PACKET_MARK: u32 = 1337;
/// Where istio-cni listens.
const INPOD_UDS_DEFAULT: &str = "/var/run/ztunnel/ztunnel.sock";
/// Bounds of the time between two looks at the kernel's state.
const RECONCILE_TIMES: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(3600);
/// Bounds of the time that a pod may be held.
const HOLD_TIMES: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(3600);

/// Where the pods of this node come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Enroll {
    /// istio-cni's node agent
    Zds {
        /// its socket
        socket: PathBuf,
        /// end the process when it breaks the protocol
        strict_exit: bool,
    },
    /// the Kubernetes API server
    Kubernetes {
        /// this node
        node: String,
    },
    /// an operator's file
    File(PathBuf),
    /// no pods: the daemon's own network namespace
    Own,
}

impl Enroll {
    /// As the variable says it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Zds { .. } => "zds",
            Self::Kubernetes { .. } => "kubernetes",
            Self::File(_) => "file",
            Self::Own => "own",
        }
    }

    pub(super) fn read(env: &Env<'_>, mode: &Mode) -> Result<Self, Invalid> {
        if mode.member().is_some() {
            return match env.optional("ENROLL") {
                None => Ok(Self::Own),
                Some(other) => Err(Invalid::new(
                    "ENROLL",
                    other,
                    "nothing with PROXY_MODE=dedicated (there is but one member: this machine)",
                )),
            };
        }
        let file = env.optional("ENROLL_FILE").map(PathBuf::from);
        let default = if file.is_some() { "file" } else { "zds" };
        match &*env.text("ENROLL", default) {
            "zds" => Ok(Self::Zds {
                socket: env.text("INPOD_UDS", INPOD_UDS_DEFAULT).into(),
                strict_exit: env.bool("ZDS_STRICT_EXIT", false)?,
            }),
            "kubernetes" => {
                let node = env.required("NODE_NAME", "this node's name, for ENROLL=kubernetes")?;
                Ok(Self::Kubernetes { node })
            }
            "file" => {
                let missing = || Invalid::new("ENROLL_FILE", "", "a path to the enrolment file");
                file.map(Self::File).ok_or_else(missing)
            }
            other => Err(Invalid::new(
                "ENROLL",
                other,
                "zds (istio-cni), kubernetes or file",
            )),
        }
    }
}

/// Who redirects the pods' connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redirect {
    /// this daemon's kernel programs
    Ebpf,
    /// rules that others put into the pods, towards well-known ports
    External {
        /// mark of the daemon's sockets, which those rules exempt; none = they exempt it in another way
        mark: Option<u32>,
        /// share the ports with another instance
        reuse_port: bool,
    },
}

impl Redirect {
    /// As the variable says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::External { .. } => "external",
        }
    }

    fn read(env: &Env<'_>, enroll: &Enroll) -> Result<Self, Invalid> {
        let zds = matches!(enroll, Enroll::Zds { .. });
        let value = env.text("CAPTURE", if zds { "external" } else { "ebpf" });
        match (&*value, zds) {
            ("external", _) => Ok(Self::External {
                mark: packet_mark(env, enroll)?,
                reuse_port: env.bool("INPOD_PORT_REUSE", true)?,
            }),
            ("ebpf", false) => refuse_other_listeners(env).map(|()| Self::Ebpf),
            ("ebpf", true) => Err(Invalid::new(
                "CAPTURE",
                value,
                "external or unset with ENROLL=zds (istio-cni puts its own rules into the pods; ENROLL=kubernetes goes without it)",
            )),
            _ => Err(Invalid::new("CAPTURE", value, "ebpf or external")),
        }
    }
}

/// What happens with a pod that is in the mesh and cannot be enrolled in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldPolicy {
    /// its connections are refused
    Deny,
    /// its connections go out as they are
    Allow,
}

/// How pods are held until they are enrolled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    /// most time that a pod is held
    pub timeout: Duration,
    /// what comes after that
    pub policy: HoldPolicy,
}

impl Hold {
    fn read(env: &Env<'_>, redirect: Redirect, enroll: &Enroll) -> Result<Option<Self>, Invalid> {
        let on = env.switch("HOLD")?;
        if *enroll == Enroll::Own {
            return match on {
                Some(true) => Err(Invalid::new(
                    "HOLD",
                    "true",
                    "false or unset with PROXY_MODE=dedicated (there are no pods to wait for)",
                )),
                _ => Ok(None),
            };
        }
        if redirect != Redirect::Ebpf {
            return match on {
                Some(true) => Err(Invalid::new(
                    "HOLD",
                    "true",
                    "false or unset with CAPTURE=external (only the kernel programs can hold a pod)",
                )),
                _ => Ok(None),
            };
        }
        let policy = match &*env.text("HOLD_POLICY", "deny") {
            "deny" => HoldPolicy::Deny,
            "allow" => HoldPolicy::Allow,
            other => return Err(Invalid::new("HOLD_POLICY", other, "deny or allow")),
        };
        let timeout = span(env, "HOLD_TIMEOUT", Duration::from_secs(30), HOLD_TIMES)?;
        Ok(on.unwrap_or(true).then_some(Self { timeout, policy }))
    }
}

/// Where questions come to that others redirect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsAddress {
    /// this port of 127.0.0.1 and ::1
    Localhost(u16),
    /// one address
    At(SocketAddr),
}

impl DnsAddress {
    fn read(proxy: &ProxyConfig, redirect: Redirect) -> Result<Self, Invalid> {
        const NAME: &str = "ISTIO_META_DNS_PROXY_ADDR";
        let default = Self::Localhost(capture::external::DNS_PORT);
        let Some(text) = proxy.metadata(NAME) else {
            return Ok(default);
        };
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0);
        let wanted = match text.strip_prefix("localhost:") {
            Some(text) => port(text).map(Self::Localhost),
            None => text.parse().ok().map(Self::At),
        };
        match wanted {
            None => Err(Invalid::new(NAME, text, "localhost:<port> or <ip>:<port>")),
            Some(other) if other != default && redirect == Redirect::Ebpf => Err(Invalid::new(
                NAME,
                text,
                "localhost:15053 or unset with CAPTURE=ebpf (the kernel brings questions to a socket of its own, at no fixed port)",
            )),
            Some(wanted) => Ok(wanted),
        }
    }
}

/// How connections come to the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capture {
    /// who redirects
    pub redirect: Redirect,
    /// cgroup v2 directory; none = kubepods, else the v2 root
    pub cgroup: Option<PathBuf>,
    /// directory in a bpffs
    pub pins: PathBuf,
    /// sources whose plaintext goes to the application directly, such as a node's health checks
    pub exempt_sources: Vec<IpNet>,
    /// the host's procfs
    pub host_proc: PathBuf,
    /// kubelet's cgroup; none = found by the process's name
    pub kubelet_cgroup: Option<PathBuf>,
    /// time between two looks at the kernel's state
    pub reconcile: Duration,
    /// pods are held until they are enrolled
    pub hold: Option<Hold>,
    /// questions to port 53 come to the daemon, unless a pod says otherwise
    pub dns: bool,
    /// where rules of others lead them to
    pub dns_address: DnsAddress,
    /// the application sees its client's address
    pub keep_source: bool,
    /// off: IPv6 connections of pods are refused, names give IPv4 addresses only
    pub ipv6: bool,
}

impl Capture {
    pub(super) fn read(
        env: &Env<'_>,
        proxy: &ProxyConfig,
        enroll: &Enroll,
    ) -> Result<Self, Invalid> {
        let redirect = Redirect::read(env, enroll)?;
        let (dns, dns_address) = (dns(proxy), DnsAddress::read(proxy, redirect)?);
        refuse_to_do_nothing(env, dns)?;
        Ok(Self {
            redirect,
            cgroup: env.optional("CAPTURE_CGROUP").map(PathBuf::from),
            pins: env.text("CAPTURE_PIN_PATH", PINS_DEFAULT).into(),
            exempt_sources: exempt_sources(env)?,
            host_proc: env.text("HOST_PROC", "/proc").into(),
            kubelet_cgroup: env.optional("KUBELET_CGROUP").map(PathBuf::from),
            reconcile: span(
                env,
                "CAPTURE_RECONCILE_INTERVAL",
                Duration::from_secs(30),
                RECONCILE_TIMES,
            )?,
            hold: Hold::read(env, redirect, enroll)?,
            dns,
            dns_address,
            // unset and true are one: capture never serves a pod without it
            keep_source: env.switch("ENABLE_ORIG_SRC")?.unwrap_or(true),
            ipv6: env.bool("IPV6_ENABLED", true)?,
        })
    }
}

/// A duration within bounds.
fn span(
    env: &Env<'_>,
    name: &'static str,
    default: Duration,
    bounds: std::ops::RangeInclusive<Duration>,
) -> Result<Duration, Invalid> {
    let span = env.duration(name, default)?;
    if bounds.contains(&span) {
        return Ok(span);
    }
    let expected = format!("a duration from {:?} to {:?}", bounds.start(), bounds.end());
    Err(Invalid::new(
        name,
        env.raw(name).unwrap_or_default(),
        expected,
    ))
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

/// The mark that rules of others exempt. On a machine of its own they may tell the daemon by its user or cgroup.
fn packet_mark(env: &Env<'_>, enroll: &Enroll) -> Result<Option<u32>, Invalid> {
    if *enroll == Enroll::Own && env.optional("PACKET_MARK").is_none() {
        return Ok(None);
    }
    env.within("PACKET_MARK", PACKET_MARK, 1..=u32::MAX)
        .map(Some)
}

/// The kernel programs need no port of their own, and know one mark.
fn refuse_other_listeners(env: &Env<'_>) -> Result<(), Invalid> {
    if !env.bool("INPOD_PORT_REUSE", true)? {
        return Err(Invalid::new(
            "INPOD_PORT_REUSE",
            "false",
            "true or unset with CAPTURE=ebpf (listeners are handed over from one process to the next)",
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
fn dns(proxy: &ProxyConfig) -> bool {
    let wanted = proxy.metadata("ISTIO_META_DNS_CAPTURE");
    wanted.is_none_or(|value| value.eq_ignore_ascii_case("true"))
}
