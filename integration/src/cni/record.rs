//! What the agent saw and did, in order, for tests to look at and to wait for.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::record::{self, Entry};

/// One thing that happened. Connections are numbered from 1 over the life of the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A proxy connected.
    Connected {
        /// its connection
        link: u64,
        /// when
        at: Instant,
    },
    /// Its first packet.
    Hello {
        /// its connection
        link: u64,
        /// as it came
        bytes: Vec<u8>,
    },
    /// A request was sent.
    Sent {
        /// to which connection
        link: u64,
        /// as [`super::Request::name`] says it
        request: String,
    },
    /// A request was answered.
    Replied {
        /// on which connection
        link: u64,
        /// which request
        request: String,
        /// as it came
        bytes: Vec<u8>,
        /// time since it was sent
        took: Duration,
    },
    /// A request was not answered in time.
    Late {
        /// on which connection
        link: u64,
        /// which request
        request: String,
    },
    /// The agent looked at an idle connection, and it was still there and silent.
    Looked {
        /// which
        link: u64,
    },
    /// A connection is over for the agent.
    Dropped {
        /// which
        link: u64,
        /// what the agent did not like, or `closed`
        why: String,
    },
}

impl Entry for Event {
    const BY: &'static str = "CNI agent";
}

/// All events so far.
pub type Record = record::Record<Event>;

impl Record {
    /// Waits for the answer to a request by name; gives the bytes and how long it took.
    ///
    /// Errors: as [`Record::wait`].
    pub fn wait_reply(
        &self,
        from: usize,
        limit: Duration,
        wanted: &str,
    ) -> Result<(Vec<u8>, Duration)> {
        self.wait(
            from,
            limit,
            &format!("answer to {wanted}"),
            |event| match event {
                Event::Replied {
                    request,
                    bytes,
                    took,
                    ..
                } if request == wanted => Some((bytes.clone(), *took)),
                _ => None,
            },
        )
    }
}
