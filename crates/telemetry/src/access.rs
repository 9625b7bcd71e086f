//! The access log: one line when a connection opens (debug), one when it ends.
//!
//! Whoever ends a connection moves a [`Record`] into the queue; keys, their order and the shapes are made here, on the writer thread.
//! What the facts of a connection are is left to `proxy`.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh::{SpiffeId, Str};
use tracing::Level;

use crate::log::{Fields, Format, Item, Shared, Weigh, level_name, push, stamp};

/// The target of the access log, as filters name it.
pub const TARGET: &str = "access";

/// Longest text of a record that a peer can have chosen, in bytes; the rest is cut.
const TEXT_BYTES_MAX: usize = 4096;

/// Which moment of a connection a record tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Its context is known, nothing is dialled yet. Level debug.
    Opened,
    /// It ended after it was opened. Level info, error with [`Record::error`].
    Complete,
    /// It was refused before its context was known. Level warn; only addresses, direction and error are shown.
    Failed,
}

/// Seen from the reporting workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From a pod of ours.
    Outbound,
    /// To a pod of ours.
    Inbound,
}

impl Direction {
    /// The word in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// What is known of one end. What is not known is left out of the line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    /// Client: its address. Destination: the next hop dialled, the tunnel's local address, or the original destination.
    pub address: Option<SocketAddr>,
    /// Pod name, or the canonical service when only baggage is known.
    pub workload: Option<Str>,
    /// Namespace.
    pub namespace: Option<Str>,
    /// Only when the connection is mutual TLS.
    pub identity: Option<SpiffeId>,
    /// Cluster id.
    pub cluster: Option<Str>,
}

impl Peer {
    /// An end whose workload is known from the mesh.
    pub fn of(workload: &mesh::Workload, address: SocketAddr, identity: Option<SpiffeId>) -> Self {
        Self {
            address: Some(address),
            workload: Some(workload.name().into()),
            namespace: Some(workload.namespace.clone()),
            identity,
            cluster: Some(workload.cluster_id.clone()),
        }
    }
}

/// What moved, seen from the reporting workload.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Bytes sent by the reporting workload: outbound client to server, inbound server to client.
    pub sent_bytes: u64,
    /// Bytes of the other direction.
    pub received_bytes: u64,
    /// From accept to end.
    pub duration: Duration,
}

/// One line of the access log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Which moment.
    pub moment: Moment,
    /// Which side reports.
    pub direction: Direction,
    /// The client.
    pub source: Peer,
    /// The server.
    pub destination: Peer,
    /// Authority of the CONNECT, sent or received; `None` for plain TCP.
    pub hbone_authority: Option<Str>,
    /// Hostname of the Service.
    pub service: Option<Str>,
    /// Shown for [`Moment::Complete`] only.
    pub tally: Tally,
    /// Why it ended early.
    pub error: Option<String>,
}

impl Record {
    /// A record with nothing known yet.
    pub fn new(moment: Moment, direction: Direction) -> Self {
        Self {
            moment,
            direction,
            source: Peer::default(),
            destination: Peer::default(),
            hbone_authority: None,
            service: None,
            tally: Tally::default(),
            error: None,
        }
    }

    /// The level this record is logged at.
    pub fn level(&self) -> Level {
        match (self.moment, &self.error) {
            (Moment::Opened, _) => Level::DEBUG,
            (Moment::Complete, None) => Level::INFO,
            (Moment::Complete, Some(_)) => Level::ERROR,
            (Moment::Failed, _) => Level::WARN,
        }
    }

    fn message(&self) -> &'static str {
        match self.moment {
            Moment::Opened => "connection opened",
            Moment::Complete => "connection complete",
            Moment::Failed => "connection failed",
        }
    }

    /// All keys in their order: the one place.
    fn write_fields(&self, out: &mut Fields<'_>) {
        let known = self.moment != Moment::Failed;
        display(out, "src.addr", self.source.address.as_ref());
        if known {
            write_peer(out, &SOURCE_KEYS, &self.source);
        }
        display(out, "dst.addr", self.destination.address.as_ref());
        if known {
            display(
                out,
                "dst.hbone_addr",
                self.hbone_authority.as_deref().map(shorten).as_ref(),
            );
            string(out, "dst.service", self.service.as_deref());
            write_peer(out, &DESTINATION_KEYS, &self.destination);
        }
        out.string("direction", self.direction.as_str());
        if self.moment == Moment::Complete {
            out.native("bytes_sent", format_args!("{}", self.tally.sent_bytes));
            out.native("bytes_recv", format_args!("{}", self.tally.received_bytes));
            out.string(
                "duration",
                &format!("{}ms", self.tally.duration.as_millis()),
            );
        }
        if self.moment != Moment::Opened {
            string(out, "error", self.error.as_deref());
        }
    }
}

/// Keys of one end after its address: workload, namespace, identity, cluster.
type PeerKeys = [&'static str; 4];
const SOURCE_KEYS: PeerKeys = [
    "src.workload",
    "src.namespace",
    "src.identity",
    "src.cluster",
];
const DESTINATION_KEYS: PeerKeys = [
    "dst.workload",
    "dst.namespace",
    "dst.identity",
    "dst.cluster",
];

fn write_peer(out: &mut Fields<'_>, keys: &PeerKeys, peer: &Peer) {
    string(out, keys[0], peer.workload.as_deref());
    string(out, keys[1], peer.namespace.as_deref());
    string(
        out,
        keys[2],
        peer.identity.as_ref().map(ToString::to_string).as_deref(),
    );
    string(out, keys[3], peer.cluster.as_deref());
}

fn display(out: &mut Fields<'_>, key: &str, value: Option<&impl fmt::Display>) {
    if let Some(value) = value {
        out.display(key, format_args!("{value}"));
    }
}

fn string(out: &mut Fields<'_>, key: &str, value: Option<&str>) {
    if let Some(value) = value.filter(|value| !value.is_empty()) {
        out.string(key, shorten(value));
    }
}

fn shorten(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_BYTES_MAX)]
}

/// Where records go. Cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct Access {
    shared: Arc<Shared>,
}

impl Access {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Whether a record of this level would be written: one relaxed load, to be asked before a record is put together.
    pub fn enabled(&self, level: Level) -> bool {
        self.shared.access_enabled(level)
    }

    /// Queues the record if the filter lets its level through. Waits while the queue is full.
    pub fn write(&self, record: Record) {
        if self.enabled(record.level()) {
            self.shared.queue.push(Item::Access(Entry {
                at: SystemTime::now(),
                record,
            }));
        }
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Access")
    }
}

/// A record and its moment, on the way to the writer.
pub(crate) struct Entry {
    at: SystemTime,
    record: Record,
}

impl Weigh for Entry {
    fn weight(&self) -> usize {
        self.record.error.as_ref().map_or(0, String::capacity)
            + self.record.hbone_authority.as_deref().map_or(0, str::len)
    }
}

impl Entry {
    /// Appends the line with its line end.
    pub(crate) fn write(&self, format: Format, out: &mut String) {
        let (level, message) = (level_name(self.record.level()), self.record.message());
        match format {
            Format::Plain => {
                stamp(out, self.at);
                push(out, format_args!("\t{level}\t{TARGET}\t{message}\t"));
                self.record
                    .write_fields(&mut Fields::new(format, out, false));
                out.push('\n');
            }
            Format::Json => {
                push(out, format_args!("{{\"level\":\"{level}\",\"time\":\""));
                stamp(out, self.at);
                push(
                    out,
                    format_args!("\",\"scope\":\"{TARGET}\",\"message\":\"{message}\""),
                );
                self.record
                    .write_fields(&mut Fields::new(format, out, true));
                out.push_str("}\n");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    fn line(format: Format, at_micros: u64, record: Record) -> String {
        let mut out = String::new();
        Entry {
            at: UNIX_EPOCH + Duration::from_micros(at_micros),
            record,
        }
        .write(format, &mut out);
        out
    }

    fn some(text: &str) -> Option<Str> {
        Some(Str::from(text))
    }

    fn peer(address: &str, name: &str, account: &str) -> Peer {
        Peer {
            address: Some(address.parse().unwrap()),
            workload: some(name),
            namespace: some("shop"),
            identity: Some(
                format!("spiffe://cluster.local/ns/shop/sa/{account}")
                    .parse()
                    .unwrap(),
            ),
            cluster: some("c1"),
        }
    }

    fn complete() -> Record {
        Record {
            source: peer("10.1.0.9:40312", "web-0", "web"),
            destination: peer("10.1.0.7:15008", "cart-0", "cart"),
            hbone_authority: some("10.1.0.7:8080"),
            service: some("cart.shop.svc.cluster.local"),
            tally: Tally {
                sent_bytes: 84,
                received_bytes: 1210,
                duration: Duration::from_micros(7_999),
            },
            ..Record::new(Moment::Complete, Direction::Outbound)
        }
    }

    const AT: u64 = 1_772_446_272_000_123;

    #[test]
    fn complete_plain() {
        assert_eq!(
            line(Format::Plain, AT, complete()),
            "2026-03-02T10:11:12.000123Z\tinfo\taccess\tconnection complete\tsrc.addr=10.1.0.9:40312 src.workload=\"web-0\" \
             src.namespace=\"shop\" src.identity=\"spiffe://cluster.local/ns/shop/sa/web\" src.cluster=\"c1\" dst.addr=10.1.0.7:15008 \
             dst.hbone_addr=10.1.0.7:8080 dst.service=\"cart.shop.svc.cluster.local\" dst.workload=\"cart-0\" dst.namespace=\"shop\" \
             dst.identity=\"spiffe://cluster.local/ns/shop/sa/cart\" dst.cluster=\"c1\" direction=\"outbound\" bytes_sent=84 \
             bytes_recv=1210 duration=\"7ms\"\n"
        );
    }

    #[test]
    fn complete_json() {
        assert_eq!(
            line(Format::Json, AT, complete()),
            "{\"level\":\"info\",\"time\":\"2026-03-02T10:11:12.000123Z\",\"scope\":\"access\",\"message\":\"connection complete\",\
             \"src.addr\":\"10.1.0.9:40312\",\"src.workload\":\"web-0\",\"src.namespace\":\"shop\",\
             \"src.identity\":\"spiffe://cluster.local/ns/shop/sa/web\",\"src.cluster\":\"c1\",\"dst.addr\":\"10.1.0.7:15008\",\
             \"dst.hbone_addr\":\"10.1.0.7:8080\",\"dst.service\":\"cart.shop.svc.cluster.local\",\"dst.workload\":\"cart-0\",\
             \"dst.namespace\":\"shop\",\"dst.identity\":\"spiffe://cluster.local/ns/shop/sa/cart\",\"dst.cluster\":\"c1\",\
             \"direction\":\"outbound\",\"bytes_sent\":84,\"bytes_recv\":1210,\"duration\":\"7ms\"}\n"
        );
    }

    #[test]
    fn complete_with_error_json() {
        let record = Record {
            source: Peer {
                address: Some("10.1.0.9:40316".parse().unwrap()),
                workload: some("web-0"),
                namespace: some("shop"),
                ..Peer::default()
            },
            destination: Peer {
                address: Some("10.1.0.8:9000".parse().unwrap()),
                ..Peer::default()
            },
            error: Some(
                "connection closed due to policy rejection: allow policies exist, but none allowed"
                    .into(),
            ),
            ..Record::new(Moment::Complete, Direction::Inbound)
        };
        assert_eq!(
            line(Format::Json, 1_772_446_274_000_789, record),
            "{\"level\":\"error\",\"time\":\"2026-03-02T10:11:14.000789Z\",\"scope\":\"access\",\"message\":\"connection complete\",\
             \"src.addr\":\"10.1.0.9:40316\",\"src.workload\":\"web-0\",\"src.namespace\":\"shop\",\"dst.addr\":\"10.1.0.8:9000\",\
             \"direction\":\"inbound\",\"bytes_sent\":0,\"bytes_recv\":0,\"duration\":\"0ms\",\
             \"error\":\"connection closed due to policy rejection: allow policies exist, but none allowed\"}\n"
        );
    }

    #[test]
    fn failed_shows_addresses_direction_and_error_only() {
        let record = Record {
            source: peer("10.1.0.9:40314", "web-0", "web"),
            destination: peer("10.2.0.99:80", "cart-0", "cart"),
            hbone_authority: some("x:1"),
            service: some("s"),
            error: Some("no healthy upstream: 10.2.0.99:80".into()),
            ..Record::new(Moment::Failed, Direction::Outbound)
        };
        assert_eq!(
            line(Format::Plain, 1_772_446_273_000_456, record),
            "2026-03-02T10:11:13.000456Z\twarn\taccess\tconnection failed\tsrc.addr=10.1.0.9:40314 dst.addr=10.2.0.99:80 \
             direction=\"outbound\" error=\"no healthy upstream: 10.2.0.99:80\"\n"
        );
    }

    #[test]
    fn opened_has_neither_tally_nor_error() {
        let record = Record {
            error: Some("x".into()),
            moment: Moment::Opened,
            ..complete()
        };
        let line = line(Format::Plain, AT, record);
        assert!(
            line.contains("\tdebug\taccess\tconnection opened\t")
                && line.ends_with("direction=\"outbound\"\n"),
            "{line}"
        );
    }

    #[test]
    fn hostile_text_stays_in_its_field() {
        let record = Record {
            hbone_authority: some("a:1\n2026\tinfo"),
            error: Some(format!("bad \"x\"\n{}", "é".repeat(TEXT_BYTES_MAX))),
            ..complete()
        };
        let plain = line(Format::Plain, AT, record.clone());
        assert_eq!(
            (plain.matches('\n').count(), plain.matches('\t').count()),
            (1, 4)
        );
        assert!(plain.len() < TEXT_BYTES_MAX + 1000);
        let json: serde_json::Value =
            serde_json::from_str(&line(Format::Json, AT, record)).unwrap();
        assert_eq!(json["dst.hbone_addr"], "a:1\n2026\tinfo");
    }

    #[test]
    fn levels() {
        let level = |moment, error: Option<&str>| {
            Record {
                error: error.map(Into::into),
                ..Record::new(moment, Direction::Inbound)
            }
            .level()
        };
        assert_eq!(level(Moment::Opened, None), Level::DEBUG);
        assert_eq!(level(Moment::Complete, None), Level::INFO);
        assert_eq!(level(Moment::Complete, Some("x")), Level::ERROR);
        assert_eq!(level(Moment::Failed, Some("x")), Level::WARN);
    }
}
