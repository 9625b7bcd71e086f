//! The forms that a variable's value may have, and the error that names what was wrong.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// A variable, or a key of the proxy configuration, holds what it must not.
    #[error("{name}={value:?} is not valid: expected {expected}")]
    Value {
        /// the variable or key
        name: Cow<'static, str>,
        /// what it holds
        value: String,
        /// what it may hold
        expected: String,
    },
    /// A text whose value is not shown: it is long, or secret.
    #[error("{name} is not valid: {problem}")]
    Text {
        /// the variable or file
        name: String,
        /// what is wrong in it
        problem: String,
    },
    /// Two settings that exclude each other.
    #[error("{0}")]
    Conflict(String),
}

impl Invalid {
    /// `name` holds `value` where `expected` was needed.
    pub fn new(
        name: impl Into<Cow<'static, str>>,
        value: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        Self::Value {
            name: name.into(),
            value: value.into(),
            expected: expected.into(),
        }
    }

    /// `name` holds a text with this problem.
    pub fn text(name: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Text {
            name: name.into(),
            problem: problem.into(),
        }
    }
}

/// What the configuration is read from.
#[derive(Clone, Default)]
pub struct World {
    /// all environment variables
    pub variables: BTreeMap<String, String>,
    /// the directory that relative paths start from
    pub directory: PathBuf,
    /// logical cores of the machine
    pub cores: usize,
    /// arguments after the command's own name
    pub arguments: Vec<String>,
}

impl World {
    /// The world of this process. Bytes of a variable that are no text are replaced, so that its check can refuse it.
    pub fn of_process() -> Self {
        let text = |bytes: std::ffi::OsString| bytes.to_string_lossy().into_owned();
        Self {
            variables: std::env::vars_os()
                .map(|(name, value)| (text(name), text(value)))
                .collect(),
            directory: PathBuf::new(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            arguments: std::env::args_os().skip(1).map(text).collect(),
        }
    }
}

/// Typed look at the environment. What is text counts as unset when it is empty; a switch, number or duration that is
/// empty is an error.
#[derive(Clone, Copy)]
pub struct Env<'a>(&'a World);

impl<'a> Env<'a> {
    /// Reads `world`.
    pub fn new(world: &'a World) -> Self {
        Self(world)
    }

    /// The value as it stands, none when unset.
    pub fn raw(&self, name: &str) -> Option<&'a str> {
        self.0.variables.get(name).map(String::as_str)
    }

    /// The value, none when unset or empty.
    pub fn optional(&self, name: &str) -> Option<String> {
        self.raw(name).filter(|v| !v.is_empty()).map(str::to_owned)
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

    /// All variables whose names begin with `prefix` and go on, by the rest of the name.
    pub fn prefixed(&self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let from = self.0.variables.range(prefix.to_owned()..);
        from.map_while(move |(name, value)| Some((name.strip_prefix(prefix)?, value.as_str())))
            .filter(|(rest, _)| !rest.is_empty())
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

    /// Exactly `true` or `false`.
    pub fn bool(&self, name: &'static str, default: bool) -> Result<bool, Invalid> {
        Ok(self.switch(name)?.unwrap_or(default))
    }

    /// The same, with a meaning of its own when unset.
    pub fn switch(&self, name: &'static str) -> Result<Option<bool>, Invalid> {
        match self.raw(name) {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(other) => Err(Invalid::new(name, other, "true or false")),
        }
    }

    /// Whether the value is `true`; anything else is no.
    pub fn is_true(&self, name: &str) -> bool {
        self.raw(name) == Some("true")
    }

    /// A decimal number that fits `T`.
    pub fn number<T: FromStr>(&self, name: &'static str, default: T) -> Result<T, Invalid> {
        self.count(name).map(|set| set.unwrap_or(default))
    }

    /// The same, none when unset.
    pub fn count<T: FromStr>(&self, name: &'static str) -> Result<Option<T>, Invalid> {
        let Some(text) = self.raw(name) else {
            return Ok(None);
        };
        let number = text
            .bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| text.parse().ok())
            .flatten();
        number.map(Some).ok_or_else(|| {
            let kind = std::any::type_name::<T>();
            Invalid::new(name, text, format!("a whole number ({kind})"))
        })
    }

    /// A number within `range`.
    pub fn within<T>(
        &self,
        name: &'static str,
        default: T,
        range: std::ops::RangeInclusive<T>,
    ) -> Result<T, Invalid>
    where
        T: FromStr + PartialOrd + std::fmt::Display,
    {
        let number = self.number(name, default)?;
        if range.contains(&number) {
            return Ok(number);
        }
        let expected = format!("a number from {} to {}", range.start(), range.end());
        Err(Invalid::new(name, number.to_string(), expected))
    }

    /// A duration, see [`parse_duration`].
    pub fn duration(&self, name: &'static str, default: Duration) -> Result<Duration, Invalid> {
        match self.raw(name) {
            None => Ok(default),
            Some(text) => parse_duration(text).ok_or_else(|| {
                Invalid::new(name, text, "a duration such as 10s, 500ms, 5m, 1h30m")
            }),
        }
    }

    /// A CPU quantity rounded up to whole CPUs.
    pub fn cpus(&self, name: &'static str) -> Result<Option<usize>, Invalid> {
        let Some(text) = self.raw(name) else {
            return Ok(None);
        };
        parse_cpus(text).map(Some).ok_or_else(|| {
            Invalid::new(name, text, "a CPU quantity above 0 such as 2, 1.5 or 500m")
        })
    }

    /// Logical cores of the machine.
    pub fn cores(&self) -> usize {
        self.0.cores
    }

    /// `path`, from the working directory when it is relative.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.0.directory.join(path)
    }

    /// The command line after the program's name.
    pub fn arguments(&self) -> &'a [String] {
        &self.0.arguments
    }
}

/// More CPUs than any machine has; a larger quantity is a typing error.
const CPUS_MAX: f64 = 65_536.0;

/// Whole CPUs, rounded up, from `2`, `1.5` or `500m`; none when the text is no quantity above 0.
pub fn parse_cpus(text: &str) -> Option<usize> {
    let (number, milli) = text.strip_suffix('m').map_or((text, false), |n| (n, true));
    if !number.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return None;
    }
    let quantity: f64 = number.parse().ok()?;
    let whole = if milli { quantity / 1000.0 } else { quantity }.ceil();
    // 0 < quantity rounds up to at least 1; the bound keeps the cast exact
    (1.0..=CPUS_MAX).contains(&whole).then_some(whole as usize)
}

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
