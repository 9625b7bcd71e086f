//! Whether a connection into a pod is allowed, by the L4 policies that apply to its workload.
//!
//! Leaves to others: printing the notes, closing connections, asking again when policies change.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::index::Index;
use crate::name::Str;
use crate::policy::{Action, Match, Policy, ServiceAccountMatch, StringMatch};
use crate::spiffe::SpiffeId;
use crate::workload::Workload;

/// One connection into a pod.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// Identity that the peer proved; none for plain connections.
    pub identity: Option<&'a SpiffeId>,
    /// TCP peer.
    pub source: SocketAddr,
    /// Address in the mesh, and the port that the connection is really delivered to.
    pub destination: SocketAddr,
    /// The pod's workload: gives the namespace and the list of selector policies.
    pub local: &'a Workload,
}

/// The answer, with what there is to log about how it came about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Allowed, or why not.
    pub outcome: Result<(), Denial>,
    /// In the order in which things happened.
    pub notes: Vec<Note>,
}

impl Verdict {
    /// Whether the connection may go on.
    pub fn is_allowed(&self) -> bool {
        self.outcome.is_ok()
    }
}

/// Why a connection is denied. The texts follow `connection closed due to policy rejection: ` in the access log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// A DENY policy matched: `namespace/name`.
    #[error("explicitly denied by: {0}")]
    Explicit(Str),
    /// There are ALLOW policies and none matched.
    #[error("allow policies exist, but none allowed")]
    NotAllowed,
}

/// One line for the decision log. Prints the fixed message; the policy is a field of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// The workload lists a policy that is not known. A warning.
    UnknownPolicy(Str),
    /// A DENY policy would have matched, if enforced.
    DryRunDeny(Arc<Policy>),
    /// A DENY policy matched.
    Deny(Arc<Policy>),
    /// An ALLOW policy would have matched, if enforced.
    DryRunAllow(Arc<Policy>),
    /// No ALLOW policy would have matched, if those there are were enforced.
    NoDryRunAllow,
    /// No ALLOW policy applies: allowed.
    NoAllowPolicies,
    /// An ALLOW policy matched.
    Allow(Arc<Policy>),
    /// No ALLOW policy matched: denied.
    NoAllowMatched,
}

impl Note {
    /// The policy it is about: `namespace/name`.
    pub fn policy(&self) -> Option<String> {
        match self {
            Self::DryRunDeny(p) | Self::Deny(p) | Self::DryRunAllow(p) | Self::Allow(p) => {
                Some(qualified(p))
            }
            Self::UnknownPolicy(_)
            | Self::NoDryRunAllow
            | Self::NoAllowPolicies
            | Self::NoAllowMatched => None,
        }
    }

    /// Whether it is to be logged as a warning; all others are for the decision log.
    pub fn is_warning(&self) -> bool {
        matches!(self, Self::UnknownPolicy(_))
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnknownPolicy(name) => return write!(f, "skipping unknown policy {name}"),
            Self::DryRunDeny(_) => "dry-run: deny policy match",
            Self::Deny(_) => "deny policy match",
            Self::DryRunAllow(_) => "dry-run: allow policy match",
            Self::NoDryRunAllow => "dry-run: no allow policies match",
            Self::NoAllowPolicies => "no allow policies, allow",
            Self::Allow(_) => "allow policy match",
            Self::NoAllowMatched => "no allow policies matched",
        })
    }
}

/// Decides about one connection. The order of policies changes neither the answer nor the notes.
pub fn authorize(index: &Index, attempt: &Attempt<'_>) -> Verdict {
    let (policies, unknown) = index.policies_for(attempt.local);
    let facts = Facts::of(attempt);
    let mut notes: Vec<Note> = unknown
        .into_iter()
        .map(|name| Note::UnknownPolicy(name.clone()))
        .collect();
    let of = |action: Action, dry_run: bool| {
        policies
            .iter()
            .copied()
            .filter(move |p| p.action == action && p.dry_run == dry_run)
    };
    let matching = |action, dry_run| of(action, dry_run).filter(|p| facts.satisfy(p));

    notes.extend(matching(Action::Deny, true).map(|p| Note::DryRunDeny(p.clone())));
    if let Some(policy) = matching(Action::Deny, false).next() {
        notes.push(Note::Deny(policy.clone()));
        return Verdict {
            outcome: Err(Denial::Explicit(qualified(policy).into())),
            notes,
        };
    }
    let some_enforced = of(Action::Allow, false).next().is_some();
    let before = notes.len();
    notes.extend(matching(Action::Allow, true).map(|p| Note::DryRunAllow(p.clone())));
    if !some_enforced && notes.len() == before && of(Action::Allow, true).next().is_some() {
        notes.push(Note::NoDryRunAllow);
    }
    let (outcome, note) = if !some_enforced {
        (Ok(()), Note::NoAllowPolicies)
    } else if let Some(policy) = matching(Action::Allow, false).next() {
        (Ok(()), Note::Allow(policy.clone()))
    } else {
        (Err(Denial::NotAllowed), Note::NoAllowMatched)
    };
    notes.push(note);
    Verdict { outcome, notes }
}

fn qualified(policy: &Policy) -> String {
    format!("{}/{}", policy.namespace, policy.name)
}

/// One connection as matches see it.
struct Facts<'a> {
    identity: Option<(&'a SpiffeId, String)>,
    source: IpAddr,
    destination: IpAddr,
    port: u16,
}

impl<'a> Facts<'a> {
    fn of(attempt: &Attempt<'a>) -> Self {
        Self {
            identity: attempt.identity.map(|id| (id, id.principal())),
            source: attempt.source.ip().to_canonical(),
            destination: attempt.destination.ip().to_canonical(),
            port: attempt.destination.port(),
        }
    }

    fn satisfy(&self, policy: &Policy) -> bool {
        let clause_holds = |matches: &Vec<Match>| {
            matches.is_empty() || matches.iter().any(|m| self.satisfy_match(m))
        };
        policy
            .rules
            .iter()
            .any(|clauses| clauses.iter().all(clause_holds))
    }

    fn satisfy_match(&self, wanted: &Match) -> bool {
        *wanted != Match::default()
            && holds(&wanted.namespaces, &wanted.not_namespaces, |m| {
                m.matches(self.namespace())
            })
            && holds(&wanted.principals, &wanted.not_principals, |m| {
                self.has_principal(m)
            })
            && holds(
                &wanted.service_accounts,
                &wanted.not_service_accounts,
                |m| self.has_account(m),
            )
            && holds(&wanted.source_ips, &wanted.not_source_ips, |net| {
                contains(net, self.source)
            })
            && holds(
                &wanted.destination_ips,
                &wanted.not_destination_ips,
                |net| contains(net, self.destination),
            )
            && holds(
                &wanted.destination_ports,
                &wanted.not_destination_ports,
                |port| *port == self.port,
            )
    }

    fn namespace(&self) -> &str {
        self.identity.as_ref().map_or("", |(id, _)| id.namespace())
    }

    fn has_principal(&self, wanted: &StringMatch) -> bool {
        self.identity
            .as_ref()
            .is_some_and(|(_, principal)| wanted.matches(principal))
    }

    fn has_account(&self, wanted: &ServiceAccountMatch) -> bool {
        self.identity.as_ref().is_some_and(|(id, _)| {
            id.namespace() == &*wanted.namespace && id.service_account() == &*wanted.service_account
        })
    }
}

/// One attribute kind: one of `wanted`, unless there is none, and none of `unwanted`.
fn holds<T>(wanted: &[T], unwanted: &[T], test: impl Fn(&T) -> bool) -> bool {
    (wanted.is_empty() || wanted.iter().any(&test)) && !unwanted.iter().any(&test)
}

/// Networks hold addresses of their own family only.
fn contains(net: &IpNet, ip: IpAddr) -> bool {
    net.contains(&ip)
}

#[cfg(test)]
mod tests;
