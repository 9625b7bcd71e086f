//! `tidy`: the house rules that a program can hold to the code. Also a test of this crate.
//!
//! Each rule says what is wrong and where; none of them changes a file. What the compiler and clippy
//! already refuse is left to them.

mod dependencies;
mod docs;
mod rooms;
mod sources;

use crate::place::root;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// Prints what is untidy; fails when something is.
pub fn run() -> Result<()> {
    let findings = findings()?;
    for finding in &findings {
        eprintln!("{finding}");
    }
    if findings.is_empty() {
        Ok(())
    } else {
        bail!("{} untidy places", findings.len())
    }
}

/// Everything untidy in this repository, one sentence each.
pub fn findings() -> Result<Vec<String>> {
    let top = root();
    let mut findings = Vec::new();
    findings.extend(top_level(top)?);
    findings.extend(rooms::findings(top)?);
    findings.extend(dependencies::findings(top)?);
    findings.extend(sources::findings(top)?);
    findings.extend(docs::findings(top)?);
    findings.extend(crate::chart::values::findings(top)?);
    Ok(findings)
}

/// What may stand at the top; a new entry is a decision, not an accident.
const TOP_LEVEL: [&str; 28] = [
    ".cargo",
    ".ci",
    ".dockerignore",
    ".git",
    ".gitignore",
    ".github",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "Dockerfile",
    "LICENSE",
    "README.md",
    "benches",
    "crates",
    "deny.toml",
    "docs",
    "fuzz",
    "helm",
    "integration",
    "proto",
    "redirect-common",
    "redirect-ebpf",
    "rustfmt.toml",
    "target",
    "xtask",
    "ztunnel",
];

fn top_level(top: &Path) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for entry in std::fs::read_dir(top)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !TOP_LEVEL.contains(&name.as_str()) {
            findings.push(format!(
                "{name}: not one of the house's top-level entries (xtask/src/tidy.rs)"
            ));
        }
    }
    findings.sort();
    Ok(findings)
}

/// A text file of the repository; an error names it.
fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// A path as it is written in the repository.
fn shown(top: &Path, path: &Path) -> String {
    path.strip_prefix(top).unwrap_or(path).display().to_string()
}

/// All files below `dir` whose name ends so, in order; build output and hidden directories are left out.
fn files(dir: &Path, suffix: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in
            std::fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?
        {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type()?.is_dir() {
                if name != "target" && !name.starts_with('.') {
                    open.push(entry.path());
                }
            } else if name.ends_with(suffix) {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The rows of Markdown tables: for each table its header's cells and its rows' cells, lower case nowhere changed.
fn tables(markdown: &str) -> Vec<Vec<Vec<String>>> {
    let mut tables: Vec<Vec<Vec<String>>> = Vec::new();
    let mut inside = false;
    for line in markdown.lines().map(str::trim) {
        if !line.starts_with('|') {
            inside = false;
            continue;
        }
        let cells: Vec<String> = line
            .trim_matches('|')
            .split('|')
            .map(|cell| cell.trim().to_owned())
            .collect();
        let ruler = cells
            .iter()
            .all(|cell| !cell.is_empty() && cell.chars().all(|c| matches!(c, '-' | ':')));
        match tables.last_mut() {
            Some(_) if inside && ruler => {}
            Some(table) if inside => table.push(cells),
            _ => tables.push(vec![cells]),
        }
        inside = true;
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_house_is_tidy() {
        let findings = findings().expect("the repository is readable");
        assert!(findings.is_empty(), "\n{}", findings.join("\n"));
    }

    #[test]
    fn tables_are_read() {
        let text = "intro\n\n| a | b |\n|---|:-:|\n| 1 | `x` |\n\ntext | no table\n| c |\n";
        let wanted = vec![
            vec![
                vec!["a".to_owned(), "b".into()],
                vec!["1".into(), "`x`".into()],
            ],
            vec![vec!["c".into()]],
        ];
        assert_eq!(tables(text), wanted);
    }
}
