//! The values of the chart as three files tell them: `values.yaml` (name, default, comment), `values.schema.json` (type) and
//! the table of `README.md`, which is made of the first.
//!
//! Reads `values.yaml` by its lines, as its comments matter: two blanks per level, a comment `# --` before each value.

use anyhow::{Context, Result, bail};
use serde_json::Value as Json;
use std::collections::BTreeSet;
use std::path::Path;

/// Where the table stands.
const BEGIN: &str = "<!-- values -->\n";
const END: &str = "<!-- /values -->";
const CHART: &str = "helm/ztunnel";

/// One value that a user can set.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    /// Its path, such as `hold.timeout`.
    path: String,
    /// Its default as written; none when it spans lines.
    default: Option<String>,
    /// Its comment.
    meaning: String,
}

/// What of the three files does not agree.
pub fn findings(top: &Path) -> Result<Vec<String>> {
    let chart = top.join(CHART);
    let text = read(&chart.join("values.yaml"))?;
    let entries = entries(&text)?;
    let mut findings = Vec::new();
    let readme = read(&chart.join("README.md"))?;
    if with_table(&readme, &entries)? != readme {
        findings.push(format!(
            "{CHART}/README.md: the table is not that of values.yaml; `cargo xtask chart --bless` writes it"
        ));
    }
    let schema: Json = serde_json::from_str(&read(&chart.join("values.schema.json"))?)
        .context("values.schema.json is no JSON")?;
    let typed = typed(&schema["$defs"]["values"], "");
    let known: BTreeSet<String> = entries.iter().map(|entry| entry.path.clone()).collect();
    for path in typed.difference(&known) {
        findings.push(format!(
            "{CHART}/values.schema.json has {path}, which values.yaml does not explain"
        ));
    }
    for path in known.difference(&typed) {
        findings.push(format!(
            "{CHART}/values.yaml has {path}, which values.schema.json does not know"
        ));
    }
    Ok(findings)
}

/// Writes the table anew.
pub fn write_table(top: &Path) -> Result<()> {
    let chart = top.join(CHART);
    let entries = entries(&read(&chart.join("values.yaml"))?)?;
    let path = chart.join("README.md");
    let readme = read(&path)?;
    std::fs::write(&path, with_table(&readme, &entries)?)?;
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn with_table(readme: &str, entries: &[Entry]) -> Result<String> {
    let (before, rest) = readme
        .split_once(BEGIN)
        .context("README.md has no place for the values")?;
    let (_, after) = rest
        .split_once(END)
        .context("README.md: the place for the values has no end")?;
    let mut table = String::from("\n| Value | Default | Meaning |\n|---|---|---|\n");
    for entry in entries {
        let default = match entry.default.as_deref() {
            None => "see [values.yaml](values.yaml)".to_owned(),
            Some(text) => format!("`{text}`"),
        };
        let meaning = entry.meaning.replace('|', "\\|");
        table.push_str(&format!("| `{}` | {default} | {meaning} |\n", entry.path));
    }
    Ok(format!("{before}{BEGIN}{table}\n{END}{after}"))
}

/// Values with a comment, in order; an error names a line that has none.
fn entries(yaml: &str) -> Result<Vec<Entry>> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut path: Vec<String> = Vec::new();
    let mut comment: Option<String> = None;
    // the level of the last value with a comment: what is deeper belongs to it
    let mut inside = usize::MAX;
    for (number, line) in yaml.lines().enumerate() {
        let text = line.trim_start();
        let level = (line.len() - text.len()) / 2;
        if let Some(said) = text.strip_prefix("# -- ") {
            comment = Some(said.trim().to_owned());
            continue;
        }
        if text.is_empty() || text.starts_with('#') || level > inside || text.starts_with('-') {
            continue;
        }
        let (key, value) = text
            .split_once(':')
            .with_context(|| format!("values.yaml, line {}: no key", number + 1))?;
        path.truncate(level);
        path.push(key.to_owned());
        inside = usize::MAX;
        let value = value.trim();
        let Some(meaning) = comment.take() else {
            if value.is_empty() {
                continue; // a group; its values have comments
            }
            bail!("values.yaml, line {}: {key} has no comment", number + 1);
        };
        inside = level;
        entries.push(Entry {
            path: path.get(1..).unwrap_or_default().join("."),
            default: (!value.is_empty()).then(|| value.to_owned()),
            meaning,
        });
    }
    Ok(entries)
}

/// Paths of the values that the schema types, down to those that are no groups.
fn typed(schema: &Json, prefix: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (key, of) in schema["properties"].as_object().into_iter().flatten() {
        let path = match prefix {
            "" => key.clone(),
            _ => format!("{prefix}.{key}"),
        };
        if of["properties"].is_object() {
            found.extend(typed(of, &path));
        } else {
            found.insert(path);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_with_their_comments() {
        let yaml = "# about\ndefaults:\n  # -- a | b\n  hub: x.y/z\n\n  hold:\n    # -- Most time\n    timeout: 30s\n  # -- Labels\n  labels:\n    a: b\n  tail:\n    # -- End\n    end: []\n";
        let shown: Vec<(String, Option<String>, String)> = entries(yaml)
            .unwrap()
            .into_iter()
            .map(|entry| (entry.path, entry.default, entry.meaning))
            .collect();
        let row = |path: &str, default: Option<&str>, meaning: &str| {
            (
                path.to_owned(),
                default.map(str::to_owned),
                meaning.to_owned(),
            )
        };
        assert_eq!(
            shown,
            [
                row("hub", Some("x.y/z"), "a | b"),
                row("hold.timeout", Some("30s"), "Most time"),
                row("labels", None, "Labels"),
                row("tail.end", Some("[]"), "End"),
            ]
        );
        assert!(entries("defaults:\n  hub: x\n").is_err());
    }

    #[test]
    fn the_table_stands_between_its_marks() {
        let entries = [Entry {
            path: "hub".to_owned(),
            default: Some("x".to_owned()),
            meaning: "a | b".to_owned(),
        }];
        let text = with_table("A\n<!-- values -->\nold<!-- /values -->\nB\n", &entries).unwrap();
        assert_eq!(
            text,
            "A\n<!-- values -->\n\n| Value | Default | Meaning |\n|---|---|---|\n| `hub` | `x` | a \\| b |\n\n<!-- /values -->\nB\n"
        );
    }
}
