//! What the kernel objects share: the maps they see, exclusions, and counting. The decisions are in `redirect-common`.
#![no_std]

pub mod door;
pub mod lineage;

use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::ptr::NonNull;

use aya_ebpf::bindings::bpf_map_def;
use aya_ebpf::bindings::bpf_map_type::{BPF_MAP_TYPE_SK_STORAGE, BPF_MAP_TYPE_SOCKHASH};
use aya_ebpf::helpers::{bpf_map_lookup_elem, bpf_sk_storage_delete, bpf_sk_storage_get};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray};
use redirect_common::{
    Address, CGROUPS_MAX, CgroupEntry, Counter, DAEMONS_MAX, EXCLUDED_PORTS_MAX,
    EXCLUDED_RANGES_MAX, EXEMPT_MAX, ExcludedPort, ExcludedRange, Former, LOCALS_MAX, Local,
    OPEN_PORTS_MAX, OpenPort, PODS_MAX, PROBES_MAX, Pod, ProbeKey, Settings, SocketKey,
};

/// `BPF_F_NO_PREALLOC`.
const NO_PREALLOC: u32 = 1;
/// `LIBBPF_PIN_BY_NAME`.
const PIN_BY_NAME: u32 = 1;
/// `BPF_SK_STORAGE_GET_F_CREATE`.
const CREATE: u64 = 1;
/// Kinds of sockets per pod.
const KINDS: u32 = 4;

/// Pods by namespace cookie.
#[map]
pub static PODS: HashMap<u64, Pod> = HashMap::pinned(PODS_MAX, NO_PREALLOC);
/// Own addresses of pods.
#[map]
pub static LOCALS: HashMap<Local, u32> = HashMap::pinned(LOCALS_MAX, NO_PREALLOC);
/// Destinations that pods want left alone.
#[map]
pub static EXCLUDED_RANGES: LpmTrie<ExcludedRange, u32> =
    LpmTrie::pinned(EXCLUDED_RANGES_MAX, NO_PREALLOC);
/// Destination ports that pods want left alone.
#[map]
pub static EXCLUDED_PORTS: HashMap<ExcludedPort, u32> =
    HashMap::pinned(EXCLUDED_PORTS_MAX, NO_PREALLOC);
/// Ports of pods at which whoever listens is reached directly.
#[map]
pub static OPEN_PORTS: HashMap<OpenPort, u32> = HashMap::pinned(OPEN_PORTS_MAX, NO_PREALLOC);
/// Sources that may reach applications directly.
#[map]
pub static EXEMPT: LpmTrie<Address, u32> = LpmTrie::pinned(EXEMPT_MAX, NO_PREALLOC);
/// Daemons by cgroup id.
#[map]
pub static DAEMONS: HashMap<u64, u64> = HashMap::pinned(DAEMONS_MAX, 0);
/// What is known of cgroups, by their ids.
#[map]
pub static CGROUPS: HashMap<u64, CgroupEntry> = HashMap::pinned(CGROUPS_MAX, NO_PREALLOC);
/// What holds for the whole hierarchy: one element.
#[map]
pub static SETTINGS: Array<Settings> = Array::pinned(1, 0);
/// Connections of kubelet, and when they were begun.
#[map]
pub static PROBES: LruHashMap<ProbeKey, u64> = LruHashMap::pinned(PROBES_MAX, 0);
/// Verdicts counted.
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(Counter::ALL.len() as u32, 0);
/// The daemon's sockets in the pods.
#[map]
pub static SOCKETS: Sockets = Sockets(Definition::new(
    BPF_MAP_TYPE_SOCKHASH,
    size_of::<SocketKey>(),
    size_of::<u64>(),
    PODS_MAX * KINDS,
    0,
));
/// Sockets captured at `connect()`. The daemon creates this map, because the kernel wants type information for it.
#[map]
pub static CAPTURED: Storage = Storage(Definition::new(
    BPF_MAP_TYPE_SK_STORAGE,
    size_of::<u32>(),
    size_of::<Former>(),
    0,
    NO_PREALLOC,
));

/// A map definition of a kind that the library has no type for.
#[repr(transparent)]
struct Definition(UnsafeCell<bpf_map_def>);

// SAFETY: the definition is only read by the loader and by the kernel; programs only take its address.
unsafe impl Sync for Definition {}

impl Definition {
    const fn new(type_: u32, key: usize, value: usize, max_entries: u32, map_flags: u32) -> Self {
        Self(UnsafeCell::new(bpf_map_def {
            type_,
            key_size: key as u32,
            value_size: value as u32,
            max_entries,
            map_flags,
            id: 0,
            pinning: PIN_BY_NAME,
        }))
    }

    fn as_ptr(&self) -> *mut c_void {
        self.0.get().cast()
    }
}

/// Socket hash with values of eight bytes, so that the daemon can read socket cookies from it.
#[repr(transparent)]
pub struct Sockets(Definition);

impl Sockets {
    /// The socket under `key`, with a reference that the caller must give back.
    #[inline(always)]
    pub fn find(&self, key: &SocketKey) -> Option<NonNull<c_void>> {
        // SAFETY: the map definition is relocated to the map by the loader, and the key has the map's key size.
        NonNull::new(unsafe { bpf_map_lookup_elem(self.0.as_ptr(), (&raw const *key).cast()) })
    }
}

/// Storage at sockets.
#[repr(transparent)]
pub struct Storage(Definition);

impl Storage {
    /// The entry of `socket`, created zeroed if absent; `None` without memory.
    ///
    /// # Safety
    /// `socket` comes from the program's context.
    #[inline(always)]
    pub unsafe fn create(&self, socket: *mut c_void) -> Option<NonNull<Former>> {
        // SAFETY: as above for the map; the caller answers for the socket. A null initial value means zeroes.
        let entry =
            unsafe { bpf_sk_storage_get(self.0.as_ptr(), socket, core::ptr::null_mut(), CREATE) };
        NonNull::new(entry.cast())
    }

    /// The entry of `socket`, if there is one.
    ///
    /// # Safety
    /// `socket` comes from the program's context and is not null.
    #[inline(always)]
    pub unsafe fn find(&self, socket: *mut c_void) -> Option<NonNull<Former>> {
        // SAFETY: as above.
        let entry =
            unsafe { bpf_sk_storage_get(self.0.as_ptr(), socket, core::ptr::null_mut(), 0) };
        NonNull::new(entry.cast())
    }

    /// Removes the entry of `socket`.
    ///
    /// # Safety
    /// `socket` comes from the program's context and is not null.
    #[inline(always)]
    pub unsafe fn remove(&self, socket: *mut c_void) {
        // SAFETY: as above. The only failure is that there is no entry.
        let _ = unsafe { bpf_sk_storage_delete(self.0.as_ptr(), socket) };
    }
}

/// Reads a context field on its own, now: the verifier refuses a context pointer that the compiler has made of two merged reads.
///
/// The expression must be a field of a program's context, reached through its raw pointer.
#[macro_export]
macro_rules! field {
    ($place:expr) => {
        // SAFETY: contexts are valid for reads of their fields while the program runs.
        unsafe { (&raw const $place).read_volatile() }
    };
}

/// Adds one to a counter of this CPU.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(slot) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the pointer is into this CPU's element of the array; programs are not preempted by themselves on one CPU.
        unsafe { *slot += 1 };
    }
}

/// The entry of a pod.
#[inline(always)]
pub fn pod(cookie: u64) -> Option<Pod> {
    // SAFETY: the entry is replaced whole by the daemon and copied at once.
    unsafe { PODS.get(cookie) }.copied()
}

/// Whether the cgroup is a daemon's.
#[inline(always)]
pub fn is_daemon(cgroup: u64) -> bool {
    // SAFETY: only presence is asked for.
    unsafe { DAEMONS.get(cgroup) }.is_some()
}

/// Whether the pod excludes the address.
#[inline(always)]
pub fn excludes_range(cookie: u64, destination: &Address) -> bool {
    let data = ExcludedRange::new(cookie, *destination);
    let key = Key::new(ExcludedRange::BITS, data);
    EXCLUDED_RANGES.get(&key).is_some()
}

/// Whether the pod excludes the port.
#[inline(always)]
pub fn excludes_port(cookie: u64, port: u16) -> bool {
    // SAFETY: only presence is asked for.
    unsafe { EXCLUDED_PORTS.get(ExcludedPort::new(cookie, port)) }.is_some()
}
