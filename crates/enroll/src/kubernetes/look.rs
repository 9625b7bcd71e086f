//! When a pod's place is looked for. Pure.

use std::time::{Duration, Instant};

/// First pause after a look.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// Longest pause while a pod has no place.
const PAUSE_MAX: Duration = Duration::from_millis(1000);
/// Pause between two looks at a pod whose place is known.
const SETTLED: Duration = Duration::from_secs(30);
/// How long a deleted pod's processes are waited for.
pub(super) const LINGER: Duration = Duration::from_secs(30);
/// Pause between two looks meanwhile.
const LINGER_PAUSE: Duration = Duration::from_millis(100);

/// When to look next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) next: Instant,
    pause: Duration,
    done: bool,
}

impl Look {
    /// Looks at once.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            next: now,
            pause: PAUSE_MIN,
            done: false,
        }
    }

    /// Something may be different: looks at once, and some times more.
    pub(super) fn soon(&mut self, now: Instant) {
        self.next = now;
        self.pause = PAUSE_MIN;
    }

    /// Was looked; `placed`: the place is known.
    pub(super) fn done(&mut self, now: Instant, placed: bool) {
        self.done = true;
        let settled = placed && self.pause >= PAUSE_MAX;
        self.next = now + if settled { SETTLED } else { self.pause };
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    /// Was looked at while it ends.
    pub(super) fn linger(&mut self, now: Instant) {
        self.done = true;
        self.next = now + LINGER_PAUSE;
    }

    /// Whether there was a look at all.
    pub(super) fn was_done(&self) -> bool {
        self.done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_get_rarer() {
        let mut now = Instant::now();
        let mut look = Look::new(now);
        assert!(!look.was_done() && look.next == now);
        let mut pauses = |look: &mut Look, placed, count: usize| -> Vec<u128> {
            (0..count)
                .map(|_| {
                    look.done(now, placed);
                    let pause = look.next - now;
                    now = look.next;
                    pause.as_millis()
                })
                .collect()
        };
        let rising = [10, 20, 40, 80, 160, 320, 640];
        assert_eq!(
            pauses(&mut look, false, 9),
            [&rising[..], &[1000, 1000]].concat()
        );
        look.soon(look.next);
        assert_eq!(
            pauses(&mut look, true, 9),
            [&rising[..], &[30_000, 30_000]].concat()
        );
    }
}
