//! The names that a client may mean by a name: itself, its expansions within the cluster, and what is left when a resolver's
//! search domain is taken off, with the wildcards of each.

use super::{SEARCH_MAX, Zone};

/// The first of the names that may be meant which `known` knows, with the alias by which it was found: the name that is left
/// without a search domain, if it was that, and no wildcard.
///
/// - `namespace`: of the client
/// - `name`: as asked, with or without the last dot
pub(super) fn find<'q, T>(
    zone: &Zone<'_>,
    namespace: &str,
    name: &'q str,
    known: impl Fn(&str) -> Option<T>,
) -> Option<(Option<&'q str>, T)> {
    let name = name.strip_suffix('.').unwrap_or(name);
    if !name.is_ascii() || name.split('.').any(str::is_empty) {
        return None;
    }
    let domain = zone.domain();
    let mut search = Search {
        domain,
        namespace,
        known,
        wildcard: String::new(),
    };
    if let Some(found) = search.name_or_expansion(name) {
        return Some((None, found.it));
    }
    let of_cluster = [
        format!("{namespace}.svc.{domain}"),
        format!("svc.{domain}"),
        domain.to_owned(),
    ];
    let usual = of_cluster.iter().map(String::as_str);
    let usual = usual.filter(|_| zone.search.is_none());
    let listed = zone
        .search
        .unwrap_or_default()
        .iter()
        .map(|domain| &**domain);
    usual.chain(listed.take(SEARCH_MAX)).find_map(|domain| {
        let rest = below(name, domain.trim_end_matches('.'))?;
        let found = search.name_or_expansion(rest)?;
        Some(((!found.by_wildcard).then_some(rest), found.it))
    })
}

/// What stands before a domain in a name that ends with it and has more; label by label, whatever the case.
pub(super) fn below<'n>(name: &'n str, domain: &str) -> Option<&'n str> {
    let (front, back) = name.split_at_checked(name.len().checked_sub(domain.len())?)?;
    let rest = front.strip_suffix('.')?;
    let is_below = !domain.is_empty() && !rest.is_empty() && back.eq_ignore_ascii_case(domain);
    is_below.then_some(rest)
}

/// Looks for names.
struct Search<'z, F> {
    domain: &'z str,
    namespace: &'z str,
    known: F,
    /// Where wildcards are written.
    wildcard: String,
}

struct Found<T> {
    by_wildcard: bool,
    it: T,
}

impl<T, F: Fn(&str) -> Option<T>> Search<'_, F> {
    /// A name, then its expansions.
    fn name_or_expansion(&mut self, name: &str) -> Option<Found<T>> {
        let (ns, domain) = (self.namespace, self.domain);
        let labels = name.split('.').count();
        let tails: &[&[&str]] = match (labels, below(name, "svc").is_some()) {
            (1, _) => &[&[ns, "svc", domain]],
            (2, _) => &[&["svc", domain], &[ns, "svc", domain]],
            (3, true) => &[&[domain], &["svc", domain]],
            (3, false) => &[&["svc", domain]],
            (4, true) => &[&[domain]],
            _ => &[],
        };
        self.name_or_wildcard(name).or_else(|| {
            let mut tails = tails.iter();
            tails.find_map(|tail| self.name_or_wildcard(&format!("{name}.{}", tail.join("."))))
        })
    }

    /// A name, then its wildcards, the nearest first.
    fn name_or_wildcard(&mut self, name: &str) -> Option<Found<T>> {
        if let Some(it) = (self.known)(name) {
            let by_wildcard = false;
            return Some(Found { by_wildcard, it });
        }
        let mut dots = name.match_indices('.').map(|(at, _)| at);
        dots.find_map(|at| {
            self.wildcard.clear();
            self.wildcard.push('*');
            self.wildcard.push_str(&name[at..]);
            let it = (self.known)(&self.wildcard)?;
            let by_wildcard = true;
            Some(Found { by_wildcard, it })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Everything that is looked for, wildcards left out, an alias after a slash.
    fn looked_for(name: &str, search: Option<&[crate::name::Str]>) -> Vec<String> {
        let zone = Zone {
            cluster_domain: "D.",
            preferred_namespace: None,
            search,
            ipv6: true,
        };
        let all = RefCell::new(Vec::new());
        let found = find(&zone, "ns", name, |name| {
            if !name.starts_with('*') {
                all.borrow_mut().push(name.to_owned());
            }
            None::<()>
        });
        assert_eq!(found, None);
        all.into_inner()
    }

    #[test]
    fn expansions_by_number_of_labels() {
        let cases: &[(&str, &[&str])] = &[
            ("", &[]),
            (".", &[]),
            ("x", &["x", "x.ns.svc.D"]),
            ("x.", &["x", "x.ns.svc.D"]),
            ("x..", &[]),
            (".x", &[]),
            ("x..y", &[]),
            ("svc", &["svc", "svc.ns.svc.D"]),
            ("x.y", &["x.y", "x.y.svc.D", "x.y.ns.svc.D"]),
            ("x.svc", &["x.svc", "x.svc.svc.D", "x.svc.ns.svc.D"]),
            ("x.y.svc", &["x.y.svc", "x.y.svc.D", "x.y.svc.svc.D"]),
            ("x.y.SVC", &["x.y.SVC", "x.y.SVC.D", "x.y.SVC.svc.D"]),
            ("x.y.z", &["x.y.z", "x.y.z.svc.D"]),
            ("w.x.y.svc", &["w.x.y.svc", "w.x.y.svc.D"]),
            ("w.x.y.z", &["w.x.y.z"]),
            ("v.w.x.y.svc", &["v.w.x.y.svc"]),
            ("D", &["D", "D.ns.svc.D"]),
            ("bücher", &[]),
        ];
        for (name, expected) in cases {
            assert_eq!(looked_for(name, None), *expected, "{name}");
        }
    }

    #[test]
    fn search_domains_are_taken_off_in_order() {
        let own: Vec<_> = ["corp.", ".", "", "x"].map(Into::into).into();
        let cases: &[(&str, Option<&[_]>, &[&str])] = &[
            (
                "a.b.c.ns.svc.d",
                None,
                &[
                    "a.b.c.ns.svc.d",
                    "a.b.c",
                    "a.b.c.svc.D",
                    "a.b.c.ns",
                    "a.b.c.ns.svc",
                ],
            ),
            (
                "a.b.c.xns.svc.d",
                None,
                &["a.b.c.xns.svc.d", "a.b.c.xns", "a.b.c.xns.svc"],
            ),
            ("a.b.c.d.corp", Some(&own), &["a.b.c.d.corp", "a.b.c.d"]),
            ("a.b.c.D", Some(&own), &["a.b.c.D"]),
            ("corp", Some(&own), &["corp", "corp.ns.svc.D"]),
        ];
        for (name, search, expected) in cases {
            assert_eq!(looked_for(name, *search), *expected, "{name}");
        }
    }

    #[test]
    fn wildcards_come_nearest_first_and_never_alone() {
        let zone = Zone {
            cluster_domain: "D",
            preferred_namespace: None,
            search: None,
            ipv6: true,
        };
        let all = RefCell::new(Vec::new());
        let known = |name: &str| {
            all.borrow_mut().push(name.to_owned());
            (name == "*.c.svc.D").then_some(())
        };
        assert_eq!(find(&zone, "ns", "a.b.c", known), Some((None, ())));
        let expected = [
            "a.b.c",
            "*.b.c",
            "*.c",
            "a.b.c.svc.D",
            "*.b.c.svc.D",
            "*.c.svc.D",
        ];
        assert_eq!(all.into_inner(), expected);
    }
}
