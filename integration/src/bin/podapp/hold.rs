//! One long connection to an echo server, in use all the time, that tells when and how it is cut.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;

use crate::line;

/// A connection that is held.
#[derive(Args)]
pub struct Hold {
    /// Where to: an echo server.
    #[arg(long)]
    to: SocketAddr,
    /// Pause between two exchanges, in milliseconds.
    #[arg(long, default_value_t = 20)]
    every_ms: u64,
    /// No answer for this long counts as cut, in milliseconds.
    #[arg(long, default_value_t = 5000)]
    timeout_ms: u64,
}

impl Hold {
    /// Prints `open <local address>`, `tick <n>` after each exchange, `longest <ms>` before it when no answer took as long before,
    /// `cut after <ms>ms: <why>` at the end.
    pub fn run(&self) -> Result<()> {
        let limit = Duration::from_millis(self.timeout_ms);
        let mut stream = TcpStream::connect_timeout(&self.to, limit).context("connect")?;
        stream.set_read_timeout(Some(limit)).context("options")?;
        stream.set_nodelay(true).context("options")?;
        line(&format!(
            "open {}",
            stream.local_addr().context("getsockname")?
        ));
        let since = Instant::now();
        let mut longest = 0;
        for n in 1u64.. {
            let asked = Instant::now();
            if let Err(why) = exchange(&mut stream, n) {
                line(&format!(
                    "cut after {}ms: {why}",
                    since.elapsed().as_millis()
                ));
                return Ok(());
            }
            let took = asked.elapsed().as_millis();
            if took > longest {
                longest = took;
                line(&format!("longest {took}"));
            }
            line(&format!("tick {n}"));
            thread::sleep(Duration::from_millis(self.every_ms));
        }
        Ok(())
    }
}

fn exchange(stream: &mut TcpStream, n: u64) -> std::io::Result<()> {
    stream.write_all(&n.to_be_bytes())?;
    let mut back = [0; 8];
    stream.read_exact(&mut back)?;
    if back == n.to_be_bytes() {
        Ok(())
    } else {
        Err(std::io::Error::other("wrong bytes"))
    }
}
