//! What the mesh is, and every decision about it: plain values in, a value out.
//!
//! No sockets, clock, random source, environment or logging: callers hand in what is needed and print the reasons they get.
//! Floors, lowest first: `name`, `ports`; `spiffe`; `workload`, `policy`; `service`, `pools`; `index`; `balance`; `route`, `admit`,
//! `authorize`, `dns`, `local` (the local configuration file), `dump` (what admin shows). Beside them `laws`, for tests.
#![forbid(unsafe_code)]

pub mod admit;
pub mod authorize;
mod balance;
pub mod dns;
pub mod dump;
pub mod index;
pub mod laws;
pub mod local;
pub mod name;
pub mod policy;
pub mod pools;
pub mod ports;
pub mod route;
pub mod service;
pub mod spiffe;
pub mod workload;

pub use admit::{
    Admitted, Authority, Connect, Name, Plain, ProxyHeader, Rejection, admit, admit_plain,
    lookup_inbound,
};
pub use authorize::{Attempt, Denial, Note, Verdict, authorize};
pub use index::{Applied, Delta, EndpointRef, Index, Key, Resource};
pub use name::{Interner, NamespacedHostname, NetworkAddress, NetworkCidr, Str};
pub use policy::Policy;
pub use pools::Pools;
pub use ports::{HBONE_PORT, Ports};
pub use route::{Decision, Flow, Hop, Lookup, Plan, Refusal, Resolve, lookup, route};
pub use service::Service;
pub use spiffe::SpiffeId;
pub use workload::{Place, Profile, Workload, baggage};
