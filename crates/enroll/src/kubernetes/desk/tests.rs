//! What is written, and when.

use super::*;
use crate::kubernetes::api::KnownPod;
use crate::pod::{Labels, Phase};

struct World {
    desk: Desk,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            desk: Desk::new(now),
            now,
        }
    }

    fn seen(&mut self, uid: &str, face: Face, redirection: Option<&str>) {
        let pod = KnownPod {
            uid: uid.into(),
            name: uid.into(),
            namespace: "shop".into(),
            service_account: "web".into(),
            host_network: false,
            phase: Phase::Running,
            labels: Labels::new(),
            annotations: Labels::new(),
            redirection: redirection.map(str::to_owned),
            config_hash: None,
            ips: Vec::new(),
            sandbox: None,
        };
        self.desk.observe(
            Seen {
                pod: Arc::new(pod),
                face,
            },
            self.now,
        );
    }

    fn report(&mut self, uid: &str, report: Report) {
        self.desk.report(uid, report, self.now);
    }

    fn pending(&mut self, uid: &str, reason: &str) {
        self.report(
            uid,
            Report::Pending {
                reason: reason.to_owned(),
            },
        );
    }

    /// Jobs that are due now, all ending as said.
    fn jobs(&mut self, outcome: Outcome) -> Vec<String> {
        let mut jobs = Vec::new();
        while let Some(job) = self.desk.next(self.now) {
            jobs.push(match &job.task {
                Task::Annotate(value) => format!("{} {}", job.who.uid, value.unwrap_or("-")),
                Task::Warn(reason) => format!("{} warn {reason}", job.who.uid),
                Task::Recovered => format!("{} recovered", job.who.uid),
            });
            self.desk.done(&job, outcome, self.now);
        }
        jobs.sort();
        jobs
    }

    fn done(&mut self) -> Vec<String> {
        self.jobs(Outcome::Done)
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }
}

#[test]
fn a_pod_is_marked_when_it_is_captured_and_when_it_left() {
    let mut world = World::new();
    world.seen("a", Face::In, None);
    assert_eq!(world.done(), [""; 0], "nothing is known of it yet");
    world.report("a", Report::Captured);
    assert_eq!(world.done(), ["a enabled"]);
    world.seen("a", Face::In, Some("enabled"));
    world.report("a", Report::Captured);
    assert_eq!((world.done(), world.desk.wake()), (vec![], None));
    world.seen("a", Face::Out, Some("enabled"));
    assert_eq!(world.done(), ["a -"]);
    // the node's word comes later, and an old one does not count
    world.report("a", Report::Captured);
    world.report("a", Report::Left);
    assert_eq!(world.done(), [""; 0]);
    world.seen("a", Face::In, None);
    assert_eq!(world.done(), [""; 0]);
}

#[test]
fn after_a_restart_only_what_is_out_is_cleared() {
    let mut world = World::new();
    world.seen("in", Face::In, Some("enabled"));
    world.seen("new", Face::Expected, None);
    world.seen("left", Face::Out, Some("pending"));
    world.seen("never", Face::Out, None);
    assert_eq!(world.done(), ["left -"]);
    world.report("in", Report::Captured);
    assert_eq!(world.done(), [""; 0]);
}

#[test]
fn a_short_wait_is_not_written_about() {
    let mut world = World::new();
    world.seen("a", Face::Waiting("no namespace".into()), None);
    assert_eq!(world.done(), [""; 0]);
    assert_eq!(world.desk.wake(), Some(world.now + PENDING_AFTER));
    world.pass(1);
    assert_eq!(world.done(), ["a pending"]);
    world.seen("a", Face::In, Some("pending"));
    world.pending("a", "no capture");
    world.pass(1);
    assert_eq!(world.done(), [""; 0]);
    world.report("a", Report::Captured);
    assert_eq!(world.done(), ["a enabled"], "no Event was due");
}

#[test]
fn only_what_is_handed_on_can_be_captured() {
    let mut world = World::new();
    world.seen("a", Face::In, Some("enabled"));
    world.report("a", Report::Captured);
    // its processes are elsewhere; what the node says of before does not count
    world.seen("a", Face::Waiting("moved".into()), Some("enabled"));
    world.report("a", Report::Captured);
    world.report("a", Report::Left);
    assert_eq!(world.done(), ["a pending"]);
    world.pass(5);
    assert_eq!(world.done(), ["a warn moved"]);
    // nothing of it runs: whether it comes back or goes will be seen
    world.seen("a", Face::Expected, Some("enabled"));
    world.report("a", Report::Left);
    assert_eq!(world.done(), [""; 0]);
}

#[test]
fn what_is_claimed_wrongly_is_taken_back_at_once() {
    let mut world = World::new();
    world.seen("a", Face::In, Some("enabled"));
    world.pending("a", "drift");
    assert_eq!(world.done(), ["a pending"]);
}

#[test]
fn events_tell_of_trouble_and_of_its_end() {
    let mut world = World::new();
    world.seen("a", Face::In, Some("pending"));
    world.pending("a", "no capture");
    assert_eq!(world.done(), [""; 0]);
    world.pass(5);
    assert_eq!(world.done(), ["a warn no capture"]);
    world.pass(30);
    world.pending("a", "no capture");
    assert_eq!(world.done(), [""; 0]);
    world.pending("a", "another reason");
    assert_eq!(world.done(), [""; 0]);
    world.pass(30);
    assert_eq!(world.done(), ["a warn another reason"]);
    world.pass(599);
    assert_eq!(world.done(), [""; 0]);
    world.pass(1);
    assert_eq!(world.done(), ["a warn another reason"]);
    world.report("a", Report::Captured);
    assert_eq!(world.done(), ["a enabled", "a recovered"]);
    assert_eq!(world.desk.wake(), None);
}

#[test]
fn events_of_many_pods_are_bounded() {
    let mut world = World::new();
    let pods = EVENTS_BURST as usize + 3;
    for at in 0..pods {
        world.seen(&format!("p{at}"), Face::In, Some("pending"));
        world.pending(&format!("p{at}"), &"ä".repeat(NOTE_BYTES_MAX));
    }
    world.pass(5);
    let told = world.done();
    assert_eq!(told.len(), EVENTS_BURST as usize);
    assert!(told[0].len() < NOTE_BYTES_MAX + 20);
    assert_eq!(world.desk.wake(), Some(world.now + EVENTS_EVERY));
    world.pass(5);
    assert_eq!(world.done().len(), 1);
}

#[test]
fn failures_are_tried_again_ever_later() {
    let mut world = World::new();
    world.seen("a", Face::In, None);
    world.report("a", Report::Captured);
    let mut pauses = Vec::new();
    for _ in 0..10 {
        assert_eq!(world.jobs(Outcome::Failed), ["a enabled"]);
        let wake = world.desk.wake().unwrap();
        pauses.push((wake - world.now).as_millis());
        world.now = wake;
    }
    assert_eq!(
        pauses,
        [
            250, 500, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000
        ]
    );
    // news do not wait
    world.jobs(Outcome::Failed);
    world.pending("a", "drift");
    world.pass(1);
    assert_eq!(world.done(), ["a pending"]);
    world.report("a", Report::Captured);
    assert_eq!(world.jobs(Outcome::NoPod), ["a enabled"]);
    assert_eq!(world.desk.wake(), None, "the pod is gone");
}

#[test]
fn who_undoes_a_write_is_answered_ever_later() {
    let mut world = World::new();
    world.seen("a", Face::In, None);
    world.report("a", Report::Captured);
    let mut writes = 0;
    let end = world.now + Duration::from_secs(3600);
    while world.now < end {
        writes += world.done().len();
        world.seen("a", Face::In, None);
        world.now = world.desk.wake().unwrap();
    }
    assert!((60..80).contains(&writes), "{writes}");
}

#[test]
fn one_job_of_a_pod_at_a_time_and_few_at_all() {
    let mut world = World::new();
    for at in 0..JOBS_MAX + 1 {
        world.seen(&format!("p{at}"), Face::Out, Some("enabled"));
    }
    let jobs: Vec<Job> = std::iter::from_fn(|| world.desk.next(world.now)).collect();
    assert_eq!((jobs.len(), world.desk.wake()), (JOBS_MAX, None));
    // what is said meanwhile is written after that
    let uid = jobs[0].who.uid.clone();
    world.seen(&uid, Face::In, Some("enabled"));
    world.pending(&uid, "drift");
    world.desk.done(&jobs[0], Outcome::Done, world.now);
    let rest = world.done();
    assert!(
        rest.contains(&format!("{uid} pending")) || rest.len() == 1,
        "{rest:?}"
    );
    // a pod may go while something is written onto it
    world.desk.forget(&jobs[1].who.uid);
    world.desk.done(&jobs[1], Outcome::Done, world.now);
    assert_eq!(world.desk.running, JOBS_MAX - 2);
}

#[test]
fn a_retired_desk_writes_nothing() {
    let mut world = World::new();
    world.seen("queued", Face::In, None);
    world.report("queued", Report::Captured);
    world.seen("running", Face::Out, Some("enabled"));
    world.seen("told", Face::In, Some("enabled"));
    world.report("told", Report::Captured);
    let job = world.desk.next(world.now).unwrap();
    world.desk.retire();
    assert!(world.desk.retired());
    world.desk.done(&job, Outcome::Failed, world.now);
    // the successor's word stands
    world.seen("told", Face::In, Some("pending"));
    world.report("told", Report::Captured);
    world.seen("new", Face::Waiting("no place".to_owned()), None);
    world.pass(3600);
    assert_eq!(world.desk.wake(), None);
    assert_eq!(world.done(), [""; 0]);
}
