//! An error with its causes, as one line of a log.

use crate::{MAX_TEXT, cut};

/// The error and its causes, in one line; a cause that the text already contains is left out. It is cut to
/// [`MAX_TEXT`], because the text of a parser or of a server may quote any amount of what it was given.
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    let text = causes.fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    });
    cut(&text, MAX_TEXT).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Layer(&'static str, #[source] Option<Box<Layer>>);

    #[test]
    fn each_cause_is_written_once() {
        let below = Layer("refused", None);
        let middle = Layer("connect: refused", Some(Box::new(below)));
        let top = Layer("can't list Nodes", Some(Box::new(middle)));
        assert_eq!(chain(&top), "can't list Nodes: connect: refused");
    }

    #[test]
    fn a_cause_of_megabytes_does_not_fill_the_log() {
        #[derive(Debug, thiserror::Error)]
        #[error("{0}")]
        struct Long(String);
        let text = chain(&Long("x".repeat(3 << 20)));
        assert!(text.len() < MAX_TEXT + 64 && text.ends_with("more bytes)"), "{}", text.len());
    }
}
