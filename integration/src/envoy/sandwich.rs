//! An Envoy in the middle of a sandwich: a waypoint whose tunnels the node proxy terminates, which takes connections behind
//! PROXY headers and opens its own ones in the clear, for the node proxy to capture.
//!
//! | placeholder | meaning |
//! |---|---|
//! | `NAME`, `ADMIN_PORT` | as in the other templates |
//! | `PORT` | where it listens, the port of its application tunnel |
//! | `CLIENT_PRINCIPAL` | the one identity that it lets through |
//! | `POD_IP`, `POD_PORT` | where everything goes |

use std::net::SocketAddr;

use anyhow::Result;

use super::config::{common, fill};
use super::{Envoy, Seat};

const SANDWICH: &str = include_str!("../../envoy/sandwich.yaml.tmpl");

/// What it is told.
#[derive(Debug, Clone)]
pub struct Sandwich {
    /// where it listens
    pub port: u16,
    /// SPIFFE id that it lets through
    pub client: String,
    /// where everything goes
    pub pod: SocketAddr,
}

impl Envoy {
    /// Starts a waypoint inside of a node proxy's tunnels and waits until it is ready.
    ///
    /// Errors: as [`Envoy::waypoint`].
    pub fn sandwich(seat: Seat, sandwich: &Sandwich) -> Result<Self> {
        let mut values = common(&seat);
        values.extend([
            ("PORT", sandwich.port.to_string()),
            ("CLIENT_PRINCIPAL", sandwich.client.clone()),
            ("POD_IP", sandwich.pod.ip().to_string()),
            ("POD_PORT", sandwich.pod.port().to_string()),
        ]);
        Self::start(seat, &fill(SANDWICH, &values)?)
    }
}
