//! Whether an infra Service of this guest is one that nobody wants any more. Pure. A Service that is deleted by mistake loses its
//! address: what is not proved is not a left-over.

use super::identity::{
    GUEST_CLUSTER_ANNOTATION, Identity, SERVICE_UID_ANNOTATION, infra_name, is_infra_name,
};
use super::service::{GuestService, InfraService};
use crate::cluster_name::ClusterName;

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
        let is_wanted = guest.spec.kind == super::service::LOAD_BALANCER || guest.has_finalizer();
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

fn annotation<'a>(infra: &'a InfraService, key: &str) -> Option<&'a str> {
    infra.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

impl Identity {
    /// Whether an infra Service says in everything that it is one of this guest's: the three labels, the operator's, and a name
    /// that only a mirror has.
    pub fn owns(&self, infra: &InfraService) -> bool {
        let Some(labels) = &infra.metadata.labels else { return false };
        let named = [super::identity::SERVICE_NAME_LABEL, super::identity::SERVICE_NAMESPACE_LABEL];
        let name = infra.metadata.name.as_deref().unwrap_or_default();
        let uid = annotation(infra, SERVICE_UID_ANNOTATION);
        named.iter().all(|key| labels.get(*key).is_some_and(|value| !value.is_empty()))
            && self.common_labels().iter().all(|(key, value)| labels.get(key) == Some(value))
            && is_infra_name(name)
            && uid.is_none_or(|uid| infra_name(uid) == name)
    }
}

#[cfg(test)]
mod tests;
