//! The metrics text, read by a strict reader.

use telemetry::metrics::{
    EndLabels, Family, Flag, RegisterError, Registry, Reporter, ServiceLabels, TrafficLabels,
    WorkloadLabels,
};

use crate::openmetrics::{Labels, parse};

fn workload(name: &str, version: &str, zone: &str) -> WorkloadLabels {
    WorkloadLabels {
        workload: name.into(),
        namespace: "shop".into(),
        canonical_service: name.into(),
        canonical_revision: version.into(),
        app: name.into(),
        version: version.into(),
        cluster: "c1".into(),
        region: "eu-1".into(),
        zone: zone.into(),
    }
}

fn labels() -> TrafficLabels {
    let end = |name: &str, version: &str, zone: &str| EndLabels {
        principal: Some(
            format!("spiffe://cluster.local/ns/shop/sa/{name}")
                .parse()
                .unwrap(),
        ),
        workload: Some(workload(name, version, zone)),
    };
    TrafficLabels {
        reporter: Reporter::Destination,
        source: end("web", "v2", "eu-1a"),
        destination: end("cart", "v1", "eu-1b"),
        service: ServiceLabels {
            host: "cart.shop.svc.cluster.local".into(),
            namespace: "shop".into(),
            name: "cart".into(),
        },
        mutual_tls: true,
    }
}

const GOLDEN: &str = concat!(
    "istio_tcp_connections_opened_total{reporter=\"destination\",source_workload=\"web\",source_canonical_service=\"web\",",
    "source_canonical_revision=\"v2\",source_workload_namespace=\"shop\",source_principal=\"spiffe://cluster.local/ns/shop/sa/web\",",
    "source_app=\"web\",source_version=\"v2\",source_cluster=\"c1\",destination_service=\"cart.shop.svc.cluster.local\",",
    "destination_service_namespace=\"shop\",destination_service_name=\"cart\",destination_workload=\"cart\",",
    "destination_canonical_service=\"cart\",destination_canonical_revision=\"v1\",destination_workload_namespace=\"shop\",",
    "destination_principal=\"spiffe://cluster.local/ns/shop/sa/cart\",destination_app=\"cart\",destination_version=\"v1\",",
    "destination_cluster=\"c1\",request_protocol=\"tcp\",response_flags=\"-\",connection_security_policy=\"mutual_tls\",",
    "source_region=\"eu-1\",source_zone=\"eu-1a\",destination_region=\"eu-1\",destination_zone=\"eu-1b\"} 4\n",
);

#[test]
fn a_scrape_of_everything() {
    let registry = Registry::new();
    registry.process("1.29.0").unwrap();
    let pods = registry.pods().unwrap();
    pods.active.set(2);
    pods.started.add(3);
    let refusals = registry
        .counters(
            "ztunnel_refusals",
            "Connections refused, by reason",
            "reason",
        )
        .unwrap();
    refusals.inc("no \"route\"\\\n");
    registry
        .counters("ztunnel_nothing", "Never counted", "reason")
        .unwrap();
    let expiry = Family::gauge(
        "ztunnel_certificate_expiry_seconds",
        "When the certificate ends, seconds since 1970",
    );
    registry
        .register(expiry, |samples| {
            samples.push(&[("identity", "spiffe://a/ns/b/sa/c")], 1.5)
        })
        .unwrap();
    registry
        .register(
            Family::gauge("tokio_num_workers", "Number of workers"),
            |samples| samples.push(&[], 2_u64),
        )
        .unwrap();

    let others: Vec<_> = (0..2)
        .map(|_| {
            let registry = registry.clone();
            std::thread::spawn(move || {
                let shard = registry.shard();
                let connection = shard.connection(labels());
                connection.received(10);
                connection.sent(1);
                connection.close(Flag::Deny);
            })
        })
        .collect();
    others.into_iter().for_each(|thread| thread.join().unwrap());
    let shard = registry.shard();
    let open = shard.connection(labels());
    open.received(5);
    drop(shard.connection(labels()));
    let socket = shard.socket(Reporter::Destination);
    drop(shard.socket(Reporter::Source));

    let (content_type, text) = registry.encode(["application/openmetrics-text;version=1.0.0"]);
    assert_eq!(
        content_type,
        "application/openmetrics-text;charset=utf-8;version=1.0.0"
    );
    assert!(text.contains(GOLDEN), "{text}");
    let families = parse(&text).unwrap();
    let value = |name: &str, wanted: &[(&str, &str)]| {
        let matches = |labels: &Labels| {
            wanted
                .iter()
                .all(|(k, v)| labels.iter().any(|(name, value)| name == k && value == v))
        };
        let found: Vec<f64> = families[name]
            .samples
            .iter()
            .filter(|((_, labels), _)| matches(labels))
            .map(|(_, v)| *v)
            .collect();
        assert_eq!(found.len(), 1, "{name} {wanted:?}");
        found[0]
    };
    let none = ("response_flags", "-");
    assert_eq!(value("istio_tcp_received_bytes", &[none]), 25.0);
    assert_eq!(value("istio_tcp_sent_bytes", &[none]), 2.0);
    assert_eq!(value("istio_tcp_connections_closed", &[none]), 1.0);
    assert_eq!(
        value(
            "istio_tcp_connections_closed",
            &[("response_flags", "DENY")]
        ),
        2.0
    );
    assert_eq!(value("istio_tcp_connections_failed", &[]), 2.0);
    assert_eq!(
        value("istio_tcp_sockets_open", &[("reporter", "source")]),
        0.0
    );
    assert_eq!(
        value("istio_tcp_sockets_open", &[("reporter", "destination")]),
        1.0
    );
    assert_eq!(
        value(
            "istio_build",
            &[("component", "ztunnel"), ("tag", "1.29.0")]
        ),
        1.0
    );
    assert_eq!(value("workload_manager_active_proxy_count", &[]), 2.0);
    assert_eq!(value("workload_manager_pending_proxy_count", &[]), 0.0);
    assert_eq!(value("workload_manager_proxies_started", &[]), 3.0);
    assert_eq!(
        value("ztunnel_refusals", &[("reason", "no \"route\"\\\n")]),
        1.0
    );
    assert_eq!(value("ztunnel_certificate_expiry_seconds", &[]), 1.5);
    assert!(value("process_max_fds", &[]) >= value("process_open_fds", &[]));
    assert!(!families.contains_key("ztunnel_nothing"));
    drop((open, socket));
    let text = registry.encode([]).1;
    let families = parse(&text).unwrap();
    assert!(
        families["istio_tcp_sockets_open"]
            .samples
            .values()
            .all(|open| *open == 0.0)
    );
}

#[test]
fn help_texts_say_what_is_unstable() {
    const STABLE: [&str; 7] = [
        "istio_build",
        "istio_tcp_connections_opened",
        "istio_tcp_connections_closed",
        "istio_tcp_received_bytes",
        "istio_tcp_sent_bytes",
        "process_open_fds",
        "process_max_fds",
    ];
    let registry = Registry::new();
    registry.process("").unwrap();
    registry.pods().unwrap();
    let shard = registry.shard();
    shard.connection(labels()).close(Flag::Connect);
    let _socket = shard.socket(Reporter::Source);
    let (content_type, text) = registry.encode(["text/plain"]);
    assert_eq!(content_type, "text/plain; charset=utf-8");
    assert!(text.contains("istio_build{component=\"ztunnel\",tag=\"unknown\"} 1\n"));
    let families = parse(&text).unwrap();
    assert_eq!(families.len(), 14);
    for (name, family) in families {
        assert_eq!(
            family.help.contains("(unstable)"),
            !STABLE.contains(&name.as_str()),
            "{name}"
        );
        assert_eq!(
            family.help.ends_with('.'),
            !name.starts_with("process_"),
            "{name}"
        );
    }
}

#[test]
fn what_is_not_known_is_unknown_and_places_are_absent_together() {
    let registry = Registry::new();
    let shard = registry.shard();
    shard
        .connection(TrafficLabels::unknown(Reporter::Source))
        .close(Flag::NetworkPolicy);
    let one = TrafficLabels {
        source: EndLabels {
            principal: None,
            workload: Some(workload("web", "", "")),
        },
        ..TrafficLabels::unknown(Reporter::Destination)
    };
    shard.connection(one).close(Flag::None);
    let families = parse(&registry.encode([]).1).unwrap();
    let opened: Vec<&Labels> = families["istio_tcp_connections_opened"]
        .samples
        .keys()
        .map(|(_, labels)| labels)
        .collect();
    let of = |reporter: &str| {
        opened
            .iter()
            .find(|labels| labels[0].1 == reporter)
            .unwrap()
    };
    assert_eq!(of("source").len(), 23);
    for (name, value) in &of("source")[1..] {
        let expected = match name.as_str() {
            "request_protocol" => "tcp",
            "response_flags" => "-",
            _ => "unknown",
        };
        assert_eq!(value, expected, "{name}");
    }
    assert_eq!(of("destination").len(), 27);
    let last: Vec<&str> = of("destination")[23..]
        .iter()
        .map(|(_, value)| value.as_str())
        .collect();
    assert_eq!(last, ["eu-1", "unknown", "unknown", "unknown"]);
}

#[test]
fn bad_registrations_are_refused() {
    let registry = Registry::new();
    registry.counter("ztunnel_a", "A").unwrap();
    assert_eq!(
        registry.gauge("ztunnel_a", "A").err(),
        Some(RegisterError::Duplicate("ztunnel_a"))
    );
    assert_eq!(
        registry.gauge("istio_tcp_sockets_open", "A").err(),
        Some(RegisterError::Duplicate("istio_tcp_sockets_open"))
    );
    for name in ["ztunnel_a_total", "Ztunnel", "1a", "a-b", ""] {
        assert_eq!(
            registry.counter(name, "A").err(),
            Some(RegisterError::Name(name))
        );
    }
}

#[test]
fn connections_to_host_names_are_counted_by_source_and_name() {
    let registry = Registry::new();
    let (_, text) = registry.encode([]);
    assert!(!text.contains("istio_on_demand_dns"), "{text}");
    let source = mesh::Workload::default();
    registry.count_lookup(&source, "db.example.org");
    registry.count_lookup(&source, "db.example.org");
    registry.count_lookup(&source, "mail.example.org");
    let (_, text) = registry.encode([]);
    parse(&text).unwrap();
    let counted = format!(
        concat!(
            "istio_on_demand_dns_total{{source_workload=\"unknown\",source_canonical_service=\"unknown\",",
            "source_canonical_revision=\"unknown\",source_workload_namespace=\"unknown\",source_principal=\"{}\",",
            "source_app=\"unknown\",source_version=\"unknown\",source_cluster=\"unknown\",hostname=\"db.example.org\"}} 2\n",
        ),
        source.identity(),
    );
    assert!(text.contains(&counted), "{text}");
}

#[test]
fn a_unit_is_told_and_ends_the_name() {
    let registry = Registry::new();
    let bytes =
        Family::counter("istio_xds_message_bytes", "Bytes received so far").in_unit("bytes");
    registry
        .register(bytes, |samples| samples.push(&[("url", "x")], 7_u64))
        .unwrap();
    let (_, text) = registry.encode([]);
    parse(&text).unwrap();
    let head = "# TYPE istio_xds_message_bytes counter\n# UNIT istio_xds_message_bytes bytes\n";
    assert!(text.contains(head), "{text}");
    for name in [
        "istio_xds_message",
        "istio_xds_bytes_read",
        "xbytes",
        "bytes",
    ] {
        let family = Family::counter(name, "Wrong").in_unit("bytes");
        let refused = registry.register(family, |_| {});
        assert_eq!(refused, Err(RegisterError::Name(name)));
    }
}
