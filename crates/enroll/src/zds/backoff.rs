//! How long to wait before the next attempt.

use std::time::Duration;

/// Longest pause (spec: inpod §5).
const PAUSE_MAX: Duration = Duration::from_secs(15);

/// Pauses that double up to 15 s.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    next: Duration,
}

impl Backoff {
    /// Pauses that begin with `first`.
    pub(super) fn new(first: Duration) -> Self {
        Self { first, next: first }
    }

    /// The pause to make now.
    pub(super) fn next(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(PAUSE_MAX);
        pause
    }

    /// It worked.
    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_bound_and_begin_anew() {
        let mut backoff = Backoff::new(Duration::from_millis(20));
        let pauses: Vec<u128> = (0..12).map(|_| backoff.next().as_millis()).collect();
        let expected = [
            20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10240, 15000, 15000,
        ];
        assert_eq!(pauses, expected);
        backoff.reset();
        assert_eq!(backoff.next().as_millis(), 20);
    }
}
