//! A data thread that decides about one connection after the other, and notes how long it waited for the state and for itself.
//!
//! Samples during which the kernel gave the CPU to someone else are set aside: they tell about the machine.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mesh::route::Flow;
use mesh::{Index, Workload, route};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;

use crate::push::Plane;
use crate::world::World;

/// How long the noise of the machine is listened to.
const NOISE: Duration = Duration::from_secs(2);

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

/// A data thread at work.
pub struct Watcher {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Waits>,
}

impl Watcher {
    pub fn start(plane: &Plane, world: &World) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (state, targets) = (plane.publisher().subscribe(), world.targets());
        let until = stop.clone();
        let thread = std::thread::spawn(move || decide(&state, &targets, &until));
        Self { stop, thread }
    }

    pub fn stop(self) -> Waits {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("decisions do not panic")
    }
}

/// The same beside a thread that is busy with something else.
pub fn noise(plane: &Plane, world: &World) -> Waits {
    let watcher = Watcher::start(plane, world);
    let start = Instant::now();
    while start.elapsed() < NOISE {
        std::hint::spin_loop();
    }
    watcher.stop()
}

fn decide(state: &watch::Receiver<Arc<Index>>, targets: &[IpAddr], until: &AtomicBool) -> Waits {
    let mut rng = SmallRng::seed_from_u64(1);
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
        let index = Arc::clone(&state.borrow());
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

    /// CPU time used since `then`, and how often the CPU was lost against the thread's will.
    pub fn since(self, then: Self) -> (Duration, i64) {
        (self.used.saturating_sub(then.used), self.lost - then.lost)
    }
}
