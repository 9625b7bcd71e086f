//! The daemon's configuration, read from environment variables and checked whole before anything starts.
//!
//! Only this file reads the world, through a closure. What each variable does at run time is left to the rooms.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

mod value;
pub mod variables;

pub use value::Invalid;

/// Where capture state is pinned unless told otherwise.
pub const PINS_DEFAULT: &str = "/sys/fs/bpf/ztunnel";

/// How lines are written to standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// tab-separated text
    Plain,
    /// one JSON object a line
    Json,
}

/// TCP keepalive of sockets towards applications and peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keepalive {
    /// off = no keepalive at all
    pub enabled: bool,
    /// idle time before the first probe
    pub time: Duration,
    /// time between probes
    pub interval: Duration,
    /// probes without answer before the connection is dropped
    pub retries: u32,
    /// `TCP_USER_TIMEOUT` = time + retries × interval
    pub user_timeout: bool,
}

/// Where the connect programs attach and where their state is pinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capture {
    /// cgroup v2 directory; none = kubepods, else the v2 root
    pub cgroup: Option<PathBuf>,
    /// directory in a bpffs
    pub pins: PathBuf,
    /// sources whose plaintext goes to the application directly, such as a node's health checks
    pub exempt_sources: Vec<IpNet>,
}

/// Everything the daemon was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// enrolment file (`ENROLL=file`)
    pub enroll_file: PathBuf,
    /// namespaces whose pods are never enrolled
    pub excluded_namespaces: Vec<String>,
    /// mesh state file
    pub mesh_file: PathBuf,
    /// directory of the embedded CA
    pub embedded_ca_dir: PathBuf,
    /// capture
    pub capture: Capture,
    /// own network name
    pub network: String,
    /// node name, for the dump
    pub node_name: Option<String>,
    /// cluster id
    pub cluster_id: String,
    /// certificate lifetime asked for
    pub secret_ttl: Duration,
    /// TLS 1.2 accepted and offered as well
    pub tls12: bool,
    /// no key exchange but the post-quantum hybrid
    pub post_quantum_only: bool,
    /// data threads
    pub threads: usize,
    /// admin port on loopback
    pub admin_port: u16,
    /// metrics port
    pub stats_port: u16,
    /// readiness port
    pub readiness_port: u16,
    /// answer 200 with the local workload's baggage, and read the peer's
    pub response_baggage: bool,
    /// streams per pooled connection
    pub pool_max_streams: u16,
    /// idle time after which a pooled connection is released
    pub pool_idle: Duration,
    /// HTTP/2 initial stream window
    pub stream_window: u32,
    /// HTTP/2 connection window
    pub connection_window: u32,
    /// HTTP/2 largest frame
    pub frame_size: u32,
    /// TCP keepalive
    pub keepalive: Keepalive,
    /// PROXY-protocol delivery on the pod's loopback
    pub localhost_app_tunnel: bool,
    /// time that open connections have after a termination request
    pub drain_deadline: Duration,
    /// log format
    pub log_format: LogFormat,
    /// log filter text
    pub log_filter: Option<String>,
    /// policy decisions at info instead of debug
    pub policy_info: bool,
    /// Istio version for the version line
    pub istio_version: String,
}

/// Reads the whole configuration.
///
/// - `get`: value of a variable, none when unset
/// - `cores`: logical cores of the machine, used when no limit is given
///
/// Errors: the first variable whose value cannot be used, with the value and what was expected.
pub fn read(get: impl Fn(&str) -> Option<String>, cores: usize) -> Result<Config, Invalid> {
    let env = value::Env::new(get);
    source_of_pods(&env)?;
    not_supported_yet(&env)?;
    Ok(Config {
        enroll_file: env
            .required("ENROLL_FILE", "a path to the enrolment file")?
            .into(),
        excluded_namespaces: env.list("ENROLL_EXCLUDE_NAMESPACES", "kube-system"),
        mesh_file: env
            .required("LOCAL_XDS_PATH", "a path to the mesh state file")?
            .into(),
        embedded_ca_dir: env
            .required(
                "EMBEDDED_CA_DIR",
                "a directory for the embedded CA (the Istio CA is not supported yet)",
            )?
            .into(),
        capture: capture(&env)?,
        network: env.text("NETWORK", ""),
        node_name: env.optional("NODE_NAME"),
        cluster_id: env
            .optional("ISTIO_META_CLUSTER_ID")
            .unwrap_or_else(|| env.text("CLUSTER_ID", "Kubernetes")),
        secret_ttl: secret_ttl(&env)?,
        tls12: env.optional("TLS12_ENABLED").is_some_and(|v| v == "true"),
        post_quantum_only: env
            .optional("COMPLIANCE_POLICY")
            .is_some_and(|v| v == "pqc"),
        threads: threads(&env, cores)?,
        admin_port: env.number("ADMIN_PORT", 15000)?,
        stats_port: env.number("STATS_PORT", 15020)?,
        readiness_port: env.number("READINESS_PORT", 15021)?,
        response_baggage: env.bool("ENABLE_RESPONSE_BAGGAGE", true)?,
        pool_max_streams: at_least_one(
            "POOL_MAX_STREAMS_PER_CONNECTION",
            env.number("POOL_MAX_STREAMS_PER_CONNECTION", 100)?,
        )?,
        pool_idle: env.duration("POOL_UNUSED_RELEASE_TIMEOUT", Duration::from_secs(300))?,
        stream_window: env.number("HTTP2_STREAM_WINDOW_SIZE", 4_194_304)?,
        connection_window: env.number("HTTP2_CONNECTION_WINDOW_SIZE", 16_777_216)?,
        frame_size: env.number("HTTP2_FRAME_SIZE", 1_048_576)?,
        keepalive: keepalive(&env)?,
        localhost_app_tunnel: env.bool("LOCALHOST_APP_TUNNEL", true)?,
        drain_deadline: drain_deadline(&env)?,
        log_format: if env.text("LOG_FORMAT", "plain") == "json" {
            LogFormat::Json
        } else {
            LogFormat::Plain
        },
        log_filter: env.optional("RUST_LOG"),
        policy_info: env
            .optional("AUTHZ_POLICY_INFO_LOGGING")
            .is_some_and(|v| v == "true"),
        istio_version: env.text("ISTIO_META_ISTIO_VERSION", "unknown"),
    })
}

fn source_of_pods(env: &value::Env<impl Fn(&str) -> Option<String>>) -> Result<(), Invalid> {
    let enroll = env.text("ENROLL", "file");
    if enroll != "file" {
        return Err(Invalid::new(
            "ENROLL",
            enroll,
            "file (zds and kubernetes are not supported yet)",
        ));
    }
    let capture = env.text("CAPTURE", "ebpf");
    if capture != "ebpf" {
        return Err(Invalid::new(
            "CAPTURE",
            capture,
            "ebpf (external is not supported yet)",
        ));
    }
    let mode = env.text("PROXY_MODE", "shared");
    if mode != "shared" {
        return Err(Invalid::new(
            "PROXY_MODE",
            mode,
            "shared (dedicated is not supported yet)",
        ));
    }
    Ok(())
}

/// What is configured but would not be used must not look as if it were.
fn not_supported_yet(env: &value::Env<impl Fn(&str) -> Option<String>>) -> Result<(), Invalid> {
    for (name, why) in [
        (
            "XDS_ADDRESS",
            "a control plane is not supported yet; the mesh comes from LOCAL_XDS_PATH",
        ),
        (
            "CA_ADDRESS",
            "a control plane is not supported yet; certificates come from EMBEDDED_CA_DIR",
        ),
        ("CRL_PATH", "certificate revocation is not supported yet"),
        (
            "LOCAL_XDS",
            "inline mesh state is not supported yet; use LOCAL_XDS_PATH",
        ),
    ] {
        if let Some(value) = env.optional(name) {
            return Err(Invalid::new(name, value, format!("empty or unset ({why})")));
        }
    }
    for name in ["ENABLE_PROXY", "IPV6_ENABLED"] {
        if !env.bool(name, true)? {
            return Err(Invalid::new(
                name,
                "false",
                "true or unset (switching it off is not supported yet)",
            ));
        }
    }
    if env.bool("UNSTABLE_ENABLE_SOCKS5", false)? {
        return Err(Invalid::new(
            "UNSTABLE_ENABLE_SOCKS5",
            "true",
            "false or unset (SOCKS5 is not supported yet)",
        ));
    }
    Ok(())
}

fn capture(env: &value::Env<impl Fn(&str) -> Option<String>>) -> Result<Capture, Invalid> {
    let mut exempt_sources = Vec::new();
    for item in env.list("CAPTURE_EXEMPT_SOURCES", "") {
        let net = item
            .parse::<IpNet>()
            .or_else(|_| item.parse::<IpAddr>().map(IpNet::from));
        exempt_sources.push(net.map_err(|_| {
            Invalid::new(
                "CAPTURE_EXEMPT_SOURCES",
                item,
                "a comma-separated list of addresses or CIDRs",
            )
        })?);
    }
    Ok(Capture {
        cgroup: env.optional("CAPTURE_CGROUP").map(PathBuf::from),
        pins: env.text("CAPTURE_PIN_PATH", PINS_DEFAULT).into(),
        exempt_sources,
    })
}

fn keepalive(env: &value::Env<impl Fn(&str) -> Option<String>>) -> Result<Keepalive, Invalid> {
    Ok(Keepalive {
        enabled: env.bool("KEEPALIVE_ENABLED", true)?,
        time: env.duration("KEEPALIVE_TIME", Duration::from_secs(180))?,
        interval: env.duration("KEEPALIVE_INTERVAL", Duration::from_secs(180))?,
        retries: env.number("KEEPALIVE_RETRIES", 9)?,
        user_timeout: env.bool("USER_TIMEOUT_ENABLED", false)?,
    })
}

/// Lifetime of certificates, within what the embedded CA issues.
fn secret_ttl(env: &value::Env<impl Fn(&str) -> Option<String>>) -> Result<Duration, Invalid> {
    const DAY: u64 = 24 * 3600;
    let ttl = env.duration("SECRET_TTL", Duration::from_secs(DAY))?;
    if (Duration::from_secs(2)..=Duration::from_secs(90 * DAY)).contains(&ttl) {
        return Ok(ttl);
    }
    Err(Invalid::new(
        "SECRET_TTL",
        env.text("SECRET_TTL", ""),
        "a duration from 2s to 90d",
    ))
}

fn at_least_one(name: &'static str, number: u16) -> Result<u16, Invalid> {
    if number == 0 {
        Err(Invalid::new(name, "0", "a number from 1 to 65535"))
    } else {
        Ok(number)
    }
}

/// Data threads (spec: configuration §5): an explicit count or share of the cores, else what the limits allow.
fn threads(
    env: &value::Env<impl Fn(&str) -> Option<String>>,
    cores: usize,
) -> Result<usize, Invalid> {
    let limit = env.cpus("ZTUNNEL_RESOURCE_CPU_LIMIT")?;
    let request = env.cpus("ZTUNNEL_RESOURCE_CPU_REQUEST")?;
    let cores = match (limit, env.optional("ZTUNNEL_CPU_LIMIT")) {
        (Some(limit), _) => limit,
        (None, Some(_)) => env.number::<usize>("ZTUNNEL_CPU_LIMIT", cores)?,
        (None, None) => cores,
    };
    if let Some(text) = env.optional("ZTUNNEL_WORKER_THREADS") {
        return value::workers(&text, cores).ok_or_else(|| {
            Invalid::new(
                "ZTUNNEL_WORKER_THREADS",
                text,
                "a number, 0 for all cores, or a share such as 50%",
            )
        });
    }
    Ok(match limit {
        Some(limit) => limit.max(request.unwrap_or(0)),
        None => cores.div_ceil(4).max(request.unwrap_or(0)).max(2),
    }
    .max(1))
}

/// Time for open connections at termination (spec: configuration §6).
fn drain_deadline(env: &value::Env<impl Fn(&str) -> Option<String>>) -> Result<Duration, Invalid> {
    const DEFAULT: Duration = Duration::from_secs(5);
    if env.optional("CONNECTION_TERMINATION_DEADLINE").is_some() {
        return env.duration("CONNECTION_TERMINATION_DEADLINE", DEFAULT);
    }
    if env.optional("TERMINATION_GRACE_PERIOD_SECONDS").is_none() {
        return Ok(DEFAULT);
    }
    let grace: u64 = env.number("TERMINATION_GRACE_PERIOD_SECONDS", 0)?;
    let left = if grace > 10 {
        grace - 5
    } else {
        grace.saturating_sub(1)
    };
    Ok(Duration::from_secs(left.max(1)))
}

#[cfg(test)]
mod tests;
