//! The forms that a variable's value may have, and the error that names what was wrong.

use std::str::FromStr;
use std::time::Duration;

/// A variable whose value cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}={value:?} is not valid: expected {expected}")]
pub struct Invalid {
    name: &'static str,
    value: String,
    expected: String,
}

impl Invalid {
    /// `name` holds `value` where `expected` was needed.
    pub fn new(name: &'static str, value: impl Into<String>, expected: impl Into<String>) -> Self {
        Self {
            name,
            value: value.into(),
            expected: expected.into(),
        }
    }
}

/// Typed look at the environment. An empty value counts as unset.
pub struct Env<G>(G);

impl<G: Fn(&str) -> Option<String>> Env<G> {
    /// Reads through `get`.
    pub fn new(get: G) -> Self {
        Self(get)
    }

    /// The value, none when unset or empty.
    pub fn optional(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|v| !v.is_empty())
    }

    /// The value or `default`.
    pub fn text(&self, name: &str, default: &str) -> String {
        self.optional(name).unwrap_or_else(|| default.to_owned())
    }

    /// The value, which must be there.
    pub fn required(&self, name: &'static str, expected: &str) -> Result<String, Invalid> {
        self.optional(name)
            .ok_or_else(|| Invalid::new(name, "", expected))
    }

    /// Comma-separated items, trimmed, empty ones dropped.
    pub fn list(&self, name: &str, default: &str) -> Vec<String> {
        let text = self.text(name, default);
        text.split(',')
            .map(str::trim)
            .filter(|i| !i.is_empty())
            .map(str::to_owned)
            .collect()
    }

    /// `true` or `false`, nothing else.
    pub fn bool(&self, name: &'static str, default: bool) -> Result<bool, Invalid> {
        match self.optional(name).as_deref() {
            None => Ok(default),
            Some("true") => Ok(true),
            Some("false") => Ok(false),
            Some(other) => Err(Invalid::new(name, other, "true or false")),
        }
    }

    /// A decimal number that fits `T`.
    pub fn number<T: FromStr>(&self, name: &'static str, default: T) -> Result<T, Invalid> {
        match self.optional(name) {
            None => Ok(default),
            Some(text) => text.parse().map_err(|_| {
                Invalid::new(
                    name,
                    text,
                    format!("a number ({})", std::any::type_name::<T>()),
                )
            }),
        }
    }

    /// A duration, see [`parse_duration`].
    pub fn duration(&self, name: &'static str, default: Duration) -> Result<Duration, Invalid> {
        match self.optional(name) {
            None => Ok(default),
            Some(text) => parse_duration(&text).ok_or_else(|| {
                Invalid::new(name, text, "a duration such as 10s, 500ms, 5m, 1h30m")
            }),
        }
    }

    /// A CPU quantity rounded up to whole CPUs.
    pub fn cpus(&self, name: &'static str) -> Result<Option<usize>, Invalid> {
        let Some(text) = self.optional(name) else {
            return Ok(None);
        };
        let bad = || {
            Invalid::new(
                name,
                text.clone(),
                "a CPU quantity above 0 such as 2, 1.5 or 500m",
            )
        };
        let (number, milli) = text
            .strip_suffix('m')
            .map_or((text.as_str(), false), |n| (n, true));
        let quantity: f64 = number.parse().map_err(|_| bad())?;
        let whole = if milli { quantity / 1000.0 } else { quantity }.ceil();
        if (1.0..=CPUS_MAX).contains(&whole) {
            Ok(Some(whole as usize))
        } else {
            Err(bad())
        }
    }
}

/// More CPUs than any machine has; a larger quantity is a typing error.
const CPUS_MAX: f64 = 65_536.0;

/// Worker threads from `N`, `0` (all cores) or `P%` of the cores; none when the text is neither.
pub fn workers(text: &str, cores: usize) -> Option<usize> {
    if let Some(share) = text.strip_suffix('%') {
        let share: f64 = share.parse().ok()?;
        return (share > 0.0 && share <= 100.0)
            .then(|| ((cores as f64 * share / 100.0).ceil() as usize).max(1));
    }
    match text.parse::<u16>().ok()? {
        0 => Some(cores.max(1)),
        n => Some(n.into()),
    }
}

/// A duration: numbers with units (`1h30m`, `500ms`), joined by `+`, factors by `*`; a bare number is seconds.
///
/// None when the text is not one, or when it does not fit.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut sum = Duration::ZERO;
    for term in text.split('+') {
        sum = sum.checked_add(product(term)?)?;
    }
    Some(sum)
}

fn product(term: &str) -> Option<Duration> {
    let (mut unit, mut factor) = (None, 1u32);
    for part in term.split('*').map(str::trim) {
        match (part.parse::<u32>(), unit) {
            (Ok(n), _) => factor = factor.checked_mul(n)?,
            (Err(_), None) => unit = Some(units(part)?),
            (Err(_), Some(_)) => return None,
        }
    }
    unit.unwrap_or(Duration::from_secs(1)).checked_mul(factor)
}

fn units(text: &str) -> Option<Duration> {
    if text.is_empty() {
        return None;
    }
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .filter(|&n| n > 0)?;
        let (number, tail) = rest.split_at(digits);
        let end = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let second = match unit.trim() {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" | "sec" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * second).ok()?;
        sum = sum.checked_add(part)?;
        rest = tail;
    }
    Some(sum)
}
