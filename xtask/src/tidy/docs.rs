//! Documents against the code: environment variables, the commands a reader is told to run, links.
//!
//! Variables are the capital words that `ztunnel/src/config.rs` reads; documents name them in tables whose first
//! column is headed `Variable`.

use super::{files, read, shown, tables};
use anyhow::Result;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The commands of this program, as a document may name them.
const COMMANDS: [&str; 7] = ["setup", "demo", "test", "fuzz", "bench", "chart", "tidy"];

/// What documents say and the code does not, and the other way round.
pub fn findings(top: &Path) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    let mut documented = BTreeSet::new();
    for path in documents(top)? {
        let text = read(&path)?;
        let name = shown(top, &path);
        documented.extend(variables(&text));
        findings.extend(
            commands(&text)
                .into_iter()
                .map(|word| format!("{name}: there is no `cargo xtask {word}`")),
        );
        let dir = path.parent().unwrap_or(top);
        findings.extend(
            links(&text)
                .into_iter()
                .filter(|link| !dir.join(link).exists())
                .map(|link| format!("{name}: broken link {link}")),
        );
    }
    let read = read_variables(top)?;
    for name in read.difference(&documented) {
        findings.push(format!(
            "ztunnel/src/config.rs reads {name}, which no document's table of variables names"
        ));
    }
    for name in documented.difference(&read) {
        findings.push(format!(
            "documents name the variable {name}, which ztunnel/src/config.rs does not read"
        ));
    }
    Ok(findings)
}

/// Markdown at the top and in `docs`.
fn documents(top: &Path) -> Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = ["README.md", "ARCHITECTURE.md"]
        .iter()
        .map(|name| top.join(name))
        .filter(|path| path.is_file())
        .collect();
    let docs = top.join("docs");
    if docs.is_dir() {
        found.extend(files(&docs, ".md")?);
    }
    Ok(found)
}

/// Variables in tables headed so; a cell may name several.
fn variables(markdown: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for table in tables(markdown) {
        let headed = table
            .first()
            .and_then(|row| row.first())
            .is_some_and(|cell| cell.eq_ignore_ascii_case("variable"));
        for row in table.iter().skip(1).filter(|_| headed) {
            found.extend(
                row.first()
                    .into_iter()
                    .flat_map(|cell| quoted(cell, '`'))
                    .filter(|word| is_variable(word)),
            );
        }
    }
    found
}

/// Variables the daemon reads, from the string literals of its configuration.
fn read_variables(top: &Path) -> Result<BTreeSet<String>> {
    let source = top.join("ztunnel/src");
    let mut found = BTreeSet::new();
    for path in files(&source, ".rs")? {
        let inner = shown(&source, &path);
        if inner == "config.rs" || inner.starts_with("config/") && !inner.contains("/tests") {
            for line in super::sources::shipped(&read(&path)?)
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"))
            {
                found.extend(
                    quoted(line, '"')
                        .into_iter()
                        .filter(|word| is_variable(word)),
                );
            }
        }
    }
    Ok(found)
}

fn is_variable(word: &str) -> bool {
    word.len() > 3
        && word.starts_with(|c: char| c.is_ascii_uppercase())
        && word.ends_with(|c: char| c.is_ascii_uppercase())
        && word
            .chars()
            .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
        && !NO_VARIABLES.contains(&word)
}

/// Capital words in the configuration that are values, not names.
const NO_VARIABLES: [&str; 2] = ["HBONE", "SYSTEM"];

fn quoted(line: &str, quote: char) -> Vec<String> {
    line.split(quote)
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

/// Words after `cargo xtask` that are no command.
fn commands(markdown: &str) -> Vec<String> {
    let named = markdown.split("cargo xtask ").skip(1);
    named
        .filter_map(|rest| rest.split(|c: char| !c.is_ascii_lowercase()).next())
        .filter(|word| !word.is_empty() && !COMMANDS.contains(word))
        .map(str::to_owned)
        .collect()
}

/// Targets of `[text](target)` inside the repository, without their fragment.
fn links(markdown: &str) -> Vec<String> {
    let targets = markdown
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next());
    targets
        .filter(|target| {
            !target.contains("://") && !target.starts_with('#') && !target.contains(' ')
        })
        .map(|target| target.split('#').next().unwrap_or(target).to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_stand_in_their_tables() {
        let text = "| Variable | Default |\n|---|---|\n| `ENROLL_FILE`, `NETWORK` | `/X_Y` |\n\n| other | b |\n|---|---|\n| `NOT_ONE` | |\n";
        assert_eq!(
            variables(text),
            ["ENROLL_FILE", "NETWORK"].map(str::to_owned).into()
        );
    }

    #[test]
    fn commands_and_links_are_read() {
        let text = "run `cargo xtask demo --json` or `cargo xtask dance`; see [a](ARCHITECTURE.md#x), [b](https://x.y) and [c](#z)";
        assert_eq!(commands(text), ["dance"]);
        assert_eq!(links(text), ["ARCHITECTURE.md"]);
    }
}
