//! How the API server says no: `Status` objects, with the words of the real one.

use serde_json::{Value, json};

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// HTTP status
    pub code: u16,
    /// machine-readable reason
    pub reason: &'static str,
    /// sentence
    pub message: String,
    /// resource or kind that it is about
    pub about: Option<String>,
    /// seconds after which to try again
    pub retry_after: Option<u32>,
}

impl Failure {
    fn new(code: u16, reason: &'static str, message: String) -> Self {
        Self {
            code,
            reason,
            message,
            about: None,
            retry_after: None,
        }
    }

    /// The same, about a resource.
    #[must_use]
    pub fn about(mut self, resource: &str) -> Self {
        self.about = Some(resource.to_owned());
        self
    }

    /// 400: the request makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message.into())
    }

    /// 401: no valid token.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized".to_owned())
    }

    /// 403: no rule allows it.
    pub fn forbidden(message: String) -> Self {
        Self::new(403, "Forbidden", message)
    }

    /// 404: there is no such object.
    pub fn not_found(resource: &str, name: &str) -> Self {
        let message = format!("{resource} \"{name}\" not found");
        Self::new(404, "NotFound", message).about(resource)
    }

    /// 404: there is no such resource.
    pub fn no_such_resource() -> Self {
        let message = "the server could not find the requested resource".to_owned();
        Self::new(404, "NotFound", message)
    }

    /// 405: the resource has no such verb.
    pub fn not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource".to_owned();
        Self::new(405, "MethodNotAllowed", message)
    }

    /// 406: no form of answer that the client takes.
    pub fn not_acceptable() -> Self {
        let message = "only the following media types are accepted: application/json, \
                       application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
        Self::new(406, "NotAcceptable", message.to_owned())
    }

    /// 409: it exists.
    pub fn exists(resource: &str, name: &str) -> Self {
        let message = format!("{resource} \"{name}\" already exists");
        Self::new(409, "AlreadyExists", message).about(resource)
    }

    /// 409: somebody was faster, or it is about another object of that name.
    pub fn conflict(resource: &str, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {resource} \"{name}\": {why}");
        Self::new(409, "Conflict", message).about(resource)
    }

    /// 410: what was asked for is too old.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message.into())
    }

    /// 413: the body is too large.
    pub fn too_large() -> Self {
        let message = "Request entity too large: limit is 3145728".to_owned();
        Self::new(413, "RequestEntityTooLarge", message)
    }

    /// 415: no such content type here.
    pub fn media_type(allowed: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            allowed.join(", ")
        );
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 422: the object is not valid.
    pub fn invalid(kind: &str, name: &str, why: &str) -> Self {
        let message = format!("{kind} \"{name}\" is invalid: {why}");
        Self::new(422, "Invalid", message).about(kind)
    }

    /// 504: a version that is not there yet.
    pub fn version_too_large(asked: u64, now: u64) -> Self {
        let message = format!("Too large resource version: {asked}, current: {now}");
        let mut failure = Self::new(504, "Timeout", message);
        failure.retry_after = Some(1);
        failure
    }

    /// Any status that a test wants.
    pub fn of_code(code: u16, retry_after: Option<u32>) -> Self {
        let (reason, message) = match code {
            403 => ("Forbidden", "forbidden: denied by an admission plugin"),
            409 => (
                "Conflict",
                "the object has been modified; please apply your changes",
            ),
            410 => ("Expired", "The resourceVersion is too old"),
            429 => (
                "TooManyRequests",
                "the server has received too many requests and has asked us to try again later",
            ),
            500 => (
                "InternalError",
                "Internal error occurred: etcdserver: leader changed",
            ),
            503 => (
                "ServiceUnavailable",
                "the server is currently unable to handle the request",
            ),
            504 => (
                "Timeout",
                "request did not complete within requested timeout",
            ),
            _ => ("Unknown", "unknown"),
        };
        let mut failure = Self::new(code, reason, message.to_owned());
        failure.retry_after = retry_after;
        failure
    }

    /// As it stands in a body or in a stream.
    pub fn status(&self) -> Value {
        let mut details = json!({});
        if let Some(about) = &self.about {
            details["kind"] = json!(about);
        }
        if let Some(seconds) = self.retry_after {
            details["retryAfterSeconds"] = json!(seconds);
        }
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "details": details, "code": self.code,
        })
    }
}
