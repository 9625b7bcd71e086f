//! Keeps the mesh state equal to the file of `LOCAL_XDS_PATH`: read at start, re-applied whenever it changes.
//!
//! A file that cannot be understood changes nothing: the last good state stays in force, and the log says what is wrong.
//! It goes together with a control plane, whose word counts where both speak of the same resource.

use std::path::{Path, PathBuf};

use anyhow::Context;
use control::Publisher;
use enroll::watch::{FileWatch, WatchConfig};
use mesh::{Delta, Resource};

use crate::node::lock;

/// Whether the file in force is the one on disk; shared with metrics and the dump.
pub type Fault = std::sync::Arc<std::sync::Mutex<Option<String>>>;

/// Reads the whole file.
///
/// Errors: unreadable, too large, or not understood; the text names the file, the place and what is wrong there.
pub fn read(path: &Path) -> anyhow::Result<Vec<Resource>> {
    let size = std::fs::metadata(path)
        .with_context(|| format!("mesh state file {}", path.display()))?
        .len();
    let max = mesh::local::FILE_BYTES_MAX as u64;
    anyhow::ensure!(
        size <= max,
        "mesh state file {}: {size} bytes, more than {max}",
        path.display()
    );
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("mesh state file {}", path.display()))?;
    mesh::local::parse(&text).with_context(|| format!("mesh state file {}", path.display()))
}

/// Follows the file for the life of the process.
///
/// - `held`: what the file held when it was read last
pub async fn follow(path: PathBuf, held: Vec<Resource>, publisher: Publisher, fault: Fault) {
    let mut changes = FileWatch::new(path.clone(), WatchConfig::default());
    let mut held = held;
    loop {
        match read(&path) {
            Ok(resources) => {
                *lock(&fault) = None;
                let delta = Delta::between(&held, &resources);
                let (changed, removed) = (delta.upsert.len(), delta.remove.len());
                if changed + removed > 0 {
                    publisher.apply_local(&resources).await;
                    tracing::info!(changed, removed, "mesh state applied");
                }
                held = resources;
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(
                    error,
                    "mesh state refused, the last good one stays in force"
                );
                *lock(&fault) = Some(error);
            }
        }
        changes.changed().await;
    }
}
