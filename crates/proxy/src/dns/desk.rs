//! One question of a pod, from its bytes to those of its answer: the mesh's, one that is kept, a resolver's, or an error.
//!
//! What can be said at once is said without a task. Names of the mesh are decided in `mesh::dns`; sockets are left to `udp` and `tcp`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh::dns::{Answer, Family, Question, Zone, answer};
use mesh::{Index, Str, Workload};
use telemetry::metrics::{DnsLabels, DnsProtocol, DnsQuestion};
use tracing::Level;

use super::cache::Key;
use super::forward::Trouble;
use super::kinds::kind_name;
use super::memory::{Seat, fetch, fetch_alone};
use super::message::{Domain, Parsed, Query, Transport, parse};
use super::relay::{Summary, pass_on, summary};
use super::wire::{Code, Header, code_text, kind};
use crate::identify::local_workload;
use crate::pod::Pod;
use crate::shard::Shard;

/// What shows who asked where that is not known.
const UNKNOWN: &str = "unknown";
/// The target of the DNS log, as filters name it.
const TARGET: &str = "dns";

/// How a question came, and for whom it was meant.
#[derive(Debug, Clone, Copy)]
pub(super) struct Via {
    pub(super) transport: Transport,
    /// the resolver that the application asked; none = that is not known, the node's are as good
    pub(super) resolver: Option<SocketAddr>,
}

/// What can be said to a message without waiting.
pub(super) enum AtOnce {
    /// This.
    Say(Vec<u8>),
    /// Nothing, ever.
    Ignore,
    /// Not yet known: [`Desk::later`].
    Wait,
}

/// Answers the questions of one pod on one thread.
#[derive(Clone)]
pub(super) struct Desk {
    pub(super) shard: Rc<Shard>,
    pub(super) pod: Arc<Pod>,
}

impl Desk {
    /// What can be said now.
    pub(super) fn at_once(&self, message: &[u8], via: Via) -> AtOnce {
        let query = match parse(message) {
            Parsed::Query(query) => query,
            Parsed::Refused(answer) => return AtOnce::Say(answer),
            Parsed::Noise => return AtOnce::Ignore,
        };
        if matches!(query.kind(), kind::AXFR | kind::IXFR) {
            // a transfer is many messages, and none of a name
            return AtOnce::Say(query.error(Code::Refused));
        }
        let index = self.shard.shared.state();
        let pod = &*self.pod;
        let client = index.local_workload(&pod.namespace, &pod.name, &pod.service_account);
        let known = client.and_then(|client| self.known(&index, client, &query, via));
        known.map_or(AtOnce::Wait, AtOnce::Say)
    }

    /// What is said in the end to a message that had to wait; none = the pod is cut off, so nobody hears it.
    pub(super) async fn later(&self, message: &[u8], via: Via) -> Option<Vec<u8>> {
        let Parsed::Query(query) = parse(message) else {
            // it would not have had to wait
            return None;
        };
        let Ok(client) = local_workload(&self.shard.shared, &self.pod).await else {
            self.count(None, &query, via);
            return Some(query.error(Code::ServerFailure));
        };
        let index = self.shard.shared.state();
        if let Some(answer) = self.known(&index, &client, &query, via) {
            return Some(answer);
        }
        drop(index);
        self.forward(&client, &query, via).await
    }

    /// [`Desk::at_once`], then [`Desk::later`]; none = nothing is to be said.
    pub(super) async fn answer(&self, message: &[u8], via: Via) -> Option<Vec<u8>> {
        match self.at_once(message, via) {
            AtOnce::Say(answer) => Some(answer),
            AtOnce::Ignore => None,
            AtOnce::Wait => match Seat::take(&self.pod) {
                Some(_seat) => self.later(message, via).await,
                None => {
                    self.shard.shared.refusals.shed_question(&self.pod);
                    match parse(message) {
                        Parsed::Query(query) => Some(query.error(Code::ServerFailure)),
                        Parsed::Refused(_) | Parsed::Noise => None,
                    }
                }
            },
        }
    }

    /// What the mesh says, or a resolver said a while ago.
    fn known(
        &self,
        index: &Index,
        client: &Workload,
        query: &Query<'_>,
        via: Via,
    ) -> Option<Vec<u8>> {
        if let Some((answer, result, endpoints)) = self.local(index, client, query, via) {
            self.count(Some(client), query, via);
            log(client, query, result, endpoints);
            return Some(answer);
        }
        if !query.is_plain() {
            return None;
        }
        let started = Instant::now();
        let (answer, age) = self.pod.dns.find(&key(query, via))?;
        let count = self.count(Some(client), query, via);
        told(client, query, count, started, &summary(&answer));
        let limit = query.limit(via.transport);
        Some(pass_on(query, &answer, age, limit))
    }

    /// What the mesh says, how the log puts it, and the number of addresses.
    fn local(
        &self,
        index: &Index,
        client: &Workload,
        query: &Query<'_>,
        via: Via,
    ) -> Option<(Vec<u8>, &'static str, usize)> {
        let host = query.host()?;
        let limit = query.limit(via.transport);
        let config = &self.shard.shared.config;
        let family = match query.kind() {
            kind::A => Family::V4,
            _ => Family::V6,
        };
        if is_localhost(&host) {
            let own = match family {
                Family::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
                Family::V6 if config.ipv4_only => {
                    return Some((query.empty(limit), "no records", 0));
                }
                Family::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
            };
            return Some((query.addresses(None, &[own], limit), "success", 1));
        }
        let zone = Zone {
            cluster_domain: &config.dns.cluster_domain,
            preferred_namespace: config.dns.preferred_namespace.as_deref(),
            search: config.dns.search.as_deref(),
            ipv6: !config.ipv4_only,
        };
        let question = Question {
            client,
            name: &host,
            family,
            room: query.room(limit),
        };
        match answer(index, &zone, &question, &mut *self.shard.rng.borrow_mut()) {
            Answer::Forward => None,
            Answer::Empty(why) => Some((query.empty(limit), why.text(), 0)),
            Answer::Records {
                cname, addresses, ..
            } => {
                let answer = query.addresses(cname.as_deref(), &addresses, limit);
                Some((answer, "success", addresses.len()))
            }
        }
    }

    /// Asks a resolver.
    async fn forward(&self, client: &Workload, query: &Query<'_>, via: Via) -> Option<Vec<u8>> {
        let started = Instant::now();
        let count = self.count(Some(client), query, via);
        let outcome = if query.is_plain() {
            fetch(&self.pod, key(query, via), query.canonical()).await
        } else {
            fetch_alone(&self.pod, via.resolver, query.message).await
        };
        let answer = match outcome {
            Ok(answer) if via.transport == Transport::Udp || !is_cut(&answer) => {
                told(client, query, count, started, &summary(&answer));
                pass_on(query, &answer, Duration::ZERO, query.limit(via.transport))
            }
            Ok(_) => failed(client, query, count, started, "the answer is cut off"),
            Err(Trouble::Leaving) => return None,
            Err(trouble) => {
                if matches!(trouble, Trouble::Busy) {
                    self.shard.shared.refusals.shed_question(&self.pod);
                }
                failed(client, query, count, started, &trouble.to_string())
            }
        };
        Some(answer)
    }

    fn count(&self, client: Option<&Workload>, query: &Query<'_>, via: Via) -> DnsQuestion {
        let of = |part: fn(&Workload) -> &Str| client.map(part).cloned().unwrap_or_default();
        self.shard.counters.dns_question(DnsLabels {
            query_type: kind_name(query.kind()).1,
            protocol: match via.transport {
                Transport::Udp => DnsProtocol::Udp,
                Transport::Tcp => DnsProtocol::Tcp,
            },
            service: of(|client| &client.canonical_name),
            revision: of(|client| &client.canonical_revision),
        })
    }
}

fn key(query: &Query<'_>, via: Via) -> Key {
    Key {
        resolver: via.resolver,
        essence: query.essence(),
    }
}

/// Names of the own machine, wherever the resolver is (RFC 6761, section 6.3).
fn is_localhost(host: &str) -> bool {
    host.strip_suffix("localhost")
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn is_cut(answer: &[u8]) -> bool {
    Header::read(answer).is_none_or(|header| header.is_truncated())
}

/// A resolver answered: counts and logs it.
fn told(
    client: &Workload,
    query: &Query<'_>,
    count: DnsQuestion,
    started: Instant,
    summary: &Summary,
) {
    let is_good = summary.code == 0 && summary.answers > 0;
    count.forwarded(started.elapsed(), is_good);
    if is_good {
        log(client, query, "forwarded", usize::from(summary.answers));
    } else if is_logged() {
        let cause = match summary.code {
            0 => "no records",
            code => code_text(code),
        };
        log(client, query, &failing(cause), summary.answers.into());
    }
}

/// No resolver answered: counts, logs, says so.
fn failed(
    client: &Workload,
    query: &Query<'_>,
    count: DnsQuestion,
    started: Instant,
    cause: &str,
) -> Vec<u8> {
    count.forwarded(started.elapsed(), false);
    if is_logged() {
        log(client, query, &failing(cause), 0);
    }
    query.error(Code::ServerFailure)
}

fn failing(cause: &str) -> String {
    format!("forwarding failed ({cause})")
}

fn is_logged() -> bool {
    tracing::enabled!(target: TARGET, Level::DEBUG)
}

fn log(client: &Workload, query: &Query<'_>, result: &str, endpoints: usize) {
    let shown = |text: &'_ str| if text.is_empty() { UNKNOWN } else { text }.to_owned();
    if !is_logged() {
        return;
    }
    tracing::event!(
        target: TARGET,
        Level::DEBUG,
        {
            src.workload = shown(client.name()),
            src.namespace = shown(&client.namespace),
            query = kind_name(query.kind()).0,
            domain = Domain(query.name()).to_string(),
            result = result,
            endpoints = endpoints,
        }
    );
}
