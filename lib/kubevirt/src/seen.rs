//! What is known of an object.

/// What is known of one object. A read that failed proves nothing, so it is never taken for an absence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Seen<T> {
    /// It was not read since it may have changed, or the read failed.
    #[default]
    Unseen,
    /// It does not exist, by a read that succeeded.
    Absent,
    /// It exists and has this value.
    Present(T),
}

impl<T> From<Option<T>> for Seen<T> {
    /// The answer of a read that succeeded.
    fn from(read: Option<T>) -> Self {
        read.map_or(Self::Absent, Self::Present)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_proves_an_absence() {
        assert_eq!(Seen::<u8>::default(), Seen::Unseen);
        assert_eq!(Seen::<u8>::from(None), Seen::Absent);
        assert_eq!(Seen::from(Some(1)), Seen::Present(1));
    }
}
