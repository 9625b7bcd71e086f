//! From the form of the file to pods: every value is checked, and the first that is wrong is named.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde_saphyr::Spanned;

use super::{ENTRIES_MAX, Enrolment, FileError, FileForm, NamespaceForm, PodForm};
use crate::pod::Pod;

/// Longest uid, in bytes; Kubernetes writes 36.
const UID_BYTES_MAX: usize = 253;
/// Longest path. Source: Linux, `PATH_MAX`.
const PATH_BYTES_MAX: usize = 4096;
/// Longest value shown in an error, in characters.
const SHOWN_MAX: usize = 80;

pub(super) fn check(form: FileForm) -> Result<Enrolment, FileError> {
    for (field, count) in [
        ("namespaces", form.namespaces.len()),
        ("pods", form.pods.len()),
    ] {
        if count > ENTRIES_MAX {
            let (value, expected) = (format!("{count} entries"), format!("at most {ENTRIES_MAX}"));
            return Err(FileError::Value {
                line: 1,
                field: field.to_owned(),
                value,
                expected,
            });
        }
    }
    let mut checker = Checker::default();
    let mut enrolment = Enrolment::default();
    for (at, namespace) in form.namespaces.into_iter().enumerate() {
        let NamespaceForm { name, labels } = namespace;
        let field = format!("namespaces[{at}].name");
        checker.label(&field, &name)?;
        checker.once("namespace", &field, &name, &name.value)?;
        enrolment.namespaces.insert(name.value.into(), labels);
    }
    for (at, pod) in form.pods.into_iter().enumerate() {
        enrolment.pods.push(checker.pod(at, pod)?);
    }
    Ok(enrolment)
}

/// What was seen so far, with its line.
#[derive(Default)]
struct Checker {
    seen: HashMap<(&'static str, String), u64>,
}

impl Checker {
    fn pod(&mut self, at: usize, form: PodForm) -> Result<Pod, FileError> {
        let field = |name: &str| format!("pods[{at}].{name}");
        uid(&field("uid"), &form.uid)?;
        self.once("uid", &field("uid"), &form.uid, &form.uid.value)?;
        subdomain(&field("name"), &form.name)?;
        self.label(&field("namespace"), &form.namespace)?;
        let key = format!("{}/{}", form.namespace.value, form.name.value);
        self.once("name in its namespace", &field("name"), &form.name, &key)?;
        if let Some(account) = &form.service_account {
            subdomain(&field("serviceAccount"), account)?;
        }
        // Pods that use the node's network, or have ended, own neither.
        let owns = !form.host_network && !form.phase.is_terminated();
        let mut place = |name, value: Option<Spanned<String>>| match value {
            Some(value) => self.place(name, &field(name), &value, owns).map(Some),
            None if owns => Err(missing(&form.uid, &field(name))),
            None => Ok(None),
        };
        let netns = place("netns", form.netns)?;
        let cgroup = place("cgroup", form.cgroup)?;
        Ok(Pod {
            uid: form.uid.value.into(),
            name: form.name.value.into(),
            namespace: form.namespace.value.into(),
            service_account: form
                .service_account
                .map_or_else(|| Arc::from("default"), |account| account.value.into()),
            netns,
            netns_handle: None,
            cgroup,
            host_network: form.host_network,
            phase: form.phase,
            labels: form.labels,
            annotations: form.annotations,
        })
    }

    /// An absolute path that only one pod owns.
    fn place(
        &mut self,
        what: &'static str,
        field: &str,
        value: &Spanned<String>,
        owned: bool,
    ) -> Result<PathBuf, FileError> {
        let path = PathBuf::from(&value.value);
        let walks = path
            .components()
            .any(|part| part == std::path::Component::ParentDir);
        if !path.is_absolute()
            || walks
            || value.value.len() > PATH_BYTES_MAX
            || value.value.contains('\0')
        {
            return Err(wrong(field, value, "an absolute path without .."));
        }
        // Written in two ways it is still one path.
        let path: PathBuf = path.components().collect();
        if owned {
            self.once(what, field, value, &path.to_string_lossy())?;
        }
        Ok(path)
    }

    fn once(
        &mut self,
        what: &'static str,
        field: &str,
        value: &Spanned<String>,
        key: &str,
    ) -> Result<(), FileError> {
        match self
            .seen
            .insert((what, key.to_owned()), value.referenced.line())
        {
            None => Ok(()),
            Some(line) => Err(wrong(
                field,
                value,
                &format!("a {what} of its own, line {line} has it already"),
            )),
        }
    }

    fn label(&self, field: &str, value: &Spanned<String>) -> Result<(), FileError> {
        let text = &value.value;
        if text.len() <= 63 && is_label(text) {
            Ok(())
        } else {
            Err(wrong(
                field,
                value,
                "a DNS label: a-z, 0-9 and -, at most 63",
            ))
        }
    }
}

/// Source: RFC 1123, section 2.1, as Kubernetes applies it: lower case only.
fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

fn subdomain(field: &str, value: &Spanned<String>) -> Result<(), FileError> {
    let text = &value.value;
    if text.len() <= 253 && text.split('.').all(is_label) {
        Ok(())
    } else {
        Err(wrong(
            field,
            value,
            "a DNS name: a-z, 0-9, - and ., at most 253",
        ))
    }
}

fn uid(field: &str, value: &Spanned<String>) -> Result<(), FileError> {
    let text = &value.value;
    if !text.is_empty()
        && text.len() <= UID_BYTES_MAX
        && text.bytes().all(|byte| byte.is_ascii_graphic())
    {
        Ok(())
    } else {
        Err(wrong(
            field,
            value,
            "the pod's UID: 1 to 253 visible characters",
        ))
    }
}

fn missing(uid: &Spanned<String>, field: &str) -> FileError {
    FileError::Form {
        line: uid.referenced.line(),
        field: field.to_owned(),
        message: format!(
            "missing for pod {:?}: needed unless hostNetwork is true or the phase is Succeeded or Failed",
            uid.value
        ),
    }
}

fn wrong(field: &str, value: &Spanned<String>, expected: &str) -> FileError {
    FileError::Value {
        line: value.referenced.line(),
        field: field.to_owned(),
        value: value.value.chars().take(SHOWN_MAX).collect(),
        expected: expected.to_owned(),
    }
}
