//! What the mesh is, and every decision about it: plain values in, a value out.
//!
//! No sockets, clock, random source, environment or logging: callers hand in what is needed and print the reasons they get.
//! Floors, lowest first: `name`, `spiffe`; `workload`, `service`, `policy`; `index`; `balance`; `route`, `admit`, `authorize`.
//! Beside them `local` (the local configuration file) and `dump` (what admin shows).
#![forbid(unsafe_code)]

pub mod index;
pub mod name;
pub mod policy;
pub mod service;
pub mod spiffe;
pub mod workload;

pub use index::{Applied, Delta, EndpointRef, Index, Key, Resource};
pub use name::{Interner, NamespacedHostname, NetworkAddress, NetworkCidr, Str};
pub use policy::Policy;
pub use service::Service;
pub use spiffe::SpiffeId;
pub use workload::{Workload, baggage};
