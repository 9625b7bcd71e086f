//! Changes by patch: how a patch is applied, and what the API server checks of the outcome.

use serde_json::{Value, json};

use super::route::Ask;
use super::status::Failure;
use super::store::{Kind, text};

/// Content types of patches that are taken.
pub const MEDIA: [&str; 3] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];
/// Most bytes of all annotations of an object.
const ANNOTATIONS_MAX: usize = 256 << 10;
/// Longest name part of a key.
const NAME_MAX: usize = 63;
/// Longest prefix of a key, and longest name of an object.
const PREFIX_MAX: usize = 253;

/// The object after a patch.
///
/// - `media`: content type without parameters
///
/// Errors: 415 for another type, 400 for a body that is no patch, 422 for one that cannot be applied.
pub fn apply(media: &str, old: &Value, body: &[u8]) -> Result<Value, Failure> {
    if !MEDIA.contains(&media) {
        return Err(Failure::media_type(&MEDIA));
    }
    let patch: Value = serde_json::from_slice(body)
        .map_err(|why| Failure::bad_request(format!("error decoding patch: {why}")))?;
    let mut new = old.clone();
    if media == MEDIA[0] {
        let steps = patch.as_array().ok_or_else(|| {
            Failure::bad_request("error decoding patch: cannot unmarshal object into []Operation")
        })?;
        for one in steps {
            step(&mut new, one).ok_or_else(|| {
                Failure::invalid("", "", &format!("the server rejected our request: {one}"))
            })?;
        }
    } else if patch.is_object() {
        // strategic merging differs in lists only, and nothing here patches one
        merge(&mut new, &patch);
    } else {
        return Err(Failure::bad_request(
            "error decoding patch: cannot unmarshal into map",
        ));
    }
    Ok(new)
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(changes) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Value::Object(target) = target else {
        return;
    };
    for (key, change) in changes {
        if change.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), change);
        }
    }
}

/// One step of RFC 6902; none if it cannot be done.
fn step(target: &mut Value, step: &Value) -> Option<()> {
    let path = step["path"].as_str()?;
    if step["op"] == "test" {
        return (target.pointer(path)? == step.get("value")?).then_some(());
    }
    let (parent, key) = path.rsplit_once('/')?;
    let key = key.replace("~1", "/").replace("~0", "~");
    let parent = target.pointer_mut(parent)?.as_object_mut()?;
    match step["op"].as_str()? {
        "add" => {
            parent.insert(key, step.get("value")?.clone());
        }
        "replace" => *parent.get_mut(&key)? = step.get("value")?.clone(),
        "remove" => {
            parent.remove(&key)?;
        }
        _ => return None,
    }
    Some(())
}

/// What is stored of an object that a patch led to.
///
/// Errors: 400 when it is not the object of the path any more or cannot be decoded, 409 when it names another version
/// or another uid, 422 when it is not valid or changes what cannot be changed.
pub fn admit(kind: Kind, ask: &Ask, old: &Value, mut new: Value) -> Result<Value, Failure> {
    let name = text(&old["metadata"]["name"]);
    for key in ["name", "namespace"] {
        if new["metadata"][key] != old["metadata"][key] {
            let what = format!(
                "the {key} of the object ({}) does not match the {key} on the URL ({})",
                text(&new["metadata"][key]),
                text(&old["metadata"][key])
            );
            return Err(Failure::bad_request(what));
        }
    }
    let asked = &new["metadata"]["resourceVersion"];
    if asked != &old["metadata"]["resourceVersion"] {
        let why = "the object has been modified; please apply your changes to the latest version \
                   and try again";
        return Err(Failure::conflict(kind.resource(), name, why));
    }
    if new["metadata"]["uid"] != old["metadata"]["uid"] {
        let why = format!(
            "Precondition failed: UID in precondition: {}, UID in object meta: {}",
            text(&new["metadata"]["uid"]),
            text(&old["metadata"]["uid"])
        );
        return Err(Failure::conflict(kind.resource(), name, &why));
    }
    for key in ["kind", "apiVersion"] {
        new[key] = old[key].clone();
    }
    for key in ["creationTimestamp", "deletionTimestamp"] {
        match old["metadata"].get(key) {
            Some(value) => new["metadata"][key] = value.clone(),
            None => drop(new["metadata"].as_object_mut().map(|all| all.remove(key))),
        }
    }
    metadata(kind, &new)?;
    if kind == Kind::Pods {
        let status = ask.subresource.as_deref() == Some("status");
        let (kept, free) = if status {
            ("spec", "status")
        } else {
            ("status", "spec")
        };
        new[kept] = old[kept].clone();
        if free == "spec" && new["spec"] != old["spec"] {
            let why = "spec: Forbidden: pod updates may not change fields other than \
                       `spec.containers[*].image`";
            return Err(Failure::invalid("Pod", name, why));
        }
    }
    Ok(new)
}

/// Checks labels and annotations.
///
/// Errors: 400 for what is no map of strings, 422 for keys and sizes that are not allowed.
pub fn metadata(kind: Kind, object: &Value) -> Result<(), Failure> {
    let name = text(&object["metadata"]["name"]);
    for field in ["labels", "annotations"] {
        let Some(map) = object["metadata"].get(field).filter(|map| !map.is_null()) else {
            continue;
        };
        let wrong = || {
            Failure::bad_request(format!(
                "{} in version \"v1\" cannot be handled as a {}: json: cannot unmarshal into Go struct \
                 field ObjectMeta.metadata.{field} of type string",
                kind.kind(),
                kind.kind()
            ))
        };
        let map = map.as_object().ok_or_else(wrong)?;
        let mut size = 0;
        for (key, value) in map {
            size += key.len() + value.as_str().ok_or_else(wrong)?.len();
            if !is_key(key) {
                let why = format!(
                    "metadata.{field}: Invalid value: {key:?}: name part must consist of alphanumeric characters"
                );
                return Err(Failure::invalid(kind.kind(), name, &why));
            }
        }
        if field == "annotations" && size > ANNOTATIONS_MAX {
            let why = format!(
                "metadata.annotations: Too long: may not be more than {ANNOTATIONS_MAX} bytes"
            );
            return Err(Failure::invalid(kind.kind(), name, &why));
        }
    }
    Ok(())
}

fn is_key(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let prefix = prefix.is_none_or(|prefix| {
        prefix.len() <= PREFIX_MAX && prefix.split('.').all(|part| word(part, "-", false))
    });
    prefix && name.len() <= NAME_MAX && word(name, "-_.", true)
}

/// Letters and digits, and `more` between them.
fn word(text: &str, more: &str, upper: bool) -> bool {
    let plain =
        |c: char| c.is_ascii_digit() || c.is_ascii_lowercase() || (upper && c.is_ascii_uppercase());
    text.starts_with(plain)
        && text.ends_with(plain)
        && text.chars().all(|c| plain(c) || more.contains(c))
}

/// Whether an object may be called that.
pub fn is_name(name: &str) -> bool {
    name.len() <= PREFIX_MAX && name.split('.').all(|part| word(part, "-", false))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(sub: Option<&str>) -> Ask {
        let tail = sub.map(|sub| format!("/{sub}")).unwrap_or_default();
        let path = format!("/api/v1/namespaces/a/pods/p{tail}");
        Ask::read(&http::Method::PATCH, &path, "").unwrap()
    }

    fn pod() -> Value {
        json!({
            "kind": "Pod", "apiVersion": "v1",
            "metadata": {"name": "p", "namespace": "a", "uid": "u", "resourceVersion": "7",
                         "creationTimestamp": "2026", "annotations": {"x": "1"}},
            "spec": {"nodeName": "n"}, "status": {"phase": "Running"},
        })
    }

    #[test]
    fn patches_are_applied() {
        for (media, body, x) in [
            (
                MEDIA[1],
                json!({"metadata": {"annotations": {"x": "2"}}}),
                json!("2"),
            ),
            (
                MEDIA[1],
                json!({"metadata": {"annotations": {"x": null}}}),
                Value::Null,
            ),
            (
                MEDIA[2],
                json!({"metadata": {"annotations": {"y": "2"}}}),
                json!("1"),
            ),
            (
                MEDIA[0],
                json!([{"op": "remove", "path": "/metadata/annotations/x"}]),
                Value::Null,
            ),
        ] {
            let new = apply(media, &pod(), body.to_string().as_bytes()).unwrap();
            assert_eq!(new["metadata"]["annotations"]["x"], x, "{body}");
            assert_eq!(
                admit(Kind::Pods, &ask(None), &pod(), new.clone()).unwrap(),
                new
            );
        }
    }

    #[test]
    fn what_is_wrong_is_refused() {
        let long = "x".repeat(ANNOTATIONS_MAX);
        for (body, code) in [
            (json!({"metadata": {"annotations": {"x": 1}}}), 400),
            (json!({"metadata": {"name": "q"}}), 400),
            (json!({"metadata": {"uid": "v"}}), 409),
            (json!({"metadata": {"resourceVersion": "6"}}), 409),
            (json!({"metadata": {"annotations": {"-x": "1"}}}), 422),
            (json!({"metadata": {"annotations": {"x": long}}}), 422),
            (json!({"spec": {"nodeName": "m"}}), 422),
        ] {
            let new = apply(MEDIA[1], &pod(), body.to_string().as_bytes()).unwrap();
            let failed = admit(Kind::Pods, &ask(None), &pod(), new).unwrap_err();
            assert_eq!(failed.code, code, "{}", failed.message);
        }
        assert_eq!(
            apply("application/json", &pod(), b"{}").unwrap_err().code,
            415
        );
        assert_eq!(apply(MEDIA[1], &pod(), b"{").unwrap_err().code, 400);
        assert_eq!(apply(MEDIA[1], &pod(), b"[]").unwrap_err().code, 400);
        let body = json!({"status": {"phase": "Failed"}}).to_string();
        let new = apply(MEDIA[1], &pod(), body.as_bytes()).unwrap();
        let kept = admit(Kind::Pods, &ask(None), &pod(), new.clone()).unwrap();
        assert_eq!(
            kept["status"]["phase"], "Running",
            "only by the sub-resource"
        );
        let set = admit(Kind::Pods, &ask(Some("status")), &pod(), new).unwrap();
        assert_eq!(set["status"]["phase"], "Failed");
    }
}
