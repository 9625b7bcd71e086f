//! TCP exchanges in which the order of bytes and of ends matters: servers that speak first, half-closed connections,
//! many bytes both ways at the same time.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use serde_json::{Value, json};

use crate::{line, serve};

/// What a server that speaks first says.
const GREETING: &[u8] = b"220 welcome\n";
/// Bytes of one read or write.
const CHUNK: usize = 64 << 10;
/// Start of the hash.
const HASH_START: u64 = 0xcbf2_9ce4_8422_2325;

/// A server that speaks first.
#[derive(Args)]
pub struct Greeter {
    /// Address to listen on.
    #[arg(long, default_value = "[::]:9001")]
    listen: SocketAddr,
    /// End the own direction right after the greeting, then listen to the end and print `heard <bytes> <hash>`.
    /// Otherwise listen to the end, and then send that as the last line.
    #[arg(long)]
    end_first: bool,
}

impl Greeter {
    /// Serves for ever.
    pub fn run(&self) -> Result<()> {
        let end_first = self.end_first;
        serve::each(self.listen, move |mut stream| {
            stream.write_all(GREETING)?;
            if end_first {
                stream.shutdown(Shutdown::Write)?;
            }
            let (bytes, hash) = hear(&mut stream)?;
            let heard = format!("heard {bytes} {hash:016x}");
            if end_first {
                line(&heard);
                return Ok(());
            }
            stream.write_all(format!("{heard}\n").as_bytes())?;
            stream.shutdown(Shutdown::Write)
        })
    }
}

/// Listens to such a server before it says anything itself.
#[derive(Args)]
pub struct Greet {
    /// Where to.
    #[arg(long)]
    to: SocketAddr,
    /// Bytes to send after the greeting; then the sending direction is ended.
    #[arg(long, default_value_t = 5)]
    bytes: usize,
    /// The server ends first: wait for that before sending.
    #[arg(long)]
    end_first: bool,
    /// Give up after this many milliseconds in a step.
    #[arg(long, default_value_t = 10_000)]
    timeout_ms: u64,
}

impl Greet {
    /// `greeting`, `rest` (what came after it) and `hash` of what was sent.
    pub fn run(&self) -> Value {
        let mut seen = json!({"ok": true});
        if let Err((step, error)) = self.steps(&mut seen) {
            seen["ok"] = json!(false);
            seen["step"] = json!(step);
            seen["error"] = json!(error.to_string());
        }
        seen
    }

    fn steps(&self, seen: &mut Value) -> Result<(), (&'static str, io::Error)> {
        let at = |step: &'static str| move |error: io::Error| (step, error);
        let mut stream = dial(self.to, self.timeout_ms).map_err(at("connect"))?;
        let mut greeting = [0; GREETING.len()];
        stream.read_exact(&mut greeting).map_err(at("greeting"))?;
        seen["greeting"] = json!(String::from_utf8_lossy(&greeting));
        let mut rest = String::new();
        if self.end_first {
            stream.read_to_string(&mut rest).map_err(at("its end"))?;
        }
        let mut hash = Hash(HASH_START);
        let mut source = Source::new(self.bytes);
        while let Some(chunk) = source.next() {
            hash.add(chunk);
            stream.write_all(chunk).map_err(at("send"))?;
        }
        stream.shutdown(Shutdown::Write).map_err(at("shutdown"))?;
        stream.read_to_string(&mut rest).map_err(at("receive"))?;
        seen["rest"] = json!(rest.trim_end());
        seen["hash"] = json!(format!("{:016x}", hash.0));
        Ok(())
    }
}

/// Many bytes through an echo server, sent and received at the same time, each compared.
#[derive(Args)]
pub struct Transfer {
    /// Where to: an echo server.
    #[arg(long)]
    to: SocketAddr,
    /// How many bytes each way.
    #[arg(long)]
    bytes: usize,
    /// Give up after this many milliseconds in a step.
    #[arg(long, default_value_t = 20_000)]
    timeout_ms: u64,
}

impl Transfer {
    /// `ok`, `bytes` received, and `hash` of them.
    pub fn run(&self) -> Value {
        match self.exchange() {
            Ok((bytes, hash)) => {
                json!({"ok": true, "bytes": bytes, "hash": format!("{hash:016x}")})
            }
            Err(error) => json!({"ok": false, "error": error.to_string()}),
        }
    }

    fn exchange(&self) -> io::Result<(u64, u64)> {
        let stream = dial(self.to, self.timeout_ms)?;
        let mut send = stream.try_clone()?;
        let bytes = self.bytes;
        let sender = thread::spawn(move || -> io::Result<u64> {
            let (mut source, mut hash) = (Source::new(bytes), Hash(HASH_START));
            while let Some(chunk) = source.next() {
                hash.add(chunk);
                send.write_all(chunk)?;
            }
            send.shutdown(Shutdown::Write)?;
            Ok(hash.0)
        });
        let (heard, hash) = hear(&mut &stream)?;
        let sent = sender.join().map_err(|_| io::Error::other("panic"))??;
        if heard == self.bytes as u64 && hash == sent {
            Ok((heard, hash))
        } else {
            let text = format!("{heard} bytes with {hash:016x} came back, {sent:016x} went");
            Err(io::Error::other(text))
        }
    }
}

fn dial(to: SocketAddr, timeout_ms: u64) -> io::Result<TcpStream> {
    let limit = Duration::from_millis(timeout_ms);
    let stream = TcpStream::connect_timeout(&to, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    Ok(stream)
}

/// Reads to the end: how many bytes, and their hash.
fn hear(stream: &mut impl Read) -> io::Result<(u64, u64)> {
    let (mut bytes, mut hash) = (0, Hash(HASH_START));
    let mut buffer = vec![0; CHUNK];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok((bytes, hash.0)),
            n => {
                hash.add(&buffer[..n]);
                bytes += n as u64;
            }
        }
    }
}

/// FNV-1a: any byte that differs, is missing or out of order changes it.
struct Hash(u64);

impl Hash {
    fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// Bytes that do not repeat, the same in each run.
struct Source {
    left: usize,
    random: SmallRng,
    buffer: Vec<u8>,
}

impl Source {
    fn new(bytes: usize) -> Self {
        Self {
            left: bytes,
            random: SmallRng::seed_from_u64(bytes as u64),
            buffer: vec![0; CHUNK],
        }
    }

    fn next(&mut self) -> Option<&[u8]> {
        let now = self.left.min(CHUNK);
        self.left -= now;
        self.random.fill_bytes(&mut self.buffer[..now]);
        (now > 0).then(|| &self.buffer[..now])
    }
}
