//! The enrolment file: pods of a plain machine, stated by its operator in YAML.
//!
//! Reading it again when it changes is in [`source()`]; whether a pod of it is ours is decided by [`crate::rules`].

mod check;
mod source;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

pub use self::source::source;

use crate::pod::{Labels, OutPod, Phase, Pod, Sighting};
use crate::rules::{Rules, Verdict, Warning};

use serde::Deserialize;
use serde_saphyr::Spanned;

/// Largest file, in bytes.
const BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Most pods, and most namespaces, of one file: far more than a node runs.
const ENTRIES_MAX: usize = 4096;

/// Why the file cannot be understood. Nothing of it is taken then.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("read {path}: {cause}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// It is too large.
    #[error("larger than {BYTES_MAX} bytes")]
    TooLarge,
    /// It is not YAML of the expected form.
    #[error("line {line}: {field}: {message}")]
    Form {
        /// From 1; 0 when not known.
        line: u64,
        /// Path of the field, such as `pods[1].netns`.
        field: String,
        /// What is wrong.
        message: String,
    },
    /// A value is not what it has to be.
    #[error("line {line}: {field}: {value:?}: expected {expected}")]
    Value {
        /// From 1.
        line: u64,
        /// Path of the field, such as `pods[1].netns`.
        field: String,
        /// What stands there.
        value: String,
        /// What would be valid.
        expected: String,
    },
}

/// What the file says, checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Enrolment {
    /// Labels by namespace.
    pub namespaces: BTreeMap<Arc<str>, Labels>,
    /// Pods in the order of the file.
    pub pods: Vec<Pod>,
}

/// Parses the text of the file.
///
/// Errors: [`FileError`] with line, field path, value and what was expected; also for unknown keys, and for two pods of one uid, name,
/// network namespace or cgroup.
pub fn parse(text: &str) -> Result<Enrolment, FileError> {
    if text.len() as u64 > BYTES_MAX {
        return Err(FileError::TooLarge);
    }
    // A file of comments is a file without pods.
    if text
        .lines()
        .map(str::trim)
        .all(|line| line.is_empty() || line.starts_with('#') || line == "---")
    {
        return Ok(Enrolment::default());
    }
    let mut field = String::new();
    let read = serde_saphyr::with_deserializer_from_str(text, |deserializer| {
        serde_path_to_error::deserialize::<_, FileForm>(deserializer).map_err(|error| {
            field = error.path().to_string();
            error.into_inner()
        })
    });
    check::check(read.map_err(|error| form_error(text, &field, &error))?)
}

/// Longest piece of the file shown in an error, in characters.
const SHOWN_MAX: usize = 80;

/// The parser's error in the words of this house, with what stands at its place.
fn form_error(text: &str, field: &str, error: &serde_saphyr::Error) -> FileError {
    let full = error.without_snippet().to_string();
    let first = full.lines().next().unwrap_or_default();
    // The place stands in front already, and options of the parser mean nothing to an operator.
    let cut = [" at line ", ", set DuplicateKeyPolicy"];
    let end = cut
        .iter()
        .filter_map(|cut| first.find(cut))
        .min()
        .unwrap_or(first.len());
    let mut message = first[..end].to_owned();
    let (line, column) = error
        .location()
        .map_or((0, 0), |place| (place.line(), place.column()));
    let at = |number: u64| usize::try_from(number.saturating_sub(1)).unwrap_or(usize::MAX);
    let found: String = text
        .lines()
        .nth(at(line))
        .map(|line| line.chars().skip(at(column)).take(SHOWN_MAX).collect())
        .unwrap_or_default();
    if !message.contains('`') && !found.is_empty() {
        message.push_str(&format!(", found {found:?}"));
    }
    let field = match field.trim_end_matches(".?") {
        "" | "." | "?" => "file",
        field => field,
    };
    FileError::Form {
        line,
        field: field.to_owned(),
        message,
    }
}

/// The file as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileForm {
    #[serde(default)]
    namespaces: Vec<NamespaceForm>,
    #[serde(default)]
    pods: Vec<PodForm>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NamespaceForm {
    name: Spanned<String>,
    #[serde(default)]
    labels: Labels,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PodForm {
    uid: Spanned<String>,
    name: Spanned<String>,
    namespace: Spanned<String>,
    /// As in Kubernetes, `default` when not stated.
    service_account: Option<Spanned<String>>,
    netns: Option<Spanned<String>>,
    cgroup: Option<Spanned<String>>,
    #[serde(default)]
    host_network: bool,
    #[serde(default)]
    phase: Phase,
    #[serde(default)]
    labels: Labels,
    #[serde(default)]
    annotations: Labels,
}

impl Enrolment {
    /// Each pod, in the mesh or out of it, and the annotations that were ignored.
    pub fn sightings(&self, rules: &Rules) -> Vec<(Sighting, Vec<Warning>)> {
        let nothing = Labels::new();
        let labels = |pod: &Pod| self.namespaces.get(&pod.namespace).unwrap_or(&nothing);
        self.pods
            .iter()
            .map(|pod| match rules.decide(pod, labels(pod)) {
                Verdict::In(spec, warnings) => (Sighting::In(Arc::from(spec)), warnings),
                Verdict::Out(why) => {
                    let out = OutPod {
                        uid: pod.uid.clone(),
                        name: pod.name.clone(),
                        namespace: pod.namespace.clone(),
                        netns: pod.netns.clone(),
                        cgroup: pod.cgroup.clone(),
                        why,
                    };
                    (Sighting::Out(Arc::new(out)), Vec::new())
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
