//! What holds of every answer to a question for the addresses of a name, judged by a matcher of the plainest kind.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

use super::draw::Draw;
use super::naive::{Meant, Naive};
use crate::dns::{Answer, Family, Question, Why, Zone, answer};
use crate::index::{Index, Resource};
use crate::name::Str;
use crate::service::{IpFamilies, Service, Visibility};
use crate::workload::{Membership, Workload};

/// Domain of the cluster that names are drawn for.
const DOMAIN: &str = "d";
/// Seed of a mesh in which most Services can be found.
const ONE_MESH: u64 = 285;

/// `answer` says what the plain matcher says, whatever the case of the name, how the index came about and what there is room
/// for; and an address of a Service leads, from where the client is, to a Service of that address.
pub fn answer_is_sound(bytes: &[u8]) {
    Asking::drawn(bytes).check();
}

/// Any text may be asked for, among Services with names of all kinds.
pub fn any_name_is_answered(text: &str) {
    let mut asking = Asking::in_one_mesh();
    asking.name = text.to_owned();
    asking.check();
}

/// A question with all that its answer depends on.
struct Asking {
    index: Index,
    client: Arc<Workload>,
    name: String,
    family: Family,
    ipv6: bool,
    search: Option<Vec<Str>>,
    preferred: Option<&'static str>,
    seed: u64,
}

impl Asking {
    /// Always the same.
    fn in_one_mesh() -> Self {
        let mut bytes = vec![0; 2000];
        SmallRng::seed_from_u64(ONE_MESH).fill_bytes(&mut bytes);
        Self::drawn(&bytes)
    }

    fn drawn(bytes: &[u8]) -> Self {
        let mut draw = Draw::new(bytes);
        let count = 2 + draw.byte() % 5;
        let services: Vec<_> = (0..count).map(|_| draw.named_service()).collect();
        let mut all = Vec::new();
        for _ in 0..4 {
            let listed = services.iter().filter(|_| draw.flag()).map(|service| {
                let (service, ports) = (Arc::new(service.key()), Default::default());
                Membership { service, ports }
            });
            let mut listed: Vec<_> = listed.collect();
            listed.sort();
            listed.dedup_by(|a, b| a.service == b.service);
            let workload = draw.workload().with(|w| w.services = listed.into());
            all.push(Resource::Workload(Arc::new(workload)));
        }
        let asked = match services.get(usize::from(draw.byte()) % (2 * services.len())) {
            Some(known) => known.hostname.replace('*', "b"),
            None => draw.labels(4),
        };
        let suffix = ["", "", ".d", ".svc.d", ".a.svc.d", ".a"];
        let suffix = suffix[usize::from(draw.byte()) % suffix.len()];
        all.extend(services.into_iter().map(|s| Resource::Service(Arc::new(s))));
        Self {
            index: Index::build(all),
            client: Arc::new(draw.workload()),
            name: format!("{}{suffix}", asked.trim_end_matches('.')),
            family: if draw.flag() { Family::V6 } else { Family::V4 },
            ipv6: draw.byte() % 8 != 7,
            search: (draw.byte() % 8 == 7).then(|| vec!["a".into(), "D.".into()]),
            preferred: draw.flag().then_some("b"),
            seed: draw.byte().into(),
        }
    }

    fn ask(&self, index: &Index, name: &str, domain: &str, room: usize) -> Answer {
        let zone = Zone {
            cluster_domain: domain,
            preferred_namespace: self.preferred,
            search: self.search.as_deref(),
            ipv6: self.ipv6,
        };
        let question = Question {
            client: &self.client,
            name,
            family: self.family,
            room,
        };
        answer(
            index,
            &zone,
            &question,
            &mut SmallRng::seed_from_u64(self.seed),
        )
    }

    fn check(&self) {
        let said = self.ask(&self.index, &self.name, DOMAIN, 100);
        assert_eq!(plain(&said), self.expected(), "{}", self.name);
        let loud = self.name.to_ascii_uppercase();
        assert_eq!(said, self.ask(&self.index, &loud, "D.", 100));
        if !self.name.ends_with('.') {
            let dotted = format!("{}.", self.name);
            assert_eq!(said, self.ask(&self.index, &dotted, DOMAIN, 100));
        }
        let afresh = Index::build(self.index.resources());
        assert_eq!(said, self.ask(&afresh, &self.name, DOMAIN, 100));
        if let Answer::Records { addresses, .. } = &said {
            match self.ask(&self.index, &self.name, DOMAIN, 0) {
                Answer::Records { addresses: one, .. } => {
                    assert!(one.len() == 1 && addresses.contains(&one[0]));
                }
                other => panic!("nothing without room: {other:?}"),
            }
        }
        self.check_ways(&said);
    }

    /// A connection to what is answered finds a Service of that address; what else has an endpoint's address stands before it.
    fn check_ways(&self, said: &Answer) {
        let Answer::Records {
            addresses, service, ..
        } = said
        else {
            return;
        };
        let (naive, client) = (Naive::of(&self.index), &self.client);
        for ip in addresses.iter().filter(|_| !service.vips.is_empty()) {
            let found = naive.meant(&client.network, *ip, &client.namespace);
            let leads =
                matches!(found, Meant::Service(at) if at.vips.iter().any(|vip| vip.ip == *ip));
            assert!(leads, "{ip} leads elsewhere");
        }
    }

    /// The name in lower case, without a last dot.
    fn asked(&self) -> String {
        let mut asked = self.name.to_ascii_lowercase();
        if asked.ends_with('.') {
            asked.pop();
        }
        asked
    }

    /// All names that may be meant, with what is left of the asked one without a search domain.
    fn aliases(&self) -> Vec<(String, Option<String>)> {
        let namespace = &*self.client.namespace;
        let asked = self.asked();
        let mut all: Vec<(String, Option<String>)> = vec![(asked.clone(), None)];
        all.extend(
            expansions(&all[0].0, namespace)
                .into_iter()
                .map(|x| (x, None)),
        );
        let usual = [format!("{namespace}.svc.d"), "svc.d".into(), "d".into()];
        let search: Vec<String> = match &self.search {
            Some(own) => own
                .iter()
                .map(|s| s.to_lowercase().replace('.', ""))
                .collect(),
            None => usual.into(),
        };
        for domain in search {
            let suffix = format!(".{domain}");
            if let Some(rest) = asked.strip_suffix(&suffix)
                && !rest.is_empty()
            {
                all.push((rest.to_owned(), Some(rest.to_owned())));
                let further = expansions(rest, namespace);
                all.extend(further.into_iter().map(|x| (x, Some(rest.to_owned()))));
            }
        }
        all
    }

    fn expected(&self) -> Plain {
        let asked = self.asked();
        if !asked.is_ascii() || asked.starts_with('.') || asked.ends_with('.') {
            return Plain::Forward;
        }
        if asked.is_empty() || asked.contains("..") {
            return Plain::Forward;
        }
        for (name, alias) in self.aliases() {
            let labels: Vec<&str> = name.split('.').collect();
            let wild = (1..labels.len()).map(|n| format!("*.{}", labels[n..].join(".")));
            let wild: Vec<String> = wild.collect();
            for host in std::iter::once(&name).chain(&wild) {
                if let Some(service) = self.chosen(host) {
                    return self.of(&service, alias.filter(|_| *host == name));
                }
            }
        }
        Plain::Forward
    }

    fn chosen(&self, host: &str) -> Option<Arc<Service>> {
        let namespace = &self.client.namespace;
        let mut all: Vec<_> = self.index.services().cloned().collect();
        all.sort_by_key(|service| service.key());
        all.retain(|s| {
            let name = s.hostname.to_lowercase();
            let name = name.strip_suffix('.').unwrap_or(&name);
            let seen = s.visibility == Visibility::Public || s.namespace == *namespace;
            name == host && seen && (!s.vips.is_empty() || name.ends_with(".svc.d"))
        });
        let own = all.iter().find(|s| s.namespace == *namespace);
        let canonical = all.iter().filter(|s| s.canonical);
        let is_preferred = |s: &&Arc<Service>| Some(&*s.namespace) == self.preferred;
        // Kubernetes has one canonical Service of a name; of more the order goes on among them
        let preferred = canonical.clone().find(is_preferred);
        own.or(preferred)
            .or_else(|| canonical.clone().next())
            .or_else(|| all.iter().find(is_preferred))
            .or(all.first())
            .cloned()
    }

    fn of(&self, service: &Arc<Service>, alias: Option<String>) -> Plain {
        let six = self.family == Family::V6;
        let refused = match service.ip_families {
            Some(IpFamilies::Ipv4) => six,
            Some(IpFamilies::Ipv6) => !six,
            _ => false,
        };
        if refused || (six && !self.ipv6) {
            return Plain::Empty(Why::Unsupported);
        }
        let network = &self.client.network;
        let mut all = BTreeSet::new();
        for vip in service.vips.iter().filter(|vip| vip.network == *network) {
            all.extend((vip.ip.is_ipv6() == six).then_some(vip.ip));
        }
        let endpoints = self.index.endpoints(service);
        for endpoint in endpoints.filter(|_| service.vips.is_empty()) {
            let mut own = endpoint.workload.addresses.iter();
            let first = own.find(|ip| ip.is_ipv6() == six);
            all.extend(first.filter(|_| endpoint.workload.network == *network));
        }
        match all.is_empty() {
            true => Plain::Empty(Why::NoRecords),
            false => Plain::Records(alias, all, service.clone()),
        }
    }
}

/// An answer without the order of its addresses.
#[derive(Debug, PartialEq)]
enum Plain {
    Forward,
    Empty(Why),
    Records(Option<String>, BTreeSet<IpAddr>, Arc<Service>),
}

fn plain(said: &Answer) -> Plain {
    match said {
        Answer::Forward => Plain::Forward,
        Answer::Empty(why) => Plain::Empty(*why),
        Answer::Records {
            cname,
            addresses,
            service,
        } => {
            let all: BTreeSet<_> = addresses.iter().copied().collect();
            assert_eq!(all.len(), addresses.len(), "each once");
            Plain::Records(
                cname.as_ref().map(ToString::to_string),
                all,
                service.clone(),
            )
        }
    }
}

/// dns.md, section 3.2.
fn expansions(name: &str, namespace: &str) -> Vec<String> {
    let labels: Vec<&str> = name.split('.').collect();
    match labels.as_slice() {
        [_] => vec![format!("{name}.{namespace}.svc.d")],
        [_, _] => vec![format!("{name}.svc.d"), format!("{name}.{namespace}.svc.d")],
        [_, _, "svc"] => vec![format!("{name}.d"), format!("{name}.svc.d")],
        [_, _, _] => vec![format!("{name}.svc.d")],
        [_, _, _, "svc"] => vec![format!("{name}.d")],
        _ => Vec::new(),
    }
}

/// What may come of a question.
#[cfg(test)]
pub(super) const KINDS: [&str; 6] = [
    "forward",
    "no records",
    "unsupported",
    "addresses",
    "alias",
    "endpoints",
];

/// Which of them comes of this one.
#[cfg(test)]
pub(super) fn kind_met(bytes: &[u8]) -> &'static str {
    let asking = Asking::drawn(bytes);
    match asking.ask(&asking.index, &asking.name, DOMAIN, 100) {
        Answer::Forward => "forward",
        Answer::Empty(Why::NoRecords) => "no records",
        Answer::Empty(Why::Unsupported) => "unsupported",
        Answer::Records { cname: Some(_), .. } => "alias",
        Answer::Records { service, .. } if service.vips.is_empty() => "endpoints",
        Answer::Records { .. } => "addresses",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_mesh_has_names_to_be_found() {
        let asking = Asking::in_one_mesh();
        let services: Vec<_> = asking.index.services().cloned().collect();
        let found = services.iter().filter(|service| {
            let name = service.hostname.replace('*', "b");
            let said = asking.ask(&asking.index, name.trim_end_matches('.'), DOMAIN, 9);
            any_name_is_answered(&name);
            said != Answer::Forward
        });
        let found = found.count();
        assert!(found >= 3, "{found} of {services:#?}");
    }
}
