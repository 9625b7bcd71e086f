//! Last step of every path: one access-log line and the counters, from the one place where a path ends.
//!
//! A report that is dropped unfinished (its task was cut) counts as ended by drain, so no flow ends untold.

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use mesh::{Service, SpiffeId, Str, Workload};
use telemetry::access::{Access, Direction, Moment, Peer, Record, Tally};
use telemetry::metrics::{
    Connection, EndLabels, Reporter, ServiceLabels, TrafficLabels, WorkloadLabels,
};

use crate::Shared;
use crate::copy::Count;
use crate::failure::Failure;
use crate::refusals::Refusal;
use crate::shard::Shard;

/// What is known of one end of a flow.
#[derive(Debug, Clone, Default)]
pub(crate) struct End {
    pub(crate) address: Option<SocketAddr>,
    /// from the mesh state
    pub(crate) workload: Option<Arc<Workload>>,
    /// from a peer's word, used where the mesh state has nothing
    pub(crate) baggage: Option<hbone::Baggage>,
    /// proven or expected by mutual TLS
    pub(crate) identity: Option<SpiffeId>,
}

/// What is known of a flow when it opens.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) direction: Direction,
    pub(crate) source: End,
    pub(crate) destination: End,
    pub(crate) service: Option<Arc<Service>>,
    pub(crate) authority: Option<Str>,
    pub(crate) mutual_tls: bool,
}

/// One open flow, as it will be reported.
pub(crate) struct Report {
    shared: Arc<Shared>,
    record: Option<Record>,
    counters: Option<Connection>,
    since: Instant,
    up: Cell<u64>,
    down: Cell<u64>,
}

impl Report {
    /// The flow's context is known: counts it as opened.
    pub(crate) fn open(shard: &Shard, facts: &Facts, since: Instant) -> Self {
        let mut record = record(facts);
        if shard.shared.access.enabled(record.level()) {
            shard.shared.access.write(record.clone());
        }
        record.moment = Moment::Complete;
        Self {
            shared: Arc::clone(&shard.shared),
            record: Some(record),
            counters: Some(count(shard, facts)),
            since,
            up: Cell::new(0),
            down: Cell::new(0),
        }
    }

    /// The flow ended.
    pub(crate) fn close(mut self, ended: Result<(), Failure>) {
        self.end(ended.err().as_ref());
    }

    fn end(&mut self, failure: Option<&Failure>) {
        let (Some(mut record), Some(counters)) = (self.record.take(), self.counters.take()) else {
            return;
        };
        counters.close(failure.map_or(telemetry::metrics::Flag::None, Failure::flag));
        let (sent_bytes, received_bytes) = match record.direction {
            Direction::Outbound => (self.up.get(), self.down.get()),
            Direction::Inbound => (self.down.get(), self.up.get()),
        };
        record.tally = Tally {
            sent_bytes,
            received_bytes,
            duration: self.since.elapsed(),
        };
        record.error = failure.map(ToString::to_string);
        if let Some(failure) = failure {
            note(&self.shared, &record, failure);
        }
        emit(&self.shared.access, record);
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.end(Some(&Failure::Drain));
    }
}

impl Count for Report {
    fn up(&self, bytes: usize) {
        self.up.set(self.up.get() + bytes as u64);
        if let Some(counters) = &self.counters {
            counters.received(bytes as u64);
        }
    }

    fn down(&self, bytes: usize) {
        self.down.set(self.down.get() + bytes as u64);
        if let Some(counters) = &self.counters {
            counters.sent(bytes as u64);
        }
    }
}

/// The flow was refused before its context was known.
pub(crate) fn refused(
    shared: &Shared,
    direction: Direction,
    source: SocketAddr,
    destination: SocketAddr,
    failure: &Failure,
) {
    let mut record = Record::new(Moment::Failed, direction);
    record.source.address = Some(source);
    record.destination.address = Some(destination);
    record.error = Some(failure.to_string());
    note(shared, &record, failure);
    emit(&shared.access, record);
}

fn emit(access: &Access, record: Record) {
    if access.enabled(record.level()) {
        access.write(record);
    }
}

fn note(shared: &Shared, record: &Record, failure: &Failure) {
    if matches!(failure, Failure::Drain) {
        return;
    }
    shared.refusals.note(Refusal {
        at: SystemTime::now(),
        direction: record.direction.as_str(),
        source: record.source.address,
        source_identity: record.source.identity.as_ref().map(ToString::to_string),
        destination: record.destination.address,
        reason: failure.reason(),
        error: failure.to_string(),
    });
}

fn record(facts: &Facts) -> Record {
    let mut record = Record::new(Moment::Opened, facts.direction);
    // a client is known by its canonical service, whom it reached behind a gateway by the workload's name
    let (client, server) = (&facts.source, &facts.destination);
    record.source = peer(client, facts.mutual_tls, |b| b.service.clone());
    record.destination = peer(server, facts.mutual_tls, |b| {
        b.workload.as_ref().map(|(_, name)| name.clone())
    });
    record.hbone_authority = facts.authority.clone();
    record.service = facts.service.as_ref().map(|s| s.hostname.clone());
    record
}

fn known(text: &Str) -> Option<Str> {
    (!text.is_empty()).then(|| text.clone())
}

/// - `name`: what a peer's word calls it where the mesh state does not know it
fn peer(end: &End, mutual_tls: bool, name: impl FnOnce(&hbone::Baggage) -> Option<Str>) -> Peer {
    let baggage = end.baggage.as_ref();
    let workload = end.workload.as_deref();
    Peer {
        address: end.address,
        workload: workload.map_or_else(
            || baggage.and_then(name),
            |w| (!w.name().is_empty()).then(|| w.name().into()),
        ),
        namespace: workload.map_or_else(
            || baggage.and_then(|b| b.namespace.clone()),
            |w| known(&w.namespace),
        ),
        identity: end.identity.clone().filter(|_| mutual_tls),
        cluster: workload.map_or_else(
            || baggage.and_then(|b| b.cluster.clone()),
            |w| known(&w.cluster_id),
        ),
    }
}

/// Counts a flow as opened. Baggage is a peer's word, so what it may add to the metrics is bounded by itself.
fn count(shard: &Shard, facts: &Facts) -> Connection {
    let told = |end: &End| end.workload.is_none() && end.baggage.is_some();
    if !told(&facts.source) && !told(&facts.destination) {
        return shard.counters.connection(labels(facts));
    }
    shard.counters.connection_told(labels(facts), || {
        let mut proven = facts.clone();
        proven.source.baggage = None;
        proven.destination.baggage = None;
        labels(&proven)
    })
}

fn labels(facts: &Facts) -> TrafficLabels {
    let mutual_tls = facts.mutual_tls;
    let (source, destination) = (&facts.source, &facts.destination);
    TrafficLabels {
        reporter: match facts.direction {
            Direction::Outbound => Reporter::Source,
            Direction::Inbound => Reporter::Destination,
        },
        source: EndLabels {
            principal: source.identity.clone().filter(|_| mutual_tls),
            workload: workload_labels(source),
        },
        destination: EndLabels {
            principal: destination
                .workload
                .as_deref()
                .map(|w| w.identity())
                .or_else(|| destination.identity.clone()),
            workload: workload_labels(destination),
        },
        service: facts
            .service
            .as_deref()
            .map(ServiceLabels::from)
            .unwrap_or_default(),
        mutual_tls,
    }
}

fn workload_labels(end: &End) -> Option<WorkloadLabels> {
    if let Some(workload) = &end.workload {
        return Some(WorkloadLabels::from(&**workload));
    }
    let b = end.baggage.as_ref().filter(|b| !b.is_empty())?;
    let text = |t: &Option<Str>| t.clone().unwrap_or_default();
    let workload = b
        .workload
        .as_ref()
        .map(|(_, name)| name.clone())
        .unwrap_or_default();
    Some(WorkloadLabels {
        app: workload.clone(),
        workload,
        namespace: text(&b.namespace),
        canonical_service: text(&b.service),
        canonical_revision: text(&b.revision),
        version: text(&b.revision),
        cluster: text(&b.cluster),
        region: text(&b.region),
        zone: text(&b.zone),
    })
}

#[cfg(test)]
mod tests;
