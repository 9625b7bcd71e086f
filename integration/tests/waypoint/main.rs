//! Tests with a real Envoy as waypoint and as gateway between networks. They need root; without it each fails and says so.
#![forbid(unsafe_code)]

mod eastwest;
mod ground;
mod sandwich;
mod waypoint_bytes;
mod waypoint_http;
mod waypoint_life;
mod waypoint_refused;
mod waypoint_seen;
mod waypoint_ways;
