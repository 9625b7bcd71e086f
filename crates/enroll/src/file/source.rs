//! Follows the enrolment file: reads it, reads it again when it changes, and emits what it says.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::mpsc::Sender;
use tracing::warn;

use super::{BYTES_MAX, FileError, parse};
use crate::pod::{PodEvent, Sighting};
use crate::rules::Rules;
use crate::watch::{FileWatch, WatchConfig};

/// Emits a snapshot at the start and after each change, of the file or of the places it names. While the file cannot be understood
/// it emits why, once per reason. Returns when the receiver is gone.
pub async fn source(path: PathBuf, rules: Rules, config: WatchConfig, events: Sender<PodEvent>) {
    let mut watch = FileWatch::new(&path, config);
    let mut follower = Follower {
        path,
        rules,
        last: None,
        sent: Sent::Nothing,
    };
    loop {
        if let Some(event) = follower.look()
            && events.send(event).await.is_err()
        {
            return;
        }
        tokio::select! {
            () = watch.looked() => {}
            () = events.closed() => return,
        }
    }
}

/// What the receiver knows.
#[derive(PartialEq)]
enum Sent {
    Nothing,
    Pods(Vec<Sighting>),
    Fault(String),
}

struct Follower {
    path: PathBuf,
    rules: Rules,
    /// The last text that was understood, and what it says: parsed and warned about once.
    last: Option<(String, Vec<Sighting>)>,
    sent: Sent,
}

impl Follower {
    /// Reads the file; an event if what it says is not what was sent last.
    fn look(&mut self) -> Option<PodEvent> {
        let looked = read(&self.path).and_then(|text| self.sightings(text));
        let now = match &looked {
            Ok(sightings) => Sent::Pods(sightings.clone()),
            Err(fault) => Sent::Fault(chain(fault)),
        };
        if now == self.sent {
            return None;
        }
        self.sent = now;
        Some(match looked {
            Ok(sightings) => PodEvent::Snapshot(sightings),
            Err(fault) => {
                warn!(path = %self.path.display(), error = chain(&fault), "enrolment file not understood, last good state stays");
                PodEvent::Invalid(fault)
            }
        })
    }

    fn sightings(&mut self, text: String) -> Result<Vec<Sighting>, FileError> {
        let known = self.last.take().filter(|(last, _)| *last == text);
        let found = match known {
            Some((_, found)) => found,
            None => self.understand(&text)?,
        };
        let observed = found.iter().cloned().map(observe).collect();
        self.last = Some((text, found));
        Ok(observed)
    }

    fn understand(&self, text: &str) -> Result<Vec<Sighting>, FileError> {
        let found = parse(text)?.sightings(&self.rules);
        for (sighting, warnings) in &found {
            for warning in warnings {
                warn!(pod = %sighting.uid(), %warning, "annotation ignored");
            }
        }
        Ok(found.into_iter().map(|(sighting, _)| sighting).collect())
    }
}

/// An error and its cause.
fn chain(fault: &FileError) -> String {
    match std::error::Error::source(fault) {
        Some(cause) => format!("{fault}: {cause}"),
        None => fault.to_string(),
    }
}

fn read(path: &Path) -> Result<String, FileError> {
    let failed = |cause| FileError::Read {
        path: path.to_owned(),
        cause,
    };
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(failed(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        )));
    }
    let mut text = String::new();
    let bytes = File::open(path)
        .and_then(|file| file.take(BYTES_MAX + 1).read_to_string(&mut text))
        .map_err(failed)?;
    if bytes as u64 > BYTES_MAX {
        Err(FileError::TooLarge)
    } else {
        Ok(text)
    }
}

/// Adds what is at the places now: a namespace made anew under the same name is another one.
fn observe(sighting: Sighting) -> Sighting {
    match sighting {
        Sighting::In(spec) => {
            let mut spec = Arc::unwrap_or_clone(spec);
            spec.netns_inode = inode(&spec.netns);
            spec.cgroup_inode = spec.cgroup.as_deref().and_then(inode);
            Sighting::In(Arc::new(spec))
        }
        out => out,
    }
}

fn inode(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|metadata| metadata.ino())
}
