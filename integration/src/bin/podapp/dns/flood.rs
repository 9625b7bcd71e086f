//! Many questions at a steady rate, and what becomes of each.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::message::{HEAD, question};

/// Sockets, each with a thread of its own.
const SOCKETS: u32 = 2;
/// How long answers may still come after the last question.
const GRACE: Duration = Duration::from_secs(3);
/// Most time that a socket waits for an answer while questions are due.
const TURN: Duration = Duration::from_millis(1);

/// What is asked, and how fast.
#[derive(Clone)]
pub struct Flood {
    pub server: SocketAddr,
    /// asked in turn, for IPv4 addresses
    pub names: Vec<String>,
    /// questions each second
    pub rate: u32,
    pub time: Duration,
}

/// Questions and answers of one socket.
#[derive(Default)]
struct Tally {
    sent: usize,
    unsent: usize,
    /// answers that were no address
    wrong: usize,
    /// of each right answer, in microseconds
    took: Vec<u64>,
}

impl Flood {
    /// `sent`, `answered`, `wrong`, `lost`, `unsent`, and of the right answers `p50_us`, `p99_us`, `max_us`.
    pub fn run(&self) -> io::Result<Value> {
        let threads = (0..SOCKETS).map(|_| {
            let part = self.clone();
            thread::spawn(move || part.one_socket())
        });
        let threads: Vec<_> = threads.collect();
        let mut all = Tally::default();
        for thread in threads {
            let part = thread
                .join()
                .map_err(|_| io::Error::other("a thread panicked"))??;
            all.sent += part.sent;
            all.unsent += part.unsent;
            all.wrong += part.wrong;
            all.took.extend(part.took);
        }
        all.took.sort_unstable();
        let took = &all.took;
        let at =
            |share: usize| took.get((took.len() * share / 100).min(took.len().saturating_sub(1)));
        Ok(json!({
            "ok": true,
            "sent": all.sent,
            "answered": took.len(),
            "wrong": all.wrong,
            "lost": all.sent.saturating_sub(took.len() + all.wrong),
            "unsent": all.unsent,
            "p50_us": at(50),
            "p99_us": at(99),
            "max_us": took.last(),
        }))
    }

    fn one_socket(&self) -> io::Result<Tally> {
        let any = if self.server.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let socket = UdpSocket::bind(any)?;
        socket.connect(self.server)?;
        socket.set_read_timeout(Some(TURN))?;
        let each = Duration::from_secs(1) * SOCKETS / self.rate.max(1);
        let (start, mut tally) = (Instant::now(), Tally::default());
        // the id is the number of the question; a flood of more than that many on one socket is refused by the caller
        let mut asked_at = vec![None; usize::from(u16::MAX) + 1];
        let mut number = 0_u16;
        while start.elapsed() < self.time && number < u16::MAX {
            while start + each * u32::from(number) <= Instant::now() && number < u16::MAX {
                let name = &self.names[usize::from(number) % self.names.len()];
                asked_at[usize::from(number)] = Some(Instant::now());
                match socket.send(&question(number, name)) {
                    Ok(_) => tally.sent += 1,
                    Err(_) => tally.unsent += 1,
                }
                number += 1;
                tally.take(&socket, &mut asked_at, false);
            }
            tally.take(&socket, &mut asked_at, true);
        }
        let end = Instant::now() + GRACE;
        while tally.took.len() + tally.wrong < tally.sent && Instant::now() < end {
            tally.take(&socket, &mut asked_at, true);
        }
        Ok(tally)
    }
}

impl Tally {
    /// Takes what has come; waits for a first one if it may.
    fn take(&mut self, socket: &UdpSocket, asked_at: &mut [Option<Instant>], may_wait: bool) {
        let mut buf = [0; 4096];
        // both ways are settings of the socket, and cannot fail on an open one
        let _ = socket.set_nonblocking(!may_wait);
        while let Ok(n) = socket.recv(&mut buf) {
            let id = u16::from_be_bytes([buf[0], buf[1]]);
            let Some(since) = asked_at[usize::from(id)].take() else {
                continue;
            };
            let is_right = n > HEAD && buf[3] & 0x0f == 0 && buf[6..8] != [0, 0];
            match is_right {
                true => self
                    .took
                    .push(u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)),
                false => self.wrong += 1,
            }
            let _ = socket.set_nonblocking(true);
        }
    }
}
