//! How the demo speaks: wrapped prose, steps that end in ✓ or ✗, evidence below them, one JSON line at the end.
//!
//! What is told and how it is verified is `demo.rs`.

use std::io::{IsTerminal, Write, stderr, stdout};
use std::time::Instant;

use anyhow::Result;
use serde_json::json;

/// Columns when the terminal does not say, and the most that are used: longer lines read badly.
const WIDTH: usize = 76;
/// Fewest columns that are filled before a terminal may break lines itself.
const WIDTH_MIN: usize = 30;

/// Lines of a log that are shown after a failure, and characters of each.
const LOG_LINES: usize = 12;
const LOG_COLUMNS: usize = 400;

/// What one step came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    step: &'static str,
    ok: bool,
    detail: String,
}

/// Tells the story and remembers its steps.
pub struct Teller {
    /// The story goes to stderr and stdout ends with one JSON line.
    json: bool,
    colour: bool,
    width: usize,
    told: Vec<Told>,
}

impl Teller {
    /// Speaks to stdout, or to stderr if stdout is for JSON.
    pub fn new(json: bool) -> Self {
        let terminal = if json {
            stderr().is_terminal()
        } else {
            stdout().is_terminal()
        };
        let columns =
            terminal_size::terminal_size().map_or(WIDTH, |(columns, _)| usize::from(columns.0));
        let width = columns.saturating_sub(1).clamp(WIDTH_MIN, WIDTH);
        Self {
            json,
            colour: terminal && std::env::var_os("NO_COLOR").is_none(),
            width,
            told: Vec::new(),
        }
    }

    /// A headline.
    pub fn chapter(&self, title: &str) {
        self.line("");
        self.line(&self.paint("1", title));
    }

    /// Prose, wrapped.
    pub fn say(&self, text: &str) {
        for line in wrap(text, self.width) {
            self.line(&line);
        }
    }

    /// Something seen: a packet, a log line, a command. Indented, wrapped, dim.
    pub fn show(&self, text: &str) {
        let lines = text
            .lines()
            .flat_map(|line| wrap(line, self.width.saturating_sub(4)));
        for (index, line) in lines.enumerate() {
            let lead = if index == 0 { "  > " } else { "    " };
            self.line(&self.paint("2", &format!("{lead}{line}")));
        }
    }

    /// A command to copy: left whole, so that the terminal's own wrapping adds nothing to it.
    pub fn command(&self, text: &str) {
        self.line(&format!("  {text}"));
    }

    /// The end of a log that belongs to a failure.
    fn show_log(&self, log: &str) {
        let lines: Vec<_> = log.lines().collect();
        for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
            let cut: String = line.chars().take(LOG_COLUMNS).collect();
            self.show(&cut);
        }
    }

    /// Performs one step: `check` returns what was verified, in a few words, or why it does not hold. After a step
    /// that failed nothing is performed any more; later steps are told as not reached.
    pub fn step<T>(
        &mut self,
        step: &'static str,
        check: impl FnOnce(&Self) -> Result<(T, String)>,
    ) -> Option<T> {
        if !self.ok() {
            self.told.push(Told {
                step,
                ok: false,
                detail: "not reached".to_owned(),
            });
            return None;
        }
        let started = Instant::now();
        let (found, ok, detail) = match check(self) {
            Ok((found, detail)) => (Some(found), true, detail),
            Err(cause) => {
                let (reasons, logs) = reasons(&cause);
                logs.iter().for_each(|log| self.show_log(log));
                (None, false, reasons)
            }
        };
        let mark = if ok {
            self.paint("32", "✓")
        } else {
            self.paint("31", "✗")
        };
        let text = format!("{detail} ({:.1} s)", started.elapsed().as_secs_f64());
        for (index, line) in wrap(&text, self.width.saturating_sub(2)).iter().enumerate() {
            self.line(&format!(
                "{} {line}",
                if index == 0 { mark.as_str() } else { " " }
            ));
        }
        self.told.push(Told { step, ok, detail });
        found
    }

    /// Whether all steps so far held.
    pub fn ok(&self) -> bool {
        self.told.iter().all(|told| told.ok)
    }

    /// Closes the story; with JSON asked for, as stdout's last line.
    pub fn end(&self) -> bool {
        let good = self.told.iter().filter(|told| told.ok).count();
        self.line("");
        self.say(&format!("{good} of {} steps verified.", self.told.len()));
        if self.json {
            println!("{}", report(&self.told));
        }
        self.ok()
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// A reader that went away (`| head`) does not stop the story: its steps still count.
    fn line(&self, text: &str) {
        let _ = if self.json {
            writeln!(stderr(), "{text}")
        } else {
            writeln!(stdout(), "{text}")
        };
    }
}

/// Why a step failed: its reasons as one sentence, and the logs that came with them.
fn reasons(cause: &anyhow::Error) -> (String, Vec<String>) {
    let (logs, reasons): (Vec<_>, Vec<_>) = cause
        .chain()
        .map(ToString::to_string)
        .partition(|text| text.contains('\n'));
    // text that stands before its log says what was waited for
    let heads = logs.iter().filter_map(|log| log.lines().next());
    let heads = heads.filter(|_| reasons.is_empty()).map(str::to_owned);
    (
        reasons
            .iter()
            .cloned()
            .chain(heads)
            .collect::<Vec<_>>()
            .join(": "),
        logs,
    )
}

fn report(told: &[Told]) -> serde_json::Value {
    let steps: Vec<_> = told
        .iter()
        .map(|told| json!({"step": told.step, "ok": told.ok, "detail": told.detail}))
        .collect();
    json!({"ok": told.iter().all(|told| told.ok), "steps": steps})
}

/// Breaks at spaces; a word longer than a line is broken where it must be.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        for letter in word.chars() {
            if line.chars().count() == width {
                lines.push(std::mem::take(&mut line));
            }
            line.push(letter);
        }
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::{Told, reasons, report, wrap};

    #[test]
    fn logs_do_not_drown_the_reason() {
        let cause = anyhow::anyhow!("did not happen within 20s").context("log:\na\nb");
        let logs = vec!["log:\na\nb".to_owned()];
        assert_eq!(
            reasons(&cause),
            ("did not happen within 20s".to_owned(), logs)
        );
        let only = anyhow::anyhow!("the daemon ended\nlast line");
        assert_eq!(reasons(&only).0, "the daemon ended");
    }

    #[test]
    fn lines_are_wrapped() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("abcdefgh ij", 4), ["abcd", "efgh", "ij"]);
        assert_eq!(wrap("", 4), [""]);
    }

    #[test]
    fn the_report_is_one_line() {
        let told = [Told {
            step: "label",
            ok: false,
            detail: "a \"b\"\nc".to_owned(),
        }];
        let wanted = r#"{"ok":false,"steps":[{"detail":"a \"b\"\nc","ok":false,"step":"label"}]}"#;
        assert_eq!(report(&told).to_string(), wanted);
    }
}
