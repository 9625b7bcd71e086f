//! The kernel's clocks: the one that programs in the kernel read, and whether anything keeps the wall clock right.
//!
//! Leaves to others what is measured by them.

use std::io;
use std::mem::MaybeUninit;
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

/// Whether the kernel counts its wall clock as kept right by a time service (`STA_UNSYNC` of adjtimex(2) is off).
#[allow(unsafe_code)]
pub fn is_synchronised() -> io::Result<bool> {
    let mut state = MaybeUninit::<libc::timex>::zeroed();
    // SAFETY: zeroed, so `modes` asks for nothing to be changed; the structure is writable through the call.
    if unsafe { libc::adjtimex(state.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all fields are integers, for which zeroes are valid, and the kernel has filled them.
    let state = unsafe { state.assume_init() };
    Ok(state.status & libc::STA_UNSYNC == 0)
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

    #[test]
    fn the_kernel_says_whether_it_is_kept_right() {
        is_synchronised().unwrap();
    }
}
