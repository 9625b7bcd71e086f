//! A server behind the PROXY protocol, version 2: it takes no byte before a header that is right to the last bit.
//!
//! What it read it prints as one line of JSON and sends to the client, before anything of the client's is read; then it
//! sends back what it gets. A header that is wrong is printed with what is wrong, and the connection is closed.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::{line, plain, serve};

/// What every header of version 2 begins with.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const VERSION_AND_COMMAND: u8 = 0x21;
/// Most time for a header.
const HEADER_MAX: Duration = Duration::from_secs(10);

/// Serves until the process ends.
pub fn serve(addr: SocketAddr) -> Result<()> {
    serve::each(addr, connection)
}

fn connection(mut stream: TcpStream) -> io::Result<()> {
    let ends = [stream.peer_addr()?, stream.local_addr()?].map(|addr| json!(plain(addr)));
    stream.set_read_timeout(Some(HEADER_MAX))?;
    let mut said = match header(&mut stream) {
        Ok(said) => said,
        Err(error) => {
            line(&json!({"error": error.to_string()}).to_string());
            return Err(error);
        }
    };
    stream.set_read_timeout(None)?;
    let [peer, local] = ends;
    said["peer"] = peer;
    said["local"] = local;
    line(&said.to_string());
    stream.write_all(format!("{said}\n").as_bytes())?;
    let mut reader = stream.try_clone()?;
    io::copy(&mut reader, &mut stream)?;
    stream.shutdown(Shutdown::Write)
}

/// Reads one header: `family`, `source` and `destination` if it states any, `tlvs` by type in hexadecimal.
///
/// Errors: the stream's, and anything that is not as it has to be.
fn header(stream: &mut impl Read) -> io::Result<Value> {
    let mut fixed = [0; 16];
    stream.read_exact(&mut fixed)?;
    if fixed[..12] != SIGNATURE {
        return wrong(&format!("no signature: {fixed:02x?}"));
    }
    if fixed[12] != VERSION_AND_COMMAND {
        return wrong(&format!("version and command {:02x}", fixed[12]));
    }
    let mut rest = vec![0; usize::from(u16::from_be_bytes([fixed[14], fixed[15]]))];
    stream.read_exact(&mut rest)?;
    let (family, addresses) = match fixed[13] {
        0x00 => ("UNSPEC", 0),
        0x11 => ("INET", 12),
        0x21 => ("INET6", 36),
        other => return wrong(&format!("family and transport {other:02x}")),
    };
    let Some((addresses, tlvs)) = rest.split_at_checked(addresses) else {
        return wrong(&format!("{} bytes for {family}", rest.len()));
    };
    let mut said = json!({"family": family, "tlvs": read_tlvs(tlvs)?});
    if let Some((source, destination)) = read_addresses(addresses) {
        said["source"] = json!(source);
        said["destination"] = json!(destination);
    }
    Ok(said)
}

fn wrong<T>(what: &str) -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::InvalidData, what.to_owned()))
}

/// Source and destination: two addresses, then two ports.
fn read_addresses(bytes: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let (ips, ports) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
    let (first, second) = ips.split_at(ips.len() / 2);
    let ip = |bytes: &[u8]| -> Option<IpAddr> {
        match bytes.len() {
            4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
            16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
            _ => None,
        }
    };
    let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
    Some((
        SocketAddr::new(ip(first)?, port(0)),
        SocketAddr::new(ip(second)?, port(2)),
    ))
}

/// Type, length and value, up to the last byte; no type twice.
fn read_tlvs(mut rest: &[u8]) -> io::Result<Value> {
    let mut found = Map::new();
    while let [kind, high, low, after @ ..] = rest {
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        let Some((value, after)) = after.split_at_checked(len) else {
            return wrong(&format!("type {kind:02x} is cut short"));
        };
        let Ok(value) = std::str::from_utf8(value) else {
            return wrong(&format!("type {kind:02x} is no text"));
        };
        if found.insert(format!("{kind:02x}"), json!(value)).is_some() {
            return wrong(&format!("type {kind:02x} twice"));
        }
        rest = after;
    }
    if rest.is_empty() {
        Ok(Value::Object(found))
    } else {
        wrong(&format!("{} bytes after the last type", rest.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(family: u8, rest: &[u8]) -> Vec<u8> {
        let len = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[0x21, family], &len, rest].concat()
    }

    #[test]
    fn reads_what_the_specification_says() {
        let v4 = [
            10, 0, 0, 1, 10, 0, 0, 2, 0x9c, 0x40, 0, 80, 0xd0, 0, 2, b'h', b'i',
        ];
        let said = header(&mut &with(0x11, &v4)[..]).unwrap();
        let wanted = json!({"family": "INET", "source": "10.0.0.1:40000", "destination": "10.0.0.2:80", "tlvs": {"d0": "hi"}});
        assert_eq!(said, wanted);
        let mut v6 = [0; 36];
        (v6[15], v6[31], v6[35]) = (1, 2, 80);
        let said = header(&mut &with(0x21, &v6)[..]).unwrap();
        assert_eq!(said["destination"], "[::2]:80");
        let said = header(&mut &with(0x00, &[])[..]).unwrap();
        assert_eq!(said, json!({"family": "UNSPEC", "tlvs": {}}));
    }

    #[test]
    fn takes_nothing_else() {
        let mut other_version = with(0x11, &[0; 12]);
        other_version[12] = 0x11;
        let bad: [(&str, Vec<u8>); 9] = [
            ("text", b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n".to_vec()),
            ("version", other_version),
            ("transport", with(0x12, &[0; 12])),
            ("family", with(0x31, &[0; 12])),
            ("unspecified, and yet TCP", with(0x01, &[])),
            ("addresses cut short", with(0x21, &[0; 35])),
            ("value cut short", with(0x00, &[0xd0, 0, 9, b'x'])),
            ("bytes too many", with(0x00, &[0xd0, 0, 0, 0, 0])),
            ("twice", with(0x00, &[0xd0, 0, 0, 0xd0, 0, 0])),
        ];
        for (what, bytes) in bad {
            assert!(header(&mut &bytes[..]).is_err(), "{what}");
        }
    }
}
