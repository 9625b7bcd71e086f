//! Many long connections to an echo server, all in use until a file appears, then closed in order.

use std::io::{Error, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use crate::line;

/// Stack of a connection's thread.
const STACK: usize = 128 << 10;

/// Connections that are held.
#[derive(Args)]
pub struct Many {
    /// Where to: an echo server; given more than once, in turns.
    #[arg(long, required = true)]
    to: Vec<SocketAddr>,
    /// How many.
    #[arg(long, default_value_t = 100)]
    count: usize,
    /// Bytes of an exchange.
    #[arg(long, default_value_t = 700)]
    bytes: usize,
    /// Pause between two exchanges of a connection, in milliseconds.
    #[arg(long, default_value_t = 250)]
    every_ms: u64,
    /// No answer for this long counts as cut, in milliseconds.
    #[arg(long, default_value_t = 10_000)]
    timeout_ms: u64,
    /// Goes on until this file exists.
    #[arg(long)]
    stop_file: PathBuf,
}

/// What was seen so far.
#[derive(Default)]
struct Seen {
    open: AtomicUsize,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    exchanges: u64,
    ms_max: u64,
    cut: Vec<String>,
}

impl Many {
    /// Prints `open <count>` once all are, and each cut; at the end `exchanges`, `cut` (texts), `ms_max`.
    pub fn run(&self) -> Value {
        let seen = Seen::default();
        thread::scope(|scope| {
            for number in 0..self.count {
                let to = self.to[number % self.to.len()];
                let seen = &seen;
                let begun = thread::Builder::new()
                    .stack_size(STACK)
                    .spawn_scoped(scope, move || self.hold(to, seen));
                if let Err(error) = begun {
                    seen.cut(&format!("no thread: {error}"));
                }
            }
        });
        let told = seen
            .told
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        json!({"exchanges": told.exchanges, "cut": told.cut, "ms_max": told.ms_max})
    }

    fn hold(&self, to: SocketAddr, seen: &Seen) {
        let since = Instant::now();
        if let Err((step, error)) = self.exchanges(to, seen) {
            let after = since.elapsed().as_millis();
            seen.cut(&format!("{to}, {step} after {after}ms: {error}"));
        }
    }

    fn exchanges(&self, to: SocketAddr, seen: &Seen) -> Result<(), (&'static str, Error)> {
        let at = |step: &'static str| move |error: Error| (step, error);
        let limit = Duration::from_millis(self.timeout_ms);
        let mut stream = TcpStream::connect_timeout(&to, limit).map_err(at("connect"))?;
        stream
            .set_read_timeout(Some(limit))
            .map_err(at("options"))?;
        stream.set_nodelay(true).map_err(at("options"))?;
        let mut back = vec![0; self.bytes];
        let mut first = true;
        for round in (0..=u8::MAX).cycle() {
            let asked = Instant::now();
            stream
                .write_all(&vec![round; self.bytes])
                .map_err(at("send"))?;
            stream.read_exact(&mut back).map_err(at("receive"))?;
            if back.iter().any(|&byte| byte != round) {
                return Err(("receive", Error::other("wrong bytes")));
            }
            seen.exchanged(asked.elapsed());
            if std::mem::take(&mut first) {
                let open = seen.open.fetch_add(1, Ordering::Relaxed) + 1;
                if open == self.count {
                    line(&format!("open {open}"));
                }
            }
            if self.stop_file.exists() {
                break;
            }
            thread::sleep(Duration::from_millis(self.every_ms));
        }
        stream.shutdown(Shutdown::Write).map_err(at("shutdown"))?;
        match stream.read(&mut back).map_err(at("end"))? {
            0 => Ok(()),
            n => Err(("end", Error::other(format!("{n} bytes too many")))),
        }
    }
}

impl Seen {
    fn exchanged(&self, took: Duration) {
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.exchanges += 1;
        told.ms_max = told.ms_max.max(ms);
    }

    fn cut(&self, why: &str) {
        line(&format!("cut {why}"));
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.cut.push(why.to_owned());
    }
}
