//! Questions to real sockets: asked once, asked again, answered by the wrong ones, not answered.

use std::collections::BTreeMap;
use std::io;
use std::net::UdpSocket as StdUdp;
use std::sync::atomic::AtomicBool;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, UdpSocket};
use tokio::task::LocalSet;

use super::*;
use crate::dns::message::{ask_addresses, read_addresses};
use crate::needs::{Dial, Net};
use crate::pod::{PodName, PodOptions};

/// What a resolver of the tests does with a question.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Answer,
    /// not at first
    AnswerTheSecond,
    Silence,
    /// wrong ones before, so many of them
    Forge(u32),
    /// cut over UDP, whole over TCP
    Cut,
    /// does not want to say
    Refuse,
}

/// A resolver on loopback that counts what it is asked.
struct Upstream {
    at: SocketAddr,
    asked: Arc<AtomicUsize>,
}

/// The answer that is one A record of `last`.
fn answer(question: &[u8], last: u8) -> Vec<u8> {
    let mut answer = question.to_vec();
    answer[2] |= 0x80;
    answer[7] = 1;
    answer.extend_from_slice(b"\xc0\x0c\0\x01\0\x01\0\0\0\x1e\0\x04\x0a\0\0");
    answer.push(last);
    answer
}

impl Upstream {
    /// Answers with 10.0.0.`last`.
    async fn start(way: Way, last: u8) -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = tcp.local_addr().unwrap();
        let udp = UdpSocket::bind(at).await.unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        tokio::task::spawn_local(async move {
            let mut buffer = [0; 512];
            loop {
                let (len, from) = udp.recv_from(&mut buffer).await.unwrap();
                let number = count.fetch_add(1, Ordering::Relaxed);
                let right = answer(&buffer[..len], last);
                let mut said = Vec::new();
                match way {
                    Way::Answer => said.push(right),
                    Way::AnswerTheSecond if number > 0 => said.push(right),
                    Way::Silence | Way::AnswerTheSecond => {}
                    Way::Forge(times) => {
                        for n in 0..times {
                            let mut wrong = answer(&buffer[..len], 66);
                            // another id, or another name
                            wrong[if n % 2 == 0 { 0 } else { 13 }] ^= 1;
                            said.push(wrong);
                        }
                        said.push(right);
                    }
                    Way::Refuse => {
                        let mut refused = buffer[..len].to_vec();
                        refused[2] |= 0x80;
                        refused[3] |= 5;
                        said.push(refused);
                    }
                    Way::Cut => {
                        let mut cut = right;
                        cut[2] |= 2;
                        said.push(cut);
                    }
                }
                for message in said {
                    udp.send_to(&message, from).await.unwrap();
                }
            }
        });
        tokio::task::spawn_local(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                let len = stream.read_u16().await.unwrap();
                let mut question = vec![0; len.into()];
                stream.read_exact(&mut question).await.unwrap();
                let whole = answer(&question, last);
                stream.write_u16(whole.len() as u16).await.unwrap();
                stream.write_all(&whole).await.unwrap();
            }
        });
        Self { at, asked }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

/// The test's own namespace.
struct Here {
    resolvers: Vec<SocketAddr>,
    /// source ports that were used
    ports: Mutex<Vec<u16>>,
    tcp: AtomicBool,
}

impl Net for Here {
    fn socket(&self, _: &Dial) -> io::Result<TcpSocket> {
        self.tcp.store(true, Ordering::Relaxed);
        TcpSocket::new_v4()
    }

    fn resolver(&self, resolver: SocketAddr) -> io::Result<StdUdp> {
        let socket = StdUdp::bind("127.0.0.1:0")?;
        socket.set_nonblocking(true)?;
        socket.connect(resolver)?;
        self.ports.lock().unwrap().push(socket.local_addr()?.port());
        Ok(socket)
    }

    fn node_resolvers(&self) -> &[SocketAddr] {
        &self.resolvers
    }
}

fn pod(upstreams: &[&Upstream]) -> (Arc<Pod>, Arc<Here>) {
    let net = Arc::new(Here {
        resolvers: upstreams.iter().map(|u| u.at).collect(),
        ports: Mutex::default(),
        tcp: AtomicBool::new(false),
    });
    let text = || "x".into();
    let who = PodName {
        uid: text(),
        name: text(),
        namespace: text(),
        service_account: text(),
    };
    let pod = Pod::new(who, PodOptions::default(), Arc::clone(&net) as _);
    (pod, net)
}

/// What the pod is told about `host`: the last byte of the address.
async fn ask_for(pod: &Arc<Pod>, host: &str) -> Result<u8, Trouble> {
    let question = ask_addresses(host, false).unwrap();
    let key = Key {
        resolver: None,
        essence: question.clone(),
    };
    if let Some((answer, _)) = pod.dns.find(&key) {
        return Ok(answer[answer.len() - 1]);
    }
    let answer = fetch(pod, key, question).await?;
    assert_eq!(read_addresses(&answer).unwrap().len(), 1);
    Ok(answer[answer.len() - 1])
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

#[test]
fn many_that_ask_the_same_ask_once_and_later_ones_not_at_all() {
    run(async {
        let upstream = Upstream::start(Way::Answer, 1).await;
        let (pod, net) = pod(&[&upstream]);
        let (one, two, other) = tokio::join!(
            ask_for(&pod, "web.test"),
            ask_for(&pod, "web.test"),
            ask_for(&pod, "other.test"),
        );
        assert_eq!((one.unwrap(), two.unwrap(), other.unwrap()), (1, 1, 1));
        assert_eq!(upstream.asked(), 2);
        assert_eq!(ask_for(&pod, "web.test").await.unwrap(), 1);
        assert_eq!(upstream.asked(), 2);
        assert!(pod.dns.lock().under_way.is_empty());
        let ports = net.ports.lock().unwrap();
        assert_ne!(ports[0], ports[1]);
    });
}

#[test]
fn who_asked_first_may_go() {
    run(async {
        let upstream = Upstream::start(Way::AnswerTheSecond, 1).await;
        let (pod, _) = pod(&[&upstream]);
        let mut first = Box::pin(ask_for(&pod, "web.test"));
        let gone = tokio::time::timeout(Duration::from_millis(20), &mut first).await;
        assert!(gone.is_err());
        drop(first);
        assert_eq!(ask_for(&pod, "web.test").await.unwrap(), 1);
        assert_eq!(upstream.asked(), 2);
    });
}

#[test]
fn wrong_answers_are_not_taken_and_too_many_end_the_try() {
    run(async {
        let few = Upstream::start(Way::Forge(5), 1).await;
        let (victim, _) = pod(&[&few]);
        assert_eq!(ask_for(&victim, "web.test").await.unwrap(), 1);
        let many = Upstream::start(Way::Forge(100), 2).await;
        let (victim, _) = pod(&[&many]);
        let outcome = ask_for(&victim, "web.test").await;
        assert!(matches!(outcome, Err(Trouble::Forgeries)), "{outcome:?}");
    });
}

#[test]
fn long_answers_come_over_tcp() {
    run(async {
        let upstream = Upstream::start(Way::Cut, 3).await;
        let (pod, net) = pod(&[&upstream]);
        assert_eq!(ask_for(&pod, "web.test").await.unwrap(), 3);
        assert!(net.tcp.load(Ordering::Relaxed));
    });
}

#[test]
fn a_silent_resolver_is_passed_over_and_not_asked_first_again() {
    run(async {
        let silent = Upstream::start(Way::Silence, 1).await;
        let good = Upstream::start(Way::Answer, 2).await;
        let (pod, _) = pod(&[&silent, &good]);
        assert_eq!(ask_for(&pod, "web.test").await.unwrap(), 2);
        assert_eq!(ask_for(&pod, "other.test").await.unwrap(), 2);
        assert_eq!((silent.asked(), good.asked()), (1, 2));
    });
}

#[test]
fn a_resolver_that_refuses_is_no_last_word_and_not_asked_first_again() {
    run(async {
        let refuser = Upstream::start(Way::Refuse, 1).await;
        let silent = Upstream::start(Way::Silence, 1).await;
        let good = Upstream::start(Way::Answer, 2).await;
        let (first, _) = pod(&[&refuser, &refuser, &good]);
        assert_eq!(ask_for(&first, "web.test").await.unwrap(), 2);
        let (last, _) = pod(&[&good, &refuser]);
        for host in ["a.test", "b.test"] {
            assert_eq!(ask_for(&last, host).await.unwrap(), 2);
        }
        assert_eq!((refuser.asked(), good.asked()), (2, 3));
        // nobody has a better word
        let (none, _) = pod(&[&silent, &refuser]);
        let (alone, _) = pod(&[&refuser]);
        for pod in [&none, &alone] {
            let question = ask_addresses("web.test", false).unwrap();
            let answer = fetch_alone(pod, None, &question).await.unwrap();
            assert_eq!(answer[3] & 0xf, 5);
        }
    });
}

#[test]
fn a_resolver_that_is_away_is_told_at_once() {
    run(async {
        let upstream = Upstream::start(Way::Answer, 2).await;
        let closed = StdUdp::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (good, _) = pod(&[&upstream]);
        let away = Upstream {
            at: closed,
            asked: Arc::default(),
        };
        let (both, _) = pod(&[&away, &upstream]);
        let (none, _) = pod(&[]);
        let (alone, _) = pod(&[&away]);
        assert_eq!(ask_for(&good, "web.test").await.unwrap(), 2);
        assert_eq!(ask_for(&both, "web.test").await.unwrap(), 2);
        let outcome = ask_for(&alone, "web.test").await;
        assert!(matches!(outcome, Err(Trouble::Network(_))), "{outcome:?}");
        let outcome = ask_for(&none, "web.test").await;
        assert!(matches!(outcome, Err(Trouble::NoResolver)), "{outcome:?}");
    });
}

#[test]
fn what_waits_and_what_is_asked_is_bounded_and_ends_with_the_pod() {
    run(async {
        let silent = Upstream::start(Way::Silence, 1).await;
        let (pod, _) = pod(&[&silent]);
        let seats: Vec<_> = std::iter::from_fn(|| Seat::take(&pod)).collect();
        assert_eq!(seats.len(), QUESTIONS_MAX);
        drop(seats);
        assert!(Seat::take(&pod).is_some());
        let mut waiting = BTreeMap::new();
        for number in 0..QUESTIONS_MAX {
            let pod = Arc::clone(&pod);
            let asked = async move { ask_for(&pod, &format!("n{number}.test")).await };
            waiting.insert(number, tokio::task::spawn_local(asked));
        }
        while pod.dns.lock().under_way.len() < QUESTIONS_MAX {
            tokio::task::yield_now().await;
        }
        let outcome = ask_for(&pod, "more.test").await;
        assert!(matches!(outcome, Err(Trouble::Busy)), "{outcome:?}");
        pod.advance(Phase::Cut);
        for (_, task) in waiting {
            let outcome = task.await.unwrap();
            assert!(matches!(outcome, Err(Trouble::Leaving)), "{outcome:?}");
        }
        assert!(pod.dns.lock().under_way.is_empty());
    });
}
