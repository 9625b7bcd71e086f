//! One TCP connection made in one of the ways in which applications make them.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

/// Most bytes kept of what is received.
const RECEIVED_MAX: u64 = 1 << 20;
/// `MSG_FASTOPEN` of the kernel's socket interface: connect and send in one call.
const MSG_FASTOPEN: i32 = 0x2000_0000;

/// How the connection is made.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Way {
    /// A blocking connect().
    Blocking,
    /// A non-blocking connect(), completed by poll().
    Nonblocking,
    /// sendto() with MSG_FASTOPEN: data with the first packet where the kernel has a cookie.
    Fastopen,
    /// A multipath TCP socket.
    Mptcp,
}

/// One connection.
#[derive(Args)]
pub struct Connect {
    /// Where to.
    #[arg(long)]
    to: SocketAddr,
    /// How.
    #[arg(long, value_enum, default_value = "blocking")]
    way: Way,
    /// Use an IPv6 socket and the v4-mapped form of an IPv4 address.
    #[arg(long)]
    mapped: bool,
    /// Bind to this source address first.
    #[arg(long)]
    bind_address: Option<IpAddr>,
    /// Bind to this device first.
    #[arg(long)]
    bind_device: Option<String>,
    /// Set SO_MARK before connecting (decimal or 0x...).
    #[arg(long, value_parser = number)]
    mark_before: Option<u32>,
    /// Set SO_MARK after connecting, before sending (decimal or 0x...).
    #[arg(long, value_parser = number)]
    mark_after: Option<u32>,
    /// Text to send; then the sending direction is closed.
    #[arg(long, default_value = "hello")]
    send: String,
    /// Send this many further bytes of filling.
    #[arg(long, default_value_t = 0)]
    fill: usize,
    /// Give up after this many milliseconds in a step.
    #[arg(long, default_value_t = 5000)]
    timeout_ms: u64,
}

fn number(text: &str) -> Result<u32, String> {
    let parsed = text
        .strip_prefix("0x")
        .map_or_else(|| text.parse(), |hex| u32::from_str_radix(hex, 16));
    parsed.map_err(|error| error.to_string())
}

impl Connect {
    /// What happened: `ok`, else `step` and `error`; `local`, `peer` as the application sees them; `received`.
    pub fn run(&self) -> Value {
        let mut seen = json!({"ok": true});
        let since = Instant::now();
        if let Err((step, error)) = self.steps(&mut seen) {
            seen["ok"] = json!(false);
            seen["step"] = json!(step);
            seen["error"] = json!(error.to_string());
            seen["kind"] = json!(format!("{:?}", error.kind()));
        }
        seen["ms"] = json!(since.elapsed().as_millis());
        seen
    }

    fn steps(&self, seen: &mut Value) -> Result<(), (&'static str, io::Error)> {
        let at = |step: &'static str| move |error: io::Error| (step, error);
        let to = self.target();
        let protocol = if self.way == Way::Mptcp {
            Protocol::MPTCP
        } else {
            Protocol::TCP
        };
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(protocol))
            .map_err(at("socket"))?;
        self.prepare(&socket)?;
        let early = self.connect(&socket, to).map_err(at("connect"))?;
        if let Some(mark) = self.mark_after {
            socket.set_mark(mark).map_err(at("mark after"))?;
        }
        let limit = Some(Duration::from_millis(self.timeout_ms));
        socket.set_read_timeout(limit).map_err(at("options"))?;
        socket.set_write_timeout(limit).map_err(at("options"))?;
        let mut stream = TcpStream::from(socket);
        let mut rest = self.send.as_bytes()[early..].to_vec();
        rest.resize(rest.len() + self.fill, b'.');
        stream.write_all(&rest).map_err(at("send"))?;
        seen["local"] = json!(stream.local_addr().map_err(at("getsockname"))?.to_string());
        seen["peer"] = json!(stream.peer_addr().map_err(at("getpeername"))?.to_string());
        stream.shutdown(Shutdown::Write).map_err(at("shutdown"))?;
        let mut received = Vec::new();
        let read = (&stream).take(RECEIVED_MAX).read_to_end(&mut received);
        seen["bytes"] = json!(received.len());
        received.truncate(self.send.len().max(4096));
        seen["received"] = json!(String::from_utf8_lossy(&received));
        read.map_err(at("receive"))?;
        Ok(())
    }

    fn target(&self) -> SocketAddr {
        match self.to.ip() {
            IpAddr::V4(v4) if self.mapped => {
                SocketAddr::new(IpAddr::V6(v4.to_ipv6_mapped()), self.to.port())
            }
            ip => SocketAddr::new(ip, self.to.port()),
        }
    }

    fn prepare(&self, socket: &Socket) -> Result<(), (&'static str, io::Error)> {
        let at = |step: &'static str| move |error: io::Error| (step, error);
        if let Some(device) = &self.bind_device {
            socket
                .bind_device(Some(device.as_bytes()))
                .map_err(at("bind device"))?;
        }
        if let Some(ip) = self.bind_address {
            let ip = match ip {
                IpAddr::V4(v4) if self.mapped => IpAddr::V6(v4.to_ipv6_mapped()),
                ip => ip,
            };
            socket
                .bind(&SocketAddr::new(ip, 0).into())
                .map_err(at("bind address"))?;
        }
        if let Some(mark) = self.mark_before {
            socket.set_mark(mark).map_err(at("mark before"))?;
        }
        Ok(())
    }

    /// Connects; returns how many bytes of the text went out with it.
    fn connect(&self, socket: &Socket, to: SocketAddr) -> io::Result<usize> {
        let limit = Duration::from_millis(self.timeout_ms);
        match self.way {
            // a send timeout bounds a blocking connect() as well
            Way::Blocking | Way::Mptcp => {
                socket.set_write_timeout(Some(limit))?;
                socket.connect(&to.into()).map(|()| 0)
            }
            Way::Fastopen => {
                socket.set_write_timeout(Some(limit))?;
                socket.send_to_with_flags(self.send.as_bytes(), &to.into(), MSG_FASTOPEN)
            }
            // makes the socket non-blocking, calls connect() and then poll()
            Way::Nonblocking => socket.connect_timeout(&to.into(), limit).map(|()| 0),
        }
    }
}
