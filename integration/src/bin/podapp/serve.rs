//! Servers: HTTP, TCP echo, UDP echo; one thread per connection.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{line, plain};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;
/// Stack of a connection's thread: its buffers are on the heap.
const STACK: usize = 256 << 10;
/// Most bytes of a request head.
const HEAD_MAX: u64 = 64 << 10;

/// Listens with address re-use, for both families where the address is `[::]`.
pub fn listen(addr: SocketAddr) -> Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket
        .bind(&addr.into())
        .with_context(|| format!("bind {addr}"))?;
    socket.listen(BACKLOG)?;
    line(&format!("ready {addr}"));
    Ok(socket.into())
}

/// Serves each connection in a thread of its own.
pub fn each(
    addr: SocketAddr,
    job: impl Fn(TcpStream) -> io::Result<()> + Clone + Send + 'static,
) -> Result<()> {
    for stream in listen(addr)?.incoming() {
        // one failed accept or connection is that connection's matter
        let Ok(stream) = stream else { continue };
        let job = job.clone();
        // without a thread left the connection is closed, and the server goes on
        let _ = thread::Builder::new().stack_size(STACK).spawn(move || {
            let _ = stream.set_nodelay(true);
            let _ = job(stream);
        });
    }
    Ok(())
}

/// HTTP/1.1 with keep-alive. A path that ends in `/bytes/<n>` is answered with n bytes, everything else with JSON.
pub fn http(addr: SocketAddr, name: &str) -> Result<()> {
    let name = name.to_owned();
    each(addr, move |stream| http_connection(stream, &name))
}

fn http_connection(stream: TcpStream, name: &str) -> io::Result<()> {
    let (peer, local) = (plain(stream.peer_addr()?), plain(stream.local_addr()?));
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    loop {
        let mut request = String::new();
        if reader.by_ref().take(HEAD_MAX).read_line(&mut request)? == 0 {
            return Ok(());
        }
        let (mut length, mut close) = (0u64, false);
        let mut headers = BTreeMap::new();
        loop {
            let mut head = String::new();
            if reader.by_ref().take(HEAD_MAX).read_line(&mut head)? == 0 {
                return Ok(());
            }
            if let Some((key, value)) = head.split_once(':') {
                headers.insert(key.to_ascii_lowercase(), value.trim().to_owned());
            }
            let head = head.trim().to_ascii_lowercase();
            if head.is_empty() {
                break;
            }
            if let Some(value) = head.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            close |= head == "connection: close";
        }
        io::copy(&mut reader.by_ref().take(length), &mut io::sink())?;
        let path = request.split(' ').nth(1).unwrap_or("/").to_owned();
        let body = match path
            .rsplit_once("/bytes/")
            .and_then(|(_, n)| n.parse::<usize>().ok())
        {
            Some(n) => vec![b'x'; n],
            None => {
                let seen = json!({"app": name, "peer": peer.to_string(), "local": local.to_string(), "path": path, "read": length, "headers": headers});
                format!("{seen}\n").into_bytes()
            }
        };
        let mut answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        answer.extend_from_slice(&body);
        writer.write_all(&answer)?;
        if close {
            return Ok(());
        }
    }
}

/// Sends back what arrives; at the end of the input, ends the output.
pub fn echo(addr: SocketAddr) -> Result<()> {
    each(addr, |mut stream| {
        let mut reader = stream.try_clone()?;
        let mut buf = vec![0; 64 << 10];
        loop {
            match reader.read(&mut buf)? {
                0 => return stream.shutdown(Shutdown::Write),
                n => stream.write_all(&buf[..n])?,
            }
        }
    })
}

/// Sends datagrams back to where they came from.
pub fn udp_echo(addr: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(addr).with_context(|| format!("bind {addr}"))?;
    line(&format!("ready {addr}"));
    let mut buf = vec![0; 64 << 10];
    loop {
        let (n, from) = socket.recv_from(&mut buf)?;
        // a client that is gone already is its own matter
        let _ = socket.send_to(&buf[..n], from);
    }
}

/// One datagram.
#[derive(Args)]
pub struct Udp {
    /// Where to.
    #[arg(long)]
    to: SocketAddr,
    /// What.
    #[arg(long, default_value = "ping")]
    send: String,
    /// How long to wait for the answer, in milliseconds.
    #[arg(long, default_value_t = 2000)]
    timeout_ms: u64,
}

impl Udp {
    /// The answer and where it came from.
    pub fn run(&self) -> Value {
        let exchange = || -> io::Result<(String, SocketAddr)> {
            let any: SocketAddr = if self.to.is_ipv4() {
                ([0, 0, 0, 0], 0).into()
            } else {
                ([0u16; 8], 0).into()
            };
            let socket = UdpSocket::bind(any)?;
            socket.set_read_timeout(Some(Duration::from_millis(self.timeout_ms)))?;
            socket.send_to(self.send.as_bytes(), self.to)?;
            let mut buf = vec![0; 64 << 10];
            let (n, from) = socket.recv_from(&mut buf)?;
            Ok((String::from_utf8_lossy(&buf[..n]).into_owned(), from))
        };
        match exchange() {
            Ok((text, from)) => json!({"ok": true, "received": text, "from": from.to_string()}),
            Err(error) => json!({"ok": false, "error": error.to_string()}),
        }
    }
}
