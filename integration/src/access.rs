//! Reads the daemon's log lines in their plain form: time, level, target, message and fields, divided by tabs.

use std::collections::BTreeMap;

/// One line of the access log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLine {
    /// `info`, `warn`, `error`, `debug`
    pub level: String,
    /// `connection complete`, `connection failed`, `connection opened`
    pub message: String,
    /// fields without their quotes
    pub fields: BTreeMap<String, String>,
    /// field names in the order in which they stand
    pub order: Vec<String>,
    /// the line as it stands
    pub text: String,
}

impl AccessLine {
    /// Reads one line; none if it is no access-log line.
    pub fn parse(line: &str) -> Option<Self> {
        let mut columns = line.split('\t');
        let (_time, level, target, message) = (
            columns.next()?,
            columns.next()?,
            columns.next()?,
            columns.next()?,
        );
        if target != "access" {
            return None;
        }
        let pairs = pairs(columns.next().unwrap_or_default());
        Some(Self {
            level: level.to_owned(),
            message: message.to_owned(),
            order: pairs.iter().map(|(key, _)| key.clone()).collect(),
            fields: pairs.into_iter().collect(),
            text: line.to_owned(),
        })
    }

    /// The value of a field, empty if it is absent.
    pub fn field(&self, key: &str) -> &str {
        self.fields.get(key).map_or("", String::as_str)
    }

    /// Whether `direction` is as given.
    pub fn is(&self, direction: &str) -> bool {
        self.field("direction") == direction
    }
}

/// Splits `k=v k="v w"`; quotes are taken off and the escapes `\"` and `\\` undone.
fn pairs(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while let Some((key, after)) = rest.split_once('=') {
        let (value, left) = value(after);
        found.push((key.to_owned(), value));
        rest = left.trim_start();
    }
    found
}

fn value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(' ').unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut escaped = false;
    for (at, c) in quoted.char_indices() {
        match c {
            _ if escaped => {
                value.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return (value, &quoted[at + 1..]),
            _ => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::AccessLine;

    #[test]
    fn reads_an_access_line() {
        let line = "2026-03-02T10:11:13.000456Z\twarn\taccess\tconnection failed\tsrc.addr=10.1.0.9:40314 \
                    direction=\"outbound\" error=\"no \\\"x\\\": 10.2.0.99:80\"";
        let line = AccessLine::parse(line).unwrap();
        assert_eq!(
            (line.level.as_str(), line.message.as_str()),
            ("warn", "connection failed")
        );
        assert_eq!(line.field("error"), "no \"x\": 10.2.0.99:80");
        assert_eq!(line.order, ["src.addr", "direction", "error"]);
        assert!(AccessLine::parse("2026\tinfo\tapp\thello\t").is_none());
    }
}
