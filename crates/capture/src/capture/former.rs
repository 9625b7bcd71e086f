//! A daemon of another map layout was here: its pods stay captured, by its programs in the pods until ours are there.

use std::fs;
use std::io;

use tracing::{info, warn};

use super::Capture;
use super::leave::detach;
use crate::pins::Pins;

/// First part of the pins of links at cgroups.
const LINKS: &str = "link-";

impl Capture {
    /// Takes over pods of daemons with other layouts, and detaches their programs that are not single pods'. Ours must be attached.
    ///
    /// What cannot be taken over stays as it is, and is told: it keeps its pods shut.
    pub(super) fn take_over_former(&mut self) {
        for former in self.pins.formers().unwrap_or_default() {
            let place = former.dir().display();
            let taken = self.maps.take_over(&former);
            match taken.map_err(|error| error.to_string()).and_then(|()| {
                let links = detach_links(&former);
                links.map_err(|error| error.to_string())
            }) {
                Ok(()) => info!(%place, "pods of another map layout taken over"),
                Err(cause) => warn!(%place, cause, "pods of another map layout stay as they are"),
            }
            sweep(&former);
        }
    }

    /// Our program serves the pod: those of other layouts go.
    pub(super) fn leave_former(&self, cookie: u64) -> io::Result<()> {
        for former in self.pins.formers()? {
            detach(&former.lookup(cookie))?;
            sweep(&former);
        }
        Ok(())
    }
}

fn detach_links(former: &Pins) -> io::Result<()> {
    for entry in fs::read_dir(former.dir())? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(LINKS) {
            detach(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes the directory once nothing in it is attached any more.
fn sweep(former: &Pins) {
    let attached = |name: String| name.starts_with(LINKS) || name.starts_with("lookup-");
    let Ok(entries) = fs::read_dir(former.dir()) else {
        return;
    };
    let names = entries.flatten().map(|entry| entry.file_name());
    let mut names = names.map(|name| name.to_string_lossy().into_owned());
    if !names.any(attached)
        && let Err(error) = former.clear()
    {
        warn!(place = %former.dir().display(), %error, "pins of another map layout cannot be removed");
    }
}
