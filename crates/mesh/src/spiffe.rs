//! SPIFFE identities of workloads: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
//!
//! Leaves to others: certificates that carry them (`identity`), rules about them (`authorize`).

use std::fmt;
use std::str::FromStr;

use crate::name::Str;

const SCHEME: &str = "spiffe://";

/// Identity of a workload. Equal when all three parts are equal.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    trust_domain: Str,
    namespace: Str,
    service_account: Str,
}

/// A text that is not a workload's SPIFFE id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
pub struct NotSpiffe;

impl SpiffeId {
    /// Puts an identity together. A part with a `/` in it prints as a text that no parser takes, so it matches no peer.
    pub fn new(
        trust_domain: impl Into<Str>,
        namespace: impl Into<Str>,
        service_account: impl Into<Str>,
    ) -> Self {
        Self {
            trust_domain: trust_domain.into(),
            namespace: namespace.into(),
            service_account: service_account.into(),
        }
    }

    /// The trust domain, e.g. `cluster.local`.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The Kubernetes service account.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }

    /// The id without its scheme, as policies name principals: `<trust domain>/ns/<namespace>/sa/<service account>`.
    pub fn principal(&self) -> String {
        format!(
            "{}/ns/{}/sa/{}",
            self.trust_domain, self.namespace, self.service_account
        )
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{SCHEME}{}/ns/{}/sa/{}",
            self.trust_domain, self.namespace, self.service_account
        )
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for SpiffeId {
    type Err = NotSpiffe;

    /// Source: Istio's form of SPIFFE ids; the scheme is exact and lower-case, parts may be empty, a trailing `/` is an error.
    fn from_str(text: &str) -> Result<Self, NotSpiffe> {
        let mut parts = text.strip_prefix(SCHEME).ok_or(NotSpiffe)?.split('/');
        let mut part = || parts.next().ok_or(NotSpiffe);
        let (trust_domain, ns, namespace, sa, service_account) =
            (part()?, part()?, part()?, part()?, part()?);
        if ns != "ns" || sa != "sa" || parts.next().is_some() {
            return Err(NotSpiffe);
        }
        Ok(Self::new(trust_domain, namespace, service_account))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_the_form_and_nothing_else() {
        let cases = [
            ("spiffe://cluster.local/ns/shop/sa/cart", true),
            ("spiffe://td/ns/a.b/sa/c.d", true),
            ("spiffe://td/ns//sa/", true),
            ("SPIFFE://td/ns/a/sa/b", false),
            ("spiffe://td/ns/a/sa/b/", false),
            ("spiffe://td/ns/a/sa", false),
            ("spiffe://td/NS/a/sa/b", false),
            ("spiffe://td/ns/a/SA/b", false),
            ("https://td/ns/a/sa/b", false),
            ("td/ns/a/sa/b", false),
            ("", false),
        ];
        for (text, good) in cases {
            let parsed = text.parse::<SpiffeId>();
            assert_eq!(parsed.is_ok(), good, "{text}");
            if let Ok(id) = parsed {
                assert_eq!(id.to_string(), text);
                assert_eq!(format!("{SCHEME}{}", id.principal()), text);
            }
        }
    }

    #[test]
    fn names_its_parts() {
        let id = SpiffeId::new("td", "shop", "cart");
        assert_eq!(
            (id.trust_domain(), id.namespace(), id.service_account()),
            ("td", "shop", "cart")
        );
    }
}
