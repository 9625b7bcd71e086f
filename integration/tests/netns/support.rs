//! What most tests begin with.

use std::time::Duration;

use anyhow::Result;
use integration::{Daemon, Layout, World, place};

/// Most time for something that another process does at once.
pub const SOON: Duration = Duration::from_secs(10);

/// A world with the applications' binaries built.
pub fn world(layout: &Layout) -> Result<World> {
    place::build_once()?;
    World::raise(layout)
}

/// References, as [`World::label`] takes them.
pub fn all(daemons: &[Daemon]) -> Vec<&Daemon> {
    daemons.iter().collect()
}
