//! How findings are written: lines for people, one JSON object for programs.

use std::error::Error;
use std::io::IsTerminal;
use std::time::Duration;

use capture::probe::{Finding, Status};
use serde_json::{Value, json};

/// Width of the names before the details.
const NAME_COLUMNS: usize = 28;

/// Everything that was found, by group.
#[derive(Debug, Default)]
pub struct Report {
    groups: Vec<(&'static str, Vec<Finding>)>,
}

impl Report {
    /// Adds what a group found.
    pub fn add(&mut self, group: &'static str, findings: Vec<Finding>) {
        self.groups.push((group, findings));
    }

    fn count(&self, status: Status) -> usize {
        let all = self.groups.iter().flat_map(|(_, findings)| findings);
        all.filter(|finding| finding.status == status).count()
    }

    /// Whether nothing failed.
    pub fn is_ok(&self) -> bool {
        self.count(Status::Failed) == 0
    }

    /// One line for the end.
    pub fn summary(&self) -> String {
        let plural = |count: usize, word: &str| match count {
            1 => format!("1 {word}"),
            _ => format!("{count} {word}s"),
        };
        let (failed, warned) = (self.count(Status::Failed), self.count(Status::Warning));
        let failures = if failed == 0 {
            "no failures".to_owned()
        } else {
            plural(failed, "failure")
        };
        match warned {
            0 => failures,
            _ => format!("{failures}, {}", plural(warned, "warning")),
        }
    }

    /// All of it: `{groups: [{name, findings: [{name, status, detail, hint}]}], ok}`.
    ///
    /// `status` is `ok`, `warning` or `failed`; `hint` is null when there is nothing to do.
    pub fn json(&self) -> Value {
        let finding = |f: &Finding| json!({"name": f.name, "status": word(f.status), "detail": f.detail, "hint": f.hint});
        let group = |(name, findings): &(&str, Vec<Finding>)| {
            let findings: Vec<Value> = findings.iter().map(finding).collect();
            json!({"name": name, "findings": findings})
        };
        let groups: Vec<Value> = self.groups.iter().map(group).collect();
        json!({"groups": groups, "ok": self.is_ok()})
    }
}

fn word(status: Status) -> &'static str {
    match status {
        Status::Ok => "ok",
        Status::Warning => "warning",
        Status::Failed => "failed",
    }
}

/// Whether colours are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paint {
    /// No.
    Plain,
    /// Yes.
    Colours,
}

impl Paint {
    /// Colours where standard output is a terminal, unless `NO_COLOR` is set (no-color.org).
    pub fn of_stdout() -> Self {
        let forbidden = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if std::io::stdout().is_terminal() && !forbidden {
            Self::Colours
        } else {
            Self::Plain
        }
    }

    fn mark(self, status: Status) -> String {
        let (sign, colour) = match status {
            Status::Ok => ("✓", 32),
            Status::Warning => ("!", 33),
            Status::Failed => ("✗", 31),
        };
        match self {
            Self::Plain => sign.to_owned(),
            Self::Colours => format!("\x1b[{colour}m{sign}\x1b[0m"),
        }
    }
}

/// A group as lines: its name, then one line a finding, and a second one for what to do.
pub fn text(group: &str, findings: &[Finding], paint: Paint) -> String {
    let mut text = format!("{group}\n");
    for finding in findings {
        let mark = paint.mark(finding.status);
        let (name, detail) = (printable(&finding.name), printable(&finding.detail));
        text.push_str(&format!("  {mark} {name:NAME_COLUMNS$} {detail}\n"));
        if let Some(hint) = &finding.hint {
            text.push_str(&format!("    → {}\n", printable(hint)));
        }
    }
    text
}

/// What others have written may hold anything; a terminal gets one line of text.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// An error with those of its causes that say something new.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let told = cause.to_string();
        if !text.contains(&told) {
            text.push_str(": ");
            text.push_str(&told);
        }
        next = cause.source();
    }
    text
}

/// A length of time in one unit, rounded down: `3d`, `5h`, `2m`, `10s`.
pub fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        172_800.. => format!("{}d", seconds / 86_400),
        3600.. => format!("{}h", seconds / 3600),
        60.. => format!("{}m", seconds / 60),
        _ => format!("{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Vec<Finding> {
        vec![
            Finding::ok("kernel", "Linux 6.1"),
            Finding::warning("clock", "not\x1b[2J kept\nright", "start chronyd"),
            Finding::failed("token", "expired", "mount a new one"),
        ]
    }

    #[test]
    fn lines_for_people() {
        let plain = text("group", &findings(), Paint::Plain);
        let expected = "group
  ✓ kernel                       Linux 6.1
  ! clock                        not [2J kept right
    → start chronyd
  ✗ token                        expired
    → mount a new one
";
        assert_eq!(plain, expected);
        let coloured = text("group", &findings()[..1], Paint::Colours);
        assert!(coloured.contains("\x1b[32m✓\x1b[0m kernel"), "{coloured}");
    }

    #[test]
    fn keys_for_programs() {
        let mut report = Report::default();
        report.add("group", findings());
        let expected = json!({
            "groups": [{"name": "group", "findings": [
                {"name": "kernel", "status": "ok", "detail": "Linux 6.1", "hint": null},
                {"name": "clock", "status": "warning", "detail": "not\x1b[2J kept\nright", "hint": "start chronyd"},
                {"name": "token", "status": "failed", "detail": "expired", "hint": "mount a new one"},
            ]}],
            "ok": false,
        });
        assert_eq!(report.json(), expected);
        assert_eq!(report.summary(), "1 failure, 1 warning");
        assert!(!report.is_ok());
    }

    #[test]
    fn times() {
        let cases = [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (3599, "59m"),
            (90_000, "25h"),
            (200_000, "2d"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(span(Duration::from_secs(seconds)), expected);
        }
    }

    #[test]
    fn warnings_are_no_failures() {
        let mut report = Report::default();
        assert_eq!(
            (report.is_ok(), report.summary()),
            (true, "no failures".into())
        );
        report.add("group", vec![findings().remove(1), findings().remove(1)]);
        assert_eq!(
            (report.is_ok(), report.summary()),
            (true, "no failures, 2 warnings".into())
        );
    }
}
