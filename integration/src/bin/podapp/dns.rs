//! A DNS server with one answer, and the ways in which applications ask.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::{line, plain, serve};

/// Most bytes of a message.
const MESSAGE_MAX: usize = 4096;
/// Bytes of a message's head.
const HEAD: usize = 12;

/// The server.
#[derive(Args)]
pub struct Server {
    /// Address to listen on, UDP and TCP.
    #[arg(long, default_value = "[::]:53")]
    listen: SocketAddr,
    /// The answer to every question for an A record.
    #[arg(long, default_value = "192.0.2.1")]
    answer: Ipv4Addr,
}

impl Server {
    /// Serves for ever.
    pub fn run(&self) -> Result<()> {
        let udp = UdpSocket::bind(self.listen).with_context(|| format!("bind {}", self.listen))?;
        let answer = self.answer;
        thread::spawn(move || {
            let mut buf = vec![0; MESSAGE_MAX];
            while let Ok((n, from)) = udp.recv_from(&mut buf) {
                line(&format!("udp from {}", plain(from)));
                if let Some(reply) = reply(&buf[..n], answer) {
                    // a client that is gone already is its own matter
                    let _ = udp.send_to(&reply, from);
                }
            }
        });
        for stream in serve::listen(self.listen)?.incoming() {
            let Ok(stream) = stream else { continue };
            thread::spawn(move || over_tcp(stream, answer));
        }
        Ok(())
    }
}

fn over_tcp(mut stream: TcpStream, answer: Ipv4Addr) -> io::Result<()> {
    line(&format!("tcp from {}", plain(stream.peer_addr()?)));
    loop {
        let asked = read_framed(&mut stream)?;
        let Some(reply) = reply(&asked, answer) else {
            return Ok(());
        };
        stream.write_all(&framed(&reply))?;
    }
}

fn framed(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes(), message].concat()
}

fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message)?;
    Ok(message)
}

/// The reply to a question with one A record; none to anything else.
fn reply(asked: &[u8], answer: Ipv4Addr) -> Option<Vec<u8>> {
    let head = asked.get(..HEAD)?;
    let name = asked.get(HEAD..)?.iter().position(|&byte| byte == 0)?;
    let question = asked.get(HEAD..HEAD + name + 5)?;
    // the same id, response and recursion available; one question, one answer
    let mut reply = vec![head[0], head[1], 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0];
    reply.extend_from_slice(question);
    // pointer to the name in the question, type A, class IN, 30 s, 4 bytes
    reply.extend_from_slice(&[0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4]);
    reply.extend_from_slice(&answer.octets());
    Some(reply)
}

fn question(id: u16, name: &str) -> Vec<u8> {
    let mut message = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    message[..2].copy_from_slice(&id.to_be_bytes());
    for label in name.split('.').filter(|label| !label.is_empty()) {
        message.push(u8::try_from(label.len()).unwrap_or(63));
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    message
}

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
    /// What.
    #[arg(long, default_value = "example.test")]
    name: String,
    /// How long to wait, in milliseconds.
    #[arg(long, default_value_t = 3000)]
    timeout_ms: u64,
}

impl Dig {
    /// `ok`, the own `port` and `answers`: a list of `answer` and `from`, as the socket reports the sender.
    pub fn run(&self) -> Value {
        match self.ask() {
            Ok((port, answers)) => {
                let answers: Vec<_> = answers
                    .iter()
                    .map(|(answer, from)| json!({"answer": answer, "from": from.to_string()}))
                    .collect();
                json!({"ok": true, "port": port, "answers": answers})
            }
            Err(error) => {
                json!({"ok": false, "error": error.to_string(), "kind": format!("{:?}", error.kind())})
            }
        }
    }

    /// The own port, and each answer with its sender.
    fn ask(&self) -> io::Result<(u16, Vec<(String, SocketAddr)>)> {
        let limit = Duration::from_millis(self.timeout_ms);
        let first = self.server[0];
        if self.way == Way::Tcp {
            let mut stream = TcpStream::connect_timeout(&first, limit)?;
            stream.set_read_timeout(Some(limit))?;
            stream.write_all(&framed(&question(7, &self.name)))?;
            let answer = answer_in(7, &read_framed(&mut stream)?)?;
            return Ok((
                stream.local_addr()?.port(),
                vec![(answer, stream.peer_addr()?)],
            ));
        }
        let any: SocketAddr = if first.is_ipv4() {
            ([0, 0, 0, 0], 0).into()
        } else {
            ([0u16; 8], 0).into()
        };
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(limit))?;
        if self.way == Way::Connected {
            socket.connect(first)?;
        }
        for (id, server) in (1..).zip(&self.server) {
            let asked = question(id, &self.name);
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
