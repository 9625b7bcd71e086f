//! Rules for each Rust file: a header, no unsafe code outside its rooms, no `unwrap` in what ships.
//!
//! Text is searched, not parsed: a rule that needs more than a line belongs to clippy.

use super::{files, read, shown};
use anyhow::Result;
use std::path::Path;

/// Rooms that may hold `unsafe`.
const UNSAFE_ROOMS: [&str; 3] = ["crates/sys/", "redirect-common/", "redirect-ebpf/"];

/// What each file breaks.
pub fn findings(top: &Path) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for path in files(top, ".rs")? {
        let name = shown(top, &path);
        let text = read(&path)?;
        findings.extend(
            broken(&name, &text)
                .into_iter()
                .map(|(line, rule)| format!("{name}:{line}: {rule}")),
        );
    }
    Ok(findings)
}

/// The rules one file breaks, with the line.
fn broken(name: &str, text: &str) -> Vec<(usize, &'static str)> {
    let mut found = Vec::new();
    if !text.trim_start().starts_with("//!") {
        found.push((1, "does not open with a `//!` header"));
    }
    let fenced = UNSAFE_ROOMS.iter().any(|room| name.starts_with(room));
    if !fenced
        && is_root(name)
        && !text
            .lines()
            .any(|line| line.trim() == "#![forbid(unsafe_code)]")
    {
        found.push((1, "a crate's root without `#![forbid(unsafe_code)]`"));
    }
    for (index, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or(line);
        if !fenced
            && ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"]
                .iter()
                .any(|word| code.trim_start().starts_with(word))
        {
            found.push((index + 1, "unsafe code outside sys and redirect-*"));
        }
    }
    if !is_test(name) {
        for (index, line) in shipped(text).lines().enumerate() {
            let code = line.trim_start();
            if !code.starts_with("//") && code.contains(concat!(".unwrap", "()")) {
                found.push((
                    index + 1,
                    "`unwrap` outside tests: an error, or `expect` with the reason why it holds",
                ));
            }
        }
    }
    found
}

/// The part of a file before its unit tests, which stand last: `#[cfg(test)]`, attributes, `mod tests {`.
pub fn shipped(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let opens_tests = |index: &usize| {
        let after = lines[index + 1..]
            .iter()
            .find(|line| !line.starts_with("#["));
        lines[*index] == "#[cfg(test)]"
            && after.is_some_and(|line| line.starts_with("mod ") && line.ends_with('{'))
    };
    let end = (0..lines.len()).find(opens_tests).unwrap_or(lines.len());
    lines[..end].join("\n")
}

/// `src/lib.rs`, `src/main.rs`, `src/bin/x.rs`.
fn is_root(name: &str) -> bool {
    let parts: Vec<&str> = name.split('/').collect();
    matches!(
        parts.as_slice(),
        [.., "src", "lib.rs" | "main.rs"]
            | [.., "src", "bin", _]
            | [.., "src", "bin", _, "main.rs"]
    )
}

fn is_test(name: &str) -> bool {
    name.contains("/tests/") || name.ends_with("/tests.rs") || name.ends_with("/laws.rs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_held() {
        let head = "//! x\n#![forbid(unsafe_code)]\n";
        let unwrap = concat!("fn f() { x.unwrap", "(); }\n");
        let cases = [
            ("crates/mesh/src/lib.rs", head.to_owned(), 0),
            ("crates/mesh/src/lib.rs", "//! x\n".to_owned(), 1),
            (
                "crates/sys/src/lib.rs",
                "//! x\nunsafe { y() }\n".to_owned(),
                0,
            ),
            ("crates/mesh/src/name.rs", "fn f() {}\n".to_owned(), 1),
            (
                "crates/mesh/src/name.rs",
                "//! x\nunsafe { y() }\n".to_owned(),
                1,
            ),
            ("crates/mesh/src/name.rs", format!("//! x\n{unwrap}"), 1),
            ("crates/mesh/src/name.rs", format!("//! x\n/// {unwrap}"), 0),
            (
                "crates/mesh/src/name.rs",
                format!("//! x\n#[cfg(test)]\nmod tests {{\n{unwrap}}}\n"),
                0,
            ),
            (
                "crates/mesh/tests/it/main.rs",
                format!("//! x\n{unwrap}"),
                0,
            ),
        ];
        for (name, text, wanted) in cases {
            assert_eq!(broken(name, &text).len(), wanted, "{name}: {text}");
        }
    }
}
