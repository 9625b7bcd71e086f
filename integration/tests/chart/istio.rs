//! Values as users of Istio's chart have them come to what they came to there: names, environment, mounts and pod
//! specification, field by field.

use super::manifest::{all, container, env, kinds, mounts, objects, one, pod, template, texts};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Environment when nothing is set.
fn plain_env() -> BTreeMap<String, String> {
    texts([
        ("CA_ADDRESS", "istiod.istio-system.svc:15012"),
        ("XDS_ADDRESS", "istiod.istio-system.svc:15012"),
        ("RUST_LOG", "info"),
        ("RUST_BACKTRACE", "1"),
        ("ISTIO_META_CLUSTER_ID", "Kubernetes"),
        ("INPOD_ENABLED", "true"),
        ("TERMINATION_GRACE_PERIOD_SECONDS", "30"),
        ("POD_NAME", "@metadata.name"),
        ("POD_NAMESPACE", "@metadata.namespace"),
        ("NODE_NAME", "@spec.nodeName"),
        ("INSTANCE_IP", "@status.podIP"),
        ("SERVICE_ACCOUNT", "@spec.serviceAccountName"),
        ("ZTUNNEL_CPU_LIMIT", "@limits.cpu"),
        ("ZTUNNEL_RESOURCE_CPU_REQUEST", "@requests.cpu"),
    ])
}

/// Mounts when nothing is set.
fn plain_mounts() -> BTreeMap<String, (Value, bool)> {
    let token = json!({"path": "istio-token", "expirationSeconds": 43200, "audience": "istio-ca"});
    [
        (
            "/var/run/secrets/istio",
            json!({"configMap": {"name": "istio-ca-root-cert"}}),
            true,
        ),
        (
            "/var/run/secrets/tokens",
            json!({"projected": {"sources": [{"serviceAccountToken": token}]}}),
            true,
        ),
        (
            "/var/run/ztunnel",
            json!({"hostPath": {"path": "/var/run/ztunnel", "type": "DirectoryOrCreate"}}),
            false,
        ),
        ("/tmp", json!({"emptyDir": {}}), false),
    ]
    .map(|(path, source, read_only)| (path.to_owned(), (source, read_only)))
    .into()
}

#[test]
fn nothing_set_is_the_pod_that_istio_makes() {
    assert_eq!(
        kinds("default"),
        ["DaemonSet", "ServiceAccount"],
        "no API access, so no roles"
    );
    assert_eq!(env("default"), plain_env());
    assert_eq!(mounts("default"), plain_mounts());
    let pod = pod("default");
    assert_eq!(pod["serviceAccountName"], "ztunnel");
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(pod["priorityClassName"], "system-node-critical");
    assert_eq!(pod["terminationGracePeriodSeconds"], 30);
    assert_eq!(pod["nodeSelector"], json!({"kubernetes.io/os": "linux"}));
    let tolerations = json!([
        {"effect": "NoSchedule", "operator": "Exists"},
        {"key": "CriticalAddonsOnly", "operator": "Exists"},
        {"effect": "NoExecute", "operator": "Exists"},
    ]);
    assert_eq!(pod["tolerations"], tolerations);
    for absent in ["dnsPolicy", "dnsConfig", "affinity", "imagePullSecrets"] {
        assert_eq!(pod[absent], Value::Null, "{absent}");
    }
    let container = container("default");
    assert_eq!(
        container["image"],
        "registry.istio.io/testing/ztunnel:latest"
    );
    assert_eq!(container["imagePullPolicy"], Value::Null);
    assert_eq!(
        container["resources"],
        json!({"requests": {"cpu": "200m", "memory": "512Mi"}})
    );
    let annotations = json!({"prometheus.io/port": "15020", "prometheus.io/scrape": "true"});
    assert_eq!(template("default")["metadata"]["annotations"], annotations);
    let strategy =
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
    assert_eq!(
        one("default", "DaemonSet")["spec"]["updateStrategy"],
        strategy
    );
}

#[test]
fn every_pod_keeps_what_no_value_may_change() {
    for name in all() {
        if !kinds(&name).contains(&"DaemonSet".to_owned()) {
            continue;
        }
        let (pod, container) = (pod(&name), container(&name));
        for absent in ["hostNetwork", "hostPID", "hostIPC", "hostUsers"] {
            assert_eq!(pod[absent], Value::Null, "{name}: {absent}");
        }
        assert_eq!(container["name"], "istio-proxy");
        assert_eq!(container["args"], json!(["proxy", "ztunnel"]));
        assert_eq!(container["command"], Value::Null);
        let port = json!([{"name": "ztunnel-stats", "containerPort": 15020, "protocol": "TCP"}]);
        assert_eq!(container["ports"], port);
        let probe = json!({"httpGet": {"path": "/healthz/ready", "port": 15021}});
        assert_eq!(container["readinessProbe"], probe);
        assert_eq!(container["livenessProbe"], Value::Null);
        assert_eq!(container["startupProbe"], Value::Null);
        let security = &container["securityContext"];
        let fixed = [
            ("privileged", json!(false)),
            ("allowPrivilegeEscalation", json!(true)),
            ("readOnlyRootFilesystem", json!(true)),
            ("runAsUser", json!(0)),
            ("runAsGroup", json!(1337)),
            ("runAsNonRoot", json!(false)),
        ];
        for (key, wanted) in fixed {
            assert_eq!(security[key], wanted, "{name}: {key}");
        }
        assert_eq!(security["capabilities"]["drop"], json!(["ALL"]), "{name}");
        let labels = template(&name)["metadata"]["labels"].take();
        for (key, wanted) in [
            ("app", "ztunnel"),
            ("app.kubernetes.io/name", "ztunnel"),
            ("istio.io/dataplane-mode", "none"),
            ("sidecar.istio.io/inject", "false"),
        ] {
            assert_eq!(labels[key], wanted, "{name}: {key}");
        }
        let selector = &one(&name, "DaemonSet")["spec"]["selector"];
        assert_eq!(
            *selector,
            json!({"matchLabels": {"app": "ztunnel"}}),
            "{name}: an upgrade could not change it"
        );
        let id = env(&name);
        let grace = pod["terminationGracePeriodSeconds"].to_string();
        assert_eq!(id["TERMINATION_GRACE_PERIOD_SECONDS"], grace, "{name}");
    }
}

#[test]
fn each_value_of_istio_lands_where_it_did() {
    const ALL: &str = "istio-all";
    assert_eq!(
        kinds(ALL),
        [
            "DaemonSet",
            "NetworkPolicy",
            "ResourceQuota",
            "ServiceAccount"
        ]
    );
    for object in objects(ALL) {
        let metadata = &object["metadata"];
        assert_eq!(metadata["labels"]["team"], "mesh");
        assert_eq!(
            metadata["labels"]["install.operator.istio.io/owning-resource"],
            "installer"
        );
        assert_eq!(
            metadata["annotations"],
            json!({"note": "mesh", "istio.io/rev": "1-28"})
        );
        assert_eq!(metadata["namespace"], "istio-system");
    }
    for kind in ["DaemonSet", "ServiceAccount", "NetworkPolicy"] {
        assert_eq!(one(ALL, kind)["metadata"]["name"], "node-proxy", "{kind}");
    }
    let mut wanted = plain_env();
    wanted.extend(texts([
        ("CA_ADDRESS", "ca.mesh.example:15012"),
        ("XDS_ADDRESS", "xds.mesh.example:15012"),
        ("RUST_LOG", "info,access=off"),
        ("LOG_FORMAT", "json"),
        ("NETWORK", "net-a"),
        ("ISTIO_META_CLUSTER_ID", "west"),
        ("TERMINATION_GRACE_PERIOD_SECONDS", "300"),
        ("CRL_PATH", "/var/run/secrets/istio/crl/ca-crl.pem"),
        ("ZTUNNEL_RESOURCE_CPU_LIMIT", "@limits.cpu"),
        // proxyMetadata, as it is
        ("ISTIO_META_DNS_CAPTURE", "false"),
        ("CLUSTER_DOMAIN", "cluster.internal"),
        // env: any scalar as text, over the chart's own
        ("XDS_ON_DEMAND", "true"),
        ("POOL_MAX_STREAMS_PER_CONNECTION", "50"),
        ("HTTP2_CONNECTION_WINDOW_SIZE", "16777216"),
        ("RUST_BACKTRACE", "0"),
    ]));
    assert_eq!(env(ALL), wanted);
    let mut wanted = plain_mounts();
    wanted.insert(
        "/var/run/secrets/istio".into(),
        (json!({"configMap": {"name": "mesh-roots"}}), true),
    );
    let crl = json!({"configMap": {"name": "istio-ca-crl", "optional": true}});
    wanted.insert("/var/run/secrets/istio/crl".into(), (crl, true));
    wanted.insert("/more".into(), (json!({"emptyDir": {}}), false));
    assert_eq!(mounts(ALL), wanted);

    let pod = pod(ALL);
    assert_eq!(pod["serviceAccountName"], "node-proxy");
    assert_eq!(pod["terminationGracePeriodSeconds"], 300);
    assert_eq!(
        pod["nodeSelector"],
        json!({"kubernetes.io/os": "linux", "pool": "mesh"})
    );
    assert_eq!(
        pod["tolerations"],
        json!([{"operator": "Exists"}]),
        "a list replaces the default"
    );
    assert_eq!(
        pod["imagePullSecrets"],
        json!([{"name": "one"}, {"name": "name-two"}])
    );
    assert_eq!(pod["dnsPolicy"], "None");
    assert_eq!(pod["dnsConfig"], json!({"nameservers": ["10.0.0.10"]}));
    assert!(pod["affinity"]["nodeAffinity"].is_object());
    let container = container(ALL);
    assert_eq!(
        container["image"],
        "registry.example/istio/proxy:1.28.0-debug"
    );
    assert_eq!(container["imagePullPolicy"], "IfNotPresent");
    assert_eq!(
        container["resources"]["limits"],
        json!({"cpu": "2", "memory": "2Gi"})
    );
    assert_eq!(
        container["resources"]["requests"],
        json!({"cpu": "500m", "memory": "1Gi"})
    );
    assert_eq!(
        container["securityContext"]["seLinuxOptions"],
        json!({"type": "spc_t"})
    );
    let metadata = template(ALL)["metadata"].take();
    assert_eq!(metadata["labels"]["tier"], "infra");
    let annotations =
        json!({"istio.io/rev": "1-28", "prometheus.io/port": "15020", "reload": "now"});
    assert_eq!(
        metadata["annotations"], annotations,
        "null takes a default away"
    );
    let quota = one(ALL, "ResourceQuota")["spec"].take();
    assert_eq!(quota["hard"], json!({"pods": "100"}));
    assert_eq!(
        quota["scopeSelector"]["matchExpressions"][0]["values"],
        json!(["system-node-critical"])
    );
}

#[test]
fn presets_stand_between_defaults_and_the_user() {
    let image = |name: &str| container(name)["image"].take();
    assert_eq!(
        image("ambient-profile"),
        "docker.io/istio/ztunnel:1.28.0-distroless"
    );
    assert_eq!(env("ambient-profile")["ISTIO_META_ENABLE_HBONE"], "true");
    assert_eq!(
        image("istio-shared"),
        "gcr.io/istio-release/ztunnel:1.28.0-distroless",
        "the top level wins over global"
    );
    assert_eq!(
        one("gke", "ResourceQuota")["spec"]["hard"],
        json!({"pods": "5000"})
    );
    for name in ["openshift", "openshift-profile"] {
        let options = container(name)["securityContext"]["seLinuxOptions"].take();
        assert_eq!(options, json!({"type": "spc_t"}), "{name}");
        let rules = json!([{
            "apiGroups": ["security.openshift.io"], "resources": ["securitycontextconstraints"],
            "resourceNames": ["privileged"], "verbs": ["use"],
        }]);
        assert_eq!(one(name, "Role")["rules"], rules, "{name}");
        let binding = one(name, "RoleBinding");
        assert_eq!(binding["subjects"][0]["name"], "ztunnel");
        assert_eq!(binding["roleRef"]["kind"], "Role");
    }
}

#[test]
fn global_values_count_at_the_top() {
    const SHARED: &str = "istio-shared";
    let env = env(SHARED);
    for (key, wanted) in [
        ("NETWORK", "network1"),
        ("ISTIO_META_CLUSTER_ID", "cluster1"),
        ("LOG_FORMAT", "json"),
    ] {
        assert_eq!(env[key], wanted);
    }
    assert!(mounts(SHARED).contains_key("/var/run/secrets/istio/crl"));
    assert_eq!(container(SHARED)["imagePullPolicy"], "Always");
    assert_eq!(
        pod(SHARED)["imagePullSecrets"],
        json!([{"name": "registry-login"}])
    );
    assert_eq!(
        pod(SHARED)["priorityClassName"],
        "system-node-critical",
        "other charts' class is not for the node proxy"
    );
    let ports = one(SHARED, "NetworkPolicy")["spec"]["ingress"][0]["ports"].take();
    let mut shown: Vec<String> = ports
        .as_array()
        .expect("ports")
        .iter()
        .map(|port| {
            format!(
                "{}/{}",
                port["protocol"].as_str().unwrap_or_default(),
                port["port"]
            )
        })
        .collect();
    shown.sort();
    let wanted = [
        "TCP/15000",
        "TCP/15001",
        "TCP/15006",
        "TCP/15008",
        "TCP/15020",
        "TCP/15021",
        "TCP/15053",
        "UDP/15053",
    ];
    assert_eq!(shown, wanted);
    assert_eq!(one(SHARED, "NetworkPolicy")["spec"]["egress"], json!([{}]));
}

#[test]
fn revision_and_namespace_make_the_address_of_istiod() {
    let env = env("istio-multicluster");
    assert_eq!(env["XDS_ADDRESS"], "istiod-canary.mesh-control.svc:15012");
    assert_eq!(env["CA_ADDRESS"], "istiod-canary.mesh-control.svc:15012");
    assert_eq!(env["TERMINATION_GRACE_PERIOD_SECONDS"], "60");
    assert_eq!(env["L7_ENABLED"], "true");
    assert_eq!(
        one("istio-multicluster", "DaemonSet")["metadata"]["annotations"]["istio.io/rev"],
        "canary"
    );
    assert_eq!(
        pod("istio-multicluster")["serviceAccountName"],
        "ztunnel-canary"
    );
}

#[test]
fn roots_come_from_a_trust_bundle_when_asked_for() {
    let bundle = json!({"projected": {"sources": [
        {"clusterTrustBundle": {"name": "istio.io:istiod-ca:root-cert", "path": "root-cert.pem"}},
    ]}});
    assert_eq!(mounts("trust-bundle")["/var/run/secrets/istio"].0, bundle);
}
