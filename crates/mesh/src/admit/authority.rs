//! The `:authority` of a CONNECT request: an address or a host name, always with a port.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use crate::name::Str;

/// Bytes that a host name can have. Source: RFC 1035, section 2.3.4, with a trailing dot.
const HOST_BYTES_MAX: usize = 254;

/// What a CONNECT request asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Authority {
    /// `ip:port` or `[ip6]:port`; the address is never IPv4-mapped.
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

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Host { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// A text that is neither `ip:port` nor `host:port`. Answered with status 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("authority is neither ip:port nor host:port")]
pub struct BadAuthority;

impl FromStr for Authority {
    type Err = BadAuthority;

    /// Source: RFC 9110, section 9.3.6: host and port, both required.
    fn from_str(text: &str) -> Result<Self, BadAuthority> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self::Address(SocketAddr::new(
                address.ip().to_canonical(),
                address.port(),
            )));
        }
        let (host, port) = text.rsplit_once(':').ok_or(BadAuthority)?;
        let fits = !host.is_empty() && host.len() <= HOST_BYTES_MAX;
        let is_name = host
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'*'));
        let is_port = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        if !(fits && is_name && is_port) {
            return Err(BadAuthority);
        }
        let port = port.parse().map_err(|_| BadAuthority)?;
        Ok(Self::Host {
            host: host.into(),
            port,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_addresses_and_hosts_with_port() {
        let cases = [
            ("10.0.0.1:80", Some("10.0.0.1:80")),
            ("[2001:db8::1]:80", Some("[2001:db8::1]:80")),
            ("[::ffff:10.0.0.1]:80", Some("10.0.0.1:80")),
            (
                "cart.shop.svc.cluster.local:80",
                Some("cart.shop.svc.cluster.local:80"),
            ),
            ("cart:", None),
            ("cart", None),
            (":80", None),
            ("cart:65536", None),
            ("cart:+80", None),
            ("user@cart:80", None),
            ("2001:db8::1:80", None),
            ("[2001:db8::1]", None),
            ("10.0.0.1", None),
            ("a b:80", None),
            ("", None),
        ];
        for (text, printed) in cases {
            let parsed = text.parse::<Authority>().ok().map(|a| a.to_string());
            assert_eq!(parsed.as_deref(), printed, "{text}");
        }
        assert!(
            format!("{}:80", "a".repeat(HOST_BYTES_MAX + 1))
                .parse::<Authority>()
                .is_err()
        );
    }
}
