//! The table of environment variables: the text behind `ztunnel help` and the tables of the README.

/// One environment variable.
pub struct Variable {
    /// its name; `*` stands for any ending
    pub name: &'static str,
    /// value when unset, as text
    pub default: &'static str,
    /// what it does
    pub help: &'static str,
}

/// Variables that belong together.
pub struct Group {
    /// what they are about
    pub title: &'static str,
    /// the variables
    pub variables: &'static [Variable],
}

const fn v(name: &'static str, default: &'static str, help: &'static str) -> Variable {
    Variable {
        name,
        default,
        help,
    }
}

/// All variables, grouped as a reader would look for them.
pub const ALL: &[Group] = &[
    Group {
        title: "Pods and capture",
        variables: &[
            v(
                "ENROLL",
                "file if ENROLL_FILE is set, else zds",
                "Where the pods of this node come from: zds (istio-cni), kubernetes (the API server), file",
            ),
            v(
                "ENROLL_FILE",
                "(none)",
                "YAML file of pods and namespaces; watched. Needed for ENROLL=file",
            ),
            v(
                "ENROLL_EXCLUDE_NAMESPACES",
                "kube-system",
                "Namespaces whose pods are never enrolled, comma-separated; not for zds",
            ),
            v(
                "KUBECONFIG",
                "(in the cluster: service account)",
                "How to reach the API server for ENROLL=kubernetes",
            ),
            v(
                "CAPTURE",
                "external for zds, else ebpf",
                "Who redirects connections: ebpf (this daemon's kernel programs), external (rules that others put into the pods)",
            ),
            v(
                "CAPTURE_CGROUP",
                "kubepods, else the cgroup v2 root; dedicated: that root",
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
                "CAPTURE_RECONCILE_INTERVAL",
                "30s",
                "Time between two comparisons of the kernel's state with what is wanted, 100ms to 1h",
            ),
            v(
                "KUBELET_CGROUP",
                "that of the process kubelet",
                "cgroup v2 directory whose processes' connections reach applications directly (probes)",
            ),
            v(
                "HOLD",
                "true with ebpf",
                "Hold connections of pods that are to be enrolled until they are",
            ),
            v(
                "HOLD_TIMEOUT",
                "30s",
                "Most time a pod is held, 100ms to 1h",
            ),
            v(
                "HOLD_POLICY",
                "deny",
                "After that: deny (refuse its connections), allow (let them out as they are)",
            ),
            v(
                "HOST_PROC",
                "/proc",
                "The host's procfs, where the pods' processes are found and their sysctls are written",
            ),
            v(
                "PROXY_MODE",
                "shared",
                "shared: one daemon for all pods of the node; dedicated: for the machine (network namespace) that it runs on",
            ),
            v(
                "PROXY_WORKLOAD_INFO",
                "(none)",
                "Whom dedicated mode serves: <namespace>/<workload name>/<service account>",
            ),
            v(
                "INPOD_UDS",
                "/var/run/ztunnel/ztunnel.sock",
                "Socket of istio-cni, for ENROLL=zds",
            ),
            v(
                "ZDS_STRICT_EXIT",
                "false",
                "true: end the process when istio-cni breaks the protocol; false: connect anew",
            ),
            v(
                "INPOD_PORT_REUSE",
                "true",
                "Share the well-known ports with another instance; must be true with ebpf",
            ),
            v(
                "PACKET_MARK",
                "1337; dedicated with external: none",
                "Mark of the daemon's own sockets; must be 1337 with ebpf",
            ),
        ],
    },
    Group {
        title: "Control plane",
        variables: &[
            v(
                "XDS_ADDRESS",
                "discoveryAddress, else istiod",
                "Control plane, <host>:<port> over TLS; empty = none. Unset: discoveryAddress of the proxy configuration; else istiod.istio-system.svc:15012 in Kubernetes; else none if there is a local state; else localhost:15012",
            ),
            v(
                "XDS_ROOT_CA",
                "./var/run/secrets/istio/root-cert.pem",
                "Who vouches for it: a PEM file (read again at each connection), SYSTEM, or PEM text",
            ),
            v(
                "ALT_XDS_HOSTNAME",
                "(none)",
                "Another name that its certificate may bear",
            ),
            v(
                "XDS_HEADER_*",
                "(none)",
                "Extra request header *, in lower case",
            ),
            v(
                "XDS_ON_DEMAND",
                "false",
                "Ask for destinations when they are needed; DNS capture must be off",
            ),
            v(
                "AUTH_TOKEN",
                "./var/run/secrets/tokens/istio-token, if it exists",
                "File with the bearer token (read again for every call), or the token itself",
            ),
            v(
                "LOCAL_XDS_PATH",
                "(none)",
                "YAML file of workloads, services and policies; watched",
            ),
            v(
                "LOCAL_XDS",
                "(none)",
                "The same text inline; one of the two",
            ),
            v(
                "KUBERNETES_SERVICE_HOST",
                "(none)",
                "Set by Kubernetes: istiod is in the cluster",
            ),
        ],
    },
    Group {
        title: "Certificates",
        variables: &[
            v(
                "CA_ADDRESS",
                "istiod",
                "Certificate authority, <host>:<port> over TLS. Unset: the embedded CA if EMBEDDED_CA_DIR is set; else istiod.istio-system.svc:15012 in Kubernetes; else localhost:15012",
            ),
            v(
                "CA_ROOT_CA",
                "./var/run/secrets/istio/root-cert.pem",
                "As XDS_ROOT_CA; the file is followed",
            ),
            v(
                "ALT_CA_HOSTNAME",
                "(none)",
                "Another name that its certificate may bear",
            ),
            v(
                "CA_HEADER_*",
                "(none)",
                "Extra request header *, in lower case",
            ),
            v(
                "EMBEDDED_CA_DIR",
                "(none)",
                "Directory (mode 0700) of an embedded CA's root, shared by the daemons of one machine; instead of CA_ADDRESS",
            ),
            v(
                "FAKE_CA",
                "false",
                "Must be false; EMBEDDED_CA_DIR gives an authority without a network",
            ),
            v("SECRET_TTL", "24h", "Lifetime of workload certificates"),
            v(
                "CRL_PATH",
                "(none)",
                "PEM or DER file of revoked certificates; watched",
            ),
            v(
                "TLS12_ENABLED",
                "false",
                "Offer and accept TLS 1.2 besides 1.3",
            ),
            v(
                "COMPLIANCE_POLICY",
                "(none)",
                "pqc: no key exchange but X25519MLKEM768",
            ),
        ],
    },
    Group {
        title: "This node",
        variables: &[
            v(
                "NODE_NAME",
                "(none)",
                "Name of this node; unset = every workload counts as local",
            ),
            v(
                "NETWORK",
                "(empty)",
                "Network of this node, as in the mesh state",
            ),
            v(
                "CLUSTER_ID",
                "Kubernetes",
                "Cluster id; ISTIO_META_CLUSTER_ID wins",
            ),
            v(
                "CLUSTER_DOMAIN",
                "cluster.local",
                "Suffix of the cluster's service names, which the DNS proxy completes",
            ),
            v(
                "TRUST_DOMAIN",
                "cluster.local",
                "Trust domain of the daemon's own identity",
            ),
            v("POD_NAME", "(none)", "Pod of the daemon"),
            v("POD_NAMESPACE", "(none)", "Its namespace"),
            v(
                "SERVICE_ACCOUNT",
                "(none)",
                "Its service account; with the two above, the daemon's own identity, and an HBONE listener for its own pod",
            ),
            v("INSTANCE_IP", "1.1.1.1", "Its address, as told to istiod"),
            v(
                "PROXY_CONFIG",
                "(none)",
                "YAML or JSON: discoveryAddress, proxyAdminPort, statsPort, concurrency, proxyMetadata; over defaultConfig of ./etc/istio/config/mesh, below the variables",
            ),
            v(
                "ISTIO_META_*",
                "(none)",
                "Proxy metadata *, sent to istiod; over proxyMetadata",
            ),
            v("ISTIO_META_CLUSTER_ID", "(none)", "Cluster id"),
            v(
                "ISTIO_META_ISTIO_VERSION",
                "unknown",
                "Version shown in the version line and the istio_build metric",
            ),
            v(
                "ISTIO_META_DNS_CAPTURE",
                "true",
                "Questions to port 53 come to the daemon, which answers names of the mesh, unless a pod says otherwise",
            ),
            v(
                "ISTIO_META_DNS_PROXY_ADDR",
                "localhost:15053",
                "Where rules of others lead them to: localhost:<port> or <ip>:<port>; must be the default with ebpf",
            ),
            v(
                "ISTIO_METAJSON_*",
                "(none)",
                "Node metadata * as JSON, sent to istiod",
            ),
        ],
    },
    Group {
        title: "Proxy",
        variables: &[
            v(
                "ENABLE_PROXY",
                "true",
                "The HBONE proxy; must be on for now",
            ),
            v(
                "ENABLE_ORIG_SRC",
                "true",
                "The application sees its client's address; false: the pod's own",
            ),
            v(
                "IPV6_ENABLED",
                "true",
                "false: IPv6 connections of pods are refused, names give IPv4 addresses only",
            ),
            v(
                "LOCALHOST_APP_TUNNEL",
                "true",
                "Deliver PROXY-protocol tunnels on the pod's loopback; false: at its address",
            ),
            v(
                "UNSTABLE_ENABLE_SOCKS5",
                "false",
                "SOCKS5 on 127.0.0.1:15080 of each pod: no authentication, CONNECT only",
            ),
            v(
                "ENABLE_RESPONSE_BAGGAGE",
                "true",
                "Exchange workload attributes in the CONNECT response",
            ),
            v(
                "PREFERED_SERVICE_NAMESPACE",
                "(none)",
                "Whose Service the DNS proxy prefers when several namespaces have the name",
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
            v(
                "KEEPALIVE_ENABLED",
                "true",
                "TCP keepalive of accepted and dialled connections",
            ),
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
                "TCP_USER_TIMEOUT = time + retries × interval",
            ),
        ],
    },
    Group {
        title: "Process",
        variables: &[
            v(
                "ZTUNNEL_WORKER_THREADS",
                "concurrency, else by CPU limit, at least 2",
                "Data threads: a number, 0 for all cores, or a share such as 50%",
            ),
            v(
                "ZTUNNEL_CPU_LIMIT",
                "(cores)",
                "CPUs this container may use",
            ),
            v(
                "ZTUNNEL_RESOURCE_CPU_LIMIT",
                "(none)",
                "Explicit CPU limit, such as 2, 1.5 or 500m",
            ),
            v(
                "ZTUNNEL_RESOURCE_CPU_REQUEST",
                "(none)",
                "Explicit CPU request",
            ),
            v(
                "ADMIN_PORT",
                "proxyAdminPort, else 15000",
                "Admin endpoint, loopback only",
            ),
            v("STATS_PORT", "statsPort, else 15020", "Metrics endpoint"),
            v("READINESS_PORT", "15021", "Readiness endpoint"),
            v(
                "DRAIN_MAX",
                "CONNECTION_TERMINATION_DEADLINE",
                "Time that open connections have after a termination request, such as 30s or 4h; wins over the next two",
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
                "RUST_BACKTRACE",
                "0",
                "1 or full: a panic is logged with its backtrace",
            ),
            v(
                "AUTHZ_POLICY_INFO_LOGGING",
                "false",
                "Log policy decisions at info",
            ),
        ],
    },
];

/// How values are written.
pub const FORMS: &str = "\
A switch is exactly true or false. A duration is 10s, 500ms, 5m, 1h30m, also a sum or product of such
(1s+500ms, 2*3s); a bare number is seconds. Paths are relative to the working directory unless they begin
with a slash.";
