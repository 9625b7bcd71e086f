//! What clients did, in order, for tests to look at and to wait for.

use std::collections::BTreeMap;
use std::net::IpAddr;

use proto::discovery::DeltaDiscoveryRequest;

use super::store::Kind;
use crate::record::{self, Entry};

/// Length of an event that an error shows, in characters.
const LINE_CHARS: usize = 600;

/// How a call looked from the server's side.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// address that the connection came from
    pub peer: Option<IpAddr>,
    /// server name in the handshake
    pub sni: Option<String>,
    /// application protocol of the handshake
    pub alpn: Option<String>,
    /// headers, by lower-case name
    pub headers: BTreeMap<String, String>,
}

impl Caller {
    /// A header, empty if it is absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A discovery stream was accepted.
    Opened {
        /// number of the stream, from 1
        stream: u64,
        /// who called
        caller: Caller,
    },
    /// A request came.
    Request {
        /// number of the stream
        stream: u64,
        /// as it came
        request: DeltaDiscoveryRequest,
    },
    /// A response was sent.
    Response {
        /// number of the stream
        stream: u64,
        /// type of the resources
        url: String,
        /// as sent
        nonce: String,
        /// names of the resources
        names: Vec<String>,
        /// names of the removed
        removed: Vec<String>,
    },
    /// A stream ended, from either side.
    Ended {
        /// number of the stream
        stream: u64,
    },
    /// A discovery stream or a certificate was refused.
    Refused {
        /// who called
        caller: Caller,
        /// the status's message
        why: String,
    },
    /// A certificate was asked for.
    Asked {
        /// who called
        caller: Caller,
        /// whom for
        identity: String,
        /// for how long, in seconds
        seconds: i64,
    },
    /// A certificate was signed.
    Signed {
        /// whom for
        identity: String,
        /// its serial number
        serial: u64,
    },
}

impl Event {
    /// The request on a stream, if this is one of that type.
    pub fn request_of(&self, kind: Kind) -> Option<(u64, &DeltaDiscoveryRequest)> {
        match self {
            Self::Request { stream, request } if request.type_url == kind.url() => {
                Some((*stream, request))
            }
            _ => None,
        }
    }
}

impl Entry for Event {
    const BY: &'static str = "control plane";

    fn line(&self) -> String {
        format!("{self:?}").chars().take(LINE_CHARS).collect()
    }
}

/// All events so far.
pub type Record = record::Record<Event>;
