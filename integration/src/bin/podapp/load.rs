//! Many short connections one after another, as a health check of the path: how many failed, and how.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::{Value, json};

use crate::line;

/// Connections between two lines of progress.
const PROGRESS_EVERY: u64 = 100;

/// A load.
#[derive(Args)]
pub struct Load {
    /// Where to.
    #[arg(long)]
    to: SocketAddr,
    /// How many connections in all.
    #[arg(long, default_value_t = 1000)]
    count: u64,
    /// How many at a time.
    #[arg(long, default_value_t = 1)]
    threads: u64,
    /// Send an HTTP request for this path instead of a text to be echoed.
    #[arg(long)]
    http: Option<String>,
    /// End the connection when the answer is complete, instead of asking the server to do so.
    #[arg(long)]
    client_ends: bool,
    /// A connection that takes longer in a step has failed, in milliseconds.
    #[arg(long, default_value_t = 10_000)]
    timeout_ms: u64,
    /// After `--count` connections, go on until this file exists.
    #[arg(long)]
    stop_file: Option<PathBuf>,
}

/// What came of the connections.
#[derive(Default)]
struct Found {
    times: Vec<u64>,
    errors: BTreeMap<String, u64>,
    window: Option<(u64, u64)>,
}

impl Found {
    fn failed(&mut self, why: &str, begun: u64) {
        *self.errors.entry(why.to_owned()).or_default() += 1;
        let first = self.window.map_or(begun, |(first, _)| first.min(begun));
        self.window = Some((first, unix_ms()));
    }
}

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

impl Load {
    /// `ok`, `failed`, `errors` (text to count), `ms_max`, `ms_p50`, `ms_p99`; `failed_begin` and `failed_end`: when the first
    /// failed connection was begun and the last one had failed, in milliseconds since 1970.
    pub fn run(&self) -> Value {
        let taken = AtomicU64::new(0);
        let found = Mutex::new(Found::default());
        thread::scope(|scope| {
            for _ in 0..self.threads {
                scope.spawn(|| self.work(&taken, &found));
            }
        });
        let Found {
            mut times,
            errors,
            window,
        } = found.into_inner().unwrap_or_default();
        times.sort_unstable();
        let at = |share: usize| {
            times
                .get(times.len() * share / 100)
                .or(times.last())
                .copied()
                .unwrap_or_default()
        };
        let failed: u64 = errors.values().sum();
        json!({"ok": times.len(), "failed": failed, "errors": errors,
            "ms_p50": at(50), "ms_p99": at(99), "ms_max": times.last(),
            "failed_begin": window.map(|(begin, _)| begin), "failed_end": window.map(|(_, end)| end)})
    }

    fn work(&self, taken: &AtomicU64, found: &Mutex<Found>) {
        loop {
            let number = taken.fetch_add(1, Ordering::Relaxed);
            if number >= self.count && self.stop_file.as_deref().is_none_or(Path::exists) {
                return;
            }
            let (since, begun) = (Instant::now(), unix_ms());
            let outcome = self.one();
            let ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
            {
                let mut found = found
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                match outcome {
                    Ok(()) => found.times.push(ms),
                    Err((step, error)) => found.failed(&format!("{step}: {error}"), begun),
                }
            }
            if (number + 1).is_multiple_of(PROGRESS_EVERY) {
                line(&format!("done {}", number + 1));
            }
        }
    }

    fn one(&self) -> Result<(), (&'static str, std::io::Error)> {
        let at = |step: &'static str| move |error: std::io::Error| (step, error);
        let limit = Duration::from_millis(self.timeout_ms);
        let mut stream = TcpStream::connect_timeout(&self.to, limit).map_err(at("connect"))?;
        stream
            .set_read_timeout(Some(limit))
            .map_err(at("options"))?;
        stream.set_nodelay(true).map_err(at("options"))?;
        let (ask, wanted) = match &self.http {
            Some(path) => (
                format!(
                    "GET {path} HTTP/1.1\r\nHost: x\r\n{}\r\n",
                    if self.client_ends {
                        ""
                    } else {
                        "Connection: close\r\n"
                    }
                ),
                "HTTP/1.1 200",
            ),
            None => ("are you there?".to_owned(), "are you there?"),
        };
        stream.write_all(ask.as_bytes()).map_err(at("send"))?;
        if self.http.is_none() {
            stream.shutdown(Shutdown::Write).map_err(at("shutdown"))?;
        }
        let mut answer = Vec::new();
        if self.client_ends {
            whole_answer(&mut stream, &mut answer).map_err(at("receive"))?;
        } else {
            stream.read_to_end(&mut answer).map_err(at("receive"))?;
        }
        if answer.starts_with(wanted.as_bytes()) {
            Ok(())
        } else {
            Err((
                "receive",
                std::io::Error::other(format!("{} wrong bytes", answer.len())),
            ))
        }
    }
}

/// Reads an HTTP answer as far as its head says.
fn whole_answer(stream: &mut TcpStream, answer: &mut Vec<u8>) -> std::io::Result<()> {
    let mut part = [0; 16 << 10];
    loop {
        let text = String::from_utf8_lossy(answer);
        if let Some((head, _)) = text.split_once("\r\n\r\n") {
            let lower = head.to_ascii_lowercase();
            let mut lengths = lower
                .lines()
                .filter_map(|line| line.strip_prefix("content-length:"));
            let length: usize = lengths
                .next()
                .and_then(|length| length.trim().parse().ok())
                .unwrap_or_default();
            if answer.len() >= head.len() + 4 + length {
                return Ok(());
            }
        }
        match stream.read(&mut part)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => answer.extend_from_slice(&part[..n]),
        }
    }
}
