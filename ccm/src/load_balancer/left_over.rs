//! Whether an infra Service of this guest is a left-over. Pure. A Service that is deleted by mistake loses its address,
//! so only one that is proved to be a left-over counts as one.

#![deny(clippy::disallowed_types, reason = "a planner knows no client, clock or environment")]

use crate::{
    guest::services::GuestService,
    guest_names::{GUEST_CLUSTER_ANNOTATION, GuestLabels, annotation, infra_name},
    infra::mirrors::InfraService,
};

/// What the guest's API answered about the Service that an infra Service names. Without an answer, nothing is judged.
#[derive(Clone, Copy, Debug)]
pub enum Answer<'a> {
    /// No Service has that name.
    Absent,
    /// A Service has that name.
    Present(&'a GuestService),
}

/// What an infra Service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Classification {
    /// It is not ours, is in use, or is being deleted.
    Stays,
    /// It is a left-over.
    LeftOver,
    /// No Service of this guest needs it, but it may be another guest's; the text gives the reason.
    Unproved(&'static str),
}

/// What identifies the guest, and the result of the last sweep.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// What identifies this guest on all its infra Services.
    pub identity: &'a GuestLabels,
    /// UID of the guest cluster, as in the cluster mark of its mirrors.
    pub guest_cluster: Option<&'a str>,
    /// Whether the sweep before this one found the same.
    pub seen_before: bool,
}

/// Judges one infra Service by the guest's answer.
pub fn judge(infra: &InfraService, answer: Answer<'_>, known: Observed<'_>) -> Classification {
    let name = infra.metadata.name.as_deref().unwrap_or_default();
    if !known.identity.owns(infra) || infra.is_deleting() {
        return Classification::Stays;
    }
    if let Answer::Present(guest) = answer
        && infra_name(guest.uid()) == name
    {
        let is_wanted = guest.spec.kind == crate::wire::service::LOAD_BALANCER || guest.has_finalizer();
        return if is_wanted || guest.is_deleting() {
            Classification::Stays
        } else {
            Classification::LeftOver
        };
    }
    match (annotation(infra, GUEST_CLUSTER_ANNOTATION), known.guest_cluster) {
        (_, None) => Classification::Unproved("the guest cluster's UID is not known"),
        (Some(marked), Some(own)) if marked != own => {
            Classification::Unproved("it is marked as another guest cluster's")
        }
        (Some(_), Some(_)) => Classification::LeftOver,
        (None, Some(_)) if known.identity.cluster.is_default() => {
            Classification::Unproved("it has no mark, and many guest clusters may be named kubernetes")
        }
        (None, Some(_)) if known.seen_before => Classification::LeftOver,
        (None, Some(_)) => Classification::Unproved("it has no mark; checked again an interval later"),
    }
}

#[cfg(test)]
mod tests;
