//! Authorization policies.

use ipnet::IpNet;
use mesh::name::Str;
use mesh::policy::{Action, Clause, Match, PolicyScope, Rule, ServiceAccountMatch, StringMatch};
use mesh::{Policy, Pools};
use proto::security as wire;

use super::{Fault, known, port, range, raw_ip};

pub(super) fn convert(
    key: Str,
    from: &wire::Authorization,
    pools: &mut Pools,
) -> Result<Policy, Fault> {
    let scope = match known("scope", from.scope)? {
        wire::Scope::Global => PolicyScope::Global,
        wire::Scope::Namespace => PolicyScope::Namespace,
        wire::Scope::WorkloadSelector => PolicyScope::WorkloadSelector,
    };
    let action = match known("action", from.action)? {
        wire::Action::Allow => Action::Allow,
        wire::Action::Deny => Action::Deny,
    };
    Ok(Policy {
        key,
        name: pools.text(&from.name),
        namespace: pools.text(&from.namespace),
        scope,
        action,
        dry_run: from.dry_run,
        rules: from
            .rules
            .iter()
            .map(|rule| self::rule(rule, pools))
            .collect(),
    })
}

fn rule(from: &wire::Rule, pools: &mut Pools) -> Rule {
    from.clauses
        .iter()
        .map(|clause| self::clause(clause, pools))
        .collect()
}

fn clause(from: &wire::Clause, pools: &mut Pools) -> Clause {
    from.matches
        .iter()
        .map(|one| one_match(one, pools))
        .collect()
}

fn one_match(from: &wire::Match, pools: &mut Pools) -> Match {
    Match {
        namespaces: texts(&from.namespaces, pools),
        not_namespaces: texts(&from.not_namespaces, pools),
        principals: texts(&from.principals, pools),
        not_principals: texts(&from.not_principals, pools),
        service_accounts: accounts(&from.service_accounts, pools),
        not_service_accounts: accounts(&from.not_service_accounts, pools),
        source_ips: ranges(&from.source_ips),
        not_source_ips: ranges(&from.not_source_ips),
        destination_ips: ranges(&from.destination_ips),
        not_destination_ips: ranges(&from.not_destination_ips),
        destination_ports: from.destination_ports.iter().map(|p| port(*p)).collect(),
        not_destination_ports: from
            .not_destination_ports
            .iter()
            .map(|p| port(*p))
            .collect(),
    }
}

/// Those without an arm are left out, as in Istio's ztunnel.
fn texts(all: &[wire::StringMatch], pools: &mut Pools) -> Vec<StringMatch> {
    use wire::string_match::MatchType;
    let arms = all.iter().filter_map(|one| one.match_type.as_ref());
    arms.map(|arm| match arm {
        MatchType::Exact(text) => StringMatch::Exact(pools.text(text)),
        MatchType::Prefix(text) => StringMatch::Prefix(pools.text(text)),
        MatchType::Suffix(text) => StringMatch::Suffix(pools.text(text)),
        MatchType::Presence(_) => StringMatch::Presence,
    })
    .collect()
}

fn accounts(all: &[wire::ServiceAccountMatch], pools: &mut Pools) -> Vec<ServiceAccountMatch> {
    all.iter()
        .map(|one| ServiceAccountMatch {
            namespace: pools.text(&one.namespace),
            service_account: pools.text(&one.service_account),
        })
        .collect()
}

/// Those that are no range are left out, as in Istio's ztunnel; a match that is left with nothing matches nothing.
fn ranges(all: &[wire::Address]) -> Vec<IpNet> {
    all.iter()
        .filter_map(|one| range(raw_ip(&one.address)?, one.length).ok())
        .collect()
}
