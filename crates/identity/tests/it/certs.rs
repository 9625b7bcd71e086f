//! The life of certificates: waiting, renewing, failing, forgetting. The clock is paused; time passes only when all wait.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use identity::{Certs, Config, Credential, EmbeddedCa, IdentityError, IssueError, Issuer, Issuing};
use mesh::SpiffeId;
use tempfile::TempDir;
use tokio::sync::Semaphore;
use tokio::time::{Instant, advance};

use crate::pki::{embedded, id, td};

pub const HOUR: Duration = Duration::from_secs(3600);

/// The wall clock, moved by the paused clock of the test's runtime.
pub fn wall() -> SystemTime {
    thread_local! { static START: (Instant, SystemTime) = (Instant::now(), *EPOCH.get_or_init(SystemTime::now)); }
    static EPOCH: OnceLock<SystemTime> = OnceLock::new();
    START.with(|(mono, wall)| *wall + mono.elapsed())
}

fn config() -> Config {
    wall(); // starts the thread's clock
    Config {
        wall,
        ..Config::default()
    }
}

/// What the issuer does with one request.
enum Answer {
    Good,
    Refuse,
    Panic,
    Never,
    WrongName,
    Expired,
}

/// The embedded authority, with a script: answers in order, then only good ones.
struct Scripted {
    ca: EmbeddedCa,
    _dir: TempDir,
    script: Mutex<VecDeque<Answer>>,
    asked: Mutex<Vec<(SpiffeId, SystemTime)>>,
    /// One permit per answer; closed: no limit.
    gate: Semaphore,
}

impl Scripted {
    fn new(script: impl IntoIterator<Item = Answer>) -> Arc<Self> {
        let (ca, dir) = embedded();
        let gate = Semaphore::new(0);
        gate.close();
        Arc::new(Self {
            ca,
            _dir: dir,
            script: Mutex::new(script.into_iter().collect()),
            asked: Mutex::default(),
            gate,
        })
    }

    /// One whose answers wait for permits.
    fn gated() -> Arc<Self> {
        let mut new = Self::new([]);
        Arc::get_mut(&mut new).unwrap().gate = Semaphore::new(0);
        new
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    fn accounts(&self) -> Vec<String> {
        self.asked
            .lock()
            .unwrap()
            .iter()
            .map(|(id, _)| id.service_account().to_owned())
            .collect()
    }

    /// Seconds from the first request to each.
    fn times(&self) -> Vec<u64> {
        let asked = self.asked.lock().unwrap();
        asked
            .iter()
            .map(|(_, at)| at.duration_since(asked[0].1).unwrap().as_secs())
            .collect()
    }
}

impl Issuer for Scripted {
    fn issue<'a>(&'a self, id: &'a SpiffeId) -> Issuing<'a> {
        self.asked.lock().unwrap().push((id.clone(), wall()));
        let answer = self
            .script
            .lock()
            .unwrap()
            .pop_front()
            .unwrap_or(Answer::Good);
        Box::pin(async move {
            if let Ok(permit) = self.gate.acquire().await {
                permit.forget();
            }
            match answer {
                Answer::Good => self.ca.issue_at(id, wall()),
                Answer::WrongName => self.ca.issue_at(&td("somebody-else"), wall()),
                Answer::Expired => self.ca.issue_at(id, wall() - 72 * HOUR),
                Answer::Refuse => Err(IssueError::Signing {
                    code: "Unauthenticated".into(),
                    message: "not on this node".into(),
                }),
                Answer::Panic => panic!("as the script says"),
                Answer::Never => std::future::pending().await,
            }
        })
    }
}

/// Lets every task run until all wait, without letting time pass.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

fn serial(credential: &Credential) -> Vec<u8> {
    x509_parser::parse_x509_certificate(&credential.chain()[0])
        .unwrap()
        .1
        .raw_serial()
        .to_vec()
}

fn refused(result: Result<Arc<Credential>, IdentityError>) -> String {
    result.expect_err("no certificate").to_string()
}

#[tokio::test(start_paused = true)]
async fn one_fetch_serves_all() {
    let issuer = Scripted::new([]);
    let certs = Certs::spawn(issuer.clone(), config());
    assert!(certs.ready(&td("a")).is_none());
    let id = td("a");
    let (one, two) = tokio::join!(certs.get(&id), certs.get(&id));
    assert!(Arc::ptr_eq(&one.unwrap(), &two.unwrap()));
    assert!(certs.ready(&id).is_some());
    certs.get(&id).await.unwrap();
    assert_eq!(issuer.asked(), 1);
}

#[test]
fn other_threads_get_certificates_too() {
    let issuer = Scripted::new([]);
    let (certs, worker) = Certs::new(issuer, Config::default());
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap()
    };
    let data = std::thread::spawn(move || {
        runtime().block_on(async move { certs.get(&td("a")).await.unwrap() })
    });
    runtime().block_on(worker.run()); // ends when the last handle is gone
    assert_eq!(*data.join().unwrap().identity(), td("a"));
}

#[tokio::test(start_paused = true)]
async fn renews_at_half_life_and_again() {
    let issuer = Scripted::new([]);
    let certs = Certs::spawn(issuer.clone(), config());
    let first = serial(&certs.get(&td("a")).await.unwrap());
    advance(10 * HOUR).await;
    settle().await;
    assert_eq!(serial(&certs.get(&td("a")).await.unwrap()), first);
    for _ in 0..5 {
        advance(HOUR / 2).await;
        settle().await;
    }
    let second = certs.get(&td("a")).await.unwrap();
    assert_ne!(serial(&second), first);
    assert_eq!(issuer.asked(), 2);
    tokio::time::sleep(12 * HOUR).await;
    assert_eq!(issuer.asked(), 3);
    assert!(
        second.validity().not_after > wall(),
        "the old one would still do"
    );
}

#[tokio::test(start_paused = true)]
async fn serves_the_old_one_while_renewal_fails_until_its_end() {
    let issuer =
        Scripted::new(std::iter::once(Answer::Good).chain((0..1000).map(|_| Answer::Refuse)));
    let certs = Certs::spawn(issuer.clone(), config());
    let first = certs.get(&td("a")).await.unwrap();
    tokio::time::sleep(23 * HOUR).await;
    assert!(issuer.asked() > 100, "it keeps trying: {}", issuer.asked());
    assert_eq!(serial(&certs.get(&td("a")).await.unwrap()), serial(&first));
    tokio::time::sleep(HOUR + Duration::from_secs(1)).await;
    assert_eq!(
        refused(certs.get(&td("a")).await),
        "signing gRPC error (Unauthenticated): not on this node"
    );
    let end = first.validity().not_after;
    assert!(
        issuer
            .asked
            .lock()
            .unwrap()
            .iter()
            .any(|(_, at)| *at >= end && *at < end + Duration::from_secs(1))
    );
    issuer.script.lock().unwrap().clear();
    tokio::time::sleep(Duration::from_secs(151)).await;
    assert_ne!(serial(&certs.get(&td("a")).await.unwrap()), serial(&first));
}

#[tokio::test(start_paused = true)]
async fn unavailable_at_once_until_a_retry_succeeds() {
    let issuer = Scripted::new([Answer::Refuse, Answer::Refuse, Answer::Refuse]);
    let certs = Certs::spawn(issuer.clone(), config());
    let id = td("a");
    let (one, two) = tokio::join!(certs.get(&id), certs.get(&id));
    assert_eq!(
        refused(one),
        "signing gRPC error (Unauthenticated): not on this node"
    );
    assert!(two.is_err());
    assert!(certs.get(&id).await.is_err());
    assert_eq!(issuer.asked(), 1, "asking does not hurry the retry");
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(certs.get(&id).await.is_ok());
    let times = issuer.times();
    assert!(
        times.len() == 4
            && times[1] <= 2
            && (2..=5).contains(&times[2])
            && (5..=10).contains(&times[3]),
        "{times:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn waited_for_goes_before_prefetched_and_only_eight_at_a_time() {
    let issuer = Scripted::gated();
    let certs = Certs::spawn(issuer.clone(), config());
    for n in 0..10 {
        certs.prefetch(&td(&format!("warm{n}")));
    }
    settle().await;
    assert_eq!(issuer.asked(), 8);
    let waiting = tokio::spawn({
        let certs = certs.clone();
        async move { certs.get(&td("urgent")).await.map(|_| ()) }
    });
    settle().await;
    assert_eq!(issuer.asked(), 8);
    issuer.gate.add_permits(1);
    settle().await;
    assert_eq!(issuer.accounts()[8], "urgent");
    issuer.gate.add_permits(20);
    waiting.await.unwrap().unwrap();
    settle().await;
    assert_eq!(issuer.asked(), 11);
    assert!(certs.ready(&td("warm9")).is_some());
}

#[tokio::test(start_paused = true)]
async fn forgotten_while_waited_for() {
    let issuer = Scripted::gated();
    let certs = Certs::spawn(issuer.clone(), config());
    let wait = |certs: Certs| tokio::spawn(async move { certs.get(&td("a")).await });
    let waiting = wait(certs.clone());
    settle().await;
    certs.forget(&td("a"));
    assert_eq!(
        refused(waiting.await.unwrap()),
        "the identity is no longer needed"
    );
    assert!(certs.dump().is_empty());
    // Asked for again while the first fetch is under way: that one serves.
    let waiting = wait(certs.clone());
    settle().await;
    issuer.gate.add_permits(1);
    waiting.await.unwrap().unwrap();
    assert_eq!(issuer.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_result_for_the_forgotten_is_thrown_away() {
    let issuer = Scripted::gated();
    let certs = Certs::spawn(issuer.clone(), config());
    certs.prefetch(&td("a"));
    settle().await;
    certs.forget(&td("a"));
    issuer.gate.add_permits(1);
    settle().await;
    assert!(certs.dump().is_empty());
    tokio::time::sleep(48 * HOUR).await;
    assert_eq!(issuer.asked(), 1, "and it is not renewed");
}

#[tokio::test(start_paused = true)]
async fn broken_issuers_are_errors_not_hangs() {
    for (answer, expected) in [
        (Answer::Panic, "the issuer failed unexpectedly"),
        (Answer::Never, "no answer from the issuer within 30s"),
        (
            Answer::WrongName,
            "did not find expected SAN: spiffe://td/ns/ns/sa/a",
        ),
        (Answer::Expired, "the certificate has expired already"),
    ] {
        let certs = Certs::spawn(Scripted::new([answer]), config());
        assert_eq!(refused(certs.get(&td("a")).await), expected);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(certs.get(&td("a")).await.is_ok(), "the retry heals it");
    }
}

#[tokio::test(start_paused = true)]
async fn an_expired_answer_does_not_replace_a_good_one() {
    let issuer =
        Scripted::new(std::iter::once(Answer::Good).chain((0..1000).map(|_| Answer::Expired)));
    let certs = Certs::spawn(issuer.clone(), config());
    let first = serial(&certs.get(&td("a")).await.unwrap());
    tokio::time::sleep(23 * HOUR).await;
    assert_eq!(serial(&certs.get(&td("a")).await.unwrap()), first);
    let asked = issuer.asked();
    assert!(
        (100..400).contains(&asked),
        "it keeps trying, not too often: {asked}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_authority_that_refuses_at_once_is_not_asked_in_a_loop() {
    let issuer = Scripted::new((0..100_000).map(|_| Answer::Refuse));
    let certs = Certs::spawn(issuer.clone(), config());
    let id = td("a");
    for _ in 0..1000 {
        assert!(certs.get(&id).await.is_err());
        certs.prefetch(&id);
        settle().await;
    }
    assert_eq!(issuer.asked(), 1, "however often it is wanted");
    tokio::time::sleep(HOUR).await;
    let asked = issuer.asked();
    assert!(
        (28..=40).contains(&asked),
        "every 150 s in the end: {asked}"
    );
}

#[tokio::test(start_paused = true)]
async fn who_waits_learns_that_the_worker_is_gone() {
    let issuer = Scripted::gated();
    let (certs, worker) = Certs::new(issuer, config());
    let worker = tokio::spawn(worker.run());
    let waiting = tokio::spawn({
        let certs = certs.clone();
        async move { certs.get(&td("a")).await }
    });
    settle().await;
    worker.abort();
    assert!(matches!(
        waiting.await.unwrap(),
        Err(IdentityError::Stopped)
    ));
    assert!(matches!(
        certs.get(&td("b")).await,
        Err(IdentityError::Stopped)
    ));
}

#[tokio::test(start_paused = true)]
async fn the_dump_shows_every_state() {
    let issuer = Scripted::new([Answer::Good, Answer::Refuse, Answer::Never]);
    let certs = Certs::spawn(issuer, config());
    let good = certs.get(&id("spiffe://td/ns/shop/sa/good")).await.unwrap();
    let _ = certs.get(&id("spiffe://td/ns/shop/sa/bad")).await;
    certs.prefetch(&id("spiffe://td/ns/shop-2/sa/new"));
    settle().await;
    let dump = serde_json::to_value(certs.dump()).unwrap();
    let texts = |key: &str| -> Vec<String> {
        dump.as_array()
            .unwrap()
            .iter()
            .map(|entry| entry[key].as_str().unwrap().to_owned())
            .collect()
    };
    let expected = [
        "spiffe://td/ns/shop-2/sa/new",
        "spiffe://td/ns/shop/sa/bad",
        "spiffe://td/ns/shop/sa/good",
    ];
    assert_eq!(texts("identity"), expected, "sorted by text");
    let states = [
        "Initializing",
        "Unavailable: signing gRPC error (Unauthenticated): not on this node",
        "Available",
    ];
    assert_eq!(texts("state"), states);
    assert_eq!(dump[0]["certChain"], serde_json::json!([]));
    let (leaf, root) = (&dump[2]["certChain"][0], &dump[2]["rootCerts"][0]);
    let decimal = leaf["serialNumber"].as_str().unwrap();
    let (_, cert) = x509_parser::parse_x509_certificate(&good.chain()[0]).unwrap();
    assert_eq!(decimal, cert.serial.to_string());
    assert!(decimal.bytes().all(|b| b.is_ascii_digit()));
    for key in ["validFrom", "expirationTime"] {
        let text = leaf[key].as_str().unwrap();
        assert!(
            text.len() == 20 && text.ends_with('Z') && text.as_bytes()[10] == b'T',
            "{text}"
        );
    }
    assert!(
        root["pem"]
            .as_str()
            .unwrap()
            .starts_with("LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0t")
    );
}
