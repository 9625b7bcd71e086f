//! What this chart adds to Istio's: pods from the API server, capture by the daemon, hold, drain, monitoring.

use super::manifest::{all, container, env, kinds, mounts, objects, one, pod, template, text};
use serde_json::{Value, json};

const HOST_PATHS: [(&str, &str); 3] = [
    ("/host/proc", "/proc"),
    ("/host/sys/fs/cgroup", "/sys/fs/cgroup"),
    ("/sys/fs/bpf", "/sys/fs/bpf"),
];

fn capabilities(name: &str) -> Value {
    container(name)["securityContext"]["capabilities"]["add"].take()
}

#[test]
fn with_the_api_server_the_daemon_captures_by_itself() {
    const NAME: &str = "kubernetes";
    let env = env(NAME);
    for (key, wanted) in [
        ("ENROLL", "kubernetes"),
        ("CAPTURE", "ebpf"),
        ("HOST_PROC", "/host/proc"),
        ("HOLD", "true"),
        ("HOLD_TIMEOUT", "30s"),
        ("HOLD_POLICY", "deny"),
    ] {
        assert_eq!(env[key], wanted);
    }
    let mounts = mounts(NAME);
    for (path, host) in HOST_PATHS {
        let (source, read_only) = &mounts[path];
        assert_eq!(
            *source,
            json!({"hostPath": {"path": host, "type": "Directory"}})
        );
        assert!(!read_only, "{path}");
    }
    assert!(
        !mounts.contains_key("/var/run/ztunnel"),
        "nobody listens there"
    );
    assert_eq!(pod(NAME)["automountServiceAccountToken"], true);
    assert_eq!(
        capabilities(NAME),
        json!(["NET_ADMIN", "SYS_ADMIN", "NET_RAW", "SYS_PTRACE"])
    );
    let security = container(NAME)["securityContext"].take();
    assert_eq!(
        security["seccompProfile"],
        json!({"type": "RuntimeDefault"})
    );
    assert_eq!(security["appArmorProfile"], json!({"type": "Unconfined"}));
}

#[test]
fn roles_hold_what_the_source_asks_and_no_more() {
    let rules = json!([
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch", "patch"]},
        {"apiGroups": [""], "resources": ["namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"]},
    ]);
    assert_eq!(one("kubernetes", "ClusterRole")["rules"], rules);
    let binding = one("kubernetes", "ClusterRoleBinding");
    assert_eq!(binding["roleRef"]["name"], "ztunnel");
    let subjects =
        json!([{"kind": "ServiceAccount", "name": "ztunnel", "namespace": "istio-system"}]);
    assert_eq!(binding["subjects"], subjects);
    for name in all() {
        let asks = env_of(&name, "ENROLL").as_deref() == Some("kubernetes");
        let roles = kinds(&name)
            .iter()
            .filter(|kind| kind.starts_with("ClusterRole"))
            .count();
        if kinds(&name).contains(&"DaemonSet".to_owned()) && name != "namespace-only" {
            assert_eq!(roles, if asks { 2 } else { 0 }, "{name}");
            assert_eq!(pod(&name)["automountServiceAccountToken"], asks, "{name}");
        }
    }
}

/// One variable, where there is a DaemonSet.
fn env_of(name: &str, variable: &str) -> Option<String> {
    let has = kinds(name).contains(&"DaemonSet".to_owned());
    has.then(|| env(name))
        .and_then(|env| env.get(variable).cloned())
}

#[test]
fn who_redirects_decides_what_is_mounted() {
    let external = mounts("kubernetes-external");
    assert_eq!(env("kubernetes-external")["CAPTURE"], "external");
    assert!(!external.contains_key("/sys/fs/bpf"));
    assert!(external["/host/sys/fs/cgroup"].1, "read-only");
    assert_eq!(
        env_of("kubernetes-external", "HOLD"),
        None,
        "only eBPF holds"
    );
    assert_eq!(mounts("capture-external"), mounts("default"));
    assert_eq!(env("capture-external"), env("default"));
    assert_eq!(
        capabilities("default"),
        json!(["NET_ADMIN", "SYS_ADMIN", "NET_RAW"])
    );
}

#[test]
fn hold_is_told_to_the_daemon() {
    let allow = env("hold-allow");
    assert_eq!(
        (allow["HOLD"].as_str(), allow["HOLD_TIMEOUT"].as_str()),
        ("true", "5s")
    );
    assert_eq!(allow["HOLD_POLICY"], "allow");
    assert_eq!(env_of("hold-off", "HOLD").as_deref(), Some("false"));
    assert_eq!(env_of("hold-off", "HOLD_POLICY"), None);
}

#[test]
fn the_grace_period_has_room_for_the_drain() {
    for (name, drain, grace) in [("drain", "4h30m", 16_205), ("drain-short", "1m30s", 120)] {
        assert_eq!(env(name)["DRAIN_MAX"], drain);
        assert_eq!(pod(name)["terminationGracePeriodSeconds"], grace, "{name}");
    }
    assert_eq!(env_of("default", "DRAIN_MAX"), None);
}

#[test]
fn confinement_is_the_users_where_he_says_so() {
    let security = container("confined")["securityContext"].take();
    let profile = json!({"type": "Localhost", "localhostProfile": "ztunnel/seccomp.json"});
    assert_eq!(security["seccompProfile"], profile);
    assert_eq!(
        security["appArmorProfile"],
        json!({"type": "Localhost", "localhostProfile": "ztunnel"})
    );
    let security = container("default")["securityContext"].take();
    assert_eq!(
        security["appArmorProfile"],
        Value::Null,
        "the runtime's own"
    );
    let old = template("kubernetes-old")["metadata"]["annotations"].take();
    assert_eq!(
        old["container.apparmor.security.beta.kubernetes.io/istio-proxy"],
        "unconfined"
    );
    assert_eq!(
        container("kubernetes-old")["securityContext"]["appArmorProfile"],
        Value::Null
    );
}

#[test]
fn scopes_divide_the_objects() {
    assert_eq!(kinds("cluster-only"), ["ClusterRole", "ClusterRoleBinding"]);
    assert_eq!(
        kinds("namespace-only"),
        ["DaemonSet", "Role", "RoleBinding", "ServiceAccount"]
    );
    for name in all() {
        for object in objects(&name) {
            let cluster = text(&object["kind"]).starts_with("Cluster");
            assert_eq!(
                object["metadata"]["namespace"].is_null(),
                cluster,
                "{name}: {}",
                object["kind"]
            );
        }
    }
}

#[test]
fn null_takes_defaults_away() {
    let (pod, container) = (pod("unset"), container("unset"));
    assert_eq!(container["securityContext"]["seccompProfile"], Value::Null);
    assert_eq!(container["resources"], Value::Null);
    assert_eq!(pod["tolerations"], Value::Null);
    assert_eq!(pod["priorityClassName"], Value::Null);
    assert_eq!(template("unset")["metadata"]["annotations"], Value::Null);
    assert_eq!(
        one("unset", "DaemonSet")["spec"]["updateStrategy"],
        Value::Null
    );
    assert_eq!(
        one("on-delete", "DaemonSet")["spec"]["updateStrategy"],
        json!({"type": "OnDelete"})
    );
}

#[test]
fn monitors_find_the_metrics() {
    let service = one("service-monitor", "Service");
    assert_eq!(service["spec"]["clusterIP"], "None");
    assert_eq!(service["spec"]["ports"][0]["targetPort"], "ztunnel-stats");
    let monitor = one("service-monitor", "ServiceMonitor");
    assert_eq!(monitor["metadata"]["labels"]["release"], "prometheus");
    assert_eq!(monitor["spec"]["endpoints"][0]["interval"], "15s");
    assert_eq!(
        monitor["spec"]["endpoints"][0]["port"],
        service["spec"]["ports"][0]["name"]
    );
    for (key, wanted) in monitor["spec"]["selector"]["matchLabels"]
        .as_object()
        .expect("labels")
    {
        assert_eq!(service["metadata"]["labels"][key], *wanted, "{key}");
    }
    let monitor = one("pod-monitor", "PodMonitor");
    assert_eq!(
        monitor["spec"]["podMetricsEndpoints"][0]["port"],
        "ztunnel-stats"
    );
    assert_eq!(
        monitor["spec"]["selector"]["matchLabels"],
        json!({"app": "ztunnel"})
    );
    let dashboard = one("alerts-and-dashboard", "ConfigMap");
    assert_eq!(dashboard["metadata"]["labels"]["grafana_dashboard"], "1");
    let json = text(&dashboard["data"]["ztunnel.json"]);
    let file = std::fs::read_to_string(super::manifest::top().join("helm/dashboards/ztunnel.json"))
        .expect("the dashboard");
    let parse = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
    assert_eq!(parse(&json), parse(&file));
}
