//! How much a Service of the guest asks of the infra cluster, and whether that is within the operator's limits. Pure.
//!
//! A Service above a limit is refused as a whole: a load balancer with fewer source ranges would be open. One that exists
//! already keeps what it has, and may not ask for more of what is above the limit.

#![deny(clippy::disallowed_types, reason = "a planner knows no client, clock or environment")]

use std::{collections::BTreeSet, fmt};

use crate::{
    config::{
        limits::Limits,
        policy::{GuestPolicy, LAST_APPLIED},
    },
    guest::services::GuestService,
    guest_names::{GUEST_CLUSTER_ANNOTATION, SERVICE_UID_ANNOTATION},
    infra::mirrors::InfraService,
    load_balancer::mirror::ADOPTED_ANNOTATION,
};

/// How much a Service takes of infra.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// `spec.ports`.
    pub ports: usize,
    /// `spec.loadBalancerSourceRanges`.
    pub source_ranges: usize,
    /// Bytes of the keys and values of the guest's annotations that reach infra.
    pub annotation_bytes: usize,
}

/// One thing of which a Service asks for more than its limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excess {
    /// What it is.
    what: &'static str,
    /// How much the Service asks for.
    asked: usize,
    /// How much it may ask for.
    limit: usize,
}

/// What a Service asks for above the limits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Excesses {
    /// More than its infra Service has: the Service is refused.
    pub refused: Vec<Excess>,
    /// No more than its infra Service has: it stays.
    pub kept: Vec<Excess>,
}

impl fmt::Display for Excess {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {} (at most {})", self.asked, self.what, self.limit)
    }
}

/// The excesses as one text.
pub fn listed(excesses: &[Excess]) -> String {
    excesses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl Size {
    /// What `guest` asks for.
    pub fn asked(guest: &GuestService, policy: &GuestPolicy) -> Self {
        let annotations = guest.metadata.annotations.iter().flatten();
        Self {
            ports: guest.spec.ports.len(),
            source_ranges: guest.spec.load_balancer_source_ranges.len(),
            annotation_bytes: annotations
                .filter(|(key, value)| is_guests(key, policy) && policy.passes(key, value))
                .map(|(key, value)| key.len() + value.len())
                .sum(),
        }
    }

    /// What the infra Service of `guest` has. Its annotations count if they came from the guest: those that we or the
    /// upstream cloud provider wrote, and those that the guest asks for now.
    pub fn present(infra: &InfraService, guest: &GuestService, policy: &GuestPolicy) -> Self {
        let asked = guest.metadata.annotations.as_ref();
        let asks =
            |key: &str| asked.and_then(|all| all.get(key)).is_some_and(|value| policy.passes(key, value));
        let own: BTreeSet<&str> = infra.own_annotations().collect();
        let is_default = |key: &String, value| policy.annotations.defaults.get(key) == Some(value);
        let annotations = infra.metadata.annotations.iter().flatten();
        Self {
            ports: infra.spec.ports.len(),
            source_ranges: infra.spec.load_balancer_source_ranges.len(),
            annotation_bytes: annotations
                .filter(|(key, value)| {
                    is_guests(key, policy)
                        && (asks(key) || (own.contains(key.as_str()) && !is_default(key, value)))
                })
                .map(|(key, value)| key.len() + value.len())
                .sum(),
        }
    }

    /// What of this is above the limits, where infra has `present` already.
    pub fn above(self, limits: Limits, present: Self) -> Excesses {
        let counted = [
            ("ports", self.ports, present.ports, limits.ports),
            ("source ranges", self.source_ranges, present.source_ranges, limits.source_ranges),
            (
                "bytes of annotations",
                self.annotation_bytes,
                present.annotation_bytes,
                limits.annotation_bytes,
            ),
        ];
        let mut excesses = Excesses::default();
        for (what, asked, has, limit) in counted {
            let Some(limit) = limit.filter(|limit| asked > *limit) else { continue };
            let list = if asked > has { &mut excesses.refused } else { &mut excesses.kept };
            list.push(Excess { what, asked, limit });
        }
        excesses
    }
}

/// What `guest` asks for above the limits, where infra has the Service `present`.
pub fn excesses(
    guest: &GuestService,
    present: Option<&InfraService>,
    limits: Limits,
    policy: &GuestPolicy,
) -> Excesses {
    let has = present.map(|infra| Size::present(infra, guest, policy)).unwrap_or_default();
    Size::asked(guest, policy).above(limits, has)
}

/// Whether the guest decides about this annotation, and not the CCM or the operator. kubectl's record is never passed on.
fn is_guests(key: &str, policy: &GuestPolicy) -> bool {
    let own = [SERVICE_UID_ANNOTATION, GUEST_CLUSTER_ANNOTATION, ADOPTED_ANNOTATION, LAST_APPLIED];
    !own.contains(&key) && !policy.annotations.overrides.contains_key(key)
}

#[cfg(test)]
mod tests;
