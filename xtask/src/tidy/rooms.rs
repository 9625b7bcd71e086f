//! ARCHITECTURE.md's rooms against the manifests: every crate is a room, arrows are as drawn and point down.
//!
//! The document holds a table with the columns `floor`, `room` and `knows` (or `reaches for`), and a line
//! `mesh floors: name, spiffe < workload < …` for the modules of `mesh`. Names of crates in `knows` are the
//! arrows, other words are free; "every room" stands for all lower floors.

use super::{files, read, shown, tables};
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// One row of the document.
#[derive(Debug, PartialEq, Eq)]
struct Room {
    /// `None`: beside the house (tools, tests), no floor to hold.
    floor: Option<u8>,
    /// Crates it may know; `None`: every room below.
    knows: Option<BTreeSet<String>>,
}

/// Crate name to the workspace crates it depends on.
type Arrows = BTreeMap<String, BTreeSet<String>>;

/// What differs between document and manifests.
pub fn findings(top: &Path) -> Result<Vec<String>> {
    let document = top.join("ARCHITECTURE.md");
    if !document.is_file() {
        return Ok(vec!["ARCHITECTURE.md: missing".to_owned()]);
    }
    let text = read(&document)?;
    let arrows = arrows(top)?;
    let mut findings = compare(&rooms(&text, &arrows), &arrows);
    findings.extend(mesh(top, &text)?);
    Ok(findings)
}

/// Reads the manifests.
fn arrows(top: &Path) -> Result<Arrows> {
    let mut manifests = Vec::new();
    for path in files(top, "Cargo.toml")? {
        if path.parent() != Some(top) {
            manifests.push(read(&path)?);
        }
    }
    let names: BTreeSet<String> = manifests
        .iter()
        .filter_map(|text| package_name(text))
        .collect();
    let of = |text: &String| {
        Some((
            package_name(text)?,
            dependencies(text)
                .into_iter()
                .filter(|name| names.contains(name))
                .collect(),
        ))
    };
    Ok(manifests.iter().filter_map(of).collect())
}

fn package_name(manifest: &str) -> Option<String> {
    section(manifest, |header| header == "package")
        .find_map(|(key, value)| (key == "name").then(|| value.trim_matches('"').to_owned()))
}

/// Names in `[dependencies]` and `[target.….dependencies]`; what only tests or builds use draws no arrow.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    section(manifest, |header| {
        header == "dependencies" || header.ends_with(".dependencies")
    })
    .map(|(key, _)| key.split('.').next().unwrap_or(key).to_owned())
    .collect()
}

/// The `key = value` lines of the sections whose header fits.
pub fn section<'a>(
    manifest: &'a str,
    fits: impl Fn(&str) -> bool + 'a,
) -> impl Iterator<Item = (&'a str, &'a str)> {
    let mut inside = false;
    manifest.lines().filter_map(move |line| {
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[') {
            inside = fits(header.trim_end_matches(']'));
            return None;
        }
        let (key, value) = line
            .split_once('=')
            .filter(|_| inside && !line.starts_with('#'))?;
        Some((key.trim(), value.trim()))
    })
}

/// Reads the document's table of rooms.
fn rooms(text: &str, arrows: &Arrows) -> BTreeMap<String, Room> {
    let mut rooms = BTreeMap::new();
    for table in tables(text) {
        let Some((header, rows)) = table.split_first() else {
            continue;
        };
        let column = |names: &[&str]| {
            header
                .iter()
                .position(|cell| names.contains(&cell.to_lowercase().as_str()))
        };
        let (Some(floor), Some(room), Some(knows)) = (
            column(&["floor"]),
            column(&["room"]),
            column(&["knows", "reaches for"]),
        ) else {
            continue;
        };
        for row in rows {
            let cell = |index: usize| row.get(index).map_or("", String::as_str);
            let knows = if cell(knows).contains("every room") {
                None
            } else {
                Some(
                    words(cell(knows))
                        .filter(|word| arrows.contains_key(*word))
                        .map(str::to_owned)
                        .collect(),
                )
            };
            let name = words(cell(room)).next().unwrap_or_default();
            rooms.insert(
                name.to_owned(),
                Room {
                    floor: cell(floor).parse().ok(),
                    knows,
                },
            );
        }
    }
    rooms
}

fn words(cell: &str) -> impl Iterator<Item = &str> {
    cell.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_'))
        .filter(|word| !word.is_empty())
}

fn compare(rooms: &BTreeMap<String, Room>, arrows: &Arrows) -> Vec<String> {
    let mut findings = Vec::new();
    for (name, known) in arrows {
        let Some(room) = rooms.get(name) else {
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            findings.push(format!(
                "ARCHITECTURE.md: no room `{name}` in the table of rooms (it knows: {})",
                known.join(", ")
            ));
            continue;
        };
        if let Some(drawn) = &room.knows {
            let differ = |from: &BTreeSet<String>, to: &BTreeSet<String>| {
                from.difference(to).cloned().collect::<Vec<_>>()
            };
            for other in differ(known, drawn) {
                findings.push(format!(
                    "{name} depends on {other}, but ARCHITECTURE.md draws no such arrow"
                ));
            }
            for other in differ(drawn, known) {
                findings.push(format!("ARCHITECTURE.md draws an arrow from {name} to {other}, but there is no such dependency"));
            }
        }
        for other in known {
            let (Some(mine), Some(theirs)) =
                (room.floor, rooms.get(other).and_then(|room| room.floor))
            else {
                continue;
            };
            if theirs >= mine {
                findings.push(format!(
                    "{name} (floor {mine}) depends on {other} (floor {theirs}): arrows point down"
                ));
            }
        }
    }
    for name in rooms.keys().filter(|name| !arrows.contains_key(*name)) {
        findings.push(format!("ARCHITECTURE.md: room `{name}` is no crate"));
    }
    findings
}

/// The modules of `mesh` know only lower floors.
fn mesh(top: &Path, text: &str) -> Result<Vec<String>> {
    let Some(line) = text
        .lines()
        .find_map(|line| line.trim().trim_matches('`').strip_prefix("mesh floors:"))
    else {
        return Ok(vec![
            "ARCHITECTURE.md: no line `mesh floors: name, spiffe < workload, … < …`".to_owned(),
        ]);
    };
    let floors: BTreeMap<&str, usize> = line
        .split('<')
        .enumerate()
        .flat_map(|(floor, names)| words(names).map(move |name| (name, floor)))
        .collect();
    let source = top.join("crates/mesh/src");
    let mut findings = Vec::new();
    for path in files(&source, ".rs")? {
        let inner = path.strip_prefix(&source).unwrap_or(&path);
        let module = inner
            .iter()
            .next()
            .map(|part| part.to_string_lossy().trim_end_matches(".rs").to_owned())
            .unwrap_or_default();
        if matches!(module.as_str(), "lib" | "laws") || path.ends_with("tests.rs") {
            continue;
        }
        let Some(mine) = floors.get(module.as_str()) else {
            findings.push(format!(
                "ARCHITECTURE.md: `mesh floors` lacks the module {module}"
            ));
            continue;
        };
        for (number, known) in uses(&super::sources::shipped(&read(&path)?)) {
            if known != module
                && floors
                    .get(known.as_str())
                    .is_some_and(|theirs| theirs >= mine)
            {
                findings.push(format!(
                    "{}:{number}: {module} knows {known}, which is not on a lower floor",
                    shown(top, &path)
                ));
            }
        }
    }
    Ok(findings)
}

/// The modules named after `crate::`, with their line; `crate::{a, b::c}` counts as two.
fn uses(source: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (index, line) in source.lines().enumerate() {
        if line.trim_start().starts_with("//") {
            continue;
        }
        for rest in line.split("crate::").skip(1) {
            let group = rest
                .strip_prefix('{')
                .map(|inner| inner.split('}').next().unwrap_or(inner));
            let parts: Vec<&str> =
                group.map_or_else(|| vec![rest], |inner| inner.split(',').collect());
            found.extend(
                parts
                    .iter()
                    .filter_map(|part| words(part).next())
                    .map(|name| (index + 1, name.to_owned())),
            );
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn manifests_draw_arrows() {
        let text = "[package]\nname = \"proxy\"\n[dependencies]\nmesh.workspace = true\nhbone = { path = \"x\" }\n# sys = 1\n\
                    [dev-dependencies]\ncapture.workspace = true\n[target.'cfg(unix)'.dependencies]\nsys = \"1\"\n";
        assert_eq!(package_name(text).as_deref(), Some("proxy"));
        assert_eq!(dependencies(text), set(&["mesh", "hbone", "sys"]));
    }

    #[test]
    fn a_wrong_arrow_is_found() {
        let arrows: Arrows = [
            ("a".to_owned(), set(&["b"])),
            ("b".to_owned(), set(&["c"])),
            ("c".to_owned(), set(&[])),
        ]
        .into();
        let table = |b: &str, floor: u8| {
            let text = format!(
                "| floor | room | knows |\n|---|---|---|\n| 2 | `a` | every room |\n| {floor} | `b` | {b}; tokio |\n| 0 | `c` | std |\n"
            );
            compare(&rooms(&text, &arrows), &arrows)
        };
        assert_eq!(table("`c`", 1), Vec::<String>::new());
        assert_eq!(
            table("", 1),
            ["b depends on c, but ARCHITECTURE.md draws no such arrow"]
        );
        assert_eq!(
            table("a, c", 1),
            ["ARCHITECTURE.md draws an arrow from b to a, but there is no such dependency"]
        );
        assert_eq!(
            table("c", 2),
            ["a (floor 2) depends on b (floor 2): arrows point down"]
        );
    }

    #[test]
    fn uses_of_modules_are_read() {
        let text = "use crate::index::Index;\nuse crate::{name::Str, workload};\n// crate::route\nfn f(x: crate::spiffe::Id) {}\n";
        let wanted = [(1, "index"), (2, "name"), (2, "workload"), (4, "spiffe")]
            .map(|(line, name)| (line, name.to_owned()));
        assert_eq!(uses(text), wanted);
    }
}
