//! Each way in which a file can change is seen by the kernel's events alone, and by polling alone.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use enroll::watch::{FileWatch, WatchConfig};

use crate::{NEVER, soon};

fn events_only() -> WatchConfig {
    WatchConfig {
        poll: NEVER,
        ..WatchConfig::default()
    }
}

/// Whether the watch stays quiet for several debounce times.
async fn quiet(watch: &mut FileWatch) -> bool {
    tokio::time::timeout(Duration::from_millis(300), watch.changed())
        .await
        .is_err()
}

/// Puts a file in place by rename.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

#[tokio::test]
async fn writes_renames_and_removals() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pods.yaml");
    let mut watch = FileWatch::new(&path, events_only());
    fs::write(&path, "1").unwrap();
    soon(watch.changed()).await;
    fs::write(&path, "2").unwrap();
    soon(watch.changed()).await;
    replace(&path, "3");
    soon(watch.changed()).await;
    fs::remove_file(&path).unwrap();
    soon(watch.changed()).await;
    fs::write(&path, "4").unwrap();
    soon(watch.changed()).await;
}

#[tokio::test]
async fn a_burst_is_one_change_and_reading_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pods.yaml");
    fs::write(&path, "0").unwrap();
    let mut watch = FileWatch::new(&path, events_only());
    for n in 0..50 {
        fs::write(&path, n.to_string()).unwrap();
    }
    soon(watch.changed()).await;
    fs::read_to_string(&path).unwrap();
    fs::write(dir.path().join("other"), "x").unwrap();
    assert!(quiet(&mut watch).await);
}

#[tokio::test]
async fn a_wait_that_is_given_up_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pods.yaml");
    let mut watch = FileWatch::new(
        &path,
        WatchConfig {
            debounce: Duration::from_millis(200),
            ..events_only()
        },
    );
    fs::write(&path, "1").unwrap();
    for _ in 0..5 {
        let _ = tokio::time::timeout(Duration::from_millis(20), watch.changed()).await;
    }
    soon(watch.changed()).await;
}

/// As a kubelet mounts a ConfigMap: `pods.yaml -> ..data/pods.yaml`, `..data -> ..1`, and `..data` is swapped.
#[tokio::test]
async fn symlinks_that_are_swapped() {
    let dir = tempfile::tempdir().unwrap();
    let version = |name: &str, text: &str| {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name).join("pods.yaml"), text).unwrap();
    };
    version("..1", "1");
    symlink("..1", dir.path().join("..data")).unwrap();
    symlink("..data/pods.yaml", dir.path().join("pods.yaml")).unwrap();
    let path = dir.path().join("pods.yaml");
    let mut watch = FileWatch::new(&path, events_only());
    for name in ["..2", "..3"] {
        version(name, name);
        symlink(name, dir.path().join("..new")).unwrap();
        fs::rename(dir.path().join("..new"), dir.path().join("..data")).unwrap();
        soon(watch.changed()).await;
        assert_eq!(fs::read_to_string(&path).unwrap(), name);
    }
    fs::write(dir.path().join("..3/pods.yaml"), "in place").unwrap();
    soon(watch.changed()).await;
}

#[tokio::test]
async fn a_directory_that_comes_late_or_anew_is_found_by_polling() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("inner");
    let path = inner.join("pods.yaml");
    let mut watch = FileWatch::new(
        &path,
        WatchConfig {
            poll: Duration::from_millis(20),
            ..WatchConfig::default()
        },
    );
    for text in ["1", "22"] {
        fs::create_dir(&inner).unwrap();
        fs::write(&path, text).unwrap();
        soon(watch.changed()).await;
        fs::remove_dir_all(&inner).unwrap();
        soon(watch.changed()).await;
    }
}
