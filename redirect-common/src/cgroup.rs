//! What is known of cgroups below the capture cgroup, and the walk that finds what holds for a process or socket.
//!
//! A pod is known by its cgroup before its network namespace is enrolled; one that is a whole namespace has no cgroup of its own and
//! is known by the namespace. Leaves what follows from it to [`crate::verdict`] and [`crate::guard`].

use crate::Pod;

/// What holds for the processes and sockets of a cgroup and of those below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CgroupState {
    /// Only groups others: what is below it is asked for on its own.
    Group,
    /// Not for the mesh, or no longer: none of our business.
    Free,
    /// Expected in the mesh, not enrolled yet: connections wait.
    Held,
    /// Expected in the mesh, and not enrolled in time: connections are refused.
    Denied,
    /// In the mesh, with the network namespace of this cookie.
    Enrolled(u64),
}

impl CgroupState {
    /// The word for it in logs, metrics and dumps.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Group => "group",
            Self::Free => "free",
            Self::Held => "held",
            Self::Denied => "denied",
            Self::Enrolled(_) => "enrolled",
        }
    }
}

/// [`CgroupState`] as it lies in the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct CgroupEntry {
    /// One of the constants below.
    pub state: u32,
    /// Always 0.
    pub padding: u32,
    /// Cookie of the enrolled namespace, else 0.
    pub cookie: u64,
}

impl CgroupEntry {
    const GROUP: u32 = 1;
    const FREE: u32 = 2;
    const HELD: u32 = 3;
    const DENIED: u32 = 4;
    const ENROLLED: u32 = 5;

    /// The entry for a state.
    pub const fn new(state: CgroupState) -> Self {
        let (state, cookie) = match state {
            CgroupState::Group => (Self::GROUP, 0),
            CgroupState::Free => (Self::FREE, 0),
            CgroupState::Held => (Self::HELD, 0),
            CgroupState::Denied => (Self::DENIED, 0),
            CgroupState::Enrolled(cookie) => (Self::ENROLLED, cookie),
        };
        Self {
            state,
            padding: 0,
            cookie,
        }
    }

    /// The state; what nobody knows counts as held.
    #[inline(always)]
    pub const fn state(self) -> CgroupState {
        match self.state {
            Self::GROUP => CgroupState::Group,
            Self::FREE => CgroupState::Free,
            Self::DENIED => CgroupState::Denied,
            Self::ENROLLED => CgroupState::Enrolled(self.cookie),
            _ => CgroupState::Held,
        }
    }
}

/// What the programs must know of the whole hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// Id of the capture cgroup.
    pub capture: u64,
    /// Until when cgroups that nobody has told about are held: nanoseconds as `bpf_ktime_get_ns` counts them.
    pub hold_until: u64,
    /// Level of the capture cgroup, the root of the hierarchy being 0: a first guess, verified and corrected by the programs.
    pub level: u32,
    /// Always 0.
    pub padding: u32,
}

/// Levels below the capture cgroup that are looked at: a pod's cgroup must not lie deeper.
pub const DEPTH_MAX: u32 = 8;
/// Deepest level at which the capture cgroup itself is found.
pub const LEVEL_MAX: u32 = 12;

/// What the walk may ask; each answer costs a helper call or a lookup.
pub trait Lineage {
    /// Id of the ancestor at `level` (the root is 0, the own level gives the own id); 0 below the own level.
    fn ancestor(&self, level: u32) -> u64;
    /// What is known of a cgroup.
    fn entry(&self, id: u64) -> Option<CgroupEntry>;
    /// The settings; none before the daemon has written them.
    fn settings(&self) -> Option<Settings>;
    /// Now, as `bpf_ktime_get_ns` counts.
    fn now(&self) -> u64;
    /// The capture cgroup's level turned out to be another one than in the settings.
    fn learned(&self, level: u32);
}

/// What holds for a process or a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Not below the capture cgroup, not in a pod, or in one that is not for the mesh.
    Free,
    /// Its pod, or what may become one, is waited for.
    Held,
    /// Its pod was waited for in vain.
    Denied,
    /// Its pod is enrolled with the network namespace of this cookie.
    Enrolled(u64),
}

/// Walks down from the capture cgroup: the first cgroup that is not a mere group decides. One that nobody has told about is held while
/// the settings say so, unless a cgroup below it decides.
#[inline(always)]
pub fn standing(lineage: &impl Lineage) -> Standing {
    let Some(settings) = lineage.settings() else {
        return Standing::Free;
    };
    let Some(level) = anchor(lineage, &settings) else {
        return Standing::Free;
    };
    let mut unknown = false;
    let mut depth = 1;
    while depth <= DEPTH_MAX {
        let id = lineage.ancestor(level + depth);
        if id == 0 {
            break;
        }
        match lineage.entry(id).map(CgroupEntry::state) {
            Some(CgroupState::Group) => {}
            Some(CgroupState::Free) => return Standing::Free,
            Some(CgroupState::Held) => return Standing::Held,
            Some(CgroupState::Denied) => return Standing::Denied,
            Some(CgroupState::Enrolled(cookie)) => return Standing::Enrolled(cookie),
            None => unknown = true,
        }
        depth += 1;
    }
    if unknown && settings.hold_until != 0 && lineage.now() < settings.hold_until {
        return Standing::Held;
    }
    Standing::Free
}

/// What holds for a packet for which no cgroup says anything, by the namespace with `cookie` that it is in and that namespace's entry.
#[inline(always)]
pub fn by_namespace(cookie: u64, pod: Option<Pod>) -> Standing {
    match pod {
        Some(pod) if pod.has(Pod::WHOLE) && pod.has(Pod::CAPTURE) => Standing::Enrolled(cookie),
        _ => Standing::Free,
    }
}

/// The level of the capture cgroup, if it is among the ancestors.
#[inline(always)]
fn anchor(lineage: &impl Lineage, settings: &Settings) -> Option<u32> {
    let guess = settings.level & 0xf;
    if lineage.ancestor(guess) == settings.capture {
        return Some(guess);
    }
    let mut level = 0;
    while level <= LEVEL_MAX {
        if lineage.ancestor(level) == settings.capture {
            lineage.learned(level);
            return Some(level);
        }
        level += 1;
    }
    None
}
