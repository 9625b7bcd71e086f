//! The control plane's side of the daemon against a real server: real TLS, real gRPC.

mod ca;
mod channel;
mod pki;
mod server;
mod xds;

use std::future::Future;
use std::time::Duration;

/// What must happen happens soon: a bound on a test that would hang, not a measure of speed.
pub async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), work)
        .await
        .expect("nothing happened in 20 s")
}
