//! Which of the guest's Services get what is left of the operator's quota: those that have something keep it, then the
//! oldest come first. One that does not fit holds up no other. Pure.

#![deny(clippy::disallowed_types, reason = "a planner knows no client, clock or environment")]

use std::fmt;

use crate::{config::policy::GuestPolicy, wire::service::ServiceSpec};

/// What the quota counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Infra Services.
    LoadBalancers,
    /// Their ports.
    Ports,
    /// Their source ranges.
    SourceRanges,
}

/// In the order of [`Cost`] and [`Quota`].
const COUNTED: [Counted; 3] = [Counted::LoadBalancers, Counted::Ports, Counted::SourceRanges];

/// How much of each counted thing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost([usize; COUNTED.len()]);

/// How much a guest may have of each counted thing. `None` = any number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota([Option<u32>; COUNTED.len()]);

/// One thing of which the quota does not leave enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// What is short.
    pub counted: Counted,
    /// How many the guest may have.
    pub max: u32,
}

/// A Service that needs more than it has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Waiting {
    /// When it was created, in seconds since 1970. `None` sorts first.
    pub created: Option<i64>,
    /// Its UID.
    pub uid: String,
    /// What it needs in addition.
    pub needs: Cost,
}

impl fmt::Display for Shortage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { counted, max } = self;
        match counted {
            Counted::LoadBalancers => write!(formatter, "has the {max} load balancers"),
            Counted::Ports => write!(formatter, "has too few left of the {max} ports"),
            Counted::SourceRanges => write!(formatter, "has too few left of the {max} source ranges"),
        }
    }
}

impl Cost {
    /// What a mirror with this spec takes.
    pub fn of(spec: &ServiceSpec) -> Self {
        Self([1, spec.ports.len(), spec.load_balancer_source_ranges.len()])
    }

    /// Both together.
    pub(crate) fn plus(self, other: Self) -> Self {
        self.with(other, usize::saturating_add)
    }

    /// What this has more than `other`.
    pub(crate) fn beyond(self, other: Self) -> Self {
        self.with(other, usize::saturating_sub)
    }

    /// The larger of each.
    pub(crate) fn or(self, other: Self) -> Self {
        self.with(other, usize::max)
    }

    /// The smaller of each.
    pub(crate) fn at_most(self, other: Self) -> Self {
        self.with(other, usize::min)
    }

    fn with(self, other: Self, combine: impl Fn(usize, usize) -> usize) -> Self {
        Self(std::array::from_fn(|at| combine(self.0[at], other.0[at])))
    }
}

impl Quota {
    /// The quota of this policy.
    pub fn of(policy: &GuestPolicy) -> Self {
        Self([policy.max_load_balancers, policy.max_ports, policy.max_source_ranges])
    }

    /// Whether it allows everything.
    pub fn is_unlimited(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }

    /// What of `cost` the quota counts.
    pub fn counted(&self, cost: Cost) -> Cost {
        Cost(std::array::from_fn(|at| if self.0[at].is_some() { cost.0[at] } else { 0 }))
    }

    /// What would be short if `needs` were taken in addition to `taken`.
    fn shortages(&self, taken: Cost, needs: Cost) -> Vec<Shortage> {
        let after = taken.plus(needs);
        let all = COUNTED.into_iter().zip(self.0).enumerate();
        all.filter_map(|(at, (counted, max))| {
            let max = max.filter(|_| needs.0[at] > 0)?;
            let is_short = after.0[at] > usize::try_from(max).unwrap_or(usize::MAX);
            is_short.then_some(Shortage { counted, max })
        })
        .collect()
    }
}

/// What is short for each of those that wait, by UID; nothing = it may have what it needs. `taken` is in use.
pub fn assess(quota: &Quota, mut taken: Cost, mut waiting: Vec<Waiting>) -> Vec<(String, Vec<Shortage>)> {
    waiting.sort_unstable();
    waiting
        .into_iter()
        .map(|waiting| {
            let short = quota.shortages(taken, waiting.needs);
            if short.is_empty() {
                taken = taken.plus(waiting.needs);
            }
            (waiting.uid, short)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    fn waiting(services: &[(i64, [usize; 3])]) -> Vec<Waiting> {
        let waiting = |(age, needs): &(i64, [usize; 3])| Waiting {
            created: Some(*age),
            uid: format!("u{age}"),
            needs: Cost(*needs),
        };
        services.iter().map(waiting).collect()
    }

    fn admitted(quota: [Option<u32>; 3], taken: [usize; 3], services: &[(i64, [usize; 3])]) -> Vec<String> {
        let all = assess(&Quota(quota), Cost(taken), waiting(services));
        all.into_iter().filter(|(_, short)| short.is_empty()).map(|(uid, _)| uid).collect()
    }

    const ONE: [usize; 3] = [1, 1, 0];

    #[rstest]
    #[case(2, 0, &["u1", "u2"])]
    #[case(2, 1, &["u1"])]
    #[case(2, 2, &[])]
    #[case(2, 9, &[])]
    #[case(0, 0, &[])]
    #[case(9, 0, &["u1", "u2", "u3"])]
    fn the_oldest_get_what_is_left(#[case] max: u32, #[case] taken: usize, #[case] wanted: &[&str]) {
        let services = [(3, ONE), (1, ONE), (2, ONE)];
        assert_eq!(admitted([Some(max), None, None], [taken, 0, 0], &services), wanted);
    }

    #[rstest]
    #[case::ports([None, Some(10), None], [[1, 11, 0], [1, 10, 9], [1, 1, 0]], &["u2"])]
    #[case::ranges([None, None, Some(3)], [[1, 1, 4], [1, 9, 0], [1, 1, 3]], &["u2", "u3"])]
    #[case::more_of_what_is_there([Some(0), Some(10), None], [[0, 4, 0], [1, 1, 0], [0, 6, 0]], &["u1", "u3"])]
    fn one_that_does_not_fit_holds_up_no_other(
        #[case] quota: [Option<u32>; 3],
        #[case] needs: [[usize; 3]; 3],
        #[case] wanted: &[&str],
    ) {
        let services = [(1, needs[0]), (2, needs[1]), (3, needs[2])];
        assert_eq!(admitted(quota, [0, 0, 0], &services), wanted);
    }

    #[test]
    fn all_that_is_short_is_named() {
        let quota = Quota([Some(1), Some(10), Some(0)]);
        let short = assess(&quota, Cost([1, 5, 0]), waiting(&[(1, [1, 6, 2])])).remove(0).1;
        let texts: Vec<_> = short.iter().map(ToString::to_string).collect();
        let wanted = [
            "has the 1 load balancers",
            "has too few left of the 10 ports",
            "has too few left of the 0 source ranges",
        ];
        assert_eq!(texts, wanted);
    }

    proptest! {
        /// In whatever order Services are admitted, there is never more than allowed, and what is left suits none.
        #[test]
        fn a_quota_is_never_exceeded_and_is_used(
            max in proptest::array::uniform3(proptest::option::of(0u32..9)),
            taken in proptest::array::uniform3(0usize..12),
            needs in proptest::collection::vec(proptest::array::uniform3(0usize..5), 0..8),
        ) {
            let quota = Quota(max);
            let services: Vec<_> = (0i64..).zip(needs).collect();
            let mut now = Cost(taken);
            let assessed = assess(&quota, now, waiting(&services));
            for (uid, short) in &assessed {
                let needs = services.iter().find(|(age, _)| format!("u{age}") == *uid).unwrap().1;
                if short.is_empty() {
                    now = now.plus(Cost(needs));
                    for at in 0..3 {
                        let within = max[at].is_none_or(|max| now.0[at] <= max as usize);
                        prop_assert!(within || needs[at] == 0, "{:?} of {:?}", now, max);
                    }
                }
            }
            for (uid, short) in &assessed {
                let needs = services.iter().find(|(age, _)| format!("u{age}") == *uid).unwrap().1;
                if !short.is_empty() {
                    prop_assert!(!quota.shortages(now, Cost(needs)).is_empty(), "{} would fit", uid);
                }
            }
        }
    }
}
