//! The bearer token for the control plane: there, readable, and not expired. Its signature is for others to judge.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use capture::probe::Finding;
use control::channel::Token;
use serde::Deserialize;

use super::report::span;

/// Audience of the tokens that istiod takes, unless it was told otherwise.
const AUDIENCE: &str = "istio-ca";
/// Largest token; a larger one is not sent either.
const TOKEN_BYTES_MAX: u64 = 16 * 1024;
/// kubelet renews a token when a fifth of its time is left, so one with less than this is not being renewed.
const REMAINING_MIN: Duration = Duration::from_secs(60);
const NAME: &str = "token";
const RENEW: &str = "mount a projected service account token with the audience istio-ca (kubelet renews it), or set AUTH_TOKEN to where one is";

/// The claims that are looked at (RFC 7519, section 4.1).
#[derive(Deserialize)]
struct Claims {
    exp: Option<f64>,
    nbf: Option<f64>,
    #[serde(default)]
    aud: Audience,
}

#[derive(Default, Deserialize)]
#[serde(untagged)]
enum Audience {
    #[default]
    None,
    One(String),
    Many(Vec<String>),
}

/// The token as it is now.
pub fn finding(token: Option<&Token>) -> Finding {
    let text = match token {
        None => {
            let hint =
                format!("istiod refuses calls without one unless it was told not to: {RENEW}");
            return Finding::warning(
                NAME,
                "none is set and none is where Kubernetes mounts it",
                hint,
            );
        }
        Some(Token::Inline(text)) => Ok(text.clone()),
        Some(Token::File(path)) => {
            let size = std::fs::metadata(path).map_or(0, |meta| meta.len());
            if size > TOKEN_BYTES_MAX {
                Err(format!("{} is no token: {size} bytes", path.display()))
            } else {
                std::fs::read_to_string(path)
                    .map_err(|error| format!("{}: {error}", path.display()))
            }
        }
    };
    match text {
        Ok(text) => judge(&text, SystemTime::now()),
        Err(error) => Finding::failed(NAME, error, RENEW),
    }
}

fn judge(text: &str, now: SystemTime) -> Finding {
    if text.is_empty() {
        return Finding::failed(NAME, "empty", RENEW);
    }
    if text.bytes().any(|byte| byte.is_ascii_control()) {
        let hint = "write it without a line end (printf %s): it is sent as it stands";
        return Finding::failed(NAME, "holds a line end or another control character", hint);
    }
    let Some(claims) = claims(text) else {
        let hint = "that is right only if the control plane takes other kinds of tokens";
        return Finding::warning(NAME, "not a JWT, so nothing can be said about it", hint);
    };
    let at = |seconds: f64| Duration::try_from_secs_f64(seconds).map(|since| UNIX_EPOCH + since);
    if let Some(Ok(from)) = claims.nbf.map(at)
        && let Ok(early) = from.duration_since(now)
    {
        let hint = "the clock of this machine or of the API server is wrong";
        return Finding::failed(NAME, format!("not valid for another {}", span(early)), hint);
    }
    let left = match claims.exp.map(at) {
        Some(Ok(until)) => match until.duration_since(now) {
            Ok(left) if left < REMAINING_MIN => {
                return Finding::failed(NAME, format!("expires in {}", span(left)), RENEW);
            }
            Ok(left) => format!("{} left", span(left)),
            Err(past) => {
                let detail = format!("expired {} ago", span(past.duration()));
                return Finding::failed(NAME, detail, RENEW);
            }
        },
        _ => "does not expire".to_owned(),
    };
    let audiences = match claims.aud {
        Audience::None => Vec::new(),
        Audience::One(one) => vec![one],
        Audience::Many(many) => many,
    };
    if !audiences.iter().any(|audience| audience == AUDIENCE) {
        let detail = format!("{left}, for {}", audiences.join(", "));
        let hint =
            format!("istiod takes tokens for {AUDIENCE} unless its TOKEN_AUDIENCES says otherwise");
        return Finding::warning(NAME, detail, hint);
    }
    Finding::ok(NAME, left)
}

/// The claims of a JWT, unverified; `None` when the text is none.
fn claims(text: &str) -> Option<Claims> {
    let mut parts = text.split('.');
    let (_, body, _) = (parts.next()?, parts.next()?, parts.next()?);
    let json = URL_SAFE_NO_PAD.decode(body.trim_end_matches('=')).ok()?;
    serde_json::from_slice(&json).ok()
}

#[cfg(test)]
mod tests {
    use capture::probe::Status;

    use super::*;

    #[test]
    fn tokens() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let jwt = |claims: &str| format!("e30.{}.sig", URL_SAFE_NO_PAD.encode(claims));
        let cases = [
            (
                jwt(r#"{"exp":1003600,"aud":["istio-ca"]}"#),
                Status::Ok,
                "1h left",
            ),
            (jwt(r#"{"aud":"istio-ca"}"#), Status::Ok, "does not expire"),
            (
                jwt(r#"{"exp":1003600,"aud":["api"]}"#),
                Status::Warning,
                "1h left, for api",
            ),
            (
                jwt(r#"{"exp":1000030,"aud":["istio-ca"]}"#),
                Status::Failed,
                "expires in 30s",
            ),
            (
                jwt(r#"{"exp":992800,"aud":["istio-ca"]}"#),
                Status::Failed,
                "expired 2h ago",
            ),
            (
                jwt(r#"{"nbf":1000600,"aud":"istio-ca"}"#),
                Status::Failed,
                "not valid for another 10m",
            ),
            (
                jwt(r#"{"exp":1e300,"aud":"istio-ca"}"#),
                Status::Ok,
                "does not expire",
            ),
            (
                jwt("[]"),
                Status::Warning,
                "not a JWT, so nothing can be said about it",
            ),
            (
                "opaque".to_owned(),
                Status::Warning,
                "not a JWT, so nothing can be said about it",
            ),
            (
                "opaque\n".to_owned(),
                Status::Failed,
                "holds a line end or another control character",
            ),
            (String::new(), Status::Failed, "empty"),
        ];
        for (token, status, detail) in cases {
            let found = judge(&token, now);
            assert_eq!(
                (found.status, found.detail.as_str()),
                (status, detail),
                "{token}"
            );
        }
    }

    #[test]
    fn where_it_comes_from() {
        let missing = Token::File("/nonexistent/token".into());
        let found = finding(Some(&missing));
        assert_eq!(found.status, Status::Failed);
        assert!(found.detail.starts_with("/nonexistent/token: No such file"));
        assert_eq!(finding(None).status, Status::Warning);
    }
}
