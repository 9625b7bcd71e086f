//! A small world to try the daemon in: nodes and pods as network namespaces with their cgroups, one daemon per node,
//! real applications, and the means to see what happened: wire captures, access logs, metrics, dumps.
//!
//! Used by the tests of this package, by the demo and by the benchmarks. It needs root, and says so. What the daemon
//! does is none of its business: everything here is set up and looked at from outside.
#![forbid(unsafe_code)]

pub mod access;
pub mod apiserver;
pub mod cgroup;
pub mod cni;
pub mod daemon;
pub mod demo;
pub mod envoy;
pub mod http;
pub mod istiod;
pub mod leftovers;
pub mod metrics;
pub mod model;
pub mod netns;
pub mod peer;
pub mod place;
pub mod pod;
pub mod record;
pub mod serve;
pub mod wait;
pub mod wire;
pub mod world;

pub use access::AccessLine;
pub use apiserver::ApiServer;
pub use daemon::{Daemon, Exit};
pub use envoy::Envoy;
pub use istiod::Istiod;
pub use metrics::Metrics;
pub use model::{Model, Policy, Service};
pub use pod::{App, Pod};
pub use wait::until;
pub use wire::{Capture, Packets};
pub use world::kubernetes::{Driver, REDIRECTION};
pub use world::{Layout, Node, PodPlan, World};
