//! A pod's DNS as a data thread serves it, on real sockets: before its workload is known, over both transports, when it leaves.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hickory_proto::op::{Message, MessageType, OpCode, Query as Ask, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use mesh::{Delta, Index, Resource};
use tokio::net::TcpSocket;
use tokio::sync::watch;

use super::*;
use crate::needs::{Asked, Dial, DnsPort, Net, Pending, Resolver};
use crate::pod::{Listeners, Phase, PodName, PodOptions};
use crate::{Config, DnsConfig, Refusals, Shards, Shared};

/// A wait that ends long before, unless something is broken.
const SOON: Duration = Duration::from_secs(20);

const POD: &str = "
workloads:
- {uid: a, name: client, namespace: shop, serviceAccount: me, workloadIps: [10.0.0.1], services: {}}
services:
- {name: web, namespace: shop, hostname: web.shop.svc.cluster.local, vips: [/10.1.0.1], ports: {80: 8080}}
";

struct Nobody;

impl Resolver for Nobody {
    fn resolve<'a>(&'a self, _: &'a str) -> Pending<'a, Result<Vec<IpAddr>, String>> {
        Box::pin(async { Err("nobody".to_owned()) })
    }
}

impl identity::Issuer for Nobody {
    fn issue<'a>(&'a self, _: &'a mesh::SpiffeId) -> identity::Issuing<'a> {
        Box::pin(std::future::pending())
    }
}

/// The test's own namespace, with one resolver.
struct Here([SocketAddr; 1]);

impl Net for Here {
    fn socket(&self, _: &Dial) -> io::Result<TcpSocket> {
        TcpSocket::new_v4()
    }

    fn resolver(&self, resolver: SocketAddr) -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.set_nonblocking(true)?;
        socket.connect(resolver)?;
        Ok(socket)
    }

    fn node_resolvers(&self) -> &[SocketAddr] {
        &self.0
    }

    fn keeps_resolver(&self) -> bool {
        false
    }
}

struct Port(UdpSocket);

impl DnsPort for Port {
    fn readiness(&self) -> io::Result<UdpSocket> {
        self.0.set_nonblocking(true)?;
        self.0.try_clone()
    }

    fn try_recv(&self, buf: &mut [u8]) -> io::Result<Asked> {
        let (len, client) = self.0.recv_from(buf)?;
        Ok(Asked {
            len,
            client,
            resolver: None,
        })
    }

    fn answer(&self, asked: &Asked, answer: &[u8]) -> io::Result<()> {
        self.0.send_to(answer, asked.client).map(drop)
    }
}

/// One data thread with one pod.
struct World {
    index: watch::Sender<Arc<Index>>,
    shared: Arc<Shared>,
    pod: Arc<Pod>,
    udp: SocketAddr,
    tcp: SocketAddr,
    /// the resolver
    upstream: UdpSocket,
    _shards: Shards,
}

impl World {
    /// Nothing is known of the mesh yet.
    async fn start() -> Self {
        let (index, seen) = watch::channel(Arc::new(Index::default()));
        let plain = telemetry::log::Format::Plain;
        let (log, _) = telemetry::log::build(plain, Some("off"), Box::new(io::sink())).unwrap();
        let shared = Arc::new(Shared {
            config: Config {
                dns: DnsConfig {
                    on: true,
                    cluster_domain: "cluster.local".into(),
                    ..DnsConfig::default()
                },
                ..Config::default()
            },
            index: seen,
            state: Arc::new(ArcSwap::from_pointee(Index::default())),
            certs: identity::Certs::new(Arc::new(Nobody), identity::Config::default()).0,
            access: log.access(),
            registry: telemetry::metrics::Registry::new(),
            refusals: Refusals::default(),
            resolver: Arc::new(Nobody),
            finder: None,
        });
        let shards = Shards::start(1, &shared).unwrap();
        let upstream = UdpSocket::bind("127.0.0.1:0").unwrap();
        upstream.set_read_timeout(Some(SOON)).unwrap();
        let net = Here([upstream.local_addr().unwrap()]);
        let who = PodName {
            uid: "u".into(),
            name: "client".into(),
            namespace: "shop".into(),
            service_account: "me".into(),
        };
        let pod = Pod::new(who, PodOptions::default(), Arc::new(net));
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        tcp.set_nonblocking(true).unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (udp_at, tcp_at) = (udp.local_addr().unwrap(), tcp.local_addr().unwrap());
        let listeners = Listeners {
            dns: vec![Box::new(Port(udp))],
            dns_tcp: vec![tcp],
            ..Listeners::default()
        };
        shards.serve(Arc::clone(&pod), listeners).await;
        Self {
            index,
            shared,
            pod,
            udp: udp_at,
            tcp: tcp_at,
            upstream,
            _shards: shards,
        }
    }

    /// From now on the mesh is what `text` says.
    fn learn(&self, text: &str) {
        let upsert: Vec<Resource> = mesh::local::parse(text).unwrap();
        let mut index = Index::default();
        index.apply(Delta {
            remove: Vec::new(),
            upsert,
        });
        let index = Arc::new(index);
        self.shared.state.store(Arc::clone(&index));
        self.index.send_replace(index);
    }

    fn client(&self) -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket.connect(self.udp).unwrap();
        socket
    }

    /// Takes one question as the resolver and answers it.
    fn answer_one(&self) {
        let mut buffer = [0; 512];
        let (len, from) = self.upstream.recv_from(&mut buffer).unwrap();
        let mut answer = buffer[..len].to_vec();
        (answer[2], answer[7]) = (0x81, 1);
        answer.extend_from_slice(b"\xc0\x0c\0\x01\0\x01\0\0\0\x1e\0\x04\x0a\0\0\x07");
        self.upstream.send_to(&answer, from).unwrap();
    }

    fn metrics(&self) -> String {
        self.shared.registry.encode([]).1
    }
}

fn question(name: &str, id: u16) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    let name = Name::from_ascii(name).unwrap();
    message.add_query(Ask::query(name, RecordType::A));
    message.to_vec().unwrap()
}

fn receive(socket: &UdpSocket) -> Message {
    let mut buffer = [0; 512];
    let len = socket.recv(&mut buffer).unwrap();
    Message::from_vec(&buffer[..len]).unwrap()
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes()[..], message].concat()
}

fn read_framed(stream: &mut TcpStream) -> Message {
    let mut len = [0; 2];
    stream.read_exact(&mut len).unwrap();
    let mut message = vec![0; u16::from_be_bytes(len).into()];
    stream.read_exact(&mut message).unwrap();
    Message::from_vec(&message).unwrap()
}

fn data(message: &Message) -> String {
    message.answers[0].data.to_string()
}

#[tokio::test]
async fn who_asks_before_it_is_known_waits_and_is_answered() {
    let world = World::start().await;
    let client = world.client();
    client.send(&question("web.", 1)).unwrap();
    // what needs nobody's name is said meanwhile
    let mut update = question("web.", 2);
    update[2] = 0x28;
    client.send(&update).unwrap();
    let refused = receive(&client);
    assert_eq!(refused.metadata.response_code, ResponseCode::NotImp);
    world.learn(POD);
    let answer = receive(&client);
    assert_eq!(
        (answer.metadata.id, &*data(&answer)),
        (1, "10.1.0.1"),
        "{answer}"
    );
}

#[tokio::test]
async fn who_stays_unknown_is_told_so() {
    let world = World::start().await;
    let client = world.client();
    let since = Instant::now();
    client.send(&question("web.", 1)).unwrap();
    let answer = receive(&client);
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert!(since.elapsed() >= Duration::from_secs(5));
    let counted = r#"istio_dns_requests_total{request_query_type="a",request_protocol="udp",source_canonical_service="unknown",source_canonical_revision="unknown"} 1"#;
    assert!(world.metrics().contains(counted), "{}", world.metrics());
}

#[tokio::test]
async fn questions_of_a_connection_are_answered_in_their_order() {
    let world = World::start().await;
    world.learn(POD);
    let mut stream = TcpStream::connect(world.tcp).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let two = [
        framed(&question("elsewhere.test.", 1)),
        framed(&question("web.", 2)),
    ];
    stream.write_all(&two.concat()).unwrap();
    world.answer_one();
    let (first, second) = (read_framed(&mut stream), read_framed(&mut stream));
    assert_eq!((first.metadata.id, &*data(&first)), (1, "10.0.0.7"));
    assert_eq!((second.metadata.id, &*data(&second)), (2, "10.1.0.1"));
    // what is no message ends the connection
    stream.write_all(b"\0\x03abc").unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
}

#[tokio::test]
async fn a_pod_that_leaves_has_its_answers_and_no_more() {
    let world = World::start().await;
    world.learn(POD);
    let client = world.client();
    let mut stream = TcpStream::connect(world.tcp).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
        .write_all(&framed(&question("one.test.", 1)))
        .unwrap();
    client.send(&question("two.test.", 2)).unwrap();
    let mut seen = [0; 512];
    // both are under way
    for number in 0..2 {
        world.upstream.peek_from(&mut seen).unwrap();
        if number == 0 {
            world.answer_one();
        }
    }
    world.pod.advance(Phase::Drain);
    world.answer_one();
    assert_eq!(data(&receive(&client)), "10.0.0.7");
    assert_eq!(data(&read_framed(&mut stream)), "10.0.0.7");
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    tokio::time::timeout(SOON, world.pod.idle())
        .await
        .expect("nothing is left");
}

#[tokio::test]
async fn a_flood_without_answers_is_shed_and_told_and_the_mesh_still_answers() {
    let world = World::start().await;
    world.learn(POD);
    let (loud, client) = (world.client(), world.client());
    let shed = || (world.shared.refusals.counts().iter()).any(|(why, _)| *why == "dns_budget");
    let mut asked = 0_u16;
    while !shed() {
        assert!(asked < 20_000, "none was shed");
        loud.send(&question(&format!("n{asked}.test."), asked))
            .unwrap();
        asked += 1;
        if asked.is_multiple_of(32) || asked >= 512 {
            // few at a time, so that none is lost on the way
            client.send(&question("web.", 1)).unwrap();
            assert_eq!(data(&receive(&client)), "10.1.0.1");
        }
    }
    let told = world.shared.refusals.last();
    assert!(told[0].error.starts_with("shop/client has"), "{told:?}");
}

#[tokio::test]
async fn a_pod_that_is_cut_has_no_more_answers() {
    let world = World::start().await;
    world.learn(POD);
    let mut stream = TcpStream::connect(world.tcp).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
        .write_all(&framed(&question("one.test.", 1)))
        .unwrap();
    world.upstream.peek_from(&mut [0; 512]).unwrap();
    world.pod.advance(Phase::Cut);
    assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
    tokio::time::timeout(SOON, world.pod.idle())
        .await
        .expect("nothing is left");
}
