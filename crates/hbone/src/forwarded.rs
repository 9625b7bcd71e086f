//! The `forwarded` header: for whom a tunnel is opened, and the service it was opened for. Addresses in it are hints
//! for other readers; this proxy itself only ever reads the host.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use http::HeaderValue;

use crate::baggage::VALUE_BYTES_MAX;

/// `for="<client>"`, plus `;host=<service>` when the destination service is known (RFC 7239, section 4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarded<'a> {
    /// The application's address and port.
    pub client: SocketAddr,
    /// Host name of the destination service.
    pub host: Option<&'a str>,
}

impl fmt::Display for Forwarded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The address is printed by hand: an IPv6 scope has no place on the wire.
        match self.client.ip() {
            IpAddr::V4(ip) => write!(f, "for=\"{ip}:{}\"", self.client.port())?,
            IpAddr::V6(ip) => write!(f, "for=\"[{ip}]:{}\"", self.client.port())?,
        }
        match self.host {
            Some(host) => write!(f, ";host={host}"),
            None => Ok(()),
        }
    }
}

/// The service host name a received `forwarded` header names, if any: the first part that starts with `host=`,
/// quotes stripped.
pub(crate) fn host_of(value: &HeaderValue) -> Option<String> {
    let text = value.to_str().ok()?;
    let host = text
        .split(';')
        .find_map(|part| part.strip_prefix("host="))?;
    let host = host.strip_prefix('"').unwrap_or(host);
    let host = host.strip_suffix('"').unwrap_or(host);
    (1..=VALUE_BYTES_MAX)
        .contains(&host.len())
        .then(|| host.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_addresses_and_host() {
        for (client, host, text) in [
            ("10.0.0.1:40000", None, r#"for="10.0.0.1:40000""#),
            (
                "10.0.0.1:40000",
                Some("web.shop.svc"),
                r#"for="10.0.0.1:40000";host=web.shop.svc"#,
            ),
            ("[2001:db8::1]:40000", None, r#"for="[2001:db8::1]:40000""#),
        ] {
            let client = client.parse().unwrap();
            assert_eq!(Forwarded { client, host }.to_string(), text);
        }
        let scoped = "[fe80::1%3]:80".parse().unwrap();
        assert_eq!(
            Forwarded {
                client: scoped,
                host: None
            }
            .to_string(),
            r#"for="[fe80::1]:80""#
        );
    }

    #[test]
    fn reads_only_the_host() {
        for (text, host) in [
            (
                &br#"for="10.0.0.1:40000";host=web.shop.svc"#[..],
                Some("web.shop.svc"),
            ),
            (b"host=web;for=x", Some("web")),
            (br#"host="web""#, Some("web")),
            (br#"host="web"#, Some("web")),
            (b"host=a;host=b", Some("a")),
            (b"host=", None),
            (br#"host="""#, None),
            (br#"host=""#, None),
            (b"host=;host=b", None),
            (b"Host=web", None),
            (b"for=x; host=web", None),
            (b"for=x", None),
            (b"", None),
            (b";;;=;", None),
            (b"host=w\xc3\xa9b", None),
        ] {
            let value = HeaderValue::from_bytes(text).unwrap();
            assert_eq!(host_of(&value).as_deref(), host, "{text:?}");
        }
    }
}
