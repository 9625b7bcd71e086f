//! Events: one storage behind two groups with different names for the same fields, and what is checked of a new one.

use serde_json::{Value, json};

use super::patch;
use super::status::Failure;
use super::store::{Kind, text};

/// The group with the newer form.
pub const GROUP: &str = "events.k8s.io";
/// Longest note.
const NOTE_MAX: usize = 1024;
/// Longest reason, action and reporting instance.
const WORD_MAX: usize = 128;
/// Fields as the core group and as the newer one call them.
const NAMES: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

/// An event in the form of the core group.
pub fn to_core(event: &Value) -> Value {
    renamed(event, "v1", |(core, new)| (new, core))
}

/// An event of the core group in the form of the newer one.
pub fn to_new(event: &Value) -> Value {
    renamed(event, "events.k8s.io/v1", |(core, new)| (core, new))
}

fn renamed(
    event: &Value,
    version: &str,
    order: fn((&'static str, &'static str)) -> (&'static str, &'static str),
) -> Value {
    let mut event = event.clone();
    if let Some(fields) = event.as_object_mut() {
        for (from, to) in NAMES.map(order) {
            if let Some(value) = fields.remove(from) {
                fields.insert(to.to_owned(), value);
            }
        }
    }
    event["kind"] = json!("Event");
    event["apiVersion"] = json!(version);
    event
}

/// Checks a new event and gives it a name if it wants one.
///
/// - `core`: in the form of the core group
/// - `newer`: it came through the newer group, which is stricter
/// - `number`: for its name
///
/// Errors: 400 or 422, with the field in the text.
pub fn admit(mut core: Value, namespace: &str, newer: bool, number: u64) -> Result<Value, Failure> {
    let given = text(&core["metadata"]["namespace"]);
    if !given.is_empty() && given != namespace {
        return Err(Failure::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    core["metadata"]["namespace"] = json!(namespace);
    let prefix = text(&core["metadata"]["generateName"]).to_owned();
    if text(&core["metadata"]["name"]).is_empty() && !prefix.is_empty() {
        core["metadata"]["name"] = json!(format!("{prefix}{number:05x}"));
    }
    let name = text(&core["metadata"]["name"]).to_owned();
    let wrong = |why: &str| Err(Failure::invalid("Event", &name, why));
    if name.is_empty() {
        return wrong("metadata.name: Required value: name or generateName is required");
    }
    if !patch::is_name(&name) {
        return wrong(
            "metadata.name: Invalid value: a lowercase RFC 1123 subdomain must consist of lower case",
        );
    }
    let about = text(&core["involvedObject"]["namespace"]);
    let home = if about.is_empty() { "default" } else { about };
    if home != namespace {
        return wrong("involvedObject.namespace: Invalid value: does not match event.namespace");
    }
    patch::metadata(Kind::Events, &core)?;
    if !matches!(core["type"].as_str(), Some("Normal" | "Warning"))
        && (newer || core.get("type").is_some())
    {
        return wrong("type: Invalid value: has invalid value");
    }
    if newer || core.get("eventTime").is_some_and(|time| !time.is_null()) {
        let missing = |field: &str| text(&core[field]).is_empty();
        for field in [
            "eventTime",
            "reportingComponent",
            "reportingInstance",
            "action",
            "reason",
        ] {
            if missing(field) {
                return wrong(&format!("{field}: Required value"));
            }
        }
        for field in ["reportingInstance", "action", "reason"] {
            if text(&core[field]).len() > WORD_MAX {
                return wrong(&format!(
                    "{field}: Invalid value: can have at most {WORD_MAX} characters"
                ));
            }
        }
        if text(&core["message"]).len() > NOTE_MAX {
            return wrong(&format!(
                "note: Invalid value: can have at most {NOTE_MAX} characters"
            ));
        }
        let time = text(&core["eventTime"]);
        let micro = time.len() == "2026-01-02T03:04:05.123456Z".len() && time.ends_with('Z');
        if !micro {
            return Err(Failure::bad_request(format!(
                "Event in version \"v1\" cannot be handled as a Event: parsing time {time:?} as \
                 \"2006-01-02T15:04:05.000000Z07:00\""
            )));
        }
    }
    Ok(core)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Value {
        json!({
            "metadata": {"generateName": "web-", "namespace": "shop"},
            "regarding": {"kind": "Pod", "namespace": "shop", "name": "web"},
            "note": "why", "type": "Warning", "reason": "R", "action": "A",
            "reportingController": "z", "reportingInstance": "z-1",
            "eventTime": "2026-01-02T03:04:05.123456Z",
        })
    }

    #[test]
    fn both_forms_are_one() {
        let core = admit(to_core(&event()), "shop", true, 7).unwrap();
        assert_eq!(core["metadata"]["name"], "web-00007");
        assert_eq!(core["involvedObject"]["name"], "web");
        assert_eq!(to_core(&to_new(&core))["message"], "why");
        assert!(core.get("note").is_none());
    }

    #[test]
    fn what_is_wrong_is_refused() {
        for (field, value, code) in [
            ("eventTime", Value::Null, 422),
            ("eventTime", json!("2026-01-02T03:04:05Z"), 400),
            ("type", json!("Bad"), 422),
            ("action", json!(""), 422),
            ("note", json!("x".repeat(1025)), 422),
            (
                "regarding",
                json!({"kind": "Pod", "namespace": "other"}),
                422,
            ),
            ("metadata", json!({"namespace": "other", "name": "x"}), 400),
            ("metadata", json!({"namespace": "shop"}), 422),
            (
                "metadata",
                json!({"namespace": "shop", "name": "Web_1"}),
                422,
            ),
        ] {
            let mut wrong = event();
            wrong[field] = value;
            let failed = admit(to_core(&wrong), "shop", true, 7).unwrap_err();
            assert_eq!(failed.code, code, "{field}: {}", failed.message);
        }
    }
}
