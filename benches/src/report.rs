//! From samples to what a reader sees: min, median and max per measurement and path, a table and a JSON file.

use serde::Serialize;
use std::fmt::Write;

/// One path of bytes between the two pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Path {
    /// Not enrolled: plain TCP between the namespaces.
    Plain,
    /// Through two plain TCP relays: the floor of any proxy in user space.
    Relays,
    /// Enrolled: captured, through both daemons.
    Mesh,
}

impl Path {
    /// As the table names it.
    pub fn name(self) -> &'static str {
        match self {
            Path::Plain => "plain TCP",
            Path::Relays => "two relays",
            Path::Mesh => "two daemons",
        }
    }
}

/// One round of one measurement on one path.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Sample {
    /// In the measurement's unit.
    pub value: f64,
    /// 99th percentile in microseconds, where a unit has a time.
    pub p99_us: Option<f64>,
    /// Both daemons' (or relays') CPU per unit, user and system, in the measurement's CPU unit.
    pub proxies_cpu: f64,
    /// The whole machine's busy CPU per unit: what plain TCP costs as well, but also whatever else runs.
    pub machine_cpu: f64,
}

/// All rounds of one measurement on one path.
#[derive(Debug, Serialize)]
pub struct Series {
    /// What was measured.
    pub measurement: &'static str,
    /// Unit of the values.
    pub unit: &'static str,
    /// Unit of the CPU columns.
    pub cpu_unit: &'static str,
    /// The path of the bytes.
    pub path: Path,
    /// In the order they were taken.
    pub samples: Vec<Sample>,
}

/// Smallest, middle and largest of a list.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    min: f64,
    median: f64,
    max: f64,
}

/// The spread of a list; all zero for an empty one.
pub fn spread(values: impl Iterator<Item = f64>) -> Spread {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
    let (low, high) = (sorted.len().saturating_sub(1) / 2, sorted.len() / 2);
    Spread {
        min: at(0),
        median: (at(low) + at(high)) / 2.0,
        max: at(sorted.len().saturating_sub(1)),
    }
}

/// The table, at most 80 columns wide.
pub fn table(all: &[Series]) -> String {
    let mut text = String::new();
    let mut last = "";
    let mut plain = 0.0;
    for series in all {
        let values = spread(series.samples.iter().map(|sample| sample.value));
        if series.measurement != last {
            last = series.measurement;
            plain = values.median;
            let _ = write!(
                text,
                "\n{last}, {}; CPU in {}\n",
                series.unit, series.cpu_unit
            );
            let _ = writeln!(
                text,
                "  {:<12}{:>9}{:>9}{:>9}{:>8}{:>8}{:>10}{:>9}",
                "", "min", "median", "max", "ratio", "p99 us", "CPU prox", "CPU all"
            );
        }
        let ratio = if plain > 0.0 {
            values.median / plain
        } else {
            0.0
        };
        let p99 = spread(series.samples.iter().filter_map(|sample| sample.p99_us)).median;
        let p99 = if p99 > 0.0 {
            format!("{p99:.0}")
        } else {
            "-".to_owned()
        };
        let proxies = spread(series.samples.iter().map(|sample| sample.proxies_cpu)).median;
        let machine = spread(series.samples.iter().map(|sample| sample.machine_cpu)).median;
        let [min, median, max] = [values.min, values.median, values.max].map(number);
        let _ = writeln!(
            text,
            "  {:<12}{min:>9}{median:>9}{max:>9}{ratio:>7.2}x{p99:>8}{:>10}{:>9}",
            series.path.name(),
            number(proxies),
            number(machine)
        );
    }
    text
}

/// Three significant digits, no exponent.
fn number(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads() {
        assert_eq!(
            spread([3.0, 1.0, 2.0].into_iter()),
            Spread {
                min: 1.0,
                median: 2.0,
                max: 3.0
            }
        );
        assert_eq!(
            spread([4.0, 1.0].into_iter()),
            Spread {
                min: 1.0,
                median: 2.5,
                max: 4.0
            }
        );
        assert_eq!(
            spread(std::iter::empty()),
            Spread {
                min: 0.0,
                median: 0.0,
                max: 0.0
            }
        );
    }

    #[test]
    fn the_table_fits_a_terminal() {
        let sample = Sample {
            value: 123_456.0,
            p99_us: Some(99_999.0),
            proxies_cpu: 0.333,
            machine_cpu: 99.99,
        };
        let series = |path| Series {
            measurement: "new connections",
            unit: "per second",
            cpu_unit: "us/conn",
            path,
            samples: vec![sample],
        };
        let text = table(&[series(Path::Plain), series(Path::Mesh)]);
        assert!(text.contains("1.00x"), "{text}");
        assert!(
            text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
    }
}
