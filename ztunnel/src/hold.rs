//! Which pods are held until they are enrolled. Pure: what is known of pods and cgroups goes in, what is to be said to the
//! kernel comes out.
//!
//! A cgroup that belongs to no known pod is held by the kernel itself for as long as the daemon keeps that up; here it is
//! let go when it stays unknown for too long.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mesh::Str;

use crate::config::{Hold, HoldPolicy};

/// Most cgroups and pods that are followed; far more than a node runs. Those beyond are held as unknown ones.
const FOLLOWED_MAX: usize = 8192;

/// What a pod is, as far as holding it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// In the mesh, and not enrolled.
    Enrolment,
    /// In the mesh and enrolled: capture answers for its cgroup.
    Nothing,
    /// Not in the mesh.
    Freedom,
}

/// What becomes of processes in a cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Holds pods' cgroups and is none.
    Group,
    /// Not our business.
    Free,
    /// Connections wait.
    Held,
    /// Connections are refused.
    Denied,
}

/// Something to be told to the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The cgroup.
    pub cgroup: PathBuf,
    /// Its pod, if known.
    pub uid: Option<Str>,
    /// What becomes of it; none = it is gone.
    pub state: Option<State>,
    /// It was held for the whole time that is allowed.
    pub expired: bool,
}

/// A pod that is held or was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldPod {
    /// Its UID; empty when it is not known.
    pub uid: Str,
    /// For how long.
    pub since: Instant,
    /// It was held for too long and is refused now.
    pub denied: bool,
}

struct Place {
    uid: Option<Str>,
    /// since when its pod waits, or since when it is unknown
    since: Instant,
    state: Option<State>,
    expired: bool,
    /// its coming and going is told
    followed: bool,
}

/// What is known of the node's pods and their cgroups.
pub struct Holder {
    rule: Hold,
    places: BTreeMap<PathBuf, Place>,
    pods: HashMap<Str, Want>,
    /// whether the source tells of all pods now: only then does silence about one mean something
    told_of_all: bool,
}

impl Holder {
    /// Nothing known yet.
    pub fn new(rule: Hold) -> Self {
        Self {
            rule,
            places: BTreeMap::new(),
            pods: HashMap::new(),
            told_of_all: true,
        }
    }

    /// Whether the source tells of all pods now. While it does not, one that stays unknown is let go by policy only.
    pub fn trust(&mut self, told_of_all: bool) {
        self.told_of_all = told_of_all;
    }

    /// Cgroups of pods that nobody has told about, and that wait for that; with the UID that their names tell.
    pub fn unknown(&self) -> Vec<(PathBuf, Str)> {
        let waits = self.places.iter().filter(|(_, place)| {
            let unknown = place
                .uid
                .as_ref()
                .is_some_and(|uid| !self.pods.contains_key(uid));
            unknown && matches!(place.state, None | Some(State::Held))
        });
        waits
            .filter_map(|(cgroup, place)| Some((cgroup.clone(), place.uid.clone()?)))
            .collect()
    }

    /// A cgroup turned out to be none of ours, whatever its pod.
    pub fn release(&mut self, cgroup: &Path) -> Option<Step> {
        self.places
            .contains_key(cgroup)
            .then(|| self.step(cgroup, Some(State::Free), false))
    }

    /// What the kernel should know of each cgroup, as it was told.
    pub fn told(&self) -> impl Iterator<Item = (&Path, State)> {
        let told = self.places.iter();
        told.filter_map(|(cgroup, place)| Some((cgroup.as_path(), place.state?)))
    }

    /// A cgroup was there before anybody could look: what runs in it is let be until its pod is known to be in the mesh.
    ///
    /// - `told`: what a predecessor told the kernel about it, which stays in force until its pod is known
    pub fn found(
        &mut self,
        cgroup: &Path,
        uid: Option<Str>,
        told: Option<State>,
        now: Instant,
    ) -> Option<Step> {
        self.see(cgroup, uid, now);
        let place = self.places.get_mut(cgroup)?;
        place.followed = true;
        if told.is_some() {
            place.state = told;
            return None;
        }
        Some(self.step(cgroup, Some(State::Free), false))
    }

    /// A cgroup is there now.
    pub fn appeared(&mut self, cgroup: &Path, uid: Option<Str>, now: Instant) -> Option<Step> {
        self.see(cgroup, uid, now);
        self.places.get_mut(cgroup)?.followed = true;
        self.settle(cgroup, now)
    }

    fn see(&mut self, cgroup: &Path, uid: Option<Str>, now: Instant) {
        if self.places.len() >= FOLLOWED_MAX && !self.places.contains_key(cgroup) {
            return;
        }
        let place = self.places.entry(cgroup.to_owned()).or_insert(Place {
            uid: None,
            since: now,
            state: None,
            expired: false,
            followed: false,
        });
        if uid.is_some() {
            place.uid = uid;
        }
    }

    /// A cgroup is gone.
    pub fn gone(&mut self, cgroup: &Path) -> Option<Step> {
        let place = self.places.remove(cgroup)?;
        Some(Step {
            cgroup: cgroup.to_owned(),
            uid: place.uid,
            state: None,
            expired: false,
        })
    }

    /// A pod is known, or known to be something else now. `cgroup`: where the source knows it.
    pub fn know(
        &mut self,
        uid: &Str,
        want: Want,
        cgroup: Option<&Path>,
        now: Instant,
    ) -> Vec<Step> {
        if self.pods.len() >= FOLLOWED_MAX && !self.pods.contains_key(uid) {
            return Vec::new();
        }
        let before = self.pods.insert(uid.clone(), want);
        if let Some(cgroup) = cgroup {
            self.see(cgroup, Some(uid.clone()), now);
        }
        let own: Vec<PathBuf> = self.of(uid);
        for cgroup in &own {
            if let Some(place) = self.places.get_mut(cgroup)
                && before != Some(want)
            {
                // the time that a pod may be held begins when it is known to wait
                place.since = now;
                place.expired = false;
                if want == Want::Nothing {
                    place.state = None;
                }
            }
        }
        own.iter()
            .filter_map(|cgroup| self.settle(cgroup, now))
            .collect()
    }

    /// A pod is no longer known. Its cgroup goes by itself where that is told; else it is no longer held.
    pub fn forget(&mut self, uid: &Str) -> Vec<Step> {
        self.pods.remove(uid);
        let mut steps = Vec::new();
        for cgroup in self.of(uid) {
            let Some(place) = self.places.get_mut(&cgroup) else {
                continue;
            };
            let held = matches!(place.state, Some(State::Held | State::Denied));
            let deny = self.rule.policy == HoldPolicy::Deny;
            if place.followed && held && deny {
                // its processes may outlive it; it goes with its cgroup
                steps.push(self.step(&cgroup, Some(State::Denied), false));
                continue;
            }
            if place.followed {
                continue;
            }
            if held {
                steps.push(self.step(&cgroup, Some(State::Free), false));
            }
            self.places.remove(&cgroup);
        }
        steps
    }

    /// What time has changed.
    pub fn tick(&mut self, now: Instant) -> Vec<Step> {
        let all: Vec<PathBuf> = self.places.keys().cloned().collect();
        all.iter()
            .filter_map(|cgroup| self.settle(cgroup, now))
            .collect()
    }

    /// When time will change something, if it will.
    pub fn next(&self) -> Option<Instant> {
        let waiting = self.places.values().filter(|place| {
            !place.expired
                && match place.uid.as_ref().and_then(|uid| self.pods.get(uid)) {
                    Some(Want::Enrolment) => true,
                    Some(_) => false,
                    None => self.lets_unknown_go() && waits(place),
                }
        });
        waiting.map(|place| place.since + self.rule.timeout).min()
    }

    /// Pods that are held or refused now.
    pub fn held(&self) -> Vec<HeldPod> {
        let held = self.places.values().filter_map(|place| {
            let denied = match place.state {
                Some(State::Denied) => true,
                Some(State::Held) | None => false,
                Some(_) => return None,
            };
            let enrolled = || {
                let uid = place.uid.as_ref()?;
                Some(*self.pods.get(uid)? == Want::Nothing)
            };
            (place.state.is_some() || enrolled() != Some(true)).then(|| HeldPod {
                uid: place.uid.clone().unwrap_or_default(),
                since: place.since,
                denied,
            })
        });
        held.collect()
    }

    fn lets_unknown_go(&self) -> bool {
        self.told_of_all || self.rule.policy == HoldPolicy::Allow
    }

    fn of(&self, uid: &Str) -> Vec<PathBuf> {
        let own = self
            .places
            .iter()
            .filter(|(_, p)| p.uid.as_ref() == Some(uid));
        own.map(|(cgroup, _)| cgroup.clone()).collect()
    }

    /// What the cgroup is to be now; a step if that is news.
    fn settle(&mut self, cgroup: &Path, now: Instant) -> Option<Step> {
        let rule = self.rule;
        let place = self.places.get(cgroup)?;
        let late = now.saturating_duration_since(place.since) >= rule.timeout;
        let want = place.uid.as_ref().and_then(|uid| self.pods.get(uid));
        let (state, expired) = match want {
            Some(Want::Nothing) => return None,
            Some(Want::Freedom) => (State::Free, false),
            Some(Want::Enrolment) if late => match rule.policy {
                HoldPolicy::Deny => (State::Denied, true),
                HoldPolicy::Allow => (State::Free, true),
            },
            Some(Want::Enrolment) => (State::Held, false),
            // the kernel holds it meanwhile
            None if late && self.lets_unknown_go() && waits(place) => (State::Free, true),
            None => return None,
        };
        (place.state != Some(state)).then(|| self.step(cgroup, Some(state), expired))
    }

    fn step(&mut self, cgroup: &Path, state: Option<State>, expired: bool) -> Step {
        let mut uid = None;
        if let Some(place) = self.places.get_mut(cgroup) {
            place.state = state;
            place.expired = expired;
            uid = place.uid.clone();
        }
        Step {
            cgroup: cgroup.to_owned(),
            uid,
            state,
            expired,
        }
    }
}

/// Whether nobody has decided about it.
fn waits(place: &Place) -> bool {
    matches!(place.state, None | Some(State::Held))
}

/// Time between two signs of life towards the kernel, which holds unknown cgroups only for [`WINDOW`] after each.
pub const HEARTBEAT: Duration = Duration::from_secs(2);
/// How long the kernel goes on holding unknown cgroups without a sign of life: longer than a daemon needs to start again.
pub const WINDOW: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    fn holder(policy: HoldPolicy) -> Holder {
        Holder::new(Hold {
            timeout: LIMIT,
            policy,
        })
    }

    fn states(steps: impl IntoIterator<Item = Step>) -> Vec<Option<State>> {
        steps.into_iter().map(|step| step.state).collect()
    }

    #[test]
    fn a_pod_is_held_until_it_is_enrolled() {
        let (mut holder, now) = (holder(HoldPolicy::Deny), Instant::now());
        let (uid, place) = (Str::from("a"), Path::new("/cg/poda"));
        assert_eq!(states(holder.appeared(place, Some(uid.clone()), now)), []);
        assert_eq!(holder.held().len(), 1);
        let known = holder.know(&uid, Want::Enrolment, None, now);
        assert_eq!(states(known), [Some(State::Held)]);
        assert_eq!(states(holder.know(&uid, Want::Nothing, None, now)), []);
        assert_eq!(holder.held(), []);
        assert_eq!(states(holder.tick(now + 2 * LIMIT)), []);
        let left = holder.know(&uid, Want::Freedom, None, now);
        assert_eq!(states(left), [Some(State::Free)]);
    }

    #[test]
    fn the_cgroup_may_come_after_the_pod() {
        let (mut holder, now) = (holder(HoldPolicy::Deny), Instant::now());
        for (want, state) in [
            (Want::Enrolment, vec![Some(State::Held)]),
            (Want::Freedom, vec![Some(State::Free)]),
            (Want::Nothing, vec![]),
        ] {
            let uid = Str::from(format!("{want:?}").as_str());
            assert_eq!(states(holder.know(&uid, want, None, now)), []);
            let place = PathBuf::from(format!("/cg/{uid}"));
            assert_eq!(states(holder.appeared(&place, Some(uid), now)), state);
        }
    }

    #[test]
    fn time_runs_out_as_the_policy_says() {
        for (policy, state) in [
            (HoldPolicy::Deny, State::Denied),
            (HoldPolicy::Allow, State::Free),
        ] {
            let (mut holder, now) = (holder(policy), Instant::now());
            let uid = Str::from("a");
            let place = Path::new("/cg/a");
            holder.know(&uid, Want::Enrolment, Some(place), now);
            assert_eq!(holder.next(), Some(now + LIMIT));
            assert_eq!(states(holder.tick(now + LIMIT / 2)), []);
            let steps = holder.tick(now + LIMIT);
            assert_eq!(states(steps.clone()), [Some(state)]);
            assert!(steps[0].expired && holder.next().is_none());
            assert_eq!(
                holder.held().iter().any(|h| h.denied),
                state == State::Denied
            );
            // news of the same kind do not hold it anew
            let again = holder.know(&uid, Want::Enrolment, None, now + LIMIT);
            assert_eq!(states(again), []);
            // it left and came back: it is held again
            holder.know(&uid, Want::Freedom, None, now + LIMIT);
            let back = holder.know(&uid, Want::Enrolment, None, now + LIMIT);
            assert_eq!(states(back), [Some(State::Held)]);
        }
    }

    #[test]
    fn what_stays_unknown_is_let_go() {
        let (mut holder, now) = (holder(HoldPolicy::Deny), Instant::now());
        let place = Path::new("/cg/static");
        assert_eq!(holder.appeared(place, Some("s".into()), now), None);
        assert_eq!(states(holder.tick(now + LIMIT)), [Some(State::Free)]);
        assert_eq!(holder.tick(now + 3 * LIMIT), []);
        // and is held when it turns out to be expected after all
        let known = holder.know(&"s".into(), Want::Enrolment, None, now + 3 * LIMIT);
        assert_eq!(states(known), [Some(State::Held)]);
    }

    #[test]
    fn silence_means_nothing_while_the_source_is_blind() {
        for (policy, state) in [
            (HoldPolicy::Deny, vec![]),
            (HoldPolicy::Allow, vec![Some(State::Free)]),
        ] {
            let (mut holder, now) = (holder(policy), Instant::now());
            let place = Path::new("/cg/new");
            holder.appeared(place, Some("n".into()), now);
            assert_eq!(holder.unknown(), [(place.to_owned(), Str::from("n"))]);
            holder.trust(false);
            assert_eq!(holder.next().is_none(), policy == HoldPolicy::Deny);
            assert_eq!(states(holder.tick(now + 2 * LIMIT)), state);
        }
        let (mut holder, now) = (holder(HoldPolicy::Deny), Instant::now());
        let place = Path::new("/cg/node");
        holder.appeared(place, Some("n".into()), now);
        holder.trust(false);
        let let_go = holder.release(place).expect("it is there");
        assert_eq!(
            (let_go.state, holder.unknown()),
            (Some(State::Free), vec![])
        );
        assert_eq!(holder.told().collect::<Vec<_>>(), [(place, State::Free)]);
        holder.trust(true);
        assert_eq!(holder.tick(now + 2 * LIMIT), []);
    }

    #[test]
    fn what_waits_and_is_deleted_does_not_come_free() {
        let (mut holder, now) = (holder(HoldPolicy::Deny), Instant::now());
        let uid = Str::from("a");
        holder.appeared(Path::new("/cg/a"), Some(uid.clone()), now);
        holder.know(&uid, Want::Enrolment, None, now);
        assert_eq!(states(holder.forget(&uid)), [Some(State::Denied)]);
        assert_eq!(holder.tick(now + 2 * LIMIT), []);
    }

    #[test]
    fn what_was_there_before_is_let_be_until_it_is_known() {
        let (mut holder, now) = (holder(HoldPolicy::Deny), Instant::now());
        let place = Path::new("/cg/old");
        let found = holder.found(place, Some("o".into()), None, now);
        assert_eq!(states(found), [Some(State::Free)]);
        assert_eq!(holder.held(), []);
        let known = holder.know(&"o".into(), Want::Enrolment, None, now);
        assert_eq!(states(known), [Some(State::Held)]);
        let gone = holder.gone(place).expect("it was there");
        assert_eq!((gone.state, holder.held().len()), (None, 0));
        assert_eq!(holder.gone(place), None);
    }

    #[test]
    fn what_a_predecessor_held_stays_held_until_it_is_known() {
        let now = Instant::now();
        for (want, state) in [
            (Want::Enrolment, None),
            (Want::Freedom, Some(State::Free)),
            (Want::Nothing, None),
        ] {
            let mut holder = holder(HoldPolicy::Deny);
            let place = Path::new("/cg/a");
            let found = holder.found(place, Some("a".into()), Some(State::Held), now);
            assert_eq!((found, holder.held().len()), (None, 1));
            let known = holder.know(&"a".into(), want, None, now);
            assert_eq!(
                states(known),
                state.map(Some).into_iter().collect::<Vec<_>>()
            );
        }
        let mut holder = holder(HoldPolicy::Deny);
        holder.found(Path::new("/cg/b"), None, Some(State::Held), now);
        assert_eq!(states(holder.tick(now + LIMIT)), [Some(State::Free)]);
    }

    #[test]
    fn a_pod_that_is_gone_is_held_no_longer() {
        let (mut holder, now) = (holder(HoldPolicy::Deny), Instant::now());
        let place = Path::new("/cg/a");
        for (want, left) in [
            (Want::Enrolment, vec![Some(State::Free)]),
            (Want::Nothing, vec![]),
            (Want::Freedom, vec![]),
        ] {
            holder.know(&"a".into(), want, Some(place), now);
            assert_eq!(states(holder.forget(&"a".into())), left);
            assert_eq!((holder.held(), holder.next()), (vec![], None));
        }
    }

    #[test]
    fn a_failed_restart_holds_what_was_enrolled() {
        let (mut holder, now) = (holder(HoldPolicy::Deny), Instant::now());
        let uid = Str::from("a");
        holder.know(&uid, Want::Nothing, Some(Path::new("/cg/a")), now);
        let failed = holder.know(&uid, Want::Enrolment, None, now + LIMIT);
        assert_eq!(states(failed), [Some(State::Held)]);
    }
}
