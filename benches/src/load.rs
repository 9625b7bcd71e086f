//! The loads, each run inside the client's pod: bulk, ping-pong, new connections, HTTP keep-alive requests.
//!
//! Each prints one JSON line. Blocking threads and the clock, nothing else; rounds and tables are `measure` and `report`.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// What one load came to.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub struct Outcome {
    /// Bytes the receiver confirmed, round trips, connections or requests.
    pub units: u64,
    /// Units that failed.
    pub failed: u64,
    /// Time from the first to the last unit, in seconds.
    pub secs: f64,
    /// Median time of a unit, in microseconds (0 for bulk).
    pub p50_us: f64,
    /// 99th percentile of the same.
    pub p99_us: f64,
}

/// One way to load a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// As many bytes as go through, one direction.
    Bulk,
    /// 64 bytes there and back, one after another.
    Ping,
    /// Connect, one byte there and back, closed by the server.
    Connect,
    /// HTTP/1.1 GET on connections kept open.
    Http,
}

impl Kind {
    /// As the command line spells it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Bulk => "bulk",
            Kind::Ping => "ping",
            Kind::Connect => "connect",
            Kind::Http => "http",
        }
    }
}

/// Bytes per ping.
const PING: usize = 64;
/// Bytes per write of bulk.
const CHUNK: usize = 256 * 1024;
/// Longest wait for a peer before a unit counts as failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Loads `to` from `threads` threads for about `time`.
pub fn run(kind: Kind, to: SocketAddr, threads: u16, time: Duration) -> Result<Outcome> {
    let start = Instant::now();
    let workers: Vec<_> = (0..threads)
        .map(|_| thread::spawn(move || work(kind, to, start + time)))
        .collect();
    let mut sum = Work::default();
    for worker in workers {
        let done = worker.join().ok().context("a load thread panicked")??;
        sum.units += done.units;
        sum.failed += done.failed;
        sum.times.extend(done.times);
    }
    let secs = start.elapsed().as_secs_f64();
    sum.times.sort_unstable();
    let at = |share: f64| percentile(&sum.times, share).as_secs_f64() * 1e6;
    Ok(Outcome {
        units: sum.units,
        failed: sum.failed,
        secs,
        p50_us: at(0.50),
        p99_us: at(0.99),
    })
}

#[derive(Default)]
struct Work {
    units: u64,
    failed: u64,
    times: Vec<Duration>,
}

fn work(kind: Kind, to: SocketAddr, until: Instant) -> Result<Work> {
    match kind {
        Kind::Bulk => bulk(to, until),
        Kind::Ping => repeat(dial(to)?, until, ping),
        Kind::Http => repeat(BufReader::new(dial(to)?), until, |stream| {
            request(stream, to)
        }),
        Kind::Connect => connects(to, until),
    }
}

fn dial(to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn bulk(to: SocketAddr, until: Instant) -> Result<Work> {
    let mut stream = dial(to).with_context(|| format!("connect to {to}"))?;
    let chunk = vec![0x5a; CHUNK];
    let mut sent = 0u64;
    while Instant::now() < until {
        stream.write_all(&chunk).context("sending bulk")?;
        sent += CHUNK as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut count = [0; 8];
    stream
        .read_exact(&mut count)
        .context("waiting for the receiver's count")?;
    let units = u64::from_be_bytes(count);
    ensure!(units == sent, "{sent} bytes sent, but {units} arrived");
    Ok(Work {
        units,
        ..Work::default()
    })
}

/// Repeats one unit on one open stream; the first failure is an error, since nothing after it would mean anything.
fn repeat<S>(
    mut stream: S,
    until: Instant,
    unit: impl Fn(&mut S) -> std::io::Result<()>,
) -> Result<Work> {
    // The first unit builds the tunnel; it is not what this measures.
    unit(&mut stream).context("first round trip")?;
    let mut work = Work::default();
    while Instant::now() < until {
        let start = Instant::now();
        unit(&mut stream).context("round trip")?;
        work.times.push(start.elapsed());
        work.units += 1;
    }
    Ok(work)
}

fn ping(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut buffer = [0x42; PING];
    stream.write_all(&buffer)?;
    stream.read_exact(&mut buffer)
}

fn request(stream: &mut BufReader<TcpStream>, to: SocketAddr) -> std::io::Result<()> {
    let get = format!("GET / HTTP/1.1\r\nhost: {to}\r\n\r\n");
    stream.get_mut().write_all(get.as_bytes())?;
    let (mut length, mut line) = (0, String::new());
    loop {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.trim().parse().map_err(std::io::Error::other)?;
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut body = [0; 4096];
    let body = body
        .get_mut(..length)
        .ok_or_else(|| std::io::Error::other("body larger than expected"))?;
    stream.read_exact(body)
}

fn connects(to: SocketAddr, until: Instant) -> Result<Work> {
    let mut work = Work::default();
    while Instant::now() < until {
        let start = Instant::now();
        let one = dial(to).and_then(|mut stream| {
            stream.write_all(b"x")?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            if answer == b"x" {
                Ok(())
            } else {
                Err(std::io::ErrorKind::InvalidData.into())
            }
        });
        match one {
            Ok(()) => {
                work.units += 1;
                work.times.push(start.elapsed());
            }
            Err(_) => work.failed += 1,
        }
    }
    Ok(work)
}

/// The value below which `share` of a sorted list lies; zero for an empty one.
fn percentile(sorted: &[Duration], share: f64) -> Duration {
    let last = sorted.len().saturating_sub(1);
    sorted
        .get((last as f64 * share).round() as usize)
        .copied()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_small_lists() {
        let list: Vec<Duration> = (1..=100).map(Duration::from_micros).collect();
        assert_eq!(percentile(&list, 0.0), Duration::from_micros(1));
        assert_eq!(percentile(&list, 0.5), Duration::from_micros(51));
        assert_eq!(percentile(&list, 0.99), Duration::from_micros(99));
        assert_eq!(percentile(&[], 0.5), Duration::ZERO);
    }
}
