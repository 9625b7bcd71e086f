//! What was asked, in order, for tests to look at and to wait for.

use std::time::Instant;

use serde_json::Value;

use super::route::Ask;
use crate::record::{self, Entry};

/// One request and how it was answered.
#[derive(Debug, Clone)]
pub struct Request {
    /// when it came
    pub at: Instant,
    /// what was asked; none = no resource
    pub ask: Option<Ask>,
    /// method and path
    pub line: String,
    /// `User-Agent`
    pub agent: String,
    /// `Accept`
    pub accept: String,
    /// `Content-Type`
    pub content_type: String,
    /// body, if it is JSON
    pub body: Value,
    /// status of the answer; 0 = none was given
    pub status: u16,
}

impl Request {
    /// Whether it asked for that verb on that resource.
    pub fn is(&self, verb: &str, resource: &str) -> bool {
        let ask = self.ask.as_ref();
        ask.is_some_and(|ask| ask.verb == verb && ask.resource == resource)
    }

    /// Name of the object it was about.
    pub fn name(&self) -> &str {
        let name = self.ask.as_ref().and_then(|ask| ask.name.as_deref());
        name.unwrap_or_default()
    }

    /// The annotation that a patch sets: none = it does not touch it, null = it removes it.
    pub fn annotation(&self, key: &str) -> Option<&Value> {
        self.body["metadata"]["annotations"].get(key)
    }
}

impl Entry for Request {
    const BY: &'static str = "API server";

    fn line(&self) -> String {
        format!("{} {} {}", self.status, self.line, self.body)
    }
}

/// All requests so far; one is added when it is answered (a watch: when its stream begins).
pub type Record = record::Record<Request>;
