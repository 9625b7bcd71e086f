//! An error with all its causes in one line, for logs, states and answers.

use std::error::Error;
use std::fmt::Write;

/// Deepest chain that is told.
const CAUSES_MAX: usize = 12;

/// `error`, then each cause that says something new.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    causes(&mut text, error);
    text
}

/// Appends to `text` each cause of `error` that it does not hold yet.
pub(crate) fn causes(text: &mut String, error: &(dyn Error + 'static)) {
    let mut next = error.source();
    for _ in 0..CAUSES_MAX {
        let Some(cause) = next else { return };
        let told = cause.to_string();
        if !text.contains(&told) {
            let _ = write!(text, ": {told}"); // writing to a String cannot fail
        }
        next = cause.source();
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
                "transport",
                Some(link("refused", Some(link("refused", None)))),
            )),
        );
        assert_eq!(chain(&error), "dial: transport: refused");
        assert_eq!(chain(&link("alone", None)), "alone");
    }
}
