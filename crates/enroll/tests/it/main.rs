//! Real files, real sockets, real kernel events.

mod source;
mod watch;
mod zds;

use std::future::Future;
use std::time::Duration;

/// Long enough for any machine; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(20);
/// So rare that it does not help a test along.
const NEVER: Duration = Duration::from_secs(3600);

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what)
        .await
        .expect("nothing happened")
}
