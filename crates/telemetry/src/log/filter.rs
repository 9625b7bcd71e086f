//! Which lines are written: a default level and levels per target. Pure; holding and swapping the filter is left to the parent module.

use std::fmt;

use tracing::level_filters::LevelFilter;

/// Most entries of one filter: it can grow by every `POST /logging`.
const ENTRIES_MAX: usize = 256;
/// Longest target of an entry, in bytes.
const TARGET_BYTES_MAX: usize = 256;
/// Put before the text of the operator: that library logs every refused query.
const ALWAYS: &str = "hickory_server::server=off";
/// The filter when none is given.
const DEFAULT: &str = "info";

/// The crates of this program, and the module paths under which operators know them. A part of a crate stands before it.
const ROOMS: [(&str, &str); 11] = [
    ("capture", "ztunnel::inpod::capture"),
    ("control::ca", "ztunnel::identity::ca"),
    ("control::xds", "ztunnel::xds"),
    ("control", "ztunnel::xds"),
    ("enroll", "ztunnel::inpod"),
    ("hbone", "ztunnel::hbone"),
    ("identity", "ztunnel::identity"),
    ("mesh", "ztunnel::state"),
    ("proxy", "ztunnel::proxy"),
    ("sys", "ztunnel::sys"),
    ("telemetry", "ztunnel::telemetry"),
];

/// A target as operators know it: first part (as named in `ROOMS`) and rest.
pub(super) fn known_as(target: &str) -> (&str, &str) {
    let in_room = |(name, known): &(&str, &'static str)| {
        let rest = target.strip_prefix(name)?;
        (rest.is_empty() || rest.starts_with("::")).then_some((*known, rest))
    };
    ROOMS.iter().find_map(in_room).unwrap_or((target, ""))
}

/// Why a filter text was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// An entry is neither a level nor `<target>=<level>`.
    #[error(
        "invalid entry {0:?}: expected <level> or <target>=<level>, level one of off, error, warn, info, debug, trace"
    )]
    Entry(String),
    /// More entries than a filter may hold.
    #[error("too many entries: at most {ENTRIES_MAX}")]
    TooMany,
}

/// Levels per target, and a default level.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Longest target first, then by name: the first that is a prefix wins.
    entries: Vec<(String, LevelFilter)>,
    default: Option<LevelFilter>,
}

impl Filter {
    /// The filter of the start, from the text of `RUST_LOG`.
    pub fn initial(text: Option<&str>) -> Result<Self, FilterError> {
        let text = text
            .map(str::trim)
            .filter(|text| !text.is_empty())
            .unwrap_or(DEFAULT);
        let mut filter = Self {
            entries: Vec::new(),
            default: None,
        };
        filter.add(ALWAYS, false)?;
        filter.add(text, true)?;
        Ok(filter)
    }

    /// This filter with `entries` added; an entry for a known target replaces it.
    pub fn with(&self, entries: &str) -> Result<Self, FilterError> {
        let mut next = self.clone();
        next.add(entries, false)?;
        Ok(next)
    }

    /// The most verbose level let through for `target`. What no entry names is off.
    pub fn level_of(&self, target: &str) -> LevelFilter {
        let (known, rest) = known_as(target);
        let named = |entry: &str| {
            target.starts_with(entry)
                || match entry.strip_prefix(known) {
                    Some(tail) => rest.starts_with(tail),
                    None => known.starts_with(entry),
                }
        };
        let found = self
            .entries
            .iter()
            .find(|(entry, _)| named(entry))
            .map(|(_, level)| *level);
        found.or(self.default).unwrap_or(LevelFilter::OFF)
    }

    /// The most verbose level that any target can have.
    pub fn level_max(&self) -> LevelFilter {
        let levels = self
            .entries
            .iter()
            .map(|(_, level)| *level)
            .chain(self.default);
        levels.max().unwrap_or(LevelFilter::OFF)
    }

    fn add(&mut self, text: &str, any_case: bool) -> Result<(), FilterError> {
        for entry in text
            .split(',')
            .map(str::trim)
            .filter(|entry| !entry.is_empty())
        {
            match parse(entry, any_case)
                .ok_or_else(|| FilterError::Entry(entry.chars().take(TARGET_BYTES_MAX).collect()))?
            {
                (None, level) => self.default = Some(level),
                (Some(target), level) => self.put(target, level)?,
            }
        }
        Ok(())
    }

    fn put(&mut self, target: &str, level: LevelFilter) -> Result<(), FilterError> {
        let order = |(known, _): &(String, LevelFilter)| {
            target
                .len()
                .cmp(&known.len())
                .then_with(|| known.as_str().cmp(target))
        };
        match self.entries.binary_search_by(order) {
            Ok(at) => self.entries[at].1 = level,
            Err(_) if self.entries.len() >= ENTRIES_MAX => return Err(FilterError::TooMany),
            Err(at) => self.entries.insert(at, (target.to_owned(), level)),
        }
        Ok(())
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for (target, level) in &self.entries {
            write!(f, "{comma}{target}={level}")?;
            comma = ",";
        }
        match self.default {
            Some(level) => write!(f, "{comma}{level}"),
            None => Ok(()),
        }
    }
}

/// One entry. A colon in place of `=` is taken too: the usage text of the ecosystem's tools shows it.
fn parse(entry: &str, any_case: bool) -> Option<(Option<&str>, LevelFilter)> {
    if let Some(level) = bare_level(entry, any_case) {
        return Some((None, level));
    }
    let (target, level) = entry.split_once('=').or_else(|| entry.rsplit_once(':'))?;
    let (target, level) = (target.trim(), level.trim());
    let ok =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b':' | b'/');
    if target.is_empty()
        || target.len() > TARGET_BYTES_MAX
        || target.ends_with(':')
        || !target.bytes().all(ok)
    {
        return None;
    }
    let level = match level.to_ascii_lowercase().as_str() {
        "warning" => LevelFilter::WARN,
        "critical" => LevelFilter::ERROR,
        other => bare_level(other, true)?,
    };
    Some((Some(target), level))
}

fn bare_level(text: &str, any_case: bool) -> Option<LevelFilter> {
    let lower = any_case.then(|| text.to_ascii_lowercase());
    Some(match lower.as_deref().unwrap_or(text) {
        "off" => LevelFilter::OFF,
        "error" => LevelFilter::ERROR,
        "warn" => LevelFilter::WARN,
        "info" => LevelFilter::INFO,
        "debug" => LevelFilter::DEBUG,
        "trace" => LevelFilter::TRACE,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_filter_lists_most_specific_first() {
        for (text, listing) in [
            (None, "hickory_server::server=off,info"),
            (Some(""), "hickory_server::server=off,info"),
            (Some("debug"), "hickory_server::server=off,debug"),
            (Some("DEBUG"), "hickory_server::server=off,debug"),
            (
                Some("warn,access=info"),
                "hickory_server::server=off,access=info,warn",
            ),
            (
                Some("hickory_server::server=debug,info"),
                "hickory_server::server=debug,info",
            ),
            (
                Some("access=info"),
                "hickory_server::server=off,access=info",
            ),
            (
                Some("b=info,a=info,,info"),
                "hickory_server::server=off,a=info,b=info,info",
            ),
        ] {
            assert_eq!(
                Filter::initial(text).unwrap().to_string(),
                listing,
                "{text:?}"
            );
        }
    }

    #[test]
    fn changes_add_and_replace() {
        let start = Filter::initial(None).unwrap();
        for (entries, listing) in [
            ("", "hickory_server::server=off,info"),
            ("debug", "hickory_server::server=off,debug"),
            (
                "access=debug,info",
                "hickory_server::server=off,access=debug,info",
            ),
            (
                "access=debug,access=error",
                "hickory_server::server=off,access=error,info",
            ),
            (
                "access:debug",
                "hickory_server::server=off,access=debug,info",
            ),
            (
                "ztunnel::proxy:debug",
                "hickory_server::server=off,ztunnel::proxy=debug,info",
            ),
            (
                "access:warning,dns=critical",
                "hickory_server::server=off,access=warn,dns=error,info",
            ),
            (
                "access=DEBUG",
                "hickory_server::server=off,access=debug,info",
            ),
        ] {
            assert_eq!(
                start.with(entries).unwrap().to_string(),
                listing,
                "{entries:?}"
            );
        }
    }

    #[test]
    fn invalid_entries_are_refused_whole() {
        let start = Filter::initial(None).unwrap();
        for entries in [
            "access",
            "ztunnel::proxy",
            "INFO",
            "access=loud",
            "=debug",
            "a::=debug",
            "warning",
            "[s{f=1}]=debug",
            "a b=debug",
        ] {
            assert!(
                matches!(
                    start.with(&format!("debug,{entries}")),
                    Err(FilterError::Entry(_))
                ),
                "{entries}"
            );
        }
        let many: String = (0..=ENTRIES_MAX).map(|n| format!("t{n}=info,")).collect();
        assert_eq!(start.with(&many), Err(FilterError::TooMany));
    }

    #[test]
    fn targets_as_operators_know_them() {
        for (target, known) in [
            ("proxy::inbound", ("ztunnel::proxy", "::inbound")),
            ("control::xds", ("ztunnel::xds", "")),
            ("control::xds::session", ("ztunnel::xds", "::session")),
            ("control::ca", ("ztunnel::identity::ca", "")),
            ("control::channel", ("ztunnel::xds", "::channel")),
            ("controls::x", ("controls::x", "")),
            ("access", ("access", "")),
        ] {
            assert_eq!(known_as(target), known, "{target}");
        }
    }

    #[test]
    fn longest_prefix_wins_under_either_name() {
        let filter = Filter::initial(Some(
            "warn,ztunnel::proxy=debug,ztunnel::proxy::inbound=trace,access=off,hbone=error",
        ))
        .unwrap();
        for (target, level) in [
            ("proxy", LevelFilter::DEBUG),
            ("proxy::outbound", LevelFilter::DEBUG),
            ("proxy::inbound::tls", LevelFilter::TRACE),
            ("ztunnel::proxy::inbound", LevelFilter::TRACE),
            ("hbone::pool", LevelFilter::ERROR),
            ("access", LevelFilter::OFF),
            ("identity::cache", LevelFilter::WARN),
            ("hickory_server::server::x", LevelFilter::OFF),
        ] {
            assert_eq!(filter.level_of(target), level, "{target}");
        }
        assert_eq!(filter.level_max(), LevelFilter::TRACE);
        let all = Filter::initial(Some("error,ztunnel=debug")).unwrap();
        assert_eq!(all.level_of("identity::cache"), LevelFilter::DEBUG);
        assert_eq!(all.level_of("h2::codec"), LevelFilter::ERROR);
    }
}
