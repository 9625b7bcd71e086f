//! The metrics endpoint: OpenMetrics text on the two customary paths.

use hyper::body::{Bytes, Incoming};
use hyper::header::ACCEPT;
use hyper::{Request, StatusCode};
use telemetry::metrics::Registry;

use super::{Answer, empty, typed};

/// Answers a scrape.
pub fn answer(registry: &Registry, request: &Request<Incoming>) -> Answer {
    match request.uri().path() {
        "/metrics" | "/stats/prometheus" => {
            let accept = request
                .headers()
                .get_all(ACCEPT)
                .iter()
                .filter_map(|v| v.to_str().ok());
            let (content_type, text) = registry.encode(accept);
            typed(StatusCode::OK, content_type, Bytes::from(text))
        }
        _ => empty(StatusCode::NOT_FOUND),
    }
}
