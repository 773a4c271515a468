//! Texts of others, cut to a length. Whoever sends a text chooses how long it is; no log line, error or event may grow
//! with that.

use std::borrow::Cow;

/// Longest text of a server that an error keeps. A refusal of the API server names each invalid field in one sentence;
/// an event of Kubernetes holds 1 KiB, and a log line should still be read by a person.
pub const MAX_TEXT: usize = 4 * 1024;

/// The text, or its first `most` bytes and how many are left out. It is cut between two characters.
pub fn cut(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return Cow::Borrowed(text);
    }
    let kept = &text[..text.floor_char_boundary(most)];
    Cow::Owned(format!("{kept}… ({} more bytes)", text.len() - kept.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::short("abc", 3, "abc")]
    #[case::long("abcd", 3, "abc… (1 more bytes)")]
    #[case::between_characters("aéb", 2, "a… (3 more bytes)")]
    #[case::nothing("é", 1, "… (2 more bytes)")]
    fn a_text_is_cut_between_characters(#[case] text: &str, #[case] most: usize, #[case] expected: &str) {
        assert_eq!(cut(text, most), expected);
    }
}
