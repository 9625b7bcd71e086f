//! An error with all its causes in one line, for logs, states and answers.

use std::error::Error;
use std::fmt::Write;

/// Deepest chain that is told.
const CAUSES_MAX: usize = 12;
/// How tonic introduces every error of a connection.
const SAYS_NOTHING: &str = "transport error";

/// `error`, then each cause that says something new.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    add(&mut text, Some(error));
    text
}

/// Appends to `text` each cause of `error` that it does not hold yet.
pub(crate) fn causes(text: &mut String, error: &(dyn Error + 'static)) {
    add(text, error.source());
}

fn add(text: &mut String, mut next: Option<&(dyn Error + 'static)>) {
    for _ in 0..CAUSES_MAX {
        let Some(error) = next else { return };
        let told = error.to_string();
        if told != SAYS_NOTHING && !text.contains(&told) {
            let colon = if text.is_empty() { "" } else { ": " };
            let _ = write!(text, "{colon}{told}"); // writing to a String cannot fail
        }
        next = error.source();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Link {
        text: &'static str,
        #[source]
        cause: Option<Box<Link>>,
    }

    fn link(text: &'static str, cause: Option<Link>) -> Link {
        Link {
            text,
            cause: cause.map(Box::new),
        }
    }

    #[test]
    fn each_cause_once() {
        let error = link(
            "dial",
            Some(link(
                "transport error",
                Some(link("refused", Some(link("refused", None)))),
            )),
        );
        assert_eq!(chain(&error), "dial: refused");
        assert_eq!(chain(&link("alone", None)), "alone");
    }
}
