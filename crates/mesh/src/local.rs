//! The local configuration file: workloads, services and policies in YAML, for one machine, tests and standalone use.
//!
//! All of it is taken or none. Leaves to others: reading and watching the file.

mod entry;
mod text;

use std::collections::HashMap;
use std::sync::Arc;

use serde_saphyr::{Location, Spanned};

use crate::index::Resource;
use crate::name::Str;
use crate::pools::Pools;

/// Bytes that a file may have: about 100k workloads.
pub const FILE_BYTES_MAX: usize = 128 << 20;
/// Nodes (scalars, lists, maps) that a file may have.
const NODES_MAX: usize = 16 << 20;
/// How deep a file may nest; the deepest that means something is a policy's match, at 9.
const DEPTH_MAX: usize = 32;

/// Characters of an offending value that an error repeats.
const TOKEN_CHARS_MAX: usize = 60;

/// Why a file is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalError {
    /// Line, from 1; 0 when no single line is to blame.
    pub line: u64,
    /// Column, from 1; 0 with line 0.
    pub column: u64,
    /// The field, e.g. `workloads[0].workloadIps[1]`; empty for the file as a whole.
    pub path: String,
    /// What is wrong: the offending value and what was expected.
    pub problem: String,
}

impl std::fmt::Display for LocalError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.line > 0 {
            write!(f, "line {}, column {}: ", self.line, self.column)?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.problem)
    }
}

impl std::error::Error for LocalError {}

impl LocalError {
    fn at(location: Location, path: String, problem: String) -> Self {
        Self {
            line: location.line(),
            column: location.column(),
            path,
            problem,
        }
    }
}

/// Reads the whole file. An empty one holds nothing.
///
/// Errors: syntax, unknown or missing keys, values that are not what a field takes, two resources with one key.
/// Source: the layout of Istio ztunnel's `LOCAL_XDS_PATH` file.
pub fn parse(text: &str) -> Result<Vec<Resource>, LocalError> {
    if text.len() > FILE_BYTES_MAX {
        let problem = format!("{} bytes, expected at most {FILE_BYTES_MAX}", text.len());
        return Err(LocalError {
            line: 0,
            column: 0,
            path: String::new(),
            problem,
        });
    }
    let file = read(text)?;
    let mut pools = Pools::default();
    let mut seen = Seen::default();
    let mut resources = Vec::new();
    for (at, entry) in file.workloads.into_iter().flatten().enumerate() {
        let (uid, place) = spanned(entry.uid.as_ref());
        seen.first("uid", &uid, place, || format!("workloads[{at}].uid"))?;
        resources.push(Resource::Workload(Arc::new(
            entry.into_workload(&mut pools),
        )));
    }
    for (at, entry) in file.services.into_iter().flatten().enumerate() {
        let (hostname, place) = spanned(Some(&entry.hostname));
        let key = format!("{}/{hostname}", entry.namespace);
        seen.first("service", &key, place, || {
            format!("services[{at}].hostname")
        })?;
        resources.push(Resource::Service(Arc::new(entry.into_service(&mut pools))));
    }
    for (at, entry) in file.policies.into_iter().flatten().enumerate() {
        let (name, place) = spanned(Some(&entry.name));
        let key = format!("{}/{name}", entry.namespace);
        seen.first("policy", &key, place, || format!("policies[{at}].name"))?;
        resources.push(Resource::Policy(Arc::new(entry.into_policy())));
    }
    Ok(resources)
}

fn read(text: &str) -> Result<entry::File, LocalError> {
    let options = serde_saphyr::options! {
        with_snippet: false,
        strict_booleans: true,
        emit_comments: false,
        budget: serde_saphyr::budget! {
            max_events: 2 * NODES_MAX,
            max_nodes: NODES_MAX,
            max_depth: DEPTH_MAX,
            max_documents: 1,
            max_total_scalar_bytes: FILE_BYTES_MAX,
        },
    };
    let mut path = String::new();
    let file = serde_saphyr::with_deserializer_from_str_with_options(text, options, |yaml| {
        serde_path_to_error::deserialize::<_, Option<entry::File>>(yaml).map_err(|error| {
            path = error.path().to_string();
            error.into_inner()
        })
    });
    file.map(Option::unwrap_or_default).map_err(|error| {
        let location = error.location().unwrap_or(Location::UNKNOWN);
        let path = if matches!(path.as_str(), "." | "?") {
            String::new()
        } else {
            path
        };
        LocalError::at(location, path, describe(&error, token_at(text, location)))
    })
}

/// The error's text without its place and its hints to programmers, with the offending token if it is not in it.
fn describe(error: &serde_saphyr::Error, token: &str) -> String {
    let text = error.without_snippet().to_string();
    let text = text
        .rfind(" at line ")
        .map_or(text.as_str(), |at| &text[..at]);
    let text = text
        .split(", set DuplicateKeyPolicy")
        .next()
        .unwrap_or(text);
    let names_it = ["invalid value", "unknown", "missing"]
        .iter()
        .any(|start| text.starts_with(start));
    if names_it || token.is_empty() || text.contains(token) {
        text.to_owned()
    } else {
        format!("{text}, found `{token}`")
    }
}

/// What stands at a place of the file, up to the end of the value or of the line.
fn token_at(text: &str, location: Location) -> &str {
    let index = |number: u64| usize::try_from(number).ok()?.checked_sub(1);
    let line = index(location.line())
        .and_then(|at| text.lines().nth(at))
        .unwrap_or("");
    let start = index(location.column())
        .and_then(|at| line.char_indices().nth(at))
        .map_or(line.len(), |(at, _)| at);
    let rest = &line[start..];
    let end = rest.find([',', ']', '}', '#']).unwrap_or(rest.len());
    let end = rest
        .char_indices()
        .nth(TOKEN_CHARS_MAX)
        .map_or(end, |(at, _)| at.min(end));
    rest[..end].trim()
}

fn spanned(value: Option<&Spanned<String>>) -> (String, Location) {
    value.map_or((String::new(), Location::UNKNOWN), |v| {
        (v.value.clone(), v.referenced)
    })
}

/// Keys met so far, and the fields they were in.
#[derive(Default)]
struct Seen {
    keys: HashMap<(&'static str, Str), String>,
}

impl Seen {
    fn first(
        &mut self,
        kind: &'static str,
        key: &str,
        place: Location,
        path: impl Fn() -> String,
    ) -> Result<(), LocalError> {
        match self.keys.insert((kind, key.into()), path()) {
            None => Ok(()),
            Some(earlier) => {
                let problem = format!(
                    "{kind} {key:?} is already taken by {earlier}, expected each only once"
                );
                Err(LocalError::at(place, path(), problem))
            }
        }
    }
}

#[cfg(test)]
mod tests;
