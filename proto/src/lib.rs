//! The messages that istiod, istio-cni and the node proxy exchange, generated from the .proto files of this folder.
//!
//! Leaves to others: what they mean (`control` turns them into `mesh` types at the border).
#![forbid(unsafe_code)]

#[allow(missing_docs, unused_qualifications, clippy::all, rustdoc::all)]
mod packages {
    include!(concat!(env!("OUT_DIR"), "/packages.rs"));
}

/// The well-known types that the others use.
pub use packages::google::protobuf as wellknown;

/// The discovery service: requests, responses, and the resources in them.
pub use packages::envoy::service::discovery::v3 as discovery;

/// Workloads and services.
pub use packages::istio::workload;

/// Enrolment of pods by istio-cni's node agent.
pub use packages::istio::workload::zds;

/// Authorization policies.
pub use packages::istio::security;

/// The certificate authority.
pub use packages::istio::v1::auth as ca;
