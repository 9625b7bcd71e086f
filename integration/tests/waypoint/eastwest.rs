//! Two networks with an Envoy between them on each side: double HBONE to a pod and to a waypoint, both ways.
//!
//! The pods of both networks have the same addresses, so that anything told by address alone would be told wrongly.

mod across;
mod foreign;
mod hostile;
mod life;
mod refused;
mod revoked;
mod scene;
mod truth;
