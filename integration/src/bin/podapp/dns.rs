//! A DNS server, and the ways in which applications ask.

mod flood;
mod message;
mod server;
mod zone;

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::plain;
use flood::Flood;
use message::{HEAD, framed, question};
pub use server::Server;
use server::read_framed;

/// Most bytes of a message.
const MESSAGE_MAX: usize = 4096;

/// The address of the last record, which is what this server's replies end with.
fn answer_in(id: u16, message: &[u8]) -> io::Result<String> {
    if message.len() < HEAD || message[..2] != id.to_be_bytes() {
        return Err(io::Error::other("not the answer to this question"));
    }
    let code = message[3] & 0x0f;
    if code != 0 || message[7] == 0 {
        return Err(io::Error::other(format!(
            "answer code {code}, {} records",
            message[7]
        )));
    }
    let octets: [u8; 4] = message[message.len() - 4..]
        .try_into()
        .map_err(io::Error::other)?;
    Ok(Ipv4Addr::from(octets).to_string())
}

/// How to ask.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Way {
    /// A UDP socket, connected to the resolver: takes answers only from its address.
    Connected,
    /// A UDP socket, not connected.
    Unconnected,
    /// TCP.
    Tcp,
}

/// Questions.
#[derive(Args)]
pub struct Dig {
    /// Resolver; given twice, both are asked over one socket (not connected).
    #[arg(long, required = true)]
    server: Vec<SocketAddr>,
    /// How.
    #[arg(long, value_enum, default_value = "unconnected")]
    way: Way,
    /// What; of several the first, but by a flood, which asks for them in turn.
    #[arg(long, default_value = "example.test")]
    name: Vec<String>,
    /// How long to wait, in milliseconds.
    #[arg(long, default_value_t = 3000)]
    timeout_ms: u64,
    /// A flood over UDP: so many questions each second.
    #[arg(long)]
    rate: Option<u32>,
    /// How long a flood is, in seconds.
    #[arg(long, default_value_t = 5)]
    secs: u64,
    /// Instead of a question these bytes, in hexadecimal digits; over TCP as they are.
    #[arg(long)]
    raw: Option<String>,
}

impl Dig {
    /// `ok`, the own `port` and `answers`: a list of `answer` and `from`, as the socket reports the sender. With raw bytes
    /// `back`: what came, in hexadecimal digits. Of a flood what [`Flood::run`] says.
    pub fn run(&self) -> Value {
        let said = match (self.rate, &self.raw) {
            (Some(rate), _) => self.flood(rate),
            (None, Some(raw)) => self.raw(raw),
            (None, None) => self.question(),
        };
        said.unwrap_or_else(
            |error| json!({"ok": false, "error": error.to_string(), "kind": format!("{:?}", error.kind())}),
        )
    }

    fn question(&self) -> io::Result<Value> {
        let (port, answers) = self.ask()?;
        let answers: Vec<_> = answers
            .iter()
            .map(|(answer, from)| json!({"answer": answer, "from": from.to_string()}))
            .collect();
        Ok(json!({"ok": true, "port": port, "answers": answers}))
    }

    fn flood(&self, rate: u32) -> io::Result<Value> {
        let flood = Flood {
            server: self.server[0],
            names: self.name.clone(),
            rate,
            time: Duration::from_secs(self.secs),
        };
        flood.run()
    }

    fn raw(&self, digits: &str) -> io::Result<Value> {
        let bytes = bytes_of(digits).ok_or_else(|| io::Error::other("not hexadecimal"))?;
        let limit = Duration::from_millis(self.timeout_ms);
        let mut back = vec![0; MESSAGE_MAX];
        let n = if self.way == Way::Tcp {
            let mut stream = TcpStream::connect_timeout(&self.server[0], limit)?;
            stream.set_read_timeout(Some(limit))?;
            stream.write_all(&bytes)?;
            io::Read::read(&mut stream, &mut back)?
        } else {
            let socket = self.socket(limit)?;
            socket.connect(self.server[0])?;
            socket.send(&bytes)?;
            socket.recv(&mut back)?
        };
        let mut shown = String::new();
        for byte in &back[..n] {
            let _ = write!(shown, "{byte:02x}");
        }
        Ok(json!({"ok": true, "back": shown}))
    }

    fn socket(&self, limit: Duration) -> io::Result<UdpSocket> {
        let any: SocketAddr = if self.server[0].is_ipv4() {
            ([0, 0, 0, 0], 0).into()
        } else {
            ([0u16; 8], 0).into()
        };
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(limit))?;
        Ok(socket)
    }

    /// The own port, and each answer with its sender.
    fn ask(&self) -> io::Result<(u16, Vec<(String, SocketAddr)>)> {
        let limit = Duration::from_millis(self.timeout_ms);
        let first = self.server[0];
        let name = &self.name[0];
        if self.way == Way::Tcp {
            let mut stream = TcpStream::connect_timeout(&first, limit)?;
            stream.set_read_timeout(Some(limit))?;
            stream.write_all(&framed(&question(7, name)))?;
            let answer = answer_in(7, &read_framed(&mut stream)?)?;
            return Ok((
                stream.local_addr()?.port(),
                vec![(answer, stream.peer_addr()?)],
            ));
        }
        let socket = self.socket(limit)?;
        if self.way == Way::Connected {
            socket.connect(first)?;
        }
        for (id, server) in (1..).zip(&self.server) {
            let asked = question(id, name);
            if self.way == Way::Connected {
                socket.send(&asked)?
            } else {
                socket.send_to(&asked, server)?
            };
        }
        let mut answers = vec![None; self.server.len()];
        let mut buf = vec![0; MESSAGE_MAX];
        while answers.iter().any(Option::is_none) {
            let (n, from) = if self.way == Way::Connected {
                (socket.recv(&mut buf)?, first)
            } else {
                socket.recv_from(&mut buf)?
            };
            let id = u16::from_be_bytes([buf[0], buf[1]]);
            let slot = answers
                .get_mut(usize::from(id).wrapping_sub(1))
                .ok_or_else(|| io::Error::other("unknown id"))?;
            *slot = Some((answer_in(id, &buf[..n])?, plain(from)));
        }
        Ok((
            socket.local_addr()?.port(),
            answers.into_iter().flatten().collect(),
        ))
    }
}

fn bytes_of(digits: &str) -> Option<Vec<u8>> {
    let pairs = digits.as_bytes().chunks(2);
    let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    pairs.map(byte).collect()
}
