//! `istio_on_demand_dns`: connections to endpoints that are known by host name only, by source and name.

use std::collections::BTreeMap;
use std::sync::Mutex;

use mesh::{SpiffeId, Str, Workload};

use super::labels::{UNKNOWN, WorkloadLabels, source_pairs};
use super::text::Samples;
use super::{Family, lock};

pub(super) const LOOKUPS: Family = Family::counter(
    "istio_on_demand_dns",
    "Connections to endpoints given by host name so far",
);

/// Most label sets, at about 1 KiB each. Further ones are counted together, with nothing known.
const SERIES_MAX: usize = 10_000;

#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Labels {
    source: WorkloadLabels,
    principal: Option<SpiffeId>,
    hostname: Str,
}

/// The counts. Behind a lock, as what is counted waits for a resolver anyway.
#[derive(Default)]
pub(super) struct Lookups(Mutex<BTreeMap<Labels, u64>>);

impl Lookups {
    pub(super) fn count(&self, source: &Workload, hostname: &str) {
        let labels = Labels {
            source: WorkloadLabels::from(source),
            principal: Some(source.identity()),
            hostname: hostname.into(),
        };
        let mut counts = lock(&self.0);
        let fits = counts.len() < SERIES_MAX || counts.contains_key(&labels);
        let labels = if fits { labels } else { Labels::default() };
        *counts.entry(labels).or_default() += 1;
    }

    pub(super) fn collect(&self, samples: &mut Samples<'_>) {
        // a copy, so that writing text holds up nobody
        let counts = lock(&self.0).clone();
        for (labels, count) in &counts {
            samples.push_with(|pair| labels.pairs(pair), *count);
        }
    }
}

impl Labels {
    fn pairs(&self, pair: &mut dyn FnMut(&str, &str)) {
        let mut pair =
            |name: &str, value: &str| pair(name, if value.is_empty() { UNKNOWN } else { value });
        let principal = self.principal.as_ref().map(ToString::to_string);
        source_pairs(&self.source, &principal.unwrap_or_default(), &mut pair);
        pair("hostname", &self.hostname);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_sets_are_bounded() {
        let lookups = Lookups::default();
        for n in 0..SERIES_MAX + 5 {
            lookups.count(&Workload::default(), &format!("host-{n}"));
        }
        lookups.count(&Workload::default(), "host-0");
        let counts = lock(&lookups.0);
        assert_eq!(counts.len(), SERIES_MAX + 1);
        assert_eq!(counts.get(&Labels::default()), Some(&5));
        assert_eq!(counts.values().sum::<u64>(), SERIES_MAX as u64 + 6);
    }
}
