//! The table of environment variables: the text behind `ztunnel help` and the documentation.

/// One environment variable.
pub struct Variable {
    /// its name
    pub name: &'static str,
    /// value when unset, as text
    pub default: &'static str,
    /// what it does
    pub help: &'static str,
}

const fn v(name: &'static str, default: &'static str, help: &'static str) -> Variable {
    Variable {
        name,
        default,
        help,
    }
}

/// All variables, grouped as a reader would look for them.
pub const ALL: &[Variable] = &[
    v(
        "ENROLL",
        "file",
        "Where the pods of this node come from: file",
    ),
    v(
        "ENROLL_FILE",
        "(required)",
        "YAML file of pods and namespaces; watched",
    ),
    v(
        "ENROLL_EXCLUDE_NAMESPACES",
        "kube-system",
        "Namespaces whose pods are never enrolled, comma-separated",
    ),
    v(
        "LOCAL_XDS_PATH",
        "(required)",
        "YAML file of workloads, services and policies; watched",
    ),
    v(
        "XDS_ADDRESS",
        "(empty)",
        "Control plane; must be empty for now",
    ),
    v(
        "CA_ADDRESS",
        "(empty)",
        "Certificate authority; must be empty for now",
    ),
    v(
        "EMBEDDED_CA_DIR",
        "(required)",
        "Directory (mode 0700) of the embedded CA's root, shared by the daemons of one machine",
    ),
    v("SECRET_TTL", "24h", "Lifetime of workload certificates"),
    v(
        "COMPLIANCE_POLICY",
        "(none)",
        "pqc: no key exchange but X25519MLKEM768",
    ),
    v(
        "CRL_PATH",
        "(empty)",
        "Revoked certificates; must be empty for now",
    ),
    v(
        "LOCAL_XDS",
        "(empty)",
        "Mesh state inline; must be empty for now",
    ),
    v(
        "ENABLE_PROXY",
        "true",
        "The HBONE proxy; must be on for now",
    ),
    v(
        "IPV6_ENABLED",
        "true",
        "IPv6 in the pods; must be on for now",
    ),
    v(
        "UNSTABLE_ENABLE_SOCKS5",
        "false",
        "SOCKS5 listener; must be off for now",
    ),
    v(
        "TLS12_ENABLED",
        "false",
        "Offer and accept TLS 1.2 besides 1.3",
    ),
    v("CAPTURE", "ebpf", "How connections are captured: ebpf"),
    v(
        "CAPTURE_CGROUP",
        "kubepods, else the cgroup v2 root",
        "cgroup v2 directory above all pods, where the connect programs attach",
    ),
    v(
        "CAPTURE_PIN_PATH",
        "/sys/fs/bpf/ztunnel",
        "bpffs directory where capture outlives a restart; one per daemon",
    ),
    v(
        "CAPTURE_EXEMPT_SOURCES",
        "(none)",
        "Addresses or CIDRs whose plaintext reaches the application directly (health checks)",
    ),
    v(
        "PROXY_MODE",
        "shared",
        "shared: one daemon for all pods of the node",
    ),
    v(
        "NETWORK",
        "(empty)",
        "Network of this node, as in the mesh state",
    ),
    v("NODE_NAME", "(none)", "Name of this node"),
    v(
        "CLUSTER_ID",
        "Kubernetes",
        "Cluster id; ISTIO_META_CLUSTER_ID wins",
    ),
    v("ISTIO_META_CLUSTER_ID", "(none)", "Cluster id"),
    v(
        "ISTIO_META_ISTIO_VERSION",
        "unknown",
        "Version shown in the version line and the istio_build metric",
    ),
    v(
        "ZTUNNEL_WORKER_THREADS",
        "by CPU limit, at least 2",
        "Data threads: a number, 0 for all cores, or a share such as 50%",
    ),
    v(
        "ZTUNNEL_CPU_LIMIT",
        "(cores)",
        "CPUs this container may use",
    ),
    v("ZTUNNEL_RESOURCE_CPU_LIMIT", "(none)", "Explicit CPU limit"),
    v(
        "ZTUNNEL_RESOURCE_CPU_REQUEST",
        "(none)",
        "Explicit CPU request",
    ),
    v("ADMIN_PORT", "15000", "Admin endpoint, loopback only"),
    v("STATS_PORT", "15020", "Metrics endpoint"),
    v("READINESS_PORT", "15021", "Readiness endpoint"),
    v(
        "ENABLE_RESPONSE_BAGGAGE",
        "true",
        "Exchange workload attributes in the CONNECT response",
    ),
    v(
        "POOL_MAX_STREAMS_PER_CONNECTION",
        "100",
        "Connections that share one HBONE tunnel",
    ),
    v(
        "POOL_UNUSED_RELEASE_TIMEOUT",
        "5m",
        "Idle time after which a tunnel is closed",
    ),
    v(
        "HTTP2_STREAM_WINDOW_SIZE",
        "4194304",
        "HTTP/2 initial stream window, bytes",
    ),
    v(
        "HTTP2_CONNECTION_WINDOW_SIZE",
        "16777216",
        "HTTP/2 connection window, bytes",
    ),
    v("HTTP2_FRAME_SIZE", "1048576", "HTTP/2 largest frame, bytes"),
    v("KEEPALIVE_ENABLED", "true", "TCP keepalive"),
    v("KEEPALIVE_TIME", "180s", "Idle time before the first probe"),
    v("KEEPALIVE_INTERVAL", "180s", "Time between probes"),
    v(
        "KEEPALIVE_RETRIES",
        "9",
        "Probes without answer before a connection is dropped",
    ),
    v(
        "USER_TIMEOUT_ENABLED",
        "false",
        "TCP_USER_TIMEOUT derived from the keepalive settings",
    ),
    v(
        "LOCALHOST_APP_TUNNEL",
        "true",
        "Deliver PROXY-protocol tunnels on the pod's loopback",
    ),
    v(
        "CONNECTION_TERMINATION_DEADLINE",
        "5s",
        "Time that open connections have after a termination request",
    ),
    v(
        "TERMINATION_GRACE_PERIOD_SECONDS",
        "(none)",
        "Grace period to derive that time from",
    ),
    v("RUST_LOG", "info", "Log filter: level, or target=level,…"),
    v("LOG_FORMAT", "plain", "plain or json"),
    v(
        "AUTHZ_POLICY_INFO_LOGGING",
        "false",
        "Log policy decisions at info",
    ),
];
