//! Role-based access: which verbs on which resources the daemon's service account has.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::route::Ask;
use super::status::Failure;

/// The account that the token stands for.
pub const USER: &str = "system:serviceaccount:istio-system:ztunnel";

/// The chart as it is rendered for that, from this package's directory.
const CHART: &str = "../helm/tests/golden/kubernetes.yaml";

/// A rule of a ClusterRole.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// groups; the empty one is the core's
    #[serde(default)]
    pub api_groups: Vec<String>,
    /// resources, with a sub-resource after a slash
    #[serde(default)]
    pub resources: Vec<String>,
    /// verbs
    pub verbs: Vec<String>,
}

impl Rule {
    /// A rule.
    pub fn new(groups: &[&str], resources: &[&str], verbs: &[&str]) -> Self {
        let owned = |all: &[&str]| all.iter().map(|&one| one.to_owned()).collect();
        Self {
            api_groups: owned(groups),
            resources: owned(resources),
            verbs: owned(verbs),
        }
    }

    /// What the daemon needs with `ENROLL=kubernetes`, and nothing more.
    pub fn minimal() -> Vec<Self> {
        vec![
            Self::new(&[""], &["pods"], &["get", "list", "watch", "patch"]),
            Self::new(&[""], &["namespaces"], &["list", "watch"]),
            Self::new(&["", "events.k8s.io"], &["events"], &["create", "patch"]),
        ]
    }

    /// The same without one verb on one resource.
    pub fn without(verb: &str, resource: &str) -> Vec<Self> {
        let mut rules = Self::minimal();
        for rule in &mut rules {
            if rule.resources.iter().any(|one| one == resource) {
                rule.verbs.retain(|one| one != verb);
            }
        }
        rules
    }

    /// What the chart gives the daemon for `ENROLL=kubernetes`, as it is rendered.
    ///
    /// Errors: there is no such role.
    pub fn of_chart() -> Result<Vec<Self>> {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(CHART);
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let mut documents = text.split("\n---\n");
        let is_role = |one: &&str| one.lines().any(|line| line == "kind: ClusterRole");
        let role = documents.find(is_role);
        Self::of_cluster_role(role.with_context(|| format!("no ClusterRole in {CHART}"))?)
    }

    /// The rules of the ClusterRole in a YAML text of one document.
    ///
    /// Errors: it is none.
    pub fn of_cluster_role(yaml: &str) -> Result<Vec<Self>> {
        #[derive(Deserialize)]
        struct Role {
            rules: Vec<Rule>,
        }
        let role: Role = serde_saphyr::from_str(yaml).context("read a ClusterRole")?;
        Ok(role.rules)
    }

    fn allows(&self, verb: &str, group: &str, resource: &str) -> bool {
        let has = |all: &[String], one: &str| all.iter().any(|known| known == one || known == "*");
        has(&self.verbs, verb) && has(&self.api_groups, group) && has(&self.resources, resource)
    }
}

/// Whether the rules allow a verb on a resource (with its sub-resource).
pub fn allowed(rules: &[Rule], verb: &str, group: &str, resource: &str) -> bool {
    rules.iter().any(|rule| rule.allows(verb, group, resource))
}

/// Whether the rules allow what is asked.
///
/// Errors: 403, which names verb and resource.
pub fn check(rules: &[Rule], ask: &Ask) -> Result<(), Failure> {
    let resource = ask.full_resource();
    if allowed(rules, &ask.verb, &ask.group, &resource) {
        return Ok(());
    }
    let object = match &ask.name {
        Some(name) => format!("{} \"{name}\"", ask.resource),
        None => ask.resource.clone(),
    };
    let scope = match &ask.namespace {
        Some(namespace) => format!("in the namespace \"{namespace}\""),
        None => "at the cluster scope".to_owned(),
    };
    let message = format!(
        "{object} is forbidden: User \"{USER}\" cannot {} resource \"{resource}\" in API group \"{}\" {scope}",
        ask.verb, ask.group
    );
    Err(Failure::forbidden(message).about(&ask.resource))
}
