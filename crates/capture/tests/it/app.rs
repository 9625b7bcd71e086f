//! Applications in a pod: this test binary started again, told line by line what to do. One answer line per request.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use sys::Netns;

const CGROUP: &str = "CAPTURE_TEST_CGROUP";
const NETNS: &str = "CAPTURE_TEST_NETNS";
/// Marks answer lines among what the test harness prints.
const ANSWER: &str = "answer:";
const IPPROTO_MPTCP: i32 = 262;

/// A running application.
pub struct App {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl App {
    pub fn start(cgroup: &Path, netns: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "app::the_application",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(CGROUP, cgroup)
            .env(NETNS, netns)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (requests, answers) = (
            child.stdin.take().unwrap(),
            BufReader::new(child.stdout.take().unwrap()),
        );
        Self {
            child,
            requests,
            answers,
        }
    }

    /// Starts a request without waiting for its answer.
    pub fn begin(&mut self, request: &str) {
        writeln!(self.requests, "{request}").unwrap();
    }

    /// The answer of a request begun.
    pub fn answer(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(
                self.answers.read_line(&mut line).unwrap(),
                0,
                "the application ended"
            );
            if let Some((_, answer)) = line.split_once(ANSWER) {
                return answer.trim().to_owned();
            }
        }
    }

    pub fn ask(&mut self, request: &str) -> String {
        self.begin(request);
        self.answer()
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test: the body of an application when started as one.
#[test]
fn the_application() {
    let (Some(cgroup), Some(netns)) = (std::env::var_os(CGROUP), std::env::var_os(NETNS)) else {
        return;
    };
    sys::cgroup::enter(Path::new(&cgroup)).unwrap();
    let netns = Netns::open(Path::new(&netns)).unwrap();
    netns.run(serve).unwrap();
}

fn serve() {
    let mut socket = None;
    let mut listener = None;
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = perform(&words, &mut socket, &mut listener).unwrap_or_else(|error| {
            format!(
                "error {}",
                error
                    .raw_os_error()
                    .map_or(error.kind().to_string(), |code| code.to_string())
            )
        });
        println!("{ANSWER}{answer}");
    }
}

fn perform(
    words: &[&str],
    socket: &mut Option<Socket>,
    listener: &mut Option<Socket>,
) -> std::io::Result<String> {
    let open = || socket.as_ref().expect("a connection was made");
    match words {
        ["connect", target, options @ ..] => {
            let target: SocketAddr = target.parse().unwrap();
            let new = connecting(target, options)?;
            let result = new.connect(&target.into());
            let local = new.local_addr()?.as_socket().unwrap();
            let peer = new.peer_addr().ok().and_then(|peer| peer.as_socket());
            *socket = Some(new);
            result?;
            Ok(format!("{local} {}", peer.unwrap()))
        }
        ["reconnect", target] => {
            let target: SocketAddr = target.parse().unwrap();
            open().connect(&target.into())?;
            Ok(format!("mark {}", open().mark()?))
        }
        ["fastopen", target, text] => {
            let target: SocketAddr = target.parse().unwrap();
            let new = connecting(target, &[])?;
            let sent =
                new.send_to_with_flags(text.as_bytes(), &target.into(), nix::libc::MSG_FASTOPEN)?;
            *socket = Some(new);
            Ok(format!("sent {sent}"))
        }
        ["mark", value] => open()
            .set_mark(value.parse().unwrap())
            .map(|()| "ok".into()),
        ["device", name] => open()
            .bind_device(Some(name.as_bytes()))
            .map(|()| "ok".into()),
        ["nodelay"] => open().set_tcp_nodelay(true).map(|()| "ok".into()),
        ["send", text] => open()
            .send(text.as_bytes())
            .map(|sent| format!("sent {sent}")),
        ["receive"] => {
            let mut bytes = [0; 4];
            open().read_exact_or(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
        ["listen", address] => {
            let address: SocketAddr = address.parse().unwrap();
            let new = Socket::new(
                Domain::for_address(address),
                Type::STREAM,
                Some(Protocol::TCP),
            )?;
            new.bind(&address.into())?;
            new.listen(8)?;
            let bound = new.local_addr()?.as_socket().unwrap();
            *listener = Some(new);
            Ok(bound.to_string())
        }
        ["accept"] => {
            let (new, peer) = listener.as_ref().expect("listening").accept()?;
            *socket = Some(new);
            Ok(peer.as_socket().unwrap().to_string())
        }
        ["close"] => {
            *socket = None;
            Ok("closed".into())
        }
        ["query", target, text] => {
            let target: SocketAddr = target.parse().unwrap();
            let any: SocketAddr = if target.is_ipv4() {
                "0.0.0.0:0"
            } else {
                "[::]:0"
            }
            .parse()
            .unwrap();
            let asker = UdpSocket::bind(any)?;
            asker.set_read_timeout(Some(Duration::from_secs(5)))?;
            asker.connect(target)?;
            asker.send(text.as_bytes())?;
            let mut bytes = [0; 64];
            let len = asker.recv(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes[..len]).into_owned())
        }
        ["race", target, rounds] => {
            let target: SocketAddr = target.parse().unwrap();
            for _ in 0..rounds.parse().unwrap() {
                let new = connecting(target, &["mark=7", "patience=300"])?;
                let over = AtomicBool::new(false);
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        while !over.load(Ordering::Relaxed) {
                            let _ = new.set_mark(0);
                        }
                    });
                    let _ = new.connect(&target.into()).and_then(|()| new.send(b"leak"));
                    over.store(true, Ordering::Relaxed);
                });
            }
            Ok("over".into())
        }
        ["settle", cgroup] => {
            let id =
                capture::own_cgroup::settle(Path::new(cgroup)).map_err(std::io::Error::other)?;
            Ok(id.to_string())
        }
        other => panic!("unknown request {other:?}"),
    }
}

fn connecting(target: SocketAddr, options: &[&str]) -> std::io::Result<Socket> {
    let protocol = if options.contains(&"mptcp") {
        Protocol::from(IPPROTO_MPTCP)
    } else {
        Protocol::TCP
    };
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(protocol))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    for option in options {
        match option.split_once('=') {
            Some(("mark", value)) => socket.set_mark(value.parse().unwrap())?,
            Some(("device", name)) => socket.bind_device(Some(name.as_bytes()))?,
            Some(("bind", address)) => {
                socket.bind(&address.parse::<SocketAddr>().unwrap().into())?
            }
            // The kernel gives up connecting after this long.
            Some(("patience", millis)) => {
                socket
                    .set_tcp_user_timeout(Some(Duration::from_millis(millis.parse().unwrap())))?;
            }
            _ => assert_eq!(*option, "mptcp"),
        }
    }
    Ok(socket)
}

trait ReadExact {
    fn read_exact_or(&self, bytes: &mut [u8]) -> std::io::Result<()>;
}

impl ReadExact for Socket {
    fn read_exact_or(&self, bytes: &mut [u8]) -> std::io::Result<()> {
        let mut socket = self;
        socket.read_exact(bytes)
    }
}
