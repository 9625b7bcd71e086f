//! CPU time from `/proc`: of single processes and of the whole machine.

use anyhow::{Context, Result};

/// Clock ticks per second in `/proc`: fixed by the kernel's interface (USER_HZ) on every architecture we run on.
const TICKS_PER_SEC: f64 = 100.0;

/// CPU seconds, user and system, that these processes have used so far; one that is gone is an error.
pub fn of(pids: &[u32]) -> Result<f64> {
    pids.iter().map(|pid| one(*pid)).sum()
}

fn one(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    used(&text).with_context(|| format!("cannot parse {path}"))
}

/// Fields 14 and 15 of proc(5)'s `stat`; the name in field 2 may hold anything, so counting starts after it.
fn used(stat: &str) -> Option<f64> {
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let ticks = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some((ticks(11)? + ticks(12)?) as f64 / TICKS_PER_SEC)
}

/// CPU seconds that this machine was busy since it started, interrupts included.
pub fn machine() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    busy(&text).context("cannot parse /proc/stat")
}

/// The first line of `/proc/stat` without idle (4th) and iowait (5th); guest time is already in user time.
fn busy(stat: &str) -> Option<f64> {
    let ticks: Vec<u64> = stat
        .lines()
        .next()?
        .split_whitespace()
        .skip(1)
        .map_while(|word| word.parse().ok())
        .collect();
    let all: u64 = ticks.iter().take(8).sum();
    Some((all - ticks.get(3)? - ticks.get(4)?) as f64 / TICKS_PER_SEC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_read() {
        let stat = "42 (a ) b) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 100 0 0";
        assert_eq!(used(stat), Some(3.0));
        assert_eq!(
            busy("cpu  100 0 50 1000 7 0 50 0 0 0\ncpu0 1 2\n"),
            Some(2.0)
        );
        assert!(of(&[std::process::id()]).is_ok_and(|secs| secs >= 0.0));
    }
}
