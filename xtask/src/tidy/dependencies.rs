//! Dependencies from outside: each has its line in ARCHITECTURE.md, and somebody who uses it.

use super::rooms::section;
use super::{files, read};
use anyhow::Result;
use std::collections::BTreeSet;
use std::path::Path;

/// Dependencies without a line, without a user, or with a version outside of the shared list.
pub fn findings(top: &Path) -> Result<Vec<String>> {
    let shared = outside(&read(&top.join("Cargo.toml"))?);
    let mut used = BTreeSet::new();
    for path in files(top, "Cargo.toml")? {
        if path.parent() != Some(top) {
            used.extend(wanted(&read(&path)?));
        }
    }
    let document = top.join("ARCHITECTURE.md");
    let text = if document.is_file() {
        read(&document)?
    } else {
        String::new()
    };
    Ok(compare(&shared, &used, &text))
}

fn compare(shared: &BTreeSet<String>, used: &BTreeSet<String>, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    for name in shared {
        if !text.contains(&format!("`{name}`")) {
            findings.push(format!(
                "ARCHITECTURE.md: no line for the dependency `{name}`"
            ));
        }
        if !used.contains(name) {
            findings.push(format!("Cargo.toml: no crate uses {name}"));
        }
    }
    findings
}

/// Names in `[workspace.dependencies]` that come from a registry.
fn outside(manifest: &str) -> BTreeSet<String> {
    section(manifest, |header| header == "workspace.dependencies")
        .filter(|(_, value)| !value.contains("path ="))
        .map(|(key, _)| key.to_owned())
        .collect()
}

/// Names in any section of dependencies, also those of tests and build scripts.
fn wanted(manifest: &str) -> BTreeSet<String> {
    section(manifest, |header| header.ends_with("dependencies"))
        .map(|(key, _)| key.split('.').next().unwrap_or(key).to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_needs_a_line_and_a_user() {
        let root = "[workspace.dependencies]\nmesh = { path = \"crates/mesh\" }\nh2 = \"0.4\"\nlibc = \"0.2\"\n";
        let member = "[dev-dependencies]\nh2.workspace = true\n";
        let findings = |text| compare(&outside(root), &wanted(member), text);
        assert_eq!(
            findings("- `h2`: HTTP/2\n- `libc`: numbers"),
            ["Cargo.toml: no crate uses libc"]
        );
        assert_eq!(
            findings("- `libc`: numbers")[0],
            "ARCHITECTURE.md: no line for the dependency `h2`"
        );
    }
}
