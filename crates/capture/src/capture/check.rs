//! Comparing what should be with what the kernel says, and mending it.

use std::io;

use super::{Capture, Enrolled};
use crate::diff::{Cure, Difference, DriftKind, diff};
use crate::error::{EnrollError, Step};
use crate::netlink::Netlink;
use crate::pod;
use crate::programs::CGROUP_PROGRAMS;

/// Something in the kernel that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drift {
    /// The pod, by its namespace's cookie; none for what all pods share.
    pub cookie: Option<u64>,
    /// The pod's UID, or empty.
    pub uid: String,
    /// Which kind of thing.
    pub kind: DriftKind,
    /// What was found, for a human.
    pub what: String,
}

impl Drift {
    /// What mends it.
    pub fn cure(&self) -> Cure {
        self.kind.cure()
    }
}

impl Capture {
    /// Compares what should be with what the kernel says. Empty when all is well, or when a successor owns capture.
    pub fn check(&self) -> Vec<Drift> {
        if self.superseded() {
            return Vec::new();
        }
        let mut found = self.check_shared();
        for (cookie, entry) in &self.pods {
            self.check_pod(*cookie, entry, &mut found);
        }
        found
    }

    /// Compares one pod with what the kernel says of it; cheap. Empty when all is well: only then is the pod captured.
    ///
    /// Empty too when this process has not enrolled it, or a successor owns capture.
    pub fn verify(&self, cookie: u64) -> Vec<Drift> {
        let mut found = Vec::new();
        if let Some(entry) = self.pods.get(&cookie).filter(|_| !self.superseded()) {
            self.check_pod(cookie, entry, &mut found);
        }
        found
    }

    fn check_pod(&self, cookie: u64, entry: &Enrolled, found: &mut Vec<Drift>) {
        let drift = |kind, what| Drift {
            cookie: Some(cookie),
            uid: entry.pod.uid.clone(),
            kind,
            what,
        };
        match self.compare(entry) {
            Ok(differences) => {
                found.extend(differences.into_iter().map(|one| drift(one.kind, one.what)));
            }
            Err(error) => {
                found.push(drift(DriftKind::Netns, format!("cannot be read: {error}")));
            }
        }
    }

    fn compare(&self, entry: &Enrolled) -> io::Result<Vec<Difference>> {
        let mut netlink = Netlink::open(&entry.pod.netns)?;
        let wanted = self.wanted(entry, &mut netlink)?;
        let actual = pod::actual(
            &entry.pod.netns,
            &self.config.host_proc,
            &mut netlink,
            &self.maps,
            &self.pins,
        )?;
        Ok(diff(&wanted, &actual))
    }

    fn check_shared(&self) -> Vec<Drift> {
        let drift = |what| Drift {
            cookie: None,
            uid: String::new(),
            kind: DriftKind::Program,
            what,
        };
        let mut found = Vec::new();
        for ((program, pin, _), fd) in CGROUP_PROGRAMS.iter().zip(&self.programs) {
            let wanted = sys::bpf::program_id(fd).ok();
            let actual = self
                .cgroup_link(&self.pins.path(pin))
                .ok()
                .flatten()
                .map(|(_, program)| program);
            if wanted.is_none() || wanted != actual {
                found.push(drift(format!("program {program} not attached")));
            }
        }
        if !self.maps.is_daemon(self.config.daemon_cgroup_id) {
            found.push(drift("the daemon is not exempt".into()));
        }
        found
    }

    /// Mends what [`Capture::check`] found: the whole pod, or all that pods share.
    ///
    /// Errors: the step that failed; [`Step::Sockets`] when only new sockets would help, the rest has been mended then.
    pub fn repair(&mut self, drift: &Drift) -> Result<(), EnrollError> {
        let fail = |step, cause| EnrollError {
            uid: drift.uid.clone(),
            step,
            cause,
        };
        let Some(cookie) = drift.cookie else {
            self.maps
                .add_daemon(self.config.daemon_cgroup_id, self.generation)
                .and_then(|()| self.attach())
                .map_err(|error| fail(Step::Switch, io::Error::other(error)))?;
            return Ok(());
        };
        let Some(mut entry) = self.pods.remove(&cookie) else {
            return Ok(());
        };
        let result = self.apply(&mut entry);
        self.pods.insert(cookie, entry);
        result.map_err(|(step, cause)| fail(step, cause))?;
        if drift.cure() == Cure::Sockets {
            return Err(fail(
                Step::Sockets,
                io::Error::other("its sockets must be opened anew"),
            ));
        }
        Ok(())
    }
}
