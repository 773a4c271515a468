//! What several fuzz targets share: an infra API in memory that judges each call, and small readers of inputs.

pub mod infra_api;

use std::str;

/// The input as text, if it is one.
pub fn text(input: &[u8]) -> Option<&str> {
    str::from_utf8(input).ok()
}

/// The first byte, which chooses what the rest is, and the rest.
pub fn chosen(input: &[u8]) -> Option<(u8, &[u8])> {
    input.split_first().map(|(first, rest)| (*first, rest))
}

/// Asserts that a text which others see is no longer than `serving::MAX_TEXT` promises, with the mark of the cut.
///
/// # Panics
/// The text is longer.
pub fn assert_bounded(text: &str) {
    const MARK: usize = 64;
    assert!(text.len() <= serving::MAX_TEXT + MARK, "a text of {} bytes", text.len());
}
