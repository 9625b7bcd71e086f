//! The daemon's configuration, read from environment variables and files and checked whole before anything starts.
//!
//! Only this module reads the world, through a value that tests make themselves. What each setting does at run time is left
//! to the rooms.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use control::node::Node;
use identity::Tls;
use mesh::SpiffeId;

mod capture;
mod control_plane;
mod limits;
mod mode;
mod proxy_config;
mod value;
pub mod variables;
pub mod view;

pub use capture::{Capture, DnsAddress, Enroll, Hold, HoldPolicy, Redirect};
use control_plane::Common;
pub use control_plane::{Ca, Local, Xds};
pub use limits::{Http2, Keepalive};
pub use mode::Mode;
use proxy_config::ProxyConfig;
use value::Env;
pub use value::{Invalid, World};

/// Where capture state is pinned unless told otherwise.
pub const PINS_DEFAULT: &str = "/sys/fs/bpf/ztunnel";
/// What istiod takes for a node without an address.
const INSTANCE_IP_DEFAULT: &str = "1.1.1.1";

/// How lines are written to standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// tab-separated text
    Plain,
    /// one JSON object a line
    Json,
}

/// The daemon's own place in the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Own {
    /// pod name
    pub name: String,
    /// who it is
    pub identity: SpiffeId,
}

/// Everything the daemon was told.
#[derive(Debug, Clone)]
pub struct Config {
    /// for whom it works
    pub mode: Mode,
    /// where the node's pods come from
    pub enroll: Enroll,
    /// how to reach the API server; none = as a pod of the cluster
    pub kubeconfig: Option<PathBuf>,
    /// namespaces whose pods are never enrolled
    pub excluded_namespaces: Vec<String>,
    /// mesh state given locally
    pub local: Option<Local>,
    /// mesh state of the control plane
    pub xds: Option<Xds>,
    /// who signs certificates
    pub ca: Ca,
    /// certificate lifetime asked for
    pub secret_ttl: Duration,
    /// revoked certificates; watched
    pub crl_path: Option<PathBuf>,
    /// what istiod is told of this daemon
    pub node: Node,
    /// the daemon's own identity, when its pod is known
    pub own: Option<Own>,
    /// capture
    pub capture: Capture,
    /// own network name
    pub network: String,
    /// node name; none = every workload counts as local
    pub node_name: Option<String>,
    /// cluster id
    pub cluster_id: String,
    /// suffix of the cluster's service names, for the DNS proxy
    pub cluster_domain: String,
    /// whose services win when several namespaces have a host name, for the DNS proxy
    pub preferred_namespace: Option<String>,
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
    /// HTTP/2 and the tunnel pool
    pub http2: Http2,
    /// TCP keepalive
    pub keepalive: Keepalive,
    /// a SOCKS5 listener on the loopback of each pod
    pub socks5: bool,
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
    /// command line after the program's name
    pub arguments: Vec<String>,
    /// what is to be said in the log as soon as there is one
    pub warnings: Vec<String>,
}

/// Reads the whole configuration.
///
/// Errors: the first setting that cannot be used, with its value and what was expected.
pub fn read(world: &World) -> Result<Config, Invalid> {
    let env = Env::new(world);
    let proxy = ProxyConfig::read(&env)?;
    let mode = Mode::read(&env)?;
    let enroll = Enroll::read(&env, &mode)?;
    let capture = Capture::read(&env, &proxy, &enroll)?;
    let tls12 = env.is_true("TLS12_ENABLED");
    let post_quantum_only = env.raw("COMPLIANCE_POLICY") == Some("pqc");
    let common = Common {
        cluster_id: env
            .optional("ISTIO_META_CLUSTER_ID")
            .unwrap_or_else(|| env.text("CLUSTER_ID", "Kubernetes")),
        tls: Tls::new(tls12, post_quantum_only),
    };
    let local = control_plane::local(&env)?;
    let xds = control_plane::xds(&env, &common, &proxy, local.as_ref(), capture.dns)?;
    let ca = control_plane::ca(&env, &common)?;
    let mut warnings = ineffective(&env, &mode);
    warnings.extend(idle_enrolment(&env, &enroll, &capture));
    warnings.extend(control_plane::token_warning(&env));
    // a machine of its own is a member itself, and has no pod beside that
    let own = match &mode {
        Mode::Shared => own(&env)?,
        Mode::Dedicated(_) => None,
    };
    Ok(Config {
        mode,
        enroll,
        kubeconfig: env.optional("KUBECONFIG").map(PathBuf::from),
        excluded_namespaces: env.list("ENROLL_EXCLUDE_NAMESPACES", "kube-system"),
        local,
        xds,
        secret_ttl: control_plane::secret_ttl(&env, &ca)?,
        ca,
        crl_path: env.optional("CRL_PATH").map(PathBuf::from),
        node: node(&env, &proxy, &mut warnings)?,
        own,
        capture,
        network: env.text("NETWORK", ""),
        node_name: env.optional("NODE_NAME"),
        cluster_id: common.cluster_id,
        cluster_domain: env.text("CLUSTER_DOMAIN", "cluster.local"),
        preferred_namespace: env.optional("PREFERED_SERVICE_NAMESPACE"),
        tls12,
        post_quantum_only,
        threads: limits::threads(&env, &proxy)?,
        admin_port: env.number("ADMIN_PORT", proxy.proxy_admin_port.unwrap_or(15000))?,
        stats_port: env.number("STATS_PORT", proxy.stats_port.unwrap_or(15020))?,
        readiness_port: env.number("READINESS_PORT", 15021)?,
        response_baggage: env.bool("ENABLE_RESPONSE_BAGGAGE", true)?,
        http2: Http2::read(&env)?,
        keepalive: Keepalive::read(&env)?,
        socks5: env.bool("UNSTABLE_ENABLE_SOCKS5", false)?,
        localhost_app_tunnel: env.bool("LOCALHOST_APP_TUNNEL", true)?,
        drain_deadline: limits::drain_deadline(&env)?,
        log_format: if env.raw("LOG_FORMAT") == Some("json") {
            LogFormat::Json
        } else {
            LogFormat::Plain
        },
        log_filter: env.optional("RUST_LOG"),
        policy_info: env.is_true("AUTHZ_POLICY_INFO_LOGGING"),
        istio_version: env.text("ISTIO_META_ISTIO_VERSION", "unknown"),
        arguments: env.arguments().to_vec(),
        warnings,
    })
}

fn node(env: &Env<'_>, proxy: &ProxyConfig, warnings: &mut Vec<String>) -> Result<Node, Invalid> {
    let ip = env.text("INSTANCE_IP", INSTANCE_IP_DEFAULT);
    if ip.parse::<IpAddr>().is_err() {
        return Err(Invalid::new("INSTANCE_IP", ip, "an address"));
    }
    let (metadata_json, skipped) = proxy_config::json_metadata(env);
    warnings.extend(skipped);
    Ok(Node {
        ip,
        pod: env.text("POD_NAME", ""),
        namespace: env.text("POD_NAMESPACE", ""),
        node_name: env.text("NODE_NAME", ""),
        metadata: proxy.proxy_metadata.clone(),
        metadata_json,
    })
}

/// The own identity, when pod, namespace and service account are all known.
fn own(env: &Env<'_>) -> Result<Option<Own>, Invalid> {
    let trust_domain = env.text("TRUST_DOMAIN", "cluster.local");
    let (Some(name), Some(namespace), Some(account)) = (
        env.optional("POD_NAME"),
        env.optional("POD_NAMESPACE"),
        env.optional("SERVICE_ACCOUNT"),
    ) else {
        return Ok(None);
    };
    for (variable, part) in [
        ("TRUST_DOMAIN", &trust_domain),
        ("POD_NAMESPACE", &namespace),
        ("SERVICE_ACCOUNT", &account),
    ] {
        if part.contains('/') {
            return Err(Invalid::new(variable, part.as_str(), "a name without /"));
        }
    }
    let identity = SpiffeId::new(trust_domain, namespace, account);
    Ok(Some(Own { name, identity }))
}

/// Settings of enrolment and capture that belong to another way of doing it.
fn idle_enrolment(env: &Env<'_>, enroll: &Enroll, capture: &Capture) -> Vec<String> {
    let external = capture.redirect != Redirect::Ebpf;
    let zds = matches!(enroll, Enroll::Zds { .. });
    let file = matches!(enroll, Enroll::File(_));
    let ebpf_only = "with CAPTURE=external others redirect";
    [
        ("ENROLL_FILE", !file, "it is for ENROLL=file"),
        ("INPOD_UDS", !zds, "it is for ENROLL=zds"),
        ("ZDS_STRICT_EXIT", !zds, "it is for ENROLL=zds"),
        ("CAPTURE_CGROUP", external, ebpf_only),
        ("CAPTURE_PIN_PATH", external, ebpf_only),
        ("CAPTURE_EXEMPT_SOURCES", external, ebpf_only),
        ("KUBELET_CGROUP", external, ebpf_only),
        ("HOLD_TIMEOUT", capture.hold.is_none(), "pods are not held"),
        ("HOLD_POLICY", capture.hold.is_none(), "pods are not held"),
    ]
    .into_iter()
    .filter(|(name, idle, _)| *idle && env.optional(name).is_some())
    .map(|(name, _, why)| format!("{name} has no effect: {why}"))
    .collect()
}

/// Settings that are taken and change nothing here.
fn ineffective(env: &Env<'_>, mode: &Mode) -> Vec<String> {
    let shared = mode.member().is_none();
    let own = "the member is what PROXY_WORKLOAD_INFO says";
    [
        (
            "PROXY_WORKLOAD_INFO",
            shared,
            "it is for PROXY_MODE=dedicated",
        ),
        ("SERVICE_ACCOUNT", !shared, own),
        ("ENROLL_EXCLUDE_NAMESPACES", !shared, own),
    ]
    .into_iter()
    .filter(|(name, idle, _)| *idle && env.optional(name).is_some())
    .map(|(name, _, why)| format!("{name} has no effect: {why}"))
    .collect()
}

#[cfg(test)]
mod tests;
