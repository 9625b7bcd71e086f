//! `istio_dns_*`: questions of pods, by type, transport and who asked; of those forwarded, how long they took and what came of it.
//!
//! Counters of one data thread as those of traffic are; a pod that asks nothing has none.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mesh::Str;

use super::labels::UNKNOWN;
use super::shard::bump;
use super::text::{self, Samples};
use super::{Family, Kind, lock};

/// Most label sets of one thread; further questions are counted with nothing known.
const SERIES_MAX: usize = 10_000;
/// Upper bounds of the buckets, in seconds; a last one has no bound.
const BOUNDS: [f64; 6] = [0.0005, 0.001, 0.01, 0.1, 1.0, 5.0];

const REQUESTS: Family = Family::counter("istio_dns_requests", "DNS questions of pods so far");
const UPSTREAM: Family = Family::counter(
    "istio_dns_upstream_requests",
    "DNS questions forwarded to a resolver so far",
);
const FAILURES: Family = Family::counter(
    "istio_dns_upstream_failures",
    "Forwarded DNS questions to which no records came so far",
);
const DURATION: Family = Family {
    name: "istio_dns_upstream_request_duration_seconds",
    help: "Time until forwarded DNS questions had their answer",
    kind: Kind::Histogram,
    unit: Some("seconds"),
};
pub(super) const FAMILIES: [Family; 4] = [REQUESTS, UPSTREAM, FAILURES, DURATION];

/// How a question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DnsProtocol {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
}

impl DnsProtocol {
    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// The labels of a question.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DnsLabels {
    /// Its type in lower case, as `aaaa`.
    pub query_type: &'static str,
    /// How it came.
    pub protocol: DnsProtocol,
    /// Canonical service of the pod; empty is unknown.
    pub service: Str,
    /// Canonical revision of the pod; empty is unknown.
    pub revision: Str,
}

impl DnsLabels {
    fn pairs(&self, pair: &mut dyn FnMut(&str, &str)) {
        let known = |value: &'_ str| if value.is_empty() { UNKNOWN } else { value }.to_owned();
        pair("request_query_type", self.query_type);
        pair("request_protocol", self.protocol.as_str());
        pair("source_canonical_service", &known(&self.service));
        pair("source_canonical_revision", &known(&self.revision));
    }
}

/// The counters of one label set in one thread.
#[derive(Default)]
struct Series {
    requests: AtomicU64,
    failures: AtomicU64,
    /// of forwarded questions, by bucket; not cumulative
    took: [AtomicU64; BOUNDS.len() + 1],
    /// of all of them together, in nanoseconds
    took_ns: AtomicU64,
}

/// The counters of one label set over all threads.
#[derive(Default)]
pub(super) struct Totals {
    requests: u64,
    failures: u64,
    took: [u64; BOUNDS.len() + 1],
    took_ns: u64,
}

impl Totals {
    fn add(&mut self, series: &Series) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        self.requests += read(&series.requests);
        self.failures += read(&series.failures);
        self.took_ns += read(&series.took_ns);
        for (sum, counter) in self.took.iter_mut().zip(&series.took) {
            *sum += read(counter);
        }
    }

    fn upstream(&self) -> u64 {
        self.took.iter().sum()
    }
}

/// What a thread shares with the scraper; locked by the thread only when a label set is new to it.
#[derive(Default)]
pub(super) struct DnsState(Mutex<Vec<(Arc<DnsLabels>, Arc<Series>)>>);

impl DnsState {
    pub(super) fn add_to(&self, all: &mut BTreeMap<Arc<DnsLabels>, Totals>) {
        for (labels, series) in lock(&self.0).iter() {
            all.entry(Arc::clone(labels)).or_default().add(series);
        }
    }
}

/// The label sets that one thread knows.
#[derive(Clone, Default)]
pub(super) struct Known(Rc<RefCell<HashMap<Arc<DnsLabels>, Arc<Series>>>>);

impl Known {
    pub(super) fn question(&self, state: &DnsState, labels: DnsLabels) -> DnsQuestion {
        let mut known = self.0.borrow_mut();
        let series = match known.get(&labels) {
            Some(series) => Arc::clone(series),
            None => {
                let labels = if known.len() < SERIES_MAX {
                    labels
                } else {
                    DnsLabels {
                        service: Str::default(),
                        revision: Str::default(),
                        ..labels
                    }
                };
                let labels = Arc::new(labels);
                let entry = known.entry(Arc::clone(&labels)).or_insert_with(|| {
                    let series = Arc::new(Series::default());
                    lock(&state.0).push((labels, Arc::clone(&series)));
                    series
                });
                Arc::clone(entry)
            }
        };
        bump(&series.requests, 1);
        DnsQuestion {
            series,
            thread: PhantomData,
        }
    }
}

/// One question, counted as asked.
pub struct DnsQuestion {
    series: Arc<Series>,
    /// Counters have one writing thread.
    thread: PhantomData<Rc<()>>,
}

impl DnsQuestion {
    /// It was forwarded.
    ///
    /// - `took`: until its answer was there, or it was given up
    /// - `answered`: with records
    pub fn forwarded(self, took: Duration, answered: bool) {
        let seconds = took.as_secs_f64();
        let bucket = BOUNDS.iter().take_while(|bound| seconds > **bound).count();
        bump(&self.series.took[bucket], 1);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        bump(&self.series.took_ns, nanos);
        if !answered {
            bump(&self.series.failures, 1);
        }
    }
}

/// Writes the families, from what all threads counted.
pub(super) fn encode(out: &mut String, all: &BTreeMap<Arc<DnsLabels>, Totals>) {
    text::family(out, &REQUESTS, |samples| {
        for (labels, totals) in all {
            samples.push_with(|pair| labels.pairs(pair), totals.requests);
        }
    });
    let forwarded = || all.iter().filter(|(_, totals)| totals.upstream() > 0);
    text::family(out, &UPSTREAM, |samples| {
        for (labels, totals) in forwarded() {
            samples.push_with(|pair| labels.pairs(pair), totals.upstream());
        }
    });
    text::family(out, &FAILURES, |samples| {
        for (labels, totals) in forwarded().filter(|(_, totals)| totals.failures > 0) {
            samples.push_with(|pair| labels.pairs(pair), totals.failures);
        }
    });
    text::family(out, &DURATION, |samples| {
        for (labels, totals) in forwarded() {
            histogram(samples, labels, totals);
        }
    });
}

fn histogram(samples: &mut Samples<'_>, labels: &DnsLabels, totals: &Totals) {
    let sum = Duration::from_nanos(totals.took_ns).as_secs_f64();
    samples.push_part("_sum", |pair| labels.pairs(pair), sum);
    samples.push_part("_count", |pair| labels.pairs(pair), totals.upstream());
    let mut so_far = 0;
    for (bound, count) in BOUNDS.iter().chain([&f64::INFINITY]).zip(totals.took) {
        so_far += count;
        let le = text::Number::from(*bound).to_string();
        let with_bound = |pair: &mut dyn FnMut(&str, &str)| {
            pair("le", &le);
            labels.pairs(pair);
        };
        samples.push_part("_bucket", with_bound, so_far);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Registry;

    fn labels(query_type: &'static str, service: &str) -> DnsLabels {
        DnsLabels {
            query_type,
            protocol: DnsProtocol::Udp,
            service: service.into(),
            revision: "v1".into(),
        }
    }

    #[test]
    fn the_families_as_they_are_scraped() {
        let registry = Registry::new();
        let text = |registry: &Registry| registry.encode([]).1;
        assert!(!text(&registry).contains("dns"));
        let (here, there) = (registry.shard(), registry.shard());
        here.dns_question(labels("a", "web"));
        let ms = Duration::from_millis;
        there
            .dns_question(labels("a", "web"))
            .forwarded(ms(1), true);
        here.dns_question(labels("a", "web"))
            .forwarded(ms(6000), false);
        here.dns_question(DnsLabels {
            protocol: DnsProtocol::Tcp,
            ..labels("mx", "")
        });
        let text = text(&registry);
        let ours: Vec<_> = text.lines().filter(|l| l.contains("istio_dns")).collect();
        let web = r#"request_query_type="a",request_protocol="udp",source_canonical_service="web",source_canonical_revision="v1""#;
        let tcp = r#"request_query_type="mx",request_protocol="tcp",source_canonical_service="unknown",source_canonical_revision="v1""#;
        let duration = "istio_dns_upstream_request_duration_seconds";
        let mut wanted = vec![
            "# HELP istio_dns_requests DNS questions of pods so far (unstable).".to_owned(),
            "# TYPE istio_dns_requests counter".to_owned(),
            format!("istio_dns_requests_total{{{web}}} 3"),
            format!("istio_dns_requests_total{{{tcp}}} 1"),
            "# HELP istio_dns_upstream_requests DNS questions forwarded to a resolver so far (unstable).".to_owned(),
            "# TYPE istio_dns_upstream_requests counter".to_owned(),
            format!("istio_dns_upstream_requests_total{{{web}}} 2"),
            "# HELP istio_dns_upstream_failures Forwarded DNS questions to which no records came so far (unstable).".to_owned(),
            "# TYPE istio_dns_upstream_failures counter".to_owned(),
            format!("istio_dns_upstream_failures_total{{{web}}} 1"),
            format!("# HELP {duration} Time until forwarded DNS questions had their answer (unstable)."),
            format!("# TYPE {duration} histogram"),
            format!("# UNIT {duration} seconds"),
            format!("{duration}_sum{{{web}}} 6.001"),
            format!("{duration}_count{{{web}}} 2"),
        ];
        for (le, count) in [
            ("0.0005", 0),
            ("0.001", 1),
            ("0.01", 1),
            ("0.1", 1),
            ("1.0", 1),
            ("5.0", 1),
            ("+Inf", 2),
        ] {
            wanted.push(format!("{duration}_bucket{{le=\"{le}\",{web}}} {count}"));
        }
        assert_eq!(ours, wanted);
    }

    #[test]
    fn label_sets_are_bounded_and_nothing_is_lost() {
        let registry = Registry::new();
        let shard = registry.shard();
        for n in 0..SERIES_MAX + 7 {
            shard.dns_question(labels("a", &n.to_string()));
        }
        let text = registry.encode([]).1;
        let samples = text
            .lines()
            .filter(|l| l.starts_with("istio_dns_requests_total"));
        assert_eq!(samples.count(), SERIES_MAX + 1);
        let unknown =
            r#"source_canonical_service="unknown",source_canonical_revision="unknown"} 7"#;
        assert!(text.contains(unknown));
    }
}
