//! Keeps the revocation lists equal to the file of `CRL_PATH`: read at start, again whenever it changes.
//!
//! A missing file revokes nothing until it comes. A file that cannot be understood changes nothing: at the start the daemon
//! runs without lists, later with the last good ones; the log says what is wrong.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use enroll::watch::{FileWatch, WatchConfig};
use identity::{CRL_BYTES_MAX, Crl, Side};
use telemetry::metrics::{Family, RegisterError, Registry};

/// Quiet time after which a change of the file counts as finished: a ConfigMap is swapped in several steps.
const DEBOUNCE: Duration = Duration::from_secs(2);
/// A file that never comes to rest is read after this time all the same.
const DEBOUNCE_MAX: Duration = Duration::from_secs(10);

/// Reads the file and begins to watch it, both at once; the rest, for the life of the process, is in the future. Must be
/// called within a tokio runtime.
pub fn follow(path: PathBuf, crl: Crl) -> impl Future<Output = ()> + 'static {
    let patience = WatchConfig {
        debounce: DEBOUNCE,
        debounce_max: DEBOUNCE_MAX,
        ..WatchConfig::default()
    };
    keep(path, crl, patience)
}

fn keep(path: PathBuf, crl: Crl, patience: WatchConfig) -> impl Future<Output = ()> + 'static {
    let mut changes = FileWatch::new(&path, patience);
    take(&path, &crl);
    async move {
        loop {
            changes.changed().await;
            take(&path, &crl);
        }
    }
}

fn take(path: &Path, crl: &Crl) {
    match load(path, crl) {
        Ok(lists) => tracing::info!(path = %path.display(), lists, "revocation lists loaded"),
        Err(error) => {
            let (error, kept) = (format!("{error:#}"), crl.lists());
            tracing::warn!(path = %path.display(), error, kept, "revocation lists not loaded, those in force stay");
        }
    }
}

fn load(path: &Path, crl: &Crl) -> anyhow::Result<usize> {
    let bytes = read(path).context("CRL_PATH")?;
    crl.load(&bytes).context("CRL_PATH")
}

/// Reads one byte more than allowed at most, so that a file that is too large is told as such.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?
        .take(CRL_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Registers what the lists did.
pub fn register(registry: &Registry, crl: &Crl) -> Result<(), RegisterError> {
    let rejected = Family::counter(
        "istio_crl_policy_rejections",
        "Handshakes refused and tunnels closed because the peer's certificate is revoked",
    );
    let untracked = Family::counter(
        "istio_crl_untracked_connections",
        "Tunnels that are not watched for revocation",
    );
    let lists = Family::gauge("ztunnel_crl_lists", "Revocation lists in force");
    let of = crl.clone();
    registry.register(lists, move |samples| samples.push(&[], of.lists() as u64))?;
    let sides = [
        ("source", Side::Connecting),
        ("destination", Side::Accepting),
    ];
    let of = crl.clone();
    registry.register(rejected, move |samples| {
        for (reporter, side) in sides {
            samples.push(&[("reporter", reporter)], of.rejected(side));
        }
    })?;
    let of = crl.clone();
    registry.register(untracked, move |samples| {
        for (reporter, side) in sides {
            samples.push(&[("reporter", reporter)], of.untracked(side));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A revocation list that revokes nothing, signed by a key nobody has any more.
    const LIST: &str = include_str!("crl_file/list.pem");

    fn quick() -> WatchConfig {
        WatchConfig {
            debounce: Duration::from_millis(5),
            debounce_max: Duration::from_millis(50),
            poll: Duration::from_millis(50),
        }
    }

    #[tokio::test]
    async fn a_file_that_comes_late_is_taken_and_a_broken_one_changes_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, crl) = (dir.path().join("ca-crl.pem"), Crl::new());
        let keeping = keep(path.clone(), crl.clone(), quick());
        assert_eq!(crl.lists(), 0);
        let lists = async |count| {
            while crl.lists() != count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let story = async {
            std::fs::write(&path, LIST).expect("written");
            lists(1).await;
            assert!(crl.load(b"-----BEGIN X509 CRL-----\n!").is_err());
            assert_eq!(crl.lists(), 1);
            // as the kubelet does it: a new directory behind a link
            std::fs::create_dir(dir.path().join("new")).expect("made");
            std::fs::write(dir.path().join("new/ca-crl.pem"), LIST.repeat(2)).expect("written");
            std::os::unix::fs::symlink("new/ca-crl.pem", dir.path().join("link")).expect("linked");
            std::fs::rename(dir.path().join("link"), &path).expect("swapped");
            lists(2).await;
            std::fs::write(dir.path().join("new/ca-crl.pem"), "").expect("written");
            lists(0).await;
        };
        tokio::select! {
            () = keeping => panic!("it follows for ever"),
            () = story => {}
        }
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, crl) = (dir.path().join("crl"), Crl::new());
        assert!(load(&path, &crl).is_err(), "missing");
        std::fs::write(&path, vec![0x30; CRL_BYTES_MAX + 1]).expect("written");
        let error = format!("{:#}", load(&path, &crl).expect_err("too large"));
        assert!(error.ends_with("more than 8388608"), "{error}");
    }
}
