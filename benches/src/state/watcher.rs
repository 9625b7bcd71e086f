//! Data threads that decide about one connection after the other, and note how long they waited for the state and for themselves.
//!
//! A sample is set aside only when the thread that took it lost its own CPU meanwhile. A wait for a thread that holds the state and
//! was put to sleep by the kernel is a wait for the state.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use control::Publisher;
use mesh::route::Flow;
use mesh::{Index, Workload, route};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Data threads, on any machine: they wait for each other as well as for the writer.
pub const THREADS: usize = 2;

/// A wait that is counted.
const LONG: Duration = Duration::from_millis(1);

/// The longest times of many decisions.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Waits {
    /// Decisions taken.
    pub decisions: u64,
    /// Waits for the state of more than a millisecond.
    pub state_long: u64,
    /// Longest wait for the state.
    pub state_max: Duration,
    /// Longest decision, with its wait.
    pub decision_max: Duration,
    /// Decisions set aside because the thread lost its CPU meanwhile.
    pub preempted: u64,
    /// Longest of these.
    pub preempted_max: Duration,
}

impl Waits {
    fn join(self, other: Self) -> Self {
        Self {
            decisions: self.decisions + other.decisions,
            state_long: self.state_long + other.state_long,
            state_max: self.state_max.max(other.state_max),
            decision_max: self.decision_max.max(other.decision_max),
            preempted: self.preempted + other.preempted,
            preempted_max: self.preempted_max.max(other.preempted_max),
        }
    }
}

/// Data threads at work.
pub struct Watchers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Waits>>,
}

impl Watchers {
    /// Has them decide about connections to these addresses.
    pub fn start(publisher: &Publisher, targets: &[IpAddr]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..THREADS as u64).map(|seed| {
            let (state, targets) = (publisher.current(), targets.to_vec());
            let until = stop.clone();
            std::thread::spawn(move || decide(seed, &state, &targets, &until))
        });
        Self {
            threads: threads.collect(),
            stop,
        }
    }

    /// Ends them; what all of them saw.
    pub fn stop(self) -> Waits {
        self.stop.store(true, Ordering::Relaxed);
        let all = self.threads.into_iter();
        all.map(|thread| thread.join().expect("decisions do not panic"))
            .fold(Waits::default(), Waits::join)
    }
}

fn decide(seed: u64, state: &ArcSwap<Index>, targets: &[IpAddr], until: &AtomicBool) -> Waits {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut waits = Waits::default();
    let source = Arc::new(Workload::default().with(|profile| profile.namespace = "client".into()));
    let mut flow = Flow {
        source,
        client: SocketAddr::from(([10, 0, 0, 1], 40_000)),
        target: SocketAddr::from(([10, 0, 0, 1], 80)),
        socks: false,
    };
    let mut lost = Cpu::of_thread().lost;
    while !until.load(Ordering::Relaxed) {
        flow.target
            .set_ip(targets[rng.random_range(0..targets.len())]);
        let start = Instant::now();
        let index = state.load_full();
        let waited = start.elapsed();
        std::hint::black_box(route(&index, &flow, &mut rng));
        drop(index);
        let decided = start.elapsed();
        waits.decisions += 1;
        let lost_now = Cpu::of_thread().lost;
        if lost_now == lost {
            waits.state_long += u64::from(waited > LONG);
            waits.state_max = waits.state_max.max(waited);
            waits.decision_max = waits.decision_max.max(decided);
        } else {
            waits.preempted += 1;
            waits.preempted_max = waits.preempted_max.max(decided);
        }
        lost = lost_now;
    }
    waits
}

/// What a thread had of the CPU so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu {
    used: Duration,
    lost: i64,
}

impl Cpu {
    pub fn of_thread() -> Self {
        let Ok(usage) = getrusage(UsageWho::RUSAGE_THREAD) else {
            return Self::default();
        };
        let time = usage.user_time() + usage.system_time();
        let micros = u64::try_from(time.num_microseconds()).unwrap_or_default();
        Self {
            used: Duration::from_micros(micros),
            lost: usage.involuntary_context_switches(),
        }
    }

    /// CPU time used since `then`.
    pub fn used_since(self, then: Self) -> Duration {
        self.used.saturating_sub(then.used)
    }
}
