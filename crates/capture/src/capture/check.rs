//! Comparing what should be with what the kernel says. Leaves mending it to [`super::repair`].

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use super::{Capture, Enrolled};
use crate::diff::{Cure, Difference, DriftKind, diff};
use crate::maps::{Tables, prefix};
use crate::netlink::Netlink;
use crate::pod::{self, PodWanted, Sight, State};
use crate::processes::{AllProcesses, Processes};
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
    /// What mends it.
    pub cure: Cure,
    /// What was found, for a human.
    pub what: String,
}

impl Drift {
    fn shared(kind: DriftKind, what: String) -> Self {
        Self {
            cookie: None,
            uid: String::new(),
            kind,
            cure: kind.cure(),
            what,
        }
    }
}

/// What is read once for looks at many pods.
pub struct Survey {
    tables: Option<Tables>,
    processes: AllProcesses,
}

impl Capture {
    /// Compares what should be with what the kernel says. Empty when all is well, or when a successor owns capture.
    pub fn check(&self) -> Vec<Drift> {
        let survey = self.survey();
        let mut found = self.verify_shared();
        for cookie in self.pods.keys() {
            found.extend(self.verify_by(*cookie, &survey));
        }
        found
    }

    /// Compares one pod with what the kernel says of it; cheap. Empty when all is well: only then is the pod captured.
    ///
    /// Empty too when this process has not enrolled it, or a successor owns capture.
    pub fn verify(&self, cookie: u64) -> Vec<Drift> {
        let asked_for = Survey {
            tables: None,
            processes: AllProcesses::new(),
        };
        self.verify_by(cookie, &asked_for)
    }

    /// Reads what [`Capture::verify_by`] needs of all pods. It ages: not to be used after a repair.
    pub fn survey(&self) -> Survey {
        Survey {
            tables: Some(self.maps.tables()),
            processes: AllProcesses::new(),
        }
    }

    /// [`Capture::verify`] that also finds surplus entries, by what was read before.
    pub fn verify_by(&self, cookie: u64, survey: &Survey) -> Vec<Drift> {
        let mut found = Vec::new();
        if let Some(entry) = self.pods.get(&cookie).filter(|_| !self.superseded()) {
            self.check_pod(cookie, entry, &self.sight(survey), &mut found);
        }
        found
    }

    /// Compares what all pods share. Empty when all is well, or when a successor owns capture.
    pub fn verify_shared(&self) -> Vec<Drift> {
        if self.superseded() {
            return Vec::new();
        }
        self.check_shared()
    }

    fn sight<'a>(&'a self, survey: &'a Survey) -> Sight<'a> {
        let enrolled = self.pods.values();
        Sight {
            maps: &self.maps,
            tables: survey.tables.as_ref(),
            pins: &self.pins,
            proc: &self.config.host_proc,
            cgroup: &self.config.cgroup,
            processes: Processes::new(&self.config.host_proc, &survey.processes),
            enrolled: enrolled.map(|entry| entry.pod.netns.inode()).collect(),
        }
    }

    fn check_pod(&self, cookie: u64, entry: &Enrolled, sight: &Sight<'_>, found: &mut Vec<Drift>) {
        // nothing runs in a pod whose cgroup is gone: it has ended, and its source is about to say so
        let is_gone = |cgroup: &PathBuf| !cgroup.is_dir();
        if entry.applied.is_some() && entry.pod.cgroup.as_ref().is_some_and(is_gone) {
            return;
        }
        let differences = self.compare(entry, sight).unwrap_or_else(|error| {
            let what = format!("cannot be read: {error}");
            vec![Difference::new(DriftKind::Unreadable, what)]
        });
        found.extend(differences.into_iter().map(|one| Drift {
            cookie: Some(cookie),
            uid: entry.pod.uid.clone(),
            kind: one.kind,
            cure: one.cure,
            what: one.what,
        }));
    }

    fn compare(&self, entry: &Enrolled, sight: &Sight<'_>) -> io::Result<Vec<Difference>> {
        let mut netlink = Netlink::open(&entry.pod.netns)?;
        let wanted = self.wanted(entry, &mut netlink)?;
        let former = entry.applied.as_ref();
        if let Some(change) = former.and_then(|former| address_change(&wanted, former)) {
            // what else differs follows from it; looked at again once capture has followed
            return Ok(vec![change]);
        }
        let actual = pod::actual(sight, &entry.pod, &mut netlink, &wanted, former)?;
        Ok(diff(&wanted, &actual))
    }

    /// What the pod's cgroup is to be told to be enrolled with: nothing where it has none of its own.
    pub(super) fn cgroup_to_tell(&self, pod: &PodWanted) -> Option<u64> {
        let capture = sys::cgroup::id(&self.config.cgroup).ok();
        let own = sys::cgroup::id(pod.cgroup.as_deref()?).ok();
        (own.is_none() || own != capture).then(|| pod.netns.cookie())
    }

    fn check_shared(&self) -> Vec<Drift> {
        let mut found = Vec::new();
        for ((program, pin, _), fd) in CGROUP_PROGRAMS.iter().zip(&self.programs) {
            let wanted = sys::bpf::program_id(fd).ok();
            let actual = self
                .cgroup_link(&self.pins.path(pin))
                .ok()
                .flatten()
                .map(|(_, program)| program);
            if wanted.is_none() || wanted != actual {
                let what = match actual {
                    Some(other) => format!("program {program} replaced by {other}"),
                    None => format!("program {program} not attached, or its link not pinned"),
                };
                found.push(Drift::shared(DriftKind::Program, what));
            }
        }
        let probes = self.kubelet.drift(&self.pins);
        found.extend(probes.map(|what| Drift::shared(DriftKind::Program, what)));
        let mut map = |what| found.push(Drift::shared(DriftKind::Map, what));
        for kept in self.kept.iter().filter(|kept| !kept.is_pinned()) {
            map(format!("{} is not pinned", kept.path.display()));
        }
        if !self.maps.is_daemon(self.config.daemon_cgroup_id) {
            map("the daemon is not exempt".to_owned());
        }
        if self.maps.exempt() != self.exempt_wanted() {
            map("the exempt sources are others".to_owned());
        }
        let capture = sys::cgroup::id(&self.config.cgroup).ok();
        let told = self.maps.settings.get(&0, 0).ok();
        if told.map(|settings| settings.capture) != capture {
            map("the capture cgroup is told to be another".to_owned());
        }
        found
    }

    fn exempt_wanted(&self) -> BTreeSet<(u32, IpAddr)> {
        let sources = self.config.exempt_sources.iter();
        sources
            .map(|net| prefix(*net))
            .map(|(bits, address)| (bits, address.into()))
            .collect()
    }
}

/// Whether a pod's addresses, and what follows from them, are others than when capture was made true last.
fn address_change(wanted: &State, former: &State) -> Option<Difference> {
    if wanted.locals == former.locals && wanted.routes == former.routes {
        return None;
    }
    let list = |ips: &BTreeSet<IpAddr>| {
        let words: Vec<_> = ips.iter().map(IpAddr::to_string).collect();
        words.join(", ")
    };
    let what = format!("{}; before: {}", list(&wanted.locals), list(&former.locals));
    Some(Difference::new(DriftKind::Address, what))
}
