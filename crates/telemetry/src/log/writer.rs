//! The writer thread: takes all that is queued, formats what is not text yet, writes it in few large calls.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::Duration;

use super::{Shared, Weigh};
use crate::access::Entry;

/// Bytes gathered before a write.
const WRITE_BYTES: usize = 64 * 1024;
/// Rest between two batches: lines gather meanwhile and who logs need not wake this thread each time.
const BATCH_REST: Duration = Duration::from_millis(5);

/// What passes through the queue.
#[expect(
    clippy::large_enum_variant,
    reason = "records are the common item, a box would be one allocation per connection"
)]
pub(crate) enum Item {
    /// A finished line with its line end.
    Line(String),
    /// An access record, formatted here.
    Access(Entry),
    /// Everything before this is to be written, then the sender be told.
    Flush(SyncSender<()>),
}

impl Weigh for Item {
    fn weight(&self) -> usize {
        match self {
            Self::Line(text) => text.capacity(),
            Self::Access(entry) => entry.weight(),
            Self::Flush(_) => 0,
        }
    }
}

/// Starts the thread. It ends when the queue is closed and empty.
pub(super) fn spawn(shared: Arc<Shared>, out: Box<dyn Write + Send>) -> io::Result<()> {
    let run = move || {
        Writer {
            shared,
            out,
            text: String::new(),
        }
        .run()
    };
    thread::Builder::new()
        .name("log-writer".to_owned())
        .spawn(run)
        .map(drop)
}

/// Whoever logs must not wait for a writer that is gone, however it ended.
struct CloseAtEnd(Arc<Shared>);

impl Drop for CloseAtEnd {
    fn drop(&mut self) {
        self.0.queue.close();
    }
}

struct Writer {
    shared: Arc<Shared>,
    out: Box<dyn Write + Send>,
    text: String,
}

impl Writer {
    fn run(mut self) {
        let _end = CloseAtEnd(Arc::clone(&self.shared));
        let mut batch = Vec::new();
        while self.shared.queue.drain(&mut batch) {
            let mut asked = false;
            for item in batch.drain(..) {
                match item {
                    Item::Line(line) => self.text.push_str(&line),
                    Item::Access(entry) => entry.write(self.shared.format, &mut self.text),
                    Item::Flush(done) => {
                        asked = true;
                        self.write();
                        // Who asked may have stopped waiting.
                        let _ = done.try_send(());
                    }
                }
                if self.text.len() >= WRITE_BYTES {
                    self.write();
                }
            }
            self.write();
            if !asked {
                thread::sleep(BATCH_REST);
            }
        }
    }

    /// Writes and empties the text. A closed output loses lines: there is no one left to tell.
    fn write(&mut self) {
        if !self.text.is_empty() {
            let _ = self
                .out
                .write_all(self.text.as_bytes())
                .and_then(|()| self.out.flush());
            self.text.clear();
            self.text.shrink_to(2 * WRITE_BYTES);
        }
    }
}
