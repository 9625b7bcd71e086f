//! Panics of any thread: told in the log and counted. That they end no more than their flow is the affair of each room.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::sync::atomic::{AtomicU64, Ordering};

use telemetry::metrics::{Family, RegisterError, Registry};

/// Since the process began. The hook is the process's own, so this is as well.
static SEEN: AtomicU64 = AtomicU64::new(0);

/// Logs and counts every panic from now on, with its backtrace if `RUST_BACKTRACE` asks for one.
pub fn watch() {
    std::panic::set_hook(Box::new(|panic| {
        SEEN.fetch_add(1, Ordering::Relaxed);
        let place = panic.location().map(ToString::to_string);
        let frames = Backtrace::capture();
        let backtrace = (frames.status() == BacktraceStatus::Captured).then(|| frames.to_string());
        tracing::error!(place, backtrace, "panic: {panic}");
    }));
}

/// Registers the count.
pub fn register(registry: &Registry) -> Result<(), RegisterError> {
    let family = Family::counter(
        "ztunnel_panics",
        "Panics caught, each a fault of this program",
    );
    registry.register(family, |samples| {
        samples.push(&[], SEEN.load(Ordering::Relaxed));
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_are_counted() {
        let registry = Registry::new();
        register(&registry).unwrap();
        watch();
        let ended = std::thread::spawn(|| panic!("on purpose")).join();
        drop(std::panic::take_hook());
        assert!(ended.is_err());
        let text = registry.encode([]).1;
        let line = text
            .lines()
            .find(|line| line.starts_with("ztunnel_panics_total "));
        let count: u64 = line.unwrap().rsplit(' ').next().unwrap().parse().unwrap();
        assert!(count >= 1, "{text}");
    }
}
