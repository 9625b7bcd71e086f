//! Bodies of answers: whole, or a stream that goes on until somebody ends it, well or badly.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Response, StatusCode};
use hyper::body::{Body, Frame};
use serde_json::Value;
use tokio::sync::mpsc;

use super::status::Failure;

/// The connection is to be cut in the middle of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cut on purpose")]
pub struct Cut;

impl From<Infallible> for Cut {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// A body.
#[derive(Debug)]
pub enum Reply {
    /// all of it, until it is taken
    Whole(Option<Bytes>),
    /// piece by piece
    Stream(mpsc::Receiver<Result<Bytes, Cut>>),
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(pieces) => pieces
                .poll_recv(cx)
                .map(|piece| piece.map(|piece| piece.map(Frame::data))),
        }
    }
}

/// An answer of one JSON value.
pub fn json(code: u16, value: &Value) -> Response<Reply> {
    let bytes = Bytes::from(value.to_string());
    let mut answer = Response::new(Reply::Whole(Some(bytes)));
    *answer.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = answer.headers_mut();
    headers.insert(
        "content-type",
        http::HeaderValue::from_static("application/json"),
    );
    headers.insert(
        "cache-control",
        http::HeaderValue::from_static("no-cache, private"),
    );
    answer
}

/// A refusal.
pub fn failure(failure: &Failure) -> Response<Reply> {
    let mut answer = json(failure.code, &failure.status());
    if let Some(seconds) = failure.retry_after {
        let headers = answer.headers_mut();
        headers.insert("retry-after", http::HeaderValue::from(seconds));
    }
    answer
}

/// Plain text, for what is no resource.
pub fn plain(code: u16, text: &'static str) -> Response<Reply> {
    let mut answer = Response::new(Reply::Whole(Some(Bytes::from_static(text.as_bytes()))));
    *answer.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let kind = http::HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert("content-type", kind);
    answer
}

/// A stream of JSON lines.
pub fn stream(pieces: mpsc::Receiver<Result<Bytes, Cut>>) -> Response<Reply> {
    let mut answer = Response::new(Reply::Stream(pieces));
    let headers = answer.headers_mut();
    headers.insert(
        "content-type",
        http::HeaderValue::from_static("application/json"),
    );
    headers.insert(
        "cache-control",
        http::HeaderValue::from_static("no-cache, private"),
    );
    answer
}
