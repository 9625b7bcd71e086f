//! Lines as they reach the output.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, mpsc};

use telemetry::access::{Direction, Moment, Record};
use telemetry::log::{Format, LogHandle, build};
use tracing::Dispatch;

/// An output that can be read back.
#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Log {
    output: Output,
    handle: LogHandle,
    dispatch: Dispatch,
}

impl Log {
    fn new(format: Format, filter: Option<&str>) -> Self {
        let output = Output::default();
        let (handle, dispatch) = build(format, filter, Box::new(output.clone())).unwrap();
        Self {
            output,
            handle,
            dispatch,
        }
    }

    fn run(&self, log: impl FnOnce()) {
        tracing::dispatcher::with_default(&self.dispatch, log);
    }

    /// All lines so far, without their times.
    fn lines(&self) -> Vec<String> {
        assert!(self.handle.flush());
        let text = String::from_utf8(self.output.0.lock().unwrap().clone()).unwrap();
        text.lines().map(without_time).collect()
    }
}

/// Checks and cuts `2026-03-02T10:11:12.000123Z`, 27 bytes.
fn without_time(line: &str) -> String {
    let at = line.find("\"time\":\"").map_or(0, |at| at + 8);
    let shape: String = line[at..at + 27]
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    assert_eq!(shape, "0000-00-00T00:00:00.000000Z", "{line}");
    format!("{}{}", &line[..at], &line[at + 27..])
}

#[derive(Debug, thiserror::Error)]
#[error("outer")]
struct Outer(#[source] io::Error);

fn samples() {
    let error = Outer(io::Error::other("inner\nline"));
    tracing::info!(target: "proxy::outbound", "no fields");
    tracing::warn!(target: "h2::codec", peer = %"10.0.0.1:80", name = "va\"l", count = 7, ok = true, share = 0.5, list = ?[1, 2], absent = Option::<u64>::None, "some fields");
    tracing::error!(target: "ztunnel::admin", error = &error as &(dyn std::error::Error + 'static), "it failed");
    tracing::info!(target: "dns", domain = "a.b.");
    let outer = tracing::info_span!(target: "proxy", "proxy", wl = %"shop/web-0");
    let _outer = outer.enter();
    let inner = tracing::info_span!(target: "proxy", "outbound", id = tracing::field::Empty);
    inner.record("id", "00ff");
    let _inner = inner.enter();
    tracing::info!(target: "proxy", port = 1, "in spans\nforged");
    tracing::info!(target: "dns", query = "A");
    tracing::debug!(target: "proxy", "not shown");
}

#[test]
fn plain_lines() {
    let log = Log::new(Format::Plain, None);
    log.run(samples);
    assert_eq!(
        log.lines(),
        [
            "\tinfo\tproxy::outbound\tno fields\t",
            "\twarn\th2::codec\tsome fields\tpeer=10.0.0.1:80 name=\"va\\\"l\" count=7 ok=true share=0.5 list=[1, 2]",
            "\terror\tadmin\tit failed\terror=\"outer: inner\\\\nline\"",
            "\tinfo\tdns\tdomain=\"a.b.\"",
            "\tinfo\tproxy:proxy{wl=shop/web-0}:outbound{id=\"00ff\"}\tin spans\\nforged\tport=1",
            "\tinfo\tdns\tquery=\"A\"",
        ]
    );
}

#[test]
fn json_lines() {
    let log = Log::new(Format::Json, None);
    log.run(samples);
    let lines = log.lines();
    assert_eq!(
        lines,
        [
            r#"{"level":"info","time":"","scope":"ztunnel::proxy::outbound","message":"no fields"}"#,
            r#"{"level":"warn","time":"","scope":"h2::codec","message":"some fields","peer":"10.0.0.1:80","name":"va\"l","count":7,"ok":true,"share":0.5,"list":"[1, 2]"}"#,
            r#"{"level":"error","time":"","scope":"ztunnel::admin","message":"it failed","error":"outer: inner\\nline"}"#,
            r#"{"level":"info","time":"","scope":"dns","domain":"a.b."}"#,
            r#"{"level":"info","time":"","scope":"ztunnel::proxy","message":"in spans\nforged","port":1,"proxy":{"wl":"shop/web-0"},"outbound":{"id":"00ff"}}"#,
            r#"{"level":"info","time":"","scope":"dns","query":"A"}"#,
        ]
    );
    for line in lines {
        serde_json::from_str::<serde_json::Value>(&line).unwrap();
    }
}

#[test]
fn filter_changes_take_effect_at_once_and_on_both_logs() {
    let log = Log::new(Format::Plain, Some("info"));
    let access = log.handle.access();
    let record = Record::new(Moment::Opened, Direction::Inbound);
    let both = |mark: &'static str| {
        tracing::debug!(target: "identity::cache", mark);
        access.write(Record {
            service: Some(mark.into()),
            ..record.clone()
        });
    };
    // In the daemon the log is the global one; here it is in force on this thread only, also for the changes.
    log.run(|| {
        both("start");
        assert_eq!(
            log.handle.change("debug").unwrap(),
            "hickory_server::server=off,debug"
        );
        both("debug");
        assert_eq!(
            log.handle.change("access=info").unwrap(),
            "hickory_server::server=off,access=info,debug"
        );
        both("quiet");
        assert!(log.handle.change("ztunnel::identity=off,nonsense").is_err());
        both("kept");
        assert_eq!(
            log.handle.reset("").unwrap(),
            "hickory_server::server=off,info"
        );
        both("reset");
        assert_eq!(
            log.handle.reset("ztunnel::identity=trace").unwrap(),
            "hickory_server::server=off,ztunnel::identity=trace,info"
        );
        both("scoped");
        assert_eq!(
            log.handle.current(),
            "hickory_server::server=off,ztunnel::identity=trace,info"
        );
    });
    assert_eq!(
        log.lines(),
        [
            "\tdebug\tidentity::cache\tmark=\"debug\"",
            "\tdebug\taccess\tconnection opened\tdst.service=\"debug\" direction=\"inbound\"",
            "\tdebug\tidentity::cache\tmark=\"quiet\"",
            "\tdebug\tidentity::cache\tmark=\"kept\"",
            "\tdebug\tidentity::cache\tmark=\"scoped\"",
        ]
    );
}

#[test]
fn an_invalid_filter_is_refused_at_start() {
    assert!(build(Format::Plain, Some("info,proxy"), Box::new(io::sink())).is_err());
}

/// An output that stands still until it is told to go on.
struct Stuck(mpsc::Receiver<()>, Output);

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        self.1.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn nothing_is_lost_behind_a_slow_output() {
    /// More than the queue holds.
    const LINES: u64 = 25_000;
    let output = Output::default();
    let (go, wait) = mpsc::channel();
    let (handle, _dispatch) =
        build(Format::Plain, None, Box::new(Stuck(wait, output.clone()))).unwrap();
    let access = handle.access();
    let (done, queued) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        for n in 0..LINES {
            let mut record = Record::new(Moment::Complete, Direction::Outbound);
            record.tally.sent_bytes = n;
            access.write(record);
        }
        done.send(()).unwrap();
    });
    assert!(
        queued
            .recv_timeout(std::time::Duration::from_millis(300))
            .is_err(),
        "a full queue must hold back who logs"
    );
    drop(go);
    thread.join().unwrap();
    assert!(handle.flush());
    let text = String::from_utf8(output.0.lock().unwrap().clone()).unwrap();
    let numbers = text.lines().map(|line| {
        line.split("bytes_sent=")
            .nth(1)
            .unwrap()
            .split(' ')
            .next()
            .unwrap()
            .parse::<u64>()
            .unwrap()
    });
    assert!(numbers.eq(0..LINES));
}

/// An output that panics.
struct Broken;

impl Write for Broken {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        panic!("an output may not stop the process")
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_writer_that_is_gone_holds_nobody_back() {
    let (handle, _dispatch) = build(Format::Plain, None, Box::new(Broken)).unwrap();
    let access = handle.access();
    for _ in 0..25_000 {
        access.write(Record::new(Moment::Complete, Direction::Outbound));
    }
    assert!(!handle.flush());
}
