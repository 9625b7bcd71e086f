//! Waiting for another process to have done something, with a deadline and a name for what did not come.
//!
//! What can be awaited as an event (a line of output, the end of a process) is awaited as one elsewhere; this is for
//! the rest: files, dumps and counters of other processes.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Looks again and again until `look` returns something.
///
/// - `what`: named in the error
///
/// Errors: `what` did not come within `limit`; an error of `look` itself ends the wait at once.
pub fn until<T>(
    limit: Duration,
    what: &str,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            bail!("{what}: did not happen within {limit:?}");
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// [`until`] for a plain condition.
///
/// Errors: as there.
pub fn until_true(limit: Duration, what: &str, mut look: impl FnMut() -> bool) -> Result<()> {
    until(limit, what, || Ok(look().then_some(())))
}
