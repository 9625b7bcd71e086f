//! The smallest HTTP/1.1 client that the daemon's own endpoints need: one request, one answer, connection closed.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::netns;

/// Most time for one step of a request.
const STEP_MAX: Duration = Duration::from_secs(10);
/// Most bytes of an answer that are read.
const ANSWER_MAX: u64 = 64 << 20;

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// status code
    pub status: u16,
    /// head as received, without the status line
    pub head: String,
    /// body as text
    pub body: String,
}

/// One request from inside a namespace.
///
/// Errors: connect, read or write failed, or the answer is no HTTP.
pub fn request(netns: &Path, method: &str, to: SocketAddr, path: &str) -> Result<Answer> {
    request_with(netns, method, to, path, &[])
}

/// The same with further headers.
///
/// Errors: as there.
pub fn request_with(
    netns: &Path,
    method: &str,
    to: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
) -> Result<Answer> {
    let more: String = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {to}\r\nContent-Length: 0\r\nConnection: close\r\n{more}\r\n"
    );
    netns::inside(netns, || exchange(to, &head))?
        .with_context(|| format!("{method} http://{to}{path}"))
}

fn exchange(to: SocketAddr, head: &str) -> Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&to, STEP_MAX)?;
    stream.set_read_timeout(Some(STEP_MAX))?;
    stream.write_all(head.as_bytes())?;
    let mut bytes = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut bytes)?;
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> Result<Answer> {
    let end = bytes
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .context("no end of the head")?;
    let head = std::str::from_utf8(&bytes[..end]).context("head is no text")?;
    let (first, head) = head.split_once("\r\n").unwrap_or((head, ""));
    let status = first
        .split(' ')
        .nth(1)
        .and_then(|s| s.parse().ok())
        .context("no status")?;
    let raw = &bytes[end + 4..];
    let chunked = head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked");
    let body = if chunked { unchunk(raw)? } else { raw.to_vec() };
    Ok(Answer {
        status,
        head: head.to_owned(),
        body: String::from_utf8_lossy(&body).into_owned(),
    })
}

fn unchunk(mut rest: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = rest
            .windows(2)
            .position(|w| w == b"\r\n")
            .context("chunk without size")?;
        let size = std::str::from_utf8(&rest[..line])?
            .split(';')
            .next()
            .unwrap_or_default()
            .trim();
        let size = usize::from_str_radix(size, 16).context("chunk size")?;
        if size == 0 {
            return Ok(body);
        }
        let start = line + 2;
        body.extend_from_slice(rest.get(start..start + size).context("chunk cut short")?);
        rest = rest.get(start + size + 2..).context("chunk cut short")?;
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn reads_plain_and_chunked_answers() {
        let plain = parse(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\nready\n").unwrap();
        assert_eq!((plain.status, plain.body.as_str()), (200, "ready\n"));
        let chunked = parse(
            b"HTTP/1.1 500 X\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
        )
        .unwrap();
        assert_eq!((chunked.status, chunked.body.as_str()), (500, "abcde"));
    }
}
