//! Names of both drivers, and a tree that changes under the watch.

use std::fs;
use std::time::Duration;

use super::*;

const UID: &str = "0b7e1c6a-5c3d-4f7e-9a51-0d7c2f6a1b11";
const SAFE: &str = "0b7e1c6a_5c3d_4f7e_9a51_0d7c2f6a1b11";
const HASH: &str = "9fceb02d0ae598e95dc970b74767f19f";

#[test]
fn names_of_both_drivers() {
    use Level::{Above, Pods, Quality};
    let pod = |uid: &str| Some(Class::Pod(Some(uid.to_owned())));
    let group = |level| Some(Class::Group(level));
    let cases = [
        (Above, "kubepods".to_owned(), group(Pods)),
        (Above, "kubepods.slice".into(), group(Pods)),
        (Above, "kubelet".into(), group(Above)),
        (Above, "kubelet.slice".into(), group(Above)),
        (Above, "kubelet-kubepods.slice".into(), group(Pods)),
        (Above, "system.slice".into(), None),
        (Above, "podman".into(), None),
        (Above, "xkubepods.slice".into(), None),
        (Above, format!("pod{UID}"), pod(UID)),
        (Above, "kubepods-podshort.slice".into(), pod("short")),
        (Pods, "burstable".into(), group(Quality)),
        (Pods, "kubepods-besteffort.slice".into(), group(Quality)),
        (
            Pods,
            "kubelet-kubepods-burstable.slice".into(),
            group(Quality),
        ),
        (Pods, format!("pod{UID}"), pod(UID)),
        (Pods, format!("pod{HASH}"), pod(HASH)),
        (Pods, format!("kubepods-pod{SAFE}.slice"), pod(UID)),
        (
            Quality,
            format!("kubepods-burstable-pod{SAFE}.slice"),
            pod(UID),
        ),
        (
            Quality,
            format!("kubelet-kubepods-burstable-pod{SAFE}.slice"),
            pod(UID),
        ),
        (
            Quality,
            format!("kubepods-burstable-pod{HASH}.slice"),
            pod(HASH),
        ),
        (Quality, "pod".into(), Some(Class::Pod(None))),
        (Quality, "pod a".into(), Some(Class::Pod(None))),
        (
            Quality,
            format!("pod{}", "a".repeat(254)),
            Some(Class::Pod(None)),
        ),
        (Quality, "something".into(), Some(Class::Pod(None))),
        (Quality, "burstable".into(), Some(Class::Pod(None))),
        (Pods, "other.slice".into(), Some(Class::Pod(None))),
    ];
    for (parent, name, expected) in cases {
        assert_eq!(classify(parent, &name), expected, "{parent:?} {name}");
    }
}

#[test]
fn a_path_tells_its_outermost_pod() {
    let inner = "11111111-1111-1111-1111-111111111111";
    let cases = [
        (format!("/kubepods/burstable/pod{UID}/abc"), Some(UID)),
        (
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SAFE}.slice/cri-containerd-a.scope"
            ),
            Some(UID),
        ),
        (
            format!("/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{SAFE}.slice"),
            Some(UID),
        ),
        (format!("/docker/0123/kubelet/kubepods/pod{UID}"), Some(UID)),
        (
            format!("/../../kubepods-burstable-pod{SAFE}.slice/x"),
            Some(UID),
        ),
        (format!("/../../pod{UID}/x"), Some(UID)),
        (
            format!("/kubepods/pod{UID}/x/kubepods/pod{inner}"),
            Some(UID),
        ),
        ("/kubepods/podshort/x".into(), Some("short")),
        ("/kubepods/strange/kubepods/podshort".into(), None),
        ("/system.slice/sshd.service".into(), None),
        ("/machine.slice/podman".into(), None),
        ("/".into(), None),
        (String::new(), None),
    ];
    for (path, expected) in cases {
        assert_eq!(uid_of_path(&path).as_deref(), expected, "{path}");
    }
}

#[test]
fn only_kubelets_own_directories_hold_only_pods() {
    for (path, expected) in [
        ("/sys/fs/cgroup", false),
        ("/sys/fs/cgroup/kubelet.slice", false),
        ("/sys/fs/cgroup/kubepods", true),
        ("/sys/fs/cgroup/kubepods.slice", true),
        ("/sys/fs/cgroup/kubepods/burstable", true),
        ("/", false),
    ] {
        assert_eq!(holds_only_pods(Path::new(path)), expected, "{path}");
    }
}

#[test]
fn a_scan_finds_what_is_below() {
    let dir = tempfile::tempdir().unwrap();
    let make = |path: &str| fs::create_dir_all(dir.path().join(path)).unwrap();
    make(&format!(
        "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{SAFE}.slice/cri-a.scope"
    ));
    make("system.slice/kubepods");
    make("kubepods/podx");
    fs::write(dir.path().join("kubepods/pody"), "").unwrap();
    let mut found: Vec<(String, Option<Arc<str>>, Kind)> = scan(dir.path())
        .into_iter()
        .map(|c| {
            (
                c.path.file_name().unwrap().to_str().unwrap().to_owned(),
                c.uid,
                c.kind,
            )
        })
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    let expected = [
        (
            "kubelet-kubepods-burstable-pod0b7e1c6a_5c3d_4f7e_9a51_0d7c2f6a1b11.slice",
            Some(UID),
            Kind::Pod,
        ),
        ("kubelet-kubepods-burstable.slice", None, Kind::Group),
        ("kubelet-kubepods.slice", None, Kind::Group),
        ("kubelet.slice", None, Kind::Group),
        ("kubepods", None, Kind::Group),
        ("podx", Some("x"), Kind::Pod),
    ];
    assert_eq!(
        found,
        expected.map(|(n, u, k)| (n.to_owned(), u.map(Arc::from), k))
    );
    assert_eq!(scan(Path::new("/nowhere")), []);
}

/// The next event in short.
async fn next(events: &mut mpsc::Receiver<CgroupEvent>) -> String {
    let event = tokio::time::timeout(Duration::from_secs(10), events.recv());
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    match event.await.expect("an event").expect("the watch goes on") {
        CgroupEvent::Appeared(c) => format!(
            "{:?} {} {}",
            c.kind,
            name(&c.path),
            c.uid.as_deref().unwrap_or("-")
        ),
        CgroupEvent::Gone(path) => format!("gone {}", name(&path)),
    }
}

#[tokio::test]
async fn the_watch_tells_what_comes_and_goes() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("kubepods");
    let at = |path: &str| root.join(path);
    fs::create_dir_all(at("poda/c1")).unwrap();
    let mut events = watch(root.clone());
    assert_eq!(next(&mut events).await, "Pod poda a");
    fs::create_dir(at("podb")).unwrap();
    assert_eq!(next(&mut events).await, "Pod podb b");
    // made faster than it can be watched
    fs::create_dir_all(at("burstable/podc")).unwrap();
    assert_eq!(next(&mut events).await, "Group burstable -");
    assert_eq!(next(&mut events).await, "Pod podc c");
    fs::create_dir(at("burstable/podd")).unwrap();
    assert_eq!(next(&mut events).await, "Pod podd d");
    fs::remove_dir(at("burstable/podc")).unwrap();
    assert_eq!(next(&mut events).await, "gone podc");
    fs::remove_dir_all(at("poda")).unwrap();
    assert_eq!(next(&mut events).await, "gone poda");
    fs::create_dir(at("poda")).unwrap();
    assert_eq!(next(&mut events).await, "Pod poda a");
    fs::remove_dir_all(at("burstable")).unwrap();
    assert_eq!(next(&mut events).await, "gone podd");
    assert_eq!(next(&mut events).await, "gone burstable");
}

#[tokio::test]
async fn the_root_may_come_later() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("kubepods");
    let mut events = watch(root.clone());
    fs::create_dir_all(root.join("poda")).unwrap();
    assert_eq!(next(&mut events).await, "Pod poda a");
}

#[tokio::test]
async fn what_comes_inside_a_pod_is_told_when_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let pod = dir.path().join("kubepods/poda");
    fs::create_dir_all(&pod).unwrap();
    let mut changes = watch_inside(dir.path().join("kubepods"));
    let first = changes.recv().await.unwrap();
    assert!(matches!(first, Change::Appeared(ref c, inode) if c.path == pod && inode != 0));
    fs::create_dir(pod.join("container")).unwrap();
    assert_eq!(changes.recv().await.unwrap(), Change::Inside(pod));
}

#[test]
fn a_lost_count_is_made_good_by_a_walk() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("kubepods");
        fs::create_dir_all(&root).unwrap();
        let mut events = watch(root.clone());
        // nothing is read meanwhile: more than the kernel's queue holds
        let max: usize = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events")
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        tokio::task::yield_now().await;
        for _ in 0..=max / 2 + 1 {
            fs::create_dir(root.join("podx")).unwrap();
            fs::remove_dir(root.join("podx")).unwrap();
        }
        fs::create_dir(root.join("podlast")).unwrap();
        while next(&mut events).await != "Pod podlast last" {}
    });
}
