//! An error with its causes, as one line of a log.

/// The error and its causes, in one line; a cause that the text already contains is left out.
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
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
}
