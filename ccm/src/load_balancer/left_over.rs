//! Whether an infra Service of this guest is one that nobody wants any more. Pure. A Service that is deleted by mistake loses its
//! address: what is not proved is not a left-over.

use crate::{
    cluster_name::ClusterName,
    guest::services::GuestService,
    guest_names::{GUEST_CLUSTER_ANNOTATION, Identity, annotation, infra_name},
    infra::mirrors::InfraService,
};

/// `--cluster-name` where nobody gave one: the framework's default, which many guests may share.
const DEFAULT_CLUSTER_NAME: &str = "kubernetes";

/// What the guest's API answered about the Service that an infra Service names. Where it did not answer, nothing is judged.
#[derive(Clone, Copy, Debug)]
pub enum Answer<'a> {
    /// There is no Service of that name.
    Absent,
    /// There is one.
    Present(&'a GuestService),
}

/// What an infra Service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not ours, in use, or going already.
    Stays,
    /// Nobody wants it.
    LeftOver,
    /// Nobody in this guest wants it, but it may be another guest's; why.
    Unproved(&'static str),
}

/// Whom we know the guest to be, and what was seen earlier.
#[derive(Clone, Copy, Debug)]
pub struct Knowledge<'a> {
    /// What all infra Services of this guest have.
    pub identity: &'a Identity,
    /// UID of the guest cluster, as its mirrors are marked with.
    pub guest_cluster: Option<&'a str>,
    /// Whether the same was found an interval ago.
    pub seen_before: bool,
}

/// Judges one infra Service by what the guest answered.
pub fn judge(infra: &InfraService, answer: Answer<'_>, known: Knowledge<'_>) -> Verdict {
    let name = infra.metadata.name.as_deref().unwrap_or_default();
    if !known.identity.owns(infra) || infra.is_deleting() {
        return Verdict::Stays;
    }
    if let Answer::Present(guest) = answer
        && infra_name(guest.uid()) == name
    {
        let is_wanted = guest.spec.kind == crate::wire::service::LOAD_BALANCER || guest.has_finalizer();
        return if is_wanted || guest.is_deleting() { Verdict::Stays } else { Verdict::LeftOver };
    }
    match (annotation(infra, GUEST_CLUSTER_ANNOTATION), known.guest_cluster) {
        (_, None) => Verdict::Unproved("the guest cluster's UID is not known"),
        (Some(marked), Some(own)) if marked != own => {
            Verdict::Unproved("it is marked as another guest cluster's")
        }
        (Some(_), Some(_)) => Verdict::LeftOver,
        (None, Some(_)) if known.identity.cluster == default_name() => {
            Verdict::Unproved("it has no mark, and many guest clusters may be named kubernetes")
        }
        (None, Some(_)) if known.seen_before => Verdict::LeftOver,
        (None, Some(_)) => Verdict::Unproved("it has no mark; looked at again an interval later"),
    }
}

fn default_name() -> ClusterName {
    DEFAULT_CLUSTER_NAME.parse().expect("is a label value")
}

#[cfg(test)]
mod tests;
