//! L4 authorization policies as data: scope, action, and the tree of rules, clauses and matches.
//!
//! Leaves to others: which policies apply to a workload (`index`) and what they decide (`authorize`).

use ipnet::IpNet;

use crate::name::Str;

/// One authorization policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Key under which workloads list it, normally `namespace/name`.
    pub key: Str,
    /// Name.
    pub name: Str,
    /// Namespace; with scope `Namespace` also where it applies.
    pub namespace: Str,
    /// Which workloads it applies to.
    pub scope: PolicyScope,
    /// What a match does.
    pub action: Action,
    /// Only note matches, decide nothing.
    pub dry_run: bool,
    /// Matches when any rule does; none = never.
    pub rules: Vec<Rule>,
}

impl Policy {
    /// A policy under its usual key, `namespace/name`, enforced.
    pub fn new(
        namespace: &str,
        name: &str,
        scope: PolicyScope,
        action: Action,
        rules: Vec<Rule>,
    ) -> Self {
        let key = format!("{namespace}/{name}").into();
        Self {
            key,
            name: name.into(),
            namespace: namespace.into(),
            scope,
            action,
            dry_run: false,
            rules,
        }
    }
}

/// Matches when all clauses do; none = always.
pub type Rule = Vec<Clause>;
/// Matches when any match does; none = always.
pub type Clause = Vec<Match>;

/// Which workloads a policy applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyScope {
    /// Every workload.
    Global,
    /// Workloads of the policy's namespace.
    Namespace,
    /// Workloads that list it.
    WorkloadSelector,
}

/// What a match does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Lets the connection in; once one such policy applies, all else is refused.
    Allow,
    /// Refuses the connection, before any allowing.
    Deny,
}

/// Attributes of one connection. Every kind must hold: one of its list, and none of its `not_` list; an empty list holds.
///
/// A match with nothing set holds for no connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// Namespace of the source identity (empty text without identity).
    pub namespaces: Vec<StringMatch>,
    /// Negation of `namespaces`.
    pub not_namespaces: Vec<StringMatch>,
    /// Source identity without `spiffe://`; nothing matches a missing identity.
    pub principals: Vec<StringMatch>,
    /// Negation of `principals`.
    pub not_principals: Vec<StringMatch>,
    /// Namespace and account of the source identity, whatever its trust domain.
    pub service_accounts: Vec<ServiceAccountMatch>,
    /// Negation of `service_accounts`.
    pub not_service_accounts: Vec<ServiceAccountMatch>,
    /// Source address.
    pub source_ips: Vec<IpNet>,
    /// Negation of `source_ips`.
    pub not_source_ips: Vec<IpNet>,
    /// Destination address.
    pub destination_ips: Vec<IpNet>,
    /// Negation of `destination_ips`.
    pub not_destination_ips: Vec<IpNet>,
    /// Port that the connection is really delivered to.
    pub destination_ports: Vec<u16>,
    /// Negation of `destination_ports`.
    pub not_destination_ports: Vec<u16>,
}

/// One way to compare a text, case-sensitively.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StringMatch {
    /// Equal.
    Exact(Str),
    /// Starts with.
    Prefix(Str),
    /// Ends with.
    Suffix(Str),
    /// Not empty.
    Presence,
}

impl StringMatch {
    /// Whether `text` is meant.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => text == &**exact,
            Self::Prefix(prefix) => text.starts_with(&**prefix),
            Self::Suffix(suffix) => text.ends_with(&**suffix),
            Self::Presence => !text.is_empty(),
        }
    }
}

/// A namespace and a service account, both exact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccountMatch {
    /// Namespace of the identity.
    pub namespace: Str,
    /// Account of the identity.
    pub service_account: Str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_compare_as_named() {
        let cases = [
            (StringMatch::Exact("a/b".into()), "a/b", true),
            (StringMatch::Exact("a/b".into()), "A/b", false),
            (StringMatch::Prefix("a".into()), "ab", true),
            (StringMatch::Prefix("a".into()), "ba", false),
            (StringMatch::Suffix("b".into()), "ab", true),
            (StringMatch::Suffix("b".into()), "ba", false),
            (StringMatch::Presence, "x", true),
            (StringMatch::Presence, "", false),
        ];
        for (matcher, text, expected) in cases {
            assert_eq!(matcher.matches(text), expected, "{matcher:?} {text:?}");
        }
    }
}
