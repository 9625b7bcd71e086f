//! Golden files, and what to find in them.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Top of the repository.
pub fn top() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent()
        .expect("integration is below the top")
        .to_owned()
}

/// All objects that a values file renders.
pub fn objects(name: &str) -> Vec<Value> {
    let path = top().join(format!("helm/tests/golden/{name}.yaml"));
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|cause| panic!("{}: {cause}", path.display()));
    let all: Vec<Value> =
        serde_saphyr::from_multiple(&text).unwrap_or_else(|cause| panic!("{name}: {cause}"));
    all.into_iter().filter(|object| !object.is_null()).collect()
}

/// Names of all golden files.
pub fn all() -> Vec<String> {
    let dir = top().join("helm/tests/golden");
    let mut names: Vec<String> = std::fs::read_dir(&dir)
        .expect("there are golden files")
        .map(|entry| {
            entry
                .expect("a readable directory")
                .file_name()
                .to_string_lossy()
                .replace(".yaml", "")
        })
        .collect();
    names.sort();
    assert!(names.len() > 10, "{names:?}");
    names
}

/// Kinds of what a values file renders, sorted.
pub fn kinds(name: &str) -> Vec<String> {
    let mut kinds: Vec<String> = objects(name)
        .iter()
        .map(|object| text(&object["kind"]))
        .collect();
    kinds.sort();
    kinds
}

/// The one object of a kind.
pub fn one(name: &str, kind: &str) -> Value {
    let mut found = objects(name)
        .into_iter()
        .filter(|object| object["kind"] == kind);
    let first = found
        .next()
        .unwrap_or_else(|| panic!("{name} has no {kind}"));
    assert!(found.next().is_none(), "{name} has several {kind}");
    first
}

/// The DaemonSet's pod template.
pub fn template(name: &str) -> Value {
    one(name, "DaemonSet")["spec"]["template"].take()
}

/// The pod's specification.
pub fn pod(name: &str) -> Value {
    template(name)["spec"].take()
}

/// The pod's one container.
pub fn container(name: &str) -> Value {
    let pod = pod(name);
    let containers = pod["containers"].as_array().expect("containers");
    assert_eq!(containers.len(), 1);
    assert_eq!(pod["initContainers"], Value::Null);
    containers[0].clone()
}

/// The environment: name to value, or to the downward field. A name stands once.
pub fn env(name: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for entry in container(name)["env"].as_array().expect("env") {
        let from = &entry["valueFrom"];
        let value = match &entry["value"] {
            Value::String(value) => value.clone(),
            Value::Null if from["fieldRef"].is_object() => {
                format!("@{}", text(&from["fieldRef"]["fieldPath"]))
            }
            Value::Null => {
                let resource = &from["resourceFieldRef"];
                assert_eq!(text(&resource["divisor"]), "1");
                format!("@{}", text(&resource["resource"]))
            }
            other => panic!("{name}: {entry} holds {other}, not text"),
        };
        let before = found.insert(text(&entry["name"]), value);
        assert_eq!(before, None, "{name}: {} stands twice", entry["name"]);
    }
    found
}

/// Mounts: path to (volume's source, read-only). Each mount has its volume, and each volume a mount.
pub fn mounts(name: &str) -> BTreeMap<String, (Value, bool)> {
    let pod = pod(name);
    let mut volumes: BTreeMap<String, Value> = BTreeMap::new();
    for volume in pod["volumes"].as_array().expect("volumes") {
        let mut source = volume.clone();
        source.as_object_mut().expect("a volume").remove("name");
        assert!(
            volumes.insert(text(&volume["name"]), source).is_none(),
            "{name}: two volumes {}",
            volume["name"]
        );
    }
    let mut found = BTreeMap::new();
    for mount in container(name)["volumeMounts"]
        .as_array()
        .expect("volumeMounts")
    {
        let source = volumes.remove(&text(&mount["name"]));
        let source = source.unwrap_or_else(|| panic!("{name}: no volume for {mount}"));
        assert_eq!(mount["mountPropagation"], Value::Null);
        let read_only = mount["readOnly"] == json!(true);
        found.insert(text(&mount["mountPath"]), (source, read_only));
    }
    assert!(
        volumes.is_empty(),
        "{name}: volumes without mount: {volumes:?}"
    );
    found
}

/// A string's text.
pub fn text(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is no text"))
        .to_owned()
}

/// A map of texts from pairs.
pub fn texts<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}
