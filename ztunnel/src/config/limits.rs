//! How much the daemon may take: threads, pools, windows, times.

use std::time::Duration;

use super::proxy_config::ProxyConfig;
use super::value::{Env, Invalid, workers};

/// Bounds of the kernel: `MAX_TCP_KEEPIDLE`, `MAX_TCP_KEEPINTVL` and `MAX_TCP_KEEPCNT` of `net/tcp.h`.
const KEEPALIVE_TIMES: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(32_767);
const KEEPALIVE_PROBES: std::ops::RangeInclusive<u32> = 1..=127;
/// What HTTP/2 can express (RFC 9113, sections 6.5.2 and 6.9.1).
const FRAME_BYTES: std::ops::RangeInclusive<u32> = 16_384..=16_777_215;
const WINDOW_BYTES_MAX: u32 = (1 << 31) - 1;
/// A connection's window begins with this and can only grow (RFC 9113, section 6.9.2).
const CONNECTION_WINDOW_BYTES_MIN: u32 = 65_535;

/// TCP keepalive of sockets towards applications and peers, accepted and dialled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keepalive {
    /// off = no keepalive at all
    pub enabled: bool,
    /// idle time before the first probe
    pub time: Duration,
    /// time between probes
    pub interval: Duration,
    /// probes without answer before the connection is dropped
    pub retries: u32,
    /// `TCP_USER_TIMEOUT` = time + retries × interval
    pub user_timeout: bool,
}

impl Keepalive {
    pub(super) fn read(env: &Env<'_>) -> Result<Self, Invalid> {
        let span = |name, default| {
            let span = env.duration(name, Duration::from_secs(default))?;
            if KEEPALIVE_TIMES.contains(&span) {
                return Ok(span);
            }
            let text = env.raw(name).unwrap_or_default();
            Err(Invalid::new(name, text, "a duration from 1s to 32767s"))
        };
        Ok(Self {
            enabled: env.bool("KEEPALIVE_ENABLED", true)?,
            time: span("KEEPALIVE_TIME", 180)?,
            interval: span("KEEPALIVE_INTERVAL", 180)?,
            retries: env.within("KEEPALIVE_RETRIES", 9, KEEPALIVE_PROBES)?,
            user_timeout: env.bool("USER_TIMEOUT_ENABLED", false)?,
        })
    }
}

/// HTTP/2 parameters and the bounds of the tunnel pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http2 {
    /// initial stream window, bytes
    pub stream_window: u32,
    /// connection window, bytes
    pub connection_window: u32,
    /// largest frame, bytes
    pub frame_size: u32,
    /// streams per pooled connection
    pub pool_max_streams: u16,
    /// idle time after which a pooled connection is released
    pub pool_idle: Duration,
}

impl Http2 {
    pub(super) fn read(env: &Env<'_>) -> Result<Self, Invalid> {
        Ok(Self {
            stream_window: env.within("HTTP2_STREAM_WINDOW_SIZE", 4 << 20, 1..=WINDOW_BYTES_MAX)?,
            connection_window: env.within(
                "HTTP2_CONNECTION_WINDOW_SIZE",
                16 << 20,
                CONNECTION_WINDOW_BYTES_MIN..=WINDOW_BYTES_MAX,
            )?,
            frame_size: env.within("HTTP2_FRAME_SIZE", 1 << 20, FRAME_BYTES)?,
            pool_max_streams: env.within("POOL_MAX_STREAMS_PER_CONNECTION", 100, 1..=u16::MAX)?,
            pool_idle: env.duration("POOL_UNUSED_RELEASE_TIMEOUT", Duration::from_secs(300))?,
        })
    }
}

/// Data threads (spec: configuration §5): an explicit count or share of the cores, the proxy configuration's
/// `concurrency`, else what the limits allow.
pub(super) fn threads(env: &Env<'_>, proxy: &ProxyConfig) -> Result<usize, Invalid> {
    let limit = env.cpus("ZTUNNEL_RESOURCE_CPU_LIMIT")?;
    let request = env.cpus("ZTUNNEL_RESOURCE_CPU_REQUEST")?.unwrap_or(0);
    let allowed = env.count::<usize>("ZTUNNEL_CPU_LIMIT")?;
    let cores = limit.or(allowed).unwrap_or(env.cores()).max(1);
    if let Some(text) = env.raw("ZTUNNEL_WORKER_THREADS") {
        return workers(text, cores).ok_or_else(|| {
            Invalid::new(
                "ZTUNNEL_WORKER_THREADS",
                text,
                "a number, 0 for all cores, or a share such as 50%",
            )
        });
    }
    Ok(match (proxy.concurrency, limit) {
        (Some(0), _) => cores,
        (Some(threads), _) => threads.into(),
        (None, Some(limit)) => limit.max(request),
        (None, None) => cores.div_ceil(4).max(request).max(2),
    }
    .max(1))
}

/// Time for open connections at termination (spec: configuration §6); our own `DRAIN_MAX` wins.
pub(super) fn drain_deadline(env: &Env<'_>) -> Result<Duration, Invalid> {
    const DEFAULT: Duration = Duration::from_secs(5);
    if env.raw("DRAIN_MAX").is_some() {
        return env.duration("DRAIN_MAX", DEFAULT);
    }
    let explicit = env.duration("CONNECTION_TERMINATION_DEADLINE", DEFAULT)?;
    let grace: Option<u64> = env.count("TERMINATION_GRACE_PERIOD_SECONDS")?;
    let Some(grace) = grace.filter(|_| env.raw("CONNECTION_TERMINATION_DEADLINE").is_none()) else {
        return Ok(explicit);
    };
    let left = if grace > 10 {
        grace - 5
    } else {
        grace.saturating_sub(1)
    };
    Ok(Duration::from_secs(left.max(1)))
}
