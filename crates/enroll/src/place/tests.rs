//! Real processes in real namespaces; the cgroups are those of a procfs made for the test.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Child, Command, Stdio};

use super::*;

const UID: &str = "0b7e1c6a-5c3d-4f7e-9a51-0d7c2f6a1b11";

/// A process in a namespace of its own with this address, ended with the value.
struct Alone(Child);

impl Alone {
    fn new(address: &str) -> Self {
        let script = format!(
            "ip link set lo up && ip address add {address} dev lo && echo up && exec sleep 1000"
        );
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", &script])
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare runs (as root)");
        let mut line = String::new();
        let output = child.stdout.as_mut().expect("piped");
        io::BufRead::read_line(&mut io::BufReader::new(output), &mut line).unwrap();
        assert_eq!(line, "up\n", "needs root and iproute2");
        Self(child)
    }

    fn netns(&self) -> NetnsId {
        Netns::open(Path::new(&format!("/proc/{}/ns/net", self.0.id())))
            .unwrap()
            .id()
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A procfs in which processes are where the test wants them.
struct Host(tempfile::TempDir);

impl Host {
    fn new() -> Self {
        let host = Self(tempfile::tempdir().unwrap());
        host.add(1, std::process::id(), "/", 1);
        host
    }

    fn add(&self, pid: u32, real: u32, cgroup: &str, started: u64) {
        let dir = self.0.path().join(pid.to_string());
        fs::create_dir_all(dir.join("ns")).unwrap();
        fs::write(dir.join("cgroup"), format!("0::{cgroup}\n")).unwrap();
        fs::write(
            dir.join("stat"),
            format!("{pid} (a b) S{} {started} 0\n", " 0".repeat(18)),
        )
        .unwrap();
        symlink(format!("/proc/{real}/ns/net"), dir.join("ns/net")).unwrap();
    }

    fn finder(&self) -> Finder {
        Finder::new(self.0.path()).unwrap()
    }
}

fn sought(ips: &[&str]) -> Sought {
    let ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
    Sought {
        key: UID.into(),
        cgroup: None,
        ips,
    }
}

fn one(finder: &Finder, ips: &[&str]) -> Result<NetnsId, Missing> {
    let mut found = finder.find(&[sought(ips)]);
    found.remove(0).map(|place| place.netns.0.id())
}

#[test]
fn the_namespace_of_the_first_process_with_the_pods_address() {
    let (old, young) = (Alone::new("10.9.0.1/32"), Alone::new("10.9.0.2/32"));
    let host = Host::new();
    let pod = format!("/kubepods/pod{UID}");
    let finder = host.finder();
    assert_eq!(one(&finder, &[]), Err(Missing::NoProcess));
    host.add(10, std::process::id(), &format!("{pod}/a"), 5);
    assert_eq!(one(&finder, &[]), Err(Missing::NoNamespace));
    host.add(30, young.0.id(), &format!("{pod}/b"), 300);
    assert_eq!(one(&finder, &[]), Ok(young.netns()));
    host.add(31, old.0.id(), &format!("{pod}/a"), 200);
    host.add(32, old.0.id(), "/kubepods/podother", 1);
    assert_eq!(one(&finder, &[]), Ok(old.netns()));
    assert_eq!(one(&finder, &["10.9.0.2"]), Ok(young.netns()));
    assert_eq!(one(&finder, &["fd00::9", "10.9.0.1"]), Ok(old.netns()));
    let nowhere = Err(Missing::NoAddress {
        ip: "10.9.0.3".parse().unwrap(),
        namespaces: vec![old.netns(), young.netns()],
    });
    assert_eq!(one(&finder, &["10.9.0.3"]), nowhere);
    // the handle outlives the process
    let place = finder.find(&[sought(&[])]).remove(0).unwrap();
    drop(old);
    assert!(finder.owns(&place.netns, &["10.9.0.1".parse().unwrap()]));
    assert!(!finder.owns(&place.netns, &["10.9.0.2".parse().unwrap()]));
    assert_eq!(one(&finder, &[]), Ok(young.netns()));
}

#[test]
fn a_cgroup_of_this_machine_tells_its_processes() {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let root = mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let path = words.next()?;
        (words.next()? == "cgroup2").then(|| PathBuf::from(path))
    });
    let root = root.expect("a cgroup v2 mount");
    let group = root.join(format!("enroll-place-{}", std::process::id()));
    let pod = group.join(format!("kubepods/pod{UID}"));
    fs::create_dir_all(pod.join("container")).expect("needs root");
    let alone = Alone::new("10.9.0.1/32");
    let finder = Finder::new(Path::new("/proc")).unwrap();
    let one = || {
        finder
            .find(&[Sought {
                cgroup: Some(pod.clone()),
                ..sought(&["10.9.0.1"])
            }])
            .remove(0)
    };
    assert_eq!(one(), Err(Missing::NoProcess));
    fs::write(pod.join("container/cgroup.procs"), alone.0.id().to_string()).unwrap();
    let place = one().unwrap();
    assert_eq!(place.netns.0.id(), alone.netns());
    assert_eq!(
        place.path,
        Path::new(&format!("/proc/{}/ns/net", alone.0.id()))
    );
    drop(alone);
    assert_eq!(one(), Err(Missing::NoProcess));
    for path in [
        pod.join("container"),
        pod.clone(),
        group.join("kubepods"),
        group,
    ] {
        fs::remove_dir(path).unwrap();
    }
}
