//! Names that the chart, its alerts and its dashboard use: each is one that the daemon has.

use super::manifest::{all, env, kinds, objects, text, top};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

/// Set by Istio's chart as well, and read by nobody.
const UNREAD: [&str; 1] = ["INPOD_ENABLED"];
/// Metrics of the node's agents, not of the daemon.
const FOREIGN: [&str; 2] = [
    "container_memory_working_set_bytes",
    "container_cpu_usage_seconds_total",
];

#[test]
fn variables_of_the_chart_are_variables_of_the_daemon() {
    let table = std::fs::read_to_string(top().join("ztunnel/src/config/variables.rs"))
        .expect("the table of variables");
    let known: BTreeSet<&str> = table.split('"').skip(1).step_by(2).collect();
    for name in all() {
        if !kinds(&name).contains(&"DaemonSet".to_owned()) {
            continue;
        }
        let values = std::fs::read_to_string(top().join(format!("helm/tests/values/{name}.yaml")))
            .expect("a values file");
        for variable in env(&name).keys() {
            let given = values.contains(&format!("{variable}:"));
            let pattern = variable.starts_with("ISTIO_META_") && known.contains("ISTIO_META_*");
            let fine = known.contains(variable.as_str())
                || pattern
                || UNREAD.contains(&variable.as_str())
                || given;
            assert!(fine, "{name}: the daemon has no variable {variable}");
        }
    }
}

#[test]
fn metrics_of_dashboard_and_alerts_are_metrics_of_the_daemon() {
    let registered = registered();
    let dashboard =
        std::fs::read_to_string(top().join("helm/dashboards/ztunnel.json")).expect("the dashboard");
    let dashboard: Value = serde_json::from_str(&dashboard).expect("JSON");
    let mut asked = expressions(&dashboard);
    let alerts = objects("alerts-and-dashboard")
        .into_iter()
        .find(|object| object["kind"] == "PrometheusRule");
    asked.extend(expressions(&alerts.expect("alerts")));
    assert!(asked.len() > 25, "{}", asked.len());
    for expression in &asked {
        let names = metrics(expression);
        assert!(!names.is_empty(), "no metric in {expression}");
        for name in names {
            let counted = name
                .strip_suffix("_total")
                .is_some_and(|family| registered.contains(family));
            let known = counted || registered.contains(&name) || FOREIGN.contains(&name.as_str());
            assert!(
                known,
                "{name} in {expression}: the daemon registers no such metric"
            );
        }
    }
}

#[test]
fn panels_and_alerts_explain_themselves() {
    let dashboard =
        std::fs::read_to_string(top().join("helm/dashboards/ztunnel.json")).expect("the dashboard");
    let dashboard: Value = serde_json::from_str(&dashboard).expect("JSON");
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        assert!(
            ids.insert(panel["id"].to_string()),
            "two panels {}",
            panel["id"]
        );
        if panel["type"] != "row" {
            assert!(
                !text(&panel["title"]).is_empty() && !text(&panel["description"]).is_empty(),
                "{panel}"
            );
        }
    }
    let alerts = objects("alerts-and-dashboard")
        .into_iter()
        .find(|object| object["kind"] == "PrometheusRule");
    for rule in alerts.expect("alerts")["spec"]["groups"][0]["rules"]
        .as_array()
        .expect("rules")
    {
        assert!(!text(&rule["annotations"]["summary"]).is_empty(), "{rule}");
        assert!(
            ["warning", "critical"].contains(&text(&rule["labels"]["severity"]).as_str()),
            "{rule}"
        );
    }
}

/// All expressions of queries in a document.
fn expressions(document: &Value) -> Vec<String> {
    match document {
        Value::Object(map) => map
            .iter()
            .flat_map(|(key, value)| match (key.as_str(), value) {
                ("expr", Value::String(text)) => vec![text.clone()],
                _ => expressions(value),
            })
            .collect(),
        Value::Array(list) => list.iter().flat_map(expressions).collect(),
        _ => Vec::new(),
    }
}

/// Names of metrics in an expression: words with an underscore that stand outside of braces, brackets and `by (…)`.
fn metrics(expression: &str) -> BTreeSet<String> {
    let mut plain = String::new();
    let mut depth = 0_u32;
    for character in expression.chars() {
        match character {
            '{' | '[' => depth += 1,
            '}' | ']' => depth = depth.saturating_sub(1),
            _ if depth == 0 => plain.push(character),
            _ => {}
        }
    }
    let mut rest = plain.as_str();
    let mut kept = String::new();
    while let Some(at) = [" by (", " on ("]
        .iter()
        .filter_map(|word| rest.find(word))
        .min()
    {
        kept.push_str(&rest[..at]);
        kept.push(' ');
        rest = rest[at..].split_once(')').map_or("", |(_, after)| after);
    }
    kept.push_str(rest);
    kept.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.contains('_') && word.starts_with(|c: char| c.is_ascii_lowercase()))
        .map(str::to_owned)
        .collect()
}

/// Names in the sources of those who register metrics, as they stand there: without `_total`.
fn registered() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for dir in ["crates", "ztunnel/src"] {
        collect(&top().join(dir), &mut found);
    }
    assert!(found.contains("istio_build"), "{found:?}");
    found
}

fn collect(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir)
        .expect("a readable directory")
        .flatten()
    {
        let path = entry.path();
        if path.is_dir() {
            if !path.ends_with("tests") {
                collect(&path, found);
            }
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let shipped = text.split("#[cfg(test)]").next().unwrap_or_default();
            found.extend(
                shipped
                    .split('"')
                    .skip(1)
                    .step_by(2)
                    .filter(|word| is_metric(word))
                    .map(str::to_owned),
            );
        }
    }
}

fn is_metric(word: &str) -> bool {
    let prefixes = [
        "istio_",
        "ztunnel_",
        "workload_manager_",
        "process_",
        "tokio_",
    ];
    prefixes.iter().any(|prefix| word.starts_with(prefix))
        && word.chars().all(|c| c.is_ascii_lowercase() || c == '_')
}
