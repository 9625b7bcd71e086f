//! kubelet's connections reach the application, other processes' from the same address come to the daemon.

use std::net::SocketAddr;
use std::path::Path;

use aya::maps::{HashMap, Map, MapData};
use redirect_common::ProbeKey;

use crate::app::App;
use crate::hold::counter;
use crate::world::{POD4, POD6, World, accept, nobody, until};

/// A cgroup beside the capture cgroup; removed when dropped.
struct Beside(std::path::PathBuf);

impl Beside {
    fn new(world: &World, name: &str) -> Self {
        let own = world.cgroup.file_name().unwrap().to_str().unwrap();
        let path = world.cgroup.with_file_name(format!("{own}-{name}"));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        until(|| std::fs::remove_dir(&self.0).is_ok());
    }
}

fn recorded(world: &World) -> usize {
    let data = MapData::from_pin(world.pins.join("v3/PROBES")).unwrap();
    let map = Map::from_map_data(data).unwrap();
    let probes: HashMap<_, ProbeKey, u64> = map.try_into().unwrap();
    probes.keys().count()
}

#[test]
fn probes_are_told_by_kubelets_cgroup() {
    let world = World::new();
    let kubelet = Beside::new(&world, "kubelet");
    let mut config = world.config();
    config.kubelet_cgroup = Some(kubelet.0.clone());
    let mut capture = capture::Capture::start(config).unwrap();
    let sockets = world.sockets();
    capture.enroll(&world.wanted(), &sockets).unwrap();
    let mut app = world.app();
    let bound: SocketAddr = app.ask("listen [::]:0").parse().unwrap();
    let outside = world.outside_path();
    for ip in [POD4.to_owned(), format!("[{POD6}]")] {
        let request = format!("connect {ip}:{}", bound.port());
        let mut prober = App::start(&kubelet.0, &outside);
        prober.ask(&request);
        app.ask("accept");
        assert!(nobody(&sockets.plaintext));
        assert_eq!(recorded(&world), 1);
        drop(prober);
        app.ask("close");
        assert!(
            until(|| recorded(&world) == 0),
            "forgotten with the connection"
        );
        let mut other = App::start(world.cgroup.parent().unwrap(), &outside);
        other.ask(&request);
        accept(&sockets.plaintext);
    }
    assert_eq!(counter(&capture, "probe_recorded"), 2);
    assert_eq!(capture.check(), []);
}

#[test]
fn a_restarted_kubelet_is_found_again() {
    let world = World::new();
    let (first, second) = (Beside::new(&world, "one"), Beside::new(&world, "two"));
    let proc = tempfile::tempdir().unwrap();
    let process = proc.path().join("77");
    std::fs::create_dir(&process).unwrap();
    std::fs::write(process.join("comm"), "kubelet\n").unwrap();
    std::os::unix::fs::symlink("/proc/sys", proc.path().join("sys")).unwrap();
    let run_in = |cgroup: &Path| {
        let mount = sys::cgroup::mounts().unwrap().remove(0);
        let inside = cgroup.strip_prefix(&mount.point).unwrap();
        std::fs::write(
            process.join("cgroup"),
            format!("0::/../{}\n", inside.display()),
        )
        .unwrap();
    };
    run_in(&first.0);
    let mut config = world.config();
    config.host_proc = proc.path().to_owned();
    config.kubelet_cgroup = None;
    let mut capture = capture::Capture::start(config).unwrap();
    let attached = || {
        let link = sys::bpf::pinned(&world.pins.join("v3/link-kubelet")).unwrap();
        sys::bpf::link_info(&link).unwrap().target
    };
    let at = |cgroup: &Path| sys::bpf::Target::Cgroup {
        id: sys::cgroup::id(cgroup).unwrap(),
        attach: sys::bpf::Attach::SockOps as u32,
    };
    assert_eq!((attached(), capture.check()), (at(&first.0), vec![]));
    run_in(&second.0);
    let found = capture.check();
    assert_eq!(found.len(), 1, "{found:?}");
    capture.repair(&found[0]).unwrap();
    assert_eq!((attached(), capture.check()), (at(&second.0), vec![]));
}

#[test]
fn a_cgroup_that_holds_the_pods_is_not_kubelets() {
    let world = World::new();
    let mut config = world.config();
    config.kubelet_cgroup = Some(world.cgroup.parent().unwrap().to_owned());
    let capture = capture::Capture::start(config).unwrap();
    assert!(!world.pins.join("v3/link-kubelet").exists());
    assert_eq!(capture.check(), []);
}

/// A procfs of processes of the name kubelet.
struct Procfs(tempfile::TempDir);

impl Procfs {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/proc/sys", dir.path().join("sys")).unwrap();
        Self(dir)
    }

    fn run(&self, pid: u32, parent: u32, cgroup: &Path) {
        let mount = sys::cgroup::mounts().unwrap().remove(0);
        let inside = cgroup.strip_prefix(&mount.point).unwrap();
        let dir = self.0.path().join(pid.to_string());
        std::fs::create_dir(&dir).unwrap();
        for (name, text) in [
            ("comm", "kubelet\n".to_owned()),
            ("status", format!("Name:\tkubelet\nPPid:\t{parent}\n")),
            ("cgroup", format!("0::/../{}\n", inside.display())),
        ] {
            std::fs::write(dir.join(name), text).unwrap();
        }
    }
}

/// The cgroup that is watched for probes.
fn watched(world: &World) -> Option<u64> {
    let link = sys::bpf::pinned(&world.pins.join("v3/link-kubelet")).ok()?;
    match sys::bpf::link_info(&link).unwrap().target {
        sys::bpf::Target::Cgroup { id, .. } => Some(id),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_pod_cannot_pass_for_kubelet() {
    let world = World::new();
    let kubelet = Beside::new(&world, "kubelet");
    let proc = Procfs::new();
    proc.run(70, 1, &world.pod_cgroup);
    let mut config = world.config();
    config.host_proc = proc.0.path().to_owned();
    config.kubelet_cgroup = None;
    let start = || capture::Capture::start(config.clone()).unwrap();
    let capture = start();
    assert_eq!((watched(&world), capture.check()), (None, vec![]));
    drop(capture);
    proc.run(700, 699, &kubelet.0);
    let real = sys::cgroup::id(&kubelet.0).unwrap();
    let capture = start();
    assert_eq!((watched(&world), capture.check()), (Some(real), vec![]));
    drop(capture);
    // what a predecessor watched is let go
    std::fs::remove_dir_all(proc.0.path().join("700")).unwrap();
    drop(start());
    assert_eq!(watched(&world), None);
}

#[test]
fn the_process_that_init_started_comes_first() {
    let world = World::new();
    let (other, kubelet) = (Beside::new(&world, "other"), Beside::new(&world, "kubelet"));
    let proc = Procfs::new();
    proc.run(70, 7, &other.0);
    proc.run(700, 1, &kubelet.0);
    let mut config = world.config();
    config.host_proc = proc.0.path().to_owned();
    config.kubelet_cgroup = None;
    let _capture = capture::Capture::start(config).unwrap();
    let real = sys::cgroup::id(&kubelet.0).unwrap();
    assert_eq!(watched(&world), Some(real));
}

#[test]
fn a_cgroup_among_the_pods_is_not_kubelets() {
    let world = World::new();
    for cgroup in [&world.cgroup, &world.pod_cgroup] {
        let mut config = world.config();
        config.kubelet_cgroup = Some(cgroup.clone());
        let capture = capture::Capture::start(config).unwrap();
        assert_eq!((watched(&world), capture.check()), (None, vec![]));
    }
}
