//! What a decision lacks is fetched here: mesh state that is held only on demand, addresses of host names.
//!
//! Without an answer there is no decision, so the connection is refused: a destination that is not known because the
//! control plane is silent may be one that needs protection. What to ask for is decided in `mesh`.

use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use mesh::{Admitted, Connect, Decision, Flow, Index, Lookup, Name, Plan, Refusal, Workload};
use rand::Rng;
use telemetry::metrics::Registry;
use tokio::time::timeout;

use crate::Shared;
use crate::budget::Budget;
use crate::failure::Failure;
use crate::needs::{Finder, Pending, Resolver};

/// Questions for one connection. One is enough; more are for a state that changes under it.
const LOOKUPS_MAX: usize = 4;
/// Longest wait for one answer, whatever the one who is asked thinks.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// Where answers come from.
pub(crate) struct Sources<'a> {
    state: &'a ArcSwap<Index>,
    resolver: &'a dyn Resolver,
    finder: Option<&'a dyn Finder>,
    registry: &'a Registry,
    /// of the questions that the pod may have open
    budget: &'a Budget,
}

impl<'a> Sources<'a> {
    /// Those of the process, for one pod within `budget`.
    pub(crate) fn new(shared: &'a Shared, budget: &'a Budget) -> Self {
        Self {
            budget,
            state: &shared.state,
            resolver: &*shared.resolver,
            finder: shared.finder.as_deref(),
            registry: &shared.registry,
        }
    }
}

impl Sources<'_> {
    /// The state of now.
    fn state(&self) -> Arc<Index> {
        self.state.load_full()
    }
}

/// Decides about an outbound connection, with whatever that takes.
pub(crate) async fn route(
    of: Sources<'_>,
    flow: &Flow,
    rng: &RefCell<impl Rng>,
) -> Result<Plan, Failure> {
    fill(&of, || mesh::lookup(&of.state(), flow).map(Name::Address)).await?;
    let mut decision = mesh::route(&of.state(), flow, &mut *rng.borrow_mut());
    for _ in 0..LOOKUPS_MAX {
        decision = match decision {
            Decision::Go(plan) => return Ok(plan),
            Decision::Refuse(why) => return Err(Failure::Route(why)),
            Decision::Lacks(Lookup::Resolve(open)) => {
                let addresses = resolve(&of, &flow.source, open.hostname()).await?;
                open.answer(&addresses, &mut *rng.borrow_mut())
            }
        };
    }
    match decision {
        Decision::Go(plan) => Ok(plan),
        Decision::Refuse(why) => Err(Failure::Route(why)),
        Decision::Lacks(lookup) => Err(Failure::Lacks(lookup)),
    }
}

/// Decides about a CONNECT request, with whatever that takes.
pub(crate) async fn admit(of: Sources<'_>, asked: &Connect<'_>) -> Result<Admitted, Failure> {
    fill(&of, || mesh::lookup_inbound(&of.state(), asked)).await?;
    mesh::admit(&of.state(), asked).map_err(Failure::Rejected)
}

/// Fills the gap that `gap` sees in the state, if the state is held on demand. What is known to be nowhere stays a gap.
async fn fill(of: &Sources<'_>, gap: impl Fn() -> Option<Name>) -> Result<(), Failure> {
    let Some(finder) = of.finder else {
        return Ok(());
    };
    let mut asked = None;
    for _ in 0..LOOKUPS_MAX {
        let Some(open) = gap() else {
            return Ok(());
        };
        // held for a moment and gone again: as good as absent
        if asked.as_ref() == Some(&open) {
            return Ok(());
        }
        let (answer, what) = match &open {
            Name::Address(address) => (finder.address(address), address.to_string()),
            Name::Host(name) => (finder.host(name), name.to_string()),
        };
        let _place = of.budget.place().ok_or(Failure::LookupBudget)?;
        let is_there = within(answer)
            .await
            .map_err(|why| Failure::NotFound { what, why })?;
        if !is_there {
            return Ok(());
        }
        asked = Some(open);
    }
    Ok(())
}

async fn resolve(of: &Sources<'_>, source: &Workload, host: &str) -> Result<Vec<IpAddr>, Failure> {
    let _place = of.budget.place().ok_or(Failure::LookupBudget)?;
    of.registry.count_lookup(source, host);
    let answer = within(of.resolver.resolve(host)).await;
    match answer {
        Ok(addresses) if addresses.is_empty() => {
            Err(Failure::Route(Refusal::NotResolved(host.into())))
        }
        Ok(addresses) => Ok(addresses),
        Err(why) => Err(Failure::NotResolved {
            host: host.to_owned(),
            why,
        }),
    }
}

async fn within<T>(answer: Pending<'_, Result<T, String>>) -> Result<T, String> {
    timeout(ANSWER_WAIT, answer)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {ANSWER_WAIT:?}")))
}

#[cfg(test)]
mod tests;
