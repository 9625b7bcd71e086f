//! What the kernel says of this process, from `/proc/self`.

/// Open file descriptors, without the one used to count them. `None` when `/proc` is not there.
pub(super) fn open_fds() -> Option<u64> {
    let count = std::fs::read_dir("/proc/self/fd").ok()?.flatten().count();
    u64::try_from(count).ok()?.checked_sub(1)
}

/// The soft limit of open file descriptors. `None` when it is not known or unlimited.
pub(super) fn max_fds() -> Option<u64> {
    soft_limit(&std::fs::read_to_string("/proc/self/limits").ok()?)
}

/// Source: proc(5), `/proc/pid/limits`: name, soft limit, hard limit, unit.
fn soft_limit(limits: &str) -> Option<u64> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_text() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max processes             127235               127235               processes \n\
                    Max open files            1024                 524288               files     \n";
        assert_eq!(soft_limit(text), Some(1024));
        assert_eq!(
            soft_limit("Max open files  unlimited unlimited files"),
            None
        );
        assert_eq!(soft_limit(""), None);
    }

    #[test]
    fn this_process() {
        assert!(open_fds().unwrap() >= 3);
        assert!(max_fds().unwrap() >= open_fds().unwrap());
    }
}
