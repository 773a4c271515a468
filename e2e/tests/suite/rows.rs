//! Which rows of a matrix run: of each kind one, or all where all tests were asked for.

use std::sync::atomic::{AtomicBool, Ordering};

static ALL: AtomicBool = AtomicBool::new(false);

/// From now on all rows run.
pub fn run_all() {
    ALL.store(true, Ordering::Relaxed);
}

/// Whether all rows run.
pub fn all() -> bool {
    ALL.load(Ordering::Relaxed)
}

/// What a row of a matrix shows beside the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
    /// Something that no other row shows.
    Kind,
    /// The same as another row, under another name or in another place; says which and why.
    Like(&'static str),
}

/// A matrix.
pub type Rows<T> = Vec<(Row, T)>;

/// The rows that run.
pub fn chosen<T>(table: impl IntoIterator<Item = (Row, T)>) -> Vec<T> {
    table.into_iter().filter(|(row, _)| all() || *row == Row::Kind).map(|(_, row)| row).collect()
}
