//! The bearer token that says to the control plane who we are. Never printed.
//!
//! Leaves to others: where the token lies (`ztunnel`), and when it is sent (`channel`).

use std::fmt;
use std::path::PathBuf;

use http::HeaderValue;
use zeroize::Zeroizing;

use crate::file::{self, ReadError};

/// Largest token. Servers bound all headers of a request to a few kilobytes.
const TOKEN_BYTES_MAX: u64 = 16 * 1024;

/// Where the bearer token comes from (`AUTH_TOKEN`).
#[derive(Clone, PartialEq, Eq)]
pub enum Token {
    /// A file, read again for each call: tokens rotate.
    File(PathBuf),
    /// The token itself.
    Inline(String),
}

impl Token {
    /// The value of the header `authorization`, marked as secret. The bytes are taken as they are, nothing is trimmed.
    pub(crate) fn bearer(&self) -> Result<HeaderValue, TokenError> {
        let token = Zeroizing::new(match self {
            Self::File(path) => {
                file::read(path, TOKEN_BYTES_MAX).map_err(|cause| TokenError::Read {
                    path: path.clone(),
                    cause,
                })?
            }
            Self::Inline(text) => text.clone().into_bytes(),
        });
        if token.is_empty() {
            return Err(TokenError::Empty { of: self.origin() });
        }
        let mut value = Zeroizing::new(b"Bearer ".to_vec());
        value.extend_from_slice(&token);
        let mut header = HeaderValue::from_bytes(&value)
            .map_err(|_| TokenError::NotAHeader { of: self.origin() })?;
        header.set_sensitive(true);
        Ok(header)
    }

    fn origin(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Inline(_) => "the settings".to_owned(),
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Inline(_) => f.write_str("Inline([redacted])"),
        }
    }
}

/// Why there is no token to send. Never holds any of it.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("read token from {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: ReadError,
    },
    /// Nothing in it.
    #[error("the token in {of} is empty")]
    Empty {
        /// Where it comes from.
        of: String,
    },
    /// It holds bytes that no HTTP header may hold, such as a line end.
    #[error("the token in {of} holds bytes that cannot be in a header, such as a line end")]
    NotAHeader {
        /// Where it comes from.
        of: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_again_each_time_and_never_trimmed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let token = Token::File(path.clone());
        let error = crate::cause::chain(&token.bearer().unwrap_err());
        assert!(error.contains("token: No such file"), "{error}");
        for (content, expected) in [
            ("abc", Some("Bearer abc")),
            (" a b ", Some("Bearer  a b ")),
            ("", None),
            ("abc\n", None),
            ("a\0b", None),
        ] {
            std::fs::write(&path, content).unwrap();
            match (token.bearer(), expected) {
                (Ok(value), Some(expected)) => {
                    assert_eq!(value.as_bytes(), expected.as_bytes());
                    assert!(value.is_sensitive());
                }
                (Err(error), None) => assert!(error.to_string().contains("token in"), "{error}"),
                (got, _) => panic!("{content:?}: {got:?}"),
            }
        }
    }

    #[test]
    fn a_token_never_prints() {
        let secret = "s3cr3t";
        let token = Token::Inline(secret.into());
        assert!(!format!("{token:?}").contains(secret));
        let broken = Token::Inline(format!("{secret}\n"));
        let error = broken.bearer().unwrap_err();
        assert!(!format!("{error} {error:?}").contains(secret));
        assert!(!format!("{:?}", token.bearer().unwrap()).contains(secret));
    }
}
