//! What does not work with the API server now: told once when it begins, counted, and told once when it is over.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use kube::core::Status;

struct Fault {
    text: String,
    since: Instant,
    count: u64,
}

/// Faults by what fails, such as "watch pods". Their number is that of the kinds of requests.
#[derive(Clone, Default)]
pub(super) struct Faults(Arc<Mutex<BTreeMap<&'static str, Fault>>>);

impl Faults {
    /// A request failed.
    pub(super) fn fail(&self, what: &'static str, error: &kube::Error) {
        self.say(what, explain(what, error));
    }

    /// The same in words.
    pub(super) fn say(&self, what: &'static str, text: String) {
        let mut faults = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fault = faults.entry(what).or_insert_with(|| Fault {
            text: String::new(),
            since: Instant::now(),
            count: 0,
        });
        fault.count += 1;
        if fault.text == text {
            tracing::debug!(
                request = what,
                error = text,
                count = fault.count,
                "Kubernetes API request failed again"
            );
        } else {
            tracing::warn!(
                request = what,
                error = text,
                count = fault.count,
                "Kubernetes API request failed, trying again, what is known stays"
            );
            fault.text = text;
        }
    }

    /// A request succeeded.
    pub(super) fn ok(&self, what: &'static str) {
        let over = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(what);
        if let Some(Fault { since, count, .. }) = over {
            let seconds = since.elapsed().as_secs();
            tracing::info!(
                request = what,
                failed = count,
                seconds,
                "Kubernetes API request works again"
            );
        }
    }

    /// What fails now.
    pub(super) fn texts(&self) -> Vec<String> {
        let faults = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        faults
            .iter()
            .map(|(what, fault)| format!("{what}: {}", fault.text))
            .collect()
    }
}

/// An error in words that help; its causes included.
fn explain(what: &str, error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => refused(what, status),
        error => {
            let mut text = error.to_string();
            let mut cause = std::error::Error::source(error);
            while let Some(error) = cause {
                let more = error.to_string();
                if !text.contains(&more) {
                    text.push_str(": ");
                    text.push_str(&more);
                }
                cause = error.source();
            }
            text
        }
    }
}

/// What the API server says, and what helps.
pub(super) fn refused(what: &str, status: &Status) -> String {
    let said = format!("{} ({}): {}", status.code, status.reason, status.message);
    match status.code {
        401 => format!("{said}; the service account's token is not accepted"),
        403 => {
            let (verb, resource) = what.split_once(' ').unwrap_or((what, ""));
            let group = if resource == "events" {
                "events.k8s.io"
            } else {
                ""
            };
            format!(
                "{said}; the ClusterRole needs a rule with apiGroups [\"{group}\"], resources [\"{resource}\"], verbs [\"{verb}\"]"
            )
        }
        _ => said,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_rule_that_is_missing() {
        let status = Status::failure("pods is forbidden", "Forbidden").with_code(403);
        assert_eq!(
            refused("patch pods", &status),
            "403 (Forbidden): pods is forbidden; the ClusterRole needs a rule with apiGroups [\"\"], resources [\"pods\"], verbs [\"patch\"]"
        );
        let gone = Status::failure("too old", "Expired").with_code(410);
        assert_eq!(refused("watch pods", &gone), "410 (Expired): too old");
    }

    #[test]
    fn faults_last_until_it_works() {
        let faults = Faults::default();
        faults.say("list pods", "down".to_owned());
        faults.say("list pods", "down".to_owned());
        faults.say("patch pods", "no".to_owned());
        assert_eq!(faults.texts(), ["list pods: down", "patch pods: no"]);
        faults.ok("list pods");
        faults.ok("list namespaces");
        assert_eq!(faults.texts(), ["patch pods: no"]);
    }
}
