//! OpenMetrics text.
//!
//! Source: OpenMetrics 1.0, section 3.2 (text format).

use std::fmt::{self, Write};

use super::{Family, Kind};

/// Families whose names and labels others may rely on; every other one says so in its help.
const STABLE: [&str; 13] = [
    "istio_build",
    "istio_tcp_connections_opened",
    "istio_tcp_connections_closed",
    "istio_tcp_received_bytes",
    "istio_tcp_sent_bytes",
    "process_open_fds",
    "process_max_fds",
    "tokio_num_workers",
    "tokio_global_queue_depth",
    "tokio_num_alive_tasks",
    "tokio_worker_total_busy_duration_seconds",
    "tokio_worker_park_count",
    "tokio_worker_park_unpark_count",
];

const OPENMETRICS: &str = "application/openmetrics-text";

/// The content type of the answer to a request with these `Accept` entries. The text is the same.
pub(super) fn content_type<'a>(accept: impl IntoIterator<Item = &'a str>) -> &'static str {
    if accept.into_iter().any(|entry| entry.contains(OPENMETRICS)) {
        "application/openmetrics-text;charset=utf-8;version=1.0.0"
    } else {
        "text/plain; charset=utf-8"
    }
}

/// Whether `name` is a family name in this house: lower case.
pub(super) fn is_name(name: &str) -> bool {
    let first = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
    name.bytes().next().is_some_and(first)
        && name
            .bytes()
            .all(|byte| first(byte) || byte.is_ascii_digit())
}

/// A sample's value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    /// A count.
    Count(u64),
    /// A whole number.
    Whole(i64),
    /// Any number.
    Real(f64),
}

impl From<u64> for Number {
    fn from(value: u64) -> Self {
        Self::Count(value)
    }
}

impl From<i64> for Number {
    fn from(value: i64) -> Self {
        Self::Whole(value)
    }
}

impl From<f64> for Number {
    fn from(value: f64) -> Self {
        Self::Real(value)
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Count(value) => write!(f, "{value}"),
            Self::Whole(value) => write!(f, "{value}"),
            Self::Real(value) if value.is_nan() => f.write_str("NaN"),
            Self::Real(value) if value.is_infinite() => {
                f.write_str(if value > 0.0 { "+Inf" } else { "-Inf" })
            }
            Self::Real(value) => write!(f, "{value:?}"),
        }
    }
}

/// Takes the samples of one family.
pub struct Samples<'a> {
    out: &'a mut String,
    family: &'a Family,
    empty: bool,
}

impl Samples<'_> {
    /// Adds a sample. Label names must be valid and distinct, label sets distinct within a family.
    pub fn push(&mut self, labels: &[(&str, &str)], value: impl Into<Number>) {
        let pairs = |pair: &mut dyn FnMut(&str, &str)| {
            labels.iter().for_each(|(name, value)| pair(name, value))
        };
        self.push_with(pairs, value);
    }

    /// As [`Samples::push`], with the labels handed over one by one.
    pub(super) fn push_with(
        &mut self,
        labels: impl FnOnce(&mut dyn FnMut(&str, &str)),
        value: impl Into<Number>,
    ) {
        let suffix = match self.family.kind {
            Kind::Counter => "_total",
            Kind::Gauge | Kind::Histogram => "",
        };
        self.push_part(suffix, labels, value);
    }

    /// A sample whose name is the family's and `suffix`.
    pub(super) fn push_part(
        &mut self,
        suffix: &str,
        labels: impl FnOnce(&mut dyn FnMut(&str, &str)),
        value: impl Into<Number>,
    ) {
        if std::mem::take(&mut self.empty) {
            head(self.out, self.family);
        }
        self.out.push_str(self.family.name);
        self.out.push_str(suffix);
        let mut any = false;
        let out = &mut *self.out;
        labels(&mut |name, value| {
            out.push(if std::mem::replace(&mut any, true) {
                ','
            } else {
                '{'
            });
            out.push_str(name);
            out.push_str("=\"");
            escape(out, value);
            out.push('"');
        });
        if any {
            out.push('}');
        }
        put(out, format_args!(" {}\n", value.into()));
    }
}

/// Writes a family, or nothing if it has no samples.
pub(super) fn family(out: &mut String, family: &Family, collect: impl FnOnce(&mut Samples<'_>)) {
    collect(&mut Samples {
        out,
        family,
        empty: true,
    });
}

fn head(out: &mut String, family: &Family) {
    let collector = family.name.starts_with("process_") || family.name.starts_with("tokio_");
    put(out, format_args!("# HELP {} ", family.name));
    escape(out, family.help);
    if !STABLE.contains(&family.name) {
        out.push_str(" (unstable)");
    }
    let kind = match family.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    };
    let stop = if collector { "" } else { "." };
    put(out, format_args!("{stop}\n# TYPE {} {kind}\n", family.name));
    if let Some(unit) = family.unit {
        put(out, format_args!("# UNIT {} {unit}\n", family.name));
    }
}

fn put(out: &mut String, text: fmt::Arguments<'_>) {
    // A String takes everything.
    let _ = out.write_fmt(text);
}

fn escape(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (number, text) in [
            (Number::from(7_u64), "7"),
            (Number::from(-7_i64), "-7"),
            (Number::from(1.0), "1.0"),
            (Number::from(0.25), "0.25"),
            (Number::from(f64::NAN), "NaN"),
            (Number::from(f64::INFINITY), "+Inf"),
            (Number::from(f64::NEG_INFINITY), "-Inf"),
        ] {
            assert_eq!(number.to_string(), text);
        }
    }

    #[test]
    fn content_types() {
        assert_eq!(content_type([]), "text/plain; charset=utf-8");
        assert_eq!(
            content_type(["text/plain", "*/*"]),
            "text/plain; charset=utf-8"
        );
        let both = [
            "text/plain",
            "application/openmetrics-text; version=1.0.0,text/plain;q=0.5",
        ];
        assert_eq!(
            content_type(both),
            "application/openmetrics-text;charset=utf-8;version=1.0.0"
        );
    }
}
