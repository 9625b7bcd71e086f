//! The mesh file, `PROXY_CONFIG` and metadata, and which of them wins.

use super::*;

/// A directory with this mesh file.
fn directory(mesh: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(directory.path().join("etc/istio/config")).unwrap();
    std::fs::write(directory.path().join("etc/istio/config/mesh"), mesh).unwrap();
    directory
}

fn in_directory(mesh: &str, variables: &[(&str, &str)]) -> Result<Config, Invalid> {
    let directory = directory(mesh);
    let mut world = world(NEEDED.iter().chain(variables));
    world.directory = directory.path().to_owned();
    read(&world)
}

#[test]
fn later_sources_win_key_by_key() {
    const MESH: &str = "
defaultConfig:
  proxyAdminPort: 1001
  statsPort: 1002
  concurrency: 3
  proxyMetadata: {A: mesh, ISTIO_META_B: mesh, C: mesh}
  unknownKey: {x: [1]}
rootNamespace: istio-system
";
    let proxy = (
        "PROXY_CONFIG",
        "{statsPort: 2002, proxyMetadata: {B: proxy, C: proxy, N: 1, T: true}}",
    );
    let meta = ("ISTIO_META_C", "env");
    for (variables, admin, stats, threads, metadata) in [
        (&[][..], 1001, 1002, 3, "A=mesh B=mesh C=mesh"),
        (&[proxy], 1001, 2002, 3, "A=mesh B=proxy C=proxy N=1 T=true"),
        (
            &[proxy, meta],
            1001,
            2002,
            3,
            "A=mesh B=proxy C=env N=1 T=true",
        ),
        (
            &[
                proxy,
                ("ADMIN_PORT", "3001"),
                ("STATS_PORT", "3002"),
                ("ZTUNNEL_WORKER_THREADS", "9"),
            ],
            3001,
            3002,
            9,
            "A=mesh B=proxy C=proxy N=1 T=true",
        ),
    ] {
        let config = in_directory(MESH, variables).expect("valid");
        assert_eq!(
            (config.admin_port, config.stats_port, config.threads),
            (admin, stats, threads),
            "{variables:?}"
        );
        let pairs = config.node.metadata.iter();
        let text: Vec<_> = pairs.map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(text.join(" "), metadata, "{variables:?}");
    }
}

#[test]
fn absent_and_empty_sources_say_nothing() {
    for (mesh, variables) in [
        ("", &[("PROXY_CONFIG", "")][..]),
        ("defaultConfig:", &[("PROXY_CONFIG", "null")]),
        ("trustDomain: x", &[("PROXY_CONFIG", "{}")]),
        ("defaultConfig: {proxyMetadata: null}", &[]),
    ] {
        let config = in_directory(mesh, variables).expect("valid");
        assert_eq!(config.admin_port, 15000, "{mesh}");
        assert!(config.node.metadata.is_empty());
    }
}

#[test]
fn texts_that_cannot_be_parsed_are_fatal_and_named() {
    for (proxy, said) in [
        (
            "statsPort: many",
            r#"statsPort: "many", expected a port number from 0 to 65535"#,
        ),
        (
            "a: b\nstatsPort: 70000",
            "statsPort: 70000, expected a port number from 0 to 65535",
        ),
        (
            r#"{"proxyAdminPort": -1}"#,
            "proxyAdminPort: -1, expected a port number from 0 to 65535",
        ),
        (
            "concurrency: -1",
            "concurrency: -1, expected a whole number from 0 to 65535",
        ),
        (
            "concurrency: 1.5",
            "concurrency: 1.5, expected a whole number from 0 to 65535",
        ),
        (
            "concurrency: [1]",
            "concurrency: [1], expected a whole number from 0 to 65535",
        ),
        ("discoveryAddress: [1]", "discoveryAddress: "),
        ("proxyMetadata: [1]", "proxyMetadata: "),
        (
            "proxyMetadata: {A: {b: c}}",
            "proxyMetadata: A: expected text, a number or a switch",
        ),
        ("{", ""),
        ("- a", ""),
    ] {
        let text = error(&[("PROXY_CONFIG", proxy)]);
        let start = format!("PROXY_CONFIG is not valid: {said}");
        assert!(text.starts_with(&start), "{proxy}: {text}");
    }
    let text = in_directory("defaultConfig: {statsPort: x}", &[])
        .unwrap_err()
        .to_string();
    assert!(
        text.contains(
            "etc/istio/config/mesh is not valid: defaultConfig.statsPort: \"x\", expected a port"
        ),
        "{text}"
    );
    // a directory in its place is not "missing"
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(directory.path().join("etc/istio/config/mesh")).unwrap();
    let mut world = world(&NEEDED);
    world.directory = directory.path().to_owned();
    assert!(read(&world).is_err());
}

#[test]
fn depth_and_size_are_bounded() {
    let deep = format!("a: {}", "[".repeat(100_000));
    let long = format!("proxyMetadata: {{A: {}}}", "x".repeat(2 << 20));
    for text in [deep.as_str(), long.as_str()] {
        assert!(error(&[("PROXY_CONFIG", text)]).starts_with("PROXY_CONFIG is not valid"));
    }
}

#[test]
fn dns_is_captured_unless_metadata_says_otherwise() {
    for (value, captured) in [
        (None, true),
        (Some("true"), true),
        (Some("TRUE"), true),
        (Some("false"), false),
        (Some("1"), false),
        (Some(""), false),
    ] {
        let variables: Vec<_> = value
            .map(|v| ("ISTIO_META_DNS_CAPTURE", v))
            .into_iter()
            .collect();
        assert_eq!(
            with(&variables).expect("valid").capture.dns,
            captured,
            "{value:?}"
        );
    }
    let by_config = with(&[("PROXY_CONFIG", "proxyMetadata: {DNS_CAPTURE: 'false'}")]);
    assert!(!by_config.expect("valid").capture.dns);
    for (address, expected) in [
        ("localhost", "localhost:<port> or <ip>:<port>"),
        ("localhost:x", "localhost:<port> or <ip>:<port>"),
        ("localhost:0", "localhost:<port> or <ip>:<port>"),
        ("example.org:53", "localhost:<port> or <ip>:<port>"),
        (
            "127.0.0.1:53",
            "localhost:15053 or unset with CAPTURE=ebpf (the kernel brings questions to a socket of its own, at no fixed port)",
        ),
    ] {
        let name = "ISTIO_META_DNS_PROXY_ADDR";
        let wanted = format!("{name}={address:?} is not valid: expected {expected}");
        assert_eq!(error(&[(name, address)]), wanted);
    }
    assert!(with(&[("ISTIO_META_DNS_PROXY_ADDR", "localhost:15053")]).is_ok());
    for (address, wanted) in [
        ("localhost:5353", DnsAddress::Localhost(5353)),
        (
            "[fd00::1]:53",
            DnsAddress::At("[fd00::1]:53".parse().expect("an address")),
        ),
    ] {
        let external = [
            ("CAPTURE", "external"),
            ("ISTIO_META_DNS_PROXY_ADDR", address),
        ];
        assert_eq!(with(&external).expect("valid").capture.dns_address, wanted);
    }
}

#[test]
fn json_metadata_is_kept_as_json_and_skipped_with_a_warning_when_it_is_none() {
    let config = with(&[
        ("ISTIO_METAJSON_LABELS", "{\"a\": [1, null]}"),
        ("ISTIO_METAJSON_BAD", "{"),
        ("ISTIO_META_CLUSTER_ID", "c1"),
        ("CLUSTER_ID", "c2"),
    ])
    .expect("valid");
    assert_eq!(
        serde_json::to_string(&config.node.metadata_json).unwrap(),
        "{\"LABELS\":{\"a\":[1,null]}}"
    );
    assert_eq!(config.warnings.len(), 1);
    assert!(config.warnings[0].starts_with("ISTIO_METAJSON_BAD is skipped"));
    assert_eq!(
        config.node.metadata.get("CLUSTER_ID").map(String::as_str),
        Some("c1")
    );
    assert_eq!(config.cluster_id, "c1");
}
