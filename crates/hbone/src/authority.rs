//! The `:authority` of a CONNECT: a host and a port, both required. What it may name is decided elsewhere.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// Longest host name taken, bytes (RFC 1035, section 2.3.4, in text form).
const NAME_MAX: usize = 253;

/// Where a CONNECT wants to go. Prints as it is written on the wire: IPv6 addresses bracketed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Authority {
    /// Address or name.
    pub host: Host,
    /// TCP port; 0 is legal here.
    pub port: u16,
}

/// The host part of an [`Authority`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// An address.
    Ip(IpAddr),
    /// A name of letters, digits, `-`, `.` and `_`; case as received.
    Name(String),
}

/// Why a text is no [`Authority`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// There is no `:port`.
    #[error("authority has no port")]
    NoPort,
    /// The port is not a decimal number up to 65535.
    #[error("authority has a bad port")]
    Port,
    /// The host is empty, too long, or holds characters that no host has.
    #[error("authority has a bad host")]
    Host,
}

impl Authority {
    /// The address and port, if the host is an address.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        match self.host {
            Host::Ip(ip) => Some(SocketAddr::new(ip, self.port)),
            Host::Name(_) => None,
        }
    }
}

impl From<SocketAddr> for Authority {
    fn from(addr: SocketAddr) -> Self {
        Authority {
            host: Host::Ip(addr.ip()),
            port: addr.port(),
        }
    }
}

impl FromStr for Authority {
    type Err = AuthorityError;

    fn from_str(text: &str) -> Result<Self, AuthorityError> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']').ok_or(AuthorityError::Host)?;
                let ip = Ipv6Addr::from_str(host).map_err(|_| AuthorityError::Host)?;
                let port = after.strip_prefix(':').ok_or(AuthorityError::NoPort)?;
                (Host::Ip(ip.into()), port)
            }
            None => {
                let (host, port) = text.split_once(':').ok_or(AuthorityError::NoPort)?;
                (host_of(host)?, port)
            }
        };
        Ok(Authority {
            host,
            port: port_of(port)?,
        })
    }
}

fn host_of(text: &str) -> Result<Host, AuthorityError> {
    if let Ok(ip) = Ipv4Addr::from_str(text) {
        return Ok(Host::Ip(ip.into()));
    }
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if text.is_empty() || text.len() > NAME_MAX || !text.bytes().all(sound) {
        return Err(AuthorityError::Host);
    }
    Ok(Host::Name(text.to_owned()))
}

fn port_of(text: &str) -> Result<u16, AuthorityError> {
    // `u16::from_str` also takes a leading plus sign.
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(AuthorityError::Port);
    }
    text.parse().map_err(|_| AuthorityError::Port)
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Ip(IpAddr::V4(ip)) => write!(f, "{ip}"),
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
            Host::Name(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_addresses_and_names_and_prints_them_back() {
        for text in [
            "10.0.0.1:80",
            "[2001:db8::1]:15008",
            "[::]:0",
            "cart.shop.svc.cluster.local:65535",
            "under_score.example:1",
        ] {
            let authority: Authority = text.parse().unwrap();
            assert_eq!(authority.to_string(), text);
        }
        let v4: Authority = "10.0.0.1:80".parse().unwrap();
        assert_eq!(v4.socket_addr(), Some("10.0.0.1:80".parse().unwrap()));
        let v6: Authority = "[2001:db8::1]:443".parse().unwrap();
        assert_eq!(v6.socket_addr(), Some("[2001:db8::1]:443".parse().unwrap()));
        let name: Authority = "web:80".parse().unwrap();
        assert_eq!(name.socket_addr(), None);
        assert_eq!(Authority::from(SocketAddr::from(([10, 0, 0, 1], 80))), v4);
    }

    #[test]
    fn refuses_the_rest() {
        let long = format!("{}:80", "a".repeat(NAME_MAX + 1));
        for (text, why) in [
            ("", AuthorityError::NoPort),
            ("web", AuthorityError::NoPort),
            ("[::1]", AuthorityError::NoPort),
            ("[::1]80", AuthorityError::NoPort),
            (":80", AuthorityError::Host),
            ("[::1:80", AuthorityError::Host),
            ("[10.0.0.1]:80", AuthorityError::Host),
            ("[fe80::1%eth0]:80", AuthorityError::Host),
            ("user@web:80", AuthorityError::Host),
            ("we b:80", AuthorityError::Host),
            (long.as_str(), AuthorityError::Host),
            ("web:", AuthorityError::Port),
            ("web:+80", AuthorityError::Port),
            ("web:-1", AuthorityError::Port),
            ("web:65536", AuthorityError::Port),
            ("web:80:80", AuthorityError::Port),
            ("2001:db8::1:80", AuthorityError::Port),
            ("web:\u{661}", AuthorityError::Port),
        ] {
            assert_eq!(text.parse::<Authority>(), Err(why), "{text:?}");
        }
    }
}
