//! The server, over UDP and TCP.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::thread;

use anyhow::{Context, Result};
use clap::Args;

use super::message::{Asked, framed};
use super::zone::{Reply, Zone};
use crate::{line, plain, serve};

/// Most bytes of a question.
const MESSAGE_MAX: usize = 4096;

/// The server. It prints who asks (`udp from <address>`), then what (`asked <name> <type number>`).
#[derive(Args)]
pub struct Server {
    /// Address to listen on, UDP and TCP.
    #[arg(long, default_value = "[::]:53")]
    listen: SocketAddr,
    /// The answer to every ordinary question for an A record.
    #[arg(long, default_value = "192.0.2.1")]
    answer: Ipv4Addr,
    /// The answer to every ordinary question for an AAAA record.
    #[arg(long, default_value = "2001:db8::1")]
    answer6: Ipv6Addr,
}

impl Server {
    /// Serves for ever.
    pub fn run(&self) -> Result<()> {
        let udp = UdpSocket::bind(self.listen).with_context(|| format!("bind {}", self.listen))?;
        let zone = Zone {
            v4: self.answer,
            v6: self.answer6,
        };
        thread::spawn(move || over_udp(&udp, zone));
        for stream in serve::listen(self.listen)?.incoming() {
            let Ok(stream) = stream else { continue };
            thread::spawn(move || over_tcp(stream, zone));
        }
        Ok(())
    }
}

fn over_udp(udp: &UdpSocket, zone: Zone) {
    let mut buf = vec![0; MESSAGE_MAX];
    // an error of the socket is one that a client gone has left there
    loop {
        let Ok((n, from)) = udp.recv_from(&mut buf) else {
            continue;
        };
        line(&format!("udp from {}", plain(from)));
        let Some(asked) = Asked::read(&buf[..n]) else {
            continue;
        };
        line(&format!("asked {} {}", asked.name, asked.kind));
        for reply in zone.replies(&asked, false) {
            // a client that is gone already is its own matter
            let _ = answer(udp, reply, from);
        }
    }
}

fn answer(udp: &UdpSocket, reply: Reply, to: SocketAddr) -> io::Result<()> {
    if reply.from_elsewhere {
        let any = SocketAddr::new(udp.local_addr()?.ip(), 0);
        UdpSocket::bind(any)?.send_to(&reply.message, to)?;
    } else if reply.after.is_zero() {
        udp.send_to(&reply.message, to)?;
    } else {
        let udp = udp.try_clone()?;
        thread::spawn(move || {
            thread::sleep(reply.after);
            udp.send_to(&reply.message, to)
        });
    }
    Ok(())
}

fn over_tcp(mut stream: TcpStream, zone: Zone) -> io::Result<()> {
    line(&format!("tcp from {}", plain(stream.peer_addr()?)));
    loop {
        let Some(asked) = Asked::read(&read_framed(&mut stream)?) else {
            return Ok(());
        };
        line(&format!("asked {} {}", asked.name, asked.kind));
        for reply in zone.replies(&asked, true) {
            thread::sleep(reply.after);
            stream.write_all(&framed(&reply.message))?;
        }
    }
}

/// A message behind its length.
pub fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message)?;
    Ok(message)
}
