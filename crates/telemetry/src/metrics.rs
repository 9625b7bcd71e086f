//! Metrics: traffic counters kept per data thread, all else by registration, merged into OpenMetrics text when scraped.
//!
//! The text is written here and not by a metrics library: traffic series live in per-thread shards without locks and are summed only at
//! a scrape, and the rules for help texts and for families without samples are stricter than a library's. Serving HTTP and compressing
//! are left to `ztunnel`; what the numbers mean to the rooms that register them.

mod capture;
mod counters;
mod dns;
mod labels;
mod lookups;
mod process;
mod shard;
mod text;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use self::capture::{CaptureMetrics, PodState};
pub use self::counters::{Counter, Counters, Gauge};
pub use self::dns::{DnsLabels, DnsProtocol, DnsQuestion};
pub use self::labels::{EndLabels, Flag, Reporter, ServiceLabels, TrafficLabels, WorkloadLabels};
pub use self::shard::{Connection, Shard, Socket};
pub use self::text::{Number, Samples};

use self::lookups::{LOOKUPS, Lookups};
use self::shard::{ShardState, Totals};
use self::text::is_name;

/// Most families that can be registered.
const FAMILIES_MAX: usize = 256;

/// What a family measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; its samples carry `_total`.
    Counter,
    /// Any value.
    Gauge,
    /// How many values there were up to each bound; only the families built in have samples of this kind.
    Histogram,
}

/// A metric family as registered: its name is without `_total`, its help without a full stop and without a note on stability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Family {
    /// `[a-z_][a-z0-9_]*`, without `_total`.
    pub name: &'static str,
    /// One sentence without a full stop.
    pub help: &'static str,
    /// Counter or gauge.
    pub kind: Kind,
    /// What is counted, as the last word of the name says it, such as `bytes`.
    pub unit: Option<&'static str>,
}

impl Family {
    /// A counter family.
    pub const fn counter(name: &'static str, help: &'static str) -> Self {
        Self {
            name,
            help,
            kind: Kind::Counter,
            unit: None,
        }
    }

    /// A gauge family.
    pub const fn gauge(name: &'static str, help: &'static str) -> Self {
        Self {
            name,
            help,
            kind: Kind::Gauge,
            unit: None,
        }
    }

    /// The same with a unit, which the name must end with.
    pub const fn in_unit(self, unit: &'static str) -> Self {
        Self {
            unit: Some(unit),
            ..self
        }
    }
}

/// Why a family was not registered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// Not a family name, one that ends with a suffix that samples carry, or one that does not end with its unit.
    #[error("{0:?} is not a metric family name")]
    Name(&'static str),
    /// The name is in use.
    #[error("metric family {0} is already registered")]
    Duplicate(&'static str),
    /// No more families fit.
    #[error("more than {FAMILIES_MAX} metric families")]
    TooMany,
}

const OPENED: Family = Family::counter(
    "istio_tcp_connections_opened",
    "TCP connections opened so far",
);
const CLOSED: Family = Family::counter(
    "istio_tcp_connections_closed",
    "TCP connections closed so far",
);
const FAILED: Family = Family::counter(
    "istio_tcp_connections_failed",
    "TCP connections that ended with an error so far",
);
const RECEIVED: Family = Family::counter(
    "istio_tcp_received_bytes",
    "Bytes received from clients so far",
);
const SENT: Family = Family::counter("istio_tcp_sent_bytes", "Bytes sent to clients so far");
const SOCKETS: Family = Family::gauge("istio_tcp_sockets_open", "Accepted sockets that are open");
const OVERFLOW: Family = Family::counter(
    "ztunnel_traffic_series_overflow",
    "Connections counted without all of their labels because a thread has too many label sets",
);
const BUILT_IN: [Family; 8] = [
    OPENED, CLOSED, FAILED, RECEIVED, SENT, SOCKETS, OVERFLOW, LOOKUPS,
];

type Collect = Box<dyn Fn(&mut Samples<'_>) + Send + Sync>;

struct Registered {
    family: Family,
    collect: Collect,
}

#[derive(Default)]
struct Inner {
    shards: Mutex<Vec<Arc<ShardState>>>,
    families: Mutex<Vec<Arc<Registered>>>,
    lookups: Lookups,
}

/// All metrics of the process. Cheap to clone, usable from any thread.
#[derive(Clone, Default)]
pub struct Registry {
    inner: Arc<Inner>,
}

/// What is known of the pods' proxies: `workload_manager_*`.
#[derive(Debug, Clone)]
pub struct PodMetrics {
    /// Pods with a running proxy.
    pub active: Gauge,
    /// Pods whose proxy failed to start.
    pub pending: Gauge,
    /// Proxies started so far.
    pub started: Counter,
    /// Proxies stopped so far.
    pub stopped: Counter,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    /// A registry with the traffic families, and nothing else.
    pub fn new() -> Self {
        Self::default()
    }

    /// The counters of the calling thread. What it counted stays when it is dropped.
    pub fn shard(&self) -> Shard {
        let state = Arc::new(ShardState::default());
        lock(&self.inner.shards).push(Arc::clone(&state));
        Shard::new(state)
    }

    /// Registers a family whose samples `collect` gives at each scrape. It runs on the scraping thread and must not block.
    ///
    /// A family with labels and no samples is left out of the text. Errors: [`RegisterError`].
    pub fn register(
        &self,
        family: Family,
        collect: impl Fn(&mut Samples<'_>) + Send + Sync + 'static,
    ) -> Result<(), RegisterError> {
        let suffixed = ["_total", "_created", "_count", "_sum", "_bucket", "_info"]
            .iter()
            .any(|end| family.name.ends_with(end));
        // Two names of the ecosystem end like that and are gauges or counters all the same.
        let fits_unit = family.unit.is_none_or(|unit| {
            let rest = family.name.strip_suffix(unit);
            rest.is_some_and(|rest| rest.ends_with('_'))
        });
        if !is_name(family.name)
            || !fits_unit
            || (suffixed
                && !family.name.starts_with("tokio_")
                && !family.name.starts_with("workload_manager_"))
        {
            return Err(RegisterError::Name(family.name));
        }
        let mut families = lock(&self.inner.families);
        if families.len() >= FAMILIES_MAX {
            return Err(RegisterError::TooMany);
        }
        let taken = |name| families.iter().any(|known| known.family.name == name);
        let built_in = || BUILT_IN.iter().chain(&dns::FAMILIES);
        if taken(family.name) || built_in().any(|known| known.name == family.name) {
            return Err(RegisterError::Duplicate(family.name));
        }
        families.push(Arc::new(Registered {
            family,
            collect: Box::new(collect),
        }));
        Ok(())
    }

    /// Registers a counter without labels. Errors: [`RegisterError`].
    pub fn counter(
        &self,
        name: &'static str,
        help: &'static str,
    ) -> Result<Counter, RegisterError> {
        let counter = Counter::default();
        let read = counter.clone();
        self.register(Family::counter(name, help), move |samples| {
            samples.push(&[], read.value())
        })?;
        Ok(counter)
    }

    /// Registers a gauge without labels. Errors: [`RegisterError`].
    pub fn gauge(&self, name: &'static str, help: &'static str) -> Result<Gauge, RegisterError> {
        let gauge = Gauge::default();
        let read = gauge.clone();
        self.register(Family::gauge(name, help), move |samples| {
            samples.push(&[], read.value())
        })?;
        Ok(gauge)
    }

    /// Registers a counter with one label. Errors: [`RegisterError`].
    pub fn counters(
        &self,
        name: &'static str,
        help: &'static str,
        label: &'static str,
    ) -> Result<Counters, RegisterError> {
        let counters = Counters::default();
        let read = counters.clone();
        let collect = move |samples: &mut Samples<'_>| {
            for (value, count) in read.values() {
                samples.push(&[(label, &value)], count);
            }
        };
        self.register(Family::counter(name, help), collect)?;
        Ok(counters)
    }

    /// Counts a connection of `source` to an endpoint that is known as `hostname` only: `istio_on_demand_dns`.
    pub fn count_lookup(&self, source: &mesh::Workload, hostname: &str) {
        self.inner.lookups.count(source, hostname);
    }

    /// Registers `workload_manager_*`. Errors: [`RegisterError`].
    pub fn pods(&self) -> Result<PodMetrics, RegisterError> {
        Ok(PodMetrics {
            active: self.gauge(
                "workload_manager_active_proxy_count",
                "Pods with a running proxy",
            )?,
            pending: self.gauge(
                "workload_manager_pending_proxy_count",
                "Pods whose proxy failed to start",
            )?,
            started: self.counter("workload_manager_proxies_started", "Proxies started so far")?,
            stopped: self.counter("workload_manager_proxies_stopped", "Proxies stopped so far")?,
        })
    }

    /// Registers `istio_build` and `process_*`. Errors: [`RegisterError`].
    ///
    /// - `tag`: the version shown; empty is `unknown`
    pub fn process(&self, tag: &str) -> Result<(), RegisterError> {
        let tag = if tag.is_empty() { labels::UNKNOWN } else { tag }.to_owned();
        self.register(
            Family::gauge("istio_build", "Component and version of this build"),
            move |samples| {
                samples.push(&[("component", "ztunnel"), ("tag", &tag)], 1_u64);
            },
        )?;
        self.register(
            Family::gauge("process_open_fds", "Number of open file descriptors"),
            |samples| {
                if let Some(open) = process::open_fds() {
                    samples.push(&[], open);
                }
            },
        )?;
        self.register(
            Family::gauge("process_max_fds", "Maximum number of open file descriptors"),
            |samples| {
                if let Some(max) = process::max_fds() {
                    samples.push(&[], max);
                }
            },
        )
    }

    /// All metrics as OpenMetrics text, and the content type for the given `Accept` entries.
    pub fn encode<'a>(&self, accept: impl IntoIterator<Item = &'a str>) -> (&'static str, String) {
        let shards = lock(&self.inner.shards).clone();
        let families = lock(&self.inner.families).clone();
        let mut out = String::new();
        traffic(&mut out, &shards);
        dns_questions(&mut out, &shards);
        text::family(&mut out, &LOOKUPS, |samples| {
            self.inner.lookups.collect(samples);
        });
        for registered in &families {
            text::family(&mut out, &registered.family, |samples| {
                (registered.collect)(samples)
            });
        }
        out.push_str("# EOF\n");
        (text::content_type(accept), out)
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry")
            .field("shards", &lock(&self.inner.shards).len())
            .finish_non_exhaustive()
    }
}

/// The DNS families, summed over all threads.
fn dns_questions(out: &mut String, shards: &[Arc<ShardState>]) {
    let mut all = BTreeMap::new();
    for shard in shards {
        shard.dns.add_to(&mut all);
    }
    dns::encode(out, &all);
}

/// The traffic families, summed over all threads.
fn traffic(out: &mut String, shards: &[Arc<ShardState>]) {
    let mut series: BTreeMap<Arc<TrafficLabels>, Totals> = BTreeMap::new();
    let mut sockets: [Option<i64>; 2] = [None; 2];
    let mut overflow = 0;
    for shard in shards {
        shard.add_to(&mut series);
        for (sum, open) in sockets.iter_mut().zip(shard.sockets()) {
            *sum = open.map_or(*sum, |open| Some(sum.unwrap_or(0) + open));
        }
        overflow += shard.overflow();
    }
    for (family, value) in [
        (&OPENED, (|totals| totals.opened) as fn(&Totals) -> u64),
        (&RECEIVED, |totals| totals.received),
        (&SENT, |totals| totals.sent),
    ] {
        text::family(out, family, |samples| {
            for (labels, totals) in &series {
                samples.push_with(|pairs| labels.pairs(Flag::None, pairs), value(totals));
            }
        });
    }
    for (family, skip) in [(&CLOSED, None), (&FAILED, Some(Flag::None))] {
        text::family(out, family, |samples| {
            for (labels, totals) in &series {
                for (flag, closed) in totals.closed() {
                    if closed > 0 && Some(flag) != skip {
                        samples.push_with(|pairs| labels.pairs(flag, pairs), closed);
                    }
                }
            }
        });
    }
    text::family(out, &SOCKETS, |samples| {
        for (reporter, open) in Reporter::ALL.iter().zip(sockets) {
            if let Some(open) = open {
                samples.push(&[("reporter", reporter.as_str())], open);
            }
        }
    });
    text::family(out, &OVERFLOW, |samples| samples.push(&[], overflow));
}
