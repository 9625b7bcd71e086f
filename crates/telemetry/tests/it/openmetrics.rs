//! A small strict reader of OpenMetrics text: what a scraper would refuse, it refuses.
//!
//! Source: OpenMetrics 1.0, sections 3.2 and 5.1.

use std::collections::{BTreeMap, BTreeSet};

/// Label names and values in order.
pub type Labels = Vec<(String, String)>;

/// One metric family.
#[derive(Debug, Default)]
pub struct Family {
    pub help: String,
    pub kind: String,
    /// By sample name and labels.
    pub samples: BTreeMap<(String, Labels), f64>,
}

/// Reads all of `text`, or says which line is wrong.
pub fn parse(text: &str) -> Result<BTreeMap<String, Family>, String> {
    let body = text.strip_suffix("# EOF\n").ok_or("must end with # EOF")?;
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    for line in body.lines() {
        let wrong = |why: &str| format!("{why}: {line}");
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (word, name, rest) = (
                words.next().unwrap_or(""),
                words.next().unwrap_or(""),
                words.next().unwrap_or(""),
            );
            if word == "UNIT" && name == current && name.ends_with(rest) {
                continue;
            } else if word == "HELP" {
                if families.contains_key(name) || name.ends_with("_total") || rest.is_empty() {
                    return Err(wrong("second, badly named or empty HELP"));
                }
                current = name.to_owned();
                families.entry(current.clone()).or_default().help = rest.to_owned();
            } else if word == "TYPE" && name == current && ["counter", "gauge"].contains(&rest) {
                families.entry(current.clone()).or_default().kind = rest.to_owned();
            } else {
                return Err(wrong("unexpected comment"));
            }
            continue;
        }
        let (name, labels, value) = sample(line).ok_or_else(|| wrong("not a sample"))?;
        let family = families
            .get_mut(&current)
            .ok_or_else(|| wrong("sample without family"))?;
        let expected = if family.kind == "counter" {
            format!("{current}_total")
        } else {
            current.clone()
        };
        if name != expected || (family.kind == "counter" && (value < 0.0 || value.is_nan())) {
            return Err(wrong("sample does not belong to its family"));
        }
        if labels
            .iter()
            .map(|(name, _)| name)
            .collect::<BTreeSet<_>>()
            .len()
            != labels.len()
        {
            return Err(wrong("label twice"));
        }
        if family.samples.insert((name, labels), value).is_some() {
            return Err(wrong("sample twice"));
        }
    }
    match families
        .iter()
        .find(|(_, family)| family.kind.is_empty() || family.samples.is_empty())
    {
        Some((name, _)) => Err(format!("{name} has no type or no samples")),
        None => Ok(families),
    }
}

fn sample(line: &str) -> Option<(String, Labels, f64)> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Labels::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (label, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.push((is_name(label).then(|| label.to_owned())?, value));
            if let Some(after) = after.strip_prefix('}') {
                rest = after;
                break;
            }
            rest = after.strip_prefix(',')?;
        }
    }
    let value = rest.strip_prefix(' ')?;
    Some((
        is_name(name).then(|| name.to_owned())?,
        labels,
        value.parse().ok()?,
    ))
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// The value up to the closing quote, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                c @ ('\\' | '"') => c,
                _ => return None,
            }),
            c => value.push(c),
        }
    }
    None
}

#[test]
fn refuses_what_a_scraper_refuses() {
    let head = "# HELP a b.\n# TYPE a counter\n";
    for bad in [
        String::new(),
        format!("{head}# EOF\n"),
        format!("{head}a 1\n# EOF\n"),
        format!("{head}a_total 1\na_total 1\n# EOF\n"),
        format!("{head}a_total{{x=\"1\",x=\"2\"}} 1\n# EOF\n"),
        format!("{head}a_total{{x=\"1}} 1\n# EOF\n"),
        format!("{head}a_total 1\n"),
        "a_total 1\n# EOF\n".to_owned(),
    ] {
        assert!(parse(&bad).is_err(), "{bad}");
    }
    assert!(parse(&format!("{head}a_total{{x=\"\\\\\\\"\\n\"}} 1\n# EOF\n")).is_ok());
}
