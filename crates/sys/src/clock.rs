//! The kernel's clock, as programs in the kernel read it.
//!
//! Leaves to others what is measured by it.

use std::io;
use std::time::Duration;

/// Time since boot without suspension (`CLOCK_MONOTONIC`): what `bpf_ktime_get_ns` returns.
#[allow(unsafe_code)]
pub fn monotonic() -> io::Result<Duration> {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the address is that of a timespec of ours, writable through the call.
    if unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let part = |value: i64| u64::try_from(value).map_err(|_| io::ErrorKind::InvalidData);
    Ok(Duration::from_secs(part(now.tv_sec)?) + Duration::from_nanos(part(now.tv_nsec)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on() {
        let first = monotonic().unwrap();
        assert!(first > Duration::ZERO);
        assert!(monotonic().unwrap() >= first);
    }
}
