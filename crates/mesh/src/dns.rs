//! What the mesh answers when a pod asks for the addresses of a name: the names it may have meant, the Service of the first that
//! is one, its addresses.
//!
//! Pure: a name in, an answer out. Leaves to others: messages and their limits, types other than A and AAAA, forwarding.

mod names;

use std::net::IpAddr;
use std::sync::Arc;

use rand::Rng;
use rand::seq::SliceRandom;

use crate::index::Index;
use crate::name::Str;
use crate::service::{IpFamilies, Service};
use crate::workload::Workload;
use names::{below, find};

/// Addresses of one answer; a DNS message over TCP has room for 4,095 of IPv4.
pub const ADDRESSES_MAX: usize = 4096;
/// Domains of a search list that are looked at; resolvers know 6, of late without a limit.
pub const SEARCH_MAX: usize = 32;
/// Endpoints of a headless Service that one answer looks at: twice what it can hold, as some may be of the other family.
const ENDPOINTS_MAX: usize = 2 * ADDRESSES_MAX;

/// Life of an answer of the mesh, in seconds.
pub const TTL_S: u32 = 30;

/// What names mean on this node.
#[derive(Clone, Copy, Debug)]
pub struct Zone<'a> {
    /// Domain of the own cluster, as `cluster.local`; case and a last dot do not matter.
    pub cluster_domain: &'a str,
    /// Namespace whose Service stands for a host name that several others define.
    pub preferred_namespace: Option<&'a str>,
    /// Search list of the client, of which the first [`SEARCH_MAX`] count; `None` = the one that Kubernetes gives to pods.
    pub search: Option<&'a [Str]>,
    /// Whether IPv6 addresses are told at all.
    pub ipv6: bool,
}

impl Zone<'_> {
    fn domain(&self) -> &str {
        self.cluster_domain.trim_end_matches('.')
    }
}

/// Family of the addresses that are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Type A.
    V4,
    /// Type AAAA.
    V6,
}

impl Family {
    fn has(self, ip: IpAddr) -> bool {
        ip.is_ipv4() == (self == Self::V4)
    }
}

/// A question for the addresses of a name.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Who asks.
    pub client: &'a Workload,
    /// The name, its labels separated by dots; the empty text is the root. Case and a last dot do not matter. A name that cannot
    /// be written so (other characters than those of ASCII, dots within labels) is not the mesh's.
    pub name: &'a str,
    /// Which addresses.
    pub family: Family,
    /// How many addresses the message has room for: of more, as many and one are given. At most [`ADDRESSES_MAX`] are.
    pub room: usize,
}

/// What the mesh says to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing: the name is another's, ask there.
    Forward,
    /// The name is the mesh's and has no such address.
    Empty(Why),
    /// Addresses of the mesh.
    Records {
        /// The name that the asked one is an alias of, and whose the addresses are: lower case, without the last dot. `None` =
        /// they are the asked name's own.
        cname: Option<Str>,
        /// The addresses, at least one, each once, in random order.
        addresses: Vec<IpAddr>,
        /// Whose they are.
        service: Arc<Service>,
    },
}

/// Why a name of the mesh has no address to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It has none of that family on the client's network.
    NoRecords,
    /// The Service, or the node, does not do that family.
    Unsupported,
}

impl Why {
    /// As the log puts it.
    pub fn text(self) -> &'static str {
        match self {
            Self::NoRecords => "no records",
            Self::Unsupported => "service does not support this record type",
        }
    }
}

/// What the mesh says to a question. The first of the names that may be meant which is a Service's decides, even if that Service
/// has no such address; a wildcard of an earlier name stands before a later name itself.
///
/// Addresses are those that lead to the Service from where the client is: on its network.
pub fn answer(
    index: &Index,
    zone: &Zone<'_>,
    question: &Question<'_>,
    rng: &mut impl Rng,
) -> Answer {
    let namespace = &*question.client.namespace;
    let known = |host: &str| choose(index, zone, namespace, host);
    let Some((alias, service)) = find(zone, namespace, question.name, known) else {
        return Answer::Forward;
    };
    let supported = match (question.family, service.ip_families) {
        (Family::V4, families) => families != Some(IpFamilies::Ipv6),
        (Family::V6, families) => zone.ipv6 && families != Some(IpFamilies::Ipv4),
    };
    if !supported {
        return Answer::Empty(Why::Unsupported);
    }
    let addresses = addresses(index, service, question, rng);
    if addresses.is_empty() {
        return Answer::Empty(Why::NoRecords);
    }
    Answer::Records {
        cname: alias.map(|name| name.to_ascii_lowercase().into()),
        addresses,
        service: service.clone(),
    }
}

/// Of the Services of a host name the one that a client of `namespace` means: its own namespace's, the canonical, the preferred
/// namespace's, the first by namespace. Those it may not see and those without an address to tell do not count.
fn choose<'a>(
    index: &'a Index,
    zone: &Zone<'_>,
    namespace: &str,
    host: &str,
) -> Option<&'a Arc<Service>> {
    let all = index.services_named(host);
    let told = all.filter(|s| s.is_visible_to(Some(namespace)) && is_told(zone, s));
    told.min_by_key(|s| {
        let own = *s.namespace == *namespace;
        let preferred = zone.preferred_namespace == Some(&s.namespace);
        (!own, !s.canonical, !preferred, &s.namespace, &s.hostname)
    })
}

/// Whether a Service has addresses of its own, or is a headless one of Kubernetes, whose addresses are its endpoints'.
fn is_told(zone: &Zone<'_>, service: &Service) -> bool {
    let host = service.hostname.trim_end_matches('.');
    let in_domain = below(host, zone.domain());
    !service.vips.is_empty() || in_domain.is_some_and(|name| below(name, "svc").is_some())
}

/// The addresses of a Service that lead there from the client, in random order.
fn addresses(
    index: &Index,
    service: &Service,
    question: &Question<'_>,
    rng: &mut impl Rng,
) -> Vec<IpAddr> {
    let (network, family) = (&*question.client.network, question.family);
    let max = question.room.saturating_add(1).min(ADDRESSES_MAX);
    let mut found: Vec<IpAddr> = Vec::new();
    if service.vips.is_empty() {
        let endpoints = index.endpoints_from(service, rng.random::<u32>() as usize);
        let near = endpoints.take(ENDPOINTS_MAX).map(|e| e.workload);
        let near = near.filter(|workload| *workload.network == *network);
        let first = near.filter_map(|workload| {
            let mut own = workload.addresses.iter().copied();
            own.find(|ip| family.has(*ip))
        });
        found.extend(first.take(max));
    } else {
        let near = service.vips.iter().filter(|vip| *vip.network == *network);
        let all = near.map(|vip| vip.ip).filter(|ip| family.has(*ip));
        found.extend(all.take(max));
    }
    found.sort_unstable();
    found.dedup();
    found.shuffle(rng);
    found
}

#[cfg(test)]
mod tests;
