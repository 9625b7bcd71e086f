//! The two shapes of a line, written field by field. What the fields are is left to the layer and to the access log.

use std::fmt::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use super::Format;

/// Appends fields to a text: `k=v k=v` or `"k":v,"k":v`.
pub(crate) struct Fields<'a> {
    format: Format,
    out: &'a mut String,
    separate: bool,
}

impl<'a> Fields<'a> {
    /// - `separate`: a field stands before the first one written here
    pub(crate) fn new(format: Format, out: &'a mut String, separate: bool) -> Self {
        Self {
            format,
            out,
            separate,
        }
    }

    fn key(&mut self, key: &str) {
        match self.format {
            Format::Plain => {
                if self.separate {
                    self.out.push(' ');
                }
                push_clean(self.out, format_args!("{key}="));
            }
            Format::Json => {
                if self.separate {
                    self.out.push(',');
                }
                push_json(self.out, key);
                self.out.push(':');
            }
        }
        self.separate = true;
    }

    /// A string: quoted in both shapes.
    pub(crate) fn string(&mut self, key: &str, value: &str) {
        self.key(key);
        match self.format {
            Format::Plain => push(self.out, format_args!("{value:?}")),
            Format::Json => push_json(self.out, value),
        }
    }

    /// A displayed value, such as an address: bare in plain, a string in JSON.
    pub(crate) fn display(&mut self, key: &str, value: fmt::Arguments<'_>) {
        self.key(key);
        match self.format {
            Format::Plain => push_clean(self.out, value),
            Format::Json => push_json(self.out, &value.to_string()),
        }
    }

    /// A number or bool: bare in both shapes. The text must be valid JSON.
    pub(crate) fn native(&mut self, key: &str, value: fmt::Arguments<'_>) {
        self.key(key);
        push(self.out, value);
    }
}

/// Appends; a `String` takes everything.
pub(crate) fn push(out: &mut String, text: fmt::Arguments<'_>) {
    // A Display that fails leaves a shorter text; there is nothing better to do in a log line.
    let _ = out.write_fmt(text);
}

/// Appends `text` as a JSON string.
pub(crate) fn push_json(out: &mut String, text: &str) {
    out.push_str(&serde_json::Value::from(text).to_string());
}

/// Appends `text` with control characters escaped, so that nothing a peer sends can start a line or a column.
pub(crate) fn push_clean(out: &mut String, text: fmt::Arguments<'_>) {
    struct Clean<'a>(&'a mut String);
    impl Write for Clean<'_> {
        fn write_str(&mut self, part: &str) -> fmt::Result {
            if part.chars().any(char::is_control) {
                for c in part.chars() {
                    if c.is_control() {
                        self.0.extend(c.escape_default())
                    } else {
                        self.0.push(c)
                    }
                }
            } else {
                self.0.push_str(part);
            }
            Ok(())
        }
    }
    let _ = Clean(out).write_fmt(text);
}

/// `text` with control characters escaped.
pub(crate) fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    push_clean(&mut out, format_args!("{text}"));
    out
}

/// Appends the moment as RFC 3339, UTC, with six fractional digits and `Z`.
///
/// Source: RFC 3339, section 5.6. Days to date: proleptic Gregorian calendar, years counted from March.
pub(crate) fn stamp(out: &mut String, at: SystemTime) {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date(days);
    push(
        out,
        format_args!(
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:06}Z",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60,
            since.subsec_micros()
        ),
    );
}

/// Year, month and day of a day counted from 1970-01-01.
fn date(days: u64) -> (u64, u64, u64) {
    // From 0000-03-01, so that the leap day is the last of its year.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn moments_are_rfc3339_with_six_digits() {
        for (micros, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_399_999_999, "2000-02-28T23:59:59.999999Z"),
            (951_782_400_000_000, "2000-02-29T00:00:00.000000Z"),
            (951_868_800_000_001, "2000-03-01T00:00:00.000001Z"),
            (1_772_446_272_000_123, "2026-03-02T10:11:12.000123Z"),
            (4_107_542_400_000_000, "2100-03-01T00:00:00.000000Z"),
        ] {
            let mut out = String::new();
            stamp(&mut out, UNIX_EPOCH + Duration::from_micros(micros));
            assert_eq!(out, text);
        }
    }

    #[test]
    fn fields_in_both_shapes() {
        let write = |format| {
            let mut out = String::new();
            let mut fields = Fields::new(format, &mut out, false);
            fields.string("s", "va\"l\n");
            fields.display("d", format_args!("a\nb\tc"));
            fields.native("n", format_args!("{}", 7));
            out
        };
        assert_eq!(write(Format::Plain), r#"s="va\"l\n" d=a\nb\tc n=7"#);
        assert_eq!(write(Format::Json), r#""s":"va\"l\n","d":"a\nb\tc","n":7"#);
    }
}
