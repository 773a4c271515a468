//! Which guest an infra Service belongs to. Many guests can share an infra namespace; the CCM never changes an object
//! that is not this guest's.

use std::collections::BTreeMap;

use kube::Resource;

use crate::cluster_name::ClusterName;

/// Label: name of the guest's Service.
pub const SERVICE_NAME_LABEL: &str = "cluster.x-k8s.io/tenant-service-name";
/// Label: namespace of the guest's Service.
pub const SERVICE_NAMESPACE_LABEL: &str = "cluster.x-k8s.io/tenant-service-namespace";
/// Label: name of the guest cluster, also on its VMs.
pub const CLUSTER_NAME_LABEL: &str = "cluster.x-k8s.io/cluster-name";
/// Label of VMs: their role.
pub const ROLE_LABEL: &str = "cluster.x-k8s.io/role";
/// Value of [`ROLE_LABEL`] for VMs that carry workload.
pub const WORKER_ROLE: &str = "worker";
/// Annotation: the full UID of the guest's Service. The mirror's name has all of it but the last digit.
pub const SERVICE_UID_ANNOTATION: &str = "cluster.x-k8s.io/tenant-service-uid";
/// Annotation: the cluster mark, the UID of the guest cluster, which is the UID of its Service `default/kubernetes`.
/// Two guests may have the same name.
pub const GUEST_CLUSTER_ANNOTATION: &str = "cluster.x-k8s.io/tenant-cluster-uid";

/// Longest name of a load balancer (`cloudprovider.DefaultLoadBalancerName`).
const MAX_NAME_LENGTH: usize = 32;
/// Characters of a UUID with its dashes.
const UUID_LENGTH: usize = 36;

/// Values that labels of this guest's infra Services had before, by key. The empty text stands for a label that was missing.
pub type FormerLabels = BTreeMap<String, Vec<String>>;

/// What identifies this guest on every infra Service of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestLabels {
    /// The guest cluster's name.
    pub cluster: ClusterName,
    /// The operator's labels (`infraLabels`).
    pub infra_labels: BTreeMap<String, String>,
    /// What the operator says that the labels were before (`formerLabels`).
    pub former: FormerLabels,
}

/// Why an infra Service is not this guest Service's mirror.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Foreign {
    /// A label or annotation has another value.
    #[error("infra service {name} is not ours: its {key} is {found:?}, ours would be {wanted:?}")]
    Other {
        /// Its name.
        name: String,
        /// The key of the label or annotation.
        key: String,
        /// The value that it has.
        found: String,
        /// The value that it would have on the mirror.
        wanted: String,
    },
    /// It does not name the guest Service that it belongs to.
    #[error("infra service {name} is not ours: it has no label {CLUSTER_NAME_LABEL}")]
    Unnamed {
        /// Its name.
        name: String,
    },
}

/// The name of the mirror of the Service with this UID: `a`, then the UID without dashes, cut to 32 characters.
pub fn infra_name(uid: &str) -> String {
    std::iter::once('a').chain(uid.chars().filter(|c| *c != '-')).take(MAX_NAME_LENGTH).collect()
}

/// Whether this name has the form that [`infra_name`] gives.
pub fn is_infra_name(name: &str) -> bool {
    name.len() == MAX_NAME_LENGTH
        && name.strip_prefix('a').is_some_and(|uid| uid.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Whether a Service with this UID has a mirror. API servers give UUIDs; of any other text the name would be no name, or be cut so that
/// two UIDs have one.
pub fn has_mirror(uid: &str) -> bool {
    uid.len() <= UUID_LENGTH && is_infra_name(&infra_name(uid))
}

impl GuestLabels {
    /// The labels that all infra Services of this guest have.
    pub fn common_labels(&self) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::from([(CLUSTER_NAME_LABEL.to_owned(), self.cluster.to_string())]);
        labels.extend(self.infra_labels.clone());
        labels
    }

    /// The labels of the mirror of `guest`. The operator's labels win over the others, as in the upstream cloud
    /// provider.
    pub fn labels(&self, guest: &impl Resource) -> BTreeMap<String, String> {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let mut labels = BTreeMap::from([
            (SERVICE_NAME_LABEL.to_owned(), text(&guest.meta().name)),
            (SERVICE_NAMESPACE_LABEL.to_owned(), text(&guest.meta().namespace)),
        ]);
        labels.extend(self.common_labels());
        labels
    }

    /// The value of [`CLUSTER_NAME_LABEL`] on all objects of this guest.
    pub fn cluster_label(&self) -> &str {
        self.infra_labels.get(CLUSTER_NAME_LABEL).map_or(self.cluster.as_str(), String::as_str)
    }

    /// The selector of those VMs of this guest that run workload.
    pub fn selector(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            (ROLE_LABEL.to_owned(), WORKER_ROLE.to_owned()),
            (CLUSTER_NAME_LABEL.to_owned(), self.cluster.to_string()),
        ])
    }

    /// Whether this value of a label was this guest's before. The names of a guest's Service do not change.
    fn was(&self, key: &str, value: &str) -> bool {
        let is_of_cluster = ![SERVICE_NAME_LABEL, SERVICE_NAMESPACE_LABEL].contains(&key);
        is_of_cluster
            && self.former.get(key).is_some_and(|values| values.iter().any(|former| former == value))
    }

    /// Checks that `infra` is the mirror of `guest`.
    ///
    /// A missing label is drift, which the CCM repairs as long as another label or the annotation names the guest
    /// Service. A label with another value belongs to another cluster, whoever wrote it: a clone of this guest under
    /// another name has the same UIDs, and with them the same names. Only the operator can say that it was this cluster's.
    ///
    /// # Errors
    /// The first label or annotation that contradicts it.
    pub fn check(&self, guest: &impl Resource, infra: &impl Resource) -> Result<(), Foreign> {
        let name = || infra.meta().name.clone().unwrap_or_default();
        let other = |key: &str, found: &str, wanted: &str| {
            let (key, found, wanted) = (key.to_owned(), found.to_owned(), wanted.to_owned());
            Err(Foreign::Other { name: name(), key, found, wanted })
        };
        let uid = infra.meta().annotations.as_ref().and_then(|all| all.get(SERVICE_UID_ANNOTATION));
        if let Some(uid) = uid.filter(|uid| *uid != guest.meta().uid.as_deref().unwrap_or_default()) {
            return other(SERVICE_UID_ANNOTATION, uid, guest.meta().uid.as_deref().unwrap_or_default());
        }
        let wanted = self.labels(guest);
        if let Some((key, found, wanted)) = self.contradiction(infra, &wanted) {
            return other(key, found, wanted);
        }
        let is_unnamed = uid.is_none() && label(infra, CLUSTER_NAME_LABEL).is_none();
        if is_unnamed && !self.was(CLUSTER_NAME_LABEL, "") {
            return Err(Foreign::Unnamed { name: name() });
        }
        Ok(())
    }
}

impl GuestLabels {
    /// The first of the `wanted` labels that `infra` has with a value that never was this guest's: its key, the value that
    /// was found, and the wanted one.
    fn contradiction<'a>(
        &self,
        infra: &'a impl Resource,
        wanted: &'a BTreeMap<String, String>,
    ) -> Option<(&'a str, &'a str, &'a str)> {
        let found = wanted.iter().filter_map(|(key, wanted)| Some((key, label(infra, key)?, wanted)));
        let mut others = found.filter(|(key, found, wanted)| found != wanted && !self.was(key, found));
        others.next().map(|(key, found, wanted)| (key.as_str(), found, wanted.as_str()))
    }

    /// Whether a label names another guest: the cluster's name and the operator's labels are a guest's identity.
    pub fn is_anothers(&self, infra: &impl Resource) -> bool {
        self.contradiction(infra, &self.common_labels()).is_some()
    }

    /// Whether all marks of an infra Service name this guest: the three labels, the operator's labels, and a name that
    /// only a mirror has.
    pub fn owns(&self, infra: &impl Resource) -> bool {
        let common = self.common_labels();
        is_marked(infra) && common.iter().all(|(key, value)| label(infra, key) == Some(value.as_str()))
    }

    /// The same, where labels may also have their former values. Another guest may have these today, so this alone
    /// proves nothing.
    pub fn owned(&self, infra: &impl Resource) -> bool {
        let is_or_was = |(key, value): (&String, &String)| {
            let found = label(infra, key).unwrap_or_default();
            found == value || self.was(key, found)
        };
        is_marked(infra) && self.common_labels().iter().all(is_or_was)
    }

    /// The selectors of all infra Services that may be this guest's mirrors: by the cluster's name, and by those that it
    /// had before.
    pub fn selectors(&self) -> Vec<String> {
        let former = self.former.get(CLUSTER_NAME_LABEL).map(Vec::as_slice).unwrap_or_default();
        let names: Vec<_> = std::iter::once(self.cluster_label())
            .chain(former.iter().map(String::as_str))
            .filter(|name| !name.is_empty())
            .collect();
        let without = former.iter().any(String::is_empty).then(|| format!("!{CLUSTER_NAME_LABEL}"));
        let of_names = format!("{CLUSTER_NAME_LABEL} in ({})", names.join(","));
        std::iter::once(of_names).chain(without).collect()
    }
}

/// Whether an infra Service has the name, the labels and the annotations of a mirror, whosesoever.
fn is_marked(infra: &impl Resource) -> bool {
    let named = [SERVICE_NAME_LABEL, SERVICE_NAMESPACE_LABEL];
    let name = infra.meta().name.as_deref().unwrap_or_default();
    let uid = annotation(infra, SERVICE_UID_ANNOTATION);
    named.iter().all(|key| label(infra, key).is_some_and(|value| !value.is_empty()))
        && is_infra_name(name)
        && uid.is_none_or(|uid| infra_name(uid) == name)
}

/// The value of a label, if it is set.
pub(crate) fn label<'a>(infra: &'a impl Resource, key: &str) -> Option<&'a str> {
    infra.meta().labels.as_ref()?.get(key).map(String::as_str)
}

/// The value of an annotation, if it is set.
pub(crate) fn annotation<'a>(infra: &'a impl Resource, key: &str) -> Option<&'a str> {
    infra.meta().annotations.as_ref()?.get(key).map(String::as_str)
}

#[cfg(test)]
mod tests;
