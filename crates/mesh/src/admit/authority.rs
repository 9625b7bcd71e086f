//! What a CONNECT request asks for: an address or a host name, always with a port.
//!
//! Leaves to others: reading it from the `:authority` of a request (`hbone`).

use std::net::SocketAddr;

use crate::name::Str;

/// What a CONNECT request asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Authority {
    /// `ip:port` or `[ip6]:port`; an IPv4-mapped address means the IPv4 one.
    Address(SocketAddr),
    /// `host:port`.
    Host {
        /// Host name, as given.
        host: Str,
        /// Port.
        port: u16,
    },
}

impl Authority {
    /// The port asked for.
    pub fn port(&self) -> u16 {
        match self {
            Self::Address(address) => address.port(),
            Self::Host { port, .. } => *port,
        }
    }
}

#[cfg(test)]
impl Authority {
    /// For tables of cases: an address as it is written, anything else as a host name.
    pub(crate) fn parsed(text: &str) -> Self {
        if let Ok(address) = text.parse() {
            return Self::Address(address);
        }
        let (host, port) = text.rsplit_once(':').expect("well formed");
        Self::Host {
            host: host.into(),
            port: port.parse().expect("a port"),
        }
    }
}
