//! Letting pods go: retiring, releasing, and undoing what a daemon left that is gone.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use redirect_common::{CgroupState, Kind, Pod, Saved};
use sys::Netns;
use sys::bpf::Target;
use tracing::debug;

use super::{Capture, apply_routes, apply_rules};
use crate::error::{ReleaseError, StartError, Step};
use crate::maps::Maps;
use crate::netlink::Netlink;
use crate::pins::{self, Pins};
use crate::pod::State;
use crate::{programs, saved};

/// What [`release_pinned`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// Pods released.
    pub pods: usize,
    /// What could not be undone, for a human.
    pub problems: Vec<String>,
}

impl Capture {
    /// Lets go of all namespaces, and changes nothing in the kernel: for a process that only finishes what it has.
    pub fn abandon(&mut self) {
        self.pods.clear();
        self.retired.clear();
    }

    /// First half of letting a pod go: nothing new is captured, what is captured goes on. Keeps the rules and routes that
    /// captured connections need until [`Capture::release`]. The pod's sockets may be closed after this.
    ///
    /// Errors: the first step that failed; all others were still taken.
    pub fn retire(&mut self, cookie: u64) -> Result<(), ReleaseError> {
        let Some(mut entry) = self.pods.remove(&cookie) else {
            return Ok(());
        };
        self.retired.insert(cookie, Arc::clone(&entry.pod.netns));
        let mut failures = Vec::new();
        let mut note =
            |step, result: io::Result<()>| failures.extend(result.err().map(|cause| (step, cause)));
        note(
            Step::Cgroup,
            self.maps.rewrite_cgroups(cookie, CgroupState::Free),
        );
        if let Some(pod) = self.maps.pod(cookie) {
            let flags = pod.flags & !Pod::CAPTURE;
            note(Step::Switch, self.maps.set_pod(cookie, Some(flags)));
        }
        entry.pod.flags.dns = false;
        let rules = Netlink::open(&entry.pod.netns).and_then(|mut netlink| {
            let wanted = self.wanted(&entry, &mut netlink)?;
            apply_rules(&mut netlink, &wanted)
        });
        note(Step::Rules, rules);
        note(Step::Lookup, detach(&self.pins.lookup(cookie)));
        for kind in Kind::ALL {
            note(Step::Sockets, self.maps.remove_socket(cookie, kind));
        }
        match failures.into_iter().next() {
            None => Ok(()),
            Some((step, cause)) => Err(ReleaseError {
                uid: entry.pod.uid,
                step,
                cause,
            }),
        }
    }

    /// Leaves a pod as it was found, in the reverse order of enrolling; also one that a predecessor enrolled, or whose namespace is gone.
    ///
    /// Close the pod's sockets after this: from now on its connections go straight to where they are meant to.
    /// Errors: the first step that failed; all others were still taken. What is needed to try again stays pinned.
    pub fn release(&mut self, cookie: u64) -> Result<(), ReleaseError> {
        let entry = self.pods.remove(&cookie);
        let record = self.maps.saved.get(&cookie, 0).ok();
        let uid = entry.as_ref().map(|entry| entry.pod.uid.clone());
        let uid = uid
            .or_else(|| record.as_ref().map(saved::uid))
            .unwrap_or_default();
        let held = self.retired.remove(&cookie);
        let netns = entry.map(|entry| entry.pod.netns).or(held).or_else(|| {
            let reached = record
                .as_ref()
                .and_then(|record| saved::reach(cookie, record, &self.config.host_proc));
            reached.map(Arc::new)
        });
        let failure = self.undo(cookie, netns.as_deref(), record.as_ref());
        let former = self.leave_former(cookie).err();
        let failure = failure.or(former.map(|cause| (Step::Lookup, cause)));
        self.sweep_cgroups();
        match failure {
            None => {
                debug!(pod = %uid, cookie, alive = netns.is_some(), "pod released");
                Ok(())
            }
            Some((step, cause)) => Err(ReleaseError { uid, step, cause }),
        }
    }

    /// Releases every pod, adopted ones too.
    pub fn release_all(&mut self) -> Vec<ReleaseError> {
        let mut cookies: BTreeSet<u64> = self.pods.keys().copied().collect();
        cookies.extend(self.retired.keys());
        cookies.extend(self.adopted().iter().map(|pod| pod.cookie));
        cookies
            .into_iter()
            .filter_map(|cookie| self.release(cookie).err())
            .collect()
    }

    pub(super) fn undo(
        &mut self,
        cookie: u64,
        netns: Option<&Netns>,
        record: Option<&Saved>,
    ) -> Option<(Step, io::Error)> {
        let proc = self.config.host_proc.clone();
        undo(&mut self.maps, &self.pins, &proc, cookie, netns, record)
    }
}

/// Takes away everything of a pod, the switch first; goes on after a failure and returns the first one.
fn undo(
    maps: &mut Maps,
    pins: &Pins,
    proc: &Path,
    cookie: u64,
    netns: Option<&Netns>,
    record: Option<&Saved>,
) -> Option<(Step, io::Error)> {
    let mut failures = Vec::new();
    let mut note =
        |step, result: io::Result<()>| failures.extend(result.err().map(|cause| (step, cause)));
    // Before the switch: a pod that is not captured and still said to be would be held.
    note(
        Step::Cgroup,
        maps.rewrite_cgroups(cookie, CgroupState::Free),
    );
    if let Some(pod) = maps.pod(cookie) {
        note(
            Step::Switch,
            maps.set_pod(cookie, Some(pod.flags & !Pod::CAPTURE)),
        );
    }
    if let Some(netns) = netns {
        if let Some(record) = record {
            note(
                Step::Sysctls,
                netns
                    .run(|| saved::restore(proc, record))
                    .and_then(|result| result),
            );
        }
        match Netlink::open(netns) {
            Ok(mut netlink) => {
                note(Step::Rules, apply_rules(&mut netlink, &State::default()));
                note(Step::Routes, apply_routes(&mut netlink, &State::default()));
            }
            Err(error) => note(Step::Rules, Err(error)),
        }
    }
    note(Step::Lookup, detach(&pins.lookup(cookie)));
    note(Step::Maps, maps.set_pod(cookie, None));
    note(Step::Maps, maps.set_locals(cookie, &BTreeSet::new()));
    note(Step::Maps, maps.set_ranges(cookie, &BTreeSet::new()));
    note(Step::Maps, maps.set_ports(cookie, &BTreeSet::new()));
    note(Step::Maps, maps.set_open_ports(cookie, &BTreeSet::new()));
    for kind in Kind::ALL {
        note(Step::Sockets, maps.remove_socket(cookie, kind));
    }
    if failures.is_empty() {
        failures.extend(
            maps.remove_saved(cookie)
                .err()
                .map(|cause| (Step::Saving, cause)),
        );
    }
    failures.into_iter().next()
}

/// Detaches at once: dropping the pin alone would do so some time later, and drop arrivals until then.
pub(super) fn detach(path: &Path) -> io::Result<()> {
    if !programs::is_pinned(path) {
        return Ok(());
    }
    let link = sys::bpf::pinned(path)?;
    sys::bpf::link_detach(link.as_fd())?;
    pins::remove(path)
}

/// Whether the namespace of a pod's `sk_lookup` link is still there.
fn is_alive(link: &Path) -> bool {
    let info = sys::bpf::pinned(link).and_then(|link| sys::bpf::link_info(&link));
    info.is_ok_and(|info| matches!(info.target, Target::Netns { inode, .. } if inode != 0))
}

/// Undoes everything that is pinned below `base`: for a machine whose daemon is gone for good.
///
/// - `host_proc`: the host's procfs, through which sysctls are written
///
/// A daemon that still runs sees itself superseded. Problems with single pods are reported, not fatal; the pins stay then.
pub fn release_pinned(base: &Path, host_proc: &Path) -> Result<Released, StartError> {
    let pins = Pins::at(base);
    let mut released = Released::default();
    if !pins.dir().exists() {
        return Ok(released);
    }
    let unusable = |cause| StartError::Pins {
        path: base.to_owned(),
        cause,
    };
    let _lock = pins.lock().map_err(unusable)?;
    let mut maps = Maps::open(&pins)?;
    let generation = maps.owner()? + 1;
    maps.set_owner(generation)?;
    let known: Vec<_> = maps.saved.iter().flatten().collect();
    for (cookie, record) in known {
        let netns = saved::reach(cookie, &record, host_proc);
        let done = if netns.is_none() && is_alive(&pins.lookup(cookie)) {
            Err("its network namespace is alive and cannot be reached".to_owned())
        } else {
            match undo(
                &mut maps,
                &pins,
                host_proc,
                cookie,
                netns.as_ref(),
                Some(&record),
            ) {
                None => Ok(()),
                Some((step, cause)) => Err(format!("{step}: {cause}")),
            }
        };
        match done {
            Ok(()) => released.pods += 1,
            Err(problem) => {
                let uid = saved::uid(&record);
                released.problems.push(format!("pod {uid}: {problem}"));
            }
        }
    }
    for cookie in pins.lookups().map_err(unusable)? {
        // One with a record is to be tried again.
        if maps.saved.get(&cookie, 0).is_err() {
            undo(&mut maps, &pins, host_proc, cookie, None, None);
        }
    }
    if released.problems.is_empty() {
        pins.clear().map_err(unusable)?;
    }
    Ok(released)
}
