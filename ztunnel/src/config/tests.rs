//! Tables of accepted and refused settings. Each case is a variable of the documentation with the values it takes.

use super::value::{parse_cpus, parse_duration, workers};
use super::*;

mod control_plane;
mod documents;
mod proxy_config;

/// What a daemon on one machine needs.
const NEEDED: [(&str, &str); 3] = [
    ("ENROLL_FILE", "/e"),
    ("LOCAL_XDS_PATH", "/m"),
    ("EMBEDDED_CA_DIR", "/ca"),
];

/// A world of these variables alone, in a directory that is not there.
fn world<'a>(variables: impl IntoIterator<Item = &'a (&'a str, &'a str)>) -> World {
    World {
        variables: variables
            .into_iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        directory: "/nowhere".into(),
        cores: 4,
        arguments: Vec::new(),
    }
}

/// The needed variables and these, which win.
fn with(variables: &[(&str, &str)]) -> Result<Config, Invalid> {
    read(&world(NEEDED.iter().chain(variables)))
}

fn error(variables: &[(&str, &str)]) -> String {
    with(variables)
        .map(|_| format!("{variables:?} is taken"))
        .unwrap_or_else(|invalid| invalid.to_string())
}

#[test]
fn defaults_are_the_documented_ones() {
    let config = with(&[]).expect("defaults are valid");
    assert_eq!(
        (config.admin_port, config.stats_port, config.readiness_port),
        (15000, 15020, 15021)
    );
    assert_eq!(config.drain_deadline, Duration::from_secs(5));
    assert_eq!(config.http2.pool_max_streams, 100);
    assert_eq!(config.threads, 2);
    assert_eq!(config.excluded_namespaces, ["kube-system"]);
    assert_eq!(config.secret_ttl, Duration::from_secs(86_400));
    assert_eq!(
        (config.cluster_id.as_str(), config.network.as_str()),
        ("Kubernetes", "")
    );
    assert!(config.capture.dns && config.capture.ipv6 && config.capture.keep_source);
    assert!(config.keepalive.enabled && !config.keepalive.user_timeout);
    assert_eq!(config.keepalive.time, Duration::from_secs(180));
    assert_eq!(config.istio_version, "unknown");
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn errors_name_variable_value_and_what_was_expected() {
    for (name, value, expected) in [
        ("KEEPALIVE_ENABLED", "yes", "true or false"),
        ("KEEPALIVE_ENABLED", "True", "true or false"),
        ("KEEPALIVE_ENABLED", "", "true or false"),
        ("KEEPALIVE_TIME", "0s", "a duration from 1s to 32767s"),
        ("KEEPALIVE_INTERVAL", "10h", "a duration from 1s to 32767s"),
        ("KEEPALIVE_RETRIES", "128", "a number from 1 to 127"),
        ("KEEPALIVE_RETRIES", "0x9", "a whole number (u32)"),
        ("USER_TIMEOUT_ENABLED", "1", "true or false"),
        (
            "SECRET_TTL",
            "1 fortnight",
            "a duration such as 10s, 500ms, 5m, 1h30m",
        ),
        ("SECRET_TTL", "1s", "a duration from 2s to 90d"),
        ("SECRET_TTL", "91d", "a duration from 2s to 90d"),
        ("ENROLL", "magic", "zds (istio-cni), kubernetes or file"),
        ("CAPTURE", "iptables", "ebpf or external"),
        ("HOLD", "1", "true or false"),
        ("HOLD_POLICY", "drop", "deny or allow"),
        ("HOLD_TIMEOUT", "0s", "a duration from 100ms to 3600s"),
        (
            "CAPTURE_RECONCILE_INTERVAL",
            "1ms",
            "a duration from 100ms to 3600s",
        ),
        (
            "DRAIN_MAX",
            "long",
            "a duration such as 10s, 500ms, 5m, 1h30m",
        ),
        (
            "CAPTURE_EXEMPT_SOURCES",
            "ten",
            "a comma-separated list of addresses or CIDRs",
        ),
        ("PROXY_MODE", "Shared", "shared or dedicated"),
        ("ENABLE_PROXY", "0", "true or false"),
        (
            "ENABLE_PROXY",
            "false",
            "true or unset (a daemon for DNS alone is not supported yet)",
        ),
        ("ENABLE_ORIG_SRC", "auto", "true or false"),
        (
            "PACKET_MARK",
            "1338",
            "1337 or unset (the capture programs exempt this mark)",
        ),
        ("PACKET_MARK", "-1", "a whole number (u32)"),
        (
            "INPOD_PORT_REUSE",
            "false",
            "true or unset with CAPTURE=ebpf (listeners are handed over from one process to the next)",
        ),
        ("IPV6_ENABLED", "no", "true or false"),
        ("LOCALHOST_APP_TUNNEL", "no", "true or false"),
        ("UNSTABLE_ENABLE_SOCKS5", "yes", "true or false"),
        ("ENABLE_RESPONSE_BAGGAGE", "off", "true or false"),
        (
            "POOL_MAX_STREAMS_PER_CONNECTION",
            "0",
            "a number from 1 to 65535",
        ),
        (
            "POOL_MAX_STREAMS_PER_CONNECTION",
            "65536",
            "a whole number (u16)",
        ),
        (
            "POOL_UNUSED_RELEASE_TIMEOUT",
            "5 moons",
            "a duration such as 10s, 500ms, 5m, 1h30m",
        ),
        (
            "HTTP2_STREAM_WINDOW_SIZE",
            "2147483648",
            "a number from 1 to 2147483647",
        ),
        (
            "HTTP2_CONNECTION_WINDOW_SIZE",
            "1000",
            "a number from 65535 to 2147483647",
        ),
        (
            "HTTP2_FRAME_SIZE",
            "16383",
            "a number from 16384 to 16777215",
        ),
        ("HTTP2_FRAME_SIZE", "1e6", "a whole number (u32)"),
        (
            "CONNECTION_TERMINATION_DEADLINE",
            "soon",
            "a duration such as 10s, 500ms, 5m, 1h30m",
        ),
        (
            "TERMINATION_GRACE_PERIOD_SECONDS",
            "30s",
            "a whole number (u64)",
        ),
        (
            "ZTUNNEL_WORKER_THREADS",
            "120%",
            "a number, 0 for all cores, or a share such as 50%",
        ),
        ("ZTUNNEL_CPU_LIMIT", "1.5", "a whole number (usize)"),
        (
            "ZTUNNEL_RESOURCE_CPU_LIMIT",
            "0",
            "a CPU quantity above 0 such as 2, 1.5 or 500m",
        ),
        (
            "ZTUNNEL_RESOURCE_CPU_REQUEST",
            "all",
            "a CPU quantity above 0 such as 2, 1.5 or 500m",
        ),
        ("ADMIN_PORT", "70000", "a whole number (u16)"),
        ("STATS_PORT", "", "a whole number (u16)"),
        ("READINESS_PORT", "x", "a whole number (u16)"),
        ("INSTANCE_IP", "here", "an address"),
    ] {
        let wanted = format!("{name}={value:?} is not valid: expected {expected}");
        assert_eq!(error(&[(name, value)]), wanted);
    }
}

#[test]
fn enrolment_decides_who_captures() {
    let only = |variables: &[(&str, &str)]| {
        let own = [("LOCAL_XDS_PATH", "/m"), ("EMBEDDED_CA_DIR", "/ca")];
        read(&world(own.iter().chain(variables)))
    };
    let external = |mark, reuse_port| Redirect::External { mark, reuse_port };
    let zds = |strict_exit| Enroll::Zds {
        socket: "/var/run/ztunnel/ztunnel.sock".into(),
        strict_exit,
    };
    let file = || Enroll::File("/e".into());
    let node = Enroll::Kubernetes { node: "n".into() };
    for (variables, enroll, redirect, hold) in [
        (vec![], zds(false), external(Some(1337), true), false),
        (
            vec![
                ("ZDS_STRICT_EXIT", "true"),
                ("PACKET_MARK", "7"),
                ("INPOD_PORT_REUSE", "false"),
            ],
            zds(true),
            external(Some(7), false),
            false,
        ),
        (vec![("ENROLL_FILE", "/e")], file(), Redirect::Ebpf, true),
        (
            vec![("ENROLL_FILE", "/e"), ("CAPTURE", "external")],
            file(),
            external(Some(1337), true),
            false,
        ),
        (
            vec![("ENROLL", "zds"), ("ENROLL_FILE", "/e")],
            zds(false),
            external(Some(1337), true),
            false,
        ),
        (
            vec![
                ("ENROLL", "kubernetes"),
                ("NODE_NAME", "n"),
                ("HOLD", "false"),
            ],
            node.clone(),
            Redirect::Ebpf,
            false,
        ),
    ] {
        let config = only(&variables).expect("valid");
        assert_eq!(config.enroll, enroll, "{variables:?}");
        assert_eq!(config.capture.redirect, redirect, "{variables:?}");
        assert_eq!(config.capture.hold.is_some(), hold, "{variables:?}");
    }
    for (variables, error) in [
        (vec![("ENROLL", "file")], "ENROLL_FILE=\"\" is not valid"),
        (
            vec![("ENROLL", "kubernetes")],
            "NODE_NAME=\"\" is not valid",
        ),
        (
            vec![("CAPTURE", "ebpf")],
            "CAPTURE=\"ebpf\" is not valid: expected external or unset with ENROLL=zds",
        ),
        (
            vec![("HOLD", "true")],
            "HOLD=\"true\" is not valid: expected false or unset with CAPTURE=external",
        ),
    ] {
        let said = only(&variables).expect_err("not valid").to_string();
        assert!(said.starts_with(error), "{said}");
    }
}

#[test]
fn the_drain_has_one_deadline() {
    for (variables, seconds) in [
        (vec![("TERMINATION_GRACE_PERIOD_SECONDS", "30")], 25),
        (
            vec![
                ("CONNECTION_TERMINATION_DEADLINE", "7s"),
                ("TERMINATION_GRACE_PERIOD_SECONDS", "30"),
            ],
            7,
        ),
        (
            vec![
                ("DRAIN_MAX", "4h"),
                ("CONNECTION_TERMINATION_DEADLINE", "7s"),
            ],
            14_400,
        ),
    ] {
        let config = with(&variables).expect("valid");
        assert_eq!(
            config.drain_deadline,
            Duration::from_secs(seconds),
            "{variables:?}"
        );
    }
}

#[test]
fn settings_reach_their_fields() {
    let config = with(&[
        ("ENABLE_ORIG_SRC", "false"),
        ("IPV6_ENABLED", "false"),
        ("ISTIO_META_DNS_CAPTURE", "no"),
        ("UNSTABLE_ENABLE_SOCKS5", "true"),
        ("PACKET_MARK", "1337"),
        ("INPOD_PORT_REUSE", "true"),
        ("KEEPALIVE_TIME", "60"),
        ("KEEPALIVE_RETRIES", "3"),
        ("USER_TIMEOUT_ENABLED", "true"),
        ("HTTP2_FRAME_SIZE", "16384"),
        ("POOL_UNUSED_RELEASE_TIMEOUT", "1m"),
        ("CRL_PATH", "/crl"),
        ("CLUSTER_ID", "c1"),
        ("NETWORK", "n1"),
        ("NODE_NAME", "node-1"),
        ("TLS12_ENABLED", "true"),
        ("COMPLIANCE_POLICY", "pqc"),
        ("LOG_FORMAT", "json"),
        ("AUTHZ_POLICY_INFO_LOGGING", "true"),
        ("CAPTURE_EXEMPT_SOURCES", "10.0.0.1, fd00::/64"),
    ])
    .expect("valid");
    let capture = &config.capture;
    assert!(!capture.keep_source && !capture.ipv6 && !capture.dns && config.socks5);
    assert_eq!(capture.exempt_sources.len(), 2);
    let keepalive = &config.keepalive;
    assert_eq!(
        (keepalive.time, keepalive.retries),
        (Duration::from_secs(60), 3)
    );
    assert!(keepalive.user_timeout);
    assert_eq!(config.http2.frame_size, 16_384);
    assert_eq!(config.http2.pool_idle, Duration::from_secs(60));
    assert_eq!(config.crl_path, Some("/crl".into()));
    assert_eq!(
        (config.cluster_id.as_str(), config.network.as_str()),
        ("c1", "n1")
    );
    assert_eq!(config.node_name.as_deref(), Some("node-1"));
    assert!(config.tls12 && config.post_quantum_only && config.policy_info);
    assert_eq!(config.log_format, LogFormat::Json);
    // what is compared with one value takes any other for no
    let config = with(&[
        ("TLS12_ENABLED", "yes"),
        ("LOG_FORMAT", "xml"),
        ("CRL_PATH", ""),
    ]);
    let config = config.expect("valid");
    assert!(!config.tls12 && config.log_format == LogFormat::Plain && config.crl_path.is_none());
}

#[test]
fn what_changes_nothing_is_said() {
    let dedicated = [
        ("PROXY_MODE", "dedicated"),
        ("PROXY_WORKLOAD_INFO", "shop/vm-1/web"),
        ("ENROLL", ""),
        ("ENROLL_FILE", ""),
    ];
    for (name, mode) in [
        ("PROXY_WORKLOAD_INFO", &[][..]),
        ("SERVICE_ACCOUNT", &dedicated),
        ("ENROLL_EXCLUDE_NAMESPACES", &dedicated),
    ] {
        let config = with(&[mode, &[(name, "x")]].concat()).expect("valid");
        assert!(
            config.warnings.iter().any(|w| w.starts_with(name)),
            "{name}: {:?}",
            config.warnings
        );
    }
}

#[test]
fn a_machine_of_its_own_is_one_member() {
    let dedicated = |more: &[(&'static str, &'static str)]| {
        let mode = [
            ("PROXY_MODE", "dedicated"),
            ("PROXY_WORKLOAD_INFO", "shop/vm-1/web"),
            ("ENROLL", ""),
            ("ENROLL_FILE", ""),
        ];
        [&mode, more].concat()
    };
    let config = with(&dedicated(&[])).expect("valid");
    let member = config.mode.member().expect("dedicated");
    assert_eq!(
        [&*member.namespace, &*member.name, &*member.service_account],
        ["shop", "vm-1", "web"]
    );
    assert_eq!(config.enroll, Enroll::Own);
    assert_eq!(config.capture.redirect, Redirect::Ebpf);
    assert_eq!((config.capture.hold, config.own), (None, None));
    let external = dedicated(&[("CAPTURE", "external")]);
    let redirect = with(&external).expect("valid").capture.redirect;
    assert!(matches!(redirect, Redirect::External { mark: None, .. }));
    let marked = dedicated(&[("CAPTURE", "external"), ("PACKET_MARK", "7")]);
    let redirect = with(&marked).expect("valid").capture.redirect;
    assert!(matches!(redirect, Redirect::External { mark: Some(7), .. }));
    for (name, value, starts) in [
        (
            "ENROLL",
            "kubernetes",
            "ENROLL=\"kubernetes\" is not valid: expected nothing",
        ),
        ("HOLD", "true", "HOLD=\"true\""),
        (
            "PROXY_WORKLOAD_INFO",
            "shop/vm-1",
            "PROXY_WORKLOAD_INFO=\"shop/vm-1\"",
        ),
        (
            "PROXY_WORKLOAD_INFO",
            "shop//web",
            "PROXY_WORKLOAD_INFO=\"shop//web\"",
        ),
        ("PROXY_WORKLOAD_INFO", "", "PROXY_WORKLOAD_INFO"),
    ] {
        let said = error(&dedicated(&[(name, value)]));
        assert!(said.starts_with(starts), "{said}");
    }
}

#[test]
fn own_identity_needs_pod_namespace_and_account() {
    let all = [
        ("POD_NAME", "zt-1"),
        ("POD_NAMESPACE", "istio-system"),
        ("SERVICE_ACCOUNT", "ztunnel"),
        ("TRUST_DOMAIN", "example.org"),
    ];
    let own = with(&all).expect("valid").own.expect("all are there");
    assert_eq!(own.name, "zt-1");
    assert_eq!(
        own.identity.to_string(),
        "spiffe://example.org/ns/istio-system/sa/ztunnel"
    );
    for missing in 0..3 {
        let mut some = all.to_vec();
        some.remove(missing);
        assert_eq!(with(&some).expect("valid").own, None);
    }
    let node = with(&all).expect("valid").node;
    assert_eq!(
        (node.pod.as_str(), node.namespace.as_str()),
        ("zt-1", "istio-system")
    );
    let slash = [all[0], all[1], ("SERVICE_ACCOUNT", "a/b")];
    assert!(error(&slash).starts_with("SERVICE_ACCOUNT=\"a/b\""));
}

#[test]
fn durations() {
    for (text, millis) in [
        ("10s", 10_000),
        ("500ms", 500),
        ("5m", 300_000),
        ("1h", 3_600_000),
        ("1h30m", 5_400_000),
        ("7", 7_000),
        ("0", 0),
        ("1.5s", 1_500),
        ("1s+500ms", 1_500),
        ("2*3s", 6_000),
        ("24*60*1m", 86_400_000),
        ("1m + 2 * 3s", 66_000),
    ] {
        assert_eq!(
            parse_duration(text),
            Some(Duration::from_millis(millis)),
            "{text}"
        );
    }
    for text in [
        "",
        "s",
        "1x",
        "1s1",
        "3s*3s",
        "-1s",
        "+",
        "1s+",
        "99999999999999999999h",
    ] {
        assert_eq!(parse_duration(text), None, "{text}");
    }
}

#[test]
fn cpu_quantities() {
    for (text, cpus) in [
        ("2", Some(2)),
        ("1.5", Some(2)),
        ("500m", Some(1)),
        ("1500m", Some(2)),
        ("0.1", Some(1)),
        ("0", None),
        ("0m", None),
        ("-1", None),
        ("", None),
        ("m", None),
        ("2k", None),
        ("inf", None),
        ("1e3", None),
    ] {
        assert_eq!(parse_cpus(text), cpus, "{text}");
    }
}

#[test]
fn thread_counts() {
    for (text, threads) in [
        ("3", Some(3)),
        ("0", Some(4)),
        ("30%", Some(2)),
        ("100%", Some(4)),
        ("0.1%", Some(1)),
        ("0%", None),
        ("101%", None),
        ("%", None),
        ("-1", None),
        ("two", None),
        ("", None),
    ] {
        assert_eq!(workers(text, 4), threads, "{text}");
    }
}

/// Which source of the number of threads counts, first match (configuration §5). The machine has 4 cores.
#[test]
fn threads_come_from_the_first_source_that_is_there() {
    const LIMIT: (&str, &str) = ("ZTUNNEL_RESOURCE_CPU_LIMIT", "3");
    const ALL_BUT: (&str, &str) = ("PROXY_CONFIG", "concurrency: 7");
    for (vars, wanted) in [
        (&[("ZTUNNEL_WORKER_THREADS", "5"), ALL_BUT, LIMIT][..], 5),
        (&[("ZTUNNEL_WORKER_THREADS", "0"), ALL_BUT, LIMIT], 3),
        (&[("ZTUNNEL_WORKER_THREADS", "50%"), ALL_BUT, LIMIT], 2),
        (&[("ZTUNNEL_WORKER_THREADS", "0")], 4),
        (
            &[("ZTUNNEL_WORKER_THREADS", "0"), ("ZTUNNEL_CPU_LIMIT", "8")],
            8,
        ),
        (
            &[
                ("ZTUNNEL_WORKER_THREADS", "0"),
                ("ZTUNNEL_CPU_LIMIT", "8"),
                LIMIT,
            ],
            3,
        ),
        (&[ALL_BUT, LIMIT], 7),
        (&[("PROXY_CONFIG", "concurrency: 0"), LIMIT], 3),
        (&[("PROXY_CONFIG", "concurrency: 0")], 4),
        (&[LIMIT], 3),
        (&[("ZTUNNEL_RESOURCE_CPU_LIMIT", "500m")], 1),
        (
            &[
                ("ZTUNNEL_RESOURCE_CPU_LIMIT", "1"),
                ("ZTUNNEL_RESOURCE_CPU_REQUEST", "3"),
            ],
            3,
        ),
        (&[("ZTUNNEL_RESOURCE_CPU_REQUEST", "2500m")], 3),
        (&[("ZTUNNEL_CPU_LIMIT", "16")], 4),
        (&[], 2),
    ] {
        assert_eq!(with(vars).expect("valid").threads, wanted, "{vars:?}");
    }
}

#[test]
fn drain_deadline_is_explicit_or_from_the_grace_period() {
    for (explicit, grace, secs) in [
        (None, None, 5),
        (None, Some("30"), 25),
        (None, Some("11"), 6),
        (None, Some("10"), 9),
        (None, Some("1"), 1),
        (None, Some("0"), 1),
        (Some("7s"), Some("30"), 7),
        (Some("0s"), None, 0),
    ] {
        let explicit = explicit.map(|value| ("CONNECTION_TERMINATION_DEADLINE", value));
        let grace = grace.map(|value| ("TERMINATION_GRACE_PERIOD_SECONDS", value));
        let variables: Vec<_> = explicit.into_iter().chain(grace).collect();
        let config = with(&variables).expect("valid");
        assert_eq!(
            config.drain_deadline,
            Duration::from_secs(secs),
            "{variables:?}"
        );
    }
}
