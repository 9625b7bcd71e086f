//! The mesh as the admin port shows it: view types for JSON, keys in alphabetical order at every level.
//!
//! The shapes are contracts with tools. Leaves to others: the other parts of the dump, and writing it out.

mod view;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use crate::index::{Index, Resource};
use crate::name::NamespacedHostname;
use crate::policy::Policy;
use crate::service::Service;
use crate::workload::Workload;

/// What an index holds at one moment. Taking it copies pointers only, so that no guard on the index need be held while writing.
#[derive(Clone, Debug)]
pub struct Snapshot {
    policies: Vec<Arc<Policy>>,
    services: Vec<(Arc<Service>, Endpoints)>,
    staged: Vec<(NamespacedHostname, Endpoints)>,
    workloads: Vec<Arc<Workload>>,
}

type Endpoints = Vec<view::Found>;

impl Snapshot {
    /// Takes one.
    pub fn take(index: &Index) -> Self {
        let owned = |all: &mut dyn Iterator<Item = crate::EndpointRef<'_>>| -> Endpoints {
            all.map(|e| (e.workload.clone(), e.ports.clone(), e.status))
                .collect()
        };
        let mut policies: Vec<_> = index.policies().cloned().collect();
        policies.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        let mut services: Vec<_> = index
            .services()
            .map(|s| (s.clone(), owned(&mut index.endpoints(s))))
            .collect();
        services.sort_by(|(a, _), (b, _)| {
            (&a.hostname, &a.namespace).cmp(&(&b.hostname, &b.namespace))
        });
        let mut staged: Vec<_> = index
            .unknown_services()
            .map(|(name, mut all)| (name, owned(&mut all)))
            .collect();
        staged.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut workloads: Vec<_> = index.workloads().cloned().collect();
        workloads.sort_by(|a, b| a.uid.cmp(&b.uid));
        Self {
            policies,
            services,
            staged,
            workloads,
        }
    }

    /// `policies`: a list sorted by namespace and name.
    pub fn policies(&self) -> impl Serialize + '_ {
        List(|| self.policies.iter().map(|p| view::PolicyView::of(p)))
    }

    /// `services`: a list sorted by host name.
    pub fn services(&self) -> impl Serialize + '_ {
        List(|| {
            self.services
                .iter()
                .map(|(service, endpoints)| view::ServiceView::of(service, endpoints))
        })
    }

    /// `stagedServices`: by `namespace/hostname` the endpoints of Services that are not known yet.
    pub fn staged_services(&self) -> impl Serialize + '_ {
        let all = self
            .staged
            .iter()
            .map(|(name, endpoints)| (name.to_string(), view::endpoints(endpoints)));
        all.collect::<BTreeMap<_, _>>()
    }

    /// `workloads`: a list sorted by uid.
    pub fn workloads(&self) -> impl Serialize + '_ {
        List(|| {
            self.workloads
                .iter()
                .map(|w| view::WorkloadView::of(w, view::Memberships::names(w)))
        })
    }
}

/// `staticConfig`: what the local file holds. Workloads show their Services with ports, as the file does.
pub fn static_config(resources: &[Resource]) -> impl Serialize + '_ {
    let mut view = view::StaticView::default();
    for resource in resources {
        match resource {
            Resource::Policy(policy) => view.policies.push(view::PolicyView::of(policy)),
            Resource::Service(service) => view.services.push(view::ServiceView::of(service, &[])),
            Resource::Workload(workload) => {
                view.workloads.push(view::WorkloadView::of(
                    workload,
                    view::Memberships::ports(workload),
                ));
            }
        }
    }
    view
}

/// A list whose items are made while it is written.
struct List<F>(F);

impl<F, I> Serialize for List<F>
where
    F: Fn() -> I,
    I: Iterator<Item: Serialize>,
{
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq((self.0)())
    }
}

#[cfg(test)]
mod tests;
