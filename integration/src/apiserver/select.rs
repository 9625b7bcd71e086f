//! Label and field selectors, in the forms that the API server takes.

use serde_json::Value;

use super::status::Failure;
use super::store::{Kind, text};

/// What one requirement asks of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Is(Vec<String>),
    IsNot(Vec<String>),
    There,
    Missing,
}

/// A parsed pair of selectors.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    labels: Vec<(String, Test)>,
    fields: Vec<(String, Test)>,
}

impl Selector {
    /// Reads both; empty texts select everything.
    ///
    /// Errors: 400 for what cannot be read, or a field that the kind cannot be selected by.
    pub fn parse(kind: Kind, labels: &str, fields: &str) -> Result<Self, Failure> {
        let mut selector = Self::default();
        for part in split(labels) {
            let read = requirement(part).ok_or_else(|| {
                Failure::bad_request(format!("unable to parse requirement: {part:?}"))
            })?;
            selector.labels.push(read);
        }
        for part in split(fields) {
            let read = field(part)
                .ok_or_else(|| Failure::bad_request(format!("invalid selector: {part:?}")))?;
            if !selectable(kind).contains(&read.0.as_str()) {
                let what = format!("field label not supported: {}", read.0);
                return Err(Failure::bad_request(what));
            }
            selector.fields.push(read);
        }
        Ok(selector)
    }

    /// Whether an object is selected.
    pub fn takes(&self, object: &Value) -> bool {
        let label = |key: &str| {
            object["metadata"]["labels"]
                .get(key)
                .and_then(Value::as_str)
        };
        self.labels
            .iter()
            .all(|(key, test)| holds(test, label(key)))
            && self.fields.iter().all(|(path, test)| {
                let found = path.split('.').fold(object, |at, part| &at[part]);
                let found = match found {
                    Value::Bool(yes) => yes.to_string(),
                    other => text(other).to_owned(),
                };
                holds(test, Some(&found))
            })
    }
}

fn holds(test: &Test, value: Option<&str>) -> bool {
    match test {
        Test::Is(wanted) => value.is_some_and(|value| wanted.iter().any(|one| one == value)),
        Test::IsNot(unwanted) => {
            !value.is_some_and(|value| unwanted.iter().any(|one| one == value))
        }
        Test::There => value.is_some(),
        Test::Missing => value.is_none(),
    }
}

/// Fields that a kind can be selected by.
fn selectable(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Pods => &[
            "metadata.name",
            "metadata.namespace",
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        Kind::Namespaces => &["metadata.name", "status.phase"],
        Kind::Events => &["metadata.name", "metadata.namespace", "reason", "type"],
    }
}

/// Splits at commas that do not stand in parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut from, mut depth) = (Vec::new(), 0, 0_u32);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[from..at]);
                from = at + 1;
            }
            _ => (),
        }
    }
    parts.push(&text[from..]);
    parts.retain(|part| !part.trim().is_empty());
    parts
}

fn field(part: &str) -> Option<(String, Test)> {
    let one = |value: &str| vec![value.trim().to_owned()];
    let (key, test) = if let Some((key, value)) = part.split_once("!=") {
        (key, Test::IsNot(one(value)))
    } else if let Some((key, value)) = part.split_once("==") {
        (key, Test::Is(one(value)))
    } else {
        let (key, value) = part.split_once('=')?;
        (key, Test::Is(one(value)))
    };
    Some((key.trim().to_owned(), test))
}

fn requirement(part: &str) -> Option<(String, Test)> {
    let part = part.trim();
    if part.contains('=') {
        return field(part);
    }
    if let Some(key) = part.strip_prefix('!') {
        return Some((key.trim().to_owned(), Test::Missing));
    }
    let Some((key, rest)) = part.split_once(char::is_whitespace) else {
        return Some((part.to_owned(), Test::There));
    };
    let (word, set) = rest.trim().split_once('(')?;
    let set = set.strip_suffix(')')?;
    let set = set.split(',').map(|one| one.trim().to_owned()).collect();
    let test = match word.trim() {
        "in" => Test::Is(set),
        "notin" => Test::IsNot(set),
        _ => return None,
    };
    Some((key.to_owned(), test))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_take_what_they_say() {
        let pod = json!({
            "metadata": {"name": "a", "labels": {"app": "web", "tier": "front"}},
            "spec": {"nodeName": "n1"}, "status": {"phase": "Running"},
        });
        for (labels, fields, taken) in [
            ("", "", true),
            ("app=web", "spec.nodeName=n1", true),
            ("app==web,tier!=back", "", true),
            ("app in (web, db),!gone", "status.phase!=Failed", true),
            ("app notin (web)", "", false),
            ("other", "", false),
            ("app", "spec.nodeName=n2", false),
            ("", "metadata.name=a,status.phase=Running", true),
        ] {
            let selector = Selector::parse(Kind::Pods, labels, fields).unwrap();
            assert_eq!(selector.takes(&pod), taken, "{labels:?} {fields:?}");
        }
        for (labels, fields) in [
            ("app is web", ""),
            ("", "spec.nodeName"),
            ("", "spec.image=x"),
        ] {
            let failed = Selector::parse(Kind::Pods, labels, fields).unwrap_err();
            assert_eq!(failed.code, 400, "{labels:?} {fields:?}");
        }
    }
}
