//! All that talks to istiod: the authenticated channel, the xDS subscriber, the Istio CA as an issuer of certificates.
//!
//! Leaves to others: what the state means (`mesh`), keys and TLS of workloads (`identity`), environment and files of settings.
#![forbid(unsafe_code)]

pub mod ca;
mod cause;
pub mod channel;
mod file;
pub mod node;
pub mod publish;
mod roots;
mod token;
pub mod xds;

pub use file::ReadError;
pub use publish::Publisher;
