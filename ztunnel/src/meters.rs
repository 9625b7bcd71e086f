//! Metrics of the rooms that do not count through telemetry themselves, read at each scrape.

use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use capture::Capture;
use proxy::{Shards, Shared};
use telemetry::metrics::{Counters, Family, RegisterError, Registry};

use crate::mesh_file::Fault;
use crate::node::lock;

/// Registers them.
pub fn register(
    registry: &Registry,
    shared: &Arc<Shared>,
    shards: &Arc<Shards>,
    fault: &Fault,
) -> Result<(), RegisterError> {
    let of = Arc::clone(shared);
    registry.register(
        Family::counter(
            "ztunnel_refusals",
            "Connections that were refused or failed, by reason",
        ),
        move |samples| {
            for (reason, count) in of.refusals.counts() {
                samples.push(&[("reason", reason)], count);
            }
        },
    )?;
    let of = Arc::clone(shared);
    registry.register(
        Family::counter(
            "ztunnel_shed_connections",
            "Connections dropped because their pod has too many open",
        ),
        move |samples| {
            for (pod, count) in of.refusals.shed_by_pod() {
                samples.push(&[("pod", &pod)], count);
            }
        },
    )?;
    let of = Arc::clone(shared);
    registry.register(
        Family::counter(
            "ztunnel_source_fallbacks",
            "Connections to an application that do not show it their client's address, as no port was free under it",
        ),
        move |samples| {
            for (pod, count) in of.refusals.fell_back_by_pod() {
                samples.push(&[("pod", &pod)], count);
            }
        },
    )?;
    let of = Arc::clone(shared);
    registry.register(
        Family::gauge(
            "ztunnel_certificate_expiry_seconds",
            "Seconds until the current certificate of a local identity expires",
        ),
        move |samples| {
            for (identity, seconds) in expiries(&of) {
                samples.push(&[("identity", &identity)], seconds);
            }
        },
    )?;
    let of = Arc::clone(fault);
    registry.register(
        Family::gauge(
            "ztunnel_mesh_file_valid",
            "Whether the mesh state file on disk is the one in force",
        ),
        move |samples| {
            samples.push(&[], u64::from(lock(&of).is_none()));
        },
    )?;
    let of = Arc::clone(shards);
    registry.register(
        Family::gauge("ztunnel_data_threads", "Data threads that are running"),
        move |samples| {
            samples.push(&[], of.alive() as u64);
        },
    )
}

/// Registers what the kernel programs count.
pub fn register_capture(
    registry: &Registry,
    capture: &Arc<Mutex<Capture>>,
) -> Result<(), RegisterError> {
    let of = Arc::clone(capture);
    registry.register(
        Family::counter(
            "ztunnel_capture_verdicts",
            "Decisions of the capture programs in the kernel",
        ),
        move |samples| {
            for (verdict, count) in lock(&of).counters() {
                samples.push(&[("verdict", verdict)], count);
            }
        },
    )
}

/// Registers what became of pods that had to wait for their enrolment.
pub fn holds(registry: &Registry) -> Result<Counters, RegisterError> {
    registry.counters(
        "ztunnel_hold_pods",
        "Pods whose connections were held until enrolment, and those that were not enrolled in time, by what was done (held, denied, allowed)",
        "outcome",
    )
}

fn expiries(shared: &Shared) -> Vec<(String, i64)> {
    let unix = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() as i64;
    let now = unix(SystemTime::now());
    let certs = shared.certs.dump();
    certs
        .iter()
        .filter_map(|c| Some((c.identity.clone(), unix(c.expires_at?) - now)))
        .collect()
}
