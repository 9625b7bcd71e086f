//! Mending what a check has found, each kind of thing by itself.

use std::io;

use super::{Capture, Drift, Enrolled, apply_routes, apply_rules, at};
use crate::cgroups::living;
use crate::diff::{Cure, DriftKind};
use crate::error::{EnrollError, Step};
use crate::netlink::Netlink;
use crate::pod;
use crate::sysctl;

impl Capture {
    /// Mends what [`Capture::check`] or [`Capture::verify`] found; a pod that left meanwhile is fine. Look again afterwards:
    /// a repair may show what it hid.
    ///
    /// Errors: the step that failed; also when its [`Cure`] is not to repair.
    pub fn repair(&mut self, drift: &Drift) -> Result<(), EnrollError> {
        let mended = match drift.cookie {
            None => self.mend_shared(drift.kind),
            Some(cookie) => match self.pods.remove(&cookie) {
                Some(mut entry) => {
                    let mended = self.mend(&mut entry, drift.kind);
                    self.pods.insert(cookie, entry);
                    mended
                }
                None => Ok(()),
            },
        };
        mended.map_err(|(step, cause)| EnrollError {
            uid: drift.uid.clone(),
            step,
            cause,
        })
    }

    fn mend(&mut self, entry: &mut Enrolled, kind: DriftKind) -> Result<(), (Step, io::Error)> {
        if matches!(kind, DriftKind::Address | DriftKind::Unreadable) {
            return self.apply(entry);
        }
        let netns = entry.pod.netns.clone();
        let cookie = netns.cookie();
        let mut netlink = Netlink::open(&netns).map_err(at(Step::Addresses))?;
        let wanted = self
            .wanted(entry, &mut netlink)
            .map_err(at(Step::Addresses))?;
        match kind {
            DriftKind::Rule => apply_rules(&mut netlink, &wanted).map_err(at(Step::Rules)),
            DriftKind::Route => apply_routes(&mut netlink, &wanted).map_err(at(Step::Routes)),
            DriftKind::Map => self
                .apply_maps(cookie, &wanted)
                .and_then(|()| self.maps.set_pod(cookie, wanted.flags))
                .map_err(at(Step::Maps)),
            DriftKind::Program => {
                if entry.lookup.is_none() || pod::lookup(&netns, &self.pins) != entry.lookup {
                    entry.lookup = Some(self.attach_lookup(&netns).map_err(at(Step::Lookup))?);
                }
                Ok(())
            }
            DriftKind::Sysctl => {
                let proc = &self.config.host_proc;
                let mut all = wanted.sysctls.iter();
                let write = || all.try_for_each(|(name, value)| sysctl::write(proc, name, *value));
                netns
                    .run(write)
                    .and_then(|result| result)
                    .map_err(at(Step::Sysctls))
            }
            DriftKind::Cgroup => self
                .write_enrolled(entry.pod.cgroup.as_deref(), cookie)
                .map_err(at(Step::Cgroup)),
            DriftKind::Address
            | DriftKind::Socket
            | DriftKind::Netns
            | DriftKind::Unreadable
            | DriftKind::Foreign => Err(beyond(kind)),
        }
    }

    fn mend_shared(&mut self, kind: DriftKind) -> Result<(), (Step, io::Error)> {
        let failed = |step| move |error: crate::StartError| (step, io::Error::other(error));
        self.pins.restore().map_err(at(Step::Maps))?;
        match kind {
            DriftKind::Program => {
                self.kubelet.attach(&self.pins);
                self.attach().map_err(failed(Step::Switch))
            }
            DriftKind::Map => {
                for kept in self.kept.iter().filter(|kept| !kept.is_pinned()) {
                    kept.pin(&self.pins).map_err(at(Step::Maps))?;
                }
                self.maps
                    .add_daemon(self.config.daemon_cgroup_id, self.generation, living)
                    .and_then(|()| self.maps.set_exempt(&self.config.exempt_sources))
                    .map_err(failed(Step::Maps))?;
                self.prepare_cgroups().map_err(at(Step::Cgroup))
            }
            _ => Err(beyond(kind)),
        }
    }
}

/// What a repair cannot do.
fn beyond(kind: DriftKind) -> (Step, io::Error) {
    let (step, text) = match kind.cure() {
        Cure::Sockets => (Step::Sockets, "its sockets must be opened anew"),
        Cure::Source => (Step::Admission, "its enrolment source must say where it is"),
        Cure::Repair | Cure::Human => (Step::Addresses, "not for a repair"),
    };
    (step, io::Error::other(text))
}
