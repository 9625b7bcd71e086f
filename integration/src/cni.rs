//! A node of Istio's CNI agent to try the daemon against: the socket it listens on, the packets it sends, and the rules it
//! installs in pods.
//!
//! [`Agent`] keeps to the agent's own rules (who is told of what, its pace, its deadlines, its check of idle
//! connections); with [`Manual`] a test sends whatever it likes. Neither shares code with the daemon's side: messages
//! are written down here once more, from the table of fields.

mod agent;
mod manual;
mod messages;
mod packet;
mod record;
mod rules;
mod serve;
mod site;
#[cfg(test)]
mod tests;

pub use agent::{Agent, Answer, Entry};
pub use manual::{Manual, Session};
pub use messages::{
    Ack, AddWorkload, DelWorkload, Hello, KeepWorkload, Payload, Request, Response, SnapshotSent,
    WorkloadInfo, answer, error_of,
};
pub use packet::{Link, PACKET_MAX, Port, Received};
pub use record::{Event, Record};
pub use rules::{PROBE_V4, PROBE_V6, Rules, snat_probes};
pub use site::{Site, settings, socket};
