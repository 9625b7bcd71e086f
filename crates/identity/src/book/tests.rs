//! The life of identities in the book, on clocks made by hand.

use super::*;

const S: Duration = Duration::from_secs(1);

/// Both clocks, moved together.
struct Clock(Now);

impl Clock {
    fn new() -> Self {
        Self(Now {
            mono: Instant::now(),
            wall: SystemTime::UNIX_EPOCH + 1_000_000 * S,
        })
    }

    fn pass(&mut self, time: Duration) -> Now {
        self.0.mono += time;
        self.0.wall += time;
        self.0
    }
}

fn id(n: usize) -> SpiffeId {
    SpiffeId::new("td", "ns", format!("s{n:05}"))
}

/// A certificate good for `life`, to be renewed in the middle.
fn fresh(credential: u32, now: Now, life: Duration) -> Result<Fresh<u32>, Arc<IssueError>> {
    Ok(Fresh {
        credential,
        renew_at: now.wall + life / 2,
        not_after: now.wall + life,
    })
}

fn failed() -> Result<Fresh<u32>, Arc<IssueError>> {
    Err(Arc::new(IssueError::Deadline(S)))
}

fn credential(book: &Book<u32>, id: &SpiffeId) -> Option<u32> {
    match book.state(id) {
        Some(State::Available { credential, .. }) => Some(*credential),
        _ => None,
    }
}

fn unavailable(book: &Book<u32>, id: &SpiffeId) -> bool {
    matches!(book.state(id), Some(State::Unavailable { .. }))
}

#[test]
fn urgent_goes_first_then_older() {
    let (mut book, mut clock) = (Book::<u32>::default(), Clock::new());
    book.want(&id(1), Priority::Warmup, clock.0.mono).unwrap();
    let later = clock.pass(S);
    book.want(&id(0), Priority::Warmup, later.mono).unwrap();
    book.want(&id(2), Priority::RealTime, later.mono).unwrap();
    let latest = clock.pass(S);
    book.want(&id(3), Priority::Warmup, latest.mono).unwrap();
    book.want(&id(3), Priority::RealTime, latest.mono).unwrap(); // raised
    book.want(&id(2), Priority::Warmup, latest.mono).unwrap(); // not lowered
    for expected in [2, 3, 1, 0] {
        assert_eq!(book.next(latest), Next::Fetch(id(expected)));
    }
    assert_eq!(book.next(latest), Next::Wait(None));
}

#[test]
fn a_renewal_yields_to_whoever_waits() {
    let (mut book, mut clock) = (Book::default(), Clock::new());
    book.want(&id(1), Priority::RealTime, clock.0.mono).unwrap();
    assert_eq!(book.next(clock.0), Next::Fetch(id(1)));
    book.done(&id(1), fresh(1, clock.0, 100 * S), clock.0, 0.5);
    let now = clock.pass(60 * S);
    book.want(&id(2), Priority::Warmup, now.mono).unwrap();
    assert_eq!(book.next(now), Next::Fetch(id(2)));
    assert_eq!(book.next(now), Next::Fetch(id(1)));
}

#[test]
fn only_so_many_fetches_at_a_time() {
    let (mut book, clock) = (Book::default(), Clock::new());
    for n in 0..FETCHES_MAX + 1 {
        book.want(&id(n), Priority::RealTime, clock.0.mono).unwrap();
    }
    for n in 0..FETCHES_MAX {
        assert_eq!(book.next(clock.0), Next::Fetch(id(n)));
    }
    assert_eq!(book.next(clock.0), Next::Wait(None));
    book.done(&id(3), fresh(1, clock.0, 100 * S), clock.0, 0.5);
    assert_eq!(book.next(clock.0), Next::Fetch(id(FETCHES_MAX)));
}

#[test]
fn duplicates_share_a_fetch() {
    let (mut book, clock) = (Book::<u32>::default(), Clock::new());
    book.want(&id(1), Priority::RealTime, clock.0.mono).unwrap();
    assert_eq!(book.next(clock.0), Next::Fetch(id(1)));
    book.want(&id(1), Priority::RealTime, clock.0.mono).unwrap();
    assert_eq!(book.next(clock.0), Next::Wait(None));
}

#[test]
fn renews_at_its_time_and_serves_the_old_one_meanwhile() {
    let (mut book, mut clock) = (Book::default(), Clock::new());
    book.want(&id(1), Priority::RealTime, clock.0.mono).unwrap();
    book.next(clock.0);
    book.done(&id(1), fresh(1, clock.0, 100 * S), clock.0, 0.5);
    assert_eq!(book.next(clock.0), Next::Wait(Some(50 * S)));
    let now = clock.pass(50 * S);
    assert_eq!(book.next(now), Next::Fetch(id(1)));
    assert_eq!(credential(&book, &id(1)), Some(1));
    book.done(&id(1), fresh(2, now, 100 * S), now, 0.5);
    assert_eq!(credential(&book, &id(1)), Some(2));
    assert_eq!(book.next(now), Next::Wait(Some(50 * S)));
}

#[test]
fn a_certificate_past_its_middle_is_renewed_soon_but_not_in_a_loop() {
    let (mut book, mut clock) = (Book::default(), Clock::new());
    book.want(&id(1), Priority::RealTime, clock.0.mono).unwrap();
    book.next(clock.0);
    let stale = Fresh {
        credential: 1,
        renew_at: SystemTime::UNIX_EPOCH,
        not_after: clock.0.wall + S,
    };
    book.done(&id(1), Ok(stale), clock.0, 0.5);
    assert_eq!(book.next(clock.0), Next::Wait(Some(RENEWAL_PAUSE)));
    assert_eq!(book.next(clock.pass(RENEWAL_PAUSE)), Next::Fetch(id(1)));
}

#[test]
fn failing_renewals_keep_the_certificate_until_its_end() {
    let (mut book, mut clock) = (Book::default(), Clock::new());
    book.want(&id(1), Priority::RealTime, clock.0.mono).unwrap();
    book.next(clock.0);
    book.done(&id(1), fresh(1, clock.0, 20 * S), clock.0, 0.5);
    let mut now = clock.pass(10 * S);
    let mut attempts = Vec::new();
    while !unavailable(&book, &id(1)) {
        assert_eq!(book.next(now), Next::Fetch(id(1)));
        assert_eq!(
            credential(&book, &id(1)),
            Some(1),
            "served while the renewal is under way"
        );
        attempts.push(
            now.wall
                .duration_since(SystemTime::UNIX_EPOCH + 1_000_000 * S)
                .unwrap()
                .as_secs(),
        );
        book.done(&id(1), failed(), now, 0.5);
        let Next::Wait(Some(wait)) = book.next(now) else {
            panic!("a retry is planned")
        };
        now = clock.pass(wait);
    }
    assert_eq!(
        attempts,
        [10, 11, 13, 17, 20],
        "1, 2, 4 s apart, and once more at the very end"
    );
}

#[test]
fn unavailable_until_a_retry_succeeds_then_failures_are_forgotten() {
    let (mut book, mut clock) = (Book::default(), Clock::new());
    book.want(&id(1), Priority::RealTime, clock.0.mono).unwrap();
    for wait in [1, 2, 4, 8] {
        assert_eq!(book.next(clock.0), Next::Fetch(id(1)));
        book.done(&id(1), failed(), clock.0, 0.5);
        assert!(unavailable(&book, &id(1)));
        assert!(matches!(
            book.want(&id(1), Priority::RealTime, clock.0.mono),
            Ok(State::Unavailable { .. })
        ));
        assert_eq!(book.next(clock.0), Next::Wait(Some(wait * S)));
        clock.pass(wait * S);
    }
    book.next(clock.0);
    book.done(&id(1), fresh(1, clock.0, 2 * S), clock.0, 0.5);
    assert_eq!(credential(&book, &id(1)), Some(1));
    let now = clock.pass(S);
    book.next(now);
    book.done(&id(1), failed(), now, 0.5);
    assert_eq!(
        book.next(now),
        Next::Wait(Some(S)),
        "back to the first wait"
    );
}

#[test]
fn failing_for_long_is_constant() {
    let (mut book, mut clock) = (Book::default(), Clock::new());
    book.want(&id(1), Priority::RealTime, clock.0.mono).unwrap();
    for _ in 0..30 {
        book.next(clock.0);
        book.done(&id(1), failed(), clock.0, 0.0);
        let Next::Wait(Some(wait)) = book.next(clock.0) else {
            panic!("a retry is planned")
        };
        assert!(wait <= 150 * S);
        clock.pass(wait);
    }
    book.next(clock.0);
    book.done(&id(1), failed(), clock.0, 0.0);
    assert_eq!(book.next(clock.0), Next::Wait(Some(150 * S)));
}

#[test]
fn results_for_the_forgotten_are_thrown_away() {
    let (mut book, clock) = (Book::default(), Clock::new());
    book.want(&id(1), Priority::RealTime, clock.0.mono).unwrap();
    assert_eq!(book.next(clock.0), Next::Fetch(id(1)));
    book.forget(&id(1));
    assert!(
        book.done(&id(1), fresh(1, clock.0, 100 * S), clock.0, 0.5)
            .is_none()
    );
    assert!(book.state(&id(1)).is_none());
    assert_eq!(book.next(clock.0), Next::Wait(None));
}

#[test]
fn asked_again_while_under_way_uses_that_fetch() {
    let (mut book, clock) = (Book::default(), Clock::new());
    book.want(&id(1), Priority::RealTime, clock.0.mono).unwrap();
    book.next(clock.0);
    book.forget(&id(1));
    book.want(&id(1), Priority::RealTime, clock.0.mono).unwrap();
    assert_eq!(book.next(clock.0), Next::Wait(None), "not fetched twice");
    book.done(&id(1), fresh(7, clock.0, 100 * S), clock.0, 0.5);
    assert_eq!(credential(&book, &id(1)), Some(7));
}

#[test]
fn both_bounds_hold() {
    let (mut book, clock) = (Book::<u32>::default(), Clock::new());
    for n in 0..PREFETCHES_MAX {
        assert!(book.want(&id(n), Priority::Warmup, clock.0.mono).is_ok());
    }
    assert!(
        book.want(&id(PREFETCHES_MAX), Priority::Warmup, clock.0.mono)
            .is_err()
    );
    for n in PREFETCHES_MAX..IDENTITIES_MAX {
        assert!(book.want(&id(n), Priority::RealTime, clock.0.mono).is_ok());
    }
    assert!(
        book.want(&id(IDENTITIES_MAX), Priority::RealTime, clock.0.mono)
            .is_err()
    );
    assert!(
        book.want(&id(0), Priority::RealTime, clock.0.mono).is_ok(),
        "a known one is no new one"
    );
}

#[test]
fn a_wall_clock_set_forward_brings_the_renewal_forward() {
    let (mut book, clock) = (Book::default(), Clock::new());
    book.want(&id(1), Priority::RealTime, clock.0.mono).unwrap();
    book.next(clock.0);
    book.done(&id(1), fresh(1, clock.0, 1000 * S), clock.0, 0.5);
    let jumped = Now {
        mono: clock.0.mono + RENEWAL_PAUSE,
        wall: clock.0.wall + 600 * S,
    };
    assert_eq!(book.next(jumped), Next::Fetch(id(1)));
}
