//! The names that a client may mean by a name: itself, its expansions within the cluster, and what is left when a resolver's
//! search domain is taken off, with the wildcards of each.

use super::{SEARCH_MAX, Zone};

/// How a name was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate<'q> {
    /// The name left without a search domain, if that is what was found: the asked name is an alias of it.
    pub(super) alias: Option<&'q str>,
}

/// The first name that `found` knows, in the order of dns.md, section 3.
///
/// - `name`: as asked, without the last dot
pub(super) fn candidates<'q, T>(
    zone: &Zone<'_>,
    namespace: &str,
    name: &'q str,
    found: impl Fn(&str) -> Option<T>,
) -> Option<(Candidate<'q>, T)> {
    if name.is_empty() || !name.is_ascii() {
        return None;
    }
    let mut search = Search {
        domain: zone.domain(),
        namespace,
        found,
        host: String::new(),
    };
    let own = search.name_or_expansion(name);
    if let Some((_, service)) = own {
        return Some((Candidate { alias: None }, service));
    }
    let cluster = [
        format!("{namespace}.svc.{}", search.domain),
        format!("svc.{}", search.domain),
        search.domain.to_owned(),
    ];
    let listed = zone.search.unwrap_or_default().iter().map(|s| &**s);
    let listed = listed.take(SEARCH_MAX);
    let usual = cluster.iter().map(String::as_str);
    let usual = usual.filter(|_| zone.search.is_none());
    listed.chain(usual).find_map(|domain| {
        let rest = is_below(name, domain.trim_end_matches('.'))?;
        let (exact, service) = search.name_or_expansion(rest)?;
        let alias = exact.then_some(rest);
        Some((Candidate { alias }, service))
    })
}

/// What stands before a domain in a name that ends with it and has more; label by label, whatever the case.
pub(super) fn is_below<'q>(name: &'q str, domain: &str) -> Option<&'q str> {
    let at = name.len().checked_sub(domain.len())?;
    let (front, back) = (name.get(..at)?, name.get(at..)?);
    let rest = front.strip_suffix('.')?;
    (!domain.is_empty() && !rest.is_empty() && back.eq_ignore_ascii_case(domain)).then_some(rest)
}

/// Looks names up, in a buffer of its own.
struct Search<'z, F> {
    domain: &'z str,
    namespace: &'z str,
    found: F,
    host: String,
}

impl<T, F: Fn(&str) -> Option<T>> Search<'_, F> {
    /// A name, then its expansions; and whether the name itself was found, not a wildcard.
    fn name_or_expansion(&mut self, name: &str) -> Option<(bool, T)> {
        let labels = name.split('.').count();
        let in_svc = is_below(name, "svc").is_some();
        // namespace, `svc`, domain: what an expansion adds
        let added: &[[bool; 3]] = match (labels, in_svc) {
            (1, _) => &[[true, true, true]],
            (2, _) => &[[false, true, true], [true, true, true]],
            (3, true) => &[[false, false, true], [false, true, true]],
            (3, false) => &[[false, true, true]],
            (4, true) => &[[false, false, true]],
            _ => &[],
        };
        let bare = [false, false, false];
        let all = std::iter::once(&bare).chain(added);
        all.into_iter().find_map(|[namespace, svc, domain]| {
            let parts = [
                (*namespace, self.namespace),
                (*svc, "svc"),
                (*domain, self.domain),
            ];
            let tail = parts.into_iter().filter(|(is_added, _)| *is_added);
            let mut full = name.to_owned();
            for (_, part) in tail {
                full.push('.');
                full.push_str(part);
            }
            self.host_or_wildcard(&full)
        })
    }

    /// A host name, then its wildcards, the nearest first; and whether it was found itself.
    fn host_or_wildcard(&mut self, host: &str) -> Option<(bool, T)> {
        if let Some(service) = (self.found)(host) {
            return Some((true, service));
        }
        let dots = host.match_indices('.');
        dots.map(|(at, _)| at).find_map(|at| {
            self.host.clear();
            self.host.push('*');
            self.host.push_str(&host[at..]);
            Some((false, (self.found)(&self.host)?))
        })
    }
}
