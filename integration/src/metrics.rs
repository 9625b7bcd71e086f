//! Reads an OpenMetrics text as far as the tests ask for it: samples with their labels and values.

use std::collections::BTreeMap;

/// One sample line.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// name as exposed
    pub name: String,
    /// labels
    pub labels: BTreeMap<String, String>,
    /// label names in the order in which they stand
    pub order: Vec<String>,
    /// value
    pub value: f64,
}

/// A scrape.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics {
    /// all samples, in order
    pub samples: Vec<Sample>,
}

impl Metrics {
    /// Reads the text; comment lines and lines that are no samples are left out.
    pub fn parse(text: &str) -> Self {
        Self {
            samples: text.lines().filter_map(sample).collect(),
        }
    }

    /// Sum of all samples of that name whose labels include `labels`.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.select(name, labels).map(|sample| sample.value).sum()
    }

    /// The samples of that name whose labels include `labels`.
    pub fn select<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&str, &str)],
    ) -> impl Iterator<Item = &'a Sample> {
        let holds = |sample: &Sample| {
            labels
                .iter()
                .all(|(key, value)| sample.labels.get(*key).is_some_and(|found| found == value))
        };
        self.samples
            .iter()
            .filter(move |sample| sample.name == name && holds(sample))
    }

    /// The value of a sample without labels.
    pub fn value(&self, name: &str) -> Option<f64> {
        self.samples
            .iter()
            .find(|sample| sample.name == name)
            .map(|sample| sample.value)
    }
}

fn sample(line: &str) -> Option<Sample> {
    if line.starts_with('#') {
        return None;
    }
    let (head, value) = match line.find('{') {
        Some(_) => {
            let (head, value) = line.rsplit_once('}')?;
            (head, value.trim())
        }
        None => line.split_once(' ')?,
    };
    let (name, labels) = head.split_once('{').unwrap_or((head, ""));
    let pairs = labels_of(labels);
    Some(Sample {
        name: name.to_owned(),
        order: pairs.iter().map(|(key, _)| key.clone()).collect(),
        labels: pairs.into_iter().collect(),
        value: value.split(' ').next()?.parse().ok()?,
    })
}

fn labels_of(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((key, after)) = rest.split_once("=\"") {
        let Some(end) = after.find('"') else { break };
        found.push((
            key.trim_start_matches(',').to_owned(),
            after[..end].to_owned(),
        ));
        rest = &after[end + 1..];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::Metrics;

    #[test]
    fn sums_what_matches() {
        let text = "# TYPE a counter\na_total{x=\"1\",y=\"q\"} 3\na_total{x=\"2\",y=\"q\"} 4\nplain 5\n# EOF\n";
        let metrics = Metrics::parse(text);
        assert_eq!(metrics.sum("a_total", &[("y", "q")]), 7.0);
        assert_eq!(metrics.sum("a_total", &[("x", "2")]), 4.0);
        assert_eq!(metrics.value("plain"), Some(5.0));
        assert_eq!(metrics.samples[0].order, ["x", "y"]);
    }
}
