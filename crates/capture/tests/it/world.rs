//! One small world per test: a cgroup, a pod's namespace, and the outside reached through a veth pair. Undone when dropped.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use capture::{Capture, Config, PodFlags, PodSockets, PodWanted, sockets};
use sys::Netns;

use crate::app::App;

/// Longest wait for anything that should happen at once.
pub const SOON: Duration = Duration::from_secs(10);
pub const POD4: &str = "10.77.0.2";
pub const POD6: &str = "fd77::2";
pub const OUTSIDE4: &str = "10.77.0.1";
pub const OUTSIDE6: &str = "fd77::1";
/// An address of the outside beyond a route.
pub const FAR4: &str = "10.88.0.1";
pub const FAR6: &str = "fd88::1";

static NUMBER: AtomicU32 = AtomicU32::new(0);

pub struct World {
    name: String,
    pub pins: PathBuf,
    pub cgroup: PathBuf,
    pub pod_cgroup: PathBuf,
    pub pod: Arc<Netns>,
    pub outside: Arc<Netns>,
}

impl World {
    pub fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "these tests need root: namespaces, cgroups and eBPF"
        );
        const {
            assert!(
                capture::BUILT,
                "these tests need the eBPF programs: install a BPF toolchain"
            )
        };
        let name = format!(
            "zt{}-{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        );
        let root = sys::cgroup::mounts().unwrap().remove(0).point;
        let cgroup = root.join(&name);
        let pod_cgroup = cgroup.join("pod");
        std::fs::create_dir_all(&pod_cgroup).unwrap();
        for side in ["p", "o"] {
            ip(&format!("netns add {name}{side}"));
            ip(&format!("-n {name}{side} link set lo up"));
        }
        ip(&format!(
            "-n {name}p link add eth0 type veth peer name eth0 netns {name}o"
        ));
        for (side, v4, v6) in [("p", POD4, POD6), ("o", OUTSIDE4, OUTSIDE6)] {
            ip(&format!("-n {name}{side} addr add {v4}/24 dev eth0"));
            ip(&format!("-n {name}{side} addr add {v6}/64 dev eth0 nodad"));
            ip(&format!("-n {name}{side} link set eth0 up"));
        }
        ip(&format!("-n {name}p route add default via {OUTSIDE4}"));
        ip(&format!("-n {name}p -6 route add default via {OUTSIDE6}"));
        ip(&format!("-n {name}o addr add {FAR4}/32 dev lo"));
        ip(&format!("-n {name}o addr add {FAR6}/128 dev lo nodad"));
        let open =
            |side| Arc::new(Netns::open(Path::new(&format!("/run/netns/{name}{side}"))).unwrap());
        let (pod, outside) = (open("p"), open("o"));
        Self {
            pins: PathBuf::from(format!("/sys/fs/bpf/{name}")),
            name,
            cgroup,
            pod_cgroup,
            pod,
            outside,
        }
    }

    pub fn netns_path(&self) -> PathBuf {
        PathBuf::from(format!("/run/netns/{}p", self.name))
    }

    pub fn outside_path(&self) -> PathBuf {
        PathBuf::from(format!("/run/netns/{}o", self.name))
    }

    pub fn config(&self) -> Config {
        Config {
            cgroup: self.cgroup.clone(),
            pins: self.pins.clone(),
            daemon_cgroup_id: sys::cgroup::id(self.cgroup.parent().unwrap()).unwrap(),
            exempt_sources: vec![],
            host_proc: "/proc".into(),
            dedicated: false,
            // not that of another test
            kubelet_cgroup: Some(self.cgroup.join("no-kubelet")),
        }
    }

    pub fn start(&self) -> Capture {
        Capture::start(self.config()).unwrap()
    }

    pub fn wanted(&self) -> PodWanted {
        PodWanted {
            uid: format!("uid-{}", self.name),
            netns: self.pod.clone(),
            netns_path: self.netns_path(),
            cgroup: Some(self.pod_cgroup.clone()),
            exclude_ranges: vec![],
            exclude_ports: vec![],
            open_ports: vec![],
            flags: PodFlags {
                dns: true,
                bypass_inbound: false,
            },
        }
    }

    pub fn sockets(&self) -> PodSockets {
        sockets::open(
            &self.pod,
            PodFlags {
                dns: true,
                bypass_inbound: false,
            },
        )
        .unwrap()
    }

    /// Capture with the pod enrolled.
    pub fn enrolled(&self) -> (Capture, PodSockets) {
        let mut capture = self.start();
        let sockets = self.sockets();
        capture.enroll(&self.wanted(), &sockets).unwrap();
        (capture, sockets)
    }

    /// An application of the pod.
    pub fn app(&self) -> App {
        App::start(&self.pod_cgroup, &self.netns_path())
    }

    /// Runs `ip` in the pod's namespace.
    pub fn pod_ip(&self, arguments: &str) -> String {
        ip(&format!("-n {}p {arguments}", self.name))
    }

    /// A listener outside that notices what leaks.
    pub fn listen_outside(&self, address: &str) -> TcpListener {
        self.outside
            .run(|| TcpListener::bind(address).unwrap())
            .unwrap()
    }

    /// What a pod's namespace looks like to anyone who looks: rules, routes and sysctls.
    pub fn look(&self) -> String {
        let mut text = String::new();
        for what in [
            "rule",
            "-6 rule",
            "route show table all",
            "-6 route show table all",
        ] {
            // link-local routes come by themselves once duplicate-address detection is through
            for line in self
                .pod_ip(what)
                .lines()
                .filter(|line| !line.contains("fe80:"))
            {
                text.push_str(line);
                text.push('\n');
            }
        }
        for name in [
            "ipv4/tcp_fwmark_accept",
            "ipv4/fwmark_reflect",
            "ipv6/fwmark_reflect",
        ] {
            text.push_str(&self.sysctl(name));
        }
        text
    }

    pub fn sysctl(&self, name: &str) -> String {
        self.pod
            .run(|| std::fs::read_to_string(format!("/proc/sys/net/{name}")).unwrap())
            .unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = capture::release_pinned(&self.pins, Path::new("/proc"));
        // What a test has put out of reach goes with the namespace.
        let _ = std::fs::remove_dir_all(&self.pins);
        for side in ["p", "o"] {
            let _ = Command::new("ip")
                .args(["netns", "del", &format!("{}{side}", self.name)])
                .status();
        }
        // Applications that a failed test left behind hold the cgroups.
        let _ = std::fs::write(self.cgroup.join("cgroup.kill"), "1");
        until(|| remove_tree(&self.cgroup).is_ok());
    }
}

/// Removes a cgroup with those below.
fn remove_tree(cgroup: &Path) -> io::Result<()> {
    for child in std::fs::read_dir(cgroup)?.flatten() {
        if child.path().is_dir() {
            remove_tree(&child.path())?;
        }
    }
    std::fs::remove_dir(cgroup)
}

pub fn ip(arguments: &str) -> String {
    let done = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    String::from_utf8(done.stdout).unwrap()
}

/// Asks again until it is so; whether it came to be.
pub fn until(mut so: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + SOON;
    while Instant::now() < end {
        if so() {
            return true;
        }
        std::thread::yield_now();
    }
    false
}

/// The next connection of a listener, and who it is from; blocking from then on.
pub fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let mut accepted = None;
    until(|| {
        accepted = listener.accept().ok();
        accepted.is_some()
    });
    let (stream, peer) = accepted.expect("a connection comes in");
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    (stream, sys::udp::unmapped(peer))
}

/// The connection's original destination.
pub fn destination(stream: &TcpStream) -> SocketAddr {
    sys::udp::unmapped(stream.local_addr().unwrap())
}

pub fn nobody(listener: &TcpListener) -> bool {
    listener.set_nonblocking(true).unwrap();
    matches!(listener.accept(), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// Echoes four bytes.
pub fn echo(stream: &mut TcpStream) {
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes).unwrap();
    stream.write_all(&bytes).unwrap();
}
