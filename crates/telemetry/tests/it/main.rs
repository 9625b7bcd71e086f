//! What leaves this crate: log lines through the real writer thread, metrics as a strict reader sees them.

mod logs;
mod metrics;
mod openmetrics;
