//! What users read about the variables is what the code reads.

use crate::config::variables::ALL;

/// The tables of the README.
fn tables() -> String {
    // Markdown would take what stands in angle brackets for a tag
    let plain = |text: &str| text.replace('<', "\\<");
    let mut text = String::new();
    for group in ALL {
        text += &format!(
            "**{}**\n\n| Variable | Default | Meaning |\n|---|---|---|\n",
            group.title
        );
        for v in group.variables {
            let (default, help) = (plain(v.default), plain(v.help));
            text += &format!("| `{}` | {default} | {help} |\n", v.name);
        }
        text.push('\n');
    }
    text
}

#[test]
fn the_readme_has_the_tables_of_the_help() {
    let readme = include_str!("../../../../README.md");
    let (_, rest) = readme
        .split_once("<!-- variables -->\n")
        .expect("README.md marks where the variables begin");
    let (shown, _) = rest
        .split_once("<!-- end of variables -->")
        .expect("README.md marks where the variables end");
    assert!(
        shown.trim() == tables().trim(),
        "README.md has other tables of variables than `ztunnel help`; expected:\n{}",
        tables()
    );
}

#[test]
fn every_variable_is_named_once() {
    let mut names: Vec<_> = ALL
        .iter()
        .flat_map(|g| g.variables)
        .map(|v| v.name)
        .collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all);
}
