//! Real questions over UDP to a server in this process.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_resolver::config::NameServerConfig;
use proxy::needs::Resolver;
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tokio::task::LocalSet;

use super::*;

const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const NAME_ERROR: u8 = 3;

/// A name server that knows `db.example` (two IPv4, one IPv6 address) and nothing else.
struct Server {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    /// answers it may still give
    leave: Arc<Semaphore>,
}

impl Server {
    async fn start(answers: usize) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let server = Self {
            address: socket.local_addr().unwrap(),
            asked: Arc::default(),
            leave: Arc::new(Semaphore::new(answers)),
        };
        let (asked, leave) = (Arc::clone(&server.asked), Arc::clone(&server.leave));
        tokio::task::spawn_local(async move {
            let mut buffer = [0; 1500];
            while let Ok((len, client)) = socket.recv_from(&mut buffer).await {
                asked.fetch_add(1, Ordering::Relaxed);
                leave.acquire().await.unwrap().forget();
                let _ = socket.send_to(&answer(&buffer[..len]), client).await;
            }
        });
        server
    }

    fn resolver(&self, ipv4_only: bool) -> Names {
        let mut at = NameServerConfig::udp(self.address.ip());
        at.connections[0].port = self.address.port();
        let config = ResolverConfig::from_parts(None, vec![], vec![at]);
        Names::start(build(config, ResolverOpts::default(), ipv4_only))
    }
}

/// Header and question of `query`, and records for what is known. Layout: RFC 1035, section 4.
fn answer(query: &[u8]) -> Vec<u8> {
    let labels = query[12..].iter().position(|b| *b == 0).unwrap();
    let question = &query[12..12 + labels + 5];
    let kind = u16::from_be_bytes([question[labels + 1], question[labels + 2]]);
    let known = question[..labels].eq_ignore_ascii_case(b"\x02db\x07example");
    let records: Vec<Vec<u8>> = match (known, kind) {
        (true, TYPE_A) => [7, 8]
            .map(|n| Ipv4Addr::new(10, 0, 0, n).octets().to_vec())
            .into(),
        (true, TYPE_AAAA) => vec![Ipv6Addr::LOCALHOST.octets().to_vec()],
        _ => Vec::new(),
    };
    let code = if known { 0 } else { NAME_ERROR };
    let mut message = query[..2].to_vec();
    message.extend([0x81, 0x80 | code, 0, 1, 0, records.len() as u8, 0, 0, 0, 0]);
    message.extend(question);
    for record in records {
        message.extend([0xc0, 12]);
        message.extend(kind.to_be_bytes());
        message.extend([0, 1, 0, 0, 0, 60, 0, record.len() as u8]);
        message.extend(record);
    }
    message
}

async fn here<T>(test: impl Future<Output = T>) -> T {
    LocalSet::new().run_until(test).await
}

fn sorted(answer: Answer) -> Vec<String> {
    let mut texts: Vec<_> = answer.unwrap().iter().map(ToString::to_string).collect();
    texts.sort();
    texts
}

#[tokio::test]
async fn both_families_unless_ipv6_is_off() {
    here(async {
        let server = Server::start(100).await;
        let all = server.resolver(false).resolve("db.example.").await;
        assert_eq!(sorted(all), ["10.0.0.7", "10.0.0.8", "::1"]);
        let v4 = server.resolver(true).resolve("db.example.").await;
        assert_eq!(sorted(v4), ["10.0.0.7", "10.0.0.8"]);
    })
    .await;
}

#[tokio::test]
async fn answers_are_remembered() {
    here(async {
        let server = Server::start(100).await;
        let names = server.resolver(true);
        for _ in 0..3 {
            assert_eq!(sorted(names.resolve("db.example.").await).len(), 2);
        }
        assert_eq!(server.asked.load(Ordering::Relaxed), 1);
    })
    .await;
}

#[tokio::test]
async fn many_that_ask_at_a_time_share_a_lookup() {
    here(async {
        let server = Server::start(0).await;
        let names = server.resolver(true);
        let mut askers = JoinSet::new();
        for _ in 0..50 {
            let names = names.clone();
            askers.spawn_local(async move { names.resolve("db.example.").await });
        }
        // all are in the queue before the server says anything
        while names.questions.capacity() < QUESTIONS_MAX
            || server.asked.load(Ordering::Relaxed) == 0
        {
            tokio::task::yield_now().await;
        }
        server.leave.add_permits(100);
        while let Some(answer) = askers.join_next().await {
            assert_eq!(sorted(answer.unwrap()).len(), 2);
        }
        assert_eq!(server.asked.load(Ordering::Relaxed), 1);
    })
    .await;
}

#[tokio::test]
async fn names_that_are_nowhere_are_errors() {
    here(async {
        let server = Server::start(100).await;
        let names = server.resolver(false);
        for host in ["nowhere.example.", "", "..", &"x".repeat(300)] {
            let error = names.resolve(host).await.unwrap_err();
            assert!(
                !error.is_empty() && error.len() <= 4 * ERROR_CHARS_MAX,
                "{host}: {error}"
            );
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_given_up() {
    here(async {
        let server = Server::start(0).await;
        let error = server
            .resolver(true)
            .resolve("db.example.")
            .await
            .unwrap_err();
        assert!(!error.is_empty());
    })
    .await;
}

#[tokio::test]
async fn without_a_resolver_every_lookup_says_so() {
    here(async {
        let names = Names::start(Err("no nameservers".to_owned()));
        assert_eq!(
            names.resolve("db.example").await,
            Err("no nameservers".to_owned())
        );
    })
    .await;
}
