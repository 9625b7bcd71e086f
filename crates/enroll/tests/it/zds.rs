//! The client against an agent on a real socket: packets as they are on the wire, descriptors of real namespaces.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use enroll::PodSpec;
use enroll::zds::{Config, Order, ProtocolError, Standing, run};
use nix::sched::{CloneFlags, unshare};
use prost::Message;
use proto::zds::workload_request::Payload;
use proto::zds::{
    AddWorkload, DelWorkload, KeepWorkload, SnapshotSent, WorkloadInfo, WorkloadRequest,
};
use socket2::{Domain, SockAddr, Socket, Type};
use sys::Seqpacket;
use tokio::sync::{mpsc, oneshot, watch};

/// Most time for anything that the client does at once.
const SOON: Duration = Duration::from_secs(5);
const HELLO: &[u8] = b"\x08\x01";
const ACK: &[u8] = b"\x0a\x00";

struct Agent {
    listener: Socket,
    orders: mpsc::Receiver<Order>,
    standing: watch::Receiver<Standing>,
    client: JoinHandle<ProtocolError>,
    _dir: tempfile::TempDir,
}

impl Agent {
    fn start(strict_exit: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("zds.sock");
        let listener = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        listener.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        listener.listen(8).unwrap();
        listener.set_read_timeout(Some(SOON)).unwrap();
        let (orders_in, orders) = mpsc::channel(4);
        let (told, standing) = watch::channel(Standing::default());
        let client = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let config = Config { path, strict_exit };
            runtime.block_on(run(config, orders_in, told))
        });
        Self {
            listener,
            orders,
            standing,
            client,
            _dir: dir,
        }
    }

    /// The client's next connection, after its hello.
    fn accept(&self) -> Line {
        let (socket, _) = self.listener.accept().expect("the client connects");
        socket.set_read_timeout(Some(SOON)).unwrap();
        let line = Line(socket);
        assert_eq!(line.receive(), HELLO);
        line
    }

    fn order(&mut self) -> Order {
        block(async { tokio::time::timeout(SOON, self.orders.recv()).await })
            .expect("an order in time")
            .expect("the client runs")
    }

    /// Carries out the start that is ordered.
    fn start_pod(&mut self, outcome: Result<(), &str>) -> Arc<PodSpec> {
        match self.order() {
            Order::Start { spec, done } => {
                done.send(outcome.map_err(str::to_owned)).unwrap();
                spec
            }
            stop @ Order::Stop { .. } => panic!("expected a start, got {stop:?}"),
        }
    }

    fn stop_pod(&mut self) -> Arc<str> {
        match self.order() {
            Order::Stop { uid, done } => {
                done.send(()).unwrap();
                uid
            }
            start @ Order::Start { .. } => panic!("expected a stop, got {start:?}"),
        }
    }

    fn no_order(&mut self) {
        assert!(self.orders.try_recv().is_err());
    }

    fn until(&mut self, what: impl FnMut(&Standing) -> bool) -> Standing {
        let standing = block(async {
            let done = tokio::time::timeout(SOON, self.standing.wait_for(what)).await;
            done.map(|standing| standing.unwrap().clone())
        });
        standing.unwrap_or_else(|_| panic!("it stands at {:?}", self.standing.borrow()))
    }
}

fn block<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
        .block_on(work)
}

/// One connection, the agent's end.
struct Line(Socket);

impl Line {
    fn send(&self, packet: &[u8], fds: &[BorrowedFd<'_>]) {
        let socket = Seqpacket::from(OwnedFd::from(self.0.try_clone().unwrap()));
        socket.send(packet, fds).unwrap();
    }

    fn receive(&self) -> Vec<u8> {
        let mut buffer = [0; 2048];
        let len = (&self.0).read(&mut buffer).expect("a packet in time");
        buffer[..len].to_vec()
    }

    fn ask(&self, payload: Payload, fds: &[BorrowedFd<'_>]) {
        let request = WorkloadRequest {
            payload: Some(payload),
        };
        self.send(&request.encode_to_vec(), fds);
    }

    fn add(&self, uid: &str, netns: &File) {
        let info = WorkloadInfo {
            name: format!("{uid}-name"),
            namespace: "shop".into(),
            service_account: "web".into(),
        };
        let add = AddWorkload {
            uid: uid.into(),
            workload_info: Some(info),
        };
        self.ask(Payload::Add(add), &[netns.as_fd()]);
    }

    fn sent(&self) {
        self.ask(Payload::SnapshotSent(SnapshotSent {}), &[]);
    }

    fn nack(&self, text: &str) {
        let answer = String::from_utf8_lossy(&self.receive()).into_owned();
        assert!(answer.contains(text), "{answer:?}");
    }

    fn closed(&self) {
        assert_eq!(self.receive(), b"");
    }
}

/// A network namespace of nobody's.
fn netns() -> File {
    let made = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
        File::open("/proc/thread-self/ns/net").unwrap()
    });
    made.join().unwrap()
}

#[test]
fn pods_come_stay_and_go() {
    let mut agent = Agent::start(true);
    let line = agent.accept();
    let (first, second) = (netns(), netns());
    line.add("a", &first);
    let spec = agent.start_pod(Ok(()));
    assert_eq!(line.receive(), ACK);
    assert_eq!(
        [
            &*spec.uid,
            &*spec.name,
            &*spec.namespace,
            &*spec.service_account
        ],
        ["a", "a-name", "shop", "web"]
    );
    let handle = spec.netns_handle.clone().unwrap().0;
    assert_eq!(handle.inode(), first.metadata().unwrap().ino());
    assert_eq!(spec.cgroup, None);

    line.add("a", &first);
    assert_eq!(line.receive(), ACK);
    agent.no_order();
    let standing = agent.until(|standing| standing.connected);
    assert!(!standing.snapshot && !standing.is_ready());
    line.sent();
    assert_eq!(line.receive(), ACK);
    assert!(agent.until(|standing| standing.snapshot).is_ready());

    line.add("a", &second);
    let spec = agent.start_pod(Ok(()));
    let handle = spec.netns_handle.clone().unwrap().0;
    assert_eq!(handle.inode(), second.metadata().unwrap().ino());
    assert_eq!(line.receive(), ACK);
    line.ask(Payload::Del(DelWorkload { uid: "a".into() }), &[]);
    assert_eq!(&*agent.stop_pod(), "a");
    assert_eq!(line.receive(), ACK);
}

#[test]
fn a_connection_that_ends_leaves_pods_as_they_are() {
    let mut agent = Agent::start(true);
    let line = agent.accept();
    for uid in ["a", "b"] {
        line.add(uid, &netns());
        agent.start_pod(Ok(()));
        assert_eq!(line.receive(), ACK);
    }
    line.sent();
    assert_eq!(line.receive(), ACK);
    agent.until(Standing::is_ready);
    drop(line);
    agent.until(|standing| !standing.snapshot);
    let line = agent.accept();
    line.ask(Payload::Keep(KeepWorkload { uid: "b".into() }), &[]);
    assert_eq!(line.receive(), ACK);
    agent.no_order();
    line.sent();
    assert_eq!(&*agent.stop_pod(), "a");
    assert_eq!(line.receive(), ACK);
    agent.until(Standing::is_ready);
}

#[test]
fn what_cannot_start_is_tried_again_with_the_same_namespace() {
    let mut agent = Agent::start(true);
    let line = agent.accept();
    line.sent();
    assert_eq!(line.receive(), ACK);
    let place = netns();
    let inode = place.metadata().unwrap().ino();
    line.add("a", &place);
    drop(place);
    agent.start_pod(Err("port 15008 is taken"));
    let failed = Instant::now();
    line.nack("failure to start proxy : port 15008 is taken");
    let standing = agent.until(|standing| !standing.pending.is_empty());
    assert_eq!(&*standing.pending[0].name, "a-name");
    assert_eq!(standing.pending[0].error, "port 15008 is taken");
    assert!(standing.snapshot && !standing.is_ready());
    // requests are served meanwhile, the timer goes on
    line.add("b", &netns());
    agent.start_pod(Ok(()));
    assert_eq!(line.receive(), ACK);
    let again = block(async { tokio::time::timeout(2 * SOON, agent.orders.recv()).await });
    let Ok(Some(Order::Start { spec, done })) = again else {
        panic!("expected a start, got {again:?}");
    };
    assert!(failed.elapsed() > Duration::from_secs(4));
    assert_eq!((&*spec.uid, spec.netns_inode), ("a", Some(inode)));
    done.send(Ok(())).unwrap();
    agent.until(Standing::is_ready);
}

#[test]
fn a_start_that_nobody_answers_is_refused_before_the_agent_gives_up() {
    let mut agent = Agent::start(true);
    let line = agent.accept();
    let asked = Instant::now();
    line.add("a", &netns());
    let Order::Start { done, .. } = agent.order() else {
        panic!("expected a start");
    };
    line.nack("failure to start proxy : no answer");
    assert!(asked.elapsed() < Duration::from_secs(5));
    drop(done);
    // it may be there, so it is stopped like one that is
    line.sent();
    assert_eq!(line.receive(), ACK);
    line.ask(Payload::Del(DelWorkload { uid: "a".into() }), &[]);
    assert_eq!(&*agent.stop_pod(), "a");
    assert_eq!(line.receive(), ACK);
}

#[test]
fn what_is_no_pods_namespace_does_not_start() {
    let mut agent = Agent::start(true);
    let line = agent.accept();
    let place = netns();
    line.add("a", &place);
    agent.start_pod(Ok(()));
    assert_eq!(line.receive(), ACK);
    for (uid, file, why) in [
        ("b", File::open("/dev/null").unwrap(), "network namespace"),
        (
            "c",
            File::open("/proc/self/ns/net").unwrap(),
            "the daemon's own network namespace",
        ),
        ("d", place, "that of pod a"),
    ] {
        line.add(uid, &file);
        line.nack(why);
    }
    agent.no_order();
    // what is served ends, whatever comes in its place
    line.add("a", &File::open("/dev/null").unwrap());
    assert_eq!(&*agent.stop_pod(), "a");
    line.nack("network namespace");
    let pending = agent.until(|standing| standing.pending.len() == 4).pending;
    let uids: Vec<&str> = pending.iter().map(|pod| &*pod.uid).collect();
    assert_eq!(uids, ["a", "b", "c", "d"]);
}

#[test]
fn what_cannot_be_read_ends_the_connection_and_nothing_else() {
    let mut agent = Agent::start(true);
    let line = agent.accept();
    line.add("a", &netns());
    agent.start_pod(Ok(()));
    assert_eq!(line.receive(), ACK);
    line.send(b"\xff\xff\xff", &[]);
    line.nack("failure to read message : ");
    line.closed();

    let line = agent.accept();
    let long = vec![0x0a; 1025];
    line.send(&long, &[]);
    line.nack("cut off");
    line.closed();

    let line = agent.accept();
    let (reader, writer) = std::io::pipe().unwrap();
    let many = [writer.as_fd(); 3];
    line.ask(Payload::SnapshotSent(SnapshotSent {}), &many);
    drop(writer);
    line.nack("3 descriptors, expected 0");
    line.closed();
    // all of them were closed
    let mut reader = reader;
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    agent.no_order();
    let _next = agent.accept();
}

#[test]
fn a_broken_protocol_ends_the_client_where_that_is_wanted() {
    for strict in [true, false] {
        let agent = Agent::start(strict);
        let line = agent.accept();
        line.sent();
        assert_eq!(line.receive(), ACK);
        line.sent();
        line.nack("failure to process message : second snapshot");
        line.closed();
        if strict {
            assert_eq!(agent.client.join().unwrap(), ProtocolError::SecondSnapshot);
        } else {
            let _next = agent.accept();
            assert!(!agent.client.is_finished());
        }
    }
}

#[test]
fn an_agent_that_is_late_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("zds.sock");
    let (orders, _taken) = mpsc::channel(1);
    let (told, _standing) = watch::channel(Standing::default());
    let config = Config {
        path: path.clone(),
        strict_exit: false,
    };
    let (stop, stopped) = oneshot::channel::<()>();
    let client = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            tokio::select! {
                error = run(config, orders, told) => panic!("{error}"),
                _ = stopped => {}
            }
        });
    });
    let listener = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
    listener.bind(&SockAddr::unix(&path).unwrap()).unwrap();
    listener.listen(1).unwrap();
    listener.set_read_timeout(Some(SOON)).unwrap();
    let line = match listener.accept() {
        Ok((socket, _)) => Line(socket),
        Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("nobody connected"),
        Err(error) => panic!("{error}"),
    };
    line.0.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(line.receive(), HELLO);
    stop.send(()).unwrap();
    client.join().unwrap();
}
