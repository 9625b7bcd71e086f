//! The daemon that runs here, by what its own endpoints say. Leaves what they say to the files that make it.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use capture::probe::Finding;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::report::span;
use crate::config::Config;

mod dump;
mod numbers;

/// Most time for a connection on this machine.
const CONNECT_MAX: Duration = Duration::from_millis(500);
/// Most time for an answer: the dump of a large mesh takes a while.
const ANSWER_MAX: Duration = Duration::from_secs(8);
/// Most bytes of an answer that are read.
const ANSWER_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Ports where the settings cannot be read.
const READINESS_PORT: u16 = 15021;
const STATS_PORT: u16 = 15020;
/// Most processes that are looked at for other daemons.
const PROCESSES_MAX: usize = 65_536;

/// Whether anything takes connections at the admin endpoint.
pub async fn answers(admin: SocketAddr) -> bool {
    matches!(
        timeout(CONNECT_MAX, TcpStream::connect(admin)).await,
        Ok(Ok(_))
    )
}

/// What the daemon says of itself, or that there is none.
pub async fn findings(admin: SocketAddr, config: Option<&Config>, running: bool) -> Vec<Finding> {
    let host_proc = config.map_or(Path::new("/proc"), |config| &config.capture.host_proc);
    let others = daemons(host_proc);
    if !running {
        let detail = format!("no answer at {admin}: none runs here, or --admin says where");
        let mut found = vec![Finding::ok("daemon", detail)];
        found.extend(others);
        return found;
    }
    let at = |port| SocketAddr::new(admin.ip(), port);
    let readiness = at(config.map_or(READINESS_PORT, |config| config.readiness_port));
    let stats = at(config.map_or(STATS_PORT, |config| config.stats_port));
    let (ready, dump, metrics) = tokio::join!(
        get(readiness, "/healthz/ready"),
        get(admin, "/config_dump"),
        get(stats, "/metrics")
    );
    let mut found = vec![readiness_of(ready)];
    match dump.and_then(|(_, body)| dump::Dump::parse(&body)) {
        Ok(dump) => found.extend(dump.findings(SystemTime::now())),
        Err(error) => found.push(Finding::failed(
            "state",
            format!("{error:#}"),
            "is that the admin endpoint of a ztunnel (--admin)?",
        )),
    }
    match metrics {
        Ok((_, body)) => found.extend(numbers::findings(&String::from_utf8_lossy(&body))),
        Err(error) => found.push(Finding::warning(
            "metrics",
            format!("{error:#}"),
            "set STATS_PORT as the daemon has it",
        )),
    }
    found.extend(others);
    found
}

fn readiness_of(answer: anyhow::Result<(u16, Bytes)>) -> Finding {
    const NAME: &str = "ready";
    match answer {
        Ok((200, _)) => Finding::ok(NAME, "yes"),
        Ok((_, body)) => Finding::failed(
            NAME,
            String::from_utf8_lossy(&body).trim().to_owned(),
            "what is pending stands below, or in the daemon's log",
        ),
        Err(error) => Finding::failed(
            NAME,
            format!("{error:#}"),
            "data threads that are stuck do not answer; set READINESS_PORT as the daemon has it",
        ),
    }
}

/// GET, and the whole answer.
async fn get(to: SocketAddr, path: &str) -> anyhow::Result<(u16, Bytes)> {
    let work = async {
        let stream = timeout(CONNECT_MAX, TcpStream::connect(to))
            .await
            .context("no connection")??;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let request = Request::get(path)
            .header("host", to.to_string())
            .body(Empty::<Bytes>::new())?;
        let exchange = async {
            let answer = sender.send_request(request).await?;
            let status = answer.status().as_u16();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX);
            let body = body.collect().await.map_err(anyhow::Error::from_boxed)?;
            anyhow::Ok((status, body.to_bytes()))
        };
        tokio::pin!(connection);
        tokio::select! {
            biased;
            done = exchange => done,
            ended = &mut connection => {
                ensure!(ended.is_err(), "the connection ended early");
                ended.map(|()| (0, Bytes::new())).map_err(Into::into)
            }
        }
    };
    timeout(ANSWER_MAX, work)
        .await
        .unwrap_or_else(|_| anyhow::bail!("no answer within {ANSWER_MAX:?}"))
        .with_context(|| format!("http://{to}{path}"))
}

/// Daemons by their processes, when there are several.
fn daemons(host_proc: &Path) -> Option<Finding> {
    let processes = std::fs::read_dir(host_proc).into_iter().flatten().flatten();
    let mut pids: Vec<u32> = processes
        .take(PROCESSES_MAX)
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let name = std::fs::read_to_string(entry.path().join("comm")).ok()?;
            let command = std::fs::read(entry.path().join("cmdline")).ok()?;
            (name.trim() == "ztunnel" && serves(&command)).then_some(pid)
        })
        .collect();
    pids.sort_unstable();
    if pids.len() < 2 {
        return None;
    }
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    Some(Finding::warning(
        "processes",
        format!("{} daemons: {}", pids.len(), pids.join(", ")),
        "after an upgrade the old one stays until its connections have ended; two that stay belong to two DaemonSets",
    ))
}

/// Whether a command line, its words ended by NULs, is that of a daemon.
fn serves(command: &[u8]) -> bool {
    let mut words = command.split(|byte| *byte == 0);
    matches!(words.nth(1), None | Some(b"" | b"proxy"))
}

/// Seconds since the epoch of a time such as `2026-08-01T12:00:00Z` (RFC 3339, whole seconds, UTC).
fn time(text: &str) -> Option<SystemTime> {
    let (date, clock) = text.strip_suffix('Z')?.split_once('T')?;
    let numbers = |text: &str, mark: char| -> Option<[u64; 3]> {
        let mut parts = text.split(mark).map(|part| part.parse().ok());
        let three = [parts.next()??, parts.next()??, parts.next()??];
        parts.next().is_none().then_some(three)
    };
    let ([year, month, day], [hour, minute, second]) = (numbers(date, '-')?, numbers(clock, ':')?);
    let valid = (1970..10_000).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !valid {
        return None;
    }
    // years begin in March, so that the leap day is a year's last
    let (y, m) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1;
    // days from 1 March of the year 0 to 1 January 1970
    let days = days.checked_sub(719_468)?;
    let seconds = ((days * 24 + hour) * 60 + minute) * 60 + second;
    Some(UNIX_EPOCH + Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_certificates() {
        let cases = [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2000-02-29T23:59:59Z", Some(951_868_799)),
            ("2026-08-01T12:00:00Z", Some(1_785_585_600)),
            ("1969-12-31T00:00:00Z", None),
            ("2026-13-01T00:00:00Z", None),
            ("2026-08-01 12:00:00", None),
            ("", None),
        ];
        for (text, seconds) in cases {
            let expected = seconds.map(|s| UNIX_EPOCH + Duration::from_secs(s));
            assert_eq!(time(text), expected, "{text}");
        }
    }

    #[test]
    fn command_lines() {
        for (command, expected) in [
            (&b"/usr/bin/ztunnel\0"[..], true),
            (b"ztunnel\0proxy\0ztunnel\0", true),
            (b"ztunnel\0check\0-o\0json\0", false),
            (b"ztunnel\0version\0", false),
        ] {
            assert_eq!(serves(command), expected);
        }
    }
}
