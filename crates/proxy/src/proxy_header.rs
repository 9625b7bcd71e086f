//! The PROXY protocol header that tells an application behind an application tunnel who its client is.
//!
//! Whether there is one and what it states is decided in `mesh`; this file only writes it. Version 2, command PROXY, TCP.
//! Source: HAProxy, "The PROXY protocol", section 2.2; the TLV's type is Istio's.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mesh::ProxyHeader;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const VERSION_COMMAND: u8 = 0x21;
/// TCP over IPv4, TCP over IPv6, and for what is of two families: unspecified, without addresses.
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;
const UNSPEC: u8 = 0x00;
/// TLV: SPIFFE URI of the client.
const IDENTITY: u8 = 0xd0;

/// Longest wait for the application to take its header: less than a new socket's buffer holds.
const WRITE_MAX: Duration = Duration::from_secs(10);

/// Gives the header to the application, before anything else.
///
/// Errors: the kernel's; `TimedOut`; `InvalidInput` for an identity longer than a header can carry.
pub(crate) async fn send(
    application: &mut (impl AsyncWrite + Unpin),
    header: &ProxyHeader,
) -> io::Result<()> {
    let bytes = encode(header)?;
    let written = timeout(WRITE_MAX, application.write_all(&bytes)).await;
    written.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Errors: `InvalidInput` when the identity is longer than a header can carry.
fn encode(header: &ProxyHeader) -> io::Result<Vec<u8>> {
    let (family, mut body) = addresses(header.source, header.destination);
    if let Some(identity) = &header.identity {
        let uri = identity.to_string();
        body.push(IDENTITY);
        body.extend(length(uri.len())?);
        body.extend(uri.into_bytes());
    }
    let mut all = SIGNATURE.to_vec();
    all.extend([VERSION_COMMAND, family]);
    all.extend(length(body.len())?);
    all.extend(body);
    Ok(all)
}

fn length(bytes: usize) -> io::Result<[u8; 2]> {
    let short = u16::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok(short.to_be_bytes())
}

/// The family's byte, and both addresses, then both ports.
fn addresses(source: SocketAddr, destination: SocketAddr) -> (u8, Vec<u8>) {
    let (family, ips) = match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => (TCP4, [from.octets(), to.octets()].concat()),
        (IpAddr::V6(from), IpAddr::V6(to)) => (TCP6, [from.octets(), to.octets()].concat()),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
            return (UNSPEC, Vec::new());
        }
    };
    let ports = [
        source.port().to_be_bytes(),
        destination.port().to_be_bytes(),
    ]
    .concat();
    (family, [ips, ports].concat())
}

#[cfg(test)]
mod tests {
    use mesh::SpiffeId;

    use super::*;

    const START: &[u8] = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a\x21";
    /// 31 bytes.
    const URI: &[u8] = b"spiffe://td/ns/shop/sa/frontend";

    fn header(source: &str, destination: &str, identity: bool) -> ProxyHeader {
        ProxyHeader {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            identity: identity.then(|| SpiffeId::new("td", "shop", "frontend")),
        }
    }

    #[test]
    fn headers_are_these_bytes() {
        let (v4, v4_to) = ("10.1.0.9:40312", "10.2.0.1:80");
        let (v6, v6_to) = ("[2001:db8::9]:40312", "[2001:db8::1]:80");
        let ipv4 = b"\x0a\x01\x00\x09\x0a\x02\x00\x01\x9d\x78\x00\x50";
        let ipv6 = b"\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x09\
                     \x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\x9d\x78\x00\x50";
        let tlv = [&b"\xd0\x00\x1f"[..], URI].concat();
        for (source, destination, identity, after) in [
            (v4, v4_to, false, [&b"\x11\x00\x0c"[..], ipv4].concat()),
            (v4, v4_to, true, [&b"\x11\x00\x2e"[..], ipv4, &tlv].concat()),
            (v6, v6_to, false, [&b"\x21\x00\x24"[..], ipv6].concat()),
            (v6, v6_to, true, [&b"\x21\x00\x46"[..], ipv6, &tlv].concat()),
            (v4, v6_to, false, b"\x00\x00\x00".to_vec()),
            (v6, v4_to, true, [&b"\x00\x00\x22"[..], &tlv].concat()),
        ] {
            let bytes = encode(&header(source, destination, identity)).unwrap();
            assert_eq!(bytes, [START, &after].concat(), "{source} -> {destination}");
        }
    }

    #[test]
    fn an_identity_that_does_not_fit_is_an_error() {
        for (len, fits) in [(60_000, true), (65_500, false), (70_000, false)] {
            let identity = SpiffeId::new("t".repeat(len), "shop", "cart");
            let header = ProxyHeader {
                identity: Some(identity),
                ..header("10.1.0.9:1", "10.2.0.1:2", false)
            };
            assert_eq!(encode(&header).is_ok(), fits, "{len}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_application_that_does_not_read_is_not_waited_for_for_ever() {
        let (mut near, _far) = tokio::io::duplex(8);
        let header = header("10.1.0.9:1", "10.2.0.1:2", true);
        let error = send(&mut near, &header).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
