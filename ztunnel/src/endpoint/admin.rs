//! The admin endpoint, on loopback only: the dump, the log levels, the shutdown.

use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, StatusCode};
use telemetry::log::LogHandle;
use tokio::sync::watch;

use super::{Answer, empty, text, typed};
use crate::dump::Dumper;

const INDEX: &str = "<!doctype html>
<html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">
<title>ztunnel admin</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:2rem auto;padding:0 1rem}code{background:#8882;padding:.1em .3em}</style>
<h1>ztunnel</h1>
<ul>
<li><a href=\"config_dump\">config_dump</a>: workloads, services, policies, certificates, pods, refusals</li>
<li><code>POST /logging</code>: show log levels; <code>POST /logging?level=access=debug,info</code>: change them; <code>POST /logging?reset</code></li>
<li><code>POST /quitquitquit</code>: end gracefully</li>
</ul></html>
";

const LOGGING_USAGE: &str = "usage: POST /logging                              list the current log level
usage: POST /logging?level=<level>                change the default level (off, error, warn, info, debug, trace)
usage: POST /logging?level=<target>=<level>,...   change the level of targets; <target>:<level> works as well
usage: POST /logging?reset                        back to the levels at start
";

/// What the admin endpoint shows and does.
#[derive(Clone)]
pub struct Admin {
    /// makes the dump
    pub dumper: Dumper,
    /// changes log levels
    pub log: LogHandle,
    /// starts the graceful shutdown
    pub quit: watch::Sender<bool>,
}

impl Admin {
    /// Answers one request.
    pub async fn answer(self, request: Request<Incoming>) -> Answer {
        let post = request.method() == Method::POST;
        match request.uri().path() {
            "/" => typed(StatusCode::OK, "text/html; charset=utf-8", INDEX),
            "/config_dump" => match self.dumper.json().await {
                Ok(json) => typed(StatusCode::OK, "application/json", Bytes::from(json)),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            },
            "/logging" if post => self.logging(request.uri().query().unwrap_or_default()),
            "/logging" => text(StatusCode::METHOD_NOT_ALLOWED, LOGGING_USAGE),
            "/quitquitquit" if post => {
                self.quit.send_replace(true);
                text(StatusCode::OK, "shutdown now\n")
            }
            "/quitquitquit" => empty(StatusCode::METHOD_NOT_ALLOWED),
            _ => empty(StatusCode::NOT_FOUND),
        }
    }

    fn logging(&self, query: &str) -> Answer {
        let pairs: Vec<_> = form_urlencoded::parse(query.as_bytes()).collect();
        let level = pairs
            .iter()
            .rev()
            .find(|(key, _)| key == "level")
            .map_or("", |(_, value)| value.as_ref());
        let reset = pairs.iter().any(|(key, _)| key == "reset");
        let changed = match (reset, level) {
            (true, _) => self.log.reset(level),
            (false, "") => Ok(self.log.current()),
            (false, _) => self.log.change(level),
        };
        match changed {
            Ok(filter) => text(StatusCode::OK, format!("current log level is {filter}\n")),
            Err(_) => text(
                StatusCode::BAD_REQUEST,
                format!("Invalid level provided: {level}\n{LOGGING_USAGE}"),
            ),
        }
    }
}
