//! When to ask for the next certificate: plain arithmetic, clock and chance are handed in.

use std::time::{Duration, SystemTime};

/// Wait after the first failure.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// Longest wait between two attempts.
pub(crate) const RETRY_MAX: Duration = Duration::from_secs(150);
/// Share by which a wait is stretched or shortened at random.
const RETRY_SPREAD: f64 = 0.2;
/// After failing for so long, every wait is [`RETRY_MAX`].
const RETRY_CONSTANT_AFTER: Duration = Duration::from_secs(15 * 60);
/// Largest share of the half-life by which a renewal may come earlier.
const JITTER_MAX: f64 = 0.2;

/// A certificate that ends before it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the validity is empty: it ends before it begins")]
pub struct EmptyValidity;

/// Picks when to ask for the next leaf: mid-validity, earlier by jitter, so that pods enrolled together do not renew together.
///
/// - `not_before`, `not_after`: wall clock, UTC
/// - `jitter`: share of the half-life to come earlier, `0.0..=0.2`; values outside count as the nearest bound
///
/// Errors: [`EmptyValidity`] when `not_before >= not_after`.
/// Source: RFC 5280, section 4.1.2.5 (validity); the midpoint as in Istio's ztunnel.
pub fn renew_at(
    not_before: SystemTime,
    not_after: SystemTime,
    jitter: f64,
) -> Result<SystemTime, EmptyValidity> {
    let life = not_after
        .duration_since(not_before)
        .map_err(|_| EmptyValidity)?;
    if life.is_zero() {
        return Err(EmptyValidity);
    }
    let half = life / 2;
    let share = if jitter.is_nan() {
        0.0
    } else {
        jitter.clamp(0.0, JITTER_MAX)
    };
    Ok(not_before + (half - half.mul_f64(share)))
}

/// Picks how long to wait after a failure: 1 s, doubled per failure in a row, ±20 %, at most 150 s.
///
/// - `failures`: failures in a row, this one included; 0 counts as 1
/// - `failing_for`: since the first of them; from 15 minutes on the wait is 150 s, without chance
/// - `dice`: uniform in `0.0..1.0`
pub fn retry_delay(failures: u32, failing_for: Duration, dice: f64) -> Duration {
    if failing_for >= RETRY_CONSTANT_AFTER {
        return RETRY_MAX;
    }
    let doublings = failures.saturating_sub(1).min(16); // 2^16 s is far above the cap
    let base = RETRY_FIRST * (1 << doublings);
    let dice = if dice.is_nan() {
        0.5
    } else {
        dice.clamp(0.0, 1.0)
    };
    let spread = 1.0 - RETRY_SPREAD + 2.0 * RETRY_SPREAD * dice;
    base.min(RETRY_MAX).mul_f64(spread).min(RETRY_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(secs)
    }

    #[test]
    fn renews_in_the_middle_or_a_little_earlier() {
        for (from, until, jitter, expected) in [
            (1000, 2000, 0.0, at(1500)),
            (1000, 2000, 0.1, at(1450)),
            (1000, 2000, 0.2, at(1400)),
            (1000, 2000, 7.0, at(1400)),
            (1000, 2000, -1.0, at(1500)),
            (1000, 2000, f64::NAN, at(1500)),
        ] {
            assert_eq!(
                renew_at(at(from), at(until), jitter),
                Ok(expected),
                "jitter {jitter}"
            );
        }
        assert_eq!(renew_at(at(5), at(5), 0.0), Err(EmptyValidity));
        assert_eq!(renew_at(at(6), at(5), 0.0), Err(EmptyValidity));
    }

    #[test]
    fn waits_double_up_to_the_cap() {
        let now = Duration::ZERO;
        for (failures, low_ms, high_ms) in [
            (0, 800, 1200),
            (1, 800, 1200),
            (2, 1600, 2400),
            (7, 51_200, 76_800),
            (8, 102_400, 150_000),
            (99, 120_000, 150_000),
        ] {
            assert_eq!(
                retry_delay(failures, now, 0.0),
                Duration::from_millis(low_ms),
                "{failures} failures"
            );
            assert_eq!(
                retry_delay(failures, now, 1.0),
                Duration::from_millis(high_ms),
                "{failures} failures"
            );
        }
    }

    #[test]
    fn waits_are_constant_after_a_quarter_of_an_hour() {
        assert_eq!(retry_delay(1, Duration::from_secs(900), 0.0), RETRY_MAX);
        assert_eq!(retry_delay(30, Duration::from_secs(90_000), 0.3), RETRY_MAX);
    }
}
