//! Which of the guest's Services get one of the load balancers that its operator allows: those that have one keep it,
//! then the oldest. Pure.

#![deny(clippy::disallowed_types, reason = "a planner knows no client, clock or environment")]

/// A Service that needs a load balancer and has none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Waiting {
    /// When it was created, in seconds since 1970. `None` sorts first.
    pub created: Option<i64>,
    /// Its UID.
    pub uid: String,
}

/// The UIDs of those that may have a load balancer now: `max` are allowed in all, and `taken` of them are in use.
pub fn admitted(max: usize, taken: usize, mut waiting: Vec<Waiting>) -> Vec<String> {
    waiting.sort_unstable();
    waiting.into_iter().take(max.saturating_sub(taken)).map(|waiting| waiting.uid).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    fn waiting(ages: &[i64]) -> Vec<Waiting> {
        ages.iter().map(|age| Waiting { created: Some(*age), uid: format!("u{age}") }).collect()
    }

    #[rstest]
    #[case(2, 0, &["u1", "u2"])]
    #[case(2, 1, &["u1"])]
    #[case(2, 2, &[])]
    #[case(2, 9, &[])]
    #[case(0, 0, &[])]
    #[case(9, 0, &["u1", "u2", "u3"])]
    fn the_oldest_get_what_is_left(#[case] max: usize, #[case] taken: usize, #[case] wanted: &[&str]) {
        assert_eq!(admitted(max, taken, waiting(&[3, 1, 2])), wanted);
    }

    proptest! {
        /// In whatever order Services are admitted, there are never more than allowed, and no place stays free.
        #[test]
        fn places_are_given_once_and_all(max in 0usize..6, taken in 0usize..8, ages in proptest::collection::btree_set(0i64..50, 0..8)) {
            let mut left = waiting(&ages.into_iter().collect::<Vec<_>>());
            let (mut given, wanting) = (taken, left.len());
            while let Some(next) = admitted(max, given, left.clone()).pop() {
                left.retain(|waiting| waiting.uid != next);
                given += 1;
            }
            prop_assert_eq!(given, taken.max(max.min(taken + wanting)));
        }
    }
}
