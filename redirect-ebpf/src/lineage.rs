//! Where a process or a packet's socket stands in the cgroup hierarchy. The walk itself is in `redirect_common::cgroup`.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::{
    bpf_get_current_ancestor_cgroup_id, bpf_ktime_get_ns, bpf_skb_ancestor_cgroup_id,
};
use redirect_common::{CgroupEntry, Lineage, Settings};

use crate::{CGROUPS, SETTINGS};

/// The calling process.
pub struct Current;

/// The socket that a packet belongs to.
pub struct Packet(pub *mut __sk_buff);

impl Lineage for Current {
    #[inline(always)]
    fn ancestor(&self, level: u32) -> u64 {
        // SAFETY: the helper takes any level; levels are small.
        unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) }
    }

    #[inline(always)]
    fn entry(&self, id: u64) -> Option<CgroupEntry> {
        entry(id)
    }

    #[inline(always)]
    fn settings(&self) -> Option<Settings> {
        settings()
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        now()
    }

    #[inline(always)]
    fn learned(&self, level: u32) {
        learned(level);
    }
}

impl Lineage for Packet {
    #[inline(always)]
    fn ancestor(&self, level: u32) -> u64 {
        // SAFETY: the pointer is the program's context; the helper takes any level.
        unsafe { bpf_skb_ancestor_cgroup_id(self.0, level as i32) }
    }

    #[inline(always)]
    fn entry(&self, id: u64) -> Option<CgroupEntry> {
        entry(id)
    }

    #[inline(always)]
    fn settings(&self) -> Option<Settings> {
        settings()
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        now()
    }

    #[inline(always)]
    fn learned(&self, level: u32) {
        learned(level);
    }
}

/// The time as `bpf_ktime_get_ns` tells it.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper takes no argument.
    unsafe { bpf_ktime_get_ns() }
}

#[inline(always)]
fn entry(id: u64) -> Option<CgroupEntry> {
    // SAFETY: the entry is replaced whole by the daemon and copied at once.
    unsafe { CGROUPS.get(id) }.copied()
}

#[inline(always)]
fn settings() -> Option<Settings> {
    SETTINGS.get(0).copied()
}

#[inline(always)]
fn learned(level: u32) {
    if let Some(settings) = SETTINGS.get_ptr_mut(0) {
        // SAFETY: the pointer is into the array's element; a word is written at once, and all writers write the same.
        unsafe { (&raw mut (*settings).level).write_volatile(level) };
    }
}
