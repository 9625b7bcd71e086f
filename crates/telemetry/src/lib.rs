//! What the daemon tells about itself: log lines ([`log`]), one access-log line per connection ([`access`]) and metrics ([`metrics`]).
//!
//! Names, orders and shapes here are contracts with dashboards and log pipelines; each is written in one place and golden-tested.
//! Counting and deciding what to report is left to the rooms that own the facts; serving `/metrics` and `/logging` is left to `ztunnel`.
#![forbid(unsafe_code)]

pub mod access;
pub mod log;
pub mod metrics;
